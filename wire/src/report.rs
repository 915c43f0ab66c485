//! `POST /agent/report`: what a node tells the coordinator about itself and its links.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    endpoint::Endpoint,
    ids::{NodeId, Position},
    key::IdentityKey,
    name::Name,
    rotation::KeyInPlace,
};

/// Seconds between two summaries; changes are reported at once.
pub const SUMMARY_S: u64 = 60;

/// State of a node as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The position of the view that the host carries out now.
    pub applied: Position,
    /// Absent while the node has no WireGuard interface of its own; `problems` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceKind>,
    /// MTU of the interface in bytes; absent means unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Links whose state changed, or, in a summary, all links.
    pub links: Vec<LinkReport>,
    /// What could not be applied, in words, at most [`Report::MOST_PROBLEMS`] of at most
    /// [`Report::LONGEST_PROBLEM`] characters, none of them a control character; empty means all
    /// was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Peers that stay only until somebody confirms that they go; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Announced keys of peers for which the host is ready, at most as many as it has peers.
    #[serde(rename = "armed", default, skip_serializing_if = "Vec::is_empty")]
    pub keys_in_place: Vec<KeyInPlace>,
    /// Absent means that the agent could not write it down, or is older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// A start of the agent, by which two machines that run on copies of one state directory are told
/// apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// How often an agent was started on the state directory, kept there.
    pub number: i64,
    /// Drawn at the start, and not kept.
    pub drawn: i64,
}

impl Report {
    pub const MOST_PROBLEMS: usize = 16;
    pub const LONGEST_PROBLEM: usize = 256;
}

/// Peers that a host has only until somebody confirms that they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Whether the host requires the lock: then an operator's signature is a confirmation.
    pub locked: bool,
    /// How many there are.
    pub total: u32,
    /// At most [`Held::MOST_PEERS`] of them.
    pub peers: Vec<HeldPeer>,
}

impl Held {
    pub const MOST_PEERS: usize = 64;
}

/// A peer that stays until somebody confirms that it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldPeer {
    pub node: NodeId,
    /// As the host knows it: the coordinator may not know it any more.
    pub name: Name,
    pub identity: IdentityKey,
    pub because: HeldBecause,
}

/// Why a peer stays only until somebody confirms that it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldBecause {
    /// The coordinator has removed it, and too many others in a day.
    Removed,
    /// The coordinator does not know it any more, and never removed it.
    Lost,
    /// It was there before the lock, and no operator has admitted it.
    NotAdmitted,
}

/// Who moves the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The kernel's own WireGuard.
    Kernel,
    /// A WireGuard device in a process beside the agent.
    Userspace,
}

/// One end's account of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkReport {
    pub peer: NodeId,
    /// Seconds since the last handshake; absent means there was none.
    pub handshake_age_s: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// The peer's endpoint in use; absent means none is known.
    pub endpoint: Option<Endpoint>,
    /// What probes found; absent where none run, or where the peer never answered one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeReport>,
}

/// What probes of a peer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeReport {
    pub state: EndState,
    /// Percent of the last 60 probes that were not answered.
    pub loss_percent: u8,
    /// Microseconds, smoothed over some ten probes.
    pub round_trip_us: u32,
}

/// A link as one of its ends finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum EndState {
    Up,
    /// It works, and probes are lost.
    Lossy,
    /// It works, and probes take long.
    Slow,
    /// The other end is heard and does not answer.
    OneWay,
    Down,
}

impl EndState {
    /// Whether packets get there and back.
    pub fn works(self) -> bool {
        match self {
            Self::Up | Self::Lossy | Self::Slow => true,
            Self::OneWay | Self::Down => false,
        }
    }
}
