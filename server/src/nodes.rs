//! `/nodes`: enrolled machines.

pub mod queries;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use wattle_mesh::{
    directory::{Directory, NodeRecord, RecordChange},
    view,
};
use wattle_wire::{
    admin::{Node, NodeRotation, Page, RotationPhase},
    ids::NodeId,
};

use crate::{
    app::App,
    body::Query,
    db::Actor,
    error::{self, Result},
    page::{self, PageQuery},
    sites,
};

/// Lists nodes, in the order in which they enrolled.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<Node>)))]
pub async fn list(State(app): State<App>, Query(query): Query<PageQuery>) -> Result<Json<Page<Node>>> {
    let (limit, after) = query.read::<NodeId>()?;
    let page = app.copy.read(|feed| {
        let directory = feed.directory();
        let nodes = directory.nodes.range(page::after(after)).filter_map(|(_, record)| node_in(&app, directory, record));
        page::cut(nodes, limit, |node| node.id)
    });
    Ok(Json(page))
}

/// Shows a node.
#[utoipa::path(get, path = "/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "id or name")),
    responses((status = 200, body = Node)))]
pub async fn show(State(app): State<App>, Path(node): Path<String>) -> Result<Json<Node>> {
    let found = app.copy.read(|feed| node_in(&app, feed.directory(), feed.directory().find_node(&node)?));
    found.map(Json).ok_or_else(|| error::not_found("node").into())
}

/// Revokes a node for good: its stream ends, its peers remove it, its keys never enrol again.
///
/// A further node of its site takes its place.
#[utoipa::path(delete, path = "/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "id or name")),
    responses((status = 204)))]
pub async fn revoke(State(app): State<App>, Extension(actor): Extension<Actor>, Path(node): Path<String>) -> Result<StatusCode> {
    let id = app.find_node(&node)?;
    app.mutate(&actor, |mut change| async move {
        sites::queries::lock(&mut change).await?;
        let site = queries::revoke(&mut change, id).await?.ok_or_else(|| error::not_found("node"))?;
        let mut records = vec![RecordChange::NodeRevoked(id)];
        records.extend(queries::promote(&mut change, site).await?.map(RecordChange::Node));
        Ok(change.made((), records, "node.revoke", id))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) fn node_in(app: &App, directory: &Directory, record: &NodeRecord) -> Option<Node> {
    let site = directory.sites.get(&record.site)?;
    Some(Node {
        id: record.id,
        name: record.name.clone(),
        site: record.site,
        site_name: site.name.clone(),
        state: record.state,
        tunnel_address: record.tunnel_address,
        wireguard_key: record.wireguard_key,
        identity_key: record.identity_key,
        endpoint: view::endpoint(record, site),
        agent_version: record.agent_version.clone(),
        enrolled_at: record.enrolled_at,
        last_report: app.reports.last(record.id),
        rotation: rotation(record),
    })
}

fn rotation(record: &NodeRecord) -> Option<NodeRotation> {
    let announced = record.announced.as_ref().map(|announced| NodeRotation { phase: RotationPhase::Announced, since: announced.at });
    announced.or_else(|| record.rotate_since.map(|since| NodeRotation { phase: RotationPhase::Requested, since }))
}
