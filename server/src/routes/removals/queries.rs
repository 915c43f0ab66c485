//! SQL of removals.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_wire::{
    admin::RemovedNode,
    ids::NodeId,
    key::{IdentityKey, Signature},
    lock::{Removal, SignedAdmission, SignedRemoval},
    name::Name,
};

use crate::error::Result;

/// Nodes that are out of the mesh, in the order of their ids, after one if that is given.
pub async fn list(
    connection: &mut PgConnection,
    after: Option<NodeId>,
    limit: usize,
) -> Result<Vec<RemovedNode>> {
    let rows = sqlx::query!(
        r#"SELECT coalesce(revoked.id, removals.node) AS "id!", revoked.name AS "name?: Name",
                  sites.name AS "site_name?: Name", identity_key AS "identity_key?: IdentityKey",
                  revoked_at AS "revoked_at?", admission AS "admission?",
                  admission_signature AS "admission_signature?: Signature", removal AS "removal?",
                  signature AS "signature?: Signature"
           FROM (SELECT * FROM nodes WHERE state = 'revoked') AS revoked
           LEFT JOIN sites ON sites.id = revoked.site
           FULL JOIN removals ON removals.node = revoked.id
           WHERE $1::uuid IS NULL OR coalesce(revoked.id, removals.node) > $1
           ORDER BY 1 LIMIT $2"#,
        after.map(|node| node.0),
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    let invalid = "a removed node in the database is not valid";
    let rows = rows.fetch_all(connection).await?.into_iter();
    rows.map(|row| {
        let admission = row.admission.zip(row.admission_signature);
        let removal = row.removal.zip(row.signature);
        let removal = removal.map(|(removal, signature)| SignedRemoval { removal, signature });
        // Of a node that the database has lost, the operator's word has it.
        let signed_identity = || {
            let removal = &removal.as_ref()?.removal;
            let removal: Removal = serde_json::from_str(removal).ok()?;
            Some(removal.identity)
        };
        Ok(RemovedNode {
            id: NodeId(row.id),
            name: row.name,
            site_name: row.site_name,
            identity_key: row.identity_key.or_else(signed_identity).context(invalid)?,
            removed_at: row.revoked_at,
            admission: admission.map(|(admission, signature)| SignedAdmission {
                admission,
                signature,
            }),
            removal,
        })
    })
    .collect()
}

/// What is known of a node that is said to be out of the mesh.
#[derive(Debug)]
pub struct GoneNode {
    pub takes_part: bool,
    pub name: Name,
    /// The one that the database has, or those by which hosts have it that hold it.
    pub identities: BTreeSet<IdentityKey>,
}

/// What is known of nodes, of those that the database has lost by what hosts hold.
pub async fn find(
    connection: &mut PgConnection,
    nodes: &[NodeId],
) -> Result<BTreeMap<NodeId, GoneNode>> {
    let nodes: Vec<_> = nodes.iter().map(|node| node.0).collect();
    let stored = sqlx::query!(
        r#"SELECT id, name AS "name: Name", state <> 'revoked' AS "takes_part!",
                  identity_key AS "identity_key: IdentityKey"
           FROM nodes WHERE id = ANY($1) ORDER BY id FOR UPDATE"#,
        &nodes
    );
    let stored = stored.fetch_all(&mut *connection).await?.into_iter();
    let stored = stored.map(|row| {
        let node = GoneNode {
            takes_part: row.takes_part,
            name: row.name,
            identities: BTreeSet::from([row.identity_key]),
        };
        (NodeId(row.id), node)
    });
    let mut known: BTreeMap<_, _> = stored.collect();
    let lost: Vec<_> = nodes
        .into_iter()
        .filter(|node| !known.contains_key(&NodeId(*node)))
        .collect();
    if lost.is_empty() {
        return Ok(known);
    }
    let held = sqlx::query!(
        r#"SELECT DISTINCT (peer->>'node')::uuid AS "node!", peer->>'name' AS "name!: Name",
                  peer->>'identity' AS "identity!"
           FROM node_reports, jsonb_array_elements(held->'peers') AS peer
           WHERE (peer->>'node')::uuid = ANY($1)"#,
        &lost
    );
    for row in held.fetch_all(connection).await? {
        let identity = row.identity.parse();
        let identity = identity.context("a held peer in the database is not valid")?;
        let node = known.entry(NodeId(row.node)).or_insert_with(|| GoneNode {
            takes_part: false,
            name: row.name,
            identities: BTreeSet::new(),
        });
        node.identities.insert(identity);
    }
    Ok(known)
}

/// The removals that are stored of nodes.
pub async fn stored(
    connection: &mut PgConnection,
    nodes: &[NodeId],
) -> Result<BTreeMap<NodeId, String>> {
    let nodes: Vec<_> = nodes.iter().map(|node| node.0).collect();
    let rows = sqlx::query!(
        "SELECT node, removal FROM removals WHERE node = ANY($1) ORDER BY node FOR UPDATE",
        &nodes
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows.map(|row| (NodeId(row.node), row.removal)).collect())
}

/// Keeps operators' words for removed nodes.
pub async fn store(
    connection: &mut PgConnection,
    removals: &[(NodeId, &SignedRemoval)],
) -> Result<()> {
    let nodes: Vec<Uuid> = removals.iter().map(|(node, _)| node.0).collect();
    let texts: Vec<_> = removals
        .iter()
        .map(|(_, signed)| signed.removal.clone())
        .collect();
    let signatures: Vec<_> = removals
        .iter()
        .map(|(_, signed)| signed.signature.as_bytes().to_vec())
        .collect();
    sqlx::query!(
        "INSERT INTO removals (node, removal, signature)
         SELECT node, removal, signature
         FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS given (node, removal, signature)
         ORDER BY node
         ON CONFLICT (node) DO UPDATE SET removal = excluded.removal,
             signature = excluded.signature",
        &nodes,
        &texts,
        &signatures
    )
    .execute(connection)
    .await?;
    Ok(())
}
