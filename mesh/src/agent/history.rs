//! What a gateway was told of its peers over time: kept by the gateway itself, so that who had the
//! coordinator for an hour cannot take it back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wattle_wire::{
    endpoint::Endpoint,
    ids::{NodeId, Position},
    key::{IdentityKey, WireguardKey},
    name::Name,
};

use crate::agent::replica::{Known, KnownPeer, prefixes};

/// Changes that are kept of a peer. Kept of each: whoever changes one peer again and again hides
/// nothing of another.
const MOST_CHANGES: usize = 32;
/// Peers that are kept after their removal.
const MOST_GONE: usize = 1_000;

/// All peers that this node was told of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(BTreeMap<NodeId, PeerHistory>);

/// What was told of one peer. Most peers are what they were at first: that is held once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHistory {
    pub name: Name,
    pub first_seen: Seen,
    /// What it was at first sight.
    pub at_first: Arc<PeerFacts>,
    /// Oldest first.
    pub changes: VecDeque<PeerChange>,
    /// How many changes there were before the oldest of `changes`.
    #[serde(default)]
    pub dropped: u64,
    /// What it is; absent when it was removed.
    pub now: Option<Arc<PeerFacts>>,
}

/// When something was taken up, and from which position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub at: DateTime<Utc>,
    pub position: Position,
}

/// What says who a peer is and where its packets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFacts {
    pub identity: IdentityKey,
    pub wireguard_key: WireguardKey,
    pub prefixes: BTreeSet<IpNet>,
    pub endpoint: Option<Endpoint>,
}

/// One change of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerChange {
    pub seen: Seen,
    /// Absent when it had been removed.
    pub from: Option<Arc<PeerFacts>>,
    /// Absent when it is removed.
    pub to: Option<Arc<PeerFacts>>,
}

impl History {
    /// Takes note of what is known now. Whether anything changed.
    pub fn note(&mut self, known: &Known, at: DateTime<Utc>) -> bool {
        let seen = Seen {
            at,
            position: known.position,
        };
        let (mut changed, mut new) = (false, Vec::new());
        for (node, peer) in &known.peers {
            let told = told(peer, known.myself.node);
            match self.0.get_mut(node) {
                Some(history) if history.now.as_deref() == Some(&told) => {}
                Some(history) => {
                    history.change(seen, Some(Arc::new(told)));
                    changed = true;
                }
                None => {
                    let (name, told) = (peer.peer.name.clone(), Arc::new(told));
                    let (at_first, changes, now) = (Arc::clone(&told), VecDeque::new(), Some(told));
                    new.push((
                        *node,
                        PeerHistory {
                            name,
                            first_seen: seen,
                            at_first,
                            changes,
                            dropped: 0,
                            now,
                        },
                    ));
                }
            }
        }
        if !new.is_empty() {
            // All at once: a map that grows in order takes twice the memory.
            self.0.append(&mut new.into_iter().collect());
            changed = true;
        }
        for history in self
            .0
            .iter_mut()
            .filter(|(node, history)| history.now.is_some() && !known.peers.contains_key(node))
        {
            history.1.change(seen, None);
            changed = true;
        }
        if changed {
            self.forget_the_oldest_gone();
        }
        changed
    }

    pub fn peers(&self) -> impl Iterator<Item = (&NodeId, &PeerHistory)> {
        self.0.iter()
    }

    fn forget_the_oldest_gone(&mut self) {
        let gone = self.0.iter().filter(|(_, history)| history.now.is_none());
        let mut gone: Vec<_> = gone
            .map(|(node, history)| (history.changes.back().map(|change| change.seen.at), *node))
            .collect();
        gone.sort_unstable();
        for (_, node) in gone.iter().rev().skip(MOST_GONE) {
            self.0.remove(node);
        }
    }
}

impl PeerHistory {
    fn change(&mut self, seen: Seen, to: Option<Arc<PeerFacts>>) {
        self.changes.push_back(PeerChange {
            seen,
            from: self.now.take(),
            to: to.clone(),
        });
        self.now = to;
        while self.changes.len() > MOST_CHANGES {
            self.changes.pop_front();
            self.dropped += 1;
        }
    }
}

fn told(known: &KnownPeer, myself: NodeId) -> PeerFacts {
    let KnownPeer {
        peer, statement, ..
    } = known;
    PeerFacts {
        identity: statement.identity,
        wireguard_key: statement.wireguard_key,
        prefixes: prefixes(peer.tunnel_address, &peer.subnets).collect(),
        endpoint: peer.endpoint_for(myself),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use wattle_wire::stream::{StreamMessage, ViewChange};

    use super::*;
    use crate::{
        agent::replica::Replica,
        config::view,
        testing::{Keys, MESH, directory_of, node_id},
    };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
    }

    fn position(revision: i64) -> Position {
        Position { epoch: 1, revision }
    }

    fn replica(peers: u64) -> Replica {
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let view = view::view(&directory_of(peers), node_id(1)).unwrap();
        replica.receive(
            StreamMessage::Snapshot {
                position: position(1),
                view,
                removed: vec![],
            },
            0,
        );
        replica
    }

    /// Tells of another endpoint of a peer.
    fn move_peer(replica: &mut Replica, node: u64, endpoint: &str, revision: i64) {
        let mut peer = replica.known().unwrap().peers[&node_id(node)].peer.clone();
        peer.endpoint = Some(endpoint.parse().unwrap());
        let changes = vec![ViewChange::Peer(peer)];
        replica.receive(
            StreamMessage::Delta {
                since: position(revision - 1),
                position: position(revision),
                changes,
            },
            0,
        );
    }

    #[test]
    fn e12_what_was_changed_and_changed_back_is_still_told() {
        let (mut replica, mut history) = (replica(3), History::default());
        assert!(history.note(replica.known().unwrap(), at(1)));
        assert!(
            !history.note(replica.known().unwrap(), at(2)),
            "nothing is new"
        );
        let before = PeerFacts::clone(&history.0[&node_id(2)].at_first);
        move_peer(&mut replica, 2, "192.0.2.66:51820", 2);
        assert!(history.note(replica.known().unwrap(), at(3)));
        move_peer(&mut replica, 2, "203.0.113.2:51820", 3);
        assert!(history.note(replica.known().unwrap(), at(4)));
        let thief = PeerFacts {
            endpoint: Some("192.0.2.66:51820".parse().unwrap()),
            ..before.clone()
        };
        let told = &history.0[&node_id(2)];
        assert_eq!(
            told.first_seen,
            Seen {
                at: at(1),
                position: position(1)
            }
        );
        let change = |second, revision, from: &PeerFacts, to: &PeerFacts| PeerChange {
            seen: Seen {
                at: at(second),
                position: position(revision),
            },
            from: Some(Arc::new(from.clone())),
            to: Some(Arc::new(to.clone())),
        };
        assert_eq!(
            told.changes,
            [change(3, 2, &before, &thief), change(4, 3, &thief, &before)]
        );
        assert!(history.0[&node_id(3)].changes.is_empty());

        let removed = StreamMessage::Delta {
            since: position(3),
            position: position(4),
            changes: vec![ViewChange::PeerRemoved(node_id(3).into())],
        };
        replica.receive(removed, 0);
        assert!(history.note(replica.known().unwrap(), at(5)));
        let gone = &history.0[&node_id(3)];
        assert_eq!(
            (gone.now.as_ref(), gone.changes[0].to.as_ref()),
            (None, None)
        );
        assert!(
            !history.note(replica.known().unwrap(), at(6)),
            "it is gone once"
        );
        let kept: History =
            serde_json::from_str(&serde_json::to_string(&history).unwrap()).unwrap();
        assert_eq!(kept, history);
    }

    #[test]
    fn e12_who_changes_one_peer_again_and_again_hides_no_change_of_another() {
        let (mut replica, mut history) = (replica(3), History::default());
        history.note(replica.known().unwrap(), at(0));
        move_peer(&mut replica, 2, "192.0.2.66:51820", 2);
        history.note(replica.known().unwrap(), at(2));
        for revision in 3..=100 {
            move_peer(&mut replica, 3, &format!("192.0.2.9:{revision}"), revision);
            history.note(replica.known().unwrap(), at(revision));
        }
        assert_eq!(history.0[&node_id(2)].changes.len(), 1);
        let flooded = &history.0[&node_id(3)];
        assert_eq!(
            (flooded.changes.len(), flooded.dropped),
            (MOST_CHANGES, 98 - 32)
        );
        assert_eq!(
            flooded.at_first.endpoint,
            Some("203.0.113.3:51820".parse().unwrap()),
            "what it was at first stays"
        );
    }

    #[test]
    fn of_peers_that_are_gone_the_newest_are_kept() {
        let mut history = History::default();
        let known = replica(2).known().unwrap().clone();
        history.note(&known, at(0));
        let one = history.0[&node_id(2)].clone();
        for number in 0..1_500_u64 {
            let mut gone = one.clone();
            gone.change(
                Seen {
                    at: at(number.cast_signed()),
                    position: position(1),
                },
                None,
            );
            history.0.insert(node_id(100 + number), gone);
        }
        history.forget_the_oldest_gone();
        assert_eq!(history.0.len(), MOST_GONE + 1);
        assert!(
            history.0.contains_key(&node_id(100 + 1_499)) && !history.0.contains_key(&node_id(100))
        );
    }
}
