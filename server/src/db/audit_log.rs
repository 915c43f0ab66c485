//! SQL that asks the audit log. It is written by [`super::Db::mutate`].

use sqlx::PgConnection;

use super::AuditActor;
use crate::error::{self, Result};

/// Changes that a node may make in an hour, whatever they are. One that takes up as many keys as it
/// may makes two of each.
const MOST_OF_A_NODE: i64 = 60;

/// Whether it is in the audit log that this was done to the object.
pub async fn is_told(connection: &mut PgConnection, action: &str, object: &str) -> Result<bool> {
    let told = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM events WHERE object = $1 AND action = $2) AS "told!""#,
        object,
        action
    );
    Ok(told.fetch_one(connection).await?)
}

/// Refuses a change of a node that has made too many. Each is told to all others and remembered for
/// good.
///
/// # Errors
///
/// 429 when it has.
pub(super) async fn refuse_too_many(
    connection: &mut PgConnection,
    actor: &AuditActor,
) -> Result<()> {
    if !actor.is_node() {
        return Ok(());
    }
    let lately = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT FROM events WHERE actor = $1 AND at > now() - interval '1 hour' LIMIT $2
           ) AS lately"#,
        actor.id,
        MOST_OF_A_NODE
    );
    if lately.fetch_one(connection).await? < MOST_OF_A_NODE {
        return Ok(());
    }
    let detail = format!("a node makes at most {MOST_OF_A_NODE} changes in an hour; try later");
    Err(error::too_many_changes(detail).into())
}
