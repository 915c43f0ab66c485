//! `GET /metrics`: what the operator of a coordinator needs to know, in Prometheus' text format.

use std::time::Instant;

use anyhow::Context;
use axum::{
    extract::{MatchedPath, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{Encoder, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use wattle_mesh::config::view;
use wattle_wire::admin::{ConnectionState, LanState, LinkState, NodeState};

use crate::{
    error::{Error, Result},
    routes::mailbox,
    state::app::App,
};

/// Metrics of this coordinator and of the mesh, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "coordinator", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn show(State(app): State<App>) -> Result<Response> {
    let internal = "metrics do not fit together";
    let now = Registry::new();
    look(&app, &now).await.context(internal)?;
    let mut families = app.metrics.registry.gather();
    families.extend(now.gather());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let (encoder, mut text) = (TextEncoder::new(), Vec::new());
    encoder.encode(&families, &mut text).context(internal)?;
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
    let position = app.mesh_cache.position();
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
        app.mesh_cache.is_fresh().into(),
    )?;

    let held = app
        .mesh_cache
        .read(|feed| app.coordinators.held(feed.directory()).len());
    gauge(
        "wattle_prefixes_with_coordinator",
        "Prefixes of the mesh that hold an address at which agents look for a coordinator.",
        count(held),
    )?;
    let (sites, nodes) = app.mesh_cache.read(|feed| {
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
    let agents: Vec<_> = app.mesh_cache.read(|feed| {
        let nodes = feed.directory().nodes.values();
        let agents = nodes.filter(|node| node.unmanaged.is_none());
        agents
            .map(|node| {
                let connection = app.reports.connection(node.id, node.enrolled_at);
                let account = app.reports.account(node.id);
                let lan = app.reports.lan_end(node, &account).state();
                (connection.state, lan)
            })
            .collect()
    });
    let connections = ConnectionState::ALL.map(|wanted| {
        let found = agents.iter().filter(|(state, _)| *state == wanted);
        (wanted.name(), count(found.count()))
    });
    let lans = LanState::ALL.map(|wanted| {
        let found = agents.iter().filter(|(_, lan)| *lan == wanted);
        (wanted.name(), count(found.count()))
    });
    vector(
        "wattle_gateway_lans",
        "Gateways with an agent, by whether the LANs behind them get the packets of others.",
        "state",
        &lans,
    )?;
    vector(
        "wattle_agents",
        "Agents of the mesh, by whether any coordinator hears them and whether they are up to date.",
        "state",
        &connections,
    )?;
    gauge(
        "wattle_copied_nodes",
        "Nodes whose keys are on two machines.",
        count(app.reports.count_copied()),
    )?;
    gauge(
        "wattle_nodes_with_held_peers",
        "Nodes that have peers only until somebody confirms that they go.",
        count(app.reports.count_holding()),
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

    let links = app
        .mesh_cache
        .read(|feed| view::count_links(feed.directory()));
    let states = [
        ("up", LinkState::Up),
        ("degraded", LinkState::Degraded),
        ("down", LinkState::Down),
    ];
    let states = states.map(|(name, state)| (name, count(app.link_tracker.count(state))));
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
