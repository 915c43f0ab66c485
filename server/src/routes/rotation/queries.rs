//! SQL of changes of WireGuard keys.

use sqlx::PgConnection;
use wattle_mesh::{config::directory::NodeRecord, keys::enrolment};
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    ids::NodeId,
    key::{Signature, WireguardKey},
    rotation::{ReadyPeer, SignedAnnouncement},
};

use crate::{db::node_records, error::Result};

/// Asks a node for a new key. Whether it was not asked before.
pub(super) async fn request(connection: &mut PgConnection, node: NodeId) -> Result<bool> {
    let asked = sqlx::query!(
        "UPDATE nodes SET rotate_since = now() WHERE id = $1 AND rotate_since IS NULL AND state <> \
         'revoked'",
        node.0
    );
    Ok(asked.execute(connection).await?.rows_affected() == 1)
}

/// Whether a node has announced this key, a moment ago.
pub(super) async fn is_announced(
    connection: &mut PgConnection,
    node: NodeId,
    signed: &SignedAnnouncement,
) -> Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM nodes WHERE id = $1 AND announced = $2 AND announced_signature = $3 AND announced_at > now() - interval '1 minute'
           ) AS "found!""#,
        node.0,
        signed.announcement,
        signed.signature.as_bytes()
    );
    Ok(found.fetch_one(connection).await?)
}

/// The name of another node that is changing its key, or whose turn comes before this one's.
///
/// One that announced its key two minutes ago and did not change is not waited for: its own agent
/// gives up after half a minute, and changes only while the coordinator answers. Nor is one that has
/// not asked for ten seconds: agents ask every three.
pub(super) async fn under_way(
    connection: &mut PgConnection,
    node: NodeId,
) -> Result<Option<String>> {
    let name = sqlx::query_scalar!(
        "SELECT name FROM nodes WHERE id <> $1 AND state <> 'revoked' AND (
             announced_at > now() - interval '2 minutes'
             OR turn_asked_at > now() - interval '10 seconds' AND turn_since < coalesce(
                 (SELECT turn_since FROM nodes
                  WHERE id = $1 AND turn_asked_at > now() - interval '10 seconds'), now()))
         ORDER BY announced_at DESC NULLS LAST LIMIT 1",
        node.0
    );
    Ok(name.fetch_optional(connection).await?)
}

/// Notes that a node waits for its turn.
pub(super) async fn wait(connection: &mut PgConnection, node: NodeId) -> Result<()> {
    let waits = sqlx::query!(
        "UPDATE nodes SET turn_asked_at = now(),
             turn_since = CASE WHEN turn_asked_at > now() - interval '10 seconds'
                 THEN turn_since ELSE now() END
         WHERE id = $1",
        node.0
    );
    waits.execute(connection).await?;
    Ok(())
}

/// Whether a key is or was another node's, or is or was this node's already.
pub(super) async fn is_known_key(
    connection: &mut PgConnection,
    node: NodeId,
    key: WireguardKey,
) -> Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM nodes WHERE wireguard_key = $1 OR announced_key = $1 AND id <> $2)
               OR EXISTS (SELECT FROM former_keys WHERE wireguard_key = $1) AS "found!""#,
        key.as_bytes(),
        node.0
    );
    Ok(found.fetch_one(connection).await?)
}

/// How many keys of a node were given up within the last hour, taken up or not.
pub(super) async fn given_up_lately(connection: &mut PgConnection, node: NodeId) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM former_keys
           WHERE node = $1 AND since > now() - interval '1 hour'"#,
        node.0
    );
    Ok(count.fetch_one(connection).await?)
}

/// Keeps keys that a node does not have or announce any more.
async fn keep_former(
    connection: &mut PgConnection,
    node: NodeId,
    former: &[WireguardKey],
) -> Result<()> {
    let former: Vec<_> = former.iter().map(|key| key.as_bytes().to_vec()).collect();
    let kept = sqlx::query!(
        "INSERT INTO former_keys (wireguard_key, node) SELECT former, $2 FROM \
         unnest($1::bytea[]) AS former ON CONFLICT DO NOTHING",
        &former,
        node.0
    );
    kept.execute(connection).await?;
    Ok(())
}

pub(super) async fn announce(
    connection: &mut PgConnection,
    record: &NodeRecord,
    signed: &SignedAnnouncement,
    statement: &Statement,
) -> Result<Option<NodeRecord>> {
    let node = record.id;
    keep_former(connection, node, &withdrawn(record)).await?;
    sqlx::query!(
        "UPDATE nodes SET announced = $2, announced_signature = $3, announced_key = $4, \
         announced_at = now(), turn_since = NULL, turn_asked_at = NULL, highest_sequence = \
         greatest(highest_sequence, $5)
         WHERE id = $1 AND state <> 'revoked'",
        node.0,
        signed.announcement,
        signed.signature.as_bytes(),
        statement.wireguard_key.as_bytes(),
        statement.sequence.cast_signed()
    )
    .execute(&mut *connection)
    .await?;
    node_records::find(connection, node).await
}

/// Puts a statement in the place of the node's present one, be it of another WireGuard key or
/// another identity.
pub(crate) async fn take_up(
    connection: &mut PgConnection,
    record: &NodeRecord,
    signed: &SignedStatement,
    statement: &Statement,
) -> Result<Option<NodeRecord>> {
    let node = record.id;
    let mut former = withdrawn(record);
    former.push(record.wireguard_key);
    former.retain(|key| *key != statement.wireguard_key);
    keep_former(connection, node, &former).await?;
    sqlx::query!(
        "UPDATE nodes SET statement = $2, statement_signature = $3, wireguard_key = $4, \
         identity_key = $5, announced = NULL,
             announced_signature = NULL, announced_key = NULL, announced_at = NULL,
             highest_sequence = greatest(highest_sequence, $6),
             rotate_since = CASE WHEN wireguard_key = $4 THEN rotate_since END
         WHERE id = $1 AND state <> 'revoked'",
        node.0,
        signed.statement,
        signed.signature.as_bytes(),
        statement.wireguard_key.as_bytes(),
        statement.identity.as_bytes(),
        statement.sequence.cast_signed()
    )
    .execute(&mut *connection)
    .await?;
    disarm(connection, node).await?;
    node_records::find(connection, node).await
}

/// `None` when nothing was announced.
pub(super) async fn withdraw(
    connection: &mut PgConnection,
    record: &NodeRecord,
) -> Result<Option<NodeRecord>> {
    let node = record.id;
    keep_former(connection, node, &withdrawn(record)).await?;
    let withdrawn = sqlx::query!(
        "UPDATE nodes SET announced = NULL, announced_signature = NULL, announced_key = NULL, \
         announced_at = NULL
         WHERE id = $1 AND announced IS NOT NULL AND state <> 'revoked'",
        node.0
    );
    if withdrawn.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(None);
    }
    disarm(connection, node).await?;
    node_records::find(connection, node).await
}

/// The peers that say they are ready for what a node announced, in order.
pub(super) async fn ready(
    connection: &mut PgConnection,
    node: NodeId,
    sequence: u64,
) -> Result<Vec<ReadyPeer>> {
    let ready = sqlx::query!(
        r#"SELECT peer, signature AS "signature: Signature"
           FROM armed_peers WHERE node = $1 AND sequence = $2 ORDER BY peer"#,
        node.0,
        sequence.cast_signed()
    );
    let ready = ready.fetch_all(connection).await?.into_iter();
    Ok(ready
        .map(|row| ReadyPeer {
            node: NodeId(row.peer),
            signature: row.signature,
        })
        .collect())
}

/// The key that a node has announced.
fn withdrawn(record: &NodeRecord) -> Vec<WireguardKey> {
    let announced = record
        .announced
        .as_ref()
        .and_then(|announced| enrolment::announced(&announced.announcement));
    announced
        .map(|announced| announced.wireguard_key)
        .into_iter()
        .collect()
}

async fn disarm(connection: &mut PgConnection, node: NodeId) -> Result<()> {
    sqlx::query!("DELETE FROM armed_peers WHERE node = $1", node.0)
        .execute(connection)
        .await?;
    Ok(())
}
