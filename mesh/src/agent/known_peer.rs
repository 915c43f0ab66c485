//! A peer as a node knows it.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use wattle_wire::{enrol::Statement, peer::Peer};

use crate::host::state::{Interface, ObservedPeer};

/// A peer with what it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    pub peer: Peer,
    pub statement: Statement,
    /// What is to take the place of the statement, as the record has it signed.
    pub announced: Option<Statement>,
    /// The coordinator does not name what was announced any more. It stays until the peer has
    /// signed something newer: the peer may use that key already.
    pub withdrawn: bool,
}

impl KnownPeer {
    /// The peer's entry on the device: the one that has its prefixes, be it of the announced key.
    pub fn entry<'a>(&self, interface: &'a Interface) -> Option<&'a ObservedPeer> {
        let announced = self
            .announced
            .as_ref()
            .and_then(|announced| interface.peers.get(&announced.wireguard_key));
        announced
            .filter(|entry| !entry.allowed_ips.is_empty())
            .or_else(|| interface.peers.get(&self.statement.wireguard_key))
    }
}

/// All prefixes of a node: its tunnel address and its LANs.
pub(crate) fn prefixes(tunnel_address: Ipv4Addr, subnets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    iter::once(IpNet::from(IpAddr::V4(tunnel_address))).chain(subnets.iter().copied())
}
