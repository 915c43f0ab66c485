//! Laws of the replica.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;
use proptest::prelude::*;
use wattle_wire::{
    peer::{MeshSettings, View},
    subnet::overlap,
};

use super::{tests::world, *};
use crate::{
    config::{directory::RecordChange, feed::Feed, view},
    testing::{Keys, MESH, next_message, node_id, node_record},
};

/// What may happen to a mesh and to one replica of it.
#[derive(Clone, Debug)]
enum Happening {
    Enrol(u64),
    Revoke(u64),
    MoveSubnet(u64, u8),
    ChangeKeepalive(u16),
    /// The replica hears the next message.
    Listen,
    /// The agent restarts from disk.
    Restart,
    /// The coordinator restarts, and remembers only this many of the newest revisions.
    CoordinatorRestarts(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (2..20u64).prop_map(Happening::Enrol),
        (2..20u64).prop_map(Happening::Revoke),
        ((1..20u64), (0..4u8)).prop_map(|(node, third)| Happening::MoveSubnet(node, third)),
        (0..60u16).prop_map(Happening::ChangeKeepalive),
        Just(Happening::Listen),
        Just(Happening::Listen),
        Just(Happening::Restart),
        (0..4usize).prop_map(Happening::CoordinatorRestarts),
    ]
}

/// What a coordinator might claim of one of few nodes, be it true or not: keys and prefixes are
/// drawn from so few that they clash.
#[derive(Clone, Debug)]
enum Claim {
    Peer {
        node: u64,
        key: u64,
        sequence: u64,
        subnets: Vec<usize>,
    },
    Removed(u64),
    Own(Vec<usize>),
    OtherMesh,
}

const SUBNETS: [&str; 6] = [
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.2.0.0/24",
    "10.3.0.0/24",
    "fd00:1::/64",
];

fn claim() -> impl Strategy<Value = Claim> {
    let subnets = || prop::collection::vec(0..SUBNETS.len(), 0..3);
    prop_oneof![
        8 => (2..6u64, 1..7u64, 1..4u64, subnets())
            .prop_map(|(node, key, sequence, subnets)| Claim::Peer { node, key, sequence, subnets }),
        2 => (2..6u64).prop_map(Claim::Removed),
        2 => subnets().prop_map(Claim::Own),
        1 => Just(Claim::OtherMesh),
    ]
}

fn subnets_of<T: std::str::FromStr<Err: fmt::Debug>>(numbers: &[usize]) -> Vec<T> {
    numbers
        .iter()
        .map(|number| SUBNETS[*number].parse().unwrap())
        .collect()
}

fn view_change(claim: Claim, known: &Known) -> ViewChange {
    match claim {
        Claim::Peer {
            node,
            key,
            sequence,
            subnets,
        } => {
            let (_, record) = node_record(node);
            let keys = Keys {
                identity: Keys::of(node).identity,
                wireguard: Keys::of(key).wireguard,
            };
            ViewChange::Peer(Peer {
                node: record.id,
                name: record.name.clone(),
                site_name: record.name,
                statement: keys.statement(sequence),
                announced: None,
                tunnel_address: record.tunnel_address,
                subnets: subnets_of(&subnets),
                endpoint: None,
                endpoint_check: None,
                admission: None,
            })
        }
        Claim::Removed(node) => ViewChange::PeerRemoved(node_id(node).into()),
        Claim::Own(subnets) => ViewChange::Myself(Myself {
            subnets: subnets_of(&subnets),
            ..known.myself.clone()
        }),
        Claim::OtherMesh => ViewChange::Mesh(MeshSettings {
            id: MeshId(uuid::Uuid::nil()),
            ..known.mesh.clone()
        }),
    }
}

/// The law that the replica keeps by looking at what a message touches only: the whole view is made
/// anew, and all of it compared. `None` where two would have the same.
fn whole(replica: &Replica, position: Position, changes: &[ViewChange]) -> Option<Known> {
    let before = replica.known()?;
    let mut next = before.clone();
    next.myself = replica.own_told(before);
    for (node, waiting) in &replica.contested.waiting {
        next.peers.insert(*node, waiting.told.clone());
    }
    let (mut removed, mut named) = (BTreeSet::new(), BTreeSet::new());
    for change in changes {
        match change {
            ViewChange::Peer(peer) => {
                named.insert(peer.node);
                let known = next.peers.get(&peer.node);
                let known = known.or_else(|| before.peers.get(&peer.node));
                if let Ok(known) = believe(peer, MESH, known, replica.pin(peer.node)) {
                    removed.remove(&peer.node);
                    next.peers.insert(peer.node, known);
                }
            }
            ViewChange::PeerRemoved(Tombstone { node, .. }) => {
                named.remove(node);
                next.peers.remove(node);
                removed.insert(*node);
            }
            ViewChange::Myself(myself) => next.myself = myself.clone(),
            ViewChange::Mesh(mesh) => next.mesh = mesh.clone(),
        }
    }
    let gone = before
        .peers
        .iter()
        .filter(|(node, _)| removed.contains(node));
    let (held, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = gone
        .map(|(node, peer)| (*node, peer.clone()))
        .partition(|(node, _)| replica.removal_pending.contains(node));
    let (left, all) = (replica.recent.len(), before.peers.len());
    let more_than_half = (left + gone.len()) * 2 > left + all;
    let stay = if left + gone.len() > 1 && more_than_half {
        gone
    } else {
        BTreeMap::new()
    };
    let held = held.into_iter().chain(stay);
    next.peers.extend(held);
    next.position = position;
    holds_together(&next).then_some(next)
}

/// Whether no key and no address belongs to two.
fn holds_together(known: &Known) -> bool {
    let keys: Vec<_> = known
        .peers
        .values()
        .map(|known| known.statement.wireguard_key)
        .collect();
    let own: Vec<_> = known
        .myself
        .subnets
        .iter()
        .map(|subnet| subnet.net())
        .collect();
    let mut claims: Vec<_> = prefixes(known.myself.tunnel_address, &own).collect();
    claims.extend(
        known
            .peers
            .values()
            .flat_map(|known| prefixes(known.peer.tunnel_address, &known.peer.subnets)),
    );
    let alone = |index: usize, prefix: &IpNet| {
        !claims[..index].iter().any(|other| overlap(*other, *prefix))
    };
    !keys.contains(&Keys::of(1).wireguard_key())
        && keys.iter().collect::<BTreeSet<_>>().len() == keys.len()
        && claims
            .iter()
            .enumerate()
            .all(|(index, prefix)| alone(index, prefix))
}

proptest! {
    #[test]
    fn a_message_has_the_outcome_of_a_check_of_the_whole_view_and_what_contradicts_itself_waits(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(claim(), 0..4)), 0..12),
    ) {
        let (mut replica, _) = world();
        for (is_snapshot, claims) in messages {
            let before = replica.known().unwrap().clone();
            let mut changes: Vec<_> = claims.into_iter().map(|claim| view_change(claim, &before)).collect();
            if is_snapshot {
                changes.sort_by_key(|change| matches!(change, ViewChange::PeerRemoved(_)));
                replica.forget_all_but(&changes);
            }
            let is_other = |change: &ViewChange| matches!(change, ViewChange::Mesh(mesh) if mesh.id != MESH);
            let rejected = changes.iter().any(is_other);
            let position = Position { revision: before.position.revision + 1, ..before.position };
            let expected = whole(&replica, position, &changes);
            let message = if is_snapshot {
                let Known { mesh, .. } = before.clone();
                as_snapshot(position, mesh, replica.own_told(&before), changes)
            } else {
                StreamMessage::Delta { since: before.position, position, changes }
            };
            let received = replica.receive(message, 0);
            prop_assert_eq!(matches!(received, Received::Rejected(_)), rejected, "{:?}", received);
            let known = replica.known().unwrap();
            prop_assert_eq!(&replica.ownership, &Ownership::of(known));
            prop_assert!(holds_together(known));
            if rejected {
                prop_assert_eq!(known, &before);
                // As the coordinator would: the word that brings it back in step.
                let Stored { position, view, .. } = replica.stored().unwrap();
                replica.receive(StreamMessage::Snapshot { position, view, removed: vec![] }, 0);
                continue;
            }
            prop_assert_eq!(known.position, position);
            prop_assert_eq!(replica.contested.is_empty(), expected.is_some());
            match expected {
                Some(expected) => prop_assert_eq!(known, &expected),
                None => prop_assert!(replica.problems().next().is_some()),
            }
        }
    }
}

impl Replica {
    /// What a snapshot does with what waits and is not in it.
    fn forget_all_but(&mut self, changes: &[ViewChange]) {
        let is_in = |node: &NodeId| {
            changes
                .iter()
                .any(|change| matches!(change, ViewChange::Peer(peer) if peer.node == *node))
        };
        self.contested.waiting.retain(|node, _| is_in(node));
    }
}

/// The same changes, told in a snapshot: in it, absence says nothing.
fn as_snapshot(
    position: Position,
    mesh: MeshSettings,
    myself: Myself,
    changes: Vec<ViewChange>,
) -> StreamMessage {
    let mut view = View {
        mesh,
        myself,
        peers: vec![],
    };
    let mut removed = vec![];
    for change in changes {
        match change {
            ViewChange::Peer(peer) => view.peers.push(peer),
            ViewChange::PeerRemoved(tombstone) => removed.push(tombstone),
            ViewChange::Myself(myself) => view.myself = myself,
            ViewChange::Mesh(mesh) => view.mesh = mesh,
        }
    }
    StreamMessage::Snapshot {
        position,
        view,
        removed,
    }
}

proptest! {
    #[test]
    fn the_replica_equals_the_view_after_any_history_and_any_disconnects(history in prop::collection::vec(happening(), 0..60)) {
        let (mut replica, mut feed) = world();
        let mut changes: Vec<(i64, Vec<RecordChange>)> = Vec::new();
        let mut ever = 3u64;
        for happening in history {
            let change = match happening {
                Happening::Enrol(node) if !feed.directory().nodes.contains_key(&node_id(node))
                    && !feed.directory().revoked.contains_key(&node_id(node)) => {
                    ever = ever.max(node);
                    let (site, node) = node_record(node);
                    Some(vec![RecordChange::Site(site), RecordChange::Node(node)])
                }
                Happening::Revoke(node) if feed.directory().nodes.contains_key(&node_id(node)) => {
                    Some(vec![RecordChange::NodeRevoked(node_id(node)), RecordChange::SiteRemoved(node_record(node).0.id)])
                }
                Happening::MoveSubnet(node, third) if feed.directory().nodes.contains_key(&node_id(node)) => {
                    let (mut site, _) = node_record(node);
                    site.spec.subnets = vec![format!("10.{node}.{third}.0/24").parse().unwrap()];
                    Some(vec![RecordChange::Site(site)])
                }
                Happening::ChangeKeepalive(keepalive_s) => {
                    let mesh = MeshSettings { keepalive_s, ..feed.directory().mesh.clone() };
                    Some(vec![RecordChange::Mesh(mesh)])
                }
                Happening::Listen => {
                    if let Some(message) = next_message(&feed, node_id(1), replica.position()) {
                        let received = replica.receive(message, 0);
                        prop_assert!(matches!(received, Received::Unchanged | Received::Changed { .. }), "{received:?}");
                    }
                    None
                }
                Happening::Restart => {
                    let stored = replica.stored().unwrap();
                    replica = Replica::new(MESH, Keys::of(1).wireguard_key());
                    prop_assert_eq!(replica.restore(stored), Ok(vec![]));
                    None
                }
                Happening::CoordinatorRestarts(remembered) => {
                    let newest = changes[changes.len().saturating_sub(remembered)..].to_vec();
                    feed = Feed::new(feed.directory().clone(), feed.position(), newest);
                    None
                }
                Happening::Enrol(_) | Happening::Revoke(_) | Happening::MoveSubnet(..) => None,
            };
            if let Some(change) = change {
                let revision = feed.position().revision + 1;
                feed.advance(revision, &change).unwrap();
                changes.push((revision, change));
            }
        }
        if let Some(message) = next_message(&feed, node_id(1), replica.position()) {
            replica.receive(message, 0);
        }
        replica.confirm(&replica.awaiting_confirmation());
        prop_assert_eq!(replica.position(), Some(feed.position()));
        prop_assert_eq!(replica.stored().unwrap().view, view::view(feed.directory(), node_id(1)).unwrap());
    }
}
