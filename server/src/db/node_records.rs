//! SQL that reads nodes as records.

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::config::{
    directory::{Announced, NodeRecord, Unmanaged},
    endpoint_check::CheckState,
};
use wattle_wire::{
    admin::{NodeState, SiteNode},
    enrol::SignedStatement,
    ids::{NodeId, SiteId},
    key::{Bytes32, IdentityKey, Signature, WireguardKey},
    lock::SignedAdmission,
};

use super::site_records::{endpoint, v4};
use crate::error::{Error, Result};

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
        let endpoint_check = (!row.endpoint_verified).then(|| CheckState {
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
            endpoint_check,
            agent_version: row.agent_version,
            unmanaged,
            generation: row.generation,
            enrolled_at: row.enrolled_at,
        })
    }
}
