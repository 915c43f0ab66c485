use std::net::SocketAddr;

use proptest::prelude::*;
use wattle_wire::ids::NodeId;

use super::*;
use crate::{
    health::replies::Flows,
    host::{
        ruleset::Ruleset,
        state::{Family, SESSION_S},
    },
    keys::psk::Psk,
    testing::Keys,
};

fn key(number: u64) -> WireguardKey {
    Keys::of(number).wireguard_key()
}

/// An interface without anything.
fn bare() -> Desired {
    Desired {
        interface: "wattle0".parse().unwrap(),
        public_key: key(0),
        listen_port: 51820,
        mtu: 1420,
        addresses: BTreeSet::new(),
        peers: BTreeMap::new(),
        routes: BTreeMap::new(),
        underlay: BTreeMap::new(),
        forwarding: BTreeSet::new(),
        ruleset: Ruleset {
            node: NodeId(uuid::Uuid::nil()),
            interface: "wattle0".parse().unwrap(),
            local: BTreeSet::new(),
            remote: BTreeSet::new(),
        },
    }
}

fn apply(observed: &Observed, plan: &Plan) -> Observed {
    plan.steps.iter().fold(observed.clone(), |observed, step| {
        observed.after(&step.change)
    })
}

const PEERS: u64 = 5;
const PREFIXES: u8 = 8;

fn prefix(number: u8) -> IpNet {
    format!("10.{number}.0.0/24").parse().unwrap()
}

fn endpoint() -> impl Strategy<Value = Option<SocketAddr>> {
    prop::option::of((1..4u8).prop_map(|host| SocketAddr::from(([203, 0, 113, host], 51820))))
}

fn psk() -> impl Strategy<Value = Psk> {
    (0..3u8).prop_map(|byte| Psk::new([byte; 32]))
}

fn desired_psk() -> impl Strategy<Value = DesiredPsk> {
    prop_oneof![
        psk().prop_map(DesiredPsk::Key),
        Just(DesiredPsk::Any),
        Just(DesiredPsk::Required)
    ]
}

fn routes() -> impl Strategy<Value = BTreeMap<IpNet, Option<IpAddr>>> {
    prop::collection::btree_map(
        (0..PREFIXES).prop_map(prefix),
        prop::option::of(Just(IpAddr::from([10, 0, 0, 1]))),
        0..4,
    )
}

fn underlay() -> impl Strategy<Value = BTreeMap<IpAddr, Way>> {
    let way = (1..3u8).prop_map(|number| Way {
        device: "eth0".to_owned(),
        gateway: Some(IpAddr::from([203, 0, 113, number])),
        source: None,
    });
    prop::collection::btree_map((0..3u8).prop_map(|host| [10, 0, 0, host].into()), way, 0..3)
}

fn addresses(least: usize) -> impl Strategy<Value = BTreeSet<IpNet>> {
    prop::collection::btree_set(
        (1..4u8).prop_map(|host| format!("10.99.0.{host}/16").parse().unwrap()),
        least..3,
    )
}

fn families() -> impl Strategy<Value = BTreeSet<Family>> {
    prop::collection::btree_set(prop_oneof![Just(Family::V4), Just(Family::V6)], 0..3)
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let remote = prop::collection::btree_set((0..PREFIXES).prop_map(prefix), 0..3);
    (prop_oneof![Just("wattle0"), Just("wattle1")], remote).prop_map(|(interface, remote)| {
        Ruleset {
            node: NodeId(uuid::Uuid::nil()),
            interface: interface.parse().unwrap(),
            local: BTreeSet::new(),
            remote,
        }
    })
}

/// Which peer holds which prefix: each prefix at most one.
fn holders() -> impl Strategy<Value = BTreeMap<u8, u64>> {
    prop::collection::btree_map(0..PREFIXES, 1..=PEERS, 0..10)
}

fn held(holders: &BTreeMap<u8, u64>, peer: u64) -> BTreeSet<IpNet> {
    holders
        .iter()
        .filter(|(_, holder)| **holder == peer)
        .map(|(number, _)| prefix(*number))
        .collect()
}

prop_compose! {
    fn desired()(
        holders in holders(),
        present in prop::collection::btree_map(1..=PEERS, (endpoint(), prop_oneof![Just(0u16), Just(25)], desired_psk()), 0..5),
        routes in routes(),
        underlay in underlay(),
        addresses in addresses(1),
        forwarding in families(),
        ruleset in ruleset(),
    ) -> Desired {
        let peer = |(number, (endpoint, keepalive_s, psk)): (u64, _)| {
            let name = format!("site-{number}").parse().unwrap();
            (key(number), DesiredPeer { name, endpoint, keepalive_s, allowed_ips: held(&holders, number), psk, anew: false })
        };
        Desired {
            interface: "wattle0".parse().unwrap(),
            public_key: key(0),
            listen_port: 51820,
            mtu: 1420,
            addresses,
            peers: present.into_iter().map(peer).collect(),
            routes,
            underlay,
            forwarding,
            ruleset,
        }
    }
}

prop_compose! {
    fn observed_interface()(
        holders in holders(),
        present in prop::collection::btree_map(
            0..=PEERS,
            (endpoint(), prop_oneof![Just(0u16), Just(25)], prop::option::of(0..2 * SESSION_S), prop::option::of(psk())),
            0..6,
        ),
        routes in routes(),
        route_mtu in prop::option::of(Just(1328u32)),
        addresses in addresses(0),
        own in prop::option::of(prop_oneof![Just(0u64), Just(99)]),
        up in any::<bool>(),
        mtu in prop_oneof![Just(1420u32), Just(1500)],
        listen_port in prop_oneof![Just(51820u16), Just(0)],
    ) -> Interface {
        let peer = |(number, (endpoint, keepalive_s, handshake_age_s, psk)): (u64, _)| {
            let allowed_ips = held(&holders, number);
            (key(number), ObservedPeer { endpoint, keepalive_s, allowed_ips, psk, handshake_age_s, ..ObservedPeer::default() })
        };
        let routes = routes.into_iter().map(|(prefix, source)| (prefix, ObservedRoute { source, mtu: route_mtu })).collect();
        let public_key = own.map(key);
        // The kernel never keeps a peer with the interface's own key.
        let peers = present.into_iter().map(peer).filter(|(key, _)| Some(*key) != public_key).collect();
        Interface { up, mtu, addresses, routes, public_key, listen_port, peers, ..Interface::new(DeviceKind::Kernel) }
    }
}

prop_compose! {
    fn observed()(
        interface in prop::option::weighted(0.9, observed_interface()),
        underlay in underlay(),
        forwarding in families(),
        ruleset in prop_oneof![
            Just(ObservedRuleset::Absent),
            Just(ObservedRuleset::Altered),
            Just(ObservedRuleset::Foreign),
            ruleset().prop_map(ObservedRuleset::Intact),
        ],
    ) -> Observed {
        Observed { interface, underlay, forwarding, ruleset, flows: Flows::default() }
    }
}

/// A host whose interface has the key of `desired`, so that there may be sessions with its peers.
fn observed_with_sessions() -> impl Strategy<Value = Observed> {
    (observed_interface(), observed()).prop_map(|(mut interface, observed)| {
        let own = bare().public_key;
        interface.public_key = Some(own);
        interface.peers.remove(&own);
        Observed {
            interface: Some(interface),
            ..observed
        }
    })
}

/// Whether there may be sessions with peers: those of another private key are over.
fn keeps_sessions(desired: &Desired, observed: &Observed) -> bool {
    let interface = observed.interface.as_ref();
    interface.is_some_and(|interface| interface.public_key == Some(desired.public_key))
}

/// Checks each thing that the host should be, without the help of `plan`.
fn reached(desired: &Desired, observed: &Observed) -> Result<(), TestCaseError> {
    let interface = observed
        .interface
        .as_ref()
        .ok_or_else(|| TestCaseError::fail("no interface"))?;
    prop_assert!(interface.up);
    prop_assert_eq!(&observed.underlay, &desired.underlay);
    prop_assert_eq!(interface.public_key, Some(desired.public_key));
    prop_assert_eq!(
        (interface.listen_port, interface.mtu),
        (desired.listen_port, desired.mtu)
    );
    prop_assert_eq!(&interface.addresses, &desired.addresses);
    let routes = interface.routes.iter();
    let routes: BTreeMap<_, _> = routes
        .map(|(prefix, found)| (*prefix, found.source))
        .collect();
    prop_assert_eq!(&routes, &desired.routes);
    prop_assert!(observed.forwarding.is_superset(&desired.forwarding));
    prop_assert_eq!(
        &observed.ruleset,
        &ObservedRuleset::Intact(desired.ruleset.clone())
    );
    let waits = |key: &WireguardKey| {
        desired
            .peers
            .get(key)
            .is_some_and(|peer| peer.psk == DesiredPsk::Required)
    };
    let settled = |key: &&WireguardKey| !waits(key);
    let (found, wanted) = (
        interface.peers.keys().filter(settled),
        desired.peers.keys().filter(settled),
    );
    prop_assert_eq!(found.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    for (key, peer) in &interface.peers {
        let wanted = &desired.peers[key];
        prop_assert_eq!(
            (&peer.allowed_ips, peer.keepalive_s),
            (&wanted.allowed_ips, wanted.keepalive_s)
        );
        match &wanted.psk {
            DesiredPsk::Key(psk) => prop_assert_eq!(peer.psk.as_ref(), Some(psk)),
            DesiredPsk::Required => prop_assert!(peer.psk.is_some()),
            DesiredPsk::Any => {}
        }
        prop_assert!(
            peer.is_live() || wanted.endpoint.is_none() || peer.endpoint == wanted.endpoint
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn applying_reaches_the_desired_state_and_planning_again_is_empty(desired in desired(), observed in observed()) {
        let after = apply(&observed, &plan(&desired, &observed));
        reached(&desired, &after)?;
        prop_assert_eq!(plan(&desired, &after), Plan::default());
    }

    #[test]
    fn h1_any_prefix_of_a_plan_can_be_repaired(desired in desired(), observed in observed(), stop in any::<prop::sample::Index>()) {
        let mut partly = plan(&desired, &observed);
        let steps = partly.steps.len();
        partly.steps.truncate(stop.index(steps + 1));
        let interrupted = apply(&observed, &partly);
        reached(&desired, &apply(&interrupted, &plan(&desired, &interrupted)))?;
    }

    #[test]
    fn no_prefix_is_ever_held_by_two_peers_and_one_at_its_right_place_stays(desired in desired(), observed in observed()) {
        let steps = plan(&desired, &observed).steps;
        let holders = |observed: &Observed| -> Vec<(IpNet, WireguardKey)> {
            let peers = observed.interface.iter().flat_map(|interface| &interface.peers);
            peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (*prefix, *key))).collect()
        };
        let right: BTreeSet<_> = holders(&observed)
            .into_iter()
            .filter(|(prefix, key)| {
                let found = observed.interface.as_ref().and_then(|interface| interface.peers.get(key));
                let found = found.filter(|_| keeps_sessions(&desired, &observed));
                desired.peers.get(key).is_some_and(|peer| peer.allowed_ips.contains(prefix) && peer.may_be_there(found))
            })
            .collect();
        let mut now = observed;
        for step in steps {
            now = now.after(&step.change);
            let held = holders(&now);
            prop_assert_eq!(held.iter().map(|(prefix, _)| prefix).collect::<BTreeSet<_>>().len(), held.len());
            prop_assert!(right.is_subset(&held.into_iter().collect()), "after {}", step);
        }
    }

    #[test]
    fn a_live_peer_keeps_its_learned_endpoint_and_its_entry(desired in desired(), observed in observed()) {
        let live = |key: &WireguardKey| {
            observed.interface.as_ref().and_then(|interface| interface.peers.get(key)).is_some_and(ObservedPeer::is_live)
        };
        for step in plan(&desired, &observed).steps {
            if let Change::SetPeer(key, change) = &step.change {
                prop_assert!(change.endpoint.is_none() || !live(key), "{}", step);
            }
            if let Change::RemovePeer(key) = &step.change {
                let has_psk = observed.interface.as_ref().is_some_and(|interface| interface.peers[key].psk.is_some());
                let has_key = has_psk && keeps_sessions(&desired, &observed);
                let must_go = desired.peers.get(key).is_none_or(|peer| peer.psk == DesiredPsk::Required && !has_key);
                prop_assert!(must_go, "{}", step);
            }
        }
    }

    #[test]
    fn a_peer_that_has_a_preshared_key_never_loses_it(desired in desired(), observed in observed_with_sessions()) {
        let keyed = |observed: &Observed| -> BTreeSet<WireguardKey> {
            let peers = observed.interface.iter().flat_map(|interface| &interface.peers);
            peers.filter(|(key, peer)| peer.psk.is_some() && desired.peers.contains_key(key)).map(|(key, _)| *key).collect()
        };
        prop_assert!(keeps_sessions(&desired, &observed));
        let mut now = observed;
        for step in plan(&desired, &now).steps {
            let before = keyed(&now);
            now = now.after(&step.change);
            prop_assert!(before.is_subset(&keyed(&now)), "after {}", step);
        }
    }
}

#[test]
fn a_prefix_that_moves_is_written_once_and_the_ruleset_stands_first() {
    let name = |number: u64| format!("site-{number}").parse().unwrap();
    let peer = |number, prefixes: &[u8]| {
        let allowed_ips = prefixes.iter().map(|number| prefix(*number)).collect();
        (
            key(number),
            DesiredPeer {
                name: name(number),
                endpoint: None,
                keepalive_s: 25,
                allowed_ips,
                psk: DesiredPsk::Any,
                anew: false,
            },
        )
    };
    let before = Desired {
        interface: "wattle0".parse().unwrap(),
        public_key: key(0),
        listen_port: 51820,
        mtu: 1420,
        addresses: ["10.99.0.1/16".parse().unwrap()].into(),
        peers: [peer(1, &[1, 2]), peer(2, &[3])].into(),
        routes: BTreeMap::new(),
        underlay: BTreeMap::new(),
        forwarding: BTreeSet::new(),
        ruleset: Ruleset {
            node: NodeId(uuid::Uuid::nil()),
            interface: "wattle0".parse().unwrap(),
            local: BTreeSet::new(),
            remote: BTreeSet::new(),
        },
    };
    let first = plan(&before, &Observed::default());
    assert!(matches!(first.steps[0].change, Change::SetRuleset(_)));
    let observed = apply(&Observed::default(), &first);
    let moved = Desired {
        peers: [peer(1, &[1]), peer(2, &[3, 2])].into(),
        ..before
    };
    let changes: Vec<_> = plan(&moved, &observed)
        .steps
        .into_iter()
        .map(|step| step.change)
        .collect();
    let add = PeerUpdate {
        allowed_ips: AllowedIps::Add([prefix(2)].into()),
        ..PeerUpdate::default()
    };
    assert_eq!(changes, [Change::SetPeer(key(2), add)]);
}

#[test]
fn a_preshared_key_that_nobody_knows_stays_while_there_may_be_a_session_and_goes_with_the_own_key()
{
    let peer = DesiredPeer {
        name: "site-1".parse().unwrap(),
        endpoint: None,
        keepalive_s: 25,
        allowed_ips: [prefix(1)].into(),
        psk: DesiredPsk::Required,
        anew: false,
    };
    let mut desired = Desired {
        peers: [(key(1), peer)].into(),
        ..bare()
    };
    let mut observed = apply(&Observed::default(), &plan(&desired, &Observed::default()));
    let found = ObservedPeer {
        keepalive_s: 25,
        allowed_ips: [prefix(1)].into(),
        psk: Some(Psk::new([7; 32])),
        ..ObservedPeer::default()
    };
    let interface = observed.interface.as_mut().unwrap();
    interface.peers.insert(key(1), found);
    assert_eq!(plan(&desired, &observed), Plan::default());
    desired.public_key = key(99);
    let removed = Change::RemovePeer(key(1));
    let steps = plan(&desired, &observed).steps;
    assert!(steps.iter().any(|step| step.change == removed), "{steps:?}");
}

#[test]
fn the_mtu_that_somebody_set_on_a_route_is_left_and_stays_when_its_source_changes() {
    let route = |source, mtu| ObservedRoute { source, mtu };
    let (source, prefix) = (Some(IpAddr::from([10, 1, 0, 1])), prefix(1));
    let desired = Desired {
        routes: [(prefix, source)].into(),
        ..bare()
    };
    let mut observed = apply(&Observed::default(), &plan(&desired, &Observed::default()));
    for (found, steps) in [(source, 0), (None, 1)] {
        let interface = observed.interface.as_mut().unwrap();
        interface.routes = [(prefix, route(found, Some(1328)))].into();
        let plan = plan(&desired, &observed);
        assert_eq!(plan.steps.len(), steps);
        observed = apply(&observed, &plan);
        let routes = observed.interface.as_ref().unwrap().routes.clone();
        assert_eq!(routes, [(prefix, route(source, Some(1328)))].into());
    }
}
