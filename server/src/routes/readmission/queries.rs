//! SQL of nodes that a restored database has lost.

use sqlx::PgConnection;
use wattle_mesh::config::directory::SiteRecord;
use wattle_wire::ids::{NodeId, SiteId};

use crate::{db::site_records, error::Result};

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
