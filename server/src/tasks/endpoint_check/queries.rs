//! SQL of trials of endpoints.

use sqlx::PgConnection;
use wattle_mesh::config::endpoint_check::CheckState;
use wattle_wire::ids::NodeId;

use crate::error::Result;

/// Writes who tries a node's endpoint; `None` when the node was met there.
pub(super) async fn set(
    connection: &mut PgConnection,
    node: NodeId,
    check: Option<&CheckState>,
) -> Result<()> {
    sqlx::query!(
        "UPDATE nodes SET endpoint_verified = $2, endpoint_tried_by = $3, endpoint_tried_at = $4, \
         endpoint_tries = $5 WHERE id = $1",
        node.0,
        check.is_none(),
        check.and_then(|check| check.by).map(|by| by.0),
        check.and_then(|check| check.since),
        check.map_or(0, |check| check.tries.cast_signed())
    )
    .execute(connection)
    .await?;
    Ok(())
}
