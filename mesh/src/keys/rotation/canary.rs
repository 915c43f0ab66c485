//! How a node follows its peers to the keys that they announced.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use wattle_wire::{ids::NodeId, key::WireguardKey, rotation::KeyInPlace};

use super::readiness;

use crate::{
    agent::replica::{Known, KnownPeer},
    host::state::{Interface, ObservedPeer},
    keys::{node_keys::NodeKeys, psk::exchange::Exchange},
};

/// How often the device is observed while a peer is about to take up its announced key: packets of
/// both ends wait until this node has seen it.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(50);
/// For how long after an announcement it is observed so often: twice as long as the peer waits for
/// others to get ready. One that was started again meanwhile may take longer.
const ATTENTIVE: Duration = Duration::from_secs(60);
/// How often it is observed from then on, while the announcement stands.
const OBSERVE_LATER_INTERVAL: Duration = Duration::from_secs(1);
/// How long an entry that was made anew has for its handshake before it is made anew once more: one
/// that makes a new entry sends its first handshake at once, while WireGuard itself waits 5 s after
/// one that was lost (`REKEY_TIMEOUT` of its paper, section 6.1).
/// An entry that is made anew too soon drops what comes under the session that it was getting.
const FIRST_PROBE: Duration = Duration::from_millis(300);
const LONGEST_PROBE: Duration = Duration::from_secs(5);
/// After this time WireGuard goes on by itself.
const LAST_PROBE: Duration = Duration::from_secs(60);
/// After so many failed handshakes the two may have different preshared keys.
const UNSETTLED: Duration = Duration::from_secs(20);

/// Since when peers are about to change their keys, and whose new ones it probes.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    announced: BTreeMap<NodeId, Awaited>,
    probes: BTreeMap<NodeId, KeyProbe>,
}

/// A key that was announced, and is not in use yet.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    key: WireguardKey,
    since: Duration,
    /// The coordinator still names it.
    stands: bool,
}

/// Handshakes with a key of which none has succeeded yet.
#[derive(Clone, Copy, Debug)]
struct KeyProbe {
    key: WireguardKey,
    since: Duration,
    /// When the entry was made; before that, when it was missed.
    made: Duration,
    /// How often it was made.
    times: u32,
}

impl KeyProbe {
    /// How long the present entry has for its handshake.
    fn wait(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.times.saturating_sub(1));
        LONGEST_PROBE.min(FIRST_PROBE.saturating_mul(doubled))
    }
}

/// Prefixes, and the endpoints of the entries that have them.
type Holders = BTreeMap<IpNet, Option<SocketAddr>>;

/// What is special about the entries of some peers now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerKeys(BTreeMap<NodeId, PeerKey>);

/// What is special about the entry of one peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerKey {
    /// The announced key is the one to use.
    pub(crate) taken_up: bool,
    /// The entry is to be made anew, whatever it is.
    pub(crate) anew: bool,
    /// Where to send the handshake.
    pub(crate) endpoint: Option<SocketAddr>,
}

impl PeerKeys {
    pub(crate) fn of(&self, peer: NodeId) -> Option<&PeerKey> {
        self.0.get(&peer)
    }

    /// Whether the device is to be written.
    pub fn is_pressing(&self) -> bool {
        self.0.values().any(|entry| entry.anew)
    }
}

impl Watch {
    /// Looks at the device as it was at a time, of a clock that only goes forward.
    pub fn observe(&mut self, known: &Known, interface: &Interface, at: Duration) -> PeerKeys {
        let pending = |(node, peer): (&NodeId, &KnownPeer)| {
            let announced = peer
                .announced
                .as_ref()
                .filter(|announced| !is_taken_up(interface, announced.wireguard_key))?;
            let key = announced.wireguard_key;
            let before = self.announced.get(node).filter(|before| before.key == key);
            let awaited = Awaited {
                key,
                since: before.map_or(at, |before| before.since),
                stands: !peer.withdrawn,
            };
            Some((*node, awaited))
        };
        self.announced = known.peers.iter().filter_map(pending).collect();
        self.probes.retain(|node, probe| {
            known.peers.contains_key(node) && at.saturating_sub(probe.since) < LAST_PROBE
        });
        // Of a mesh that is at rest nobody needs it.
        let holders = LazyCell::new(|| holders(interface));
        PeerKeys(
            known
                .peers
                .iter()
                .filter_map(|(node, peer)| {
                    Some((*node, self.peer_key(*node, peer, interface, &holders, at)?))
                })
                .collect(),
        )
    }

    fn peer_key<F>(
        &mut self,
        node: NodeId,
        peer: &KnownPeer,
        interface: &Interface,
        holders: &LazyCell<Holders, F>,
        at: Duration,
    ) -> Option<PeerKey>
    where
        F: FnOnce() -> Holders,
    {
        let announced = peer
            .announced
            .as_ref()
            .map(|announced| announced.wireguard_key);
        let taken_up = announced.filter(|key| is_taken_up(interface, *key));
        let key = taken_up.unwrap_or(peer.statement.wireguard_key);
        let entry = interface.peers.get(&key);
        let is_bare = entry.is_none_or(|entry| entry.allowed_ips.is_empty());
        let configured = peer.peer.endpoint.map(|endpoint| endpoint.socket());
        let address = IpNet::from(IpAddr::V4(peer.peer.tunnel_address));
        if is_bare && let Some(former) = holders.get(&address).copied() {
            let probe = KeyProbe {
                key,
                since: at,
                made: at,
                times: 0,
            };
            self.probes
                .entry(node)
                .and_modify(|known| *known = if known.key == key { *known } else { probe })
                .or_insert(probe);
            let endpoint = entry
                .and_then(|entry| entry.endpoint)
                .or(configured)
                .or(former);
            return Some(PeerKey {
                taken_up: taken_up.is_some(),
                anew: entry.is_some(),
                endpoint,
            });
        }
        let probe = self.probes.get(&node).filter(|probe| {
            probe.key == key && entry.is_none_or(|entry| entry.handshake_age_s.is_none())
        });
        let Some(probe) = probe else {
            self.probes.remove(&node);
            return taken_up.map(|_| PeerKey {
                taken_up: true,
                anew: false,
                endpoint: None,
            });
        };
        let anew = entry.is_some() && at.saturating_sub(probe.made) >= probe.wait();
        Some(PeerKey {
            taken_up: taken_up.is_some(),
            anew,
            endpoint: entry.and_then(|entry| entry.endpoint).or(configured),
        })
    }

    /// Takes note that entries were made just now: those that were to be made anew, and those that
    /// were missing.
    pub fn made(&mut self, peer_keys: &PeerKeys, now: Duration) {
        for (node, entry) in &peer_keys.0 {
            let probe = self.probes.get_mut(node);
            if let Some(probe) = probe.filter(|probe| entry.anew || probe.times == 0) {
                probe.made = now;
                probe.times += 1;
            }
        }
    }

    /// Peers of whose new key no handshake has succeeded yet, and still may.
    pub fn unsettled(&self, now: Duration) -> BTreeSet<NodeId> {
        let is_new = |probe: &KeyProbe| now.saturating_sub(probe.since) < UNSETTLED;
        let new = self.probes.iter().filter(|(_, probe)| is_new(probe));
        new.map(|(node, _)| *node).collect()
    }

    /// How soon the device is to be observed again; absent means that there is no hurry.
    pub fn interval(&self, now: Duration) -> Option<Duration> {
        let mut awaited = self.announced.values();
        let is_near = |awaited: &Awaited| now.saturating_sub(awaited.since) < ATTENTIVE;
        if !self.probes.is_empty() || awaited.clone().any(is_near) {
            return Some(OBSERVE_INTERVAL);
        }
        let stands = awaited.any(|awaited| awaited.stands);
        stands.then_some(OBSERVE_LATER_INTERVAL)
    }
}

/// The announced keys for which this node is ready, with its word for that: the device is, and both
/// ends go by the same preshared key.
pub fn keys_in_place(
    known: &Known,
    node_keys: &NodeKeys,
    interface: &Interface,
    psks: &Exchange,
) -> Vec<KeyInPlace> {
    let me = known.myself.node;
    let standing = known.peers.values().filter(|known| !known.withdrawn);
    let ready = standing.filter_map(
        |KnownPeer {
             peer, announced, ..
         }| {
            let announced = announced
                .as_ref()
                .filter(|announced| interface.peers.contains_key(&announced.wireguard_key))?;
            let signed = peer
                .announced
                .as_ref()
                .filter(|_| !psks.is_changing(peer.node))?;
            Some(KeyInPlace {
                peer: peer.node,
                sequence: announced.sequence,
                signature: readiness::sign(node_keys, me, signed),
            })
        },
    );
    ready.collect()
}

/// Whether the peer uses its announced key: only its holder can make the entry receive anything,
/// and only a switch gives it prefixes.
fn is_taken_up(interface: &Interface, announced: WireguardKey) -> bool {
    let sign = |entry: &ObservedPeer| {
        entry.received_bytes > 0 || entry.handshake_age_s.is_some() || !entry.allowed_ips.is_empty()
    };
    interface.peers.get(&announced).is_some_and(sign)
}

/// The endpoint of the entry that has a prefix now.
fn holders(interface: &Interface) -> Holders {
    interface
        .peers
        .values()
        .flat_map(|entry| {
            entry
                .allowed_ips
                .iter()
                .map(|prefix| (*prefix, entry.endpoint))
        })
        .collect()
}
