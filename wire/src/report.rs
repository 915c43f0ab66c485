//! `POST /agent/report`: what a node tells the coordinator about itself and its links.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    endpoint::Endpoint,
    enrol::SignedStatement,
    ids::{NodeId, Position},
    key::IdentityKey,
    name::Name,
    rotation::KeyInPlace,
};

/// Seconds between two summaries; changes are reported at once.
pub const SUMMARY_S: u64 = 60;

/// State of a node as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// What keeps the host from what the mesh wants, or its LANs from others; at most
    /// [`Report::MOST_PROBLEMS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Peers that stay only until somebody confirms that they go; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Peers that the coordinator had removed and has again, which a restored backup does; at most
    /// [`Report::MOST_RETURNED`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub returned: BTreeSet<NodeId>,
    /// Whether the host requires the lock: then it gives up what operators let in only when an
    /// operator signs that, or when somebody confirms it there. Absent means no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub locked: bool,
    /// Announced keys of peers for which the host is ready, at most as many as it has peers.
    #[serde(rename = "armed", default, skip_serializing_if = "Vec::is_empty")]
    pub keys_in_place: Vec<KeyInPlace>,
    /// Absent means that the agent could not write it down, or is older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Milliseconds since 1970 at which it was made, by the coordinator's clock, and above the
    /// number of each report before: one that is late or sent again changes nothing. Absent of an
    /// agent that never numbers its reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
}

/// A start of the agent, by which two machines that run on copies of one state directory are told
/// apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Start {
    /// How often an agent was started on the state directory, kept there.
    pub number: i64,
    /// Drawn at the start, and not kept.
    pub drawn: i64,
}

impl Report {
    pub const MOST_PROBLEMS: usize = 16;
    pub const MOST_RETURNED: usize = 64;
}

/// Something that keeps a host from what the mesh wants, or its LANs from others. Its texts have no
/// control characters. Of two with the same code, subject and peer the first counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub code: ProblemCode,
    /// What it is about: a prefix, an interface, a chain of the firewall; empty means the host. At
    /// most [`Problem::LONGEST_SUBJECT`] characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// The other node, where only the link with that one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<NodeId>,
    /// In words, at most [`Problem::LONGEST_WORDS`] characters.
    pub words: String,
    /// What to do, for a shell where it can be; at most [`Problem::LONGEST_REMEDY`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What it does to the ways between LANs; absent means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lan: Option<LanEffect>,
}

impl Problem {
    pub const LONGEST_SUBJECT: usize = 128;
    pub const LONGEST_WORDS: usize = 384;
    pub const LONGEST_REMEDY: usize = 1280;

    /// A problem of the host that does nothing to the ways between LANs.
    pub fn new(code: ProblemCode, words: impl Into<String>) -> Self {
        Self {
            code,
            subject: String::new(),
            peer: None,
            words: words.into(),
            remedy: None,
            lan: None,
        }
    }
}

/// What kind of problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// What the coordinator told is not carried out, or not yet.
    Configuration,
    /// The host's own rules refuse it.
    Refused,
    /// No operator has admitted it.
    NotAdmitted,
    /// An address that the host reaches outside of the tunnel lies in a prefix of the mesh.
    Underlay,
    /// A step could not be taken on the host.
    NotApplied,
    /// The host cannot be looked at.
    Unreadable,
    /// There is no preshared key with a peer.
    PresharedKey,
    /// A change of a key does not go on.
    KeyRotation,
    /// Files of the agent cannot be kept.
    State,
    /// Forwarding is off.
    Forwarding,
    /// A rule of a firewall is in the way.
    Firewall,
    /// A rule replaces an address of packets between LANs.
    Nat,
    /// A route or a routing rule leads packets past the tunnel, or to nobody.
    Route,
    /// The host has no network in a subnet of its site.
    NoLan,
    /// The interface of a LAN is down, or has no carrier.
    LanDown,
    /// The two gateways have no address family in common.
    AddressFamily,
    /// Hosts of a LAN send their answers to another router.
    ReturnRoute,
    /// The clock of the host is wrong.
    Clock,
    /// The node's own endpoint is on no interface of its host, and no peer sees it there.
    Endpoint,
    /// The process that moves the packets runs an older program than the agent.
    OldDevice,
    /// Large packets do not get to a peer through its tunnel, small ones do.
    LargePackets,
    /// A kind that is newer than the reader.
    #[serde(other)]
    Other,
}

impl ProblemCode {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Refused => "refused",
            Self::NotAdmitted => "not_admitted",
            Self::Underlay => "underlay",
            Self::NotApplied => "not_applied",
            Self::Unreadable => "unreadable",
            Self::PresharedKey => "preshared_key",
            Self::KeyRotation => "key_rotation",
            Self::State => "state",
            Self::Forwarding => "forwarding",
            Self::Firewall => "firewall",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::NoLan => "no_lan",
            Self::LanDown => "lan_down",
            Self::AddressFamily => "address_family",
            Self::ReturnRoute => "return_route",
            Self::Clock => "clock",
            Self::Endpoint => "endpoint",
            Self::OldDevice => "old_device",
            Self::LargePackets => "large_packets",
            Self::Other => "other",
        }
    }
}

impl ProblemCode {
    /// Whether changes of the mesh do not get to the host, or are not carried out there.
    pub fn stops_changes(self) -> bool {
        match self {
            Self::Configuration | Self::NotApplied | Self::Unreadable | Self::State => true,
            Self::Refused
            | Self::NotAdmitted
            | Self::Underlay
            | Self::PresharedKey
            | Self::KeyRotation
            | Self::Forwarding
            | Self::Firewall
            | Self::Nat
            | Self::Route
            | Self::NoLan
            | Self::LanDown
            | Self::AddressFamily
            | Self::ReturnRoute
            | Self::Clock
            | Self::Endpoint
            | Self::OldDevice
            | Self::LargePackets
            | Self::Other => false,
        }
    }
}

/// What a problem does to the ways between LANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LanEffect {
    /// Whether packets get through cannot be known without one.
    Unproven,
    /// Packets do not get through, or not all of them.
    Degraded,
}

/// Peers that a host has only until somebody confirms that they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Held {
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
pub struct HeldPeer {
    pub node: NodeId,
    /// As the host knows it: the coordinator may not know it any more.
    pub name: Name,
    pub identity: IdentityKey,
    pub because: HeldBecause,
    /// What lets a coordinator take in again one that it has lost; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostPeer>,
}

/// What a host knows of a peer that the coordinator does not know any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostPeer {
    pub site_name: Name,
    /// The newest that it signed, as far as the host knows.
    pub statement: SignedStatement,
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
