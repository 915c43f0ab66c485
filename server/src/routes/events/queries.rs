//! SQL of the audit log. Events are written by [`crate::db`].

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use wattle_mesh::audit::Head;
use wattle_wire::{admin::Event, key::Bytes32};

use crate::error::{Error, Result};

struct EventRow {
    number: i64,
    at: DateTime<Utc>,
    actor: String,
    action: String,
    object: String,
    revision: Option<i64>,
    request_id: Option<String>,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    hash: Vec<u8>,
}

impl TryFrom<EventRow> for Event {
    type Error = Error;

    fn try_from(row: EventRow) -> Result<Self> {
        let EventRow {
            number,
            at,
            actor,
            action,
            object,
            revision,
            request_id,
            before,
            after,
            hash,
        } = row;
        let (before, after) = (
            before.map(digest).transpose()?,
            after.map(digest).transpose()?,
        );
        Ok(Self {
            number,
            at,
            actor,
            action,
            object,
            revision,
            request_id,
            before,
            after,
            hash: digest(hash)?,
        })
    }
}

fn digest(bytes: Vec<u8>) -> Result<Bytes32> {
    <[u8; 32]>::try_from(bytes)
        .map(Bytes32::from)
        .map_err(|_| Error::Internal("a digest in the database has a wrong length"))
}

/// The newest events before one.
pub(super) async fn newest(
    connection: &mut PgConnection,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<Event>> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT number, at, actor, action, object, revision, request_id, before, after, hash FROM \
         events
         WHERE $1::bigint IS NULL OR number < $1 ORDER BY number DESC LIMIT $2",
        before,
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(Event::try_from)
        .collect()
}

/// The first events after one.
pub(super) async fn after(
    connection: &mut PgConnection,
    number: i64,
    limit: usize,
) -> Result<Vec<Event>> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT number, at, actor, action, object, revision, request_id, before, after, hash FROM \
         events
         WHERE number > $1 ORDER BY number LIMIT $2",
        number,
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(Event::try_from)
        .collect()
}

/// The end of the chain, as the mesh's own row has it.
pub(super) async fn head(connection: &mut PgConnection) -> Result<Head> {
    let row = sqlx::query!("SELECT event_number, event_hash FROM mesh")
        .fetch_one(connection)
        .await?;
    Ok(Head {
        number: row.event_number,
        hash: digest(row.event_hash)?,
    })
}
