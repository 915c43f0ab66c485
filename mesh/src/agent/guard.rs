//! The guard: what a host lets the mesh do to it, whatever the coordinator says. Its rules are the
//! host's own and never come from outside. The [`crate::agent::admission`] is one of them.
//!
//! What can be nobody's LAN (a default route, loopback, link-local and special ranges) never gets
//! here: the replica refuses a peer that claims it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Deserialize;
use wattle_wire::{ids::NodeId, key::OperatorKey, name::Name, subnet::overlap};

use crate::agent::{
    admission::{Standing, Unsigned, within},
    replica::{Known, KnownPeer, prefixes},
};

/// The rules of a host, as its file has them. Those that need no setting always hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Every prefix of a peer must lie in one of these; absent means that any may come.
    pub allow: Option<Vec<IpNet>>,
    /// No prefix of a peer may share an address with one of these.
    pub refuse: Vec<IpNet>,
    /// How many peers the host takes; those that came last are refused.
    pub most_peers: usize,
    /// Whether an operator has to have admitted a peer.
    pub lock: Lock,
    /// The operators whom the host believes, by their public keys.
    pub operator_keys: BTreeSet<OperatorKey>,
}

/// Whom a host takes for a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lock {
    /// Whom the coordinator names, from first sight on (trust on first use).
    #[default]
    Tofu,
    /// Of those, whom an operator has admitted.
    Required,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            allow: None,
            refuse: Vec::new(),
            most_peers: 4096,
            lock: Lock::Tofu,
            operator_keys: BTreeSet::new(),
        }
    }
}

/// What the host must go on reaching outside of the tunnel.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Networks of the host's other interfaces: its LAN and the underlay.
    pub networks: Vec<IpNet>,
    /// Addresses of coordinators, as far as they are known without asking anybody.
    pub coordinators: Vec<IpAddr>,
}

/// What the guard refused of a view; the rest is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    prefixes: BTreeMap<IpNet, PrefixRefusal>,
    peers: BTreeMap<NodeId, PeerRefusal>,
    /// Peers that only stay because they were there before the lock.
    grandfathered: Vec<Name>,
    tunnel_prefix: Option<(IpNet, Reason)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PrefixRefusal {
    peer: Name,
    reason: Reason,
    /// What of the prefix is carried out all the same.
    left: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PeerRefusal {
    peer: Name,
    reason: PeerReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PeerReason {
    TooMany { most: usize },
    Unsigned(Unsigned),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    NotAdmitted,
    HostNetwork(IpNet),
    Endpoint(IpAddr, Name),
    Coordinator(IpAddr),
    NotAllowed,
    Listed(IpNet),
}

impl Guard {
    /// Whom the host believes about who may be in the mesh, if it asks for that.
    pub fn operators(&self) -> Option<BTreeSet<OperatorKey>> {
        (self.lock == Lock::Required).then(|| self.operator_keys.clone())
    }

    /// Judges a view at a time, in seconds since 1970.
    pub fn screen(&self, known: &Known, surroundings: &Surroundings, now: i64) -> Refused {
        let mut refused = Refused::default();
        let tunnel_prefix = IpNet::V4(known.mesh.tunnel_prefix).trunc();
        refused.tunnel_prefix =
            host_network(tunnel_prefix, surroundings).map(|reason| (tunnel_prefix, reason));
        let mut claims = BTreeMap::new();
        let mut taken = 0;
        for (node, known_peer) in &known.peers {
            let peer = &known_peer.peer;
            let standing = known
                .admitted
                .as_ref()
                .map(|admitted| admitted.standing(known_peer, now));
            let admitted = match standing {
                None => None,
                Some(Standing::Admitted(prefixes)) => Some(prefixes),
                Some(Standing::Grandfathered(prefixes)) => {
                    refused.grandfathered.push(peer.name.clone());
                    Some(prefixes)
                }
                Some(Standing::Unsigned(reason)) => {
                    refused.refuse_peer(*node, &peer.name, PeerReason::Unsigned(reason));
                    continue;
                }
            };
            if taken >= self.most_peers {
                refused.refuse_peer(
                    *node,
                    &peer.name,
                    PeerReason::TooMany {
                        most: self.most_peers,
                    },
                );
                continue;
            }
            taken += 1;
            for prefix in prefixes(peer.tunnel_address, &peer.subnets) {
                let parts =
                    admitted.map_or_else(|| vec![prefix], |admitted| within(prefix, admitted));
                if parts != [prefix] {
                    refused.refuse_prefix(prefix, &peer.name, Reason::NotAdmitted, parts.clone());
                }
                for part in parts {
                    claims.insert(part, (prefix, &peer.name));
                    if let Some(reason) = self.judge(part, surroundings) {
                        refused.refuse_part(prefix, part, &peer.name, reason);
                    }
                }
            }
        }
        let peers = known
            .peers
            .values()
            .filter(|KnownPeer { peer, .. }| refused.allows_peer(peer.node));
        let endpoints: Vec<_> = peers
            .filter_map(|KnownPeer { peer, .. }| {
                Some((
                    peer.endpoint_for(known.myself.node)?.socket().ip(),
                    &peer.name,
                ))
            })
            .collect();
        for (address, name) in endpoints {
            // No two claims overlap, so the one before the address is the only one that may hold
            // it.
            if let Some((part, (prefix, peer))) = claims.range(..=IpNet::from(address)).next_back()
                && part.contains(&address)
            {
                refused.refuse_part(
                    *prefix,
                    *part,
                    peer,
                    Reason::Endpoint(address, name.clone()),
                );
            }
        }
        refused
    }

    fn judge(&self, prefix: IpNet, surroundings: &Surroundings) -> Option<Reason> {
        let coordinator = || {
            surroundings
                .coordinators
                .iter()
                .find(|address| prefix.contains(*address))
        };
        let listed = || self.refuse.iter().find(|listed| overlap(**listed, prefix));
        let is_allowed = || {
            self.allow
                .as_ref()
                .is_none_or(|allow| allow.iter().any(|allowed| allowed.contains(&prefix)))
        };
        host_network(prefix, surroundings)
            .or_else(|| coordinator().map(|address| Reason::Coordinator(*address)))
            .or_else(|| listed().map(|listed| Reason::Listed(*listed)))
            .or_else(|| (!is_allowed()).then_some(Reason::NotAllowed))
    }
}

fn host_network(prefix: IpNet, surroundings: &Surroundings) -> Option<Reason> {
    let network = surroundings
        .networks
        .iter()
        .map(IpNet::trunc)
        .find(|network| overlap(*network, prefix));
    network.map(Reason::HostNetwork)
}

impl Refused {
    pub fn allows_peer(&self, node: NodeId) -> bool {
        !self.peers.contains_key(&node)
    }

    /// Whether the peer is not configured because no operator has admitted it.
    pub fn is_unsigned(&self, node: NodeId) -> bool {
        self.peers
            .get(&node)
            .is_some_and(|refusal| matches!(refusal.reason, PeerReason::Unsigned(_)))
    }

    /// What of a peer's prefix is carried out: all, parts, or nothing.
    pub fn carried_out(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let refusal = self.prefixes.get(&prefix);
        let parts = refusal
            .into_iter()
            .flat_map(|refusal| refusal.left.iter().copied());
        parts.chain(refusal.is_none().then_some(prefix))
    }

    /// Why a peer's prefix, or a part of it, is not carried out.
    pub fn why(&self, prefix: IpNet) -> Option<String> {
        let refusal = self.prefixes.get(&prefix)?;
        Some(refusal.reason.to_string())
    }

    /// Whether the interface may have a route to the whole tunnel prefix.
    pub fn allows_tunnel_prefix(&self) -> bool {
        self.tunnel_prefix.is_none()
    }

    /// Everything that was refused, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let tunnel = self.tunnel_prefix.iter().map(|(prefix, reason)| {
            format!("the guard refused the tunnel prefix {prefix}: {reason}")
        });
        let prefixes =
            self.prefixes
                .iter()
                .map(|(prefix, PrefixRefusal { peer, reason, left })| {
                    let but = if left.is_empty() {
                        String::new()
                    } else {
                        format!(" but {}", list(left))
                    };
                    format!("the guard refused {prefix} of peer {peer}{but}: {reason}")
                });
        let mut by_reason: BTreeMap<PeerReason, Vec<&Name>> = BTreeMap::new();
        for PeerRefusal { peer, reason } in self.peers.values() {
            by_reason.entry(*reason).or_default().push(peer);
        }
        let peers = by_reason
            .into_iter()
            .map(|(reason, peers)| format!("the guard refused {}: {reason}", some_of(&peers)));
        let grandfathered: Vec<_> = self.grandfathered.iter().collect();
        let grandfathered = (!grandfathered.is_empty()).then(|| {
            let peers = some_of(&grandfathered);
            format!(
                "no operator has admitted {peers}. They were there before the lock, and stay until \
                 they are signed or until `wattle-agent confirm` removes them"
            )
        });
        tunnel.chain(grandfathered).chain(peers).chain(prefixes)
    }

    fn refuse_peer(&mut self, node: NodeId, peer: &Name, reason: PeerReason) {
        self.peers.insert(
            node,
            PeerRefusal {
                peer: peer.clone(),
                reason,
            },
        );
    }

    fn refuse_prefix(&mut self, prefix: IpNet, peer: &Name, reason: Reason, left: Vec<IpNet>) {
        self.prefixes.insert(
            prefix,
            PrefixRefusal {
                peer: peer.clone(),
                reason,
                left,
            },
        );
    }

    /// Refuses a part of a prefix, which may be all of it.
    fn refuse_part(&mut self, prefix: IpNet, part: IpNet, peer: &Name, reason: Reason) {
        let mut left: Vec<_> = self.carried_out(prefix).collect();
        left.retain(|other| *other != part);
        self.refuse_prefix(prefix, peer, reason, left);
    }
}

/// Peers, of whom the first is named.
fn some_of(peers: &[&Name]) -> String {
    match peers {
        [] => "nobody".to_owned(),
        [peer] => format!("peer {peer}"),
        [peer, ..] => format!("{} peers, {peer} among them", peers.len()),
    }
}

fn list(prefixes: &[IpNet]) -> String {
    prefixes
        .iter()
        .map(IpNet::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

impl fmt::Display for PeerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { most } => write!(f, "most_peers is {most}"),
            Self::Unsigned(unsigned) => unsigned.fmt(f),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAdmitted => f.write_str("its admission does not cover it"),
            Self::HostNetwork(network) => write!(
                f,
                "this host has the network {network} on another interface"
            ),
            Self::Endpoint(address, peer) => {
                write!(
                    f,
                    "it contains {address}, the endpoint of peer {peer}, which must be reached \
                     outside of the tunnel"
                )
            }
            Self::Coordinator(address) => {
                write!(f, "it contains {address}, the address of a coordinator")
            }
            Self::NotAllowed => f.write_str("it is in no prefix of `allow`"),
            Self::Listed(prefix) => write!(f, "`refuse` names {prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::{ids::Position, key::WireguardKey, stream::StreamMessage};

    use super::*;
    use crate::{
        agent::replica::Replica,
        config::view,
        host::{
            desired::{Local, desired},
            state::Desired,
        },
        keys::{psk::exchange::Exchange, rotation::canary::PeerKeys},
        testing::{Keys, MESH, directory_of, node_id, node_keys_of},
    };

    /// Seconds since 1970.
    const NOW: i64 = 1_800_000_000;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// What node 1 knows of a mesh of four, whose peers claim what `change` makes of them.
    fn known(change: impl FnOnce(&mut wattle_wire::peer::View)) -> Known {
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let mut view = view::view(&directory_of(4), node_id(1)).unwrap();
        change(&mut view);
        replica.receive(
            StreamMessage::Snapshot {
                position: Position {
                    epoch: 1,
                    revision: 1,
                },
                view,
                removed: vec![],
            },
            0,
        );
        replica.known().unwrap().clone()
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            networks: vec![net("203.0.113.1/24"), net("10.1.0.1/24")],
            coordinators: vec!["198.18.0.2".parse().unwrap()],
        }
    }

    fn carried_out(known: &Known, refused: &Refused) -> Desired {
        let local = Local {
            interface: "wattle0".parse().unwrap(),
            node_keys: &node_keys_of(1),
            addresses: surroundings().networks,
        };
        desired(
            known,
            &local,
            refused,
            &Exchange::default(),
            &PeerKeys::default(),
        )
    }

    fn problems(refused: &Refused) -> Vec<String> {
        refused.problems().collect()
    }

    #[test]
    fn an_ordinary_mesh_is_carried_out_whole() {
        assert_eq!(
            problems(&Guard::default().screen(&known(|_| ()), &surroundings(), NOW)),
            <[&str; 0]>::default()
        );
    }

    #[test]
    fn e1_what_would_cut_the_host_off_is_refused_and_the_rest_carried_out() {
        let known = known(|view| {
            let claims = ["203.0.113.128/25", "198.18.0.0/15", "192.0.2.0/24"];
            view.peers[0].subnets.extend(claims.map(net));
            view.peers[1].endpoint = Some("192.0.2.7:51820".parse().unwrap());
        });
        let refused = Guard::default().screen(&known, &surroundings(), NOW);
        let expected = [
            "the guard refused 192.0.2.0/24 of peer site-2: it contains 192.0.2.7, the endpoint \
             of peer site-3, which must be reached outside of the tunnel",
            "the guard refused 198.18.0.0/15 of peer site-2: it contains 198.18.0.2, the address of \
             a coordinator",
            "the guard refused 203.0.113.128/25 of peer site-2: this host has the network \
             203.0.113.0/24 on another interface",
        ];
        assert_eq!(problems(&refused), expected);
        let clean = carried_out(
            &self::known(|view| view.peers[1].endpoint = Some("192.0.2.7:51820".parse().unwrap())),
            &Refused::default(),
        );
        assert_eq!(carried_out(&known, &refused), clean);
    }

    #[test]
    fn e1_only_what_the_host_allows_and_does_not_refuse_comes_in() {
        let guard: Guard = Guard {
            allow: Some(vec![net("10.0.0.0/8")]),
            refuse: vec![net("10.3.0.128/25")],
            ..Guard::default()
        };
        let known = known(|view| view.peers[0].subnets.push(net("172.20.0.0/24")));
        let expected = [
            "the guard refused 10.3.0.0/24 of peer site-3: `refuse` names 10.3.0.128/25",
            "the guard refused 172.20.0.0/24 of peer site-2: it is in no prefix of `allow`",
        ];
        assert_eq!(
            problems(&guard.screen(&known, &surroundings(), NOW)),
            expected
        );
    }

    #[test]
    fn a_tunnel_prefix_that_covers_a_network_of_the_host_gets_no_route() {
        let known = known(|view| view.mesh.tunnel_prefix = "0.0.0.0/0".parse().unwrap());
        let refused = Guard::default().screen(&known, &surroundings(), NOW);
        assert_eq!(
            carried_out(&known, &refused).addresses,
            [net("10.99.0.1/32")].into()
        );
        assert_eq!(problems(&refused).len(), 1);
    }

    #[test]
    fn c9_more_peers_than_the_host_takes_are_refused_the_last_ones() {
        let known = known(|_| ());
        let refused = Guard {
            most_peers: 2,
            ..Guard::default()
        }
        .screen(&known, &surroundings(), NOW);
        let keys: Vec<WireguardKey> = carried_out(&known, &refused).peers.into_keys().collect();
        assert_eq!(keys.len(), 2);
        assert!(!keys.contains(&Keys::of(4).wireguard_key()));
        assert_eq!(
            problems(&refused),
            ["the guard refused peer site-4: most_peers is 2"]
        );
    }
}
