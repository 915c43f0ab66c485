//! SQL of nodes that a restored database has lost.

use sqlx::{PgConnection, types::Json};
use wattle_mesh::config::directory::SiteRecord;
use wattle_wire::{
    admin::Readmission,
    ids::{NodeId, SiteId},
    report::HeldPeer,
};

use crate::{db::site_records, error::Result};

/// What gateways say of these nodes that they hold.
pub(super) async fn lost(
    connection: &mut PgConnection,
    nodes: &[Readmission],
) -> Result<Vec<HeldPeer>> {
    let nodes: Vec<_> = nodes.iter().map(|node| node.node.0).collect();
    let held = sqlx::query_scalar!(
        r#"SELECT peer AS "peer!: Json<HeldPeer>"
           FROM node_reports, jsonb_array_elements(held->'peers') AS peer
           WHERE (peer->>'node')::uuid = ANY($1) AND peer->'lost' IS NOT NULL"#,
        &nodes
    );
    let held = held.fetch_all(connection).await?.into_iter();
    Ok(held.map(|peer| peer.0).collect())
}

/// Whether a node takes part, was revoked, or is out of the mesh by an operator's word.
pub(super) async fn is_known(connection: &mut PgConnection, node: NodeId) -> Result<bool> {
    let known = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM nodes WHERE id = $1)
               OR EXISTS (SELECT FROM removals WHERE node = $1) AS "known!""#,
        node.0
    );
    Ok(known.fetch_one(connection).await?)
}

/// The site of a name.
pub(super) async fn site(connection: &mut PgConnection, name: &str) -> Result<Option<SiteRecord>> {
    let site = sqlx::query_scalar!(
        "SELECT id FROM sites WHERE name = $1 FOR NO KEY UPDATE",
        name
    );
    match site.fetch_optional(&mut *connection).await? {
        Some(site) => site_records::find(connection, SiteId(site)).await,
        None => Ok(None),
    }
}
