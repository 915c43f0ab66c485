//! The guard: what a host lets the mesh do to it, whatever the coordinator says. Its rules are the
//! host's own and never come from outside. The [`crate::agent::admission`] is one of them.
//!
//! What can be nobody's LAN (a default route, loopback, link-local and special ranges) never gets
//! here: the replica refuses a peer that claims it.

mod reason;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Deserialize;
use wattle_wire::{
    ids::NodeId,
    key::OperatorKey,
    name::Name,
    peer::Peer,
    psk::PskPolicy,
    report::{LanEffect, Problem, ProblemCode},
    subnet::{Subnet, overlap},
};

use self::reason::{PeerReason, Reason};
use crate::{
    agent::{
        admission::{Standing, within},
        replica::{Known, KnownPeer, prefixes},
        underlay::Purpose,
    },
    host::way::{self, ForeignRoute, Past, Way},
};

/// The rules of a host, as its file has them. Those that need no setting always hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Every prefix of a peer must lie in one of these; absent means that any may come.
    pub allow: Option<Vec<IpNet>>,
    /// No prefix of a peer, or of the own site, may share an address with one of these.
    pub refuse: Vec<IpNet>,
    /// Every subnet of the own site must lie in one of these; absent means that any may come.
    pub serve: Option<Vec<IpNet>>,
    /// `require` asks for a preshared key with each peer, whatever the mesh says.
    pub psk: Option<PskPolicy>,
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
            serve: None,
            psk: None,
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
    /// Addresses that it reaches there, and what for; the endpoints of peers come to them.
    pub underlay: BTreeMap<IpAddr, Purpose>,
    /// Its own routes.
    pub routes: Vec<ForeignRoute>,
}

/// What the guard refused of a view; the rest is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    prefixes: BTreeMap<IpNet, PrefixRefusal>,
    peers: BTreeMap<NodeId, PeerRefusal>,
    /// Peers that only stay because they were there before the lock.
    grandfathered: Vec<Name>,
    tunnel_prefix: Option<(IpNet, Reason)>,
    /// The host's own tunnel address, if it may not have it.
    tunnel_address: Option<(IpAddr, Reason)>,
    /// Subnets of the own site that the host does not serve.
    own: BTreeMap<IpNet, Reason>,
    /// Whether the host asks for preshared keys itself.
    requires_psk: bool,
    /// Addresses that stay outside of the tunnel, though a prefix that is carried out holds them.
    underlay: BTreeMap<IpAddr, UnderlayAddress>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct UnderlayAddress {
    purpose: Purpose,
    prefix: IpNet,
    /// Absent means that it is the tunnel prefix.
    peer: Option<Name>,
    /// Absent means that the host has no route to it but through the tunnel.
    ///
    /// The prefix is carried out all the same: to leave it out would not help the host to reach the
    /// address, and would cut off the site each time the uplink is down. As soon as the host has a
    /// route, the address gets its way past the tunnel.
    way: Option<Way>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PrefixRefusal {
    node: NodeId,
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

impl Guard {
    /// Whom the host believes about who may be in the mesh, if it asks for that.
    pub fn operators(&self) -> Option<BTreeSet<OperatorKey>> {
        (self.lock == Lock::Required).then(|| self.operator_keys.clone())
    }

    /// Judges a view at a time, in seconds since 1970.
    pub fn screen(&self, known: &Known, surroundings: &Surroundings, now: i64) -> Refused {
        let mut refused = Refused::default();
        let tunnel_prefix = IpNet::V4(known.mesh.tunnel_prefix).trunc();
        refused.requires_psk = self.psk == Some(PskPolicy::Require);
        refused.tunnel_prefix = Subnet::try_from(tunnel_prefix)
            .err()
            .map(Reason::NoLan)
            .or_else(|| self.judge(tunnel_prefix, surroundings))
            .map(|reason| (tunnel_prefix, reason));
        let subnets = known.myself.subnets.iter().map(|subnet| subnet.net());
        let unserved = subnets.filter_map(|subnet| Some((subnet, self.judge_own(subnet)?)));
        refused.own = unserved.collect();
        let mut carried_out = BTreeMap::new();
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
                    refused.refuse_prefix(prefix, peer, Reason::NotAdmitted, parts.clone());
                }
                for part in parts {
                    if let Some(reason) = self.judge(part, surroundings) {
                        refused.refuse_part(prefix, part, peer, reason);
                    } else {
                        carried_out.insert(part, (prefix, peer));
                    }
                }
            }
        }
        // No node is where the tunnel leads, and whoever says so would have addresses of others go
        // past it.
        let endpoints: BTreeMap<_, _> = known
            .peers
            .values()
            .filter(|KnownPeer { peer, .. }| refused.allows_peer(peer.node))
            .filter_map(|KnownPeer { peer, .. }| {
                let endpoint = peer.endpoint_for(known.myself.node)?;
                Some((endpoint.socket().ip(), Purpose::Endpoint(peer.name.clone())))
            })
            .filter(|(address, _)| !tunnel_prefix.contains(address))
            .collect();
        let own = IpAddr::V4(known.myself.tunnel_address);
        let outside = endpoints.get(&own).or(surroundings.underlay.get(&own));
        refused.tunnel_address = outside
            .map(|purpose| Reason::Underlay(purpose.clone()))
            .or_else(|| self.judge(IpNet::from(own), surroundings))
            .or_else(|| {
                let is_inside = tunnel_prefix.contains(&own);
                (!is_inside).then_some(Reason::NotInTunnelPrefix(tunnel_prefix))
            })
            .map(|reason| (own, reason));
        for (address, purpose) in endpoints.iter().chain(&surroundings.underlay) {
            // No two prefixes overlap, so the one before the address is the only one that may hold
            // it.
            let before = carried_out.range(..=IpNet::from(*address)).next_back();
            let holder = before.filter(|(part, _)| part.contains(address));
            let (prefix, peer) = match holder {
                Some((part, (prefix, peer))) if *part == IpNet::from(*address) => {
                    // Nothing of it is left for the tunnel.
                    let reason = Reason::Underlay(purpose.clone());
                    refused.refuse_part(*prefix, *part, peer, reason);
                    (tunnel_prefix, None)
                }
                Some((part, (_, peer))) => (*part, Some(peer.name.clone())),
                None => (tunnel_prefix, None),
            };
            let is_routed = peer.is_some() || refused.allows_tunnel_prefix();
            if is_routed && prefix.contains(address) {
                refused.keep_outside(*address, purpose, prefix, peer, &surroundings.routes);
            }
        }
        refused
    }

    /// Why the host does not serve a subnet of its own site.
    fn judge_own(&self, subnet: IpNet) -> Option<Reason> {
        let is_served = self
            .serve
            .as_ref()
            .is_none_or(|serve| serve.iter().any(|served| served.contains(&subnet)));
        let listed = self.listed(subnet).map(Reason::Listed);
        listed.or_else(|| (!is_served).then_some(Reason::NotServed))
    }

    fn listed(&self, prefix: IpNet) -> Option<IpNet> {
        let mut listed = self.refuse.iter();
        listed.find(|listed| overlap(**listed, prefix)).copied()
    }

    fn judge(&self, prefix: IpNet, surroundings: &Surroundings) -> Option<Reason> {
        let is_allowed = || {
            self.allow
                .as_ref()
                .is_none_or(|allow| allow.iter().any(|allowed| allowed.contains(&prefix)))
        };
        host_network(prefix, surroundings)
            .or_else(|| self.listed(prefix).map(Reason::Listed))
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

    /// Whether the interface may have the node's tunnel address.
    pub fn allows_tunnel_address(&self) -> bool {
        self.tunnel_address.is_none()
    }

    /// Whether the host serves a subnet of its site.
    pub fn serves(&self, subnet: IpNet) -> bool {
        !self.own.contains_key(&subnet)
    }

    /// Whether packets pass without a preshared key, where the mesh says so.
    pub fn psk_policy(&self, mesh: PskPolicy) -> PskPolicy {
        if self.requires_psk {
            PskPolicy::Require
        } else {
            mesh
        }
    }

    /// Addresses that are to be reached past the tunnel, and how.
    pub fn underlay_routes(&self) -> BTreeMap<IpAddr, Way> {
        let addresses = self.underlay.iter();
        addresses
            .filter_map(|(address, underlay)| Some((*address, underlay.way.clone()?)))
            .collect()
    }

    /// Everything that was refused.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let tunnel = self.tunnel_prefix.iter().map(|(prefix, reason)| Problem {
            subject: prefix.to_string(),
            remedy: Some(reason.remedy(*prefix)),
            ..Problem::new(
                ProblemCode::Refused,
                format!("the guard refused the tunnel prefix {prefix}: {reason}"),
            )
        });
        let own_address = self.tunnel_address.iter().map(|(address, reason)| Problem {
            subject: address.to_string(),
            remedy: Some(reason.remedy((*address).into())),
            ..Problem::new(
                ProblemCode::Refused,
                format!("the guard refused {address} as the tunnel address of this host: {reason}"),
            )
        });
        let own = self.own.iter().map(|(subnet, reason)| Problem {
            subject: subnet.to_string(),
            remedy: Some(reason.remedy(*subnet)),
            lan: Some(LanEffect::Degraded),
            ..Problem::new(
                ProblemCode::Refused,
                format!("the guard refused to serve {subnet}: {reason}"),
            )
        });
        let prefixes = self.prefixes.iter().map(|(prefix, refusal)| Problem {
            subject: prefix.to_string(),
            peer: Some(refusal.node),
            remedy: Some(refusal.reason.remedy(*prefix)),
            lan: Some(LanEffect::Degraded),
            ..Problem::new(ProblemCode::Refused, refusal.in_words(*prefix))
        });
        let mut by_reason: BTreeMap<PeerReason, Vec<&Name>> = BTreeMap::new();
        for PeerRefusal { peer, reason } in self.peers.values() {
            by_reason.entry(*reason).or_default().push(peer);
        }
        let peers = by_reason.into_iter().map(|(reason, peers)| {
            let (code, subject) = match reason {
                PeerReason::TooMany { .. } => (ProblemCode::Refused, "most_peers"),
                PeerReason::Unsigned(_) => (ProblemCode::NotAdmitted, "peers"),
            };
            let words = format!("the guard refused {}: {reason}", some_of(&peers));
            Problem {
                subject: subject.to_owned(),
                remedy: Some(reason.remedy()),
                ..Problem::new(code, words)
            }
        });
        let grandfathered: Vec<_> = self.grandfathered.iter().collect();
        let grandfathered = (!grandfathered.is_empty()).then(|| {
            let peers = some_of(&grandfathered);
            let words = format!(
                "no operator has admitted {peers}. They were there before the lock, and stay until \
                 they are signed or until `wattle-agent confirm` removes them"
            );
            Problem {
                subject: "before the lock".to_owned(),
                ..Problem::new(ProblemCode::NotAdmitted, words)
            }
        });
        let underlay = self.underlay.iter().map(|(address, underlay)| Problem {
            subject: address.to_string(),
            ..Problem::new(ProblemCode::Underlay, underlay.in_words(*address))
        });
        tunnel
            .chain(own_address)
            .chain(own)
            .chain(grandfathered)
            .chain(peers)
            .chain(prefixes)
            .chain(underlay)
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

    fn refuse_prefix(&mut self, prefix: IpNet, peer: &Peer, reason: Reason, left: Vec<IpNet>) {
        self.prefixes.insert(
            prefix,
            PrefixRefusal {
                node: peer.node,
                peer: peer.name.clone(),
                reason,
                left,
            },
        );
    }

    /// Keeps one address of a prefix out of the tunnel, unless the host's own routes do.
    fn keep_outside(
        &mut self,
        address: IpAddr,
        purpose: &Purpose,
        prefix: IpNet,
        peer: Option<Name>,
        routes: &[ForeignRoute],
    ) {
        let way = match way::past(address, prefix, routes) {
            Past::Already => return,
            Past::By(way) => Some(way),
            Past::Nowhere => None,
        };
        let underlay = UnderlayAddress {
            purpose: purpose.clone(),
            prefix,
            peer,
            way,
        };
        self.underlay.insert(address, underlay);
    }

    /// Refuses a part of a prefix, which may be all of it.
    fn refuse_part(&mut self, prefix: IpNet, part: IpNet, peer: &Peer, reason: Reason) {
        let mut left: Vec<_> = self.carried_out(prefix).collect();
        left.retain(|other| *other != part);
        self.refuse_prefix(prefix, peer, reason, left);
    }
}

impl PrefixRefusal {
    fn in_words(&self, prefix: IpNet) -> String {
        let Self {
            peer, reason, left, ..
        } = self;
        let but = if left.is_empty() {
            String::new()
        } else {
            format!(" but {}", list(left))
        };
        format!("the guard refused {prefix} of peer {peer}{but}: {reason}")
    }
}

impl UnderlayAddress {
    fn in_words(&self, address: IpAddr) -> String {
        let Self {
            purpose,
            prefix,
            peer,
            way,
        } = self;
        let holder = match peer {
            Some(peer) => format!("{prefix} of {peer}"),
            None => format!("the tunnel prefix {prefix}"),
        };
        let follows = if way.is_some() {
            "it stays outside the tunnel"
        } else {
            "it cannot be reached, for this host has no route to it outside the tunnel"
        };
        format!("{address}, {purpose}, lies in {holder}: {follows}")
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

#[cfg(test)]
mod tests;
