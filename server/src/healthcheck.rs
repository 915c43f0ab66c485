//! Whether the coordinator that runs with some settings on this host is ready, for supervisors of
//! containers.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, ensure};
use reqwest::{Certificate, Client, ClientBuilder, StatusCode, tls::TlsInfo};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{config::Config, tls::authority};

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(3);
/// A name that the certificate of each coordinator has.
const LOCALHOST: &str = "localhost";

/// Asks `/readyz`. Only a coordinator that shows the certificate of these settings counts.
///
/// # Errors
///
/// Why it is not ready.
pub async fn healthcheck(config: &Config) -> anyhow::Result<()> {
    let address = own(config.listen);
    let scheme = if config.insecure_http {
        "http"
    } else {
        "https"
    };
    let client = Client::builder()
        .timeout(LIMIT)
        .no_proxy()
        .resolve(LOCALHOST, address);
    let response = with_trust(client, config)?
        .build()?
        .get(format!("{scheme}://{LOCALHOST}:{}/readyz", address.port()))
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("no coordinator answers at {address}"))?;
    if let Some((file, _)) = config.tls_files() {
        let shown = response.extensions().get::<TlsInfo>();
        let shown = shown.and_then(TlsInfo::peer_certificate);
        let wanted = CertificateDer::from_pem_file(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(
            shown == Some(wanted.as_ref()),
            "{address} shows another certificate than that of {}",
            file.display()
        );
    }
    let status = response.status();
    ensure!(
        status == StatusCode::OK,
        "the coordinator at {address} is not ready: it has no fresh copy of the mesh ({status})"
    );
    Ok(())
}

/// Where an address that is listened on is reached from this host.
fn own(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        all if !all.is_unspecified() => all,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, listen.port())
}

/// Which certificate counts. One that people gave may have any name, and be of an authority that
/// this host does not know: it is compared instead.
fn with_trust(client: ClientBuilder, config: &Config) -> anyhow::Result<ClientBuilder> {
    if config.insecure_http {
        return Ok(client);
    }
    if config.tls_files().is_some() {
        return Ok(client.tls_danger_accept_invalid_certs(true).tls_info(true));
    }
    let file = authority::public_file(&config.data_dir);
    let pem = fs::read(&file)
        .with_context(|| format!("the coordinator has not made {} yet", file.display()))?;
    Ok(client.tls_certs_only([Certificate::from_pem(&pem)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_asked_where_this_host_reaches_it() {
        for (listen, address) in [
            ("0.0.0.0:8443", "127.0.0.1:8443"),
            ("[::]:9443", "[::1]:9443"),
            ("192.0.2.1:443", "192.0.2.1:443"),
        ] {
            assert_eq!(own(listen.parse().unwrap()), address.parse().unwrap());
        }
    }
}
