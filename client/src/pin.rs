//! Whom an agent takes for a coordinator of its mesh: who shows a certificate of a pinned
//! certificate authority.

use std::sync::{Arc, PoisonError, RwLock};

use ::aws_lc_rs::digest;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use thiserror::Error as ThisError;
use wattle_wire::key::Bytes32;

/// The pin of a certificate authority: SHA-256 over its certificate in DER, as `openssl x509
/// -fingerprint -sha256` shows it.
pub fn pin(certificate: &CertificateDer<'_>) -> Bytes32 {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    Bytes32::from(hash)
}

/// No certificate of the chain is that of a pinned authority.
#[derive(Debug, ThisError)]
#[error("its certificate is not from the authority that the join string pins")]
struct Unpinned;

/// The pinned authorities. They may change while connections are made: each new connection is held
/// against those of its moment.
#[derive(Debug)]
pub struct Pins {
    pins: RwLock<Vec<Bytes32>>,
    provider: Arc<CryptoProvider>,
}

impl Pins {
    pub fn new(pins: Vec<Bytes32>) -> Arc<Self> {
        Arc::new(Self {
            pins: RwLock::new(pins),
            provider: Arc::new(aws_lc_rs::default_provider()),
        })
    }

    pub fn get(&self) -> Vec<Bytes32> {
        self.pins
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set(&self, pins: Vec<Bytes32>) {
        *self.pins.write().unwrap_or_else(PoisonError::into_inner) = pins;
    }

    /// How to connect: TLS 1.3, and to nobody else. No session is resumed, so that each connection
    /// is held against the pins.
    ///
    /// # Errors
    ///
    /// When the cryptographic library has no TLS 1.3.
    pub fn client_config(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?;
        let mut config = config
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as _)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        // One connection for the stream and all requests beside it.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Those of the shown certificates that are pinned.
    fn among(&self, shown: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
        let mut roots = RootCertStore::empty();
        for certificate in shown
            .iter()
            .filter(|certificate| pins.contains(&pin(certificate)))
        {
            roots.add(certificate.clone().into_owned())?;
        }
        if roots.is_empty() {
            Err(Error::Other(OtherError(Arc::new(Unpinned))))
        } else {
            Ok(roots)
        }
    }
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.among(intermediates)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build();
        let verifier = verifier.map_err(|error| Error::Other(OtherError(Arc::new(error))))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    const NOW_UNIX_S: i64 = 1_800_000_000;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate for `coordinator.example` and 192.0.2.1, good for a day on either side of
    /// [`NOW_UNIX_S`].
    fn issue(authority: &CertifiedIssuer<'_, KeyPair>) -> CertificateDer<'static> {
        let mut params =
            CertificateParams::new(["coordinator.example".to_owned(), "192.0.2.1".to_owned()])
                .unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(NOW_UNIX_S.unsigned_abs());
        let day = Duration::from_secs(86_400);
        (params.not_before, params.not_after) = ((now - day).into(), (now + day).into());
        params
            .signed_by(&KeyPair::generate().unwrap(), authority)
            .unwrap()
            .der()
            .clone()
    }

    fn check(
        pins: &[Bytes32],
        chain: &[CertificateDer<'_>],
        name: &'static str,
        days: i64,
    ) -> Result<(), String> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(
            (NOW_UNIX_S + days * 86_400).unsigned_abs(),
        ));
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let verified =
            Pins::new(pins.to_vec()).verify_server_cert(&chain[0], &chain[1..], &name, &[], now);
        verified.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_certificate_that_a_pinned_authority_signed_for_this_name_and_time_is_taken() {
        let (ours, theirs) = (authority(), authority());
        let good = [issue(&ours), ours.der().clone()];
        let both = [pin(theirs.der()), pin(ours.der())];
        for name in ["coordinator.example", "192.0.2.1"] {
            check(&both, &good, name, 0).unwrap();
        }
        let refused = [
            (
                &[pin(theirs.der())][..],
                &good[..],
                "coordinator.example",
                0,
                "not from the authority",
            ),
            (
                &[],
                &good,
                "coordinator.example",
                0,
                "not from the authority",
            ),
            (
                &both[1..],
                &good[..1],
                "coordinator.example",
                0,
                "not from the authority",
            ),
            // The authority itself is shown, but did not sign.
            (
                &both[1..],
                &[issue(&theirs), ours.der().clone()],
                "coordinator.example",
                0,
                "signature",
            ),
            // A pinned certificate is an authority, not whoever shows it.
            (
                &both[1..],
                &[ours.der().clone(), ours.der().clone()],
                "coordinator.example",
                0,
                "invalid peer certificate",
            ),
            (&both, &good, "elsewhere.example", 0, "not valid for name"),
            (&both, &good, "192.0.2.2", 0, "not valid for name"),
            (&both, &good, "coordinator.example", 2, "expired"),
            (&both, &good, "coordinator.example", -2, "not valid yet"),
        ];
        for (pins, chain, name, days, why) in refused {
            let error = check(pins, chain, name, days).unwrap_err();
            assert!(error.to_lowercase().contains(why), "{why}: {error}");
        }
    }
}
