//! The guard: what a host lets the mesh do to it, whatever the coordinator says. Its rules are the host's own and never come from outside.
//!
//! What can be nobody's LAN (a default route, loopback, link-local and special ranges) never gets here: the replica refuses a peer that
//! claims it.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use wattle_wire::{ids::NodeId, name::Name, subnet::overlap};

use crate::replica::{Known, KnownPeer, prefixes};

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
}

impl Default for Guard {
    fn default() -> Self {
        Self { allow: None, refuse: Vec::new(), most_peers: 4096 }
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
    peers: BTreeMap<NodeId, Name>,
    most_peers: usize,
    tunnel_prefix: Option<(IpNet, Reason)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PrefixRefusal {
    peer: Name,
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    HostNetwork(IpNet),
    Endpoint(IpAddr, Name),
    Coordinator(IpAddr),
    NotAllowed,
    Listed(IpNet),
}

impl Guard {
    /// Judges a view.
    pub fn screen(&self, known: &Known, surroundings: &Surroundings) -> Refused {
        let mut refused = Refused { most_peers: self.most_peers, ..Refused::default() };
        let tunnel_prefix = IpNet::V4(known.mesh.tunnel_prefix).trunc();
        refused.tunnel_prefix = host_network(tunnel_prefix, surroundings).map(|reason| (tunnel_prefix, reason));
        let mut claims = BTreeMap::new();
        for (number, (node, KnownPeer { peer, .. })) in known.peers.iter().enumerate() {
            if number >= self.most_peers {
                refused.peers.insert(*node, peer.name.clone());
                continue;
            }
            for prefix in prefixes(peer.tunnel_address, &peer.subnets) {
                claims.insert(prefix, &peer.name);
                if let Some(reason) = self.judge(prefix, surroundings) {
                    refused.prefixes.insert(prefix, PrefixRefusal { peer: peer.name.clone(), reason });
                }
            }
        }
        let endpoints = known.peers.values().filter_map(|KnownPeer { peer, .. }| Some((peer.endpoint?.socket().ip(), &peer.name)));
        for (address, name) in endpoints {
            // No two claims overlap, so the one before the address is the only one that may hold it.
            if let Some((prefix, peer)) = claims.range(..=IpNet::from(address)).next_back()
                && prefix.contains(&address)
            {
                let reason = Reason::Endpoint(address, name.clone());
                refused.prefixes.insert(*prefix, PrefixRefusal { peer: (*peer).clone(), reason });
            }
        }
        refused
    }

    fn judge(&self, prefix: IpNet, surroundings: &Surroundings) -> Option<Reason> {
        let coordinator = || surroundings.coordinators.iter().find(|address| prefix.contains(*address));
        let listed = || self.refuse.iter().find(|listed| overlap(**listed, prefix));
        let is_allowed = || self.allow.as_ref().is_none_or(|allow| allow.iter().any(|allowed| allowed.contains(&prefix)));
        host_network(prefix, surroundings)
            .or_else(|| coordinator().map(|address| Reason::Coordinator(*address)))
            .or_else(|| listed().map(|listed| Reason::Listed(*listed)))
            .or_else(|| (!is_allowed()).then_some(Reason::NotAllowed))
    }
}

fn host_network(prefix: IpNet, surroundings: &Surroundings) -> Option<Reason> {
    let network = surroundings.networks.iter().map(IpNet::trunc).find(|network| overlap(*network, prefix));
    network.map(Reason::HostNetwork)
}

impl Refused {
    pub fn allows_peer(&self, node: NodeId) -> bool {
        !self.peers.contains_key(&node)
    }

    pub fn allows_prefix(&self, prefix: IpNet) -> bool {
        !self.prefixes.contains_key(&prefix)
    }

    /// Whether the interface may have a route to the whole tunnel prefix.
    pub fn allows_tunnel_prefix(&self) -> bool {
        self.tunnel_prefix.is_none()
    }

    /// Everything that was refused, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let tunnel = self.tunnel_prefix.iter().map(|(prefix, reason)| format!("the guard refused the tunnel prefix {prefix}: {reason}"));
        let refused = |(prefix, PrefixRefusal { peer, reason }): (&IpNet, &PrefixRefusal)| {
            format!("the guard refused {prefix} of peer {peer}: {reason}")
        };
        let prefixes = self.prefixes.iter().map(refused);
        let peers = self.peers.values().next().map(|name| {
            let (count, most) = (self.peers.len(), self.most_peers);
            format!("the guard refused {count} peers, of which {name} is one: most_peers is {most}")
        });
        tunnel.chain(prefixes).chain(peers)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork(network) => write!(f, "this host has the network {network} on another interface"),
            Self::Endpoint(address, peer) => {
                write!(f, "it holds {address}, the endpoint of peer {peer}, which is reached outside of the tunnel")
            }
            Self::Coordinator(address) => write!(f, "it holds {address}, the address of a coordinator"),
            Self::NotAllowed => f.write_str("it lies in no prefix that `allow` names"),
            Self::Listed(prefix) => write!(f, "`refuse` names {prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::{ids::Position, key::WireguardKey, stream::StreamMessage};

    use super::*;
    use crate::{
        desired::{Local, desired},
        psk::exchange::Exchange,
        replica::Replica,
        rotation::watch::Turns,
        state::Desired,
        testing::{Keys, MESH, directory_of, machine_of, node_id},
        view,
    };

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// What node 1 knows of a mesh of four, whose peers claim what `change` makes of them.
    fn known(change: impl FnOnce(&mut wattle_wire::peer::View)) -> Known {
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let mut view = view::view(&directory_of(4), node_id(1)).unwrap();
        change(&mut view);
        replica.receive(StreamMessage::Snapshot { position: Position { epoch: 1, revision: 1 }, view, removed: vec![] });
        replica.known().unwrap().clone()
    }

    fn surroundings() -> Surroundings {
        Surroundings { networks: vec![net("203.0.113.1/24"), net("10.1.0.1/24")], coordinators: vec!["198.18.0.2".parse().unwrap()] }
    }

    fn carried_out(known: &Known, refused: &Refused) -> Desired {
        let local = Local { interface: "wattle0".parse().unwrap(), machine: &machine_of(1), addresses: surroundings().networks };
        desired(known, &local, refused, &Exchange::default(), &Turns::default())
    }

    fn problems(refused: &Refused) -> Vec<String> {
        refused.problems().collect()
    }

    #[test]
    fn an_ordinary_mesh_is_carried_out_whole() {
        assert_eq!(problems(&Guard::default().screen(&known(|_| ()), &surroundings())), <[&str; 0]>::default());
    }

    #[test]
    fn e1_what_would_cut_the_host_off_is_refused_and_the_rest_carried_out() {
        let known = known(|view| {
            let claims = ["203.0.113.128/25", "198.18.0.0/15", "192.0.2.0/24"];
            view.peers[0].subnets.extend(claims.map(net));
            view.peers[1].endpoint = Some("192.0.2.7:51820".parse().unwrap());
        });
        let refused = Guard::default().screen(&known, &surroundings());
        let expected = [
            "the guard refused 192.0.2.0/24 of peer site-2: it holds 192.0.2.7, the endpoint of peer site-3, which is reached outside of the tunnel",
            "the guard refused 198.18.0.0/15 of peer site-2: it holds 198.18.0.2, the address of a coordinator",
            "the guard refused 203.0.113.128/25 of peer site-2: this host has the network 203.0.113.0/24 on another interface",
        ];
        assert_eq!(problems(&refused), expected);
        let clean =
            carried_out(&self::known(|view| view.peers[1].endpoint = Some("192.0.2.7:51820".parse().unwrap())), &Refused::default());
        assert_eq!(carried_out(&known, &refused), clean);
    }

    #[test]
    fn e1_only_what_the_host_allows_and_does_not_refuse_comes_in() {
        let guard: Guard = Guard { allow: Some(vec![net("10.0.0.0/8")]), refuse: vec![net("10.3.0.128/25")], ..Guard::default() };
        let known = known(|view| view.peers[0].subnets.push(net("172.20.0.0/24")));
        let expected = [
            "the guard refused 10.3.0.0/24 of peer site-3: `refuse` names 10.3.0.128/25",
            "the guard refused 172.20.0.0/24 of peer site-2: it lies in no prefix that `allow` names",
        ];
        assert_eq!(problems(&guard.screen(&known, &surroundings())), expected);
    }

    #[test]
    fn a_tunnel_prefix_that_covers_a_network_of_the_host_gets_no_route() {
        let known = known(|view| view.mesh.tunnel_prefix = "0.0.0.0/0".parse().unwrap());
        let refused = Guard::default().screen(&known, &surroundings());
        assert_eq!(carried_out(&known, &refused).addresses, [net("10.99.0.1/32")].into());
        assert_eq!(problems(&refused).len(), 1);
    }

    #[test]
    fn more_peers_than_the_host_takes_are_refused_the_last_ones() {
        let known = known(|_| ());
        let refused = Guard { most_peers: 2, ..Guard::default() }.screen(&known, &surroundings());
        let keys: Vec<WireguardKey> = carried_out(&known, &refused).peers.into_keys().collect();
        assert_eq!(keys.len(), 2);
        assert!(!keys.contains(&Keys::of(4).wireguard_key()));
        assert_eq!(problems(&refused), ["the guard refused 1 peers, of which site-4 is one: most_peers is 2"]);
    }
}
