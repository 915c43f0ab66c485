//! The view: what one node must know.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    bounded::at_most,
    endpoint::Endpoint,
    enrol::SignedStatement,
    ids::{MeshId, NodeId, SiteId},
    lock::SignedAdmission,
    name::Name,
    probe::HealthSettings,
    psk::PskPolicy,
    rotation::{OwnKeys, SignedAnnouncement},
    subnet::Subnet,
};

/// Settings that hold for all nodes of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshSettings {
    pub id: MeshId,
    /// The prefix from which tunnel addresses are taken.
    pub tunnel_prefix: Ipv4Net,
    /// UDP port on which each gateway listens for WireGuard.
    pub listen_port: u16,
    /// Seconds between WireGuard keepalives; 0 means none.
    pub keepalive_s: u16,
    /// Absent means `prefer`: the coordinator knows of no preshared keys.
    #[serde(default)]
    pub psk: PskPolicy,
    /// Days for which a node uses a WireGuard key; 0 means that it keeps it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rotate_days: u16,
    /// Absent means the defaults.
    #[serde(default)]
    pub health: HealthSettings,
}

/// What a node is told about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Myself {
    pub node: NodeId,
    pub name: Name,
    pub site: SiteId,
    pub site_name: Name,
    pub tunnel_address: Ipv4Addr,
    /// LAN prefixes that this node serves, at most [`Subnet::MOST`]; empty while it stands by.
    #[serde(deserialize_with = "at_most::<{ Subnet::MOST }, _, _>")]
    pub subnets: Vec<Subnet>,
    /// Where the others send their packets to; absent means: this node has to speak first.
    pub endpoint: Option<Endpoint>,
    /// Absent means that the coordinator knows of no rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<OwnKeys>,
}

/// What a node is told about another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub name: Name,
    pub site_name: Name,
    pub statement: SignedStatement,
    /// With the key that the peer is going to take up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<SignedAnnouncement>,
    pub tunnel_address: Ipv4Addr,
    /// LAN prefixes that are said to be reached through the peer, at most [`Subnet::MOST`]; empty
    /// while it stands by. An agent judges each for itself.
    #[serde(deserialize_with = "at_most::<{ Subnet::MOST }, _, _>")]
    pub subnets: Vec<IpNet>,
    /// Where to send the first packet; absent means: wait for the peer's.
    pub endpoint: Option<Endpoint>,
    /// Absent means that the peer is where it says it is, as far as anybody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "trial")]
    pub endpoint_check: Option<EndpointCheck>,
    /// An operator's word that the peer may be in the mesh; absent means: the last one that was
    /// told, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<SignedAdmission>,
}

/// An endpoint that a node names itself and at which nobody has met it yet. One of its peers tries
/// it; no other may send anything there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCheck {
    pub endpoint: Endpoint,
    pub by: NodeId,
}

impl Peer {
    /// Where this node is to look for the peer.
    pub fn endpoint_for(&self, node: NodeId) -> Option<Endpoint> {
        self.endpoint_check
            .filter(|check| check.by == node)
            .map(|check| check.endpoint)
            .or(self.endpoint)
    }
}

/// All that one node must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub mesh: MeshSettings,
    pub myself: Myself,
    /// In order of their ids, at most [`View::MOST_PEERS`].
    #[serde(deserialize_with = "at_most::<{ View::MOST_PEERS }, _, _>")]
    pub peers: Vec<Peer>,
}

impl View {
    pub const MOST_PEERS: usize = 10_000;
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u16) -> bool {
    *number == 0
}
