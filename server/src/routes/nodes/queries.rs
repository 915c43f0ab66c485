//! SQL of nodes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::config::{
    directory::{Announced, NodeRecord, Unmanaged},
    endpoint_check::Trial,
};
use wattle_wire::{
    admin::{NodeState, SiteNode},
    enrol::SignedStatement,
    ids::{NodeId, SiteId},
    key::{Bytes32, IdentityKey, Signature, WireguardKey},
    lock::SignedAdmission,
    webhook::NodeChange,
};

use crate::{
    error::{Error, Result},
    routes::{
        sites::queries::{endpoint, v4},
        webhooks,
    },
};

struct NodeRow {
    id: Uuid,
    site: Uuid,
    name: String,
    state: String,
    tunnel_address: IpNet,
    identity_key: Vec<u8>,
    wireguard_key: Vec<u8>,
    statement: String,
    statement_signature: Vec<u8>,
    announced: Option<String>,
    announced_signature: Option<Vec<u8>>,
    announced_at: Option<DateTime<Utc>>,
    rotate_since: Option<DateTime<Utc>>,
    admission: Option<String>,
    admission_signature: Option<Vec<u8>>,
    endpoint_address: Option<IpNet>,
    endpoint_port: Option<i32>,
    endpoint_verified: bool,
    endpoint_tried_by: Option<Uuid>,
    endpoint_tried_at: Option<DateTime<Utc>>,
    endpoint_tries: i32,
    agent_version: Option<String>,
    file_made_at: Option<DateTime<Utc>>,
    file_digest: Option<Vec<u8>>,
    generation: i32,
    enrolled_at: DateTime<Utc>,
}

/// All nodes that take part.
pub async fn all(connection: &mut PgConnection) -> Result<Vec<NodeRecord>> {
    select(connection, None, None).await
}

pub async fn find(connection: &mut PgConnection, node: NodeId) -> Result<Option<NodeRecord>> {
    Ok(select(connection, Some(node), None).await?.pop())
}

/// The nodes of a site that take part, as the site lists them.
pub async fn of_site(connection: &mut PgConnection, site: SiteId) -> Result<Vec<SiteNode>> {
    let mut nodes = select(connection, None, Some(site)).await?;
    nodes.sort_by_key(|node| node.id);
    Ok(nodes
        .into_iter()
        .map(|node| SiteNode {
            id: node.id,
            name: node.name,
            state: node.state,
        })
        .collect())
}

async fn select(
    connection: &mut PgConnection,
    node: Option<NodeId>,
    site: Option<SiteId>,
) -> Result<Vec<NodeRecord>> {
    let rows = sqlx::query_as!(
        NodeRow,
        r#"SELECT id, nodes.site AS "site!", name, state, tunnel_addresses.address AS tunnel_address, identity_key, wireguard_key, statement,
                  statement_signature, announced, announced_signature, announced_at, rotate_since, admission, admission_signature,
                  endpoint_address, endpoint_port, endpoint_verified, endpoint_tried_by, endpoint_tried_at, endpoint_tries, agent_version, file_made_at, file_digest,
                  generation, enrolled_at
           FROM nodes JOIN tunnel_addresses ON tunnel_addresses.node = nodes.id
           WHERE state <> 'revoked' AND ($1::uuid IS NULL OR id = $1) AND ($2::uuid IS NULL OR nodes.site = $2)"#,
        node.map(|node| node.0),
        site.map(|site| site.0)
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(NodeRecord::try_from)
        .collect()
}

/// Revokes a node and gives its tunnel address back. Returns its site; `None` when there is no such
/// node.
pub async fn revoke(connection: &mut PgConnection, node: NodeId) -> Result<Option<SiteId>> {
    let site = sqlx::query_scalar!(
        r#"UPDATE nodes SET state = 'revoked', revoked_at = now() WHERE id = $1 AND state <> 'revoked' RETURNING site AS "site!""#,
        node.0
    );
    let Some(site) = site.fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    forget(connection, &[node.0]).await?;
    Ok(Some(SiteId(site)))
}

/// Revokes all nodes of a site.
pub async fn revoke_all_of(connection: &mut PgConnection, site: SiteId) -> Result<Vec<NodeId>> {
    let nodes = sqlx::query_scalar!(
        "UPDATE nodes SET state = 'revoked', revoked_at = now() WHERE site = $1 AND state <> \
         'revoked' RETURNING id",
        site.0
    );
    let nodes = nodes.fetch_all(&mut *connection).await?;
    forget(connection, &nodes).await?;
    Ok(nodes.into_iter().map(NodeId).collect())
}

/// Makes the node active that has stood by the longest, if the site has no active one. Returns it.
pub async fn promote(connection: &mut PgConnection, site: SiteId) -> Result<Option<NodeRecord>> {
    let promoted = sqlx::query_scalar!(
        "UPDATE nodes SET state = 'active'
         WHERE id = (SELECT id FROM nodes WHERE site = $1 AND state = 'standby' ORDER BY \
         enrolled_at, id LIMIT 1)
           AND NOT EXISTS (SELECT FROM nodes WHERE site = $1 AND state = 'active')
         RETURNING id",
        site.0
    );
    match promoted.fetch_optional(&mut *connection).await? {
        Some(id) => find(connection, NodeId(id)).await,
        None => Ok(None),
    }
}

/// Which node each identity is, and the admission that it has; `None` when there is no such node.
/// They are locked.
pub async fn by_identity(
    connection: &mut PgConnection,
    identities: &[IdentityKey],
) -> Result<BTreeMap<IdentityKey, (NodeId, Option<String>)>> {
    let identities: Vec<_> = identities
        .iter()
        .map(|identity| identity.as_bytes().to_vec())
        .collect();
    let rows = sqlx::query!(
        "SELECT id, identity_key, admission FROM nodes WHERE identity_key = ANY($1) AND state <> \
         'revoked' ORDER BY id FOR UPDATE",
        &identities
    );
    let nodes = rows.fetch_all(connection).await?.into_iter().map(|row| {
        let key: [u8; 32] = row
            .identity_key
            .try_into()
            .map_err(|_| Error::Internal("a node in the database is not valid"))?;
        Ok((IdentityKey::from(key), (NodeId(row.id), row.admission)))
    });
    nodes.collect()
}

/// Keeps operators' words for nodes.
pub async fn admit(
    connection: &mut PgConnection,
    admissions: &[(NodeId, &SignedAdmission)],
) -> Result<()> {
    let nodes: Vec<_> = admissions.iter().map(|(node, _)| node.0).collect();
    let texts: Vec<_> = admissions
        .iter()
        .map(|(_, signed)| signed.admission.clone())
        .collect();
    let signatures: Vec<_> = admissions
        .iter()
        .map(|(_, signed)| signed.signature.as_bytes().to_vec())
        .collect();
    sqlx::query!(
        "UPDATE nodes SET admission = given.admission, admission_signature = given.signature
         FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS given (node, admission, signature) \
         WHERE id = given.node",
        &nodes,
        &texts,
        &signatures
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that nodes are revoked, gives back their tunnel addresses, and drops what they and their
/// peers said of their links and to each other.
async fn forget(connection: &mut PgConnection, nodes: &[Uuid]) -> Result<()> {
    sqlx::query!(
        "DELETE FROM tunnel_addresses WHERE node = ANY($1) AND NOT own",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE tunnel_addresses SET node = NULL WHERE node = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("DELETE FROM links WHERE a = ANY($1) OR b = ANY($1)", nodes)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "DELETE FROM psk_messages WHERE sender = ANY($1) OR recipient = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM armed_peers WHERE node = ANY($1) OR peer = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("DELETE FROM node_reports WHERE node = ANY($1)", nodes)
        .execute(&mut *connection)
        .await?;
    webhooks::queries::note_nodes(connection, nodes, NodeChange::Revoked).await
}

impl TryFrom<NodeRow> for NodeRecord {
    type Error = Error;

    fn try_from(row: NodeRow) -> Result<Self> {
        let invalid = || Error::Internal("a node in the database is not valid");
        let identity_key: [u8; 32] = row.identity_key.try_into().map_err(|_| invalid())?;
        let wireguard_key: [u8; 32] = row.wireguard_key.try_into().map_err(|_| invalid())?;
        let signed = |statement, signature: Vec<u8>| {
            let signature: [u8; 64] = signature.try_into().map_err(|_| invalid())?;
            Ok::<_, Error>(SignedStatement {
                statement,
                signature: Signature::from(signature),
            })
        };
        let admission = match (row.admission, row.admission_signature) {
            (Some(admission), Some(signature)) => {
                let signature: [u8; 64] = signature.try_into().map_err(|_| invalid())?;
                Some(SignedAdmission {
                    admission,
                    signature: Signature::from(signature),
                })
            }
            _ => None,
        };
        let announced = match (row.announced, row.announced_signature, row.announced_at) {
            (Some(statement), Some(signature), Some(at)) => Some(Announced {
                statement: signed(statement, signature)?,
                at,
            }),
            _ => None,
        };
        let unmanaged = match (row.file_made_at, row.file_digest) {
            (Some(file_made_at), Some(digest)) => {
                let digest: [u8; 32] = digest.try_into().map_err(|_| invalid())?;
                Some(Unmanaged {
                    file_made_at,
                    file_digest: Bytes32::from(digest),
                })
            }
            _ => None,
        };
        let trial = (!row.endpoint_verified).then(|| Trial {
            by: row.endpoint_tried_by.map(NodeId),
            since: row.endpoint_tried_at,
            tries: row.endpoint_tries.unsigned_abs(),
        });
        Ok(Self {
            id: NodeId(row.id),
            site: SiteId(row.site),
            name: row.name.parse().map_err(|_| invalid())?,
            state: match row.state.as_str() {
                "active" => NodeState::Active,
                "standby" => NodeState::Standby,
                _ => return Err(invalid()),
            },
            tunnel_address: v4(row.tunnel_address)?,
            identity_key: IdentityKey::from(identity_key),
            wireguard_key: WireguardKey::try_from(wireguard_key).map_err(|_| invalid())?,
            statement: signed(row.statement, row.statement_signature)?,
            announced,
            rotate_since: row.rotate_since,
            admission,
            endpoint: endpoint(row.endpoint_address, row.endpoint_port)?,
            trial,
            agent_version: row.agent_version,
            unmanaged,
            generation: row.generation,
            enrolled_at: row.enrolled_at,
        })
    }
}
