//! Removals that an operator has signed.

use wattle_wire::stream::{ByeReason, Tombstone};

use super::*;

/// A node as the coordinator lists it that has removed it.
fn removed_node(number: u64) -> RemovedNode {
    let (site, record) = node_record(number);
    RemovedNode {
        id: record.id,
        name: Some(record.name),
        site_name: Some(site.spec.name),
        identity_key: record.identity_key,
        removed_at: None,
        admission: record.admission,
        removal: None,
    }
}

/// An operator's word that the node of a number is out of the mesh.
fn removal(by: &Operator, node: u64, signed_at: i64) -> SignedRemoval {
    let candidate = by.removal_candidate(MESH, &removed_node(node)).unwrap();
    by.sign_removal(MESH, &candidate, signed_at).unwrap()
}

/// The same, with something of it changed before it is signed.
fn altered(by: &Operator, node: u64, change: impl FnOnce(&mut Removal)) -> SignedRemoval {
    let text = removal(by, node, NOW + 1).removal;
    let mut word: Removal = serde_json::from_str(&text).unwrap();
    change(&mut word);
    let removal = serde_json::to_string(&word).unwrap();
    let signature = enrolment::sign(&by.keys, &[REMOVAL, removal.as_bytes()].concat());
    SignedRemoval { removal, signature }
}

impl World {
    /// The coordinator removes nodes, and an operator has signed these removals.
    fn remove(&mut self, nodes: &[u64], signed: &[u64]) {
        let revoked = nodes
            .iter()
            .map(|node| RecordChange::NodeRevoked(node_id(*node)));
        let signed = signed.iter().map(|node| {
            RecordChange::Removal(node_id(*node), removal(&operator(1), *node, NOW + 1))
        });
        self.change(&revoked.chain(signed).collect::<Vec<_>>());
    }

    /// The coordinator is told that an operator has signed a removal.
    fn sign(&mut self, node: u64, removal: SignedRemoval) {
        self.change(&[RecordChange::Removal(node_id(node), removal)]);
    }

    fn peers(&self) -> Vec<NodeId> {
        let peers = self.replica.known().unwrap().peers.keys();
        peers.copied().collect()
    }

    fn held(&self) -> Vec<NodeId> {
        self.replica.awaiting_confirmation().into_iter().collect()
    }
}

fn ids<const N: usize>(numbers: [u64; N]) -> Vec<NodeId> {
    numbers.map(node_id).to_vec()
}

#[test]
fn e4_with_the_lock_a_removal_that_an_operator_signed_waits_for_nothing_and_any_other_is_held() {
    let mut world = World::new(6, &[2, 3, 4, 5, 6]);
    world.remove(&[2, 3, 4], &[2, 3, 4]);
    assert_eq!((world.peers(), world.held()), (ids([5, 6]), vec![]));
    world.remove(&[5], &[]);
    assert_eq!((world.peers(), world.held()), (ids([5, 6]), ids([5])));
    let problems = words(world.replica.problems());
    assert_eq!(
        problems,
        [
            "the coordinator removed peers, and no operator has signed that. These stay until an \
             operator signs the removal with `wattle-agent lock sign`, or you run `wattle-agent \
             confirm` on this gateway: site-5"
        ]
    );
    world.restart(Some(operators(&[1])));
    assert_eq!((world.peers(), world.held()), (ids([5, 6]), ids([5])));
    world.sign(5, removal(&operator(1), 5, NOW + 1));
    assert_eq!((world.peers(), world.held()), (ids([6]), vec![]));
    // The last one does not go by itself, either; somebody on the gateway can confirm that.
    world.remove(&[6], &[]);
    assert_eq!((world.peers(), world.held()), (ids([6]), ids([6])));
    world.replica.confirm(&ids([6]).into_iter().collect());
    assert_eq!((world.peers(), world.held()), (vec![], vec![]));
}

#[test]
fn e4_with_the_lock_all_that_was_let_in_stays_when_the_node_is_told_that_it_is_out() {
    let mut world = World::new(4, &[2, 3]);
    let reason = ByeReason::Revoked;
    world.replica.receive(StreamMessage::Bye { reason }, 0);
    assert_eq!((world.peers(), world.held()), (ids([2, 3]), ids([2, 3])));
}

#[test]
fn with_the_lock_a_peer_that_nobody_let_in_goes_without_a_signature() {
    let mut world = World::new(5, &[2]);
    world.remove(&[3, 4, 5], &[]);
    assert_eq!((world.peers(), world.held()), (ids([2]), vec![]));

    // One that was there before the lock was let in.
    let mut world = World::new(3, &[]);
    world.replica = fresh();
    world.listen();
    world.restart(Some(operators(&[1])));
    world.remove(&[2], &[]);
    assert_eq!((world.peers(), world.held()), (ids([2, 3]), ids([2, 3])));
    assert_eq!(
        world.replica.held().unwrap().peers[0].because,
        HeldBecause::Removed
    );
}

#[test]
fn e4_a_signature_that_comes_later_confirms_what_it_is_of_and_nothing_else() {
    let mut world = World::new(5, &[2, 3, 4, 5]);
    world.remove(&[2, 3, 4], &[]);
    assert_eq!(world.held(), ids([2, 3, 4]));
    let problems = words(world.replica.problems());
    assert_eq!(
        problems,
        [
            "the coordinator removed peers, and no operator has signed that. These stay until an \
             operator signs the removal with `wattle-agent lock sign`, or you run `wattle-agent \
             confirm` on this gateway: site-2, site-3, site-4"
        ]
    );
    world.sign(3, removal(&operator(1), 3, NOW + 1));
    assert_eq!((world.peers(), world.held()), (ids([2, 4, 5]), ids([2, 4])));
    world.restart(Some(operators(&[1])));
    // So does one in a snapshot.
    world.feed = Feed::new(world.feed.directory().clone(), world.feed.position(), []);
    world.sign(2, removal(&operator(1), 2, NOW + 1));
    assert_eq!((world.peers(), world.held()), (ids([4, 5]), ids([4])));
}

#[test]
fn e4_a_removal_that_is_not_a_known_operators_or_of_another_node_confirms_nothing() {
    let (known, stranger) = (operator(1), operator(9));
    let mut forged = removal(&known, 2, NOW + 1);
    forged.signature = removal(&stranger, 2, NOW + 1).signature;
    let mut for_another_purpose = removal(&known, 2, NOW + 1);
    let text = for_another_purpose.removal.as_bytes();
    for_another_purpose.signature = enrolment::sign(&known.keys, &[ADMISSION, text].concat());
    for (word, is_good) in [
        (removal(&known, 2, NOW + 1), true),
        (removal(&stranger, 2, NOW + 1), false),
        (forged, false),
        (for_another_purpose, false),
        (removal(&known, 3, NOW + 1), false),
        (
            altered(&known, 2, |word| word.mesh = MeshId(uuid::Uuid::nil())),
            false,
        ),
        (altered(&known, 2, |word| word.node = node_id(3)), false),
        (
            altered(&known, 2, |word| {
                word.identity = node_record(3).1.identity_key;
            }),
            false,
        ),
        (
            altered(&known, 2, |word| word.operator = stranger.key()),
            false,
        ),
        // It was admitted after that, or in the same second.
        (altered(&known, 2, |word| word.signed_at = NOW), false),
        (altered(&known, 2, |word| word.signed_at = NOW - 1), false),
    ] {
        let mut world = World::new(4, &[2, 3, 4]);
        world.remove(&[2, 3, 4], &[]);
        world.sign(2, word.clone());
        let left = if is_good { ids([3, 4]) } else { ids([2, 3, 4]) };
        assert_eq!(
            (world.peers(), world.held()),
            (left.clone(), left),
            "{word:?}"
        );
    }
}

#[test]
fn e4_without_the_lock_a_signature_confirms_nothing() {
    let mut world = World::new(4, &[]);
    world.replica = fresh();
    world.listen();
    world.remove(&[2, 3, 4], &[2, 3, 4]);
    assert_eq!(world.held(), ids([2, 3, 4]));
    assert!(!world.replica.is_locked());
    // The lock is turned on: what was signed comes with a snapshot.
    world.restart(Some(operators(&[1])));
    assert_eq!(world.replica.resume_from(), None);
    let message = next_message(&world.feed, node_id(1), None).unwrap();
    world.replica.receive(message, 0);
    assert_eq!((world.peers(), world.held()), (vec![], vec![]));
}

#[test]
fn what_an_operator_signed_who_is_believed_only_now_comes_with_a_snapshot() {
    let mut world = World::new(4, &[2, 3, 4]);
    world.remove(&[2, 3, 4], &[]);
    world.sign(2, removal(&operator(2), 2, NOW + 1));
    assert_eq!(world.held(), ids([2, 3, 4]));
    world.restart(Some(operators(&[1])));
    assert_eq!(world.replica.resume_from(), Some(world.feed.position()));
    world.restart(Some(operators(&[1, 2])));
    assert_eq!(world.replica.resume_from(), None);
    let message = next_message(&world.feed, node_id(1), None).unwrap();
    world.replica.receive(message, 0);
    assert_eq!(world.held(), ids([3, 4]));
}

#[test]
fn e12_a_signed_removal_spends_what_was_signed_before_it_and_does_not_remove_who_was_admitted_later()
 {
    let mut world = World::new(4, &[2, 3, 4]);
    let gone = world.replica.known().unwrap().peers[&node_id(2)]
        .peer
        .clone();
    let old = removal(&operator(1), 2, NOW + 10);
    world.change(&[
        RecordChange::NodeRevoked(node_id(2)),
        RecordChange::Removal(node_id(2), old.clone()),
    ]);
    world.restart(Some(operators(&[1])));
    let tell = |world: &mut World, changes| {
        let since = world.replica.position().unwrap();
        let position = since;
        let delta = StreamMessage::Delta {
            since,
            position,
            changes,
        };
        world.replica.receive(delta, 0);
        world.carried_out().iter().any(|(name, _)| name == "site-2")
    };
    let admitted = |signed_at| {
        let admission = Some(just(&operator(1), 2, signed_at));
        let gone = gone.clone();
        vec![ViewChange::Peer(Peer { admission, ..gone })]
    };
    assert!(!tell(&mut world, admitted(NOW)));
    assert!(!tell(&mut world, admitted(NOW + 10)));
    assert!(tell(&mut world, admitted(NOW + 11)));
    // The old word is played again, with the tombstones of all.
    let replayed = ViewChange::PeerRemoved(Tombstone {
        node: node_id(2),
        removal: Some(old),
    });
    let others = [3, 4].map(|node| ViewChange::PeerRemoved(node_id(node).into()));
    assert!(tell(&mut world, [vec![replayed], others.to_vec()].concat()));
    assert_eq!(world.held(), ids([2, 3, 4]));
}

#[test]
fn a_host_reports_whom_it_holds_and_why_the_removed_first_and_no_more_than_64() {
    let mut world = World::new(5, &[2, 3, 4]);
    assert_eq!(world.replica.held(), None);
    world.remove(&[2, 3, 4], &[]);
    let because = |held: &Held| -> Vec<_> {
        let peers = held.peers.iter();
        peers.map(|peer| (peer.node, peer.because)).collect()
    };
    let held = world.replica.held().unwrap();
    assert_eq!((world.replica.is_locked(), held.total), (true, 3));
    assert_eq!(
        because(&held),
        ids([2, 3, 4])
            .into_iter()
            .map(|node| (node, HeldBecause::Removed))
            .collect::<Vec<_>>()
    );
    let HeldPeer { name, identity, .. } = &held.peers[0];
    assert_eq!(
        (name.as_str(), *identity),
        ("site-2", node_record(2).1.identity_key)
    );

    // The lock is turned on where two were there, and a database that was restored has lost one.
    let mut world = World::new(3, &[]);
    world.replica = fresh();
    world.listen();
    world.restart(Some(operators(&[1])));
    let position = Position {
        epoch: 2,
        revision: 1,
    };
    world.feed = Feed::new(directory_of(2), position, []);
    world.listen();
    let expected = [
        (node_id(3), HeldBecause::Lost),
        (node_id(2), HeldBecause::NotAdmitted),
    ];
    assert_eq!(because(&world.replica.held().unwrap()), expected);

    let mut world = World::new(90, &(2..=90).collect::<Vec<_>>());
    world.remove(&(2..=90).collect::<Vec<_>>(), &[]);
    let held = world.replica.held().unwrap();
    assert_eq!((held.total, held.peers.len()), (89, Held::MOST_PEERS));
}

#[test]
fn a_removal_is_asked_for_once_later_than_the_admission_and_of_nobody_who_takes_part() {
    let operator = operator(1);
    let mut second = removed_node(2);
    second.admission = Some(just(&operator, 2, NOW));
    let candidates = operator.removal_candidates(MESH, &[second.clone()], &[]);
    let [candidate] = &candidates[..] else {
        panic!("{candidates:?}")
    };
    let signed = operator.sign_removal(MESH, candidate, NOW - 1000).unwrap();
    let word = verify_removal(&signed, MESH).unwrap();
    assert_eq!(word.signed_at, NOW + 1, "even if the clock was set back");
    second.removal = Some(signed);
    assert_eq!(
        operator.removal_candidates(MESH, &[second.clone()], &[]),
        []
    );
    // By whoever, unless that was in days to come.
    second.admission = Some(just(&self::operator(2), 2, NOW + LATER_S));
    for (now, at) in [(NOW + 1, NOW + LATER_S + 1), (NOW, NOW)] {
        let candidates = operator.removal_candidates(MESH, &[second.clone()], &[]);
        let signed = operator.sign_removal(MESH, &candidates[0], now).unwrap();
        assert_eq!(verify_removal(&signed, MESH).unwrap().signed_at, at);
    }
    // A node that was admitted once more since, and somebody else's word.
    second.admission = Some(just(&operator, 2, NOW + 1));
    assert_eq!(
        operator
            .removal_candidates(MESH, &[second.clone()], &[])
            .len(),
        1
    );
    let other = Operator::new(&[2; 32]).unwrap();
    assert_eq!(
        other.removal_candidates(MESH, &[second.clone()], &[]).len(),
        1
    );

    // What hosts say that they hold.
    let held = |node: u64, identity: u64, because| HeldPeer {
        node: node_id(node),
        name: node_record(node).1.name,
        identity: node_record(identity).1.identity_key,
        because,
        lost: None,
    };
    let peers = vec![
        held(2, 2, HeldBecause::Removed),
        held(3, 3, HeldBecause::NotAdmitted),
        held(4, 4, HeldBecause::Lost),
        held(5, 5, HeldBecause::Removed),
        held(9, 1, HeldBecause::Lost),
        held(1, 9, HeldBecause::Lost),
    ];
    let mut node = listed(1);
    node.held = Some(Held { total: 5, peers });
    let asked = operator.removal_candidates(MESH, &[second], &[node]);
    let asked: Vec<_> = asked
        .iter()
        .map(|candidate| (candidate.node, candidate.held_by.len()))
        .collect();
    assert_eq!(asked, [(node_id(2), 1), (node_id(4), 1), (node_id(5), 1)]);
}
