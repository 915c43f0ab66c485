//! `/links`: the health of every pair of nodes that should have a tunnel.

pub mod queries;

use std::ops::Bound;

use axum::{Json, extract::State};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use wattle_mesh::{
    directory::Directory,
    health::{self, EndReport},
    view,
};
use wattle_wire::{
    admin::{Link, LinkEnd, Page},
    ids::NodeId,
};

use self::queries::{Heard, LinkRow, StoredEnd};
use crate::{
    app::App,
    body::Query,
    error::Result,
    page::{self, PageQuery},
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
    params(("node" = Option<String>, Query, description = "id or name of a node, for its links only"), PageQuery),
    responses((status = 200, body = Page<Link>)))]
pub async fn list(State(app): State<App>, Query(LinksQuery { node, limit, cursor }): Query<LinksQuery>) -> Result<Json<Page<Link>>> {
    let node = node.map(|node| app.find_node(&node)).transpose()?;
    let (limit, after) = PageQuery::new(limit, cursor).read::<(NodeId, NodeId)>()?;
    let wanted = |(a, b): &(NodeId, NodeId)| node.is_none_or(|node| node == *a || node == *b);
    let page = app.copy.read(|feed| page::cut(pairs(feed.directory(), after).filter(wanted), limit, |pair| *pair));
    let mut transaction = app.db.begin().await?;
    let stored = queries::of_pairs(&mut transaction, &page.items).await?;
    let heard = queries::heard(&mut transaction, &page.items).await?;
    drop(transaction);
    let now = Utc::now();
    let items = app
        .copy
        .read(|feed| page.items.iter().filter_map(|pair| link(&app, feed.directory(), *pair, stored.get(pair), &heard, now)).collect());
    Ok(Json(Page { items, next_cursor: page.next_cursor }))
}

/// All pairs that should have a tunnel, each with the lower id first, after a pair.
pub(crate) fn pairs(directory: &Directory, after: Option<(NodeId, NodeId)>) -> impl Iterator<Item = (NodeId, NodeId)> {
    let first = after.map_or(Bound::Unbounded, |(a, _)| Bound::Included(a));
    directory.nodes.range((first, Bound::Unbounded)).flat_map(move |(a, _)| {
        let second = after.filter(|after| after.0 == *a).map_or(*a, |after| after.1);
        let others = directory.nodes.range((Bound::Excluded(second), Bound::Unbounded));
        others.filter(move |(b, _)| view::linked(directory, *a, **b)).map(move |(b, _)| (*a, *b))
    })
}

fn link(
    app: &App,
    directory: &Directory,
    (a, b): (NodeId, NodeId),
    stored: Option<&LinkRow>,
    heard: &Heard,
    now: DateTime<Utc>,
) -> Option<Link> {
    let (reports, since) = reports((a, b), stored, heard, now);
    let ends = [end(app, directory, a, b, reports[0])?, end(app, directory, b, a, reports[1])?];
    Some(Link { ends, state: health::link_state(reports), since })
}

/// What the two ends of a link last said of it, and since when that is so.
pub(crate) fn reports(
    (a, b): (NodeId, NodeId),
    stored: Option<&LinkRow>,
    heard: &Heard,
    now: DateTime<Utc>,
) -> ([Option<EndReport>; 2], Option<DateTime<Utc>>) {
    let reported = [stored.and_then(|row| row.a), stored.and_then(|row| row.b)];
    let reports = [end_report(reported[0], heard.get(&a), now), end_report(reported[1], heard.get(&b), now)];
    let since = reported.iter().zip(&reports).filter_map(|(stored, report)| {
        let (stored, report) = (stored.as_ref()?, report.as_ref()?);
        Some(health::silent_since_s(report).map_or(stored.since, |ago| now - TimeDelta::seconds(ago.cast_signed())))
    });
    (reports, since.max())
}

fn end_report(stored: Option<StoredEnd>, heard: Option<&DateTime<Utc>>, now: DateTime<Utc>) -> Option<EndReport> {
    let stored = stored?;
    let last = heard.map_or(stored.since, |heard| stored.since.max(*heard));
    let age_s = (now - last).num_seconds().max(0).unsigned_abs();
    Some(EndReport { up: stored.up, ever: stored.ever, age_s })
}

fn end(app: &App, directory: &Directory, node: NodeId, peer: NodeId, report: Option<EndReport>) -> Option<LinkEnd> {
    let record = directory.nodes.get(&node)?;
    let detail = app.reports.link(node, peer);
    Some(LinkEnd {
        node,
        name: record.name.clone(),
        site_name: directory.sites.get(&record.site)?.name.clone(),
        up: health::end_is_up(report),
        last_handshake_at: detail.and_then(|detail| detail.last_handshake_at),
        received_bytes: detail.map_or(0, |detail| detail.said.received_bytes),
        sent_bytes: detail.map_or(0, |detail| detail.said.sent_bytes),
        peer_endpoint: detail.and_then(|detail| detail.said.endpoint),
        reported_at: detail.map(|detail| detail.at),
    })
}
