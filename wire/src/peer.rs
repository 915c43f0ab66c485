//! The view: what one node must know.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::Endpoint,
    enrol::SignedStatement,
    ids::{MeshId, NodeId, SiteId},
    name::Name,
    psk::PskPolicy,
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
}

/// What a node is told about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Myself {
    pub node: NodeId,
    pub name: Name,
    pub site: SiteId,
    pub site_name: Name,
    pub tunnel_address: Ipv4Addr,
    /// LAN prefixes that this node serves; empty while it stands by.
    pub subnets: Vec<Subnet>,
    /// Where the others send their packets to; absent means: this node has to speak first.
    pub endpoint: Option<Endpoint>,
}

/// What a node is told about another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub name: Name,
    pub site_name: Name,
    pub statement: SignedStatement,
    pub tunnel_address: Ipv4Addr,
    /// LAN prefixes that are said to be reached through the peer; empty while it stands by. An agent judges each for itself.
    pub subnets: Vec<IpNet>,
    /// Where to send the first packet; absent means: wait for the peer's.
    pub endpoint: Option<Endpoint>,
}

/// All that one node must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub mesh: MeshSettings,
    pub myself: Myself,
    /// In order of their ids.
    pub peers: Vec<Peer>,
}
