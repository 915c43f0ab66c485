//! What a coordinator in the wrong hands cannot make a replica take up, whatever it says.

use wattle_wire::ids::EARLIEST_S;

use super::{tests::world, *};
use crate::testing::{Keys, MESH, node_id, words};

const NOW: i64 = EARLIEST_S + 1_000_000;

fn whole(replica: &Replica, epoch: i64, change: impl FnOnce(&mut View)) -> StreamMessage {
    let stored = replica.stored().unwrap();
    let mut view = stored.view;
    change(&mut view);
    StreamMessage::Snapshot {
        position: Position {
            epoch,
            revision: i64::MAX,
        },
        view,
        removed: vec![],
    }
}

/// What follows next.
fn delta(replica: &Replica, changes: Vec<ViewChange>) -> StreamMessage {
    let since = replica.position().unwrap();
    StreamMessage::Delta {
        since,
        position: Position {
            revision: since.revision.saturating_add(1),
            ..since
        },
        changes,
    }
}

#[test]
fn e14_no_epoch_of_the_future_is_taken_up_and_after_any_other_the_next_one_is() {
    let (mut replica, _) = world();
    for epoch in [NOW + 1, i64::MAX] {
        let have = replica.position();
        let told = replica.receive(whole(&replica, epoch, |_| {}), NOW);
        assert!(matches!(
            told,
            Received::Rejected(Rejection::NotYet(offered)) if offered.epoch == epoch
        ));
        assert_eq!((replica.position(), replica.resume_from()), (have, have));
        assert_eq!(replica.problems().count(), 1);
    }
    let told = replica.receive(whole(&replica, NOW, |_| {}), NOW);
    assert_eq!(told, Received::Changed { refused: vec![] });
    // The honest coordinator goes on after that, a second later.
    let told = replica.receive(whole(&replica, NOW + 1, |_| {}), NOW + 1);
    assert_eq!(told, Received::Changed { refused: vec![] });
    assert_eq!(replica.problems().count(), 0);
    // A clock that was set back does not turn it back.
    let told = replica.receive(whole(&replica, NOW + 1, |_| {}), 0);
    assert_eq!(told, Received::Changed { refused: vec![] });
}

#[test]
fn e18_no_tunnel_address_prefix_or_port_changes_once_it_is_known() {
    let (mut replica, _) = world();
    let known = replica.known().cloned();
    let lies: [fn(&mut View); 4] = [
        |view| view.myself.tunnel_address = "10.99.0.77".parse().unwrap(),
        |view| view.myself.node = node_id(77),
        |view| view.mesh.tunnel_prefix = "10.0.0.0/8".parse().unwrap(),
        |view| view.mesh.listen_port = 22,
    ];
    for lie in lies {
        let told = replica.receive(whole(&replica, 2, lie), NOW);
        assert_eq!(told, Received::Rejected(Rejection::Moved));
        assert_eq!(replica.known(), known.as_ref());
        assert_eq!(replica.resume_from(), None, "it asks for a snapshot");
    }
    let told = replica.receive(
        whole(&replica, 2, |view| {
            view.peers[0].tunnel_address = "10.99.0.77".parse().unwrap();
        }),
        NOW,
    );
    let Received::Changed { refused } = told else {
        panic!("{told:?}")
    };
    assert_eq!(refused[0].reason, RefusalReason::Moved);
    let now = replica.known().unwrap();
    assert_eq!(now.peers, known.unwrap().peers);
}

#[test]
fn e18_a_peer_that_goes_and_comes_keeps_its_tunnel_address_and_its_announcement() {
    let (mut replica, _) = world();
    let mut peer = replica.stored().unwrap().view.peers[0].clone();
    let next = Keys {
        identity: Keys::of(2).identity,
        wireguard: Keys::of(20).wireguard,
    };
    peer.announced = Some(next.announcing(2, false));
    let tell = |replica: &mut Replica, changes: Vec<ViewChange>| {
        let told = replica.receive(delta(replica, changes), NOW);
        let Received::Changed { refused } = told else {
            panic!("{told:?}")
        };
        refused.first().map(|refusal| refusal.reason)
    };
    let (gone, there) = (
        ViewChange::PeerRemoved(node_id(2).into()),
        ViewChange::Peer(peer.clone()),
    );
    assert_eq!(tell(&mut replica, vec![there.clone()]), None);
    let moved = ViewChange::Peer(Peer {
        tunnel_address: "10.99.0.77".parse().unwrap(),
        ..peer.clone()
    });
    let silent = ViewChange::Peer(Peer {
        announced: None,
        ..peer.clone()
    });
    assert_eq!(tell(&mut replica, vec![gone.clone(), silent]), None);
    let known = &replica.known().unwrap().peers[&node_id(2)];
    let announced = known.announced.as_ref().map(|next| next.wireguard_key);
    assert_eq!(announced, Some(next.wireguard_key()));
    let in_one = vec![gone, moved.clone()];
    assert_eq!(tell(&mut replica, in_one), Some(RefusalReason::Moved));
    // It is gone now. Nor does it come back with another address, after a restart neither.
    let stored = replica.stored().unwrap();
    let stored = serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
    let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
    replica.restore(stored).unwrap();
    assert!(!replica.known().unwrap().peers.contains_key(&node_id(2)));
    assert_eq!(tell(&mut replica, vec![moved]), Some(RefusalReason::Moved));
    assert_eq!(tell(&mut replica, vec![there]), None);
    assert_eq!(replica.known().unwrap().peers[&node_id(2)].peer, peer);
}

#[test]
fn peers_that_the_coordinator_has_lost_are_given_up_and_no_others() {
    let (mut replica, _) = world();
    let snapshot = whole(&replica, 2, |view| drop(view.peers.remove(0)));
    replica.receive(snapshot, NOW);
    let given_up = [2, 3].map(|number| replica.is_given_up(node_id(number)));
    assert_eq!(given_up, [true, false]);
}

#[test]
fn e15_what_is_kept_of_a_coordinators_words_has_an_end() {
    let (mut replica, _) = world();
    let before = replica.stored().unwrap().view;
    let told = |replica: &mut Replica, numbers: std::ops::Range<u64>, text: &str| {
        let mut peer = before.peers[0].clone();
        text.clone_into(&mut peer.statement.statement);
        let changes = numbers.map(|number| {
            peer.node = node_id(number);
            ViewChange::Peer(peer.clone())
        });
        replica.receive(delta(replica, changes.collect()), NOW)
    };
    // Nobody signed them, and the first thousand are told of.
    for round in 1..=3 {
        let told = told(&mut replica, round * 1_000..(round + 1) * 1_000, "{}");
        assert!(matches!(told, Received::Changed { refused } if refused.len() == 1_000));
        assert_eq!(replica.problems().count(), 1_000);
    }
    // The next snapshot says what of it the coordinator still has.
    let snapshot = whole(&replica, 2, |_| {});
    assert_eq!(
        replica.receive(snapshot, NOW),
        Received::Changed { refused: vec![] }
    );
    assert_eq!(replica.problems().count(), 0);
    let long = "x".repeat(1 << 20);
    let taken = (0..100).take_while(|round| {
        let number = 30_000 + round;
        told(&mut replica, number..number + 1, &long) != Received::Rejected(Rejection::TooLarge)
    });
    assert_eq!(taken.count(), 15, "of a MiB each");
    assert!(words(replica.problems())[0].contains("more peers than an agent keeps: 10000"));
    assert_eq!(replica.stored().unwrap().view.peers, before.peers);
}
