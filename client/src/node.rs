//! What a node asks and tells its coordinators.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, anyhow};
use futures_util::{Stream, TryStreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, DATE, HeaderValue},
};
use hyper_util::client::legacy::connect::HttpInfo;
use rustls::ClientConfig;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::io::StreamReader;
use wattle_mesh::keys::{
    authorities::Authorities,
    node_keys::{HeldToken, NodeKeys},
};
use wattle_wire::{
    PINS_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION,
    endpoint::Endpoint,
    enrol::{EnrolStart, Enrolled, KeyChallenge, NewIdentity},
    ids::Position,
    join::JoinString,
    key::Bytes32,
    peer::View,
    psk::{MailboxRequest, MailboxResponse},
    report::Report,
    rotation::{RotationAnswer, RotationStep},
    stream::StreamMessage,
    verdict::OwnLinks,
};

use crate::{
    clock::CoordinatorClock,
    error::{RequestError, refused},
    http::{self, HttpClient, Trusted},
    messages::messages,
    pin::Pins,
};

/// The longest answer of a coordinator, in bytes: what it makes of the links with
/// [`View::MOST_PEERS`] peers, and 64 messages of a mailbox, are shorter.
const LONGEST_ANSWER: usize = 4 << 20;

/// Who signs a request: a node.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    pub keys: &'a NodeKeys,
    pub enrolled: &'a Enrolled,
}

/// A node's client of the coordinators of its mesh, of which one answers at a time.
///
/// A request goes to the coordinator that answered the last one, and to the next if it cannot be
/// reached or has a fault of its own. One that fails says why by its [`RequestError`].
#[derive(Debug)]
pub struct NodeClient {
    client: HttpClient,
    urls: Vec<String>,
    /// How their certificates are recognised; none are for publicly valid ones.
    pins: Arc<Pins>,
    /// What is known of these authorities.
    authorities: Mutex<Authorities>,
    /// Which of the URLs to try first.
    preferred: AtomicUsize,
    /// Where the connection of the last answer leads: to the coordinator, or to a proxy on the way.
    address: Mutex<Option<IpAddr>>,
    clock: CoordinatorClock,
    token: Mutex<HeldToken>,
}

impl NodeClient {
    /// A client of the coordinators at these URLs, which are known by these authorities; by
    /// publicly valid certificates where there are none.
    ///
    /// # Errors
    ///
    /// When an authority is named, and a URL is not `https://`.
    pub fn new(urls: Vec<String>, authorities: Authorities) -> anyhow::Result<Self> {
        let pins = Pins::new(authorities.pins.clone());
        let client = HttpClient::new(trusting(&urls, &pins)?);
        Ok(Self::over(client, urls, authorities, pins))
    }

    /// A client that shares its connections with others. For coordinators that speak plain HTTP.
    pub fn sharing(client: HttpClient, urls: Vec<String>) -> Self {
        let authorities = Authorities::new(Vec::new());
        Self::over(client, urls, authorities, Pins::new(Vec::new()))
    }

    fn over(
        client: HttpClient,
        urls: Vec<String>,
        authorities: Authorities,
        pins: Arc<Pins>,
    ) -> Self {
        Self {
            client,
            urls,
            pins,
            authorities: Mutex::new(authorities),
            preferred: AtomicUsize::new(0),
            address: Mutex::default(),
            clock: CoordinatorClock::default(),
            token: Mutex::default(),
        }
    }

    /// The certificate authorities that are trusted now; the coordinator may have changed them.
    pub fn authorities(&self) -> Authorities {
        let authorities = self.authorities.lock();
        authorities.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the machine with these keys a node: shows the token, and proves the keys. `version` is
    /// that of the program.
    pub async fn enrol(
        &self,
        join: &JoinString,
        keys: &NodeKeys,
        endpoint: Option<Endpoint>,
        version: &str,
    ) -> Result<Enrolled, RequestError> {
        let start = EnrolStart {
            token: join.token,
            secret: join.secret.clone(),
        };
        let challenge: KeyChallenge = self.post("/agent/enrol/start", &start).await?;
        let claim = keys.claim(join, &challenge, endpoint, version);
        let claim = claim.context("cannot encode the join request")?;
        self.post("/agent/enrol/finish", &claim).await
    }

    /// Tells how this node is.
    pub async fn report(&self, signer: Signer<'_>, report: &Report) -> Result<(), RequestError> {
        let report = Ask::post("/agent/report", report)?;
        self.send_signed(&report, signer).await.map(drop)
    }

    /// What the coordinator makes of the links of this node.
    pub async fn own_links(&self, signer: Signer<'_>) -> Result<OwnLinks, RequestError> {
        let ask = Ask::get("/agent/links");
        let response = self.send_signed(&ask, signer).await?;
        self.read(response, LONGEST_ANSWER).await
    }

    /// Leaves messages for other nodes and fetches those for this one.
    pub async fn mailbox(
        &self,
        signer: Signer<'_>,
        request: &MailboxRequest,
    ) -> Result<MailboxResponse, RequestError> {
        self.ask_signed("/agent/mailbox", signer, request).await
    }

    /// Says how far this node is with its next WireGuard key.
    pub async fn rotation(
        &self,
        signer: Signer<'_>,
        step: &RotationStep,
    ) -> Result<RotationAnswer, RequestError> {
        self.ask_signed("/agent/rotation", signer, step).await
    }

    /// Says that this node takes up another identity.
    pub async fn rotate_identity(&self, identity: &NewIdentity) -> Result<(), RequestError> {
        let ask = Ask::post("/agent/identity", identity)?;
        self.send(&ask, || Ok(None)).await.map(drop)
    }

    /// Opens the stream of changes since a position: messages, and their lengths in bytes. It ends
    /// with an error when the coordinator is silent for too long.
    pub async fn stream(
        &self,
        signer: Signer<'_>,
        since: Option<Position>,
    ) -> Result<impl Stream<Item = anyhow::Result<(StreamMessage, usize)>> + use<>, RequestError>
    {
        let path = since.map_or_else(
            || "/agent/stream".to_owned(),
            |since| format!("/agent/stream?since={since}"),
        );
        let response = self.send_signed(&Ask::get(&path), signer).await?;
        let bytes = response
            .into_body()
            .into_data_stream()
            .map_err(std::io::Error::other);
        Ok(messages(StreamReader::new(bytes)))
    }

    /// Takes note that the coordinator opened a stream and said nothing on it.
    pub fn went_silent(&self) {
        if let Ok(url) = self.url().parse() {
            self.client.went_silent(&url);
        }
    }

    /// Whether the coordinator that answers at present is reached with small packets alone.
    pub fn loses_large_packets(&self) -> bool {
        let url = self.url().parse();
        url.is_ok_and(|url| self.client.loses_large_packets(&url))
    }

    /// All that the node may know of the mesh.
    pub async fn view(&self, signer: Signer<'_>) -> Result<View, RequestError> {
        let response = self.send_signed(&Ask::get("/agent/view"), signer).await?;
        self.read(response, StreamMessage::LONGEST).await
    }

    /// Asks whether the node is a member of the mesh; [`RequestError::NotAMember`] says no.
    pub async fn knows(&self, signer: Signer<'_>) -> Result<(), RequestError> {
        self.send_signed(&Ask::get("/agent/view"), signer)
            .await
            .map(drop)
    }

    /// Asks a coordinator whether it is there. Seconds by which this host's clock is ahead of its
    /// clock.
    pub async fn clock_ahead(&self) -> Result<i64, RequestError> {
        self.send(&Ask::get("/healthz"), || Ok(None)).await?;
        Ok(self.known_clock_ahead().unwrap_or(0))
    }

    /// The same as far as the last answer tells it; `None` before there was one.
    pub fn known_clock_ahead(&self) -> Option<i64> {
        self.clock.ahead_s()
    }

    /// Milliseconds since 1970 at which a report is made.
    pub fn report_ms(&self) -> i64 {
        self.clock.for_reports_ms()
    }

    /// The address to which this host is connected for the coordinator that answers at present.
    pub fn address(&self) -> Option<IpAddr> {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URL of the coordinator that answers at present.
    pub fn url(&self) -> &str {
        self.urls
            .get(self.preferred.load(Ordering::Relaxed))
            .map_or("", String::as_str)
    }

    async fn post<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<A, RequestError> {
        let response = self.send(&Ask::post(path, body)?, || Ok(None)).await?;
        self.read(response, LONGEST_ANSWER).await
    }

    async fn ask_signed<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        signer: Signer<'_>,
        body: &B,
    ) -> Result<A, RequestError> {
        let response = self.send_signed(&Ask::post(path, body)?, signer).await?;
        self.read(response, LONGEST_ANSWER).await
    }

    async fn read<A: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
        longest: usize,
    ) -> Result<A, RequestError> {
        http::read(response, longest)
            .await
            .map_err(|source| RequestError::Unreachable {
                url: self.url().to_owned(),
                source,
            })
    }

    /// Sends a request signed by the node. When the coordinator refuses the signature, the clocks
    /// may differ: it is tried once more by the coordinator's clock.
    async fn send_signed(
        &self,
        ask: &Ask<'_>,
        signer: Signer<'_>,
    ) -> Result<Response<Incoming>, RequestError> {
        let signature = || {
            let now = self.clock.for_tokens_s();
            let mut held = self.token.lock().unwrap_or_else(PoisonError::into_inner);
            let token = held
                .at(now, signer.keys, signer.enrolled)
                .context("cannot sign a token")?;
            Ok(Some(http::bearer(token.reveal())?))
        };
        let before = self.clock.ahead_s().unwrap_or(0);
        let mut result = self.send(ask, signature).await;
        if is_unauthorized(&result) && self.clock.ahead_s().unwrap_or(0).abs_diff(before) > 1 {
            result = self.send(ask, signature).await;
        }
        if let Ok(response) = &result {
            self.learn_pins(response);
        }
        match self.clock.keeps_out() {
            Some(reason) if is_unauthorized(&result) => Err(anyhow!(reason).into()),
            None if is_unauthorized(&result) => Err(RequestError::NotAMember),
            Some(_) | None => result,
        }
    }

    /// Sends a request to the first coordinator that can be reached, with a credential.
    async fn send(
        &self,
        ask: &Ask<'_>,
        credential: impl Fn() -> anyhow::Result<Option<HeaderValue>>,
    ) -> Result<Response<Incoming>, RequestError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = RequestError::Other(anyhow!("the join string names no coordinator"));
        for index in (0..self.urls.len()).map(|step| (first + step) % self.urls.len()) {
            let url = &self.urls[index];
            let request = ask.of(url, credential()?)?;
            match self.client.send(request).await {
                Ok(response) if response.status().is_server_error() => {
                    failure = refused(url, response).await
                }
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    self.learn_clock(&response);
                    self.learn_address(&response);
                    return if response.status().is_success() {
                        Ok(response)
                    } else {
                        Err(refused(url, response).await)
                    };
                }
                Err(source) => {
                    let url = url.clone();
                    failure = RequestError::Unreachable { url, source };
                }
            }
        }
        Err(failure)
    }

    /// Takes over the authorities that the coordinator names, if it is known by a pin itself.
    fn learn_pins(&self, response: &Response<Incoming>) {
        let named = response
            .headers()
            .get(PINS_HEADER)
            .and_then(|pins| pins.to_str().ok());
        let named = named.and_then(|pins| {
            pins.split(',')
                .map(|pin| pin.parse().ok())
                .collect::<Option<Vec<Bytes32>>>()
        });
        let mut authorities = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = named.filter(|_| !authorities.pins.is_empty()) {
            authorities.name(named, chrono::Utc::now().timestamp());
            self.pins.set(authorities.pins.clone());
        }
    }

    fn learn_address(&self, response: &Response<Incoming>) {
        let info = response.extensions().get::<HttpInfo>();
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        *address = info.map(|info| info.remote_addr().ip());
    }

    fn learn_clock(&self, response: &Response<Incoming>) {
        let date = response
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok());
        if let Some(theirs) = date.and_then(|date| chrono::DateTime::parse_from_rfc2822(date).ok())
        {
            self.clock.learn(theirs.timestamp());
        }
    }
}

/// A request that is the same for each coordinator.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    /// JSON, or nothing.
    body: Bytes,
}

impl<'a> Ask<'a> {
    fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            body: Bytes::new(),
        }
    }

    fn post(path: &'a str, body: &impl Serialize) -> anyhow::Result<Self> {
        Ok(Self {
            method: Method::POST,
            path,
            body: serde_json::to_vec(body)?.into(),
        })
    }

    fn of(
        &self,
        url: &str,
        credential: Option<HeaderValue>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(format!("{}{}", url.trim_end_matches('/'), self.path))
            .header(PROTOCOL_HEADER, PROTOCOL_VERSION);
        if let Some(credential) = credential {
            request = request.header(AUTHORIZATION, credential);
        }
        let request = request.body(Full::new(self.body.clone()));
        request.with_context(|| format!("{url} is no URL"))
    }
}

/// How to speak TLS to a coordinator of these URLs: it is believed only if it shows a certificate
/// of a pinned authority or, without pins, one that is publicly valid.
fn trusting(urls: &[String], pins: &Arc<Pins>) -> anyhow::Result<ClientConfig> {
    let is_tls = |url: &String| url.starts_with("https://");
    if !pins.get().is_empty() {
        anyhow::ensure!(
            urls.iter().all(is_tls),
            "the join string pins a certificate authority, but has a URL that is not https://"
        );
        return pins.client_config().context("cannot speak TLS");
    }
    let trusted = if urls.iter().any(is_tls) {
        Trusted::Public
    } else {
        Trusted::Nobody
    };
    trusted.client_config().context("cannot speak TLS")
}

fn is_unauthorized(result: &Result<Response<Incoming>, RequestError>) -> bool {
    matches!(
        result,
        Err(RequestError::Refused {
            status: StatusCode::UNAUTHORIZED,
            ..
        })
    )
}
