//! SQL of the health of links.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::{health, reporting};
use wattle_wire::{
    ids::NodeId,
    report::{LinkReport, Start},
    rotation::Armed,
};

use crate::{error::Result, rotation};

/// Rows of one statement; it has to end within the database's limit of five seconds.
const MOST_ROWS: usize = 20_000;

/// When nodes were last heard of.
pub type Heard = BTreeMap<NodeId, DateTime<Utc>>;

/// What one end says of a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndState {
    pub peer: NodeId,
    pub up: bool,
    pub ever: bool,
}

impl EndState {
    pub fn of(said: &LinkReport) -> Self {
        Self { peer: said.peer, up: health::is_fresh(said.handshake_age_s), ever: said.handshake_age_s.is_some() }
    }
}

/// What nodes say that may be new.
#[derive(Debug, Default)]
pub struct News {
    /// By the node that says it and its peer.
    pub ends: BTreeMap<(NodeId, NodeId), EndState>,
    /// Nodes that were heard of, and the start of their agents.
    pub heard: BTreeMap<NodeId, Option<Start>>,
    /// Peers' announced keys for which nodes are ready.
    pub armed: BTreeSet<(NodeId, Armed)>,
}

impl News {
    /// Adds what was said later.
    pub fn extend(&mut self, later: Self) {
        self.ends.extend(later.ends);
        self.heard.extend(later.heard);
        self.armed.extend(later.armed);
    }
}

/// What one end of a link said last that was new.
#[derive(Clone, Copy, Debug)]
pub struct StoredEnd {
    pub up: bool,
    pub ever: bool,
    pub since: DateTime<Utc>,
}

/// A link as it is stored, the end with the lower id first.
#[derive(Clone, Copy, Debug)]
pub struct LinkRow {
    pub a: Option<StoredEnd>,
    pub b: Option<StoredEnd>,
}

/// Stores what nodes say of their links where it is new, and that they were heard of. Rows that are so already are not even locked.
///
/// Returns nodes that report from two machines.
///
/// The order of the rows is the same for all who write, so that none waits for another in a circle.
pub async fn store(connection: &mut PgConnection, news: &News) -> Result<Vec<NodeId>> {
    rotation::queries::arm(connection, news.armed.iter().copied()).await?;
    if news.ends.is_empty() && news.heard.is_empty() {
        return Ok(Vec::new());
    }
    let ends: Vec<_> = news.ends.iter().collect();
    for ends in ends.chunks(MOST_ROWS) {
        let (first, second): (Vec<_>, Vec<_>) = ends.iter().partition(|((node, peer), _)| node < peer);
        let (nodes, peers, ups, evers) = columns(&first);
        sqlx::query!(
            "INSERT INTO links AS stored (a, b, a_up, a_ever, a_since)
             SELECT a, b, up, ever, now()
             FROM unnest($1::uuid[], $2::uuid[], $3::boolean[], $4::boolean[]) AS said(a, b, up, ever)
             LEFT JOIN links AS known USING (a, b)
             WHERE (known.a_up IS DISTINCT FROM up OR ever AND NOT known.a_ever)
               AND NOT EXISTS (SELECT FROM nodes WHERE id IN (a, b) AND state = 'revoked')
             ORDER BY a, b
             ON CONFLICT (a, b) DO UPDATE SET a_up = excluded.a_up, a_ever = stored.a_ever OR excluded.a_ever, a_since = now()",
            &nodes,
            &peers,
            &ups,
            &evers
        )
        .execute(&mut *connection)
        .await?;
        let (nodes, peers, ups, evers) = columns(&second);
        sqlx::query!(
            "INSERT INTO links AS stored (a, b, b_up, b_ever, b_since)
             SELECT a, b, up, ever, now()
             FROM unnest($1::uuid[], $2::uuid[], $3::boolean[], $4::boolean[]) AS said(b, a, up, ever)
             LEFT JOIN links AS known USING (a, b)
             WHERE (known.b_up IS DISTINCT FROM up OR ever AND NOT known.b_ever)
               AND NOT EXISTS (SELECT FROM nodes WHERE id IN (a, b) AND state = 'revoked')
             ORDER BY a, b
             ON CONFLICT (a, b) DO UPDATE SET b_up = excluded.b_up, b_ever = stored.b_ever OR excluded.b_ever, b_since = now()",
            &nodes,
            &peers,
            &ups,
            &evers
        )
        .execute(&mut *connection)
        .await?;
    }
    hear(connection, &news.heard).await
}

/// Stores that nodes were heard of, and their newest start. Returns those that report from two machines.
async fn hear(connection: &mut PgConnection, heard: &BTreeMap<NodeId, Option<Start>>) -> Result<Vec<NodeId>> {
    let nodes: Vec<_> = heard.keys().map(|node| node.0).collect();
    let known = sqlx::query!(
        r#"SELECT node, start_number AS "number!", start_drawn AS "drawn!" FROM node_reports WHERE node = ANY($1) AND start_number IS NOT NULL"#,
        &nodes
    );
    let known = known.fetch_all(&mut *connection).await?.into_iter();
    let known: BTreeMap<_, _> = known.map(|row| (NodeId(row.node), Start { number: row.number, drawn: row.drawn })).collect();
    let copied = |node, said| known.get(&node).is_some_and(|known| reporting::is_of_a_copy(*known, said));
    let newest = heard.iter().map(|(node, said)| said.filter(|said| !copied(*node, *said)));
    let (numbers, drawn): (Vec<_>, Vec<_>) = newest.map(|start| (start.map(|start| start.number), start.map(|start| start.drawn))).unzip();
    sqlx::query!(
        "INSERT INTO node_reports AS stored (node, at, start_number, start_drawn)
         SELECT id, now(), number, drawn FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS said(id, number, drawn) JOIN nodes USING (id)
         WHERE state <> 'revoked' ORDER BY id
         ON CONFLICT (node) DO UPDATE SET at = excluded.at,
             start_number = coalesce(excluded.start_number, stored.start_number),
             start_drawn = coalesce(excluded.start_drawn, stored.start_drawn)",
        &nodes,
        &numbers as &[Option<i64>],
        &drawn as &[Option<i64>]
    )
    .execute(&mut *connection)
    .await?;
    Ok(heard.iter().filter(|(node, said)| said.is_some_and(|said| copied(**node, said))).map(|(node, _)| *node).collect())
}

/// The stored health of some links.
pub async fn of_pairs(connection: &mut PgConnection, pairs: &[(NodeId, NodeId)]) -> Result<BTreeMap<(NodeId, NodeId), LinkRow>> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = pairs.iter().map(|(a, b)| (a.0, b.0)).unzip();
    let rows = sqlx::query!(
        r#"SELECT a AS "a!", b AS "b!", a_up, a_ever AS "a_ever!", a_since, b_up, b_ever AS "b_ever!", b_since
           FROM links JOIN unnest($1::uuid[], $2::uuid[]) AS wanted(a, b) USING (a, b)"#,
        &first,
        &second
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows
        .map(|row| ((NodeId(row.a), NodeId(row.b)), link_row((row.a_up, row.a_ever, row.a_since), (row.b_up, row.b_ever, row.b_since))))
        .collect())
}

/// The stored health of the links of which an end said something new since a moment, of all links if none is given.
pub async fn changed_since(connection: &mut PgConnection, since: Option<DateTime<Utc>>) -> Result<Vec<((NodeId, NodeId), LinkRow)>> {
    let rows = sqlx::query!(
        r#"SELECT a AS "a!", b AS "b!", a_up, a_ever AS "a_ever!", a_since, b_up, b_ever AS "b_ever!", b_since
           FROM links WHERE $1::timestamptz IS NULL OR a_since >= $1 OR b_since >= $1"#,
        since
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows
        .map(|row| ((NodeId(row.a), NodeId(row.b)), link_row((row.a_up, row.a_ever, row.a_since), (row.b_up, row.b_ever, row.b_since))))
        .collect())
}

/// When each node was last heard of.
pub async fn all_heard(connection: &mut PgConnection) -> Result<Heard> {
    let rows = sqlx::query!("SELECT node, at FROM node_reports").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (NodeId(row.node), row.at)).collect())
}

/// When the nodes of some links were last heard of.
pub async fn heard(connection: &mut PgConnection, pairs: &[(NodeId, NodeId)]) -> Result<Heard> {
    let nodes: BTreeSet<_> = pairs.iter().flat_map(|(a, b)| [a.0, b.0]).collect();
    let nodes: Vec<_> = nodes.into_iter().collect();
    let rows = sqlx::query!("SELECT node, at FROM node_reports WHERE node = ANY($1)", &nodes).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (NodeId(row.node), row.at)).collect())
}

/// Whether an end is up, ever was, and since when it says so.
type EndColumns = (Option<bool>, bool, Option<DateTime<Utc>>);

fn link_row(a: EndColumns, b: EndColumns) -> LinkRow {
    let end = |(up, ever, since): EndColumns| Some(StoredEnd { up: up?, ever, since: since? });
    LinkRow { a: end(a), b: end(b) }
}

fn columns(ends: &[&(&(NodeId, NodeId), &EndState)]) -> (Vec<Uuid>, Vec<Uuid>, Vec<bool>, Vec<bool>) {
    let (nodes, peers) = ends.iter().map(|((node, peer), _)| (node.0, peer.0)).unzip();
    let (ups, evers) = ends.iter().map(|(_, state)| (state.up, state.ever)).unzip();
    (nodes, peers, ups, evers)
}
