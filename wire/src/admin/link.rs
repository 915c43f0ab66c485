//! Links: pairs of nodes, and their health.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::node::LanState,
    endpoint::Endpoint,
    ids::NodeId,
    name::Name,
    report::{EndState, ProblemCode},
};

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
    /// Whether the LANs at its two ends get each other's packets, as far as their gateways can
    /// tell. The state above is of the tunnel alone.
    pub lan: LanState,
    /// Why they do not, or may not: problems of its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lan_problems: Vec<LinkProblem>,
    /// Who makes its preshared key.
    pub psk_made_by: PskMaker,
}

/// Which problem of a node a link's LANs have; the node tells all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkProblem {
    pub node: NodeId,
    pub code: ProblemCode,
    pub subject: String,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
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
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum LinkFault {
    /// It works in one direction only, or one end alone says that it works.
    Asymmetric,
    /// One end works. The other gateway is silent, so nobody knows of its end.
    Silent,
    /// Packets are lost.
    Lossy,
    /// Packets take long.
    Slow,
}

impl LinkFault {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asymmetric => "asymmetric",
            Self::Silent => "silent",
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
