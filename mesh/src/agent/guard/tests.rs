use wattle_wire::key::WireguardKey;

use super::*;
use crate::{
    agent::replica::Replica,
    config::view,
    host::{
        desired::{Local, desired},
        plan::plan,
        state::{Desired, DesiredPsk, Observed},
    },
    keys::{psk::exchange::Exchange, rotation::canary::PeerKeys},
    testing::{Keys, MESH, directory_of, node_id, node_keys_of, snapshot, words},
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
    replica.receive(snapshot(view), 0);
    replica.known().unwrap().clone()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn uplink() -> Way {
    Way {
        device: "eth0".to_owned(),
        gateway: Some(ip("203.0.113.254")),
        source: None,
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        networks: vec![net("203.0.113.1/24"), net("10.1.0.1/24")],
        underlay: [
            (ip("198.18.0.2"), Purpose::Coordinator),
            (ip("192.0.2.53"), Purpose::Resolver),
        ]
        .into(),
        routes: vec![ForeignRoute {
            prefix: net("0.0.0.0/0"),
            metric: 100,
            way: Some(uplink()),
        }],
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

/// What is refused, in words; each has a remedy.
fn problems(refused: &Refused) -> Vec<String> {
    let refusals = refused.problems();
    for problem in refusals.filter(|problem| problem.code == ProblemCode::Refused) {
        assert!(problem.remedy.is_some(), "{problem:?}");
    }
    words(refused.problems())
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
        let claims = ["203.0.113.128/25", "198.18.0.2/32", "10.77.0.0/24"];
        view.peers[0].subnets.extend(claims.map(net));
    });
    let refused = Guard::default().screen(&known, &surroundings(), NOW);
    let expected = [
        "the guard refused 198.18.0.2/32 of peer site-2: it is where this gateway reaches its \
         coordinator, which must be reached outside of the tunnel",
        "the guard refused 203.0.113.128/25 of peer site-2: this host has the network \
         203.0.113.0/24 on another interface",
    ];
    assert_eq!(problems(&refused), expected);
    let clean = carried_out(
        &self::known(|view| view.peers[0].subnets.push(net("10.77.0.0/24"))),
        &Refused::default(),
    );
    assert_eq!(carried_out(&known, &refused), clean);
}

#[test]
fn e1_one_address_stays_outside_the_tunnel_and_the_rest_of_its_prefix_goes_through() {
    let change = |view: &mut wattle_wire::peer::View| {
        let claims = ["198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24"];
        view.peers[0].subnets.extend(claims.map(net));
        view.peers[1].endpoint = Some("192.0.2.7:51820".parse().unwrap());
        view.mesh.tunnel_prefix = "10.96.0.0/13".parse().unwrap();
    };
    let mut surroundings = surroundings();
    let inside = ip("10.101.0.9");
    surroundings.underlay.insert(inside, Purpose::Resolver);
    // The host's own route is narrower than the prefix: nothing is to be done.
    let narrow = ip("198.51.100.7");
    surroundings.underlay.insert(narrow, Purpose::Coordinator);
    surroundings.routes.push(ForeignRoute {
        prefix: net("198.51.100.0/28"),
        metric: 0,
        way: Some(uplink()),
    });
    let known = known(change);
    let refused = Guard::default().screen(&known, &surroundings, NOW);
    let expected = [
        "10.101.0.9, a resolver of this host, lies in the tunnel prefix 10.96.0.0/13: it stays \
         outside the tunnel",
        "192.0.2.7, the endpoint of peer site-3, lies in 192.0.2.0/24 of site-2: it stays outside \
         the tunnel",
        "192.0.2.53, a resolver of this host, lies in 192.0.2.0/24 of site-2: it stays outside the \
         tunnel",
        "198.18.0.2, where this gateway reaches its coordinator, lies in 198.18.0.0/15 of site-2: \
         it stays outside the tunnel",
    ];
    assert_eq!(problems(&refused), expected);
    let whole = carried_out(&known, &Refused::default());
    let outside = ["10.101.0.9", "192.0.2.7", "192.0.2.53", "198.18.0.2"];
    let underlay = outside.map(|address| (ip(address), uplink())).into();
    assert_eq!(carried_out(&known, &refused), Desired { underlay, ..whole });
}

#[test]
fn a_host_without_a_way_past_the_tunnel_is_told_and_has_one_as_soon_as_there_is_a_route() {
    let known = known(|view| view.peers[0].subnets.push(net("198.18.0.0/24")));
    let cut = Surroundings {
        routes: vec![],
        ..surroundings()
    };
    let refused = Guard::default().screen(&known, &cut, NOW);
    let expected = "198.18.0.2, where this gateway reaches its coordinator, lies in 198.18.0.0/24 \
                    of site-2: it cannot be reached, for this host has no route to it outside the \
                    tunnel";
    assert_eq!(problems(&refused), [expected]);
    let desired = carried_out(&known, &refused);
    assert!(desired.routes.contains_key(&net("198.18.0.0/24")));
    assert_eq!(desired.underlay, BTreeMap::new());
    let refused = Guard::default().screen(&known, &surroundings(), NOW);
    let desired = carried_out(&known, &refused);
    assert_eq!(desired.underlay, [(ip("198.18.0.2"), uplink())].into());
}

/// Whether packets to the address leave by the host's own routes, as the longest prefix decides.
fn is_outside(address: IpAddr, host: &Observed, surroundings: &Surroundings) -> bool {
    let longest = |prefixes: Vec<IpNet>| {
        let holds = prefixes
            .into_iter()
            .filter(|prefix| prefix.contains(&address));
        holds.map(|prefix| prefix.prefix_len()).max()
    };
    let interface = host.interface.iter();
    let through =
        interface.flat_map(|interface| interface.routes.keys().chain(&interface.addresses));
    let own = surroundings.routes.iter().map(|route| route.prefix);
    let past = host.underlay.keys().map(|address| IpNet::from(*address));
    longest(own.chain(past).collect()) > longest(through.copied().collect())
}

#[test]
fn e13_a_coordinator_is_heard_after_every_step_of_a_change_and_of_its_undoing() {
    let coordinator = ip("198.18.0.2");
    let plain = known(|_| ());
    let taken = [
        known(|view| view.peers[0].subnets.push(net("198.18.0.0/24"))),
        known(|view| view.peers[1].subnets.push(net("198.18.0.0/31"))),
        known(|view| view.peers[1].subnets.push(net("198.18.0.2/32"))),
        known(|view| view.mesh.tunnel_prefix = "198.18.0.0/16".parse().unwrap()),
    ];
    let mut host = Observed::default();
    let mut moved = surroundings();
    moved.routes[0].way = Some(Way {
        device: "wwan0".to_owned(),
        ..uplink()
    });
    for known in taken.iter().flat_map(|taken| [&plain, taken, &plain]) {
        for surroundings in [surroundings(), moved.clone()] {
            let refused = Guard::default().screen(known, &surroundings, NOW);
            for step in plan(&carried_out(known, &refused), &host).steps {
                host = host.after(&step.change);
                assert!(
                    is_outside(coordinator, &host, &surroundings),
                    "after {step}"
                );
            }
        }
        let is_plain = std::ptr::eq(known, &plain);
        assert!(!is_plain || host.underlay.is_empty(), "{:?}", host.underlay);
    }
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

#[test]
fn e1_what_would_make_the_host_deaf_is_not_taken_for_its_own_address_or_the_tunnel_prefix() {
    let wide = known(|view| {
        view.mesh.tunnel_prefix = "128.0.0.0/5".parse().unwrap();
        view.myself.tunnel_address = "128.0.0.7".parse().unwrap();
    });
    let refused = Guard::default().screen(&wide, &surroundings(), NOW);
    let told = problems(&refused);
    assert!(told[0].contains("128.0.0.0/5 is too wide"), "{told:?}");
    assert_eq!(
        carried_out(&wide, &refused).addresses,
        [net("128.0.0.7/32")].into(),
        "the peers alone have routes"
    );
    for (address, reason) in [
        (
            "198.18.0.2",
            "it is where this gateway reaches its coordinator",
        ),
        ("198.51.100.2", "it is the endpoint of peer site-2"),
        ("203.0.113.9", "this host has the network 203.0.113.0/24"),
        ("192.0.2.7", "it is not in the tunnel prefix"),
    ] {
        let known = known(|view| {
            view.myself.tunnel_address = address.parse().unwrap();
            view.peers[0].endpoint = Some("198.51.100.2:51820".parse().unwrap());
        });
        let refused = Guard::default().screen(&known, &surroundings(), NOW);
        let told = problems(&refused);
        assert!(told[0].contains(reason), "{told:?}");
        let desired = carried_out(&known, &refused);
        assert_eq!(desired.addresses, [].into());
        assert_eq!(
            desired.peers.len(),
            3,
            "their LANs are reached all the same"
        );
    }
}

#[test]
fn the_tunnel_prefix_and_own_subnets_are_bounded_by_the_hosts_own_file() {
    let known = known(|view| {
        view.myself.subnets = ["10.1.0.0/24", "172.16.0.0/12"]
            .map(|subnet| subnet.parse().unwrap())
            .into();
    });
    let guard = Guard {
        serve: Some(vec![net("10.0.0.0/8")]),
        ..Guard::default()
    };
    let refused = guard.screen(&known, &surroundings(), NOW);
    assert_eq!(
        problems(&refused),
        ["the guard refused to serve 172.16.0.0/12: it is in no prefix of `serve`"]
    );
    let desired = carried_out(&known, &refused);
    assert_eq!(desired.ruleset.local, [net("10.1.0.0/24")].into());
    let guard = Guard {
        refuse: vec![net("172.20.0.0/16")],
        ..Guard::default()
    };
    let refused = guard.screen(&known, &surroundings(), NOW);
    assert!(!refused.serves(net("172.16.0.0/12")) && refused.serves(net("10.1.0.0/24")));
    let guard = Guard {
        allow: Some(vec![
            net("10.2.0.0/16"),
            net("10.3.0.0/16"),
            net("10.4.0.0/16"),
        ]),
        ..Guard::default()
    };
    let refused = guard.screen(&known, &surroundings(), NOW);
    assert!(!refused.allows_tunnel_prefix() && !refused.allows_tunnel_address());
}

#[test]
fn a_host_that_asks_for_preshared_keys_lets_no_packet_pass_without_whatever_the_mesh_says() {
    let known = known(|view| view.mesh.psk = PskPolicy::Prefer);
    let psks = |guard: Guard| {
        let refused = guard.screen(&known, &surroundings(), NOW);
        let desired = carried_out(&known, &refused);
        desired
            .peers
            .values()
            .map(|peer| peer.psk.clone())
            .collect::<Vec<_>>()
    };
    let any = vec![DesiredPsk::Any; 3];
    assert_eq!(psks(Guard::default()), any);
    let asks = |psk| Guard {
        psk: Some(psk),
        ..Guard::default()
    };
    assert_eq!(psks(asks(PskPolicy::Prefer)), any, "it only narrows");
    assert_eq!(
        psks(asks(PskPolicy::Require)),
        vec![DesiredPsk::Required; 3]
    );
}
