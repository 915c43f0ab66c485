//! What a change did, and how that is written down: the revision, the change and its events.

use std::collections::BTreeMap;

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Postgres, Transaction, types::Json};
use wattle_mesh::{
    audit::{self, Content, Entry, Head, Subject},
    config::directory::RecordChange,
};
use wattle_wire::{admin::Warning, ids::Position, key::Bytes32};

use super::actor::AuditActor;
use crate::error::Result;

/// What was done, for those who follow and for the audit log.
#[derive(Debug)]
pub struct ChangeRecord {
    /// The records as they are now; empty when the configuration is as it was, which takes no
    /// revision.
    pub records: Vec<RecordChange>,
    pub action: &'static str,
    pub(super) subject: Subject,
    /// Digest of the object as it is now, where the records do not tell.
    pub(super) after: Option<Bytes32>,
    /// What else was done, each to another object.
    pub(super) further: Vec<FurtherEvent>,
    /// The site of the actor, where only the transaction knew.
    pub(super) actor_site: Option<String>,
    pub warnings: Vec<Warning>,
}

/// What a change did to an object beside the one that it was asked for.
#[derive(Debug)]
pub(super) struct FurtherEvent {
    pub(super) action: &'static str,
    pub(super) subject: Subject,
    /// Digest of the object as it is now.
    pub(super) after: Option<Bytes32>,
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
        subject,
        after,
        further,
        actor_site,
        warnings: _,
    } = record;
    let after = match (after, &records[..]) {
        (None, []) => None,
        (None, records) if records.iter().any(is_removal) => None,
        (None, records) => Some(digest(records)?),
        (after, _) => after,
    };
    let actor_site = actor_site.as_deref().or(actor.site.as_deref());
    let changes = text(&subject.changes)?;
    let content = content(actor, actor_site, action, &subject, &changes, after).digest();
    let is_configuration = !records.is_empty();
    let taken = sqlx::query!(
        r#"WITH taken AS (
               UPDATE mesh SET
                   revision = revision + $1,
                   event_number = event_number + 1,
                   event_hash = sha256($2 || event_hash || int8send(event_number + 1)
                       || int8send((extract(epoch FROM statement_timestamp()) * 1000000)::bigint)
                       || int8send((revision + 1) * $1) || coalesce(found.after, $3) || $4)
               FROM (SELECT (SELECT after FROM events WHERE object = $5
                   ORDER BY number DESC LIMIT 1) AS after) AS found
               RETURNING epoch, revision, event_number, event_hash, found.after AS before),
           change AS (INSERT INTO changes (revision, epoch, changes)
               SELECT revision, epoch, $6 FROM taken WHERE $1 = 1),
           event AS (
               INSERT INTO events (number, hash, at, actor, actor_name, actor_site, action, object,
                   object_name, object_site, changes, revision, request_id, before, after)
               SELECT event_number, event_hash, statement_timestamp(), $7, $8, $9, $10, $5, $11,
                   $12, $13::text::json, nullif(revision * $1, 0), $14, before, $15 FROM taken)
           SELECT epoch, revision, event_number AS number, event_hash AS "hash: Bytes32",
               statement_timestamp() AS "at!", pg_notify($16, revision::text) AS "sent: ()"
           FROM taken"#,
        i64::from(is_configuration),
        audit::CONTEXT,
        audit::ABSENT,
        content.as_bytes(),
        subject.id,
        Json(records) as _,
        actor.id,
        actor.name,
        actor_site,
        action,
        subject.name,
        subject.site,
        changes,
        actor.request_id,
        after.as_ref().map(|digest| digest.as_bytes().as_slice()),
        channel
    )
    .fetch_one(&mut **transaction)
    .await?;
    let revision = is_configuration.then_some(taken.revision);
    if !further.is_empty() {
        let place = Place {
            head: Head {
                number: taken.number,
                hash: taken.hash,
            },
            at: taken.at,
            revision,
        };
        write_further(transaction, actor, actor_site, place, further).await?;
    }
    Ok(revision.map(|revision| Position {
        epoch: taken.epoch,
        revision,
    }))
}

/// Where in the chain the first event of a change is.
struct Place {
    head: Head,
    at: DateTime<Utc>,
    revision: Option<i64>,
}

/// Writes the other events of a change. They have its time and its revision.
async fn write_further(
    transaction: &mut Transaction<'_, Postgres>,
    actor: &AuditActor,
    actor_site: Option<&str>,
    place: Place,
    further: Vec<FurtherEvent>,
) -> Result<()> {
    let objects: Vec<_> = further
        .iter()
        .map(|event| event.subject.id.clone())
        .collect();
    let found = sqlx::query!(
        r#"SELECT object AS "object!", (SELECT after FROM events WHERE events.object = given.object
               ORDER BY number DESC LIMIT 1) AS "after: Bytes32"
           FROM unnest($1::text[]) AS given (object)"#,
        &objects
    );
    let found = found.fetch_all(&mut **transaction).await?.into_iter();
    let mut left: BTreeMap<_, _> = found.map(|row| (row.object, row.after)).collect();
    let mut head = place.head;
    let mut rows = Rows::default();
    for event in further {
        let FurtherEvent {
            action,
            subject,
            after,
        } = event;
        let changes = text(&subject.changes)?;
        let before = left.insert(subject.id.clone(), after).flatten();
        head = head.then(&Entry {
            at: place.at,
            revision: place.revision,
            before,
            content: content(actor, actor_site, action, &subject, &changes, after),
        });
        rows.numbers.push(head.number);
        rows.hashes.push(head.hash.as_bytes().to_vec());
        rows.actions.push(action.to_owned());
        rows.objects.push(subject.id);
        rows.names.push(subject.name);
        rows.sites.push(subject.site);
        rows.changes.push(changes);
        rows.befores
            .push(before.map(|digest| digest.as_bytes().to_vec()));
        rows.afters
            .push(after.map(|digest| digest.as_bytes().to_vec()));
    }
    sqlx::query!(
        "WITH moved AS (UPDATE mesh SET event_number = $1, event_hash = $2)
         INSERT INTO events (number, hash, action, object, object_name, object_site, changes,
             before, after, at, actor, actor_name, actor_site, revision, request_id)
         SELECT number, hash, action, object, name, site, changes::json, before, after,
             $12::timestamptz, $13::text, $14::text, $15::text, $16::bigint, $17::text
         FROM unnest($3::bigint[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::text[],
             $9::text[], $10::bytea[], $11::bytea[])
             AS given (number, hash, action, object, name, site, changes, before, after)",
        head.number,
        head.hash.as_bytes().as_slice(),
        &rows.numbers,
        &rows.hashes,
        &rows.actions,
        &rows.objects,
        &rows.names,
        &rows.sites as _,
        &rows.changes,
        &rows.befores as _,
        &rows.afters as _,
        place.at,
        actor.id,
        actor.name,
        actor_site,
        place.revision,
        actor.request_id
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Events, a column each.
#[derive(Default)]
struct Rows {
    numbers: Vec<i64>,
    hashes: Vec<Vec<u8>>,
    actions: Vec<String>,
    objects: Vec<String>,
    names: Vec<String>,
    sites: Vec<Option<String>>,
    changes: Vec<String>,
    befores: Vec<Option<Vec<u8>>>,
    afters: Vec<Option<Vec<u8>>>,
}

fn content<'e>(
    actor: &'e AuditActor,
    actor_site: Option<&'e str>,
    action: &'e str,
    subject: &'e Subject,
    changes: &'e str,
    after: Option<Bytes32>,
) -> Content<'e> {
    Content {
        actor: &actor.id,
        actor_name: &actor.name,
        actor_site,
        action,
        object: &subject.id,
        object_name: &subject.name,
        object_site: subject.site.as_deref(),
        changes,
        request_id: actor.request_id.as_deref(),
        after,
    }
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
    Ok(audit::digest(text(object)?.as_bytes()))
}

fn text(object: &(impl Serialize + ?Sized)) -> Result<String> {
    Ok(serde_json::to_string(object).context("an object cannot be written")?)
}
