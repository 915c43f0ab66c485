//! The tunnels of this gateway in Prometheus' text format, under the
//! names that dashboards of WireGuard know.

use std::{
    collections::BTreeMap, convert::Infallible, io::ErrorKind, net::SocketAddr, sync::Arc,
    time::Duration,
};

use anyhow::Context;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;
use wattle_mesh::{
    agent::replica::{Known, KnownPeer},
    health::link,
    host::{
        interface::InterfaceName,
        state::{Observed, ObservedPeer},
    },
};
use wattle_wire::{ids::NodeId, report::ProbeReport};

use crate::config::Settings;

/// How long to wait when the system has no more connections to give.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How often to look whether this host has the address by now.
const NO_ADDRESS: Duration = Duration::from_secs(1);
/// How long a client may take to say what it wants.
const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// What the agent observed last.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) interface: &'a InterfaceName,
    pub(crate) known: &'a Known,
    pub(crate) observed: &'a Observed,
    pub(crate) probes: &'a BTreeMap<NodeId, ProbeReport>,
    pub(crate) connected: bool,
    pub(crate) problems: usize,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

/// Answers scrapes with what was seen last.
#[derive(Debug)]
pub(crate) struct Metrics(watch::Sender<String>);

/// Serves metrics where the settings want it.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    /// What the command line says, which goes before the file.
    given: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    serving: Option<(SocketAddr, AbortOnDropHandle<()>)>,
}

impl MetricsServer {
    pub(crate) fn new(given: Option<SocketAddr>) -> Self {
        let (sender, _) = watch::channel(String::new());
        Self {
            given,
            metrics: Arc::new(Metrics(sender)),
            serving: None,
        }
    }

    /// The metrics that it serves; `None` while nobody wants them.
    pub(crate) fn metrics(&self) -> Option<Arc<Metrics>> {
        let serves = self.serving.is_some();
        serves.then(|| Arc::clone(&self.metrics))
    }

    /// Listens on the address that is wanted, as soon as this host has it: at boot the agent is
    /// there before the network.
    ///
    /// # Errors
    ///
    /// When it cannot listen there. What was served until then is still served.
    pub(crate) async fn follow(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let wanted = self.given.or(settings.metrics);
        if wanted == self.serving.as_ref().map(|(address, _)| *address) {
            return Ok(());
        }
        let Some(address) = wanted else {
            self.serving = None;
            return Ok(());
        };
        let text = self.metrics.0.subscribe();
        let serving = match TcpListener::bind(address).await {
            Ok(listener) => tokio::spawn(accept(listener, text)),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                tracing::warn!(
                    "{address} is no address of this host yet: serves metrics when it is"
                );
                tokio::spawn(wait_for_address(address, text))
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot serve metrics on {address}"));
            }
        };
        self.serving = Some((address, AbortOnDropHandle::new(serving)));
        Ok(())
    }
}

impl Metrics {
    pub(crate) fn show(&self, seen: &Seen<'_>) {
        match text(seen) {
            Ok(text) => drop(self.0.send_replace(text)),
            Err(error) => tracing::warn!("the metrics do not fit together: {error}"),
        }
    }
}

async fn wait_for_address(address: SocketAddr, text: watch::Receiver<String>) {
    loop {
        sleep(NO_ADDRESS).await;
        if let Ok(listener) = TcpListener::bind(address).await {
            return accept(listener, text).await;
        }
    }
}

async fn accept(listener: TcpListener, text: watch::Receiver<String>) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(url = format!("http://{address}/metrics"), "serves metrics");
    }
    loop {
        match listener.accept().await {
            Ok((connection, _)) => drop(tokio::spawn(answer(connection, text.clone()))),
            Err(error) => {
                tracing::debug!("cannot accept a connection: {error}");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn answer(connection: TcpStream, text: watch::Receiver<String>) {
    let service = service_fn(|request: Request<Incoming>| {
        let text = text.borrow().clone();
        async move { Ok::<_, Infallible>(respond(request.method(), request.uri().path(), text)) }
    });
    let mut http = http1::Builder::new();
    let conversation = http
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(connection), service);
    if let Err(error) = conversation.await {
        tracing::debug!("a scrape failed: {error}");
    }
}

fn respond(method: &Method, path: &str, text: String) -> Response<String> {
    let (status, body) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, text),
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "metrics are at /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "metrics are read with GET\n".to_owned(),
        ),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

/// The names are those of the exporters for `wg show` that were there before; no endpoint is in a
/// label, since it may tell where somebody lives and makes a series of its own each time it moves.
fn text(seen: &Seen<'_>) -> prometheus::Result<String> {
    const PEER: [&str; 5] = ["device", "public_key", "site", "peer", "peer_site"];
    let Seen {
        interface,
        known,
        observed,
        probes,
        connected,
        problems,
        now,
    } = *seen;
    let registry = Registry::new();
    let gauges = |name, help, labels: &[&str]| {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauges.clone())).map(|()| gauges)
    };
    let counters = |name, help| {
        let counters = IntCounterVec::new(Opts::new(name, help), &PEER)?;
        registry
            .register(Box::new(counters.clone()))
            .map(|()| counters)
    };
    let site = known.myself.site_name.as_str();
    gauges(
        "wattle_build_info",
        "The version of this program; always 1.",
        &["version"],
    )?
    .with_label_values(&[env!("CARGO_PKG_VERSION")])
    .set(1);
    gauges(
        "wattle_agent_connected",
        "Whether the agent is connected to the coordinator.",
        &["site"],
    )?
    .with_label_values(&[site])
    .set(connected.into());
    let revision = gauges(
        "wattle_agent_revision",
        "The revision of the mesh that the agent follows.",
        &["site"],
    )?;
    revision
        .with_label_values(&[site])
        .set(known.position.revision);
    let found = gauges(
        "wattle_agent_problems",
        "Number of problems that keep this host from what the mesh wants.",
        &["site"],
    )?;
    found
        .with_label_values(&[site])
        .set(i64::try_from(problems).unwrap_or(i64::MAX));

    let device = interface.as_str();
    let up = gauges(
        "wattle_interface_up",
        "Whether the WireGuard interface is there and up.",
        &["device", "site"],
    )?;
    up.with_label_values(&[device, site]).set(
        observed
            .interface
            .as_ref()
            .is_some_and(|interface| interface.up)
            .into(),
    );
    let Some(interface) = &observed.interface else {
        return encode(&registry);
    };
    if let Some(key) = interface.public_key {
        let info = gauges(
            "wireguard_device_info",
            "The WireGuard device.",
            &["device", "public_key", "site"],
        )?;
        info.with_label_values(&[device, &key.to_string(), site])
            .set(1);
    }
    let handshakes = GaugeVec::new(
        Opts::new(
            "wireguard_peer_last_handshake_seconds",
            "Time of the last handshake with a peer, in seconds since 1970; 0 if there was none.",
        ),
        &PEER,
    )?;
    registry.register(Box::new(handshakes.clone()))?;
    let received = counters(
        "wireguard_peer_receive_bytes_total",
        "Bytes received from a peer.",
    )?;
    let sent = counters(
        "wireguard_peer_transmit_bytes_total",
        "Bytes sent to a peer.",
    )?;
    let fresh = gauges(
        "wattle_peer_up",
        "Whether packets get to a peer and back, by probes where it answers them, else by its last \
         handshake.",
        &PEER,
    )?;
    let allowed = gauges(
        "wireguard_peer_allowed_ips_info",
        "A prefix that a peer may use.",
        &[
            "device",
            "public_key",
            "allowed_ips",
            "site",
            "peer",
            "peer_site",
        ],
    )?;
    let probed = |name, help| {
        let gauges = GaugeVec::new(Opts::new(name, help), &PEER)?;
        registry.register(Box::new(gauges.clone())).map(|()| gauges)
    };
    let loss = probed(
        "wattle_peer_loss_ratio",
        "Part of the last 60 probes of a peer that it did not answer.",
    )?;
    let round_trip = probed(
        "wattle_peer_round_trip_seconds",
        "Time from a probe of a peer to its answer.",
    )?;
    let none = ObservedPeer::default();
    for peer_known @ KnownPeer {
        peer, statement, ..
    } in known.peers.values()
    {
        let found = peer_known.entry(interface).unwrap_or(&none);
        let (key, name, peer_site) = (
            statement.wireguard_key.to_string(),
            peer.name.as_str(),
            peer.site_name.as_str(),
        );
        let labels = [device, key.as_str(), site, name, peer_site];
        let age = found
            .handshake_age_s
            .map(|age| i64::try_from(age).unwrap_or(i64::MAX));
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 fit into 53 bits"
        )]
        handshakes
            .with_label_values(&labels)
            .set(age.map_or(0.0, |age| now.saturating_sub(age) as f64));
        received
            .with_label_values(&labels)
            .inc_by(found.received_bytes);
        sent.with_label_values(&labels).inc_by(found.sent_bytes);
        let probe = probes.get(&peer.node);
        let works = probe.map_or_else(
            || link::is_fresh(found.handshake_age_s),
            |probe| probe.state.works(),
        );
        fresh.with_label_values(&labels).set(works.into());
        if let Some(probe) = probe {
            loss.with_label_values(&labels)
                .set(f64::from(probe.loss_percent) / 100.0);
            round_trip
                .with_label_values(&labels)
                .set(f64::from(probe.round_trip_us) / 1e6);
        }
        for prefix in &found.allowed_ips {
            allowed
                .with_label_values(&[
                    device,
                    key.as_str(),
                    prefix.to_string().as_str(),
                    site,
                    name,
                    peer_site,
                ])
                .set(1);
        }
    }
    encode(&registry)
}

fn encode(registry: &Registry) -> prometheus::Result<String> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}
