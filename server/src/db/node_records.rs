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
    name::Name,
    rotation::SignedAnnouncement,
};

use super::site_records::{endpoint, v4};
use crate::error::{Error, Result};

struct NodeRow {
    id: NodeId,
    site: SiteId,
    name: Name,
    name_follows_site: bool,
    state: NodeState,
    tunnel_address: IpNet,
    identity_key: IdentityKey,
    wireguard_key: WireguardKey,
    statement: String,
    statement_signature: Signature,
    highest_sequence: i64,
    announced: Option<String>,
    announced_signature: Option<Signature>,
    announced_at: Option<DateTime<Utc>>,
    rotate_since: Option<DateTime<Utc>>,
    admission: Option<String>,
    admission_signature: Option<Signature>,
    endpoint_address: Option<IpNet>,
    endpoint_port: Option<i32>,
    endpoint_verified: bool,
    endpoint_tried_by: Option<Uuid>,
    endpoint_tried_at: Option<DateTime<Utc>>,
    endpoint_tries: i32,
    agent_version: Option<String>,
    file_made_at: Option<DateTime<Utc>>,
    file_digest: Option<Bytes32>,
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

/// The nodes of a site that take part.
pub async fn all_of(connection: &mut PgConnection, site: SiteId) -> Result<Vec<NodeRecord>> {
    select(connection, None, Some(site)).await
}

/// The nodes of a site that take part, as the site lists them.
pub async fn of_site(connection: &mut PgConnection, site: SiteId) -> Result<Vec<SiteNode>> {
    let mut nodes = all_of(connection, site).await?;
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
        r#"SELECT id, nodes.site AS "site!", name AS "name: Name", name_follows_site,
                  state AS "state: NodeState",
                  tunnel_addresses.address AS tunnel_address,
                  identity_key AS "identity_key: IdentityKey",
                  wireguard_key AS "wireguard_key: WireguardKey", statement,
                  statement_signature AS "statement_signature: Signature",
                  highest_sequence, announced,
                  announced_signature AS "announced_signature: Signature", announced_at,
                  rotate_since, admission, admission_signature AS "admission_signature: Signature",
                  endpoint_address, endpoint_port, endpoint_verified, endpoint_tried_by,
                  endpoint_tried_at, endpoint_tries, agent_version, file_made_at,
                  file_digest AS "file_digest: Bytes32", generation, enrolled_at
           FROM nodes JOIN tunnel_addresses ON tunnel_addresses.node = nodes.id
           WHERE state <> 'revoked' AND ($1::uuid IS NULL OR id = $1)
             AND ($2::uuid IS NULL OR nodes.site = $2)"#,
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
        let admission = row.admission.zip(row.admission_signature);
        let announced = match (row.announced, row.announced_signature, row.announced_at) {
            (Some(announcement), Some(signature), Some(at)) => Some(Announced {
                announcement: SignedAnnouncement {
                    announcement,
                    signature,
                },
                at,
            }),
            _ => None,
        };
        let unmanaged = row.file_made_at.zip(row.file_digest);
        let endpoint_check = (!row.endpoint_verified).then(|| CheckState {
            by: row.endpoint_tried_by.map(NodeId),
            since: row.endpoint_tried_at,
            tries: row.endpoint_tries.unsigned_abs(),
        });
        Ok(Self {
            id: row.id,
            site: row.site,
            name: row.name,
            name_follows_site: row.name_follows_site,
            state: row.state,
            tunnel_address: v4(row.tunnel_address)?,
            identity_key: row.identity_key,
            wireguard_key: row.wireguard_key,
            statement: SignedStatement {
                statement: row.statement,
                signature: row.statement_signature,
            },
            highest_sequence: row.highest_sequence.unsigned_abs(),
            announced,
            rotate_since: row.rotate_since,
            admission: admission.map(|(admission, signature)| SignedAdmission {
                admission,
                signature,
            }),
            endpoint: endpoint(row.endpoint_address, row.endpoint_port)?,
            endpoint_check,
            agent_version: row.agent_version,
            unmanaged: unmanaged.map(|(file_made_at, file_digest)| Unmanaged {
                file_made_at,
                file_digest,
            }),
            generation: row.generation,
            enrolled_at: row.enrolled_at,
        })
    }
}
