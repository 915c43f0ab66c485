//! Peers that large packets do not get to: TCP between the LANs stalls, though small packets pass.

use std::collections::BTreeMap;

use ipnet::IpNet;
use wattle_wire::{
    ids::NodeId,
    peer::Peer,
    report::{LanEffect, Problem, ProblemCode},
};

use super::lan;
use crate::{
    agent::{guard::Refused, replica::Known},
    host::{interface::InterfaceName, state::Interface},
};

/// As many routes a remedy names. It is told anew when these have an MTU.
const MOST_NAMED: usize = 12;

/// The peers to whose LANs larger packets may be sent than get there. `sizes` are what probes found;
/// `found` is the interface as it is, with its routes: what somebody has set on those is enough.
pub fn problems(
    known: &Known,
    refused: &Refused,
    name: &InterfaceName,
    found: &Interface,
    sizes: &BTreeMap<NodeId, u16>,
) -> Vec<Problem> {
    let serves = !known.myself.subnets.is_empty();
    let small = sizes
        .iter()
        .filter(|(_, size)| u32::from(**size) < found.mtu);
    small
        .filter_map(|(node, size)| {
            let peer = &known.peers.get(node)?.peer;
            let routes = unfit(peer, refused, found, *size);
            if routes.is_empty() {
                return None;
            }
            let words = format!(
                "packets of more than {size} bytes do not get to {} through the tunnel, smaller \
                 ones do: somewhere between the gateways the path is smaller and says nothing of it",
                peer.name
            );
            let commands = routes
                .iter()
                .take(MOST_NAMED)
                .map(|prefix| command(name, found, *prefix, *size));
            Some(Problem {
                subject: peer.name.to_string(),
                peer: Some(*node),
                remedy: Some(commands.collect::<Vec<_>>().join("; ")),
                lan: serves.then_some(LanEffect::Degraded),
                ..Problem::new(ProblemCode::LargePackets, words)
            })
        })
        .collect()
}

/// The peer's LANs to which the host may send larger packets.
fn unfit(peer: &Peer, refused: &Refused, found: &Interface, size: u16) -> Vec<IpNet> {
    let is_unfit = |prefix: &IpNet| {
        let route = found.routes.get(prefix);
        route.is_some_and(|route| route.mtu.is_none_or(|mtu| mtu > size.into()))
    };
    lan::behind(peer, refused).filter(is_unfit).collect()
}

/// Lets the host fit what it sends to a LAN. TCP is fitted in both directions then, for both ends
/// are told the size of a segment by the first packets.
fn command(name: &InterfaceName, found: &Interface, prefix: IpNet, size: u16) -> String {
    let family = lan::family(prefix);
    let route = found.routes.get(&prefix);
    let source = route
        .and_then(|route| route.source)
        .map(|source| format!(" src {source}"))
        .unwrap_or_default();
    format!("ip {family}route change {prefix} dev {name} proto 87{source} mtu {size}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::replica::Replica,
        config::view,
        host::state::ObservedRoute,
        testing::{Keys, MESH, directory_of, node_id, snapshot},
    };
    use wattle_wire::report::DeviceKind;

    fn known() -> Known {
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let view = view::view(&directory_of(3), node_id(1)).unwrap();
        replica.receive(snapshot(view), 0);
        replica.known().unwrap().clone()
    }

    /// An interface whose routes to the sites 2 and 3 have these MTUs.
    fn interface(mtus: [Option<u32>; 2]) -> Interface {
        let source = Some("10.1.0.1".parse().unwrap());
        let routes = ["10.2.0.0/24", "10.3.0.0/24"].into_iter().zip(mtus);
        Interface {
            mtu: 1420,
            routes: routes
                .map(|(prefix, mtu)| (prefix.parse().unwrap(), ObservedRoute { source, mtu }))
                .collect(),
            ..Interface::new(DeviceKind::Kernel)
        }
    }

    fn told(mtus: [Option<u32>; 2], sizes: [u16; 2]) -> Vec<Problem> {
        problems(
            &known(),
            &Refused::default(),
            &"wattle0".parse().unwrap(),
            &interface(mtus),
            &[node_id(2), node_id(3)].into_iter().zip(sizes).collect(),
        )
    }

    #[test]
    fn a_peer_that_large_packets_do_not_get_to_is_told_with_a_command_for_each_of_its_lans() {
        let told = told([None, None], [1_328, 1_420]);
        assert_eq!(
            told,
            [Problem {
                code: ProblemCode::LargePackets,
                subject: "site-2".to_owned(),
                peer: Some(node_id(2)),
                words: "packets of more than 1328 bytes do not get to site-2 through the tunnel, \
                        smaller ones do: somewhere between the gateways the path is smaller and \
                        says nothing of it"
                    .to_owned(),
                remedy: Some(
                    "ip route change 10.2.0.0/24 dev wattle0 proto 87 src 10.1.0.1 mtu 1328"
                        .to_owned()
                ),
                lan: Some(LanEffect::Degraded),
            }]
        );
    }

    #[test]
    fn what_somebody_has_set_on_the_routes_is_enough_while_packets_of_that_size_get_there() {
        for (mtu, size, is_told) in [
            (Some(1_328), 1_328, false),
            (Some(1_280), 1_328, false),
            (Some(1_344), 1_328, true),
            (Some(1_328), 1_312, true),
            (None, 1_420, false),
        ] {
            let told = told([mtu, None], [size, 1_420]);
            assert_eq!(!told.is_empty(), is_told, "{mtu:?} for {size}");
        }
        assert_eq!(told([None, Some(1_296)], [1_328, 1_296]).len(), 1);
    }

    #[test]
    fn a_node_that_serves_no_lan_keeps_none_from_others() {
        let mut known = known();
        known.myself.subnets.clear();
        let sizes = [(node_id(2), 1_328)].into();
        let (refused, name) = (Refused::default(), "wattle0".parse().unwrap());
        let told = problems(&known, &refused, &name, &interface([None; 2]), &sizes);
        assert_eq!(told[0].lan, None);
    }
}
