//! What a message makes of the view, while it is not clear yet that it holds together.

use std::collections::{BTreeMap, BTreeSet};

use wattle_wire::{
    ids::NodeId,
    peer::{MeshSettings, Myself, Peer},
};

use super::{
    KnownPeer, Refusal,
    ownership::Ownership,
    settle::{Settled, Waiting},
};

/// What a message makes of the view, until it is clear that it holds together.
pub(super) struct Draft {
    pub(super) mesh: MeshSettings,
    pub(super) myself: Myself,
    /// Peers that it touches; `None` for those that go.
    pub(super) peers: BTreeMap<NodeId, Option<KnownPeer>>,
    pub(super) refused: BTreeMap<NodeId, Option<Refused>>,
    /// Peers that the coordinator has, whether their records are believed or not.
    pub(super) named: BTreeSet<NodeId>,
    /// Peers whose removal an operator has signed, and when, in seconds since 1970.
    pub(super) removal_signed: BTreeMap<NodeId, i64>,
    /// Peers that were to go and stay for now.
    pub(super) removal_pending: BTreeSet<NodeId>,
    /// Peers that it should have and has not, if it is of the whole view.
    pub(super) absent: Option<BTreeSet<NodeId>>,
    /// What of it two claim; absent where nobody does.
    pub(super) contested: Option<Contested>,
    /// Peers that it says are removed, whether they are there or not.
    pub(super) removed: BTreeSet<NodeId>,
    /// Peers that had been removed and stay out; `None` for those that do not any more.
    pub(super) out: BTreeMap<NodeId, Option<KnownPeer>>,
}

/// A record that was not believed.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) told: Peer,
    pub(super) refusal: Refusal,
}

/// What waits because two claim it, and who has what meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Contested {
    pub(super) waiting: BTreeMap<NodeId, Waiting<KnownPeer>>,
    pub(super) own_waiting: Option<Waiting<Myself>>,
}

impl Draft {
    pub(super) fn new(mesh: MeshSettings, myself: Myself) -> Self {
        Self {
            mesh,
            myself,
            peers: BTreeMap::new(),
            refused: BTreeMap::new(),
            named: BTreeSet::new(),
            removal_signed: BTreeMap::new(),
            removal_pending: BTreeSet::new(),
            absent: None,
            contested: None,
            removed: BTreeSet::new(),
            out: BTreeMap::new(),
        }
    }

    /// Whether a peer goes with it.
    pub(super) fn removes(&self, node: NodeId) -> bool {
        matches!(self.peers.get(&node), Some(None))
    }

    /// Makes it what can be carried out; returns who has what then.
    pub(super) fn settled(&mut self, settled: Settled) -> Ownership {
        let Settled {
            myself,
            peers,
            ownership,
            waiting,
            own_waiting,
        } = settled;
        self.myself = myself;
        self.peers.retain(|_, touched| touched.is_none());
        self.peers
            .extend(peers.into_iter().map(|(node, peer)| (node, Some(peer))));
        self.contested = Some(Contested {
            waiting,
            own_waiting,
        });
        ownership
    }
}

/// Writes entries, and takes those away that are `None`.
pub(super) fn put<V>(map: &mut BTreeMap<NodeId, V>, entries: BTreeMap<NodeId, Option<V>>) {
    if map.is_empty() {
        // Half the memory of one that grows in order.
        *map = entries
            .into_iter()
            .filter_map(|(node, entry)| Some((node, entry?)))
            .collect();
        return;
    }
    for (node, entry) in entries {
        match entry {
            Some(value) => map.insert(node, value),
            None => map.remove(&node),
        };
    }
}

impl Contested {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.own_waiting.is_none()
    }

    /// A peer's record waits, whether or not it is known for whom.
    pub(super) fn wait(&mut self, node: NodeId, told: KnownPeer) {
        let contests = Vec::new();
        self.waiting
            .entry(node)
            .or_insert(Waiting { told, contests });
    }

    /// As [`Contested::wait`], of the node itself.
    pub(super) fn own_wait(&mut self, told: Myself) {
        let contests = Vec::new();
        self.own_waiting.get_or_insert(Waiting { told, contests });
    }
}
