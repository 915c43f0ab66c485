//! Which removals go by themselves, and what waits with those that do not.

use std::collections::BTreeSet;

use wattle_wire::{
    ids::{NodeId, Position},
    peer::View,
    stream::{ByeReason, StreamMessage},
};

use crate::{
    agent::replica::{Received, Rejection, Replica},
    config::{
        directory::{NodeRecord, RecordChange},
        feed::Feed,
        view,
    },
    testing::{Keys, MESH, directory_of, next_message, node_id, node_record, respecified, words},
};

const NOW: i64 = 1_800_000_000;
const HOUR_S: i64 = 3_600;

/// Node 1 of a mesh, and the feed that it follows.
struct World {
    replica: Replica,
    feed: Feed,
    now: i64,
}

impl World {
    fn new(nodes: u64) -> Self {
        let position = Position {
            epoch: 1,
            revision: 10,
        };
        let mut world = Self {
            replica: Replica::new(MESH, Keys::of(1).wireguard_key()),
            feed: Feed::new(directory_of(nodes), position, []),
            now: NOW,
        };
        world.listen();
        world
    }

    fn listen(&mut self) {
        let since = self.replica.resume_from();
        if let Some(message) = next_message(&self.feed, node_id(1), since) {
            let received = self.replica.receive(message, self.now);
            let follows = match &received {
                Received::Changed { refused } => refused.is_empty(),
                Received::Unchanged => true,
                Received::Gap | Received::Rejected(_) | Received::Bye(_) => false,
            };
            assert!(follows, "{received:?}");
        }
        assert_eq!(self.replica.resume_from(), Some(self.feed.position()));
    }

    /// The coordinator carries out a change, and the agent is away.
    fn change(&mut self, changes: &[RecordChange]) {
        let revision = self.feed.position().revision + 1;
        self.feed.advance(revision, changes).unwrap();
    }

    fn remove(&mut self, node: u64) -> &mut Self {
        self.change(&[RecordChange::NodeRevoked(node_id(node))]);
        self
    }

    /// Another machine takes the place of the only one of a site.
    fn replace(&mut self, node: u64, by: u64) {
        self.remove(node);
        self.change(&[RecordChange::Node(in_place_of(node, by))]);
    }

    /// The coordinator knows no history, so that the agent gets a snapshot.
    fn forget_history(&mut self) {
        let position = self.feed.position();
        self.feed = Feed::new(self.feed.directory().clone(), position, []);
    }

    fn restart(&mut self) {
        let stored = serde_json::to_string(&self.replica.stored().unwrap()).unwrap();
        let before = self.problems();
        self.replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let restored = self.replica.restore(serde_json::from_str(&stored).unwrap());
        assert_eq!(restored, Ok(vec![]));
        assert_eq!(self.problems(), before);
    }

    fn confirm(&mut self) {
        let awaiting = self.replica.awaiting_confirmation();
        assert!(self.replica.confirm(&awaiting));
    }

    fn peers(&self) -> BTreeSet<u64> {
        let peers = self.replica.known().unwrap().peers.keys();
        peers.map(|node| number(*node)).collect()
    }

    fn awaiting(&self) -> BTreeSet<u64> {
        let awaiting = self.replica.awaiting_confirmation();
        awaiting.into_iter().map(number).collect()
    }

    fn problems(&self) -> Vec<String> {
        words(self.replica.problems())
    }

    fn wanted(&self) -> View {
        view::view(self.feed.directory(), node_id(1)).unwrap()
    }

    #[track_caller]
    fn has_the_coordinators_view(&self) {
        let stored = self.replica.stored().unwrap();
        assert_eq!(stored.view, self.wanted());
        assert_eq!(self.problems(), Vec::<String>::new());
        assert!(stored.waiting.is_empty() && stored.own_waiting.is_none());
    }
}

fn number(node: NodeId) -> u64 {
    u64::try_from(node.0.as_u128()).unwrap()
}

fn in_place_of(node: u64, by: u64) -> NodeRecord {
    let (before, new) = (node_record(node).1, node_record(by).1);
    NodeRecord {
        site: before.site,
        name: before.name,
        tunnel_address: before.tunnel_address,
        ..new
    }
}

fn lan(node: u64, lans: &[&str]) -> RecordChange {
    let subnets = lans.iter().map(|lan| lan.parse().unwrap()).collect();
    respecified(node_record(node).0, |spec| spec.subnets = subnets)
}

#[test]
fn e4_more_than_half_of_the_peers_of_a_day_go_only_when_confirmed_however_it_is_spread() {
    type Tell = fn(&mut World, u64);
    let by_deltas: Tell = |world, node| world.remove(node).listen();
    let by_snapshots: Tell = |world, node| {
        world.remove(node).forget_history();
        world
            .replica
            .receive(StreamMessage::MessagesWaiting, world.now);
        world.listen();
    };
    let by_epochs: Tell = |world, node| {
        world.remove(node);
        let position = Position {
            epoch: world.feed.position().epoch + 1,
            revision: 1,
        };
        world.feed = Feed::new(world.feed.directory().clone(), position, []);
        world.listen();
    };
    let with_restarts: Tell = |world, node| {
        world.restart();
        world.remove(node).listen();
        world.restart();
    };
    for tell in [by_deltas, by_snapshots, by_epochs, with_restarts] {
        let mut world = World::new(5);
        for node in [2, 3, 4, 5] {
            world.now += HOUR_S;
            tell(&mut world, node);
        }
        assert_eq!(world.peers(), [4, 5].into(), "two of four are half");
        assert_eq!(world.awaiting(), [4, 5].into());
        assert_eq!(
            world.problems(),
            [
                "the coordinator removed 4 of 4 peers within 24 hours. These stay until you run \
                 `wattle-agent confirm` on this gateway: site-4, site-5"
            ]
        );
        // They wait for as long as nobody says anything.
        world.now += 30 * 24 * HOUR_S;
        world.change(&[lan(1, &["10.1.1.0/24"])]);
        world.listen();
        assert_eq!(world.peers(), [4, 5].into());
        world.confirm();
        world.has_the_coordinators_view();
    }
}

#[test]
fn one_site_of_three_one_site_a_day_and_the_only_peer_go_by_themselves() {
    let mut world = World::new(3);
    world.remove(2).listen();
    world.has_the_coordinators_view();

    let mut world = World::new(6);
    for node in 2..=6 {
        world.remove(node).listen();
        world.has_the_coordinators_view();
        world.restart();
        world.now += 24 * HOUR_S;
    }

    let mut world = World::new(2);
    world.replace(2, 102);
    world.listen();
    world.has_the_coordinators_view();
}

#[test]
fn e4_what_takes_the_place_of_a_peer_whose_removal_waits_waits_with_it() {
    for is_snapshot in [false, true] {
        // All others are replaced while the agent is away.
        let mut world = World::new(3);
        world.change(&[lan(3, &["10.3.0.0/24"])]);
        world.listen();
        world.replace(2, 102);
        world.replace(3, 103);
        world.change(&[lan(1, &["10.1.1.0/24"])]);
        if is_snapshot {
            world.forget_history();
        }
        world.listen();
        for _ in 0..2 {
            assert_eq!(world.peers(), [2, 3].into());
            assert_eq!(world.awaiting(), [2, 3].into());
            let known = world.replica.known().unwrap();
            assert_eq!(known.myself, world.wanted().myself, "the rest is done");
            assert_eq!(
                world.problems()[1],
                "the new site-2 waits: 10.99.0.2/32 belongs to the removed site-2, which stays \
                 until you run `wattle-agent confirm` on this gateway"
            );
            assert_eq!(world.problems().len(), 3);
            world.restart();
        }
        // What comes later applies.
        world.change(&[lan(2, &["10.2.2.0/24"]), lan(1, &["10.1.2.0/24"])]);
        world.listen();
        world.confirm();
        world.has_the_coordinators_view();
        assert_eq!(world.peers(), [102, 103].into());
    }
}

#[test]
fn of_a_peer_and_of_the_own_site_only_the_prefix_of_one_that_is_held_waits() {
    let mut world = World::new(5);
    for node in [2, 3, 4] {
        world.remove(node);
    }
    world.change(&[
        lan(5, &["10.2.0.0/24", "10.5.0.0/24", "10.55.0.0/24"]),
        lan(1, &["10.1.0.0/24", "10.3.0.0/25"]),
    ]);
    world.listen();
    let known = world.replica.known().unwrap();
    let lans = |peer: u64| known.peers[&node_id(peer)].peer.subnets.clone();
    let of = |lans: &[&str]| -> Vec<ipnet::IpNet> {
        lans.iter().map(|lan| lan.parse().unwrap()).collect()
    };
    assert_eq!(lans(5), of(&["10.5.0.0/24", "10.55.0.0/24"]));
    assert_eq!(lans(2), of(&["10.2.0.0/24"]));
    let own: Vec<_> = known.myself.subnets.iter().map(|lan| lan.net()).collect();
    assert_eq!(own, of(&["10.1.0.0/24"]));
    let problems = world.problems();
    assert_eq!(problems.len(), 3);
    assert!(problems[1].contains("site-1") && problems[1].contains("site-3"));
    assert!(problems[2].contains("10.2.0.0/24") && problems[2].contains("site-2"));
    world.restart();
    world.confirm();
    world.has_the_coordinators_view();
}

#[test]
fn what_waits_is_taken_up_when_the_removal_is_taken_back() {
    let mut world = World::new(3);
    let (directory, position) = (world.feed.directory().clone(), world.feed.position());
    world.replace(2, 102);
    world.replace(3, 103);
    world.listen();
    assert_eq!(world.awaiting(), [2, 3].into());
    let restored = Position {
        epoch: 2,
        ..position
    };
    world.feed = Feed::new(directory, restored, []);
    world.listen();
    world.has_the_coordinators_view();
    assert_eq!(world.peers(), [2, 3].into());
}

#[test]
fn peers_that_a_restored_database_has_lost_stay_and_are_named_until_that_is_confirmed() {
    let mut world = World::new(3);
    let (directory, position) = (world.feed.directory().clone(), world.feed.position());
    let (site, node) = node_record(4);
    world.change(&[RecordChange::Site(site), RecordChange::Node(node)]);
    world.listen();
    let restored = Position {
        epoch: 2,
        ..position
    };
    world.feed = Feed::new(directory, restored, []);
    world.listen();
    assert_eq!(
        (world.peers(), world.awaiting()),
        ([2, 3, 4].into(), [4].into())
    );
    // The machine joins again, at the same address.
    world.change(&[RecordChange::Site(node_record(4).0)]);
    world.change(&[RecordChange::Node(in_place_of(4, 104))]);
    world.listen();
    world.restart();
    assert_eq!(
        world.problems(),
        [
            "the coordinator does not know these peers any more, and never removed them: site-4. \
             They stay until it knows them again or you run `wattle-agent confirm` on this gateway",
            "the new site-4 waits: 10.99.0.4/32 belongs to the removed site-4, which stays until \
             you run `wattle-agent confirm` on this gateway",
        ]
    );
    world.confirm();
    world.has_the_coordinators_view();
}

#[test]
fn e19_a_peer_that_was_removed_and_that_a_restored_database_has_again_stays_out_until_it_is_let_in()
{
    for is_let_in in [true, false] {
        let mut world = World::new(5);
        let (directory, position) = (world.feed.directory().clone(), world.feed.position());
        world.remove(2).listen();
        world.has_the_coordinators_view();
        let restored = Position {
            epoch: 2,
            ..position
        };
        world.feed = Feed::new(directory, restored, []);
        world.listen();
        let told = [
            "the coordinator has peers again that it had removed, as after an old backup was \
             restored: site-2. They stay out until it removes them again, or you run \
             `wattle-agent confirm` on this gateway",
        ];
        assert_eq!(world.peers(), [3, 4, 5].into());
        assert_eq!(world.problems(), told);
        // So it does whatever it says of it, and after another restore.
        world.change(&[lan(2, &["10.2.0.0/24", "10.22.0.0/24"])]);
        world.listen();
        world.restart();
        let again = Position {
            epoch: 3,
            ..world.feed.position()
        };
        world.feed = Feed::new(world.feed.directory().clone(), again, []);
        world.listen();
        assert_eq!(world.peers(), [3, 4, 5].into());
        assert_eq!(world.replica.returned(), [node_id(2)].into());
        assert_eq!(world.problems(), told);
        if is_let_in {
            assert!(world.replica.confirm(&world.replica.returned()));
            assert_eq!(world.peers(), [2, 3, 4, 5].into());
        } else {
            world.remove(2).listen();
        }
        assert_eq!(world.replica.returned(), BTreeSet::new());
        world.has_the_coordinators_view();
    }
}

#[test]
fn e19_a_peer_whose_removal_waits_and_that_a_restored_database_has_again_stays_and_is_told() {
    let mut world = World::new(3);
    let (directory, position) = (world.feed.directory().clone(), world.feed.position());
    world.remove(2).remove(3).listen();
    assert_eq!(world.awaiting(), [2, 3].into());
    let restored = Position {
        epoch: 2,
        ..position
    };
    world.feed = Feed::new(directory, restored, []);
    world.listen();
    world.has_the_coordinators_view();
    world.restart();
    let back = world.replica.returned();
    assert_eq!(back, [node_id(2), node_id(3)].into());
    assert!(world.replica.confirm(&back));
    assert_eq!(world.replica.returned(), BTreeSet::new());
    world.has_the_coordinators_view();
}

#[test]
fn a_node_that_is_said_to_be_removed_and_is_not_has_its_peers_without_a_confirmation() {
    for nodes in [2, 3] {
        let mut world = World::new(nodes);
        let reason = ByeReason::Revoked;
        world
            .replica
            .receive(StreamMessage::Bye { reason }, world.now);
        world.restart();
        world.listen();
        world.has_the_coordinators_view();
    }
}

#[test]
fn a_coordinator_that_stays_behind_is_told_where_the_node_is_and_followed_by_a_command() {
    let mut world = World::new(3);
    let (directory, offered) = (world.feed.directory().clone(), world.feed.position());
    world.change(&[lan(2, &["10.22.0.0/24"])]);
    world.listen();
    let have = world.feed.position();
    // A message was missed as well.
    let later = StreamMessage::Heartbeat {
        position: Position { epoch: 2, ..have },
    };
    assert_eq!(world.replica.receive(later, world.now), Received::Gap);
    world.feed = Feed::new(directory, offered, []);
    let old = next_message(&world.feed, node_id(1), world.replica.resume_from()).unwrap();
    assert_eq!(
        world.replica.receive(old, world.now),
        Received::Rejected(Rejection::RolledBack { have, offered })
    );
    world.restart();
    assert_eq!(world.replica.resume_from(), Some(have));
    assert!(!world.replica.follow_back(have), "nobody offers that");
    assert!(world.replica.follow_back(offered));
    world.restart();
    world.listen();
    world.has_the_coordinators_view();
}

#[test]
fn a_clock_that_is_set_neither_frees_removals_nor_holds_them_for_ever() {
    let year = 365 * 24 * HOUR_S;
    for set_by in [-50 * year, -HOUR_S, 0, HOUR_S, year, 100 * year] {
        let mut world = World::new(5);
        world.remove(2).remove(3).listen();
        assert_eq!(world.peers(), [4, 5].into());
        world.now += set_by;
        world.restart();
        world.remove(4).listen();
        assert_eq!(world.peers(), [4, 5].into(), "set by {set_by} s");
        world.now += 24 * HOUR_S;
        world.remove(5).listen();
        assert_eq!(world.peers(), [4].into(), "set by {set_by} s");
    }
}
