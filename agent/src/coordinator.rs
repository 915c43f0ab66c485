//! Requests to the coordinator.

use std::{
    mem,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use futures_util::{Stream, StreamExt, TryStreamExt};
use reqwest::{
    Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode, header::DATE, redirect,
    tls,
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::io::AsyncRead;
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};
use wattle_client::pin::Pins;
use wattle_mesh::keys::node_keys::{HeldToken, NodeKeys};
use wattle_wire::{
    PINS_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION,
    enrol::{EnrolChallenge, EnrolFinish, EnrolStart, Enrolled, NewIdentity},
    ids::Position,
    key::Bytes32,
    problem::Problem,
    psk::{MailboxRequest, MailboxResponse},
    report::Report,
    rotation::{RotationAnswer, RotationStep},
    stream::{HEARTBEAT_S, SILENCE_S, StreamMessage},
};

use crate::identity::Membership;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long nothing may come on a connection before it is asked for a sign of life; more than a
/// stream's heartbeat.
const PING: Duration = Duration::from_secs(HEARTBEAT_S + 5);
/// How long that may take: the connection is given up when the stream is.
const PONG: Duration = Duration::from_secs(SILENCE_S).saturating_sub(PING);
/// The longest line of a stream, in bytes: the snapshot of a mesh far larger than any that fits a
/// kernel.
const LONGEST_LINE: usize = 64 << 20;
/// The memory of a longer line, in bytes, is not kept for the next one.
const LONG_LINE: usize = 64 << 10;

/// Why a request failed.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    #[error("cannot reach the coordinator at {url}")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the coordinator answered {status}: \
        {}", problem.detail.as_deref().unwrap_or(&problem.title))]
    Refused {
        status: StatusCode,
        problem: Box<Problem>,
    },
    #[error(
        "the coordinator does not know this node: the node was removed from the mesh, or the \
         coordinator uses another database"
    )]
    NotAMember,
    #[error("what answers at {url} is not a Wattle coordinator (status {status})")]
    NotWattle { url: String, status: StatusCode },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The coordinators of a mesh, of which one answers at a time.
#[derive(Debug)]
pub(crate) struct Coordinator {
    client: Client,
    urls: Vec<String>,
    /// How their certificates are recognised; none are for publicly valid ones.
    pins: Arc<Pins>,
    /// Which of the URLs to try first.
    preferred: AtomicUsize,
    /// Where the connection of the last answer leads: to the coordinator, or to a proxy on the way.
    address: Mutex<Option<IpAddr>>,
    /// Seconds by which the coordinator's clock is ahead of ours.
    clock_offset: AtomicI64,
    token: Mutex<HeldToken>,
}

impl Coordinator {
    pub(crate) fn new(urls: Vec<String>, pins: Vec<Bytes32>) -> anyhow::Result<Self> {
        let pins = Pins::new(pins);
        let client = trusting(&urls, &pins)?
            .connect_timeout(CONNECT_TIMEOUT)
            // A dead connection must not outlive the stream that died with it: the next one would
            // be asked for on it.
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("wattle-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            client,
            urls,
            pins,
            preferred: AtomicUsize::new(0),
            address: Mutex::default(),
            clock_offset: AtomicI64::new(0),
            token: Mutex::default(),
        })
    }

    /// The pins of the certificate authorities that are trusted now; the coordinator may have
    /// changed them.
    pub(crate) fn pins(&self) -> Vec<Bytes32> {
        self.pins.get()
    }

    pub(crate) async fn enrol_start(
        &self,
        start: &EnrolStart,
    ) -> Result<EnrolChallenge, RequestError> {
        self.post("/agent/enrol/start", start).await
    }

    pub(crate) async fn enrol_finish(
        &self,
        finish: &EnrolFinish,
    ) -> Result<Enrolled, RequestError> {
        self.post("/agent/enrol/finish", finish).await
    }

    /// Tells how this node is.
    pub(crate) async fn report(
        &self,
        node_keys: &NodeKeys,
        membership: &Membership,
        report: &Report,
    ) -> Result<(), RequestError> {
        let request = |builder: RequestBuilder| builder.timeout(REQUEST_TIMEOUT).json(report);
        self.send_signed(
            Method::POST,
            "/agent/report",
            node_keys,
            membership,
            request,
        )
        .await
        .map(drop)
    }

    /// Leaves messages for other nodes and fetches those for this one.
    pub(crate) async fn mailbox(
        &self,
        node_keys: &NodeKeys,
        membership: &Membership,
        request: &MailboxRequest,
    ) -> Result<MailboxResponse, RequestError> {
        self.ask_signed("/agent/mailbox", node_keys, membership, request)
            .await
    }

    /// Says how far this node is with its next WireGuard key.
    pub(crate) async fn rotation(
        &self,
        node_keys: &NodeKeys,
        membership: &Membership,
        step: &RotationStep,
    ) -> Result<RotationAnswer, RequestError> {
        self.ask_signed("/agent/rotation", node_keys, membership, step)
            .await
    }

    /// Says that this node takes up another identity.
    pub(crate) async fn rotate_identity(&self, identity: &NewIdentity) -> Result<(), RequestError> {
        let request = |builder: RequestBuilder| Ok(builder.timeout(REQUEST_TIMEOUT).json(identity));
        self.send(Method::POST, "/agent/identity", request)
            .await
            .map(drop)
    }

    /// Opens the stream of changes since a position. It ends with an error when the coordinator is
    /// silent for too long.
    pub(crate) async fn stream(
        &self,
        node_keys: &NodeKeys,
        membership: &Membership,
        since: Option<Position>,
    ) -> Result<impl Stream<Item = anyhow::Result<StreamMessage>> + use<>, RequestError> {
        let path = since.map_or_else(
            || "/agent/stream".to_owned(),
            |since| format!("/agent/stream?since={since}"),
        );
        let opened = self.send_signed(Method::GET, &path, node_keys, membership, |builder| builder);
        let response = tokio::time::timeout(REQUEST_TIMEOUT, opened)
            .await
            .map_err(|_| anyhow!("the coordinator did not answer in time"))??;
        let bytes = response.bytes_stream().map_err(std::io::Error::other);
        Ok(messages(StreamReader::new(bytes)))
    }

    /// Asks whether the node is a member of the mesh; [`RequestError::NotAMember`] says no.
    pub(crate) async fn knows(
        &self,
        machine: &NodeKeys,
        membership: &Membership,
    ) -> Result<(), RequestError> {
        self.send_signed(Method::GET, "/agent/view", machine, membership, |builder| {
            builder.timeout(REQUEST_TIMEOUT)
        })
        .await
        .map(drop)
    }

    /// Asks a coordinator whether it is there. Seconds by which this host's clock is ahead of its
    /// clock.
    pub(crate) async fn clock_ahead(&self) -> Result<i64, RequestError> {
        self.send(Method::GET, "/healthz", |builder| {
            Ok(builder.timeout(REQUEST_TIMEOUT))
        })
        .await?;
        Ok(-self.clock_offset.load(Ordering::Relaxed))
    }

    /// The address to which this host is connected for the coordinator that answers at present.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URL of the coordinator that answers at present.
    pub(crate) fn url(&self) -> &str {
        self.urls
            .get(self.preferred.load(Ordering::Relaxed))
            .map_or("", String::as_str)
    }

    async fn post<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, RequestError> {
        let response = self
            .send(Method::POST, path, |builder| {
                Ok(builder.timeout(REQUEST_TIMEOUT).json(body))
            })
            .await?;
        read(response).await
    }

    async fn ask_signed<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        node_keys: &NodeKeys,
        membership: &Membership,
        body: &B,
    ) -> Result<A, RequestError> {
        let request = |builder: RequestBuilder| builder.timeout(REQUEST_TIMEOUT).json(body);
        let response = self
            .send_signed(Method::POST, path, node_keys, membership, request)
            .await?;
        read(response).await
    }

    /// Sends a request signed by the node. When the coordinator refuses the signature, the clocks
    /// may differ: it is tried once more by the coordinator's clock.
    async fn send_signed(
        &self,
        method: Method,
        path: &str,
        node_keys: &NodeKeys,
        membership: &Membership,
        request: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RequestError> {
        let signed = |builder: RequestBuilder| {
            let now = chrono::Utc::now().timestamp() + self.clock_offset.load(Ordering::Relaxed);
            let mut held = self.token.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(request(
                builder.bearer_auth(
                    held.at(now, node_keys, &membership.enrolled)
                        .context("cannot sign a token")?
                        .reveal(),
                ),
            ))
        };
        let before = self.clock_offset.load(Ordering::Relaxed);
        let mut result = self.send(method.clone(), path, signed).await;
        if is_unauthorized(&result)
            && self.clock_offset.load(Ordering::Relaxed).abs_diff(before) > 1
        {
            result = self.send(method, path, signed).await;
        }
        if let Ok(response) = &result {
            self.learn_pins(response);
        }
        if is_unauthorized(&result) {
            Err(RequestError::NotAMember)
        } else {
            result
        }
    }

    /// Sends a request to the first coordinator that can be reached.
    async fn send(
        &self,
        method: Method,
        path: &str,
        request: impl Fn(RequestBuilder) -> anyhow::Result<RequestBuilder>,
    ) -> Result<Response, RequestError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = RequestError::Other(anyhow!("the join string names no coordinator"));
        for index in (0..self.urls.len()).map(|step| (first + step) % self.urls.len()) {
            let url = format!("{}{path}", self.urls[index].trim_end_matches('/'));
            let builder = self
                .client
                .request(method.clone(), &url)
                .header(PROTOCOL_HEADER, PROTOCOL_VERSION);
            match request(builder)?.send().await {
                Ok(response) if response.status().is_server_error() => {
                    failure = refused(response).await
                }
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    self.learn_clock(&response);
                    self.learn_address(&response);
                    return if response.status().is_success() {
                        Ok(response)
                    } else {
                        Err(refused(response).await)
                    };
                }
                Err(source) => {
                    let source = source.without_url();
                    failure = RequestError::Unreachable {
                        url: self.urls[index].clone(),
                        source,
                    };
                }
            }
        }
        Err(failure)
    }

    /// Takes over the authorities that the coordinator names, if it is known by a pin itself.
    fn learn_pins(&self, response: &Response) {
        let named = response
            .headers()
            .get(PINS_HEADER)
            .and_then(|pins| pins.to_str().ok());
        let named = named.and_then(|pins| {
            pins.split(',')
                .map(|pin| pin.parse().ok())
                .collect::<Option<Vec<Bytes32>>>()
        });
        if let Some(named) = named.filter(|_| !self.pins().is_empty()) {
            self.pins.set(named);
        }
    }

    fn learn_address(&self, response: &Response) {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        *address = response.remote_addr().map(|address| address.ip());
    }

    fn learn_clock(&self, response: &Response) {
        let date = response
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok());
        if let Some(theirs) = date.and_then(|date| chrono::DateTime::parse_from_rfc2822(date).ok())
        {
            self.clock_offset.store(
                theirs.timestamp() - chrono::Utc::now().timestamp(),
                Ordering::Relaxed,
            );
        }
    }
}

/// A client that believes a coordinator of these URLs only if it shows a certificate of a pinned
/// authority or, without pins, one that is publicly valid; and that never falls back to HTTP where
/// a URL says HTTPS.
fn trusting(urls: &[String], pins: &Arc<Pins>) -> anyhow::Result<ClientBuilder> {
    let any_tls = urls.iter().any(|url| url.starts_with("https://"));
    if !pins.get().is_empty() {
        anyhow::ensure!(
            urls.iter().all(|url| url.starts_with("https://")),
            "the join string pins a certificate authority, but has a URL that is not https://"
        );
        let tls = pins.client_config().context("cannot speak TLS")?;
        return Ok(Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true));
    }
    // Where no URL needs them, the host need not have certificates of public authorities.
    let client = if any_tls {
        Client::builder()
    } else {
        Client::builder().tls_certs_only([])
    };
    Ok(client.tls_version_min(tls::Version::TLS_1_3))
}

fn is_unauthorized(result: &Result<Response, RequestError>) -> bool {
    matches!(
        result,
        Err(RequestError::Refused {
            status: StatusCode::UNAUTHORIZED,
            ..
        })
    )
}

async fn read<A: DeserializeOwned>(response: Response) -> Result<A, RequestError> {
    let url = response.url().to_string();
    response
        .json()
        .await
        .map_err(|source| RequestError::Unreachable { url, source })
}

async fn refused(response: Response) -> RequestError {
    let (status, url) = (response.status(), response.url().to_string());
    match response.json().await {
        Ok(problem) => RequestError::Refused {
            status,
            problem: Box::new(problem),
        },
        Err(_) => RequestError::NotWattle { url, status },
    }
}

/// Server-sent events as the coordinator writes them: each message one `data:` line; other lines
/// (comments, blanks) are signs of life.
fn messages(bytes: impl AsyncRead + Unpin) -> impl Stream<Item = anyhow::Result<StreamMessage>> {
    let lines = FramedRead::new(bytes, LinesCodec::new_with_max_length(LONGEST_LINE));
    futures_util::stream::try_unfold(lines, |mut lines| async move {
        loop {
            let silence = Duration::from_secs(SILENCE_S);
            let line = tokio::time::timeout(silence, lines.next())
                .await
                .map_err(|_| anyhow!("the coordinator sent nothing for {SILENCE_S} s"))?;
            let Some(line) = line else { return Ok(None) };
            let line = line.context("the stream broke")?;
            if line.len() > LONG_LINE {
                let rest = mem::take(lines.read_buffer_mut());
                lines.read_buffer_mut().extend_from_slice(&rest);
            }
            if let Some(data) = line.strip_prefix("data:") {
                let message = serde_json::from_str(data.trim_start())
                    .context("the coordinator sent a message that cannot be read")?;
                return Ok(Some((message, lines)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use wattle_wire::stream::ByeReason;

    use super::*;

    #[tokio::test]
    async fn messages_are_the_data_lines_of_the_stream() {
        let long = format!(": {}", "x".repeat(LONG_LINE));
        let lines = [
            &long,
            "",
            "event: message",
            r#"data: {"type":"heartbeat","position":"1.2"}"#,
            "",
            r#"data:{"type":"bye","reason":"shutdown"}"#,
        ];
        let messages: Vec<_> = messages(lines.join("\n").as_bytes())
            .map(Result::unwrap)
            .collect()
            .await;
        let position = Position {
            epoch: 1,
            revision: 2,
        };
        assert_eq!(
            messages,
            [
                StreamMessage::Heartbeat { position },
                StreamMessage::Bye {
                    reason: ByeReason::Shutdown
                }
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_coordinator_is_hung_up_on() {
        let (_coordinator, silent) = tokio::io::duplex(1);
        let mut messages = Box::pin(messages(silent));
        let error = messages.next().await.unwrap().unwrap_err();
        assert!(
            error.to_string().contains("sent nothing for 30 s"),
            "{error}"
        );
    }
}
