//! `/links`: the health of every pair of nodes that should have a tunnel.

use std::{collections::BTreeSet, ops::Bound};

use axum::{Extension, Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use wattle_mesh::{
    config::{directory::Directory, view},
    health::{
        lan,
        link::{self, EndReport, Heard, LinkRecord},
    },
};
use wattle_wire::{
    admin::{Link, LinkChange, LinkEnd, Page, PskMaker},
    ids::NodeId,
    verdict::{LinkVerdict, OwnLinks},
};

use crate::{
    error::{self, Result},
    http::{
        auth::CallingNode,
        body::Query,
        page::{self, Moment, PageQuery},
        path::Path,
    },
    state::{app::App, link_tracker::queries},
};

/// Which links.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinksQuery {
    node: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Lists the links of the mesh with their health, in order of their ends' ids.
#[utoipa::path(get, path = "/links", tag = "links",
    params(("node" = Option<String>, Query, description = "id or name of a node, for its links \
        only"), PageQuery),
    responses((status = 200, body = Page<Link>)))]
pub async fn list(
    State(app): State<App>,
    Query(LinksQuery {
        node,
        limit,
        cursor,
    }): Query<LinksQuery>,
) -> Result<Json<Page<Link>>> {
    let node = node.map(|node| app.find_node(&node)).transpose()?;
    let (limit, after) = PageQuery::new(limit, cursor).read::<(NodeId, NodeId)>()?;
    let wanted = |(a, b): &(NodeId, NodeId)| node.is_none_or(|node| node == *a || node == *b);
    let page = app.mesh_cache.read(|feed| {
        page::cut(
            pairs(feed.directory(), after).filter(wanted),
            limit,
            |pair| *pair,
        )
    });
    let items = read_links(&app, &page.items).await?;
    Ok(Json(Page {
        items,
        next_cursor: page.next_cursor,
    }))
}

/// Shows a link. Its nodes may be given in either order.
#[utoipa::path(get, path = "/links/{node}/{other}", tag = "links",
    params(("node" = String, Path, description = "id or \
        name"), ("other" = String, Path, description = "id or name")),
    responses((status = 200, body = Link)))]
pub async fn show(
    State(app): State<App>,
    Path((node, other)): Path<(String, String)>,
) -> Result<Json<Link>> {
    let pair = find(&app, &node, &other)?;
    let link = read_links(&app, &[pair]).await?.pop();
    link.map(Json)
        .ok_or_else(|| error::not_found("link").into())
}

/// Lists the changes of a link's state in the last 30 days, newest first; at most 500 are
/// remembered.
///
/// A state that lasted less than two seconds is not among them.
#[utoipa::path(get, path = "/links/{node}/{other}/history", tag = "links",
    params(("node" = String, Path, description = "id or \
        name"), ("other" = String, Path, description = "id or name"), PageQuery),
    responses((status = 200, body = Page<LinkChange>)))]
pub async fn history(
    State(app): State<App>,
    Path((node, other)): Path<(String, String)>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<LinkChange>>> {
    let (limit, before) = query.read::<Moment>()?;
    let pair = find(&app, &node, &other)?;
    let rows = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let before = before.map(|Moment(before)| before);
    let changes = queries::history(&mut *app.db.begin().await?, pair, before, rows).await?;
    Ok(Json(page::cut(changes.into_iter(), limit, |change| {
        Moment(change.at)
    })))
}

/// Tells a node what is made of its links, from what both their ends say.
#[utoipa::path(get, path = "/agent/links", tag = "agents", responses((status = 200, body = OwnLinks)))]
pub async fn own(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
) -> Result<Json<OwnLinks>> {
    let pairs: Vec<_> = app.mesh_cache.read(|feed| {
        let directory = feed.directory();
        let peers = directory.nodes.keys().copied();
        peers
            .filter(|peer| view::linked(directory, node, *peer))
            .map(|peer| (node.min(peer), node.max(peer)))
            .collect()
    });
    let mut seen_at = BTreeSet::new();
    let mut verdicts = Vec::with_capacity(pairs.len());
    for Link {
        ends: [a, b],
        state,
        fault,
        lan,
        ..
    } in read_links(&app, &pairs).await?
    {
        let theirs = if a.node == node { b } else { a };
        seen_at.extend(theirs.peer_endpoint.filter(|_| theirs.up));
        verdicts.push(LinkVerdict {
            peer: theirs.node,
            state,
            fault,
            lan,
        });
    }
    let seen_at = seen_at.into_iter().take(OwnLinks::MOST_SEEN);
    Ok(Json(OwnLinks {
        links: verdicts,
        seen_at: seen_at.collect(),
    }))
}

/// The link that a path means.
fn find(app: &App, node: &str, other: &str) -> Result<(NodeId, NodeId)> {
    let (node, other) = (app.find_node(node)?, app.find_node(other)?);
    let pair = (node.min(other), node.max(other));
    let is_link = app
        .mesh_cache
        .read(|feed| view::linked(feed.directory(), pair.0, pair.1));
    if is_link {
        Ok(pair)
    } else {
        Err(error::not_found("link").into())
    }
}

/// All pairs that should have a tunnel, each with the lower id first, after a pair.
pub(crate) fn pairs(
    directory: &Directory,
    after: Option<(NodeId, NodeId)>,
) -> impl Iterator<Item = (NodeId, NodeId)> {
    let first = after.map_or(Bound::Unbounded, |(a, _)| Bound::Included(a));
    directory
        .nodes
        .range((first, Bound::Unbounded))
        .flat_map(move |(a, _)| {
            let second = after
                .filter(|after| after.0 == *a)
                .map_or(*a, |after| after.1);
            let others = directory
                .nodes
                .range((Bound::Excluded(second), Bound::Unbounded));
            others
                .filter(move |(b, _)| view::linked(directory, *a, **b))
                .map(move |(b, _)| (*a, *b))
        })
}

/// The links between these pairs of nodes with their health, in the same order.
async fn read_links(app: &App, pairs: &[(NodeId, NodeId)]) -> Result<Vec<Link>> {
    let mut transaction = app.db.begin().await?;
    let stored = queries::of_pairs(&mut transaction, pairs).await?;
    let heard = queries::heard(&mut transaction, pairs).await?;
    drop(transaction);
    let now = Utc::now();
    Ok(app.mesh_cache.read(|feed| {
        let link = |pair: &(NodeId, NodeId)| {
            link(app, feed.directory(), *pair, stored.get(pair), &heard, now)
        };
        pairs.iter().filter_map(link).collect()
    }))
}

fn link(
    app: &App,
    directory: &Directory,
    (a, b): (NodeId, NodeId),
    stored: Option<&LinkRecord>,
    heard: &Heard,
    now: DateTime<Utc>,
) -> Option<Link> {
    let (reports, since) = stored
        .copied()
        .unwrap_or_default()
        .reports([a, b], heard, now);
    let unmanaged = directory.unmanaged([a, b]);
    let reports = link::spoken_for(reports, unmanaged);
    let ends = [
        end(app, directory, a, b, reports[0])?,
        end(app, directory, b, a, reports[1])?,
    ];
    let (state, fault) = link::link_health(reports);
    let accounts = [a, b].map(|node| app.reports.account(node));
    let (lan, lan_problems) = lan::of_link([
        app.reports.lan_end(directory.nodes.get(&a)?, &accounts[0]),
        app.reports.lan_end(directory.nodes.get(&b)?, &accounts[1]),
    ]);
    let psk_made_by = if unmanaged.contains(&true) {
        PskMaker::Coordinator
    } else {
        PskMaker::Nodes
    };
    Some(Link {
        ends,
        state,
        fault,
        since,
        lan,
        lan_problems,
        psk_made_by,
    })
}

fn end(
    app: &App,
    directory: &Directory,
    node: NodeId,
    peer: NodeId,
    report: Option<EndReport>,
) -> Option<LinkEnd> {
    let record = directory.nodes.get(&node)?;
    let detail = app.reports.link(node, peer);
    let probe = detail.and_then(|detail| detail.said.probe);
    let peer_endpoint = detail.and_then(|detail| detail.said.endpoint);
    let configured = directory
        .nodes
        .get(&peer)
        .and_then(|peer| view::endpoint(peer, directory.sites.get(&peer.site)?));
    Some(LinkEnd {
        node,
        name: record.name.clone(),
        site_name: directory.sites.get(&record.site)?.spec.name.clone(),
        up: link::end_is_up(report),
        state: report
            .filter(|_| record.unmanaged.is_none())
            .map(|report| report.state),
        loss_percent: probe.map(|probe| probe.loss_percent),
        round_trip_ms: probe.map(|probe| milliseconds(probe.round_trip_us)),
        last_handshake_at: detail.and_then(|detail| detail.last_handshake_at),
        received_bytes: detail.map_or(0, |detail| detail.said.received_bytes),
        sent_bytes: detail.map_or(0, |detail| detail.said.sent_bytes),
        peer_endpoint,
        endpoint_source: peer_endpoint.map(|used| link::endpoint_source(used.socket(), configured)),
        mtu: app.reports.last(node).and_then(|report| report.mtu),
        reported_at: detail.map(|detail| detail.at),
    })
}

/// Milliseconds with the two digits after the point that say something.
fn milliseconds(microseconds: u32) -> f32 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a round trip of a minute in microseconds has 27 bits; f32 keeps 24 of them, \
            which is enough"
    )]
    let hundredths = (microseconds / 10) as f32;
    hundredths / 100.0
}
