//! Which removals go by themselves: of the peers of the last 24 hours at most half, and with the
//! lock none.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wattle_wire::ids::NodeId;

use super::{
    Known, Replica,
    draft::{Contested, Draft},
};

/// Seconds for which a peer that went counts as one that was there.
const WINDOW_S: i64 = 86_400;
/// Seconds that no gateway is off for, as a rule: where more seem to have passed since the clock
/// was last looked at, it was set.
const FAR_S: i64 = 7 * 86_400;
/// Seconds that count as passed then.
const AFTER_FAR_S: i64 = WINDOW_S / 2;

/// Peers that went without a confirmation in the last 24 hours, and when.
///
/// The clock is not to be trusted. Where it was set back, no time counts as passed, and what is
/// here moves back with it. Where it was set far forward, half of the window counts as passed: who
/// went a moment ago still counts, and nobody counts for longer than 24 hours more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentRemovals {
    /// Seconds since 1970.
    left: BTreeMap<NodeId, i64>,
    /// When the clock was last looked at, in seconds since 1970.
    seen_at: i64,
}

impl RecentRemovals {
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// How many have gone.
    pub(super) fn len(&self) -> usize {
        self.left.len()
    }

    pub(super) fn note_time(&mut self, unix_s: i64) {
        let passed = unix_s.saturating_sub(self.seen_at);
        let counts = match passed {
            ..0 => 0,
            FAR_S.. => AFTER_FAR_S,
            plausible => plausible,
        };
        let set_by = passed.saturating_sub(counts);
        self.seen_at = unix_s;
        self.left.retain(|_, at| {
            *at = at.saturating_add(set_by);
            unix_s.saturating_sub(*at) < WINDOW_S
        });
    }

    /// A peer went at the time that was noted last.
    pub(super) fn leave(&mut self, node: NodeId) {
        self.left.insert(node, self.seen_at);
    }

    pub(super) fn arrive(&mut self, node: NodeId) {
        self.left.remove(&node);
    }

    /// Whether a removal of so many of the peers that are there waits for somebody: an emptied
    /// database looks the same as an intended farewell, and a thief can remove one after the other.
    /// The first to go in 24 hours always goes, even if no other is there.
    pub(super) fn must_be_confirmed(&self, removed: usize, present: usize) -> bool {
        let (gone, all) = (self.left.len() + removed, self.left.len() + present);
        removed > 0 && gone > 1 && gone * 2 > all
    }
}

impl Replica {
    /// The tombstone of the node itself, and so of all its peers. Those have dropped it if it is
    /// true, and if it is not, the tunnels are worth keeping. A coordinator that has the node
    /// again says with a snapshot whom it has.
    pub(super) fn revoked(&mut self) {
        let Some(known) = &self.known else { return };
        let all: BTreeSet<_> = known.peers.keys().copied().collect();
        let new = all.difference(&self.removal_pending).copied().collect();
        let waits = self.waiting_for_a_word(known, &new, all.len());
        for node in new.difference(&waits) {
            self.recent.leave(*node);
            self.remove(*node);
        }
        self.absent.retain(|node| !waits.contains(node));
        self.removal_pending.extend(waits);
        self.contested = Contested::default();
        (self.out_of_step, self.rejected) = (true, None);
    }

    /// Keeps the peers that are not to go without being asked about, and those of earlier messages.
    /// Of those that go because an operator has signed it, nobody is asked.
    pub(super) fn hold_removals(&self, next: &mut Draft) {
        let Some(known) = &self.known else { return };
        let goes = |node: &NodeId| next.removes(*node) && known.peers.contains_key(node);
        let goes = next.peers.keys().copied().filter(goes);
        let (signed, asked): (Vec<_>, Vec<_>) =
            goes.partition(|node| next.removal_signed.contains_key(node));
        let present = known.peers.len() - signed.len();
        let (again, new): (BTreeSet<_>, BTreeSet<_>) = asked
            .into_iter()
            .partition(|node| self.removal_pending.contains(node));
        next.removal_pending = again;
        let waits = self.waiting_for_a_word(known, &new, present);
        next.removal_pending.extend(waits);
        let held = &next.removal_pending;
        next.peers.retain(|node, _| !held.contains(node));
    }

    /// Those of the peers to be removed that stay until somebody says so. With the lock these are
    /// all that an operator let in: what an operator gave, the coordinator alone does not take.
    fn waiting_for_a_word(
        &self,
        known: &Known,
        removed: &BTreeSet<NodeId>,
        present: usize,
    ) -> BTreeSet<NodeId> {
        let waits = |node: &NodeId| match &known.admitted {
            Some(admitted) => known.peers.get(node).is_some_and(|peer| admitted.has(peer)),
            None => self.recent.must_be_confirmed(removed.len(), present),
        };
        removed.iter().copied().filter(waits).collect()
    }
}

#[cfg(test)]
mod tests;
