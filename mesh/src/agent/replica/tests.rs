//! What a replica takes in, and what it refuses.

use wattle_wire::enrol::{SignedStatement, Statement};

use super::*;
use crate::{
    config::{directory::RecordChange, feed::Feed, view},
    keys::enrolment::InvalidStatement,
    testing::{Keys, MESH, directory_of, next_message, node_id, node_keys_of, words},
};

/// Node 1's replica and the feed it follows, in a mesh of three.
pub(super) fn world() -> (Replica, Feed) {
    let feed = Feed::new(
        directory_of(3),
        Position {
            epoch: 1,
            revision: 10,
        },
        [],
    );
    let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
    let message = next(&feed, replica.position());
    assert_eq!(
        replica.receive(message, 0),
        Received::Changed { refused: vec![] }
    );
    (replica, feed)
}

fn next(feed: &Feed, since: Option<Position>) -> StreamMessage {
    next_message(feed, node_id(1), since).unwrap()
}

fn peers(replica: &Replica) -> Vec<Peer> {
    replica.stored().unwrap().view.peers
}

#[test]
fn e4_a_removed_peer_goes_and_an_absent_one_stays() {
    let (mut replica, mut feed) = world();
    let before = peers(&replica);
    let mut shrunken = view::view(feed.directory(), node_id(1)).unwrap();
    shrunken.peers.clear();
    let snapshot = StreamMessage::Snapshot {
        position: feed.position(),
        view: shrunken,
        removed: vec![],
    };
    assert_eq!(
        replica.receive(snapshot, 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(peers(&replica), before);

    feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))])
        .unwrap();
    assert_eq!(
        replica.receive(next(&feed, replica.position()), 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(
        peers(&replica)
            .iter()
            .map(|peer| peer.node)
            .collect::<Vec<_>>(),
        [node_id(3)]
    );
}

/// Node 1's replica in a mesh of five, and the feed it follows.
fn larger_world() -> (Replica, Feed) {
    let feed = Feed::new(
        directory_of(5),
        Position {
            epoch: 1,
            revision: 10,
        },
        [],
    );
    let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
    replica.receive(next(&feed, None), 0);
    (replica, feed)
}

fn kept(replica: &Replica) -> Replica {
    let mut kept = Replica::new(MESH, Keys::of(1).wireguard_key());
    let stored =
        serde_json::from_str(&serde_json::to_string(&replica.stored().unwrap()).unwrap()).unwrap();
    assert_eq!(kept.restore(stored), Ok(vec![]));
    kept
}

#[test]
fn e4_a_removal_of_more_than_half_of_all_peers_is_held_until_it_is_confirmed() {
    let (mut replica, mut feed) = larger_world();
    let before = peers(&replica);
    feed.advance(
        11,
        &[2, 3, 4].map(|number| RecordChange::NodeRevoked(node_id(number))),
    )
    .unwrap();
    assert_eq!(
        replica.receive(next(&feed, replica.position()), 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(peers(&replica), before);
    assert_eq!(replica.position(), Some(feed.position()));
    let problem = "the coordinator removed 3 of 4 peers within 24 hours. These stay until you run \
        `wattle-agent confirm` on this gateway: site-2, site-3, site-4";
    let mut replica = kept(&replica);
    assert_eq!(words(replica.problems()), [problem]);
    assert!(
        !replica.confirm(&[node_id(5)].into()),
        "of another peer nobody asked"
    );
    assert!(replica.confirm(&replica.awaiting_confirmation()));
    assert_eq!(
        peers(&replica)
            .iter()
            .map(|peer| peer.node)
            .collect::<Vec<_>>(),
        [node_id(5)]
    );
    assert_eq!(replica.problems().count(), 0);
}

#[test]
fn e4_a_held_removal_is_off_when_the_coordinator_has_the_peers_again() {
    let (mut replica, mut feed) = larger_world();
    let StreamMessage::Snapshot {
        position,
        view,
        removed,
    } = next(&feed, None)
    else {
        panic!("no snapshot")
    };
    feed.advance(
        11,
        &[2, 3, 4].map(|number| RecordChange::NodeRevoked(node_id(number))),
    )
    .unwrap();
    replica.receive(next(&feed, replica.position()), 0);
    let whole = StreamMessage::Snapshot {
        position: Position {
            epoch: 2,
            ..position
        },
        view,
        removed,
    };
    assert_eq!(
        replica.receive(whole, 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(
        (replica.removal_pending.len(), peers(&replica).len()),
        (0, 4)
    );
}

#[test]
fn e2_a_peer_that_was_removed_comes_back_as_it_was_or_not_at_all() {
    let (mut replica, mut feed) = world();
    let second = peers(&replica)[0].clone();
    feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))])
        .unwrap();
    replica.receive(next(&feed, replica.position()), 0);
    let come_back = |replica: &mut Replica, statement| {
        let since = replica.position().unwrap();
        let peer = Peer {
            statement,
            ..second.clone()
        };
        replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes: vec![ViewChange::Peer(peer)],
            },
            0,
        )
    };
    let mut replica = kept(&replica);
    let refused = vec![Refusal {
        name: second.name.clone(),
        reason: RefusalReason::Identity,
    }];
    assert_eq!(
        come_back(&mut replica, Keys::of(66).statement(9)),
        Received::Changed { refused }
    );
    assert_eq!(
        come_back(&mut replica, second.statement.clone()),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(peers(&replica).len(), 2);

    // Nor does it help to remove and add it in one breath.
    let since = replica.position().unwrap();
    let swapped = Peer {
        statement: Keys::of(66).statement(9),
        ..second.clone()
    };
    let changes = vec![
        ViewChange::PeerRemoved(second.node.into()),
        ViewChange::Peer(swapped),
    ];
    let refused = vec![Refusal {
        name: second.name,
        reason: RefusalReason::Identity,
    }];
    assert_eq!(
        replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes
            },
            0
        ),
        Received::Changed { refused }
    );
    assert_eq!(
        peers(&replica)
            .iter()
            .map(|peer| peer.node)
            .collect::<Vec<_>>(),
        [node_id(3)]
    );
}

#[test]
fn e1_a_peer_that_claims_what_can_be_nobodys_lan_is_refused_and_its_old_record_stays() {
    let (mut replica, _) = world();
    let before = peers(&replica);
    for claim in [
        "0.0.0.0/0",
        "::/0",
        "0.0.0.0/1",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "10.2.0.1/24",
    ] {
        let peer = Peer {
            subnets: vec![claim.parse().unwrap()],
            ..before[0].clone()
        };
        let since = replica.position().unwrap();
        let received = replica.receive(
            StreamMessage::Delta {
                since,
                position: since,
                changes: vec![ViewChange::Peer(peer)],
            },
            0,
        );
        assert!(
            matches!(received, Received::Changed { refused } if refused.len() == 1),
            "{claim}"
        );
        assert_eq!(peers(&replica), before);
    }
}

#[test]
fn a_revoked_node_has_no_peers_once_that_is_confirmed_and_any_other_end_of_the_stream_changes_nothing()
 {
    let (mut replica, _) = world();
    let before = peers(&replica);
    for reason in [
        ByeReason::Shutdown,
        ByeReason::Superseded,
        ByeReason::Unknown,
    ] {
        assert_eq!(
            replica.receive(StreamMessage::Bye { reason }, 0),
            Received::Bye(reason)
        );
        assert_eq!(peers(&replica), before);
    }
    assert_eq!(
        replica.receive(
            StreamMessage::Bye {
                reason: ByeReason::Revoked
            },
            0
        ),
        Received::Bye(ByeReason::Revoked)
    );
    assert_eq!(peers(&replica), before);
    assert!(replica.confirm(&replica.awaiting_confirmation()));
    assert_eq!(peers(&replica), []);
}

#[test]
fn a_delta_that_does_not_follow_is_a_gap() {
    let (mut replica, mut feed) = world();
    feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))])
        .unwrap();
    let missed = feed.position();
    feed.advance(12, &[RecordChange::NodeRevoked(node_id(3))])
        .unwrap();
    let before = replica.stored().unwrap().view;
    let mut deaf = replica.clone();
    assert_eq!(deaf.receive(next(&feed, Some(missed)), 0), Received::Gap);
    assert_eq!(deaf.stored().unwrap().view, before);
    let once = next(&feed, replica.position());
    assert_eq!(
        replica.receive(once.clone(), 0),
        Received::Changed { refused: vec![] }
    );
    let mut twice = replica.clone();
    assert_eq!(
        twice.receive(once, 0),
        Received::Gap,
        "the same delta once more"
    );
    assert_eq!(twice.resume_from(), None);
    let mut empty = Replica::new(MESH, Keys::of(1).wireguard_key());
    assert_eq!(
        empty.receive(StreamMessage::Heartbeat { position: missed }, 0),
        Received::Gap
    );
}

#[test]
fn e12_f3_a_revision_that_was_seen_is_not_turned_back_and_a_restored_database_is_followed_in_its_new_epoch()
 {
    let (mut replica, mut feed) = world();
    let StreamMessage::Snapshot {
        position: old,
        view: old_view,
        ..
    } = next(&feed, None)
    else {
        panic!("no snapshot")
    };
    let mut site = crate::testing::node_record(2).0;
    site.spec.subnets = vec!["10.22.0.0/24".parse().unwrap()];
    feed.advance(11, &[RecordChange::Site(site)]).unwrap();
    replica.receive(next(&feed, replica.position()), 0);
    let (before, have) = (peers(&replica), feed.position());
    let at = |position| StreamMessage::Snapshot {
        position,
        view: old_view.clone(),
        removed: vec![],
    };

    for offered in [
        old,
        Position {
            epoch: 0,
            revision: 99,
        },
    ] {
        assert_eq!(
            replica.receive(at(offered), 0),
            Received::Rejected(Rejection::RolledBack { have, offered })
        );
        assert_eq!(
            (peers(&replica), replica.resume_from()),
            (before.clone(), Some(have)),
            "it says where it is, so that a restore is noticed"
        );
        assert_eq!(replica.problems().count(), 1);
    }
    // Nor by a heartbeat or a delta, neither to what was before nor into another epoch.
    for position in [old, Position { epoch: 2, ..old }] {
        let delta = StreamMessage::Delta {
            since: have,
            position,
            changes: vec![ViewChange::Peer(old_view.peers[0].clone())],
        };
        for message in [StreamMessage::Heartbeat { position }, delta] {
            let mut replica = replica.clone();
            assert_eq!(replica.receive(message, 0), Received::Gap);
            assert_eq!(
                (peers(&replica), replica.position()),
                (before.clone(), Some(have))
            );
        }
    }
    assert_eq!(
        replica.receive(StreamMessage::Heartbeat { position: have }, 0),
        Received::Unchanged
    );
    assert_eq!(replica.problems().count(), 0);
    assert_eq!(
        replica.receive(at(Position { epoch: 2, ..old }), 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(peers(&replica), old_view.peers);
}

#[test]
fn e2_a_key_that_its_node_did_not_sign_is_refused_and_the_old_one_stays() {
    let (mut replica, feed) = world();
    let before = peers(&replica);
    let peer_with = |statement: SignedStatement| {
        let peer = Peer {
            statement,
            ..before[0].clone()
        };
        let since = feed.position();
        StreamMessage::Delta {
            since,
            position: since,
            changes: vec![ViewChange::Peer(peer)],
        }
    };
    let swapped = Keys {
        identity: Keys::of(2).identity,
        wireguard: Keys::of(66).wireguard,
    };
    let mut forged = swapped.statement(2);
    forged.signature = before[0].statement.signature;
    for (statement, reason) in [
        (
            forged,
            RefusalReason::Statement(InvalidStatement::Signature),
        ),
        (Keys::of(66).statement(2), RefusalReason::Identity),
        (swapped.statement(1), RefusalReason::Older),
    ] {
        let refused = vec![Refusal {
            name: before[0].name.clone(),
            reason,
        }];
        assert_eq!(
            replica.receive(peer_with(statement), 0),
            Received::Changed { refused }
        );
        assert_eq!(peers(&replica), before);
        let unrelated = StreamMessage::Delta {
            since: feed.position(),
            position: feed.position(),
            changes: vec![],
        };
        assert_eq!(
            replica.receive(unrelated, 0),
            Received::Changed { refused: vec![] }
        );
        assert_eq!(
            replica.problems().count(),
            1,
            "it is told until the coordinator says something better"
        );
    }
    assert_eq!(
        replica.receive(peer_with(swapped.statement(2)), 0),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(replica.problems().count(), 0);
    assert_ne!(peers(&replica), before);
}

#[test]
fn b14_of_a_revision_that_contradicts_itself_only_what_two_claim_is_not_carried_out() {
    let (replica, feed) = world();
    let before = peers(&replica);
    let since = feed.position();
    let refusal = |change: Peer| {
        let mut replica = replica.clone();
        let position = Position {
            revision: since.revision + 1,
            ..since
        };
        let mut moved = before[0].clone();
        moved.endpoint = Some("203.0.113.77:51820".parse().unwrap());
        let changes = vec![ViewChange::Peer(moved.clone()), ViewChange::Peer(change)];
        let received = replica.receive(
            StreamMessage::Delta {
                since,
                position,
                changes,
            },
            0,
        );
        assert_eq!(received, Received::Changed { refused: vec![] });
        // The rest is carried out, and what comes later applies.
        assert_eq!(replica.resume_from(), Some(position));
        let after = peers(&replica);
        assert_eq!(after[0], moved);
        let mut replica = kept(&replica);
        assert_eq!(peers(&replica), after);
        let problems = words(replica.problems());
        // The coordinator takes it back.
        let view = view::view(feed.directory(), node_id(1)).unwrap();
        let snapshot = StreamMessage::Snapshot {
            position,
            view,
            removed: vec![],
        };
        let received = replica.receive(snapshot, 0);
        assert_eq!(received, Received::Changed { refused: vec![] });
        assert_eq!(
            (peers(&replica), replica.problems().count()),
            (before.clone(), 0)
        );
        let others: Vec<_> = after[1..]
            .iter()
            .map(|peer| (peer.node, peer.subnets.clone()))
            .collect();
        (others, problems.join("; "))
    };
    let [second, third] = [before[0].clone(), before[1].clone()];
    let untouched = vec![(third.node, third.subnets.clone())];
    let without_it = vec![(third.node, vec![])];
    let own_key = Peer {
        node: node_id(9),
        statement: Keys::of(1).statement(1),
        tunnel_address: "10.99.0.9".parse().unwrap(),
        subnets: vec![],
        ..second.clone()
    };
    let same_key = Peer {
        statement: second.statement.clone(),
        ..own_key.clone()
    };
    let same_address = Peer {
        statement: Keys::of(9).statement(1),
        tunnel_address: third.tunnel_address,
        ..own_key.clone()
    };
    let taken = "It is taken up when the coordinator gives it to one of the two";
    for (newcomer, what) in [
        (own_key, "its key belongs to this node"),
        (same_key, "its key belongs to site-2"),
        (same_address, "10.99.0.3/32 belongs to site-3"),
    ] {
        let problem = format!("the new site-2 is refused: {what}. {taken}");
        assert_eq!(refusal(newcomer), (untouched.clone(), problem));
    }
    let same_prefix = Peer {
        subnets: second.subnets,
        ..third.clone()
    };
    let problem = format!("a change of site-3 is refused: 10.2.0.0/24 belongs to site-2. {taken}");
    assert_eq!(refusal(same_prefix), (without_it.clone(), problem));
    let free: ipnet::IpNet = "10.77.0.0/24".parse().unwrap();
    let inside = Peer {
        subnets: vec!["10.2.0.128/25".parse().unwrap(), free],
        ..third.clone()
    };
    let (others, problem) = refusal(inside);
    assert_eq!(others, [(third.node, vec![free])]);
    assert!(
        problem.contains("10.2.0.128/25") && problem.contains("10.2.0.0/24"),
        "{problem}"
    );
    let own_lan = Peer {
        subnets: vec!["10.1.0.0/24".parse().unwrap()],
        ..third
    };
    let problem =
        format!("a change of site-3 is refused: 10.1.0.0/24 belongs to this node. {taken}");
    assert_eq!(refusal(own_lan), (without_it, problem));
}

#[test]
fn an_announced_key_is_believed_of_the_same_identity_alone_and_belongs_to_nobody_else() {
    let (mut replica, feed) = world();
    let second = peers(&replica)[0].clone();
    let announcing = |keys: &Keys, wireguard: &Keys, sequence: u64| {
        let statement = Statement {
            mesh: MESH,
            identity: keys.identity_key(),
            wireguard_key: wireguard.wireguard_key(),
            sequence,
            predecessors: vec![],
            unmanaged: false,
        };
        Peer {
            announced: Some(
                crate::keys::enrolment::sign_announcement(&statement, &keys.identity).unwrap(),
            ),
            ..second.clone()
        }
    };
    let receive = |replica: &mut Replica, peer: Peer| {
        let mut view = view::view(feed.directory(), node_id(1)).unwrap();
        view.peers[0] = peer;
        replica.receive(
            StreamMessage::Snapshot {
                position: feed.position(),
                view,
                removed: vec![],
            },
            0,
        )
    };
    let (own, next) = (Keys::of(2), Keys::of(20));
    for (peer, why) in [
        (
            announcing(&Keys::of(3), &next, 2),
            "not signed by the node's identity",
        ),
        (announcing(&own, &next, 1), "not a later number"),
        (announcing(&own, &own, 2), "the same key"),
    ] {
        let Received::Changed { refused } = receive(&mut replica, peer) else {
            panic!("{why}")
        };
        assert_eq!(
            refused
                .iter()
                .map(|refusal| refusal.reason)
                .collect::<Vec<_>>(),
            [RefusalReason::Announced],
            "{why}"
        );
    }
    for (taken, of) in [(1, "this node"), (3, "site-3")] {
        let received = receive(&mut replica, announcing(&own, &Keys::of(taken), 2));
        assert_eq!(received, Received::Changed { refused: vec![] });
        assert_eq!(replica.known().unwrap().peers[&node_id(2)].announced, None);
        let problems = words(replica.problems());
        assert!(
            problems[0].starts_with(&format!(
                "a change of site-2 is refused: its key belongs to {of}."
            )),
            "{problems:?}"
        );
    }
    assert_eq!(
        receive(&mut replica, announcing(&own, &next, 2)),
        Received::Changed { refused: vec![] }
    );
    let known = &replica.known().unwrap().peers[&node_id(2)];
    assert_eq!(
        known
            .announced
            .as_ref()
            .map(|statement| statement.wireguard_key),
        Some(next.wireguard_key())
    );
    assert_eq!(known.statement.wireguard_key, own.wireguard_key());
}

#[test]
fn whether_an_agent_runs_on_a_node_never_changes_and_one_without_announces_no_key() {
    let (mut replica, feed) = world();
    let before = peers(&replica);
    let removal = StreamMessage::Delta {
        since: feed.position(),
        position: feed.position(),
        changes: vec![ViewChange::PeerRemoved(node_id(2).into())],
    };
    let tell = |replica: &mut Replica, peer: Peer| {
        let since = feed.position();
        let delta = StreamMessage::Delta {
            since,
            position: since,
            changes: vec![ViewChange::Peer(peer)],
        };
        let Received::Changed { refused } = replica.receive(delta, 0) else {
            panic!("nothing was told")
        };
        refused.first().map(|refusal| refusal.reason)
    };
    let keys = Keys::of(2);
    let turned = Peer {
        statement: keys.stating(2, true),
        ..before[0].clone()
    };
    assert_eq!(
        tell(&mut replica, turned.clone()),
        Some(RefusalReason::Unmanaged)
    );
    assert_eq!(peers(&replica), before);
    // After its removal and a restart, too.
    replica.receive(removal, 0);
    let stored =
        serde_json::from_str(&serde_json::to_string(&replica.stored().unwrap()).unwrap()).unwrap();
    let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
    replica.restore(stored).unwrap();
    assert_eq!(tell(&mut replica, turned), Some(RefusalReason::Unmanaged));

    let (alone, next) = (
        Keys::of(9),
        Keys {
            identity: Keys::of(9).identity,
            wireguard: Keys::of(90).wireguard,
        },
    );
    let address = "10.99.0.9".parse().unwrap();
    let peer = Peer {
        node: node_id(9),
        statement: alone.unmanaged(),
        tunnel_address: address,
        subnets: vec![],
        ..before[0].clone()
    };
    assert_eq!(tell(&mut replica, peer.clone()), None);
    for unmanaged in [true, false] {
        let announcing = Peer {
            announced: Some(next.announcing(2, unmanaged)),
            ..peer.clone()
        };
        assert_eq!(
            tell(&mut replica, announcing),
            Some(RefusalReason::Announced)
        );
    }
    assert_eq!(
        tell(
            &mut replica,
            Peer {
                statement: next.stating(2, false),
                ..peer
            }
        ),
        Some(RefusalReason::Unmanaged)
    );
}

#[test]
fn another_identity_is_followed_when_the_known_one_signed_for_it_and_there_is_no_way_back() {
    let (mut replica, feed) = world();
    let before = peers(&replica);
    let old = node_keys_of(2);
    let successor = old
        .preparing_identity(&[66; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap();
    let further = successor
        .preparing_identity(&[67; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap();
    let fork = old
        .preparing_identity(&[68; 32])
        .unwrap()
        .identity_switched(MESH)
        .unwrap();
    let late = fork
        .preparing(&[69; 32])
        .unwrap()
        .preparing(&[69; 32])
        .unwrap()
        .preparing(&[69; 32])
        .unwrap()
        .switched(0)
        .unwrap();
    let tell = |replica: &mut Replica, statement: SignedStatement| {
        let peer = Peer {
            statement,
            ..before[0].clone()
        };
        let since = feed.position();
        let delta = StreamMessage::Delta {
            since,
            position: since,
            changes: vec![ViewChange::Peer(peer)],
        };
        let Received::Changed { refused } = replica.receive(delta, 0) else {
            panic!("nothing was told")
        };
        refused.first().map(|refusal| refusal.reason)
    };
    // Who missed the one in between follows, too.
    let mut away = replica.clone();
    assert_eq!(tell(&mut away, further.statement(MESH).unwrap()), None);
    for node_keys in [&successor, &further] {
        assert_eq!(tell(&mut replica, node_keys.statement(MESH).unwrap()), None);
    }
    let pinned = |replica: &Replica| {
        replica.known().unwrap().peers[&node_id(2)]
            .statement
            .identity
    };
    assert_eq!(
        [pinned(&replica), pinned(&away)],
        [further.identity_key(); 2]
    );
    // Whoever has a former key, and whatever is signed with it, counts for nothing.
    let stale = old.preparing(&[70; 32]).unwrap().switched(0).unwrap();
    for node_keys in [&late, &stale] {
        assert_eq!(
            tell(&mut replica, node_keys.statement(MESH).unwrap()),
            Some(RefusalReason::Identity)
        );
        assert_eq!(pinned(&replica), further.identity_key());
    }
    // After its removal, too.
    replica.receive(
        StreamMessage::Delta {
            since: feed.position(),
            position: feed.position(),
            changes: vec![ViewChange::PeerRemoved(node_id(2).into())],
        },
        0,
    );
    assert_eq!(
        tell(&mut replica, late.statement(MESH).unwrap()),
        Some(RefusalReason::Identity)
    );
}
