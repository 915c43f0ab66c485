//! What a message makes of the view, while it is not clear yet that it holds together.

use std::collections::{BTreeMap, BTreeSet};

use wattle_wire::{
    ids::NodeId,
    peer::{MeshSettings, Myself},
};

use super::{KnownPeer, Refusal};

/// What a message makes of the view, until it is clear that it holds together.
pub(super) struct Draft {
    pub(super) mesh: MeshSettings,
    pub(super) myself: Myself,
    /// Peers that it touches; `None` for those that go.
    pub(super) peers: BTreeMap<NodeId, Option<KnownPeer>>,
    pub(super) refused: BTreeMap<NodeId, Option<Refusal>>,
    /// Peers that were to go and stay for now.
    pub(super) removal_pending: BTreeSet<NodeId>,
}

impl Draft {
    pub(super) fn new(mesh: MeshSettings, myself: Myself) -> Self {
        Self {
            mesh,
            myself,
            peers: BTreeMap::new(),
            refused: BTreeMap::new(),
            removal_pending: BTreeSet::new(),
        }
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
