//! SQL of the audit log. Events are written by [`crate::db`].

use anyhow::Context;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use wattle_mesh::audit::{self, Content, Entry, Head};
use wattle_wire::{admin::Event, key::Bytes32};

use super::Filter;
use crate::error::{Error, Result};

/// An event as it is kept: what was hashed, byte for byte.
pub(super) struct StoredEvent {
    pub(super) number: i64,
    at: DateTime<Utc>,
    actor: String,
    actor_name: String,
    actor_site: Option<String>,
    action: String,
    object: String,
    object_name: String,
    object_site: Option<String>,
    changes: String,
    revision: Option<i64>,
    request_id: Option<String>,
    before: Option<Bytes32>,
    after: Option<Bytes32>,
    hash: Bytes32,
}

impl StoredEvent {
    /// The place in the chain that it claims.
    pub(super) fn place(&self) -> Head {
        Head {
            number: self.number,
            hash: self.hash,
        }
    }

    pub(super) fn entry(&self) -> Entry<'_> {
        let content = Content {
            actor: &self.actor,
            actor_name: &self.actor_name,
            actor_site: self.actor_site.as_deref(),
            action: &self.action,
            object: &self.object,
            object_name: &self.object_name,
            object_site: self.object_site.as_deref(),
            changes: &self.changes,
            request_id: self.request_id.as_deref(),
            after: self.after,
        };
        Entry {
            at: self.at,
            revision: self.revision,
            before: self.before,
            content,
        }
    }
}

impl TryFrom<StoredEvent> for Event {
    type Error = Error;

    fn try_from(stored: StoredEvent) -> Result<Self> {
        let changes = serde_json::from_str(&stored.changes)
            .context("an event in the database is not valid")?;
        let event = Self {
            number: stored.number,
            at: stored.at,
            actor: stored.actor,
            actor_name: stored.actor_name,
            actor_site: stored.actor_site,
            action: stored.action,
            object: stored.object,
            object_name: stored.object_name,
            object_site: stored.object_site,
            sentence: String::new(),
            changes,
            revision: stored.revision,
            request_id: stored.request_id,
            before: stored.before,
            after: stored.after,
            hash: stored.hash,
        };
        Ok(Self {
            sentence: audit::sentence(&event),
            ..event
        })
    }
}

/// The newest events before one, of those that are asked for. A name finds all that ever had it,
/// and all of what was done to that, also under other names.
pub(super) async fn newest(
    connection: &mut PgConnection,
    filter: &Filter,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<Event>> {
    let rows = sqlx::query_as!(
        StoredEvent,
        r#"SELECT number, at, actor, actor_name, actor_site, action, object, object_name,
                  object_site, changes::text AS "changes!", revision, request_id,
                  before AS "before: Bytes32", after AS "after: Bytes32", hash AS "hash: Bytes32"
           FROM events
           WHERE ($1::bigint IS NULL OR number < $1)
             AND ($2::text IS NULL OR object = $2
                 OR object IN (SELECT object FROM events WHERE object_name = $2))
             AND ($3::text IS NULL OR actor = $3 OR actor_name = $3
                 OR split_part(actor, ':', 2) = $3)
             AND ($4::timestamptz IS NULL OR at >= $4)
             AND ($5::timestamptz IS NULL OR at < $5)
           ORDER BY number DESC LIMIT $6"#,
        before,
        filter.object,
        filter.actor,
        filter.since,
        filter.until,
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    let rows = rows.fetch_all(connection).await?;
    rows.into_iter().map(Event::try_from).collect()
}

/// The first events after one.
pub(super) async fn after(
    connection: &mut PgConnection,
    number: i64,
    limit: usize,
) -> Result<Vec<StoredEvent>> {
    let rows = sqlx::query_as!(
        StoredEvent,
        r#"SELECT number, at, actor, actor_name, actor_site, action, object, object_name,
                  object_site, changes::text AS "changes!", revision, request_id,
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
