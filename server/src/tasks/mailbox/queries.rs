//! SQL of letters that wait.

use sqlx::PgConnection;
use wattle_wire::ids::NodeId;

use crate::error::Result;

/// Who has letters, with the number of the newest.
pub(super) async fn newest(connection: &mut PgConnection) -> Result<Vec<(NodeId, i64)>> {
    let rows =
        sqlx::query!(r#"SELECT recipient, max(id) AS "id!" FROM psk_messages GROUP BY recipient"#)
            .fetch_all(connection)
            .await?;
    Ok(rows
        .into_iter()
        .map(|row| (NodeId(row.recipient), row.id))
        .collect())
}
