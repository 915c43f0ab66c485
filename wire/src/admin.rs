//! Bodies of the REST interface for people and scripts.

use std::{collections::BTreeMap, net::Ipv4Addr, str::FromStr};

use chrono::{DateTime, Utc};
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use crate::{
    endpoint::Endpoint,
    ids::{MeshId, NodeId, Position, SiteId, TokenId},
    key::{Bytes32, IdentityKey, WireguardKey},
    lock::SignedAdmission,
    name::Name,
    probe::HealthSettings,
    psk::PskPolicy,
    report::{DeviceKind, EndState},
    secret::Secret,
    subnet::Subnet,
};

/// `POST /sites`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSite {
    pub name: Name,
    /// Free text, at most 256 characters without control characters.
    #[serde(default)]
    pub description: String,
    /// Free labels, at most 32, for filters and tools.
    #[serde(default)]
    pub labels: BTreeMap<Name, String>,
    /// Where the site's gateway answers WireGuard packets; absent means it has to speak first
    /// (behind NAT).
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// LAN prefixes of the site, at most 256.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
}

/// `PATCH /sites/{site}`: absent fields stay as they are; `"endpoint": null` takes the endpoint
/// away.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SitePatch {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub name: Option<Name>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub description: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub labels: Option<BTreeMap<Name, String>>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<Endpoint>)]
    pub endpoint: Option<Option<Endpoint>>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub subnets: Option<Vec<Subnet>>,
}

/// Tells `null` from absent: a field that is there gives `Some`, whatever it holds, and `null` only
/// where that means something.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A site, with its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Site {
    pub id: SiteId,
    pub name: Name,
    pub description: String,
    pub labels: BTreeMap<Name, String>,
    pub endpoint: Option<Endpoint>,
    pub subnets: Vec<Subnet>,
    /// The tunnel address kept for the site's gateway.
    #[schema(value_type = String, example = "10.99.0.1")]
    pub tunnel_address: Ipv4Addr,
    pub nodes: Vec<SiteNode>,
    pub created_at: DateTime<Utc>,
}

/// A node, as its site lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteNode {
    pub id: NodeId,
    pub name: Name,
    pub state: NodeState,
}

/// Answer to `POST /sites`: the site and, once, the way to join it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedSite {
    #[serde(flatten)]
    pub site: Site,
    pub join_token: CreatedJoinToken,
    pub warnings: Vec<Warning>,
}

/// Answer to `PATCH /sites/{site}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedSite {
    #[serde(flatten)]
    pub site: Site,
    pub warnings: Vec<Warning>,
}

/// What is done as it was asked for, and may not be what was meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// Stable; `subnet_holds_coordinator` or `subnet_holds_own_address`.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// `POST /import`: sites that are created together, all or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// 1 to 1,000, each as in `POST /sites`.
    pub sites: Vec<NewSite>,
}

impl Import {
    pub const MOST_SITES: usize = 1_000;
}

/// Answer to `POST /import`: the sites in the order in which they were given.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    pub sites: Vec<CreatedSite>,
}

/// `POST /sites/{site}/join-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewJoinToken {
    /// How many machines may join with it, 1 to 100.
    pub uses: i32,
    /// Seconds until it expires, at most 7 days.
    pub expires_in_s: i64,
}

impl NewJoinToken {
    pub const MOST_USES: i32 = 100;
    pub const LONGEST_S: i64 = 7 * 24 * 3600;
}

impl Default for NewJoinToken {
    /// One machine, within an hour.
    fn default() -> Self {
        Self {
            uses: 1,
            expires_in_s: 3600,
        }
    }
}

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    pub id: TokenId,
    pub site: SiteId,
    pub uses_left: i32,
    pub expires_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

/// A new join token with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    pub id: TokenId,
    pub expires_at: DateTime<Utc>,
    /// The word that holds all a new gateway needs.
    pub join_string: Secret,
    /// What to run on the gateway.
    pub command: Secret,
}

/// An event of the audit log: who did what to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// From 1, without gaps.
    pub number: i64,
    pub at: DateTime<Utc>,
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>` or `command line`.
    pub actor: String,
    /// For example `site.change`.
    pub action: String,
    /// The id of what was changed.
    pub object: String,
    /// The revision that the change took; null for what is not configuration, a token for example.
    pub revision: Option<i64>,
    /// `X-Request-Id` of the request.
    pub request_id: Option<String>,
    /// SHA-256 of the object as the event found it; null when it was not there, or is not known.
    pub before: Option<Bytes32>,
    /// SHA-256 of the object as the event left it; null when it is gone.
    pub after: Option<Bytes32>,
    /// Binds this event to all before it.
    pub hash: Bytes32,
}

/// What an api token may do: each role may do what those before it may, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees the mesh and how it is.
    Viewer,
    /// Changes sites and nodes, lets machines join, and makes api tokens for viewers and operators.
    Operator,
    /// Does all.
    Owner,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Viewer, Self::Operator, Self::Owner]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or(InvalidRole)
    }
}

/// The text is not the name of a [`Role`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a role is viewer, operator or owner")]
pub struct InvalidRole;

/// `POST /api-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiToken {
    /// What it is for, 1 to 256 characters without control characters.
    pub name: String,
    /// At most the role of the token that makes it.
    pub role: Role,
    /// Seconds until it expires, at most 10 years; absent means that it does not, which only a
    /// token may ask for that does not either.
    #[serde(default)]
    pub expires_in_s: Option<i64>,
}

impl NewApiToken {
    pub const LONGEST_S: i64 = 10 * 366 * 24 * 3600;
}

/// An api token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    pub id: TokenId,
    pub name: String,
    pub role: Role,
    pub created_at: DateTime<Utc>,
    /// Null when it does not expire.
    pub expires_at: Option<DateTime<Utc>>,
    /// To within a minute; null before its first use.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A new api token with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiToken {
    #[serde(flatten)]
    pub api_token: ApiToken,
    /// What its holder sends: `Authorization: Bearer <token>`.
    pub token: Secret,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
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
    /// What the node last reported; absent means nothing yet.
    pub last_report: Option<NodeReport>,
    /// A change of its WireGuard key that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<NodeRotation>,
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
    pub device: DeviceKind,
    /// MTU of its interface, in bytes; null when it did not say.
    pub mtu: Option<u32>,
    pub problems: Vec<String>,
}

/// Health of the tunnel between two nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The two ends, in order of their ids.
    pub ends: [LinkEnd; 2],
    pub state: LinkState,
    /// What is wrong with a degraded link.
    pub fault: Option<LinkFault>,
    /// Since when it is in this state; absent for a link that was never reported.
    pub since: Option<DateTime<Utc>>,
    /// Who makes its preshared key.
    pub psk_made_by: PskMaker,
}

/// Who makes the preshared key of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PskMaker {
    /// The nodes at its two ends, and nobody else knows it.
    Nodes,
    /// The coordinator, with the file of the unmanaged node at one end. It forgets the key.
    Coordinator,
}

/// State of a link, from both ends together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It works from both ends.
    Up,
    /// It works, but not as it should: see [`LinkFault`].
    Degraded,
    /// It worked once and does not work from either end.
    Down,
    /// There was never a handshake.
    Never,
}

impl LinkState {
    pub const ALL: [Self; 4] = [Self::Up, Self::Degraded, Self::Down, Self::Never];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Never => "never",
        }
    }
}

/// What is wrong with a degraded link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkFault {
    /// It works in one direction only, or one end alone says that it works.
    Asymmetric,
    /// Packets are lost.
    Lossy,
    /// Packets take long.
    Slow,
}

impl LinkFault {
    pub const ALL: [Self; 3] = [Self::Asymmetric, Self::Lossy, Self::Slow];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asymmetric => "asymmetric",
            Self::Lossy => "lossy",
            Self::Slow => "slow",
        }
    }
}

/// A change of a link's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkChange {
    pub at: DateTime<Utc>,
    /// The state from then on.
    pub state: LinkState,
    pub fault: Option<LinkFault>,
}

/// One end of a link, and what it says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkEnd {
    pub node: NodeId,
    pub name: Name,
    pub site_name: Name,
    /// Whether the link works from this end. An unmanaged node says nothing: there it is as the
    /// other end says.
    pub up: bool,
    /// What this end last said; null means nothing yet.
    pub state: Option<EndState>,
    /// Percent of the last 60 probes that were not answered; null where nothing is known from
    /// probes.
    pub loss_percent: Option<u8>,
    /// Milliseconds; null where nothing is known from probes.
    pub round_trip_ms: Option<f32>,
    pub last_handshake_at: Option<DateTime<Utc>>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// The other end's endpoint as this end uses it.
    pub peer_endpoint: Option<Endpoint>,
    /// How this end knows that endpoint; null when it has none.
    pub endpoint_source: Option<EndpointSource>,
    /// MTU of this end's interface, in bytes.
    pub mtu: Option<u32>,
    /// When this end last said so; absent means never.
    pub reported_at: Option<DateTime<Utc>>,
}

/// How a node knows where another answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointSource {
    /// The other node or its site says so.
    Configured,
    /// Packets of the other node came from there.
    Learned,
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give this as `cursor` to get the next page; absent on the last.
    pub next_cursor: Option<String>,
}

/// Settings of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mesh {
    pub id: MeshId,
    /// The prefix from which tunnel addresses are taken.
    #[schema(value_type = String, example = "10.99.0.0/16")]
    pub tunnel_prefix: Ipv4Net,
    /// UDP port on which gateways listen, unless their endpoint says another.
    pub listen_port: u16,
    /// Seconds between WireGuard keepalives; 0 means none.
    pub keepalive_s: u16,
    pub psk: PskPolicy,
    /// Days for which a node uses a WireGuard key; 0 means that it keeps it until somebody asks for
    /// a new one.
    pub rotate_days: u16,
    #[serde(flatten)]
    pub health: HealthSettings,
}

/// `PATCH /mesh`: absent fields stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MeshPatch {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub psk: Option<PskPolicy>,
    /// 0, or 1 to [`MeshPatch::LONGEST_ROTATE_DAYS`].
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub rotate_days: Option<u16>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub probes: Option<bool>,
    /// 1 to 100.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub lossy_percent: Option<u8>,
    /// 1 to 60,000.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub slow_ms: Option<u16>,
}

impl MeshPatch {
    pub const LONGEST_ROTATE_DAYS: u16 = 3650;
}

/// Answer to a change with `?dry_run=true`: what it would have done. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// The action as the audit log would name it, for example `site.change`; null when all is
    /// already as it should be.
    pub would: Option<String>,
    /// The sites it would make or change, as they would be. A new site gets another id when it is
    /// really made.
    pub sites: Vec<Site>,
    /// The nodes it would make or change, as their sites would list them.
    pub nodes: Vec<SiteNode>,
    /// What would become of links.
    pub links: LinkEffects,
    pub warnings: Vec<Warning>,
}

/// What a change does to links.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkEffects {
    pub added: SomeLinks,
    pub removed: SomeLinks,
    /// Links for which an end gets a different configuration.
    pub changed: SomeLinks,
}

/// Links; only the first 1,000 are named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SomeLinks {
    pub count: usize,
    /// The names of both nodes of each of the first 1,000.
    pub nodes: Vec<[Name; 2]>,
}

impl SomeLinks {
    pub const MOST: usize = 1_000;
}

/// `GET /readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// How far this coordinator's copy of the mesh has come.
    pub position: Position,
}
