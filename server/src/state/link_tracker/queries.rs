//! SQL of the health of links.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::health::{
    connection::Sign,
    link::{EndRecord, Heard, LinkRecord},
};
use wattle_wire::{
    admin::{LinkChange, LinkFault, LinkState},
    event_stream::LinkStatus,
    ids::{NodeId, Position},
    report::EndState,
};

use crate::error::Result;

/// Rows of one transaction. It ends soon: what nodes report is written over the same connection, and
/// waits for it no longer than a request would.
pub const MOST_ROWS: usize = 2_000;
/// Changes that are remembered of one link, and of all links together, of about 100 bytes each.
const MOST_ENTRIES: i64 = 500;
pub const MOST_ENTRIES_IN_ALL: i64 = 1_000_000;
/// Of these, what one statement drops; it has to end within the database's limit of five seconds.
const MOST_DROPPED: i64 = 100_000;

/// The stored health of some links.
pub async fn of_pairs(
    connection: &mut PgConnection,
    pairs: &[(NodeId, NodeId)],
) -> Result<BTreeMap<(NodeId, NodeId), LinkRecord>> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = pairs.iter().map(|(a, b)| (a.0, b.0)).unzip();
    let rows = sqlx::query_as!(
        LinkRow,
        r#"SELECT a AS "a!", b AS "b!", a_state AS "a_state: EndState",
                  a_probed AS "a_probed!", a_ever AS "a_ever!", a_since,
                  b_state AS "b_state: EndState", b_probed AS "b_probed!", b_ever AS "b_ever!",
                  b_since, written_at AS "written_at!", state AS "state: LinkState",
                  fault AS "fault: LinkFault"
           FROM links JOIN unnest($1::uuid[], $2::uuid[]) AS wanted(a, b) USING (a, b)"#,
        &first,
        &second
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.pair(), row.record()))
        .collect())
}

/// Links with what their ends say, and the moment up to which that is all.
#[derive(Debug)]
pub struct ChangedLinks {
    pub links: Vec<((NodeId, NodeId), LinkRecord)>,
    /// When the last of them was written.
    pub newest: Option<DateTime<Utc>>,
}

/// The stored health of the links of which an end said something new since a moment, of all links
/// if none is given.
pub async fn changed_since(
    connection: &mut PgConnection,
    since: Option<DateTime<Utc>>,
) -> Result<ChangedLinks> {
    let rows = sqlx::query_as!(
        LinkRow,
        r#"SELECT a, b, a_state AS "a_state: EndState", a_probed, a_ever, a_since,
                  b_state AS "b_state: EndState", b_probed, b_ever, b_since, written_at,
                  state AS "state: LinkState", fault AS "fault: LinkFault"
           FROM links WHERE written_at >= coalesce($1, '-infinity'::timestamptz)"#,
        since
    );
    let rows = rows.fetch_all(connection).await?;
    let newest = rows.iter().map(|row| row.written_at).max();
    let links = rows
        .into_iter()
        .map(|row| (row.pair(), row.record()))
        .collect();
    Ok(ChangedLinks { links, newest })
}

/// A link whose state is new in its history.
#[derive(Debug)]
pub struct RecordedLink {
    pub link: LinkStatus,
    /// What its history said before; absent for a link that is first heard of.
    pub before: Option<LinkState>,
}

/// Adds to the history of links how they are now, where it does not say so already. Returns those
/// that it was news of, with what it had said.
///
/// Several coordinators may come with the same; the first has the news.
pub async fn record(
    connection: &mut PgConnection,
    links: &[LinkStatus],
) -> Result<Vec<RecordedLink>> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = links
        .iter()
        .map(|link| (link.ends[0].0, link.ends[1].0))
        .unzip();
    let states: Vec<_> = links.iter().map(|link| link.state).collect();
    let faults: Vec<_> = links.iter().map(|link| link.fault).collect();
    let since: Vec<_> = links.iter().map(|link| link.since).collect();
    let rows = sqlx::query!(
        r#"WITH said AS (
               SELECT stored.a, stored.b, stored.state AS before, new.state, new.fault, coalesce(since, now()) AS since
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[]) AS new(a, b, state, fault, since)
               JOIN links AS stored USING (a, b)
               WHERE (stored.state, stored.fault) IS DISTINCT FROM (new.state, new.fault)
               ORDER BY a, b FOR UPDATE OF stored),
           marked AS (
               UPDATE links SET state = said.state, fault = said.fault, written_at = now() FROM said WHERE (links.a, links.b) = (said.a, said.b)),
           entered AS (
               -- Time may seem to stand still or to go back; what comes later stands later.
               INSERT INTO link_history (a, b, at, state, fault)
               SELECT a, b, greatest(since, (SELECT max(at) + interval '1 microsecond' FROM link_history AS old WHERE (old.a, old.b) = (said.a, said.b))),
                      state, fault FROM said)
           SELECT a, b, before AS "before: LinkState" FROM said"#,
        &first,
        &second,
        &states as _,
        &faults as _,
        &since as _
    )
    .fetch_all(&mut *connection)
    .await?;
    let by_ends: BTreeMap<_, _> = links.iter().map(|link| (link.ends, *link)).collect();
    let mut news = Vec::with_capacity(rows.len());
    for row in rows {
        let link = by_ends.get(&[NodeId(row.a), NodeId(row.b)]);
        news.extend(link.map(|link| RecordedLink {
            link: *link,
            before: row.before,
        }));
    }
    sqlx::query!(
        "DELETE FROM link_history USING unnest($1::uuid[], $2::uuid[]) AS grown(a, b)
         WHERE (link_history.a, link_history.b) = (grown.a, grown.b)
           AND at < (SELECT at FROM link_history AS old WHERE (old.a, old.b) = (grown.a, grown.b) \
           ORDER BY at DESC OFFSET $3 LIMIT 1)",
        &first,
        &second,
        MOST_ENTRIES - 1
    )
    .execute(connection)
    .await?;
    Ok(news)
}

/// Drops what is too old or too much of the history of links. Whether there is more to drop.
///
/// Of what is too much in all, the oldest of the node that has most goes: a link that comes and goes
/// costs others nothing.
pub async fn prune_history(connection: &mut PgConnection, most: i64) -> Result<bool> {
    let old = sqlx::query!(
        "DELETE FROM link_history WHERE ctid IN (
             SELECT ctid FROM link_history WHERE at < now() - interval '30 days' LIMIT $1)",
        MOST_DROPPED
    );
    let old = old.execute(&mut *connection).await?.rows_affected();
    if old.cast_signed() == MOST_DROPPED {
        return Ok(true);
    }
    let count = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM link_history"#);
    let surplus = count.fetch_one(&mut *connection).await? - most;
    if surplus <= 0 {
        return Ok(false);
    }
    let noisiest = sqlx::query_scalar!(
        r#"SELECT node AS "node!" FROM (
               SELECT a AS node FROM link_history UNION ALL SELECT b FROM link_history) AS ends
           GROUP BY node ORDER BY count(*) DESC, node LIMIT 1"#
    );
    let noisiest = noisiest.fetch_one(&mut *connection).await?;
    let dropped = sqlx::query!(
        "DELETE FROM link_history WHERE ctid IN (
             SELECT ctid FROM link_history WHERE $1 IN (a, b) ORDER BY at LIMIT $2)",
        noisiest,
        surplus.min(MOST_DROPPED)
    );
    let dropped = dropped.execute(connection).await?.rows_affected();
    Ok(dropped.cast_signed() < surplus)
}

/// Changes of a link's state, newest first, before a moment if one is given.
pub async fn history(
    connection: &mut PgConnection,
    (a, b): (NodeId, NodeId),
    before: Option<DateTime<Utc>>,
    limit: i64,
) -> Result<Vec<LinkChange>> {
    let changes = sqlx::query_as!(
        LinkChange,
        r#"SELECT at, state AS "state: LinkState", fault AS "fault: LinkFault" FROM link_history
           WHERE a = $1 AND b = $2 AND at < coalesce($3, 'infinity'::timestamptz)
           ORDER BY at DESC LIMIT $4"#,
        a.0,
        b.0,
        before,
        limit
    );
    Ok(changes.fetch_all(connection).await?)
}

/// The last sign of each node, and the position that its host had then. What a host has of another
/// epoch counts as nothing of this one.
pub async fn all_heard(
    connection: &mut PgConnection,
) -> Result<BTreeMap<NodeId, (Sign, Position)>> {
    let rows = sqlx::query!(
        "SELECT node, node_reports.at, node_reports.epoch, node_reports.revision,
             CASE WHEN node_reports.epoch = mesh.epoch
                 THEN (SELECT changes.at FROM changes WHERE changes.revision > \
         node_reports.revision ORDER BY changes.revision LIMIT 1)
                 ELSE (SELECT min(changes.at) FROM changes
                     WHERE changes.epoch = (SELECT epoch FROM mesh)) END AS missed_since
         FROM node_reports CROSS JOIN mesh"
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows
        .map(|row| {
            let sign = Sign {
                at: row.at,
                missed_since: row.missed_since,
            };
            let applied = Position {
                epoch: row.epoch,
                revision: row.revision,
            };
            (NodeId(row.node), (sign, applied))
        })
        .collect())
}

/// When the nodes of some links were last heard of.
pub async fn heard(connection: &mut PgConnection, pairs: &[(NodeId, NodeId)]) -> Result<Heard> {
    let nodes: BTreeSet<_> = pairs.iter().flat_map(|(a, b)| [a.0, b.0]).collect();
    let nodes: Vec<_> = nodes.into_iter().collect();
    let rows = sqlx::query!(
        "SELECT node, at FROM node_reports WHERE node = ANY($1)",
        &nodes
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (NodeId(row.node), row.at))
        .collect())
}

struct LinkRow {
    a: NodeId,
    b: NodeId,
    a_state: Option<EndState>,
    a_probed: bool,
    a_ever: bool,
    a_since: Option<DateTime<Utc>>,
    b_state: Option<EndState>,
    b_probed: bool,
    b_ever: bool,
    b_since: Option<DateTime<Utc>>,
    written_at: DateTime<Utc>,
    state: Option<LinkState>,
    fault: Option<LinkFault>,
}

impl LinkRow {
    fn pair(&self) -> (NodeId, NodeId) {
        (self.a, self.b)
    }

    fn record(self) -> LinkRecord {
        let end = |state: Option<_>, probed, ever, since: Option<_>| {
            let (state, since) = state.zip(since)?;
            Some(EndRecord {
                state,
                probed,
                ever,
                since,
            })
        };
        let a = end(self.a_state, self.a_probed, self.a_ever, self.a_since);
        let b = end(self.b_state, self.b_probed, self.b_ever, self.b_since);
        LinkRecord {
            ends: [a, b],
            recorded: self.state.map(|state| (state, self.fault)),
        }
    }
}
