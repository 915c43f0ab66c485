//! The state of a WireGuard device, and what to write to it, whoever moves its packets.

use std::collections::BTreeMap;

use wattle_mesh::host::state::{ObservedPeer, PeerUpdate};
use wattle_wire::key::WireguardKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// State of a WireGuard device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dump {
    pub(super) public_key: Option<WireguardKey>,
    pub(super) listen_port: u16,
    pub(super) peers: BTreeMap<WireguardKey, ObservedPeer>,
}

/// What to write to a WireGuard device at once.
pub(super) enum Write<'a> {
    PrivateKey(&'a Zeroizing<[u8; 32]>),
    ListenPort(u16),
    /// In this order; a peer without a change is removed.
    Peers(Vec<(&'a WireguardKey, Option<&'a PeerUpdate>)>),
}

/// The public half of a private key, if it is one that WireGuard can use.
pub(super) fn public_half(private_key: &[u8; 32]) -> Option<WireguardKey> {
    let secret = StaticSecret::from(*private_key);
    WireguardKey::try_from(PublicKey::from(&secret).to_bytes()).ok()
}
