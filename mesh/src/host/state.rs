//! What a host should be, what it is, and the steps between: plain data, and the model of what each
//! step does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;
use wattle_wire::{key::WireguardKey, name::Name, report::DeviceKind};

use crate::{
    health::replies::Flows,
    host::{interface::InterfaceName, ruleset::Ruleset, way::Way},
    keys::preshared_key::Psk,
};

/// Seconds after a handshake during which its session may still carry packets: `REJECT_AFTER_TIME`
/// of the WireGuard paper, section 6.1.
pub const SESSION_S: u64 = 180;

/// What the host should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Desired {
    pub interface: InterfaceName,
    /// The key whose private half the interface should hold.
    pub public_key: WireguardKey,
    pub listen_port: u16,
    /// Bytes.
    pub mtu: u32,
    /// Tunnel addresses with the prefix of the mesh; the kernel makes the connected route of them.
    pub addresses: BTreeSet<IpNet>,
    pub peers: BTreeMap<WireguardKey, DesiredPeer>,
    /// Prefixes behind the interface, with the address that the host itself uses as source.
    pub routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Addresses in those prefixes that the host reaches past the tunnel, and how.
    pub underlay: BTreeMap<IpAddr, Way>,
    /// Families that the host must forward.
    pub forwarding: BTreeSet<Family>,
    /// The table `inet wattle`.
    pub ruleset: Ruleset,
}

/// A peer as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesiredPeer {
    /// For people: the peer's name. Never written anywhere.
    pub name: Name,
    /// Where to send the first packet; absent means: wait for the peer's.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 means none.
    pub keepalive_s: u16,
    pub allowed_ips: BTreeSet<IpNet>,
    pub psk: DesiredPsk,
    /// The entry is to be made anew, for nothing comes of its handshakes.
    pub anew: bool,
}

/// The preshared key that a peer should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredPsk {
    Key(Psk),
    /// Whichever it has, or none: nothing was agreed on yet.
    Any,
    /// Nothing was agreed on yet, and without one no packet may pass: a peer that has none is not
    /// to be there.
    Required,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    V4,
    V6,
}

impl From<IpNet> for Family {
    fn from(net: IpNet) -> Self {
        if net.addr().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// What the host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The WireGuard interface of our name; absent means there is none.
    #[serde(rename = "link")]
    pub interface: Option<Interface>,
    /// Routes past the tunnel that the agent made.
    pub underlay: BTreeMap<IpAddr, Way>,
    /// Families that the host forwards.
    pub forwarding: BTreeSet<Family>,
    /// The table `inet wattle`.
    pub ruleset: ObservedRuleset,
    /// Whose packets that table saw lately.
    #[serde(skip)]
    pub flows: Flows,
}

/// The table `inet wattle`, as found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservedRuleset {
    #[default]
    Absent,
    /// It still is what this ruleset made.
    Intact(Ruleset),
    /// It is there, and not as we made it.
    Altered,
    /// Somebody else made a table of this name.
    Foreign,
}

/// A WireGuard interface, as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub device: DeviceKind,
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// All addresses but link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// Routes over the interface that the agent made.
    pub routes: BTreeMap<IpNet, ObservedRoute>,
    /// Public half of the interface's private key; absent means it has none.
    pub public_key: Option<WireguardKey>,
    pub listen_port: u16,
    pub peers: BTreeMap<WireguardKey, ObservedPeer>,
}

/// A route over the interface, as found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ObservedRoute {
    /// The address that the host itself uses as source.
    pub source: Option<IpAddr>,
    /// The largest packet that may go there, in bytes, where somebody has set it. The agent sets
    /// none, and leaves what it finds.
    pub mtu: Option<u32>,
}

impl Interface {
    /// An interface right after its creation, of whose MTU nothing is known.
    pub fn new(device: DeviceKind) -> Self {
        Self {
            device,
            up: false,
            mtu: 0,
            addresses: BTreeSet::new(),
            routes: BTreeMap::new(),
            public_key: None,
            listen_port: 0,
            peers: BTreeMap::new(),
        }
    }
}

/// A peer as found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ObservedPeer {
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 means none.
    pub keepalive_s: u16,
    pub allowed_ips: BTreeSet<IpNet>,
    /// Absent means none is set.
    pub psk: Option<Psk>,
    /// Seconds since the last handshake; absent means there was none.
    pub handshake_age_s: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl ObservedPeer {
    /// Whether a session with the peer may be in use.
    pub fn is_live(&self) -> bool {
        self.handshake_age_s.is_some_and(|age| age <= SESSION_S)
    }
}

/// One step from what is to what should be. It is safe to stop after any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Makes the table `inet wattle`, or makes it anew.
    SetRuleset(Ruleset),
    /// Takes and gives the table only the prefixes that differ. Making it anew can cost a packet of
    /// those that stay.
    UpdateRuleset {
        from: Ruleset,
        to: Ruleset,
    },
    /// Makes the interface: the kernel's own if it can, else a userspace one. A userspace device
    /// whose interface is gone is ended first.
    #[serde(rename = "create_link")]
    CreateInterface,
    /// Gives the interface the private key of this public key.
    SetPrivateKey(WireguardKey),
    SetListenPort(u16),
    /// Bytes.
    SetMtu(u32),
    AddAddress(IpNet),
    RemoveAddress(IpNet),
    SetUp,
    EnableForwarding(Family),
    /// Makes the route over the interface, or replaces it when it has another source.
    SetRoute(IpNet, Option<IpAddr>),
    RemoveRoute(IpNet),
    /// Makes the route to one address past the tunnel, or replaces it when the way is another.
    SetUnderlayRoute(IpAddr, Way),
    RemoveUnderlayRoute(IpAddr),
    SetPeer(WireguardKey, PeerUpdate),
    RemovePeer(WireguardKey),
}

impl Change {
    /// Whether it gives a peer another preshared key and does nothing else: no packet takes note of
    /// it, and it may happen every few seconds.
    pub fn is_unnoticed(&self) -> bool {
        let Some((_, Some(change))) = self.of_peer() else {
            return false;
        };
        change.psk.is_some()
            && *change
                == PeerUpdate {
                    psk: change.psk.clone(),
                    ..PeerUpdate::default()
                }
    }

    /// The peer that this is about, with what to write of it; nothing if it is to go.
    pub fn of_peer(&self) -> Option<(&WireguardKey, Option<&PeerUpdate>)> {
        match self {
            Self::SetPeer(key, change) => Some((key, Some(change))),
            Self::RemovePeer(key) => Some((key, None)),
            Self::SetRuleset(_)
            | Self::UpdateRuleset { .. }
            | Self::CreateInterface
            | Self::SetPrivateKey(_)
            | Self::SetListenPort(_)
            | Self::SetMtu(_)
            | Self::AddAddress(_)
            | Self::RemoveAddress(_)
            | Self::SetUp
            | Self::EnableForwarding(_)
            | Self::SetRoute(..)
            | Self::RemoveRoute(_)
            | Self::SetUnderlayRoute(..)
            | Self::RemoveUnderlayRoute(_) => None,
        }
    }
}

/// What to write of one peer, in one message; fields that are absent stay as they are. The peer is
/// made if it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerUpdate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_s: Option<u16>,
    #[serde(skip_serializing_if = "AllowedIps::is_untouched")]
    pub allowed_ips: AllowedIps,
    /// One is replaced, and never taken away. The session in use knows nothing of it; the next
    /// handshake does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psk: Option<Psk>,
}

/// What to do with a peer's prefixes. A prefix that another peer holds moves to this one in the
/// same write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowedIps {
    #[default]
    Untouched,
    /// These come to what is there.
    Add(BTreeSet<IpNet>),
    /// These and no others. WireGuard has no message that takes one prefix away.
    Replace(BTreeSet<IpNet>),
}

impl AllowedIps {
    fn is_untouched(&self) -> bool {
        *self == Self::Untouched
    }
}

impl Observed {
    /// The model of what a step does to a host, as the kernel does it: a prefix belongs to one peer
    /// at a time, and moves to whom it is given last.
    #[must_use]
    pub fn after(mut self, change: &Change) -> Self {
        match change {
            Change::SetRuleset(ruleset) | Change::UpdateRuleset { to: ruleset, .. } => {
                self.ruleset = ObservedRuleset::Intact(ruleset.clone());
            }
            Change::EnableForwarding(family) => {
                self.forwarding.insert(*family);
            }
            Change::SetUnderlayRoute(address, way) => {
                self.underlay.insert(*address, way.clone());
            }
            Change::RemoveUnderlayRoute(address) => {
                self.underlay.remove(address);
            }
            Change::CreateInterface => self.interface = Some(Interface::new(DeviceKind::Kernel)),
            Change::SetPrivateKey(_)
            | Change::SetListenPort(_)
            | Change::SetMtu(_)
            | Change::AddAddress(_)
            | Change::RemoveAddress(_)
            | Change::SetUp
            | Change::SetRoute(..)
            | Change::RemoveRoute(_)
            | Change::SetPeer(..)
            | Change::RemovePeer(_) => {
                self.interface = self.interface.map(|interface| interface.after(change))
            }
        }
        self
    }
}

impl Interface {
    fn after(mut self, change: &Change) -> Self {
        match change {
            Change::SetPrivateKey(key) => {
                self.peers.remove(key);
                self.public_key = Some(*key);
            }
            Change::SetListenPort(port) => self.listen_port = *port,
            Change::SetMtu(mtu) => self.mtu = *mtu,
            Change::AddAddress(address) => {
                self.addresses.insert(*address);
            }
            Change::RemoveAddress(address) => {
                self.addresses.remove(address);
            }
            Change::SetUp => self.up = true,
            Change::SetRoute(prefix, source) => {
                self.routes.entry(*prefix).or_default().source = *source;
            }
            Change::RemoveRoute(prefix) => {
                self.routes.remove(prefix);
            }
            Change::SetPeer(key, change) => self.set_peer(*key, change),
            Change::RemovePeer(key) => {
                self.peers.remove(key);
            }
            Change::SetRuleset(_)
            | Change::UpdateRuleset { .. }
            | Change::EnableForwarding(_)
            | Change::SetUnderlayRoute(..)
            | Change::RemoveUnderlayRoute(_)
            | Change::CreateInterface => {}
        }
        self
    }

    fn set_peer(&mut self, key: WireguardKey, change: &PeerUpdate) {
        let mut peer = self.peers.remove(&key).unwrap_or_default();
        peer.endpoint = change.endpoint.or(peer.endpoint);
        peer.keepalive_s = change.keepalive_s.unwrap_or(peer.keepalive_s);
        peer.psk = change.psk.clone().or(peer.psk);
        let given = match &change.allowed_ips {
            AllowedIps::Untouched => &BTreeSet::new(),
            AllowedIps::Add(prefixes) => prefixes,
            AllowedIps::Replace(prefixes) => {
                peer.allowed_ips.clear();
                prefixes
            }
        };
        peer.allowed_ips.extend(given);
        for other in self.peers.values_mut() {
            other.allowed_ips.retain(|prefix| !given.contains(prefix));
        }
        self.peers.insert(key, peer);
    }
}
