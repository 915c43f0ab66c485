//! HTTP to coordinators: JSON, over connections that get through where large packets are lost on
//! the way.

mod connector;

use std::{error::Error, fmt, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
    version::TLS13,
};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use wattle_wire::stream::{HEARTBEAT_S, SILENCE_S};
use zeroize::Zeroizing;

use self::connector::Connector;
pub use self::connector::{ConnectError, host, port};

/// How long a request may take, its connection included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For how long a connection is kept for the next request: less than a coordinator keeps one that
/// says nothing.
const IDLE: Duration = Duration::from_secs(60);
/// How long nothing may come on a connection before it is asked for a sign of life; more than a
/// stream's heartbeat.
const PING: Duration = Duration::from_secs(HEARTBEAT_S + 5);
/// How long that may take: the connection is given up when the stream is. A dead connection must
/// not outlive the stream that died with it: the next one would be asked for on it.
const PONG: Duration = Duration::from_secs(SILENCE_S).saturating_sub(PING);

/// Whose certificate a coordinator may show, where none is pinned.
#[derive(Clone, Copy, Debug)]
pub enum Trusted<'a> {
    /// That of an authority that every host trusts.
    Public,
    /// That of this authority, in PEM.
    Authority(&'a [u8]),
    /// Nobody's: no URL is `https://`, and the host need not know any authority.
    Nobody,
}

impl Trusted<'_> {
    /// How to connect: TLS 1.3, and to nobody else.
    ///
    /// # Errors
    ///
    /// When an authority is no certificate, or this host has none of the authorities that every
    /// host trusts.
    pub fn client_config(self) -> anyhow::Result<ClientConfig> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?;
        let config = match self {
            Self::Public => config.with_platform_verifier()?,
            Self::Authority(pem) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(pem)?)?;
                config.with_root_certificates(roots)
            }
            Self::Nobody => config.with_root_certificates(RootCertStore::empty()),
        };
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum HttpError {
    Timeout(Duration),
    Http(legacy::Error),
    Body(Box<dyn Error + Send + Sync>),
    Json(serde_json::Error),
}

impl HttpError {
    /// Why there is no connection, if that is why there is no answer.
    pub fn connect_error(&self) -> Option<&ConnectError> {
        match self {
            Self::Http(error) => error.source()?.downcast_ref(),
            Self::Timeout(_) | Self::Body(_) | Self::Json(_) => None,
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.connect_error()) {
            (_, Some(error)) => error.fmt(formatter),
            (Self::Timeout(limit), _) => write!(formatter, "no answer in {} s", limit.as_secs()),
            (Self::Http(_), _) => formatter.write_str("the connection broke"),
            (Self::Body(_), _) => formatter.write_str("the answer broke off"),
            (Self::Json(_), _) => formatter.write_str("the answer cannot be read"),
        }
    }
}

impl Error for HttpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match (self, self.connect_error()) {
            (_, Some(error)) => error.source(),
            (Self::Http(error), _) => error.source(),
            (Self::Body(error), _) => Some(&**error),
            (Self::Json(error), _) => Some(error),
            (Self::Timeout(_), _) => None,
        }
    }
}

/// Sends requests to coordinators, all of a coordinator's on one connection where it can.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: legacy::Client<Connector, Full<Bytes>>,
    connector: Connector,
}

impl HttpClient {
    /// A client that connects in this way.
    pub fn new(tls: ClientConfig) -> Self {
        let connector = Connector::new(tls);
        let client = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            .build(connector.clone());
        Self { client, connector }
    }

    /// Sends a request and waits for the head of the answer. A body is JSON.
    ///
    /// # Errors
    ///
    /// When there is no connection, it breaks, or no answer comes within 15 s.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, HttpError> {
        const AGENT: &str = concat!("wattle/", env!("CARGO_PKG_VERSION"));
        let uri = request.uri().clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match timeout(REQUEST_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(HttpError::Http),
            Err(_) => {
                self.went_silent(&uri);
                Err(HttpError::Timeout(REQUEST_TIMEOUT))
            }
        }
    }

    /// Takes note that a coordinator took a request and its answer did not come: large packets may
    /// be lost on the way.
    pub fn went_silent(&self, uri: &Uri) {
        if let Some(authority) = uri.authority() {
            self.connector.way(authority, |way| way.went_silent());
        }
    }

    /// Whether a coordinator is reached with small packets alone.
    pub fn loses_large_packets(&self, uri: &Uri) -> bool {
        uri.authority().is_some_and(|authority| {
            self.connector
                .way(authority, |way| way.loses_large_packets())
        })
    }
}

/// Reads the JSON of an answer, which has at most so many bytes: what is longer is not read to its
/// end. Nothing here asks for a compressed one, or would read it.
///
/// # Errors
///
/// When the answer breaks off, is longer or something else.
pub async fn read<A: DeserializeOwned>(
    answer: Response<Incoming>,
    longest: usize,
) -> Result<A, HttpError> {
    let body = read_bytes(answer.into_body(), longest).await?;
    serde_json::from_slice(&body).map_err(HttpError::Json)
}

/// Reads a body as [`read`] does, whatever it is.
///
/// # Errors
///
/// When the answer breaks off or is longer.
pub async fn read_bytes(body: Incoming, longest: usize) -> Result<Bytes, HttpError> {
    let body = Limited::new(body, longest);
    let body = timeout(REQUEST_TIMEOUT, body.collect()).await;
    let body = body.map_err(|_| HttpError::Timeout(REQUEST_TIMEOUT))?;
    Ok(body.map_err(HttpError::Body)?.to_bytes())
}

/// The header of a token.
///
/// # Errors
///
/// When the token has bytes that no header may have.
pub fn bearer(token: &str) -> anyhow::Result<HeaderValue> {
    let mut header = HeaderValue::from_str(&Zeroizing::new(format!("Bearer {token}")))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn e15_an_answer_without_an_end_is_not_read_to_its_end() {
        const LONGEST: usize = 1 << 20;
        for head in [
            "content-length: 1000000000000",
            "transfer-encoding: chunked\r\n\r\nffffffffffff",
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("http://{}/", listener.local_addr().unwrap());
            let sender = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
                stream.write_all(head.trim_end().as_bytes()).await.unwrap();
                stream.write_all(b"\r\n\r\n").await.unwrap();
                let (block, mut sent) = ([b'['; 1 << 16], 0);
                while stream.write_all(&block).await.is_ok() {
                    sent += block.len();
                }
                sent
            });
            let client = HttpClient::new(Trusted::Nobody.client_config().unwrap());
            let request = Request::get(uri).body(Full::default()).unwrap();
            let answer = client.send(request).await.unwrap();
            let error = read::<Value>(answer, LONGEST).await.unwrap_err();
            assert!(matches!(error, HttpError::Body(_)), "{error:?}");
            drop(client);
            let sent = sender.await.unwrap();
            assert!(sent < 16 * LONGEST, "it took {sent} bytes");
        }
    }
}
