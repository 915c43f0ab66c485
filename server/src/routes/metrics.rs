//! `GET /metrics`: what the operator of a coordinator needs to know, in Prometheus' text format.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};
use wattle_mesh::config::view;
use wattle_wire::{
    admin::{LinkState, NodeState},
    ids::Position,
};

use crate::{
    error::{Error, Result},
    routes::mailbox,
    state::app::App,
};

/// Revisions of which it is remembered when this coordinator saw them first.
const REMEMBERED: usize = 1000;
/// Seconds; from one machine to another on a LAN, up to an agent that was away for a while.
const PROPAGATION_S: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// What is counted as it happens. What can be looked up is looked up when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    propagation: Histogram,
    /// Revision → when this coordinator saw it.
    seen: Mutex<BTreeMap<i64, Instant>>,
}

impl Metrics {
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("wattle_requests_total", "Requests that were answered."),
            &["method", "route", "status"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "wattle_request_duration_seconds",
                "Time until the answer to a request began. Streams last longer.",
            ),
            &["route"],
        )?;
        let propagation = Histogram::with_opts(
            HistogramOpts::new(
                "wattle_propagation_seconds",
                "Time from when this coordinator saw a revision until an agent reported that its \
                 host applied it.",
            )
            .buckets(PROPAGATION_S.to_vec()),
        )?;
        let collectors: [Box<dyn Collector>; 4] = [
            Box::new(requests.clone()),
            Box::new(durations.clone()),
            Box::new(propagation.clone()),
            Box::new(ProcessCollector::for_self()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        Ok(Self {
            registry,
            requests,
            durations,
            propagation,
            seen: Mutex::default(),
        })
    }

    /// This coordinator's copy has come to a position.
    pub fn saw(&self, position: Position) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(position.revision).or_insert_with(Instant::now);
        while seen.len() > REMEMBERED {
            seen.pop_first();
        }
    }

    /// A node says that its host follows a position; before it said another, or nothing yet.
    pub fn applied(&self, before: Option<Position>, now: Position) {
        let Some(before) = before else { return };
        if now.epoch != before.epoch || now.revision <= before.revision {
            return;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Revisions that came at once were seen as the last of them.
        if let Some((_, at)) = seen.range(now.revision..).next() {
            self.propagation.observe(at.elapsed().as_secs_f64());
        }
    }

    /// Notes each new position, until the coordinator stops.
    pub async fn follow(&self, app: &App) {
        let mut position = app.copy.subscribe();
        loop {
            let now = *position.borrow_and_update();
            self.saw(now);
            tokio::select! {
                () = app.stop.cancelled() => return,
                changed = position.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Metrics of this coordinator and of the mesh, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "coordinator", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn show(State(app): State<App>) -> Result<Response> {
    let internal = |_| Error::Internal("metrics do not fit together");
    let now = Registry::new();
    look(&app, &now).await.map_err(internal)?;
    let mut families = app.metrics.registry.gather();
    families.extend(now.gather());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let (encoder, mut text) = (TextEncoder::new(), Vec::new());
    encoder.encode(&families, &mut text).map_err(internal)?;
    Ok((
        [
            (header::CONTENT_TYPE, encoder.format_type().to_owned()),
            (header::CACHE_CONTROL, "no-store".to_owned()),
        ],
        text,
    )
        .into_response())
}

/// Looks up what is so now.
async fn look(app: &App, registry: &Registry) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, value: i64| {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(value);
        registry.register(Box::new(gauge))
    };
    let vector = |name: &str, help: &str, label: &str, values: &[(&str, i64)]| {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        values
            .iter()
            .for_each(|(label, value)| gauges.with_label_values(&[label]).set(*value));
        registry.register(Box::new(gauges))
    };
    let position = app.copy.position();
    gauge(
        "wattle_epoch",
        "The epoch of the mesh's revisions. It grows when the database has lost revisions.",
        position.epoch,
    )?;
    gauge(
        "wattle_revision",
        "The revision of the mesh that this coordinator has.",
        position.revision,
    )?;
    gauge(
        "wattle_copy_fresh",
        "Whether this coordinator compared its copy with the database in the last ten seconds.",
        app.copy.is_fresh().into(),
    )?;

    let (sites, nodes) = app.copy.read(|feed| {
        let nodes: Vec<_> = feed
            .directory()
            .nodes
            .values()
            .map(|node| (node.id, node.state))
            .collect();
        (feed.directory().sites.len(), nodes)
    });
    let in_state = |wanted| count(nodes.iter().filter(|(_, state)| *state == wanted).count());
    gauge("wattle_sites", "Sites of the mesh.", count(sites))?;
    let states = [
        ("active", in_state(NodeState::Active)),
        ("standby", in_state(NodeState::Standby)),
    ];
    vector(
        "wattle_nodes",
        "Nodes of the mesh, by state.",
        "state",
        &states,
    )?;
    gauge(
        "wattle_copied_nodes",
        "Nodes whose keys are on two machines.",
        count(app.reports.count_copied()),
    )?;
    let connected: Vec<_> = nodes
        .iter()
        .map(|(node, _)| *node)
        .filter(|node| app.streams.is_open(*node))
        .collect();
    gauge(
        "wattle_agents_connected",
        "Agents whose stream this coordinator serves.",
        count(connected.len()),
    )?;
    let applied = connected
        .iter()
        .filter_map(|node| app.reports.last(*node))
        .map(|report| report.applied);
    let lag = applied
        .filter(|applied| applied.epoch == position.epoch)
        .map(|applied| position.revision - applied.revision)
        .max();
    gauge(
        "wattle_slowest_agent_lag_revisions",
        "How many revisions the slowest connected agent is behind.",
        lag.unwrap_or(0),
    )?;

    let letters = async { mailbox::queries::count(&mut *app.db.follow().await?).await };
    // Without the database nobody knows, and the rest is told all the same.
    if let Ok::<_, Error>(letters) = letters.await {
        gauge(
            "wattle_mailbox_letters",
            "Messages in the mailbox that wait for their recipients.",
            letters,
        )?;
    }

    let seen = app.live.link_states(app).await;
    let links = app.copy.read(|feed| view::count_links(feed.directory()));
    let states = [
        ("up", LinkState::Up),
        ("degraded", LinkState::Degraded),
        ("down", LinkState::Down),
    ];
    let states = states.map(|(name, wanted)| {
        (
            name,
            count(seen.iter().filter(|state| **state == wanted).count()),
        )
    });
    let never = count(links) - states.iter().map(|(_, links)| links).sum::<i64>();
    let links: Vec<_> = states
        .into_iter()
        .chain([("never", never.max(0))])
        .collect();
    vector(
        "wattle_links",
        "Links of the mesh, by state.",
        "state",
        &links,
    )?;

    let connections = IntGaugeVec::new(
        Opts::new(
            "wattle_database_connections",
            "Connections to the database, by pool and whether they are in use.",
        ),
        &["pool", "state"],
    )?;
    for (pool, open, idle) in app.db.connections() {
        let idle = count(idle);
        connections.with_label_values(&[pool, "idle"]).set(idle);
        connections
            .with_label_values(&[pool, "used"])
            .set((i64::from(open) - idle).max(0));
    }
    registry.register(Box::new(connections))
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Counts requests by their route, of which there is a known number; what matches none counts as
/// `none`.
pub async fn counted(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let began = Instant::now();
    let response = next.run(request).await;
    // A method is free text of the caller's; those that exist are few.
    let method = if response.status() == 405 || route == "none" {
        "other"
    } else {
        method.as_str()
    };
    app.metrics
        .requests
        .with_label_values(&[method, &route, response.status().as_str()])
        .inc();
    app.metrics
        .durations
        .with_label_values(&[&route])
        .observe(began.elapsed().as_secs_f64());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(revision: i64) -> Position {
        Position { epoch: 1, revision }
    }

    #[test]
    fn propagation_counts_each_step_forward_of_an_agent_once() {
        let metrics = Metrics::new().unwrap();
        metrics.saw(position(5));
        metrics.saw(position(9));
        let counted = |before, now| {
            let had = metrics.propagation.get_sample_count();
            metrics.applied(before, now);
            metrics.propagation.get_sample_count() - had
        };
        assert_eq!(
            counted(None, position(9)),
            0,
            "who comes back after a restart was not slow"
        );
        assert_eq!(counted(Some(position(5)), position(7)), 1);
        assert_eq!(counted(Some(position(9)), position(9)), 0);
        assert_eq!(counted(Some(position(9)), position(8)), 0);
        assert_eq!(
            counted(Some(position(9)), position(10)),
            0,
            "nobody saw that one yet"
        );
    }
}
