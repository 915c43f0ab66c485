//! Peers that the coordinator had removed and has again, as after a backup was restored: they stay
//! out until somebody lets them in, or until the coordinator removes them again.

use std::collections::{BTreeMap, BTreeSet};

use wattle_wire::ids::NodeId;

use super::{KnownPeer, Replica, size::MOST_DEPARTED};

/// What the host remembers of removals, and of those that came back.
#[derive(Clone, Debug, Default)]
pub(super) struct Returned {
    /// Nodes that were peers when the coordinator removed them, with the epoch of that.
    pub(super) removed: BTreeMap<NodeId, i64>,
    /// What the coordinator says of those that it has again and that stay out.
    pub(super) out: BTreeMap<NodeId, KnownPeer>,
}

impl Replica {
    /// Peers that the coordinator had removed and has again since a new epoch began: those that
    /// stay out, and those that were still there because their removal waited.
    pub fn returned(&self) -> BTreeSet<NodeId> {
        let removed = self.returned.removed.keys();
        let is_back = |node: &&NodeId| {
            self.is_there(**node)
                && !self.removal_pending.contains(node)
                && !self.absent.contains(node)
        };
        let there = removed.filter(is_back);
        self.returned.out.keys().chain(there).copied().collect()
    }

    /// Whether a peer that the coordinator has stays out in an epoch. Within an epoch no node comes
    /// back. What an operator signed since then lets it in.
    pub(super) fn stays_out(&self, epoch: i64, told: &KnownPeer) -> bool {
        let node = told.peer.node;
        let removed = self.returned.removed.get(&node);
        let admitted = self
            .known
            .as_ref()
            .and_then(|known| known.admitted.as_ref());
        let is_let_in =
            || admitted.is_some_and(|admitted| admitted.news_of(self.mesh, told).is_some());
        removed.is_some_and(|removed_in| *removed_in < epoch)
            && !self.is_there(node)
            && !is_let_in()
    }

    /// Takes note of whom the coordinator says to be removed, before that is carried out.
    pub(super) fn remember_removals(&mut self, epoch: i64, removed: BTreeSet<NodeId>) {
        for node in removed {
            let has_room = self.returned.removed.len() < MOST_DEPARTED;
            if self.returned.removed.contains_key(&node) || has_room && self.is_there(node) {
                self.returned.removed.insert(node, epoch);
            }
        }
    }

    /// Somebody says that these are back. Those that stayed out wait for what comes next.
    pub(super) fn let_in(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let back: Vec<_> = self.returned().intersection(nodes).copied().collect();
        for node in &back {
            self.returned.removed.remove(node);
            if let Some(told) = self.returned.out.remove(node) {
                self.contested.wait(*node, told);
            }
        }
        !back.is_empty()
    }

    fn is_there(&self, node: NodeId) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|known| known.peers.contains_key(&node))
    }
}
