//! SQL of what nodes report.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use chrono::Utc;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;
use wattle_mesh::{
    agent::reporting,
    health::{lan, link},
};
use wattle_wire::{
    admin::NodeProblem,
    ids::{NodeId, Position},
    key::Signature,
    report::{EndState, Held, LinkReport, Start},
};

use super::Account;
use crate::{db::webhook_news, error::Result};

/// Rows of one statement; it has to end within the database's limit of five seconds.
const MOST_ROWS: usize = 20_000;

/// What one end says of a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndSaid {
    pub peer: NodeId,
    pub state: EndState,
    pub probed: bool,
    pub ever: bool,
}

impl EndSaid {
    pub(super) fn of(said: &LinkReport) -> Self {
        let ever = said.handshake_age_s.is_some() || said.probe.is_some();
        Self {
            peer: said.peer,
            state: link::end_state(said),
            probed: said.probe.is_some(),
            ever,
        }
    }
}

/// What nodes say that may be new.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// The number of the last report of each node that has news; absent of those that number none.
    pub numbers: BTreeMap<NodeId, Option<i64>>,
    /// By the node that says it and its peer.
    pub ends: BTreeMap<(NodeId, NodeId), EndSaid>,
    /// Nodes that were heard of.
    pub heard: BTreeMap<NodeId, Heard>,
    /// Peers' announced keys for which nodes are ready, by the node, its peer and the number.
    pub armed: BTreeMap<(NodeId, NodeId, u64), Signature>,
}

/// What is stored of a node that was heard of.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// The start of its agent.
    pub start: Option<Start>,
    /// What its host has.
    pub applied: Position,
    pub account: Account,
}

impl News {
    /// Adds what was said later.
    pub(super) fn extend(&mut self, later: Self) {
        self.numbers.extend(later.numbers);
        self.ends.extend(later.ends);
        self.heard.extend(later.heard);
        self.armed.extend(later.armed);
    }

    /// The same without what some nodes say.
    fn without(&self, late: &BTreeMap<NodeId, i64>) -> Cow<'_, Self> {
        if late.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut rest = self.clone();
        rest.ends.retain(|(node, _), _| !late.contains_key(node));
        rest.heard.retain(|node, _| !late.contains_key(node));
        rest.armed.retain(|(node, ..), _| !late.contains_key(node));
        Cow::Owned(rest)
    }
}

/// What came of what nodes say.
#[derive(Debug)]
pub(super) struct StoredNews {
    /// Nodes that report from two machines.
    pub copied: Vec<NodeId>,
    /// Nodes of which a newer report was stored already, with its number: nothing of what they say
    /// was stored.
    pub late: BTreeMap<NodeId, i64>,
}

/// Stores what nodes say of their links where it is new, and that they were heard of. Rows that are
/// so already are not even locked.
///
/// The order of the rows is the same for all who write, so that none waits for another in a circle.
/// The rows of the numbers are first: who has a node's row is the only one to write what it says.
pub(super) async fn store(connection: &mut PgConnection, news: &News) -> Result<StoredNews> {
    let late = number(connection, &news.numbers).await?;
    let news = news.without(&late);
    arm(connection, &news.armed).await?;
    store_ends(connection, &news).await?;
    let copied = hear(connection, &news.heard).await?;
    Ok(StoredNews { copied, late })
}

/// Notes the numbers of reports. Returns the nodes of which a newer one is known, with its number.
async fn number(
    connection: &mut PgConnection,
    numbers: &BTreeMap<NodeId, Option<i64>>,
) -> Result<BTreeMap<NodeId, i64>> {
    let nodes: Vec<_> = numbers.keys().map(|node| node.0).collect();
    if nodes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let said: Vec<_> = numbers.values().copied().collect();
    let highest = reporting::highest_number(Utc::now().timestamp_millis());
    let mut known = known_numbers(connection, &nodes, highest).await?;
    let noted = sqlx::query_scalar!(
        "INSERT INTO report_numbers AS known (node, number)
         SELECT id, said.number FROM unnest($1::uuid[], $2::bigint[]) AS said(id, number)
         JOIN nodes USING (id)
         WHERE said.number IS NOT NULL AND state <> 'revoked' ORDER BY id
         ON CONFLICT (node) DO UPDATE SET number = excluded.number
         WHERE known.number < excluded.number OR known.number > $3
         RETURNING node",
        &nodes,
        &said as &[Option<i64>],
        highest
    );
    let noted: BTreeSet<_> = noted
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .collect();
    // A node's first number may have come from another coordinator in between.
    let unseen = numbers.iter().filter_map(|(node, number)| {
        number.filter(|_| !noted.contains(&node.0) && !known.contains_key(&node.0))?;
        Some(node.0)
    });
    let unseen: Vec<_> = unseen.collect();
    if !unseen.is_empty() {
        known.extend(known_numbers(connection, &unseen, highest).await?);
    }
    let late = known.into_iter().filter(|(node, _)| !noted.contains(node));
    Ok(late.map(|(node, number)| (NodeId(node), number)).collect())
}

/// The numbers of some nodes that are known, up to a highest. Nobody else changes them until the
/// transaction ends.
async fn known_numbers(
    connection: &mut PgConnection,
    nodes: &[Uuid],
    highest: i64,
) -> Result<BTreeMap<Uuid, i64>> {
    let known = sqlx::query!(
        "SELECT node, number FROM report_numbers
         WHERE node = ANY($1) AND number <= $2 ORDER BY node FOR UPDATE",
        nodes,
        highest
    );
    let known = known.fetch_all(connection).await?.into_iter();
    Ok(known.map(|row| (row.node, row.number)).collect())
}

async fn store_ends(connection: &mut PgConnection, news: &News) -> Result<()> {
    let ends: Vec<_> = news.ends.iter().collect();
    for ends in ends.chunks(MOST_ROWS) {
        let (first, second): (Vec<_>, Vec<_>) =
            ends.iter().partition(|((node, peer), _)| node < peer);
        let columns = EndColumns::of(&first);
        sqlx::query!(
            "INSERT INTO links AS stored (a, b, a_state, a_probed, a_ever, a_since)
             SELECT a, b, said.state, probed, ever, now()
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::boolean[], $5::boolean[]) AS \
             said(a, b, state, probed, ever)
             LEFT JOIN links AS known USING (a, b)
             WHERE (known.a_state IS DISTINCT FROM said.state OR known.a_probed <> probed OR ever \
             AND NOT known.a_ever)
               AND NOT EXISTS (SELECT FROM nodes WHERE id IN (a, b) AND nodes.state = 'revoked')
             ORDER BY a, b
             ON CONFLICT (a, b) DO UPDATE SET
                a_state = excluded.a_state, a_probed = excluded.a_probed, a_ever = stored.a_ever \
                OR excluded.a_ever,
                a_since = CASE WHEN stored.a_state = excluded.a_state THEN stored.a_since ELSE \
                now() END, written_at = now()",
            &columns.nodes,
            &columns.peers,
            &columns.states as _,
            &columns.probed,
            &columns.ever
        )
        .execute(&mut *connection)
        .await?;
        let columns = EndColumns::of(&second);
        sqlx::query!(
            "INSERT INTO links AS stored (a, b, b_state, b_probed, b_ever, b_since)
             SELECT a, b, said.state, probed, ever, now()
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::boolean[], $5::boolean[]) AS \
             said(b, a, state, probed, ever)
             LEFT JOIN links AS known USING (a, b)
             WHERE (known.b_state IS DISTINCT FROM said.state OR known.b_probed <> probed OR ever \
             AND NOT known.b_ever)
               AND NOT EXISTS (SELECT FROM nodes WHERE id IN (a, b) AND nodes.state = 'revoked')
             ORDER BY a, b
             ON CONFLICT (a, b) DO UPDATE SET
                b_state = excluded.b_state, b_probed = excluded.b_probed, b_ever = stored.b_ever \
                OR excluded.b_ever,
                b_since = CASE WHEN stored.b_state = excluded.b_state THEN stored.b_since ELSE \
                now() END, written_at = now()",
            &columns.nodes,
            &columns.peers,
            &columns.states as _,
            &columns.probed,
            &columns.ever
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Stores that nodes were heard of, their newest start and what they hold. Returns those that
/// report from two machines.
async fn hear(
    connection: &mut PgConnection,
    heard: &BTreeMap<NodeId, Heard>,
) -> Result<Vec<NodeId>> {
    if heard.is_empty() {
        return Ok(Vec::new());
    }
    let nodes: Vec<_> = heard.keys().map(|node| node.0).collect();
    let known = sqlx::query!(
        r#"SELECT node, start_number AS "number!", start_drawn AS "drawn!" FROM node_reports WHERE node = ANY($1) AND start_number IS NOT NULL"#,
        &nodes
    );
    let known = known.fetch_all(&mut *connection).await?.into_iter();
    let known: BTreeMap<_, _> = known
        .map(|row| {
            (
                NodeId(row.node),
                Start {
                    number: row.number,
                    drawn: row.drawn,
                },
            )
        })
        .collect();
    let copied = |node, said| {
        known
            .get(&node)
            .is_some_and(|known| reporting::is_of_a_copy(*known, said))
    };
    let newest = heard
        .iter()
        .map(|(node, heard)| heard.start.filter(|said| !copied(*node, *said)));
    let (numbers, drawn): (Vec<_>, Vec<_>) = newest
        .map(|start| {
            (
                start.map(|start| start.number),
                start.map(|start| start.drawn),
            )
        })
        .unzip();
    let held: Vec<_> = heard
        .values()
        .map(|heard| heard.account.held.as_ref().map(Json))
        .collect();
    let returned: Vec<_> = heard
        .values()
        .map(|heard| Json(&heard.account.returned))
        .collect();
    let locked: Vec<_> = heard.values().map(|heard| heard.account.locked).collect();
    let problems: Vec<_> = heard
        .values()
        .map(|heard| Json(&heard.account.problems))
        .collect();
    let (epochs, revisions): (Vec<_>, Vec<_>) = heard
        .values()
        .map(|heard| (heard.applied.epoch, heard.applied.revision))
        .unzip();
    sqlx::query!(
        "INSERT INTO node_reports AS stored
             (node, at, start_number, start_drawn, held, problems, epoch, revision, locked,
             returned)
         SELECT id, now(), number, drawn, said.held, said.problems, said.epoch, said.revision,
             said.locked, said.returned
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::jsonb[], $5::jsonb[], \
         $6::bigint[], $7::bigint[], $8::boolean[], $9::jsonb[]) \
             AS said(id, number, drawn, held, problems, epoch, revision, locked, returned) \
         JOIN nodes USING (id)
         WHERE state <> 'revoked' ORDER BY id
         ON CONFLICT (node) DO UPDATE SET at = excluded.at, held = excluded.held,
             problems = excluded.problems, locked = excluded.locked,
             returned = excluded.returned,
             epoch = excluded.epoch, revision = excluded.revision,
             start_number = coalesce(excluded.start_number, stored.start_number),
             start_drawn = coalesce(excluded.start_drawn, stored.start_drawn)",
        &nodes,
        &numbers as &[Option<i64>],
        &drawn as &[Option<i64>],
        &held as &[Option<Json<&Held>>],
        &problems as &[Json<&Vec<NodeProblem>>],
        &epochs,
        &revisions,
        &locked,
        &returned as &[Json<&BTreeSet<NodeId>>]
    )
    .execute(&mut *connection)
    .await?;
    let degraded: Vec<_> = heard
        .values()
        .map(|heard| {
            let problems = heard.account.problems.iter();
            lan::are_degraded(problems.map(|known| &known.problem))
        })
        .collect();
    webhook_news::note_lans(connection, &nodes, &degraded).await?;
    Ok(heard
        .iter()
        .filter(|(node, heard)| heard.start.is_some_and(|said| copied(**node, said)))
        .map(|(node, _)| *node)
        .collect())
}

/// What nodes last said of themselves, of those that have something to tell.
pub(super) async fn accounts(connection: &mut PgConnection) -> Result<BTreeMap<NodeId, Account>> {
    let rows = sqlx::query!(
        r#"SELECT node, held AS "held: Json<Held>", locked,
                  returned AS "returned!: Json<BTreeSet<NodeId>>",
                  problems AS "problems!: Json<Vec<NodeProblem>>"
           FROM node_reports WHERE held IS NOT NULL OR locked OR returned <> '[]' OR problems <> '[]'"#
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let accounts = rows.map(|row| {
        let account = Account {
            held: row.held.map(|held| held.0),
            locked: row.locked,
            returned: row.returned.0,
            problems: row.problems.0,
        };
        (NodeId(row.node), account)
    });
    Ok(accounts.collect())
}

/// Notes which announced keys peers are ready for.
async fn arm(
    connection: &mut PgConnection,
    armed: &BTreeMap<(NodeId, NodeId, u64), Signature>,
) -> Result<()> {
    if armed.is_empty() {
        return Ok(());
    }
    let keys = armed.keys();
    let (peers, nodes): (Vec<_>, Vec<_>) = keys.map(|(peer, node, _)| (peer.0, node.0)).unzip();
    let sequences: Vec<_> = armed.keys().map(|key| key.2.cast_signed()).collect();
    let signatures: Vec<_> = armed
        .values()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    sqlx::query!(
        "INSERT INTO armed_peers AS stored (node, sequence, peer, signature)
         SELECT node, sequence, peer, signature
         FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bytea[]) AS \
         said(node, sequence, peer, signature)
         WHERE NOT EXISTS (SELECT FROM nodes WHERE id IN (node, peer) AND state = 'revoked')
         ORDER BY node, sequence, peer
         ON CONFLICT (node, sequence, peer) DO UPDATE SET signature = excluded.signature
         WHERE stored.signature <> excluded.signature",
        &nodes,
        &sequences,
        &peers,
        &signatures
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Ends of links, in a column for each thing that is said of them.
#[derive(Default)]
struct EndColumns {
    nodes: Vec<Uuid>,
    peers: Vec<Uuid>,
    states: Vec<EndState>,
    probed: Vec<bool>,
    ever: Vec<bool>,
}

impl EndColumns {
    fn of(ends: &[&(&(NodeId, NodeId), &EndSaid)]) -> Self {
        let mut columns = Self::default();
        for ((node, peer), said) in ends {
            columns.nodes.push(node.0);
            columns.peers.push(peer.0);
            columns.states.push(said.state);
            columns.probed.push(said.probed);
            columns.ever.push(said.ever);
        }
        columns
    }
}
