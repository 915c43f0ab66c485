//! The certificate that this coordinator shows: of the mesh's own authority, or from files; renewed
//! and read again while it serves.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use axum::http::Uri;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use wattle_wire::key::Bytes32;
use zeroize::Zeroizing;

use crate::{config::Config, db::Db, secret, tls::authority};

/// How often files and pins are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// What a client that wants HTTP/2 asks for in its handshake (RFC 9113, section 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// Where the certificate comes from.
#[derive(Debug)]
enum Source {
    /// The mesh's own authority signs one for these names.
    Authority {
        data_dir: PathBuf,
        names: Vec<String>,
    },
    /// Somebody else made it: PEM files, the certificate with its chain.
    Files { certificate: PathBuf, key: PathBuf },
}

/// What is shown now.
#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// Digest of the files that it came from.
    files: [u8; 32],
    /// When it is to be made anew; `None` when that is somebody else's business.
    renew_at: Option<SystemTime>,
}

/// The certificate of this coordinator, and the pins by which agents know it.
#[derive(Debug)]
pub struct Certificate {
    source: Source,
    shown: RwLock<Shown>,
    pins: RwLock<Vec<Bytes32>>,
}

impl Certificate {
    /// The certificate that the settings ask for, for where agents reach the coordinator and for
    /// other addresses that it listens on.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, a key does not fit its certificate, or the authority is
    /// not that of the mesh.
    pub async fn open(
        db: &Db,
        config: &Config,
        urls: &[String],
        others: &[SocketAddr],
    ) -> anyhow::Result<Arc<Self>> {
        let source = match config.tls_files() {
            Some((certificate, key)) => Source::Files {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            },
            None => {
                authority::ensure(db, &config.data_dir).await?;
                Source::Authority {
                    data_dir: config.data_dir.clone(),
                    names: names(urls, others),
                }
            }
        };
        let shown = source.load()?;
        let certificate = Self {
            source,
            shown: RwLock::new(shown),
            pins: RwLock::default(),
        };
        certificate.read_pins(db).await?;
        Ok(Arc::new(certificate))
    }

    /// How to serve with it: TLS 1.3 alone, no session resumed, so that each agent holds each
    /// connection against its pins.
    pub fn server_config(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The pins that agents are to trust; none when the certificate is publicly valid.
    pub fn pins(&self) -> Vec<Bytes32> {
        self.pins
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Follows files and pins until the coordinator stops. What cannot be read leaves in place what
    /// is shown.
    pub async fn follow(&self, db: &Db, stop: &CancellationToken) {
        let mut ticks = interval(LOOK);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.refresh(SystemTime::now()) {
                Ok(true) => tracing::info!("serves a new certificate"),
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    "cannot make a new certificate, and keeps the present one: {error:#}"
                ),
            }
            if let Err(error) = self.read_pins(db).await {
                tracing::debug!("cannot read the pins: {error:#}");
            }
        }
    }

    /// Takes a new certificate if the files changed or the present one nears its end. Says whether
    /// it did.
    fn refresh(&self, now: SystemTime) -> anyhow::Result<bool> {
        let files = self.source.digest()?;
        {
            let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
            if shown.files == files && shown.renew_at.is_none_or(|at| now < at) {
                return Ok(false);
            }
        }
        let new = self.source.load()?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }

    async fn read_pins(&self, db: &Db) -> anyhow::Result<()> {
        if let Source::Authority { .. } = self.source {
            let pins = authority::pins(db).await?;
            *self.pins.write().unwrap_or_else(PoisonError::into_inner) = pins;
        }
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self
                .shown
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .key,
        ))
    }
}

impl Source {
    fn digest(&self) -> anyhow::Result<[u8; 32]> {
        let files = match self {
            Self::Authority { data_dir, .. } => vec![authority::secret_file(data_dir)],
            Self::Files { certificate, key } => vec![certificate.clone(), key.clone()],
        };
        let mut content = Zeroizing::new(Vec::new());
        for file in files {
            content.extend_from_slice(&Zeroizing::new(
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
            ));
        }
        Ok(secret::hash(&content))
    }

    fn load(&self) -> anyhow::Result<Shown> {
        let files = self.digest()?;
        let (key, renew_at) = match self {
            Self::Authority { data_dir, names } => {
                let key = authority::reload(data_dir)?.issue(names)?;
                (key, Some(SystemTime::now() + authority::RENEW_AFTER))
            }
            Self::Files { certificate, key } => {
                let unreadable = |file: &PathBuf| format!("cannot read {}", file.display());
                let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
                    .with_context(|| unreadable(certificate))?
                    .collect();
                let chain = chain.with_context(|| unreadable(certificate))?;
                let private = PrivateKeyDer::from_pem_file(key).with_context(|| unreadable(key))?;
                let both = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
                    .with_context(|| {
                    format!(
                        "the certificate in {} does not belong to the key in {}",
                        certificate.display(),
                        key.display()
                    )
                })?;
                (both, None)
            }
        };
        Ok(Shown {
            key: Arc::new(key),
            files,
            renew_at,
        })
    }
}

/// What this coordinator is called: as its URLs say, and as it is reached from its own machine.
fn names(urls: &[String], others: &[SocketAddr]) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.extend(urls.iter().filter_map(|url| host(url)));
    names.extend(
        others
            .iter()
            .map(SocketAddr::ip)
            .filter(|address| !address.is_unspecified())
            .map(|address| address.to_string()),
    );
    names.sort();
    names.dedup();
    names
}

/// The host of a base URL, an IPv6 address without its brackets.
fn host(url: &str) -> Option<String> {
    Some(
        url.parse::<Uri>()
            .ok()?
            .host()?
            .trim_matches(['[', ']'])
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::Authority;

    fn shown(certificate: &Certificate) -> Arc<CertifiedKey> {
        Arc::clone(&certificate.shown.read().unwrap().key)
    }

    fn open(source: Source) -> Certificate {
        Certificate {
            shown: RwLock::new(source.load().unwrap()),
            source,
            pins: RwLock::default(),
        }
    }

    #[test]
    fn a_certificate_of_our_own_is_made_anew_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().to_owned();
        Authority::fresh()
            .unwrap()
            .save(&authority::secret_file(&data_dir))
            .unwrap();
        let certificate = open(Source::Authority {
            data_dir,
            names: names(&[], &[]),
        });
        let (first, now) = (shown(&certificate), SystemTime::now());
        let days = |days: u64| Duration::from_secs(days * 86_400);
        assert!(!certificate.refresh(now + days(19)).unwrap());
        assert!(certificate.refresh(now + days(21)).unwrap());
        let second = shown(&certificate);
        assert_ne!(second.cert[0], first.cert[0]);
        assert_eq!(second.cert[1], first.cert[1], "the authority is the same");
    }

    #[test]
    fn files_that_change_are_read_again_and_those_that_do_not_fit_leave_what_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::Files {
            certificate: folder.path().join("crt"),
            key: folder.path().join("key"),
        };
        let put = |certificate: &rcgen::CertifiedKey<rcgen::KeyPair>,
                   key: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            fs::write(folder.path().join("crt"), certificate.cert.pem()).unwrap();
            fs::write(folder.path().join("key"), key.signing_key.serialize_pem()).unwrap();
        };
        let [old, new] =
            [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
        put(&old, &old);
        let certificate = open(source);
        let now = SystemTime::now();
        assert!(!certificate.refresh(now).unwrap());
        put(&new, &old);
        assert!(certificate.refresh(now).is_err());
        assert_eq!(&shown(&certificate).cert[0], old.cert.der());
        put(&new, &new);
        assert!(certificate.refresh(now).unwrap());
        assert_eq!(&shown(&certificate).cert[0], new.cert.der());
    }

    #[test]
    fn a_certificate_has_the_hosts_of_the_urls() {
        let urls = [
            "https://coordinator.example:8443",
            "https://[2001:db8::1]:8443",
            "https://192.0.2.1",
        ]
        .map(str::to_owned);
        let others = ["192.0.2.9:1", "0.0.0.0:2"].map(|address| address.parse().unwrap());
        assert_eq!(
            names(&urls, &others),
            [
                "127.0.0.1",
                "192.0.2.1",
                "192.0.2.9",
                "2001:db8::1",
                "::1",
                "coordinator.example",
                "localhost"
            ]
        );
    }
}
