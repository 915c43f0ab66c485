//! SQL of trials of endpoints.

use sqlx::PgConnection;
use wattle_mesh::config::endpoint_check::Trial;
use wattle_wire::ids::NodeId;

use crate::error::Result;

/// Writes who tries a node's endpoint; `None` when the node was met there.
pub(super) async fn set(
    connection: &mut PgConnection,
    node: NodeId,
    trial: Option<&Trial>,
) -> Result<()> {
    sqlx::query!(
        "UPDATE nodes SET endpoint_verified = $2, endpoint_tried_by = $3, endpoint_tried_at = $4, \
         endpoint_tries = $5 WHERE id = $1",
        node.0,
        trial.is_none(),
        trial.and_then(|trial| trial.by).map(|by| by.0),
        trial.and_then(|trial| trial.since),
        trial.map_or(0, |trial| trial.tries.cast_signed())
    )
    .execute(connection)
    .await?;
    Ok(())
}
