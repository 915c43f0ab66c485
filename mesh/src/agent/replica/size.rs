//! How much a node keeps of what a coordinator says.

use wattle_wire::{
    ids::NodeId,
    peer::{Peer, View},
    stream::StreamMessage,
};

use super::{Draft, Pin, Replica};

/// What an entry takes beside its texts, in bytes.
const ENTRY: usize = 128;
const PREFIX: usize = 32;
/// How many records that are not believed are kept, to tell of them.
pub(super) const MOST_REFUSED: usize = 1_000;
/// How many removed nodes are remembered. Whoever adds and removes nodes without end fills no
/// memory, and makes none forgotten: those that came first stay.
pub(super) const MOST_DEPARTED: usize = 20_000;

impl Replica {
    /// Whether so much is told that it is not kept. What takes no more than before always is.
    pub(super) fn outgrows(&self, next: &Draft) -> bool {
        let known = |node: &NodeId| self.known.as_ref()?.peers.get(node);
        let mut peers = Growth::default();
        for (node, touched) in &next.peers {
            let (before, after) = (known(node), touched.as_ref());
            peers.note(
                before.map(|known| &known.peer),
                after.map(|known| &known.peer),
            );
        }
        let mut refused = Growth::default();
        for (node, touched) in &next.refused {
            let (before, after) = (self.refused.get(node), touched.as_ref());
            refused.note(before.map(|it| &it.told), after.map(|it| &it.told));
        }
        if peers.is_none() && refused.is_none() {
            return false;
        }
        let kept = self.known.iter().flat_map(|known| known.peers.values());
        let waiting = self.contested.waiting.values().map(|waiting| &waiting.told);
        for known in kept.chain(waiting) {
            peers.note(None, Some(&known.peer));
        }
        for it in self.refused.values() {
            refused.note(None, Some(&it.told));
        }
        let entries = View::MOST_PEERS.cast_signed();
        let bytes = StreamMessage::LONGEST.cast_signed();
        peers.entries > entries || refused.entries > entries || peers.bytes + refused.bytes > bytes
    }

    /// Whether the coordinator ever said anything of a peer that is there to forget.
    pub(super) fn is_told_of(&self, next: &Draft, node: NodeId) -> bool {
        let is_refused = self.refused.contains_key(&node) || next.named.contains(&node);
        is_refused || self.told_in(next, node).is_some()
    }

    /// What a node is pinned to, whether it is a peer now or was one once.
    pub(super) fn pin(&self, node: NodeId) -> Option<Pin> {
        let known = self.known.as_ref().and_then(|known| known.peers.get(&node));
        known
            .map(Pin::of)
            .or_else(|| self.departed.get(&node).copied())
    }

    /// A peer is gone; if it comes back, it is as who it was.
    pub(super) fn depart(&mut self, node: NodeId, pin: Pin) {
        if self.departed.len() < MOST_DEPARTED || self.departed.contains_key(&node) {
            self.departed.insert(node, pin);
        }
    }
}

/// By how much a list grows.
#[derive(Default)]
struct Growth {
    entries: isize,
    bytes: isize,
}

impl Growth {
    fn note(&mut self, before: Option<&Peer>, after: Option<&Peer>) {
        let one = |peer: Option<&Peer>| isize::from(peer.is_some());
        let bytes = |peer: Option<&Peer>| peer.map_or(0, size).cast_signed();
        self.entries += one(after) - one(before);
        self.bytes += bytes(after) - bytes(before);
    }

    fn is_none(&self) -> bool {
        self.entries <= 0 && self.bytes <= 0
    }
}

fn size(peer: &Peer) -> usize {
    let announced = peer.announced.as_ref();
    let admission = peer.admission.as_ref();
    let texts = peer.statement.statement.len()
        + announced.map_or(0, |announced| announced.announcement.len())
        + admission.map_or(0, |signed| signed.admission.len());
    ENTRY + texts + PREFIX * peer.subnets.len()
}
