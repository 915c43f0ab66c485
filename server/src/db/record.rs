//! What a change did, and how that is written down: the revision, the change and its events.

use serde::Serialize;
use sqlx::{Postgres, Transaction, types::Json};
use wattle_mesh::{
    audit::{self, Content},
    config::directory::RecordChange,
};
use wattle_wire::{admin::Warning, ids::Position, key::Bytes32};

use super::actor::AuditActor;
use crate::error::{Error, Result};

/// What was done, for those who follow and for the audit log.
#[derive(Debug)]
pub struct ChangeRecord {
    /// The records as they are now; empty when the configuration is as it was, which takes no
    /// revision.
    pub records: Vec<RecordChange>,
    pub action: &'static str,
    pub(super) object: String,
    /// Digest of the object as it is now, where the records do not tell.
    pub(super) after: Option<Bytes32>,
    /// What else was done, each to another object.
    pub(super) further: Vec<FurtherEvent>,
    pub warnings: Vec<Warning>,
}

/// What a change did to an object beside the one that it was asked for.
#[derive(Debug)]
pub(super) struct FurtherEvent {
    pub(super) action: &'static str,
    pub(super) object: String,
    /// Digest of the object as it is now.
    pub(super) after: Bytes32,
}

/// Takes the revision if the configuration changed, records the change and the event and tells the
/// other coordinators, in one statement: nobody else can change the mesh from here to the end of
/// the commit, so each round trip in between would count for all who want to.
///
/// The hash of the event is that of [`audit::Head::then`]. The last event of the object is
/// committed: whoever changes an object has locked it.
pub(super) async fn write(
    transaction: &mut Transaction<'_, Postgres>,
    actor: &AuditActor,
    record: ChangeRecord,
    channel: &str,
) -> Result<Option<Position>> {
    let ChangeRecord {
        records,
        action,
        object,
        after,
        further,
        warnings: _,
    } = record;
    let after = match (after, &records[..]) {
        (None, []) => None,
        (None, records) if records.iter().any(is_removal) => None,
        (None, records) => Some(digest(records)?),
        (after, _) => after,
    };
    let content = Content {
        actor: &actor.name,
        action,
        object: &object,
        request_id: actor.request_id.as_deref(),
        after,
    }
    .digest();
    let is_configuration = !records.is_empty();
    let taken = sqlx::query!(
        r#"WITH taken AS (
               UPDATE mesh SET
                   revision = revision + $1,
                   event_number = event_number + 1,
                   event_hash = sha256($2 || event_hash || int8send(event_number + 1)
                       || int8send((extract(epoch FROM statement_timestamp()) * 1000000)::bigint)
                       || int8send((revision + 1) * $1) || coalesce(found.after, $3) || $4)
               FROM (SELECT (SELECT after FROM events WHERE object = $5 ORDER BY number DESC LIMIT 1) AS after) AS found
               RETURNING epoch, revision, event_number, event_hash, found.after AS before),
           change AS (INSERT INTO changes (revision, epoch, changes) SELECT revision, epoch, $6 FROM taken WHERE $1 = 1),
           event AS (
               INSERT INTO events (number, hash, at, actor, action, object, revision, request_id, before, after)
               SELECT event_number, event_hash, statement_timestamp(), $7, $8, $5, nullif(revision * $1, 0), $9, before, $10 FROM taken)
           SELECT epoch, revision, pg_notify($11, revision::text) AS "sent: ()" FROM taken"#,
        i64::from(is_configuration),
        audit::CONTEXT,
        audit::ABSENT,
        content.as_bytes(),
        object,
        Json(records) as _,
        actor.name,
        action,
        actor.request_id,
        after.as_ref().map(|digest| digest.as_bytes().as_slice()),
        channel
    )
    .fetch_one(&mut **transaction)
    .await?;
    for event in further {
        write_further(transaction, actor, event).await?;
    }
    Ok(is_configuration.then_some(Position {
        epoch: taken.epoch,
        revision: taken.revision,
    }))
}

/// Writes an event that belongs to the revision which the transaction has taken.
async fn write_further(
    transaction: &mut Transaction<'_, Postgres>,
    actor: &AuditActor,
    event: FurtherEvent,
) -> Result<()> {
    let FurtherEvent {
        action,
        object,
        after,
    } = event;
    let content = Content {
        actor: &actor.name,
        action,
        object: &object,
        request_id: actor.request_id.as_deref(),
        after: Some(after),
    }
    .digest();
    sqlx::query!(
        r#"WITH taken AS (
               UPDATE mesh SET
                   event_number = event_number + 1,
                   event_hash = sha256($1 || event_hash || int8send(event_number + 1)
                       || int8send((extract(epoch FROM statement_timestamp()) * 1000000)::bigint)
                       || int8send(revision) || coalesce(found.after, $2) || $3)
               FROM (SELECT (SELECT after FROM events WHERE object = $4
                   ORDER BY number DESC LIMIT 1) AS after) AS found
               RETURNING revision, event_number, event_hash, found.after AS before)
           INSERT INTO events
               (number, hash, at, actor, action, object, revision, request_id, before, after)
           SELECT event_number, event_hash, statement_timestamp(), $5, $6, $4, revision, $7,
               before, $8 FROM taken"#,
        audit::CONTEXT,
        audit::ABSENT,
        content.as_bytes(),
        object,
        actor.name,
        action,
        actor.request_id,
        after.as_bytes().as_slice()
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn is_removal(record: &RecordChange) -> bool {
    match record {
        RecordChange::SiteRemoved(_) | RecordChange::NodeRevoked(_) => true,
        RecordChange::Mesh(_)
        | RecordChange::Site(_)
        | RecordChange::Node(_)
        | RecordChange::Admission(..)
        | RecordChange::Removal(..) => false,
    }
}

pub(super) fn digest(object: &(impl Serialize + ?Sized)) -> Result<Bytes32> {
    let text =
        serde_json::to_vec(object).map_err(|_| Error::Internal("an object cannot be written"))?;
    Ok(audit::digest(&text))
}
