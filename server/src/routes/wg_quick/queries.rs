//! SQL of unmanaged nodes.

use sqlx::PgConnection;
use wattle_mesh::config::directory::Unmanaged;
use wattle_wire::ids::{NodeId, SiteId};

use crate::{db::site_records, error::Result};

/// Lets nobody else make a file or enrol for a site until this transaction ends, and as
/// [`site_records::lock`].
pub(super) async fn lock(connection: &mut PgConnection, site: SiteId) -> Result<()> {
    site_records::lock_site(connection, site).await?;
    site_records::lock(connection).await
}

/// Writes down that a node has another file.
pub(super) async fn update(
    connection: &mut PgConnection,
    node: NodeId,
    file: &Unmanaged,
) -> Result<()> {
    sqlx::query!(
        "UPDATE nodes SET file_made_at = $2, file_digest = $3 WHERE id = $1",
        node.0,
        file.file_made_at,
        file.file_digest.as_bytes()
    )
    .execute(connection)
    .await?;
    Ok(())
}
