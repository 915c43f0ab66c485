//! SQL of the audit log. Events are written by [`crate::db`].

use sqlx::PgConnection;
use wattle_mesh::audit::Head;
use wattle_wire::{admin::Event, key::Bytes32};

use crate::error::Result;

/// The newest events before one.
pub(super) async fn newest(
    connection: &mut PgConnection,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<Event>> {
    let rows = sqlx::query_as!(
        Event,
        r#"SELECT number, at, actor, action, object, revision, request_id,
                  before AS "before: Bytes32", after AS "after: Bytes32", hash AS "hash: Bytes32"
           FROM events
           WHERE $1::bigint IS NULL OR number < $1 ORDER BY number DESC LIMIT $2"#,
        before,
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    Ok(rows.fetch_all(connection).await?)
}

/// The first events after one.
pub(super) async fn after(
    connection: &mut PgConnection,
    number: i64,
    limit: usize,
) -> Result<Vec<Event>> {
    let rows = sqlx::query_as!(
        Event,
        r#"SELECT number, at, actor, action, object, revision, request_id,
                  before AS "before: Bytes32", after AS "after: Bytes32", hash AS "hash: Bytes32"
           FROM events
           WHERE number > $1 ORDER BY number LIMIT $2"#,
        number,
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    Ok(rows.fetch_all(connection).await?)
}

/// The end of the chain, as the mesh's own row has it.
pub(super) async fn head(connection: &mut PgConnection) -> Result<Head> {
    let head = sqlx::query_as!(
        Head,
        r#"SELECT event_number AS number, event_hash AS "hash: Bytes32" FROM mesh"#
    );
    Ok(head.fetch_one(connection).await?)
}
