//! Nodes, with and without an agent.

use std::{fmt, net::Ipv4Addr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::present,
    endpoint::Endpoint,
    ids::{NodeId, Position, SiteId},
    key::{IdentityKey, WireguardKey},
    lock::{SignedAdmission, SignedRemoval},
    name::Name,
    report::{DeviceKind, Held, Problem},
    secret::Secret,
};

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum NodeState {
    /// The gateway that carries its site's subnets.
    Active,
    /// A further gateway of the site, reachable, without the site's subnets.
    Standby,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub id: NodeId,
    pub name: Name,
    /// Whether the name is made of the site's and changes with it; false once somebody has given
    /// the node a name of its own.
    pub name_follows_site: bool,
    pub site: SiteId,
    pub site_name: Name,
    pub state: NodeState,
    #[schema(value_type = String, example = "10.99.0.1")]
    pub tunnel_address: Ipv4Addr,
    pub wireguard_key: WireguardKey,
    pub identity_key: IdentityKey,
    pub endpoint: Option<Endpoint>,
    /// Whether all peers use this endpoint. An endpoint that the node names itself is checked by
    /// one peer first.
    pub endpoint_verified: bool,
    /// An operator's admission of the node; null if there is none.
    pub admission: Option<SignedAdmission>,
    /// Whether the admission holds now and covers all prefixes that the node has. Hosts that
    /// require the lock judge for themselves.
    pub admitted: bool,
    /// Null for an unmanaged node.
    pub agent_version: Option<String>,
    /// Present for a gateway without an agent, which has a wg-quick file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged: Option<UnmanagedNode>,
    pub enrolled_at: DateTime<Utc>,
    /// Whether its agent is there, as all coordinators together know it; absent for an unmanaged
    /// node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<NodeConnection>,
    /// Whether the LANs behind it get their packets, as far as this gateway can tell.
    pub lan: LanState,
    /// What keeps its host from what the mesh wants, or its LANs from others, as it last reported.
    /// All coordinators tell the same.
    pub problems: Vec<NodeProblem>,
    /// What the node last reported; absent means nothing yet.
    pub last_report: Option<NodeReport>,
    /// Peers that its host has only until somebody confirms that they go, as it last reported;
    /// absent means none. All coordinators tell the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Whether its host requires the lock, as it last reported: then it gives up a node that an
    /// operator let in only when an operator signs that. All coordinators tell the same.
    pub locked: bool,
    /// Gateways that know it as removed: a restored database has brought it back. They keep it out
    /// until it is removed again, or until somebody confirms there that it is back. Absent means
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_on: Option<SomeNodes>,
    /// A change of its WireGuard key that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<NodeRotation>,
}

/// Whether a gateway's agent is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeConnection {
    pub state: ConnectionState,
    /// When a silent node was last heard of, to within a minute, or when the first of the revisions
    /// was made that a node does not have which is behind; null while it is connected.
    pub since: Option<DateTime<Utc>>,
}

/// How the agent of a gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// It reports, and its host has the mesh's configuration.
    Connected,
    /// No coordinator has heard of it for 150 seconds. Its tunnels may work all the same.
    Silent,
    /// It reports, but its host does not have a revision that was made more than 150 seconds ago.
    Behind,
}

impl ConnectionState {
    pub const ALL: [Self; 3] = [Self::Connected, Self::Silent, Self::Behind];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Silent => "silent",
            Self::Behind => "behind",
        }
    }
}

/// `PATCH /nodes/{node}`: absent fields stay as they are; `"name": null` takes a name away that
/// somebody gave the node, so that it is named after its site again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<Name>)]
    pub name: Option<Option<Name>>,
}

/// What is known of a gateway without an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnmanagedNode {
    /// When its last file was made.
    pub file_made_at: DateTime<Utc>,
    /// Whether the last file still fits the mesh. If not, the gateway needs a new one.
    pub file_is_current: bool,
}

/// `POST /sites/{site}/wg-quick`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWgQuick {
    /// The gateway's own public key. Absent: the coordinator makes a pair for a new node, and keeps
    /// the present key of an old one.
    #[serde(default)]
    pub wireguard_key: Option<WireguardKey>,
}

/// A new wg-quick file, which is shown this once, and the unmanaged node that it is for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedWgQuick {
    pub node: Node,
    pub made_at: DateTime<Utc>,
    /// As wg-quick and WireGuard's apps take it.
    pub file: Secret,
}

/// A change of a node's WireGuard key that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRotation {
    pub phase: RotationPhase,
    pub since: DateTime<Utc>,
}

/// How far a change of a WireGuard key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RotationPhase {
    /// The node's agent was asked, and has not begun.
    Requested,
    /// The next key is announced, and the peers get ready for it.
    Announced,
}

/// What a node last said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeReport {
    pub at: DateTime<Utc>,
    pub applied: Position,
    /// Null while it has no WireGuard interface of its own.
    pub device: Option<DeviceKind>,
    /// MTU of its interface, in bytes; null when it did not say.
    pub mtu: Option<u32>,
}

/// A problem of a node, and since when it has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeProblem {
    #[serde(flatten)]
    pub problem: Problem,
    pub since: DateTime<Utc>,
}

/// Whether the LANs behind a node, or behind the two ends of a link, get their packets.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LanState {
    /// Nothing on the gateways is in the way.
    Ok,
    /// Nobody knows: a gateway has no agent, or its agent is silent.
    #[default]
    Unknown,
    /// Something may be in the way: whether it is cannot be known without a packet.
    Unproven,
    /// Something is in the way.
    Degraded,
}

impl LanState {
    pub const ALL: [Self; 4] = [Self::Ok, Self::Unknown, Self::Unproven, Self::Degraded];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Unproven => "unproven",
            Self::Degraded => "degraded",
        }
    }
}

/// `POST /nodes/readmit`: nodes that a restored database has lost.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewReadmissions {
    /// 1 to 100.
    pub nodes: Vec<Readmission>,
}

impl NewReadmissions {
    pub const MOST: usize = 100;
}

/// A node as a gateway holds it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Readmission {
    pub node: NodeId,
    pub identity: IdentityKey,
}

/// Answer to a removal that does not take effect on all gateways at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    pub waits_for_signature: SomeNodes,
}

/// Nodes; only the first 64 are named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SomeNodes {
    pub count: usize,
    pub names: Vec<Name>,
}

impl SomeNodes {
    pub const MOST: usize = 64;

    pub fn of(mut names: Vec<Name>) -> Self {
        let count = names.len();
        names.sort();
        names.truncate(Self::MOST);
        Self { count, names }
    }
}

impl fmt::Display for SomeNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names.iter().map(Name::as_str).collect();
        f.write_str(&names.join(", "))?;
        match self.count.saturating_sub(names.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A node that is out of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedNode {
    pub id: NodeId,
    /// Null for a node that a restored database does not have.
    pub name: Option<Name>,
    /// Null once the site is gone, too.
    pub site_name: Option<Name>,
    pub identity_key: IdentityKey,
    pub removed_at: Option<DateTime<Utc>>,
    /// The last admission that it had; null if there was none.
    pub admission: Option<SignedAdmission>,
    /// An operator's word that it is out of the mesh; null if there is none.
    pub removal: Option<SignedRemoval>,
}
