//! The agent's half of the stream: its own copy of the view, which believes only what holds
//! together and what the nodes themselves signed.

mod belief;
mod draft;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod limits;
mod ownership;
mod problems;
#[cfg(test)]
mod properties;
mod rejection;
mod removals;
mod returned;
mod settle;
mod size;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use wattle_wire::{
    ids::{MeshId, NodeId, Position},
    key::{OperatorKey, WireguardKey},
    lock::SignedRemoval,
    peer::{Myself, Peer, View},
    stream::{ByeReason, StreamMessage, Tombstone, ViewChange},
};

use self::{
    belief::believe,
    draft::{Contested, Draft, Refused, put},
    ownership::Ownership,
    returned::Returned,
    settle::Word,
    size::MOST_REFUSED,
};
pub use self::{
    belief::{Pin, Refusal, RefusalReason},
    rejection::Rejection,
    removals::RecentRemovals,
    stored::Stored,
};
pub(crate) use crate::agent::known_peer::prefixes;
pub use crate::agent::{known::Known, known_peer::KnownPeer};
use crate::{agent::admission::Admitted, state_file::UnknownFields};

/// A node's copy of its view.
#[derive(Clone, Debug)]
pub struct Replica {
    mesh: MeshId,
    own_key: WireguardKey,
    /// Whom the host believes when it requires the lock.
    operators: Option<BTreeSet<OperatorKey>>,
    known: Option<Known>,
    /// Who of `known` holds which key and prefix.
    ownership: Ownership,
    /// A message was missed or rejected: what follows it says nothing until a snapshot comes.
    out_of_step: bool,
    /// Records of peers that were not believed, and still are what the coordinator says.
    refused: BTreeMap<NodeId, Refused>,
    rejected: Option<Rejection>,
    /// Peers whose removal waits to be confirmed; they stay.
    removal_pending: BTreeSet<NodeId>,
    /// Peers that the last snapshot did not have, though nobody removed them; they stay.
    absent: BTreeSet<NodeId>,
    /// What of the coordinator's word waits because others have what it gives away.
    contested: Contested,
    recent: RecentRemovals,
    departed: BTreeMap<NodeId, Pin>,
    returned: Returned,
    /// Fields of the file on disk that a newer program wrote.
    unknown: UnknownFields,
}

/// What a message did.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing to do; the position may have moved.
    Unchanged,
    /// The view changed. What was refused stays as it was.
    Changed { refused: Vec<Refusal> },
    /// The message does not follow what is known: ask for a snapshot.
    Gap,
    /// The revision is not carried out at all; all stays as it was.
    Rejected(Rejection),
    /// The coordinator ended the stream.
    Bye(ByeReason),
}

impl Replica {
    pub fn new(mesh: MeshId, own_key: WireguardKey) -> Self {
        Self {
            mesh,
            own_key,
            operators: None,
            known: None,
            ownership: Ownership::default(),
            out_of_step: false,
            refused: BTreeMap::new(),
            rejected: None,
            removal_pending: BTreeSet::new(),
            absent: BTreeSet::new(),
            contested: Contested::default(),
            recent: RecentRemovals::default(),
            departed: BTreeMap::new(),
            returned: Returned::default(),
            unknown: UnknownFields::default(),
        }
    }

    /// The same on a host that requires the lock, if there are operators. To be said before
    /// anything is taken up.
    #[must_use]
    pub fn locked_by(self, operators: Option<BTreeSet<OperatorKey>>) -> Self {
        Self { operators, ..self }
    }

    /// The mesh whose view it is.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// The node has taken up another WireGuard key.
    pub fn set_own_key(&mut self, key: WireguardKey) {
        self.own_key = key;
        self.try_again();
    }

    /// Whether the host requires the lock.
    pub fn is_locked(&self) -> bool {
        self.operators.is_some()
    }

    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// From where the coordinator is to go on; `None` asks for a snapshot. A coordinator that is
    /// behind is told where this node is, or it would never learn of it.
    pub fn resume_from(&self) -> Option<Position> {
        self.position()
            .filter(|_| !self.out_of_step || self.rolled_back_to().is_some())
    }

    /// Peers whose removal waits to be confirmed, those that the coordinator does not know any
    /// more, and those that were there before the lock and were not admitted since.
    pub fn awaiting_confirmation(&self) -> BTreeSet<NodeId> {
        let grandfathered = self
            .known
            .iter()
            .flat_map(|known| &known.admitted)
            .flat_map(Admitted::grandfathered);
        self.removal_pending
            .union(&self.absent)
            .copied()
            .chain(grandfathered)
            .collect()
    }

    /// Gives up the peers of these that [`Replica::awaiting_confirmation`] names, takes up those
    /// that [`Replica::returned`] names, and carries out what waited for it. Whether there were
    /// any. Those do not count among the removals of 24 hours.
    pub fn confirm(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let are_let_in = self.let_in(nodes);
        let mut waits = self.removal_pending.union(&self.absent);
        let confirmed: BTreeSet<_> = waits
            .by_ref()
            .filter(|node| nodes.contains(node))
            .copied()
            .collect();
        confirmed.iter().for_each(|node| self.remove(*node));
        self.try_again();
        let admitted = self
            .known
            .as_mut()
            .and_then(|known| known.admitted.as_mut());
        let tolerated = admitted.is_some_and(|admitted| admitted.confirm(nodes));
        tolerated || are_let_in || !confirmed.is_empty()
    }

    /// How far the copy has come.
    pub fn position(&self) -> Option<Position> {
        self.known.as_ref().map(|known| known.position)
    }

    /// Takes in a message at a time, in seconds since 1970. A removal is always explicit: a peer
    /// that is merely absent from a snapshot stays.
    pub fn receive(&mut self, message: StreamMessage, unix_s: i64) -> Received {
        self.recent.note_time(unix_s);
        match message {
            StreamMessage::Snapshot {
                position,
                view,
                removed,
            } => self.snapshot(position, view, removed, unix_s),
            StreamMessage::Delta {
                since,
                position,
                changes,
            } => match &self.known {
                Some(known)
                    if known.position == since
                        && follows(known.position, position)
                        && !self.out_of_step =>
                {
                    let next = Draft::new(known.mesh.clone(), self.own_told(known));
                    Received::from(self.take_in(position, next, changes))
                }
                Some(_) | None => self.gap(),
            },
            StreamMessage::Heartbeat { position } => match &mut self.known {
                Some(known) if follows(known.position, position) && !self.out_of_step => {
                    known.position = position;
                    self.rejected = None;
                    Received::Unchanged
                }
                Some(_) | None => self.gap(),
            },
            StreamMessage::Bye { reason } => {
                if reason == ByeReason::Revoked {
                    self.revoked();
                }
                Received::Bye(reason)
            }
            StreamMessage::MessagesWaiting | StreamMessage::Unknown => Received::Unchanged,
        }
    }

    fn gap(&mut self) -> Received {
        self.out_of_step = true;
        // It has said where it is; now it asks for all.
        self.rejected = None;
        Received::Gap
    }

    /// What the coordinator says of the node itself, carried out or not.
    fn own_told(&self, known: &Known) -> Myself {
        let waiting = self.contested.own_waiting.as_ref();
        waiting.map_or_else(|| known.myself.clone(), |waiting| waiting.told.clone())
    }

    fn snapshot(
        &mut self,
        position: Position,
        view: View,
        removed: Vec<Tombstone>,
        unix_s: i64,
    ) -> Received {
        let is_another = |have: Position| have.epoch != position.epoch;
        if !position.can_have_begun(unix_s) && self.position().is_none_or(is_another) {
            return Received::Rejected(self.reject(Rejection::NotYet(position)));
        }
        if let Some(have) = self.position().filter(|have| position < *have) {
            // It goes on from where it is: who has the position that it names has nothing older to
            // tell.
            let offered = position;
            return Received::Rejected(self.reject(Rejection::RolledBack { have, offered }));
        }
        let named: BTreeSet<_> = view.peers.iter().map(|peer| peer.node).collect();
        if view.mesh.id == self.mesh {
            // What was never carried out costs nothing to forget.
            self.refused.retain(|node, _| named.contains(node));
            self.contested
                .waiting
                .retain(|node, _| named.contains(node));
            self.returned.out.retain(|node, _| named.contains(node));
        }
        let mut next = Draft::new(view.mesh, view.myself);
        let known = self.known.iter().flat_map(|known| known.peers.keys());
        let gone: BTreeSet<_> = removed.iter().map(|tombstone| tombstone.node).collect();
        let said = [&named, &gone, &self.removal_pending];
        let is_said = |node: &NodeId| said.iter().any(|said| said.contains(node));
        next.absent = Some(known.filter(|node| !is_said(node)).copied().collect());
        let removed = removed.into_iter().map(ViewChange::PeerRemoved);
        let peers = view.peers.into_iter().map(ViewChange::Peer);
        let changes = peers.chain(removed);
        Received::from(self.take_in(position, next, changes))
    }

    /// Costs what the changes touch, whatever the size of the view, unless two claim the same.
    fn take_in(
        &mut self,
        position: Position,
        mut next: Draft,
        changes: impl IntoIterator<Item = ViewChange>,
    ) -> Result<Vec<Refusal>, Rejection> {
        let refused = self.believe_all(position.epoch, &mut next, changes);
        if next.mesh.id != self.mesh {
            return Err(self.reject_until_snapshot(Rejection::Mesh(next.mesh.id)));
        }
        if self.moves(&next) {
            return Err(self.reject_until_snapshot(Rejection::Moved));
        }
        if self.outgrows(&next) {
            return Err(self.reject_until_snapshot(Rejection::TooLarge));
        }
        self.hold_removals(&mut next);
        if !self.assign(&next) {
            self.ownership = self.settle(&mut next);
        }
        self.adopt(position, next);
        (self.rejected, self.out_of_step) = (None, false);
        Ok(refused)
    }

    /// Returns what of it is not believed.
    fn believe_all(
        &self,
        epoch: i64,
        next: &mut Draft,
        changes: impl IntoIterator<Item = ViewChange>,
    ) -> Vec<Refusal> {
        let mut refused = Vec::new();
        let mut kept = self.refused.len();
        for change in changes {
            match change {
                ViewChange::Peer(told) => {
                    let node = told.node;
                    next.named.insert(node);
                    match self.believe_peer(next, told) {
                        Ok(peer) if self.stays_out(epoch, &peer) => {
                            next.refused.insert(node, None);
                            next.out.insert(node, Some(peer));
                        }
                        Ok(peer) => {
                            next.refused.insert(node, None);
                            next.peers.insert(node, Some(peer));
                        }
                        Err(told) => {
                            refused.push(told.refusal.clone());
                            kept += usize::from(!self.refused.contains_key(&node));
                            next.refused
                                .insert(node, (kept <= MOST_REFUSED).then_some(*told));
                        }
                    }
                }
                // A mesh has more of these in years than nodes.
                ViewChange::PeerRemoved(Tombstone { node, .. }) if !self.is_told_of(next, node) => {
                }
                ViewChange::PeerRemoved(Tombstone { node, removal }) => {
                    let signed_at = removal.and_then(|removal| self.signed_at(node, &removal));
                    next.removal_signed
                        .extend(signed_at.map(|signed_at| (node, signed_at)));
                    next.named.remove(&node);
                    next.removed.insert(node);
                    next.refused.insert(node, None);
                    next.peers.insert(node, None);
                }
                ViewChange::Myself(myself) => next.myself = myself,
                ViewChange::Mesh(mesh) => next.mesh = mesh,
            }
        }
        refused
    }

    fn believe_peer(&self, next: &Draft, peer: Peer) -> Result<KnownPeer, Box<Refused>> {
        // Nothing is forgotten of a peer that goes and comes in one message.
        let known = || self.known.as_ref()?.peers.get(&peer.node);
        let before = self.told_in(next, peer.node).or_else(known);
        believe(&peer, self.mesh, before, self.pin(peer.node)).map_err(|reason| {
            let name = peer.name.clone();
            Box::new(Refused {
                told: peer,
                refusal: Refusal { name, reason },
            })
        })
    }

    /// What the coordinator said last of a peer, if it was believed.
    fn told_in<'a>(&'a self, next: &'a Draft, node: NodeId) -> Option<&'a KnownPeer> {
        if let Some(touched) = next.peers.get(&node) {
            return touched.as_ref();
        }
        let waiting = self.contested.waiting.get(&node);
        waiting
            .map(|waiting| &waiting.told)
            .or_else(|| self.returned.out.get(&node))
            .or_else(|| self.known.as_ref()?.peers.get(&node))
    }

    /// When an operator signed that a peer goes, if that counts on this host.
    fn signed_at(&self, node: NodeId, removal: &SignedRemoval) -> Option<i64> {
        let known = self.known.as_ref()?;
        let (admitted, peer) = (known.admitted.as_ref()?, known.peers.get(&node)?);
        admitted.removal_signed_at(self.mesh, peer, removal)
    }

    fn remove(&mut self, node: NodeId) {
        self.removal_pending.remove(&node);
        self.absent.remove(&node);
        let Some(known) = &mut self.known else { return };
        if let Some(peer) = known.peers.remove(&node) {
            known
                .admitted
                .iter_mut()
                .for_each(|admitted| admitted.forget(&peer, None));
            self.ownership.release_peer(&peer);
            self.depart(node, Pin::of(&peer));
        }
    }

    /// Carries out what waits, as far as that is possible by now.
    fn try_again(&mut self) {
        let Some(known) = self.known.as_ref().filter(|_| !self.contested.is_empty()) else {
            return;
        };
        let mut next = Draft::new(known.mesh.clone(), self.own_told(known));
        let position = known.position;
        self.ownership = self.settle(&mut next);
        self.adopt(position, next);
    }

    /// Makes the owners those of what is next: first all is released, then all is taken, so
    /// that two peers can swap. Whether nobody claims what another has; if not, the owners are to
    /// be made anew.
    fn assign(&mut self, next: &Draft) -> bool {
        let absent = next.absent.as_ref().unwrap_or(&self.absent);
        let stay = [&self.removal_pending, &next.removal_pending, absent];
        if !self.contested.is_empty() || stay.iter().any(|stay| !stay.is_empty()) {
            return false;
        }
        let moved = self
            .known
            .as_ref()
            .is_none_or(|known| known.myself != next.myself);
        if let Some(known) = &self.known {
            next.peers
                .keys()
                .filter_map(|node| known.peers.get(node))
                .for_each(|peer| self.ownership.release_peer(peer));
            if moved {
                self.ownership.release_own(&known.myself);
            }
        }
        let mut peers = next.peers.values().flatten();
        let own_key = self.own_key;
        (!moved || self.ownership.take_own(&next.myself))
            && peers.all(|peer| {
                ownership::keys(peer).all(|key| key != own_key) && self.ownership.take_peer(peer)
            })
    }

    /// Makes what is next what can be carried out of it; returns who has what then.
    fn settle(&self, next: &mut Draft) -> Ownership {
        let waiting = self.contested.waiting.iter();
        let waiting = waiting
            .filter(|(node, _)| !next.peers.contains_key(node) && !self.is_held(next, **node))
            .map(|(node, waiting)| (*node, waiting.told.clone()));
        let mut told: BTreeMap<_, _> = waiting.collect();
        let mut removed = BTreeSet::new();
        for (node, touched) in &next.peers {
            match touched {
                Some(peer) => drop(told.insert(*node, peer.clone())),
                None => drop(removed.insert(*node)),
            }
        }
        let stays = |peer: &&KnownPeer| {
            let node = peer.peer.node;
            let absent = next.absent.as_ref().unwrap_or(&self.absent);
            let is_told = next.named.contains(&node) || next.removes(node);
            (self.is_held(next, node) || absent.contains(&node)) && !is_told
        };
        let known = self.known.iter().flat_map(|known| known.peers.values());
        let endpoints = known
            .filter(stays)
            .filter_map(|known| Some((known.peer.endpoint?, known.peer.node)));
        let word = Word {
            before: self.known.as_ref(),
            removed,
            told,
            myself: next.myself.clone(),
            own_key: self.own_key,
            endpoints: endpoints.collect(),
        };
        let settled = word.settle();
        next.settled(settled)
    }

    /// Whether a peer was removed and stays for now.
    fn is_held(&self, next: &Draft, node: NodeId) -> bool {
        let is_told = next.named.contains(&node) || next.removes(node);
        let was = self.removal_pending.contains(&node) && !is_told;
        was || next.removal_pending.contains(&node)
    }

    fn adopt(&mut self, position: Position, next: Draft) {
        let Draft {
            mesh,
            myself,
            peers,
            refused,
            named,
            removal_signed,
            removal_pending,
            absent,
            contested,
            removed,
            mut out,
        } = next;
        out.extend(self.returned.out.keys().filter_map(|node| {
            let is_elsewhere = removed.contains(node) || peers.contains_key(node);
            is_elsewhere.then_some((*node, None))
        }));
        self.remember_removals(position.epoch, removed);
        if let Some(absent) = absent {
            self.absent = absent;
        }
        for set in [&mut self.removal_pending, &mut self.absent] {
            set.retain(|node| !named.contains(node) && !matches!(peers.get(node), Some(None)));
        }
        self.absent.retain(|node| !removal_pending.contains(node));
        self.removal_pending.extend(removal_pending);
        self.contested = contested.unwrap_or_default();
        let gone = peers
            .iter()
            .filter(|(_, peer)| peer.is_none())
            .filter_map(|(node, _)| Some((*node, self.pin(*node)?)));
        for (node, pin) in gone.collect::<Vec<_>>() {
            self.depart(node, pin);
        }
        let known = match &mut self.known {
            Some(known) => {
                (known.position, known.mesh, known.myself) = (position, mesh, myself);
                known
            }
            None => {
                let admitted = self.operators.clone().map(Admitted::new);
                self.known.insert(Known {
                    position,
                    mesh,
                    myself,
                    peers: BTreeMap::new(),
                    admitted,
                })
            }
        };
        for (node, touched) in &peers {
            let before = known.peers.get(node);
            if touched.is_some() && before.is_none() {
                self.returned.removed.remove(node);
            }
            match (touched, before) {
                (Some(_), _) => self.recent.arrive(*node),
                (None, Some(_)) if removal_signed.contains_key(node) => {}
                (None, Some(_)) => self.recent.leave(*node),
                (None, None) => {}
            }
            let Some(admitted) = &mut known.admitted else {
                continue;
            };
            match (touched, before) {
                (Some(peer), before) => {
                    before.iter().for_each(|before| {
                        admitted.follow(before.statement.identity, peer.statement.identity)
                    });
                    admitted.learn(self.mesh, peer);
                }
                (None, Some(gone)) => admitted.forget(gone, removal_signed.get(node).copied()),
                (None, None) => {}
            }
        }
        put(&mut known.peers, peers);
        put(&mut self.refused, refused);
        put(&mut self.returned.out, out);
    }
}

impl From<Result<Vec<Refusal>, Rejection>> for Received {
    fn from(taken: Result<Vec<Refusal>, Rejection>) -> Self {
        match taken {
            Ok(refused) => Self::Changed { refused },
            Err(rejection) => Self::Rejected(rejection),
        }
    }
}

/// Whether a delta or a heartbeat can lead from one position to another. A new epoch begins with a
/// snapshot.
fn follows(from: Position, to: Position) -> bool {
    to.epoch == from.epoch && to.revision >= from.revision
}
