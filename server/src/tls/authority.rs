//! The mesh's own certificate authority, which agents know by its pin: where it is kept, and what
//! it signs.
//!
//! Its key is a file of the data directory and never in the database; the database has the pins
//! that agents are to trust.

mod queries;

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::Serialize;
use wattle_client::pin::pin;
use wattle_mesh::audit::Subject;
use wattle_wire::key::Bytes32;
use zeroize::Zeroizing;

use crate::{
    data_dir::{PRIVATE, PUBLIC, write_whole},
    db::{AuditActor, Db},
    fingerprint::fingerprint,
};

/// Days for which a certificate of a coordinator is good.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// After which time it is made anew.
pub const RENEW_AFTER: Duration = Duration::from_secs(20 * 86_400);
/// How far the clock of a gateway may be behind.
const SLOW_CLOCKS: Duration = Duration::from_secs(2 * 86_400);
/// What the authority is called in its own certificate and in those that it signs. It never
/// changes: the two are compared.
const NAME: &str = "Wattle";

/// Key and certificate of the authority, in PEM.
pub fn secret_file(data_dir: &Path) -> PathBuf {
    data_dir.join("ca.pem")
}

/// The certificate alone, for whoever wants to check the coordinator, such as `curl --cacert`.
pub fn public_file(data_dir: &Path) -> PathBuf {
    data_dir.join("ca.crt")
}

/// The authority that is to follow the present one.
fn next_file(data_dir: &Path) -> PathBuf {
    data_dir.join("ca.next.pem")
}

/// A certificate authority with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    pem: Zeroizing<String>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", fingerprint(self.pin()))
    }
}

impl Authority {
    pub(crate) fn fresh() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params_of_authority()
            .self_signed(&key)
            .context("cannot make a certificate authority")?;
        Self::from_pem(Zeroizing::new(
            certificate.pem() + &Zeroizing::new(key.serialize_pem()),
        ))
    }

    /// The authority of a file; `None` when there is no file.
    fn load(file: &Path) -> anyhow::Result<Option<Self>> {
        match fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            text => {
                let pem = Zeroizing::new(
                    text.with_context(|| format!("cannot read {}", file.display()))?,
                );
                let authority = Self::from_pem(pem)
                    .with_context(|| format!("{} is damaged: restore it", file.display()))?;
                Ok(Some(authority))
            }
        }
    }

    fn from_pem(pem: Zeroizing<String>) -> anyhow::Result<Self> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).context("it holds no certificate")?;
        let key =
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("it holds no private key")?;
        let key = KeyPair::try_from(&key).context("its private key cannot be read")?;
        Ok(Self {
            certificate,
            issuer: Issuer::new(params_of_authority(), key),
            pem,
        })
    }

    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        write_whole(file, &self.pem, PRIVATE)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn pin(&self) -> Bytes32 {
        pin(&self.certificate)
    }

    /// The certificate in PEM.
    fn public_pem(&self) -> &str {
        const END: &str = "-----END CERTIFICATE-----\n";
        self.pem
            .find(END)
            .map_or("", |end| &self.pem[..end + END.len()])
    }

    /// A certificate for a coordinator that is reached under these names and addresses, with a key
    /// that no file ever holds.
    pub fn issue(&self, names: &[String]) -> anyhow::Result<CertifiedKey> {
        let mut params = CertificateParams::new(names)
            .context("a host name of --url cannot be in a certificate")?;
        let now = SystemTime::now();
        (params.not_before, params.not_after) =
            ((now - SLOW_CLOCKS).into(), (now + LIFETIME).into());
        params.distinguished_name = named("Wattle coordinator");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot make a key")?;
        let signed = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign a certificate")?;
        let chain = vec![signed.der().clone(), self.certificate.clone()];
        CertifiedKey::from_der(chain, key.into(), &aws_lc_rs::default_provider())
            .context("cannot use a certificate of our own")
    }
}

fn params_of_authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // It is trusted by its pin until it is replaced; a date would only end it on a bad day.
    (params.not_before, params.not_after) =
        (date_time_ymd(2020, 1, 1), date_time_ymd(2999, 12, 31));
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The authority of this coordinator. The first coordinator of a mesh makes it; to others the
/// operator brings the file.
pub async fn ensure(db: &Db, data_dir: &Path) -> anyhow::Result<Authority> {
    let mut transaction = db.begin().await.context("cannot reach the database")?;
    let trusted = queries::lock_pins(&mut transaction).await?;
    let file = secret_file(data_dir);
    let authority = match Authority::load(&file)? {
        Some(authority) => authority,
        None if trusted.is_empty() => {
            let authority = Authority::fresh()?;
            authority.save(&file)?;
            tracing::info!(file = %file.display(), "made the mesh's certificate authority; back up \
                this file and keep it secret");
            authority
        }
        None => bail!(
            "the agents of this mesh trust the certificate authority {}, and {} is missing: copy \
             it from the data directory of another \
             coordinator or from a backup; if it is lost, `wattle-server ca forget` and let the \
             agents join again",
            fingerprints(&trusted),
            file.display()
        ),
    };
    let pin = authority.pin();
    if trusted.is_empty() {
        queries::insert(&mut transaction, pin).await?;
    }
    ensure!(
        trusted.is_empty() || trusted.contains(&pin),
        "{} holds the certificate authority {}, and the agents of this mesh trust {}: copy the \
         file from the data directory of another coordinator",
        file.display(),
        fingerprint(pin),
        fingerprints(&trusted)
    );
    transaction
        .commit()
        .await
        .context("cannot reach the database")?;
    publish(&authority, data_dir)?;
    Ok(authority)
}

/// The pins that agents are to trust.
pub async fn pins(db: &Db) -> anyhow::Result<Vec<Bytes32>> {
    Ok(queries::pins(&mut *db.follow().await?).await?)
}

/// Reads the authority again, for a coordinator that runs.
pub fn reload(data_dir: &Path) -> anyhow::Result<Authority> {
    let authority = Authority::load(&secret_file(data_dir))?
        .context("ca.pem is missing from the data directory")?;
    publish(&authority, data_dir)?;
    Ok(authority)
}

/// Writes the certificate where everybody may read it.
fn publish(authority: &Authority, data_dir: &Path) -> anyhow::Result<()> {
    let file = public_file(data_dir);
    if fs::read_to_string(&file).is_ok_and(|text| text == authority.public_pem()) {
        return Ok(());
    }
    write_whole(&file, authority.public_pem(), PUBLIC)
        .with_context(|| format!("cannot write {}", file.display()))
}

/// An authority that agents are to trust.
#[derive(Debug, Serialize)]
pub struct ListedAuthority {
    /// Its pin, as `openssl x509 -fingerprint -sha256` prints it.
    fingerprint: String,
    /// What it is on this coordinator; absent means that its key is not here.
    here: Option<Here>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Here {
    Signs,
    Next,
}

impl fmt::Display for ListedAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = match self.here {
            Some(Here::Signs) => "  signs here",
            Some(Here::Next) => "  is next here",
            None => "",
        };
        write!(f, "{}{here}", self.fingerprint)
    }
}

/// The authorities that agents are to trust.
pub async fn list(db: &Db, data_dir: &Path) -> anyhow::Result<Vec<ListedAuthority>> {
    let pin_of = |file: &Path| anyhow::Ok(Authority::load(file)?.map(|authority| authority.pin()));
    let (present, next) = (
        pin_of(&secret_file(data_dir))?,
        pin_of(&next_file(data_dir))?,
    );
    let line = |pin: Bytes32| {
        let here = match Some(pin) {
            pin if pin == present => Some(Here::Signs),
            pin if pin == next => Some(Here::Next),
            _ => None,
        };
        let fingerprint = fingerprint(pin);
        ListedAuthority { fingerprint, here }
    };
    Ok(pins(db).await?.into_iter().map(line).collect())
}

/// Makes the authority that is to follow; agents learn from now on to trust it beside the present
/// one.
pub async fn make_next(db: &Db, actor: &AuditActor, data_dir: &Path) -> anyhow::Result<Bytes32> {
    let file = next_file(data_dir);
    let authority = match Authority::load(&file)? {
        Some(authority) => authority,
        None => {
            let authority = Authority::fresh()?;
            authority.save(&file)?;
            authority
        }
    };
    let pin = authority.pin();
    db.mutate(actor, |mut change| async move {
        match queries::insert(&mut change, pin).await? {
            true => Ok(change.changed((), Vec::new(), "authority.trust", subject(pin))),
            false => Ok(change.unchanged(())),
        }
    })
    .await?;
    Ok(pin)
}

/// Puts the next authority in the place of the present one. A coordinator that runs notices by
/// itself.
pub async fn switch(db: &Db, data_dir: &Path) -> anyhow::Result<Bytes32> {
    let next = next_file(data_dir);
    let authority = Authority::load(&next)?.with_context(|| {
        format!(
            "there is no {}: `wattle-server ca next` makes it",
            next.display()
        )
    })?;
    ensure!(
        pins(db).await?.contains(&authority.pin()),
        "agents do not know the next authority yet: run `wattle-server ca next`, and wait a minute"
    );
    fs::rename(&next, secret_file(data_dir))
        .with_context(|| format!("cannot rename {}", next.display()))?;
    publish(&authority, data_dir)?;
    Ok(authority.pin())
}

/// Ends the trust in an authority.
pub async fn forget(
    db: &Db,
    actor: &AuditActor,
    data_dir: &Path,
    pin: Bytes32,
) -> anyhow::Result<()> {
    let present = Authority::load(&secret_file(data_dir))?.map(|authority| authority.pin());
    ensure!(
        present != Some(pin),
        "this authority still signs here: replace it first with `ca next` and `ca switch`"
    );
    let forgotten = db.mutate(actor, |mut change| async move {
        match queries::delete(&mut change, pin).await? {
            true => Ok(change.changed(true, Vec::new(), "authority.forget", subject(pin))),
            false => Ok(change.unchanged(false)),
        }
    });
    ensure!(
        forgotten.await?.value,
        "agents trust no authority with this fingerprint: see `wattle-server ca list`"
    );
    Ok(())
}

fn subject(pin: Bytes32) -> Subject {
    let fingerprint = fingerprint(pin);
    Subject::new(&fingerprint, &fingerprint)
}

fn fingerprints(pins: &[Bytes32]) -> String {
    pins.iter()
        .map(|pin| fingerprint(*pin))
        .collect::<Vec<_>>()
        .join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_reads_back_and_its_debug_hides_the_key() {
        let made = Authority::fresh().unwrap();
        let read = Authority::from_pem(made.pem.clone()).unwrap();
        assert_eq!(read.pin(), made.pin());
        assert!(
            made.public_pem().ends_with("-----END CERTIFICATE-----\n")
                && !made.public_pem().contains("PRIVATE")
        );
        let (_, key) = made.pem.split_once("PRIVATE KEY-----\n").unwrap();
        assert!(!format!("{made:?}").contains(&key[..40]));
        assert!(Authority::from_pem(Zeroizing::new(made.public_pem().to_owned())).is_err());
    }
}
