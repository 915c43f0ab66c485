//! SQL of the health of links.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;
use wattle_wire::ids::NodeId;

use crate::error::Result;

/// When nodes were last heard of.
pub type Heard = BTreeMap<NodeId, DateTime<Utc>>;

/// What one end says of a link now.
#[derive(Clone, Copy, Debug)]
pub struct EndState {
    pub peer: NodeId,
    pub up: bool,
    pub ever: bool,
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

/// Stores what a node says of its links where it is new, and, once a minute, that it was heard of.
pub async fn store(pool: &PgPool, node: NodeId, states: &[EndState]) -> Result<()> {
    let (lower, higher): (Vec<EndState>, Vec<EndState>) = states.iter().partition(|state| state.peer < node);
    let mut connection = pool.acquire().await?;
    let (peers, ups, evers) = columns(&higher);
    sqlx::query!(
        "INSERT INTO links AS stored (a, b, a_up, a_ever, a_since)
         SELECT $1, said.peer, said.up, said.ever, now() FROM unnest($2::uuid[], $3::boolean[], $4::boolean[]) AS said(peer, up, ever)
         ON CONFLICT (a, b) DO UPDATE SET a_up = excluded.a_up, a_ever = stored.a_ever OR excluded.a_ever, a_since = now()
         WHERE stored.a_up IS DISTINCT FROM excluded.a_up OR excluded.a_ever AND NOT stored.a_ever",
        node.0,
        &peers,
        &ups,
        &evers
    )
    .execute(&mut *connection)
    .await?;
    let (peers, ups, evers) = columns(&lower);
    sqlx::query!(
        "INSERT INTO links AS stored (a, b, b_up, b_ever, b_since)
         SELECT said.peer, $1, said.up, said.ever, now() FROM unnest($2::uuid[], $3::boolean[], $4::boolean[]) AS said(peer, up, ever)
         ON CONFLICT (a, b) DO UPDATE SET b_up = excluded.b_up, b_ever = stored.b_ever OR excluded.b_ever, b_since = now()
         WHERE stored.b_up IS DISTINCT FROM excluded.b_up OR excluded.b_ever AND NOT stored.b_ever",
        node.0,
        &peers,
        &ups,
        &evers
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO node_reports AS stored (node, at) VALUES ($1, now())
         ON CONFLICT (node) DO UPDATE SET at = excluded.at WHERE stored.at < excluded.at - interval '50 seconds'",
        node.0
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// The stored health of some links.
pub async fn of_pairs(pool: &PgPool, pairs: &[(NodeId, NodeId)]) -> Result<BTreeMap<(NodeId, NodeId), LinkRow>> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = pairs.iter().map(|(a, b)| (a.0, b.0)).unzip();
    let rows = sqlx::query!(
        r#"SELECT a AS "a!", b AS "b!", a_up, a_ever AS "a_ever!", a_since, b_up, b_ever AS "b_ever!", b_since
           FROM links JOIN unnest($1::uuid[], $2::uuid[]) AS wanted(a, b) USING (a, b)"#,
        &first,
        &second
    );
    let end = |up: Option<bool>, ever, since: Option<_>| Some(StoredEnd { up: up?, ever, since: since? });
    let rows = rows.fetch_all(pool).await?.into_iter().map(|row| {
        let link = LinkRow { a: end(row.a_up, row.a_ever, row.a_since), b: end(row.b_up, row.b_ever, row.b_since) };
        ((NodeId(row.a), NodeId(row.b)), link)
    });
    Ok(rows.collect())
}

/// When the nodes of some links were last heard of.
pub async fn heard(pool: &PgPool, pairs: &[(NodeId, NodeId)]) -> Result<Heard> {
    let nodes: BTreeSet<_> = pairs.iter().flat_map(|(a, b)| [a.0, b.0]).collect();
    let nodes: Vec<_> = nodes.into_iter().collect();
    let rows = sqlx::query!("SELECT node, at FROM node_reports WHERE node = ANY($1)", &nodes).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|row| (NodeId(row.node), row.at)).collect())
}

fn columns(states: &[EndState]) -> (Vec<Uuid>, Vec<bool>, Vec<bool>) {
    let peers = states.iter().map(|state| state.peer.0).collect();
    (peers, states.iter().map(|state| state.up).collect(), states.iter().map(|state| state.ever).collect())
}
