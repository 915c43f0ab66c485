//! What a locked host believes, and what it is spared.

mod removals;

use wattle_wire::{
    ids::Position,
    peer::Peer,
    stream::{StreamMessage, ViewChange},
};

use super::*;
use crate::{
    agent::{
        guard::{Guard, Refused, Surroundings},
        replica::{Received, Replica},
    },
    config::{
        directory::{NodeRecord, RecordChange},
        feed::Feed,
    },
    host::desired::{Local, desired},
    keys::{node_keys::NodeKeys, psk::exchange::Exchange, rotation::canary::PeerKeys},
    testing::{Keys, MESH, directory_of, next_message, node_id, node_keys_of, node_record, words},
};

/// Seconds since 1970.
const NOW: i64 = 1_800_000_000;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn operator(number: u8) -> Operator {
    Operator::new(&[number; 32]).unwrap()
}

fn operators(numbers: &[u8]) -> BTreeSet<OperatorKey> {
    numbers
        .iter()
        .map(|number| operator(*number).key())
        .collect()
}

/// An operator's word for the node of a number, with these prefixes beside its tunnel address.
fn admission(by: &Operator, node: u64, lans: &[&str], signed_at: i64) -> SignedAdmission {
    let (site, record) = node_record(node);
    let prefixes = prefixes(
        record.tunnel_address,
        &lans.iter().map(|lan| net(lan)).collect::<Vec<_>>(),
    )
    .collect();
    let candidate = Candidate {
        name: record.name,
        site: site.spec.name,
        identity: record.identity_key,
        prefixes,
        before: None,
    };
    by.sign(MESH, &candidate, signed_at, None).unwrap()
}

/// That node with its own LAN.
fn just(by: &Operator, node: u64, signed_at: i64) -> SignedAdmission {
    admission(by, node, &[&format!("10.{node}.0.0/24")], signed_at)
}

/// Node 1 of a mesh, whose host requires the lock of operator 1, and the feed it follows.
struct World {
    replica: Replica,
    feed: Feed,
}

impl World {
    /// A mesh of so many nodes, of which these are admitted.
    fn new(nodes: u64, admitted: &[u64]) -> Self {
        let mut directory = directory_of(nodes);
        for node in admitted {
            directory.apply(&RecordChange::Admission(
                node_id(*node),
                just(&operator(1), *node, NOW),
            ));
        }
        let feed = Feed::new(
            directory,
            Position {
                epoch: 1,
                revision: 10,
            },
            [],
        );
        let mut world = Self {
            replica: fresh().locked_by(Some(operators(&[1]))),
            feed,
        };
        world.listen();
        world
    }

    /// The coordinator carries out changes and tells of them.
    fn change(&mut self, changes: &[RecordChange]) {
        self.feed
            .advance(self.feed.position().revision + 1, changes)
            .unwrap();
        self.listen();
    }

    /// The coordinator removes a node, and somebody on the gateway confirms it.
    fn remove_confirmed(&mut self, node: u64) {
        self.change(&[RecordChange::NodeRevoked(node_id(node))]);
        assert!(self.replica.confirm(&BTreeSet::from([node_id(node)])));
    }

    fn listen(&mut self) {
        let message = next_message(&self.feed, node_id(1), self.replica.position()).unwrap();
        assert_eq!(
            self.replica.receive(message, 0),
            Received::Changed { refused: vec![] }
        );
    }

    /// Says of a peer what the directory does not have: the word of a coordinator that lies.
    fn lie(&mut self, node: u64, change: impl FnOnce(&mut Peer)) -> Received {
        let since = self.replica.position().unwrap();
        let mut peer = self.replica.known().unwrap().peers[&node_id(node)]
            .peer
            .clone();
        change(&mut peer);
        self.replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes: vec![ViewChange::Peer(peer)],
            },
            0,
        )
    }

    /// The agent's program starts again, on a host that requires the lock of these operators, if of
    /// any.
    fn restart(&mut self, operators: Option<BTreeSet<OperatorKey>>) {
        let stored = serde_json::to_string(&self.replica.stored().unwrap()).unwrap();
        self.replica = fresh().locked_by(operators);
        assert_eq!(
            self.replica.restore(serde_json::from_str(&stored).unwrap()),
            Ok(vec![])
        );
    }

    fn refused_at(&self, now: i64) -> Refused {
        Guard::default().screen(self.replica.known().unwrap(), &Surroundings::default(), now)
    }

    /// What reaches the kernel of each peer, in order of their names.
    fn carried_out_at(&self, now: i64) -> Vec<(String, Vec<IpNet>)> {
        let node_keys = node_keys_of(1);
        let local = Local {
            interface: "wattle0".parse().unwrap(),
            node_keys: &node_keys,
            addresses: vec![],
        };
        let desired = desired(
            self.replica.known().unwrap(),
            &local,
            &self.refused_at(now),
            &Exchange::default(),
            &PeerKeys::default(),
        );
        let mut routed: Vec<_> = desired.routes.keys().copied().collect();
        routed.sort();
        let mut lans: Vec<_> = desired
            .peers
            .values()
            .flat_map(|peer| &peer.allowed_ips)
            .copied()
            .collect();
        lans.retain(|prefix| prefix.prefix_len() < 32);
        lans.sort();
        assert_eq!(routed, lans, "routes and prefixes of peers go together");
        let mut peers: Vec<_> = desired
            .peers
            .into_values()
            .map(|peer| {
                (
                    peer.name.to_string(),
                    peer.allowed_ips.into_iter().collect(),
                )
            })
            .collect();
        peers.sort();
        peers
    }

    fn carried_out(&self) -> Vec<(String, Vec<IpNet>)> {
        self.carried_out_at(NOW)
    }

    fn problems(&self) -> Vec<String> {
        words(self.refused_at(NOW).problems())
    }
}

fn fresh() -> Replica {
    Replica::new(MESH, Keys::of(1).wireguard_key())
}

/// A peer with its tunnel address and these LANs.
fn peer(number: u64, lans: &[&str]) -> (String, Vec<IpNet>) {
    let lans = lans.iter().map(|lan| net(lan));
    (
        format!("site-{number}"),
        lans.chain([net(&format!("10.99.0.{number}/32"))]).collect(),
    )
}

#[test]
fn e3_a_node_that_nobody_admitted_is_not_configured_and_is_told_of_until_it_is_admitted() {
    let mut world = World::new(4, &[2, 3]);
    let both = vec![peer(2, &["10.2.0.0/24"]), peer(3, &["10.3.0.0/24"])];
    assert_eq!(world.carried_out(), both);
    assert!(
        world.refused_at(NOW).is_unsigned(node_id(4))
            && !world.refused_at(NOW).is_unsigned(node_id(2))
    );
    assert_eq!(
        world.problems(),
        [
            "the guard refused peer site-4: no operator whose key is in `operator_keys` has \
             admitted it"
        ]
    );
    world.change(&[RecordChange::Admission(
        node_id(4),
        just(&operator(1), 4, NOW),
    )]);
    assert_eq!(
        world.carried_out(),
        [both, vec![peer(4, &["10.4.0.0/24"])]].concat()
    );
    assert!(world.problems().is_empty());
}

#[test]
fn e3_only_the_word_of_a_known_operator_about_this_node_of_this_mesh_counts() {
    let stranger = operator(9);
    let (_, fourth) = node_record(4);
    let mut forged = just(&operator(1), 4, NOW);
    forged.signature = just(&stranger, 4, NOW).signature;
    let mut altered = just(&operator(1), 4, NOW);
    altered.admission = altered.admission.replace("10.4.0.0/24", "10.0.0.0/8");
    let candidate = Candidate {
        name: fourth.name.clone(),
        site: fourth.name,
        identity: fourth.identity_key,
        prefixes: [].into(),
        before: None,
    };
    let elsewhere = operator(1)
        .sign(MeshId(uuid::Uuid::nil()), &candidate, NOW, None)
        .unwrap();
    for word in [
        just(&stranger, 4, NOW),
        forged,
        altered,
        elsewhere,
        just(&operator(1), 3, NOW),
    ] {
        let mut world = World::new(4, &[2, 3]);
        let before = world.carried_out();
        world.change(&[RecordChange::Admission(node_id(4), word)]);
        assert_eq!(world.carried_out(), before);
    }
}

#[test]
fn e1_a_prefix_beyond_the_admitted_ones_is_left_out_and_those_stay() {
    let mut world = World::new(3, &[2, 3]);
    world.lie(2, |peer| {
        peer.subnets = vec![net("10.2.0.0/16"), net("172.16.0.0/12")]
    });
    assert_eq!(
        world.carried_out(),
        [peer(2, &["10.2.0.0/24"]), peer(3, &["10.3.0.0/24"])]
    );
    let expected = [
        "the guard refused 10.2.0.0/16 of peer site-2 but 10.2.0.0/24: its admission does not \
         cover it",
        "the guard refused 172.16.0.0/12 of peer site-2: its admission does not cover it",
    ];
    assert_eq!(world.problems(), expected);
    // A part of what is admitted is admitted.
    world.lie(2, |peer| peer.subnets = vec![net("10.2.0.128/25")]);
    assert_eq!(world.carried_out()[0], peer(2, &["10.2.0.128/25"]));
    // Nor does an admitted node get the tunnel address of another: it keeps its own.
    world.lie(2, |peer| {
        peer.tunnel_address = "10.99.0.77".parse().unwrap()
    });
    assert_eq!(world.carried_out()[0], peer(2, &["10.2.0.128/25"]));
}

#[test]
fn e2_a_new_key_of_the_same_identity_needs_no_new_admission_and_another_identity_has_none() {
    let mut world = World::new(3, &[2, 3]);
    let rotated = Keys {
        identity: Keys::of(2).identity,
        wireguard: Keys::of(66).wireguard,
    };
    world.lie(2, |peer| peer.statement = rotated.statement(2));
    let admitted = world.replica.known().unwrap().peers[&node_id(2)]
        .statement
        .wireguard_key;
    assert_eq!(admitted, rotated.wireguard_key());
    assert_eq!(world.carried_out().len(), 2);
    // A host that has never seen node 2 pins the thief's identity, which nobody has admitted.
    let mut world = World::new(3, &[3]);
    let (_, second) = node_record(2);
    let thief = directory_record_of(&second, &Keys::of(66));
    world.change(&[
        RecordChange::NodeRevoked(node_id(2)),
        RecordChange::Node(thief),
    ]);
    world.change(&[RecordChange::Admission(
        node_id(7),
        just(&operator(1), 2, NOW),
    )]);
    assert_eq!(world.carried_out(), [peer(3, &["10.3.0.0/24"])]);
}

#[test]
fn an_admission_holds_for_the_identity_that_the_admitted_one_signed_for_and_then_for_no_other() {
    let mut world = World::new(3, &[2, 3]);
    let before = world.carried_out();
    let old = node_keys_of(2);
    let successor = old
        .preparing_identity(&[66; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap();
    let record = |node_keys: &NodeKeys, id| {
        let statement = node_keys.statement(MESH).unwrap();
        NodeRecord {
            id,
            identity_key: node_keys.identity_key(),
            statement,
            admission: Some(just(&operator(1), 2, NOW)),
            ..node_record(2).1
        }
    };
    world.change(&[RecordChange::Node(record(&successor, node_id(2)))]);
    assert_eq!(world.carried_out(), before);
    world.restart(Some(operators(&[1])));
    assert_eq!(world.carried_out(), before);
    let (site, node) = (node_record(2).0, record(&successor, node_id(2)));
    assert!(is_admitted(&node, &site, NOW));
    // Somebody who has the former key comes as another node with the word that was given for it.
    let thief = old
        .preparing_identity(&[67; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap()
        .preparing(&[68; 32])
        .unwrap()
        .switched(0)
        .unwrap();
    for (number, node_keys) in [
        (7, &thief),
        (8, &old.preparing(&[69; 32]).unwrap().switched(0).unwrap()),
    ] {
        let (elsewhere, other) = node_record(number);
        let node = NodeRecord {
            wireguard_key: node_keys.wireguard_key(),
            identity_key: node_keys.identity_key(),
            ..other
        };
        let node = NodeRecord {
            statement: node_keys.statement(MESH).unwrap(),
            ..node
        };
        world.change(&[RecordChange::Site(elsewhere), RecordChange::Node(node)]);
        world.change(&[RecordChange::Admission(
            node_id(number),
            just(&operator(1), 2, NOW),
        )]);
        assert!(
            world.replica.known().unwrap().peers[&node_id(number)]
                .peer
                .admission
                .is_some()
        );
        assert_eq!(world.carried_out(), before);
        assert!(world.refused_at(NOW).is_unsigned(node_id(number)));
    }
}

#[test]
fn e12_a_node_that_was_removed_does_not_come_back_under_another_identity_with_the_old_admission() {
    let mut world = World::new(3, &[2, 3]);
    let gone = world.replica.known().unwrap().peers[&node_id(2)]
        .peer
        .clone();
    world.remove_confirmed(2);
    let statement = node_keys_of(2)
        .preparing_identity(&[66; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap()
        .statement(MESH)
        .unwrap();
    let since = world.replica.position().unwrap();
    let changes = vec![ViewChange::Peer(Peer { statement, ..gone })];
    assert_eq!(
        world.replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes
            },
            0
        ),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(world.carried_out(), [peer(3, &["10.3.0.0/24"])]);
}

/// A node as the coordinator lists it.
fn listed(number: u64) -> Node {
    let (site, record) = node_record(number);
    Node {
        id: record.id,
        name: record.name,
        name_follows_site: true,
        site: record.site,
        site_name: site.spec.name,
        state: record.state,
        tunnel_address: record.tunnel_address,
        wireguard_key: record.wireguard_key,
        identity_key: record.identity_key,
        endpoint: None,
        endpoint_verified: true,
        admission: None,
        admitted: true,
        agent_version: Some(String::new()),
        unmanaged: None,
        enrolled_at: record.enrolled_at,
        rotation: None,
        lan: wattle_wire::admin::LanState::Unknown,
        problems: Vec::new(),
        last_report: None,
        connection: None,
        held: None,
        locked: false,
        removed_on: None,
    }
}

/// The record under another id, with the keys of a thief.
fn directory_record_of(record: &NodeRecord, keys: &Keys) -> NodeRecord {
    NodeRecord {
        id: node_id(7),
        identity_key: keys.identity_key(),
        statement: keys.statement(1),
        ..record.clone()
    }
}

#[test]
fn an_older_admission_never_takes_the_place_of_a_newer_one_not_even_after_a_restart() {
    let mut world = World::new(3, &[2, 3]);
    world.change(&[RecordChange::Admission(
        node_id(2),
        admission(&operator(1), 2, &[], NOW + 1),
    )]);
    let narrowed = vec![peer(2, &[]), peer(3, &["10.3.0.0/24"])];
    assert_eq!(world.carried_out(), narrowed);
    for _ in 0..2 {
        world.lie(2, |peer| peer.admission = Some(just(&operator(1), 2, NOW)));
        assert_eq!(world.carried_out(), narrowed);
        world.restart(Some(operators(&[1])));
        assert_eq!(world.carried_out(), narrowed);
    }
}

#[test]
fn e12_a_node_that_was_removed_does_not_come_back_with_the_admission_that_it_had() {
    let mut world = World::new(4, &[2, 3, 4]);
    let gone = world.replica.known().unwrap().peers[&node_id(2)]
        .peer
        .clone();
    world.remove_confirmed(2);
    world.restart(Some(operators(&[1])));
    let come_back = |world: &mut World, peer: Peer| {
        let since = world.replica.position().unwrap();
        world.replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes: vec![ViewChange::Peer(peer)],
            },
            0,
        );
        world.carried_out().iter().any(|(name, _)| name == "site-2")
    };
    assert!(!come_back(&mut world, gone.clone()));
    assert!(come_back(
        &mut world,
        Peer {
            admission: Some(just(&operator(1), 2, NOW + 1)),
            ..gone
        }
    ));
}

#[test]
fn an_admission_ends_when_its_operator_said_so() {
    let mut world = World::new(2, &[]);
    let (site, record) = node_record(2);
    let prefixes = prefixes(record.tunnel_address, &[]).collect();
    let candidate = Candidate {
        name: record.name,
        site: site.spec.name,
        identity: record.identity_key,
        prefixes,
        before: None,
    };
    let word = operator(1)
        .sign(MESH, &candidate, NOW, Some(NOW + 10))
        .unwrap();
    world.change(&[RecordChange::Admission(node_id(2), word)]);
    assert_eq!(world.carried_out_at(NOW + 9), [peer(2, &[])]);
    assert_eq!(world.carried_out_at(NOW + 10), []);
    assert_eq!(
        world.refused_at(NOW + 10).problems().next().unwrap().words,
        "the guard refused peer site-2: its admission has ended"
    );
}

#[test]
fn of_two_operators_either_admits_and_one_whose_key_is_struck_out_does_not_any_more() {
    let mut world = World::new(3, &[2, 3]);
    world.restart(Some(operators(&[1, 2])));
    world.change(&[RecordChange::Admission(
        node_id(2),
        just(&operator(2), 2, NOW + 1),
    )]);
    assert_eq!(world.carried_out().len(), 2);
    world.restart(Some(operators(&[2])));
    assert_eq!(world.carried_out(), [peer(2, &["10.2.0.0/24"])]);
    // Nobody is tolerated because an operator went.
    assert_eq!(world.replica.awaiting_confirmation(), [].into());
}

#[test]
fn turning_the_lock_on_cuts_no_tunnel_and_lets_nobody_in_who_comes_later() {
    let mut world = World::new(4, &[2]);
    world.restart(None);
    let all = vec![
        peer(2, &["10.2.0.0/24"]),
        peer(3, &["10.3.0.0/24"]),
        peer(4, &["10.4.0.0/24"]),
    ];
    assert_eq!(world.carried_out(), all);
    world.restart(Some(operators(&[1])));
    assert_eq!(world.carried_out(), all);
    let problem = "no operator has admitted 2 peers, site-3 among them. They were there before the lock, \
        and stay until they are signed or until `wattle-agent confirm` removes them";
    assert_eq!(world.problems(), [problem]);

    // They get nothing beyond what they had, and whoever comes now is not tolerated, after a
    // restart neither.
    world.lie(3, |peer| peer.subnets.push(net("172.16.0.0/12")));
    let (site, node) = node_record(5);
    world.change(&[RecordChange::Site(site), RecordChange::Node(node)]);
    world.restart(Some(operators(&[1])));
    assert_eq!(world.carried_out(), all);

    // One is signed, one is confirmed to go.
    world.change(&[RecordChange::Admission(
        node_id(3),
        just(&operator(1), 3, NOW),
    )]);
    assert_eq!(world.replica.awaiting_confirmation(), [node_id(4)].into());
    assert!(
        !world.replica.confirm(&[node_id(3)].into()),
        "of a peer that is admitted nobody asked"
    );
    assert!(world.replica.confirm(&[node_id(4)].into()));
    world.restart(Some(operators(&[1])));
    assert_eq!(world.carried_out(), all[..2]);
}

#[test]
fn a_host_that_joins_locked_tolerates_nobody() {
    let world = World::new(3, &[]);
    assert_eq!(world.carried_out(), []);
    assert_eq!(world.replica.awaiting_confirmation(), [].into());
}

#[test]
fn an_admission_travels_when_it_is_news_and_a_changed_prefix_does_not_carry_it() {
    let mut world = World::new(3, &[2, 3]);
    let mut site = node_record(2).0;
    site.spec.subnets = vec!["10.22.0.0/24".parse().unwrap()];
    let since = world.feed.position();
    world
        .feed
        .advance(since.revision + 1, &[RecordChange::Site(site)])
        .unwrap();
    let delta = serde_json::to_string(&next_message(&world.feed, node_id(1), Some(since)).unwrap())
        .unwrap();
    assert!(
        !delta.contains("admission") && delta.len() <= 700,
        "{} bytes: {delta}",
        delta.len()
    );
    world.listen();
    // It is remembered all the same: nothing beyond the old prefix is admitted, and the old prefix
    // still would be.
    assert_eq!(world.carried_out()[0], peer(2, &[]));
    let word = admission(&operator(1), 2, &["10.22.0.0/24"], NOW + 1);
    world.change(&[RecordChange::Admission(node_id(2), word)]);
    assert_eq!(world.carried_out()[0], peer(2, &["10.22.0.0/24"]));
}

#[test]
fn an_operator_signs_what_is_new_or_changed_and_nothing_twice() {
    let (site_record, _) = node_record(2);
    let site = Site {
        id: site_record.id,
        name: site_record.spec.name.clone(),
        description: String::new(),
        labels: BTreeMap::new(),
        endpoint: None,
        subnets: site_record.spec.subnets,
        tunnel_address: site_record.tunnel_address,
        nodes: vec![],
        created_at: site_record.created_at,
    };
    let node = |admission| Node {
        admission,
        ..listed(2)
    };
    let operator = operator(1);
    let candidate = operator.candidate(MESH, &node(None), &site, None).unwrap();
    assert_eq!((&candidate.before, candidate.prefixes.len()), (&None, 2));
    let signed = operator.sign(MESH, &candidate, NOW, None).unwrap();
    assert_eq!(
        operator.candidate(MESH, &node(Some(signed.clone())), &site, None),
        None
    );
    let grown = Site {
        subnets: vec!["10.2.0.0/16".parse().unwrap()],
        ..site.clone()
    };
    let changed = operator
        .candidate(MESH, &node(Some(signed.clone())), &grown, None)
        .unwrap();
    assert_eq!(
        changed.before.as_ref().map(|before| &before.prefixes),
        Some(&candidate.prefixes)
    );
    let later = verify_admission(
        &operator.sign(MESH, &changed, NOW - 1000, None).unwrap(),
        MESH,
    )
    .unwrap();
    assert_eq!(later.signed_at, NOW + 1, "even if the clock was set back");
    // That it is to end is a change; that it is to end a little later is not.
    let ending = operator
        .candidate(MESH, &node(Some(signed)), &site, Some(NOW + 10 * LATER_S))
        .unwrap();
    let signed = operator
        .sign(MESH, &ending, NOW, Some(NOW + 10 * LATER_S))
        .unwrap();
    assert_eq!(
        operator.candidate(
            MESH,
            &node(Some(signed.clone())),
            &site,
            Some(NOW + 11 * LATER_S)
        ),
        None
    );
    assert!(
        operator
            .candidate(
                MESH,
                &node(Some(signed.clone())),
                &site,
                Some(NOW + 12 * LATER_S)
            )
            .is_some()
    );
    // Somebody else's word is not the operator's own.
    let other = Operator::new(&[2; 32]).unwrap();
    assert!(
        other
            .candidate(MESH, &node(Some(signed)), &site, None)
            .is_some_and(|candidate| candidate.before.is_none())
    );
}
