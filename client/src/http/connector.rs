//! Connections to a coordinator: TCP, with small segments where large packets are lost on the way,
//! and TLS on it.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{
    Uri,
    http::uri::{Authority, Scheme},
};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::{
    client::{legacy::connect::proxy::Tunnel, proxy::matcher::Matcher},
    rt::TokioIo,
};
use rustls::{
    CertificateError, ClientConfig,
    pki_types::{ServerName, UnixTime},
};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use thiserror::Error;
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::{Service, service_fn};
use tracing::warn;
use wattle_mesh::{
    diagnose::doctor::OutOfTime,
    segments::{SegmentSize, Segments},
};

/// How long it may take to find the address of a coordinator and connect to it by TCP.
const TCP_LIMIT: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take: two lost packets more than it needs.
const TLS_LIMIT: Duration = Duration::from_secs(4);
/// How long one address is tried alone before the next is, too.
const HEAD_START: Duration = Duration::from_millis(300);
/// When TCP gives up a peer that is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How often TCP asks a peer that is silent for a sign of life, and how often in vain.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("{0} is no URL of a coordinator")]
    Url(Uri),
    #[error("no TCP connection")]
    Tcp(#[source] Box<dyn Error + Send + Sync>),
    #[error("no TCP connection within {} s", TCP_LIMIT.as_secs())]
    TcpTimeout,
    #[error("no TLS connection{}", out_of_time(.0).map(|it| format!("; {it}")).unwrap_or_default())]
    Tls(#[source] io::Error),
    #[error(
        "TCP connects, and TLS does not finish within {} s, with small packets neither: the \
         coordinator is overloaded, or packets of more than {LEAST_PACKET} bytes may be lost on \
         the way (a path MTU problem)",
        TLS_LIMIT.as_secs()
    )]
    TlsTimeout,
}

/// Bytes of an IPv4 packet with a small segment.
const LEAST_PACKET: u32 = 1240;

impl ConnectError {
    /// Whether the coordinator's certificate is not valid at the time of this host's clock.
    pub fn out_of_time(&self) -> Option<OutOfTime> {
        match self {
            Self::Tls(error) => out_of_time(error),
            Self::Url(_) | Self::Tcp(_) | Self::TcpTimeout | Self::TlsTimeout => None,
        }
    }
}

fn out_of_time(error: &io::Error) -> Option<OutOfTime> {
    let rustls::Error::InvalidCertificate(error) = error.get_ref()?.downcast_ref()? else {
        return None;
    };
    let seconds = |at: UnixTime| i64::try_from(at.as_secs()).ok();
    let now = chrono::Utc::now().timestamp();
    if let CertificateError::NotValidYetContext { not_before, .. } = error {
        let from = seconds(*not_before);
        Some(OutOfTime::Early { now, from })
    } else if let CertificateError::ExpiredContext { not_after, .. } = error {
        let until = seconds(*not_after);
        Some(OutOfTime::Late { now, until })
    } else if *error == CertificateError::NotValidYet {
        Some(OutOfTime::Early { now, from: None })
    } else {
        (*error == CertificateError::Expired).then_some(OutOfTime::Late { now, until: None })
    }
}

/// Connects to coordinators, and remembers what got through to each.
#[derive(Clone, Debug)]
pub(super) struct Connector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tls: Arc<ClientConfig>,
    proxies: Matcher,
    tls_limit: Duration,
    ways: Mutex<BTreeMap<String, Segments>>,
}

type Connection = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Connector {
    pub(super) fn new(tls: ClientConfig) -> Self {
        Self::with_limit(tls, TLS_LIMIT)
    }

    fn with_limit(tls: ClientConfig, tls_limit: Duration) -> Self {
        Self(Arc::new(Shared {
            tls: Arc::new(tls),
            proxies: Matcher::from_env(),
            tls_limit,
            ways: Mutex::default(),
        }))
    }

    /// What is known of the way to a coordinator, to be read or changed.
    pub(super) fn way<T>(&self, authority: &Authority, work: impl FnOnce(&mut Segments) -> T) -> T {
        let mut ways = self.0.ways.lock().unwrap_or_else(PoisonError::into_inner);
        work(ways.entry(authority.to_string()).or_default())
    }

    async fn connect(&self, uri: &Uri) -> Result<Connection, ConnectError> {
        let no_url = || ConnectError::Url(uri.clone());
        let (authority, host) = (uri.authority().ok_or_else(no_url)?, host(uri));
        let mut size = self.way(authority, |way| way.first());
        loop {
            let tcp = timeout(TCP_LIMIT, self.dial(uri, size))
                .await
                .map_err(|_| ConnectError::TcpTimeout)?
                .map_err(ConnectError::Tcp)?;
            if uri.scheme() != Some(&Scheme::HTTPS) {
                return Ok(MaybeHttpsStream::Http(tcp));
            }
            let name = ServerName::try_from(host.to_owned()).map_err(|_| no_url())?;
            let tls = TlsConnector::from(Arc::clone(&self.0.tls));
            match timeout(self.0.tls_limit, tls.connect(name, TokioIo::new(tcp))).await {
                Ok(Ok(tls)) => {
                    self.way(authority, |way| way.finished(size));
                    return Ok(MaybeHttpsStream::Https(TokioIo::new(tls)));
                }
                Ok(Err(error)) => return Err(ConnectError::Tls(error)),
                Err(_) => {
                    size = self
                        .way(authority, |way| way.timed_out(size))
                        .ok_or(ConnectError::TlsTimeout)?;
                    warn!(
                        coordinator = %authority,
                        "TCP connects, and TLS does not finish within {} s: tries small packets, \
                         as large ones may be lost on the way",
                        TLS_LIMIT.as_secs()
                    );
                }
            }
        }
    }

    /// A TCP connection to a coordinator, through a proxy where the environment names one; none is
    /// asked for what runs on this host.
    async fn dial(
        &self,
        uri: &Uri,
        size: SegmentSize,
    ) -> Result<TokioIo<TcpStream>, Box<dyn Error + Send + Sync>> {
        let mut tcp = service_fn(move |uri: Uri| Box::pin(dial(uri, size)));
        let proxy = self.0.proxies.intercept(uri).filter(|_| !is_local(uri));
        let Some(proxy) = proxy else {
            return Ok(tcp.call(uri.clone()).await?);
        };
        let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
        let mut tunnel = match proxy.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        };
        Ok(tunnel.call(uri.clone()).await?)
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await })
    }
}

/// Whether a URL is of this host.
fn is_local(uri: &Uri) -> bool {
    let host = host(uri);
    let is_loopback = |address: IpAddr| address.is_loopback();
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

/// The host of a URL, an IPv6 address without its brackets.
pub fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// The port of a URL, or the usual one of its scheme.
pub fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    uri.port_u16().unwrap_or(usual)
}

/// A connection to the first address that answers. One that leads nowhere, as those of a family
/// without a route do, costs a moment.
async fn dial(uri: Uri, size: SegmentSize) -> io::Result<TokioIo<TcpStream>> {
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::other("the name has no address");
    for address in lookup_host((host(&uri), port(&uri))).await? {
        attempts.push(open(address, size));
        match timeout(HEAD_START, attempts.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => failure = error,
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(opened) = attempts.next().await {
        match opened {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn open(address: SocketAddr, size: SegmentSize) -> io::Result<TokioIo<TcpStream>> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Before the connection is made: the other end is told, and sends no larger ones either.
    if let Some(bytes) = size.bytes() {
        socket.set_tcp_mss(bytes)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(SILENCE_LIMIT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_INTERVAL)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address);
    Ok(TokioIo::new(stream.await?))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer, version::TLS13};
    use socket2::SockRef;
    use tokio::{io::AsyncReadExt, net::TcpListener};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        http::Trusted,
        pin::{Pins, pin},
    };

    async fn listener() -> (TcpListener, Uri) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("https://{}", listener.local_addr().unwrap());
        (listener, uri.parse().unwrap())
    }

    #[test]
    fn no_proxy_is_asked_for_what_runs_on_this_host() {
        for url in [
            "https://127.0.0.1:8443",
            "https://localhost/",
            "http://[::1]:80",
        ] {
            assert!(is_local(&url.parse().unwrap()), "{url}");
        }
        for url in [
            "https://192.0.2.1:8443",
            "https://localhost.example",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_local(&url.parse().unwrap()), "{url}");
        }
    }

    #[tokio::test]
    async fn small_segments_are_small_in_both_directions() {
        let (listener, uri) = listener().await;
        for (size, is_small) in [(SegmentSize::Normal, false), (SegmentSize::Small, true)] {
            let (ours, theirs) = tokio::join!(dial(uri.clone(), size), listener.accept());
            let (ours, theirs) = (ours.unwrap().into_inner(), theirs.unwrap().0);
            for end in [SockRef::from(&ours), SockRef::from(&theirs)] {
                let bytes = end.tcp_mss().unwrap();
                assert_eq!(bytes <= 1200, is_small, "{size:?}: {bytes}");
            }
        }
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_finish_is_tried_with_small_segments_and_the_error_says_so() {
        let (listener, uri) = listener().await;
        let silent = tokio::spawn(async move {
            let mut sizes = Vec::new();
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                sizes.push(SockRef::from(&stream).tcp_mss().unwrap() <= 1200);
                stream.read_u8().await.unwrap();
                open.push(stream);
                if sizes.len() == 2 {
                    break;
                }
            }
            (sizes, open)
        });
        let tls = Trusted::Nobody.client_config().unwrap();
        let connector = Connector::with_limit(tls, Duration::from_millis(300));
        let error = connector.connect(&uri).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ConnectError::TlsTimeout), "{text}");
        assert!(text.contains("packets of more than 1240 bytes"), "{text}");
        assert_eq!(silent.await.unwrap().0, [false, true]);
        let authority = uri.authority().unwrap();
        assert!(!connector.way(authority, |way| way.loses_large_packets()));
    }

    /// A coordinator whose certificate is good for a day from `begin` on, and what agents pin.
    fn coordinator(begin: SystemTime) -> (ServerConfig, Arc<Pins>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let end = begin + Duration::from_secs(86_400);
        (params.not_before, params.not_after) = (begin.into(), end.into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let chain = vec![certificate.der().clone(), authority.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        (config.unwrap(), Pins::new(vec![pin(authority.der())]))
    }

    #[tokio::test]
    async fn a_certificate_that_is_out_of_time_is_told_as_a_wrong_clock() {
        let (now, week) = (SystemTime::now(), Duration::from_secs(7 * 86_400));
        for (begin, words) in [
            (now + week, "the clock of this host is wrong"),
            (now - week, "or the coordinator's certificate has expired"),
        ] {
            let ((config, pins), (listener, uri)) = (coordinator(begin), listener().await);
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let connector = Connector::new(pins.client_config().unwrap());
            let (connected, _) = tokio::join!(connector.connect(&uri), async {
                let (stream, _) = listener.accept().await.unwrap();
                acceptor.accept(stream).await
            });
            let error = connected.unwrap_err();
            assert!(error.out_of_time().is_some(), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_that_refuses_keeps_no_other_from_being_tried() {
        let (listener, uri) = listener().await;
        let port = port(&uri);
        // The name has an IPv6 address as well on most hosts, where nobody listens.
        let uri: Uri = format!("https://localhost:{port}").parse().unwrap();
        let (opened, _) = tokio::join!(dial(uri, SegmentSize::Normal), listener.accept());
        opened.unwrap();
    }
}
