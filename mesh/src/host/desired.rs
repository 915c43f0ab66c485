//! What the host should be, from what its node knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net};
use wattle_wire::{endpoint::Endpoint, peer::Peer, psk::PskPolicy};

use crate::{
    agent::{
        guard::Refused,
        replica::{Known, KnownPeer, prefixes},
    },
    host::{
        interface::InterfaceName,
        ruleset::Ruleset,
        state::{Desired, DesiredPeer, DesiredPsk, Family},
    },
    keys::{
        node_keys::NodeKeys,
        psk::{Psk, exchange::Exchange},
        rotation::canary::PeerKeys,
    },
};

/// Bytes of a packet inside the tunnel on a path of 1,500: less 80 for the outer IPv6, UDP and
/// WireGuard headers, as wg-quick does.
pub const DEFAULT_MTU: u32 = 1420;

/// What only the host itself knows.
#[derive(Clone, Debug)]
pub struct Local<'a> {
    pub interface: InterfaceName,
    pub node_keys: &'a NodeKeys,
    /// Addresses of the host's other interfaces.
    pub addresses: Vec<IpNet>,
}

/// What the host should be, of what the guard does not refuse, with the preshared keys that are
/// agreed on. `peer_keys` says which peers have taken up the keys that they announced.
pub fn desired(
    known: &Known,
    local: &Local<'_>,
    refused: &Refused,
    psks: &Exchange,
    peer_keys: &PeerKeys,
) -> Desired {
    let subnets: Vec<IpNet> = known
        .myself
        .subnets
        .iter()
        .map(|subnet| subnet.net())
        .filter(|subnet| refused.serves(*subnet))
        .collect();
    let lan_source = |prefix: IpNet| {
        let mut addresses = local.addresses.iter().map(IpNet::addr);
        addresses.find(|address| {
            address.is_ipv4() == prefix.addr().is_ipv4()
                && subnets.iter().any(|subnet| subnet.contains(address))
        })
    };
    let known_peers = || {
        known
            .peers
            .values()
            .filter(|KnownPeer { peer, .. }| refused.allows_peer(peer.node))
    };
    let carried_out = |prefix: IpNet| refused.carried_out(prefix);
    let remote_subnets = known_peers()
        .flat_map(|KnownPeer { peer, .. }| peer.subnets.iter().copied())
        .flat_map(carried_out);
    let routes = remote_subnets
        .map(|prefix| (prefix, lan_source(prefix)))
        .collect();
    let mut peers = BTreeMap::new();
    let policy = refused.psk_policy(known.mesh.psk);
    for KnownPeer {
        peer,
        statement,
        announced,
        ..
    } in known_peers()
    {
        let key = peer_keys.of(peer.node);
        let psk = match (psks.key(peer.node, policy), policy) {
            (Some(psk), _) => DesiredPsk::Key(psk.clone()),
            (None, PskPolicy::Require) => DesiredPsk::Required,
            (None, PskPolicy::Prefer) => DesiredPsk::Any,
        };
        let announced = announced.as_ref().map(|announced| announced.wireguard_key);
        let taken_up = announced.filter(|_| key.is_some_and(|key| key.taken_up));
        if let Some(key) = announced.filter(|_| taken_up.is_none() && psk != DesiredPsk::Required) {
            peers.insert(key, canary(peer, local.node_keys.canary_psk(key)));
        }
        let desired = DesiredPeer {
            name: peer.name.clone(),
            endpoint: key
                .and_then(|key| key.endpoint)
                .or_else(|| peer.endpoint_for(known.myself.node).map(Endpoint::socket)),
            keepalive_s: known.mesh.keepalive_s,
            allowed_ips: prefixes(peer.tunnel_address, &peer.subnets)
                .flat_map(carried_out)
                .collect(),
            psk,
            anew: key.is_some_and(|key| key.anew),
        };
        peers.insert(taken_up.unwrap_or(statement.wireguard_key), desired);
    }
    let remote = peers
        .values()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    Desired {
        interface: local.interface.clone(),
        public_key: local.node_keys.wireguard_key(),
        listen_port: known.listen_port(),
        mtu: DEFAULT_MTU,
        addresses: tunnel_address(known, refused).into_iter().collect(),
        peers,
        routes,
        underlay: refused.underlay_routes(),
        forwarding: subnets.iter().map(|subnet| Family::from(*subnet)).collect(),
        ruleset: Ruleset {
            node: known.myself.node,
            interface: local.interface.clone(),
            local: subnets.into_iter().collect(),
            remote,
        },
    }
}

/// The entry that shows when a peer takes up the key that it announced.
fn canary(peer: &Peer, psk: Psk) -> DesiredPeer {
    DesiredPeer {
        name: peer.name.clone(),
        endpoint: None,
        keepalive_s: 0,
        allowed_ips: BTreeSet::new(),
        psk: DesiredPsk::Key(psk),
        anew: false,
    }
}

/// The tunnel address with the length of the mesh's prefix, so that the kernel makes the route to
/// all other tunnel addresses.
fn tunnel_address(known: &Known, refused: &Refused) -> Option<IpNet> {
    let address = known.myself.tunnel_address;
    let address = match Ipv4Net::new(address, known.mesh.tunnel_prefix.prefix_len()) {
        Ok(net) if refused.allows_tunnel_prefix() => IpNet::V4(net),
        Ok(_) | Err(_) => IpNet::from(IpAddr::V4(address)),
    };
    refused.allows_tunnel_address().then_some(address)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{
        agent::replica::Replica,
        config::{
            directory::{NodeRecord, RecordChange},
            view,
        },
        testing::{
            Keys, MESH, directory_of, node_id, node_keys_of, node_record, respecified, snapshot,
        },
    };

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_gateway_of_three_sites_carries_exactly_the_other_two() {
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let view = view::view(&directory_of(3), node_id(1)).unwrap();
        replica.receive(snapshot(view), 0);
        let local = Local {
            interface: "wattle0".parse().unwrap(),
            node_keys: &node_keys_of(1),
            addresses: vec![net("203.0.113.1/24"), net("10.1.0.1/24"), net("fd00::1/64")],
        };
        let desired = desired(
            replica.known().unwrap(),
            &local,
            &Refused::default(),
            &Exchange::default(),
            &PeerKeys::default(),
        );
        let allowed: BTreeMap<_, _> = desired
            .peers
            .values()
            .map(|peer| (peer.name.to_string(), peer.allowed_ips.clone()))
            .collect();
        let expected = [
            (
                "site-2".to_owned(),
                [net("10.99.0.2/32"), net("10.2.0.0/24")].into(),
            ),
            (
                "site-3".to_owned(),
                [net("10.99.0.3/32"), net("10.3.0.0/24")].into(),
            ),
        ];
        assert_eq!(allowed, expected.into());
        assert_eq!(desired.addresses, [net("10.99.0.1/16")].into());
        let source = Some("10.1.0.1".parse().unwrap());
        assert_eq!(
            desired.routes,
            [(net("10.2.0.0/24"), source), (net("10.3.0.0/24"), source)].into()
        );
        assert_eq!(desired.forwarding, [Family::V4].into());
    }

    #[test]
    fn d8_nothing_that_the_mesh_can_name_gets_into_the_ruleset() {
        let mut directory = directory_of(3);
        for (number, name) in [(1, "drop"), (2, "flush-ruleset"), (3, "accept")] {
            let (site, node) = node_record(number);
            let description = "\"; flush ruleset; add table inet x { }".to_owned();
            directory.apply(&respecified(site, |spec| {
                spec.name = name.parse().unwrap();
                spec.description = description;
            }));
            directory.apply(&RecordChange::Node(NodeRecord {
                name: name.parse().unwrap(),
                ..node
            }));
        }
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let view = view::view(&directory, node_id(1)).unwrap();
        replica.receive(snapshot(view), 0);
        let local = Local {
            interface: "wattle0".parse().unwrap(),
            node_keys: &node_keys_of(1),
            addresses: vec![],
        };
        let text = |desired: Desired| desired.ruleset.sets() + &desired.ruleset.chains();
        let named = text(desired(
            replica.known().unwrap(),
            &local,
            &Refused::default(),
            &Exchange::default(),
            &PeerKeys::default(),
        ));
        let mut plain = Replica::new(MESH, Keys::of(1).wireguard_key());
        let view = view::view(&directory_of(3), node_id(1)).unwrap();
        plain.receive(snapshot(view), 0);
        let unnamed = text(desired(
            plain.known().unwrap(),
            &local,
            &Refused::default(),
            &Exchange::default(),
            &PeerKeys::default(),
        ));
        assert_eq!(named, unnamed, "names change nothing");
        assert!(named.contains("10.2.0.0/24") && named.contains("wattle0"));
    }
}
