//! The agent's half of the stream: its own copy of the view, which believes only what holds
//! together and what the nodes themselves signed.

mod belief;
mod draft;
mod ownership;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    ids::{MeshId, NodeId, Position},
    key::{OperatorKey, WireguardKey},
    name::Name,
    peer::{MeshSettings, Myself, Peer, View},
    stream::{ByeReason, StreamMessage, ViewChange},
};

pub use self::belief::{Pin, Refusal, RefusalReason};
use self::{
    belief::{Believed, believe},
    draft::{Draft, put},
    ownership::{Contradiction, Ownership},
};
use crate::agent::admission::Admitted;
pub use crate::agent::known_peer::KnownPeer;
pub(crate) use crate::agent::known_peer::prefixes;

/// What a node knows of its mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub position: Position,
    pub mesh: MeshSettings,
    pub myself: Myself,
    pub peers: BTreeMap<NodeId, KnownPeer>,
    /// Absent where the host does not require the lock.
    pub admitted: Option<Admitted>,
}

/// [`Known`] as it is kept on disk, with all that must outlive a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub position: Position,
    pub view: View,
    /// Peers of the view whose removal waits to be confirmed.
    #[serde(rename = "held", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removal_pending: BTreeSet<NodeId>,
    /// What peers that were removed are pinned to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub departed: BTreeMap<NodeId, Pin>,
    /// Absent where the host did not require the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<Admitted>,
}

impl Stored {
    /// As [`Replica::awaiting_confirmation`].
    pub fn awaiting_confirmation(&self) -> BTreeSet<NodeId> {
        self.removal_pending
            .iter()
            .copied()
            .chain(self.admitted.iter().flat_map(Admitted::grandfathered))
            .collect()
    }
}

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
    refused: BTreeMap<NodeId, Refusal>,
    rejected: Option<Rejection>,
    /// Peers whose removal waits to be confirmed; they stay.
    removal_pending: BTreeSet<NodeId>,
    departed: BTreeMap<NodeId, Pin>,
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
    /// The revision contradicts itself; all stays as it was.
    Rejected(Rejection),
    /// The coordinator ended the stream.
    Bye(ByeReason),
}

/// Why a whole revision is not carried out: the kernel would take it silently, and move traffic to
/// the wrong peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    #[error(
        "the coordinator offers revision {offered}, but this node has seen {have}: either its \
         database was restored, or somebody replays an old state"
    )]
    RolledBack { have: Position, offered: Position },
    #[error("the view belongs to another mesh")]
    Mesh,
    #[error("peer {0} has this node's own key")]
    OwnKey(Name),
    #[error("peers {0} and {1} have the same key")]
    SameKey(Name, Name),
    #[error("{0} of {1} overlaps with {2} of {3}")]
    Overlap(IpNet, Name, IpNet, Name),
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
            departed: BTreeMap::new(),
        }
    }

    /// The same on a host that requires the lock, if there are operators. To be said before
    /// anything is taken up.
    #[must_use]
    pub fn locked_by(self, operators: Option<BTreeSet<OperatorKey>>) -> Self {
        Self { operators, ..self }
    }

    /// Takes up what was kept on disk, as far as it holds. Returns what was refused.
    ///
    /// # Errors
    ///
    /// [`Rejection`] when it contradicts itself; the replica then knows nothing.
    pub fn restore(&mut self, stored: Stored) -> Result<Vec<Refusal>, Rejection> {
        self.departed = stored.departed;
        let message = StreamMessage::Snapshot {
            position: stored.position,
            view: stored.view,
            removed: Vec::new(),
        };
        let refused = match self.receive(message) {
            Received::Changed { refused } => refused,
            Received::Rejected(rejection) => return Err(rejection),
            Received::Unchanged | Received::Gap | Received::Bye(_) => Vec::new(),
        };
        self.removal_pending = stored.removal_pending;
        if let (Some(known), Some(operators)) = (&mut self.known, self.operators.clone()) {
            known.admitted = Some(match stored.admitted {
                Some(admitted) => admitted.kept(operators, self.mesh, &known.peers),
                None => Admitted::turned_on(operators, self.mesh, &known.peers),
            });
        }
        Ok(refused)
    }

    /// The node has taken up another WireGuard key.
    pub fn set_own_key(&mut self, key: WireguardKey) {
        self.own_key = key;
    }

    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// From where the coordinator is to go on; `None` asks for a snapshot.
    pub fn resume_from(&self) -> Option<Position> {
        self.position().filter(|_| !self.out_of_step)
    }

    /// What of the coordinator's newest word is not carried out, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let rejected = self
            .rejected
            .iter()
            .map(|rejection| format!("rejected the newest revision: {rejection}"));
        let held = (!self.removal_pending.is_empty()).then(|| {
            let (held, all) = (
                self.removal_pending.len(),
                self.known.as_ref().map_or(0, |known| known.peers.len()),
            );
            format!(
                "the coordinator removed {held} of {all} peers at once. They stay until you \
                run `wattle-agent confirm` on this gateway"
            )
        });
        rejected
            .chain(held)
            .chain(self.refused.values().map(ToString::to_string))
    }

    /// Peers whose removal waits to be confirmed, and those that were there before the lock and
    /// were not admitted since.
    pub fn awaiting_confirmation(&self) -> BTreeSet<NodeId> {
        let grandfathered = self
            .known
            .iter()
            .flat_map(|known| &known.admitted)
            .flat_map(Admitted::grandfathered);
        self.removal_pending
            .iter()
            .copied()
            .chain(grandfathered)
            .collect()
    }

    /// Gives up the peers of these that [`Replica::awaiting_confirmation`] names. Whether there
    /// were any.
    pub fn confirm(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let confirmed: BTreeSet<_> = self.removal_pending.intersection(nodes).copied().collect();
        self.removal_pending
            .retain(|node| !confirmed.contains(node));
        confirmed.iter().for_each(|node| self.remove(*node));
        let admitted = self
            .known
            .as_mut()
            .and_then(|known| known.admitted.as_mut());
        admitted.is_some_and(|admitted| admitted.confirm(nodes)) || !confirmed.is_empty()
    }

    /// How far the copy has come.
    pub fn position(&self) -> Option<Position> {
        self.known.as_ref().map(|known| known.position)
    }

    /// What to keep on disk.
    pub fn stored(&self) -> Option<Stored> {
        let known = self.known.as_ref()?;
        let peers = known
            .peers
            .values()
            .map(|known| known.peer.clone())
            .collect();
        let view = View {
            mesh: known.mesh.clone(),
            myself: known.myself.clone(),
            peers,
        };
        let (removal_pending, departed, admitted) = (
            self.removal_pending.clone(),
            self.departed.clone(),
            known.admitted.clone(),
        );
        Some(Stored {
            position: known.position,
            view,
            removal_pending,
            departed,
            admitted,
        })
    }

    /// Takes in a message. A removal is always explicit: a peer that is merely absent from a
    /// snapshot stays.
    pub fn receive(&mut self, message: StreamMessage) -> Received {
        match message {
            StreamMessage::Snapshot {
                position,
                view,
                removed,
            } => self.snapshot(position, view, removed),
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
                    let next = Draft::new(known.mesh.clone(), known.myself.clone());
                    self.take_in(position, next, changes)
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
                if let (ByeReason::Revoked, Some(known)) = (reason, &self.known) {
                    // The tombstone of the node itself, and so of all its peers. Those have dropped
                    // it if it is true, and if it is not, the tunnels are worth keeping.
                    let all: BTreeSet<_> = known.peers.keys().copied().collect();
                    if must_be_confirmed(all.len(), all.len()) {
                        self.removal_pending = all;
                    } else {
                        all.into_iter().for_each(|node| self.remove(node));
                    }
                }
                Received::Bye(reason)
            }
            StreamMessage::MessagesWaiting | StreamMessage::Unknown => Received::Unchanged,
        }
    }

    fn gap(&mut self) -> Received {
        self.out_of_step = true;
        Received::Gap
    }

    fn snapshot(&mut self, position: Position, view: View, removed: Vec<NodeId>) -> Received {
        if let Some(have) = self.position().filter(|have| position < *have) {
            // It goes on from where it is: who has the position that it names has nothing older to
            // tell.
            let rejection = Rejection::RolledBack {
                have,
                offered: position,
            };
            self.rejected = Some(rejection.clone());
            return Received::Rejected(rejection);
        }
        let removed = removed.into_iter().map(ViewChange::PeerRemoved);
        let changes = view
            .peers
            .into_iter()
            .map(ViewChange::Peer)
            .chain(removed)
            .collect();
        self.take_in(position, Draft::new(view.mesh, view.myself), changes)
    }

    /// Costs what the changes touch, whatever the size of the view.
    fn take_in(
        &mut self,
        position: Position,
        mut next: Draft,
        changes: Vec<ViewChange>,
    ) -> Received {
        let mut newly_refused = Vec::new();
        for change in changes {
            match change {
                ViewChange::Peer(peer) => match believe(
                    &peer,
                    self.mesh,
                    self.peer_in(&next, peer.node),
                    self.pin(peer.node),
                ) {
                    Ok(Believed {
                        statement,
                        announced,
                    }) => {
                        next.refused.insert(peer.node, None);
                        let told = || {
                            self.peer_in(&next, peer.node)
                                .and_then(|known| known.peer.admission.clone())
                        };
                        let admission = peer.admission.clone().or_else(told);
                        let peer = Peer { admission, ..peer };
                        next.peers.insert(
                            peer.node,
                            Some(KnownPeer {
                                peer,
                                statement,
                                announced,
                            }),
                        );
                    }
                    Err(reason) => {
                        let refusal = Refusal {
                            name: peer.name,
                            reason,
                        };
                        newly_refused.push(refusal.clone());
                        next.refused.insert(peer.node, Some(refusal));
                    }
                },
                ViewChange::PeerRemoved(node) => {
                    next.refused.insert(node, None);
                    next.peers.insert(node, None);
                }
                ViewChange::Myself(myself) => next.myself = myself,
                ViewChange::Mesh(mesh) => next.mesh = mesh,
            }
        }
        self.hold_removals(&mut next);
        if let Err(rejection) = self.assign(&next) {
            // A revision that is rejected is rare: working out the owners anew is simpler than to
            // undo some of them.
            self.ownership = self.known.as_ref().map(Ownership::of).unwrap_or_default();
            self.out_of_step = true;
            self.rejected = Some(rejection.clone());
            return Received::Rejected(rejection);
        }
        self.adopt(position, next);
        (self.rejected, self.out_of_step) = (None, false);
        Received::Changed {
            refused: newly_refused,
        }
    }

    /// Keeps the peers that are not to go without being asked about: those of a message that
    /// removes more than half of all, and those of earlier ones.
    fn hold_removals(&self, next: &mut Draft) {
        let Some(known) = &self.known else { return };
        let goes = |(node, peer): (&NodeId, &Option<KnownPeer>)| {
            (peer.is_none() && known.peers.contains_key(node)).then_some(*node)
        };
        let (again, new): (BTreeSet<_>, BTreeSet<_>) = next
            .peers
            .iter()
            .filter_map(goes)
            .partition(|node| self.removal_pending.contains(node));
        if must_be_confirmed(new.len(), known.peers.len()) {
            next.removal_pending = new;
        }
        next.peers
            .retain(|node, _| !again.contains(node) && !next.removal_pending.contains(node));
    }

    /// What a node is pinned to, whether it is a peer now or was one once.
    fn pin(&self, node: NodeId) -> Option<Pin> {
        let known = self.known.as_ref().and_then(|known| known.peers.get(&node));
        known
            .map(Pin::of)
            .or_else(|| self.departed.get(&node).copied())
    }

    fn remove(&mut self, node: NodeId) {
        let Some(known) = &mut self.known else { return };
        if let Some(peer) = known.peers.remove(&node) {
            known
                .admitted
                .iter_mut()
                .for_each(|admitted| admitted.forget(&peer));
            self.ownership.release_peer(&peer);
            self.departed.insert(node, Pin::of(&peer));
        }
    }

    fn peer_in<'a>(&'a self, next: &'a Draft, node: NodeId) -> Option<&'a KnownPeer> {
        match next.peers.get(&node) {
            Some(touched) => touched.as_ref(),
            None => self.known.as_ref()?.peers.get(&node),
        }
    }

    /// Makes the owners those of what is next: first all is released, then all is taken, so
    /// that two peers can swap.
    fn assign(&mut self, next: &Draft) -> Result<(), Rejection> {
        if next.mesh.id != self.mesh {
            return Err(Rejection::Mesh);
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
        if let Some(own) = peers
            .clone()
            .find(|peer| ownership::keys(peer).any(|key| key == self.own_key))
        {
            return Err(Rejection::OwnKey(own.peer.name.clone()));
        }
        let own = if moved {
            self.ownership.take_own(&next.myself)
        } else {
            Ok(())
        };
        let taken = own.and_then(|()| peers.try_for_each(|peer| self.ownership.take_peer(peer)));
        taken.map_err(|contradiction| {
            let name = |node| match self.peer_in(next, node) {
                Some(known) if node != next.myself.node => known.peer.name.clone(),
                Some(_) | None => next.myself.name.clone(),
            };
            match contradiction {
                Contradiction::Key { holder, claimant } => {
                    Rejection::SameKey(name(holder), name(claimant))
                }
                Contradiction::Prefix {
                    held,
                    holder,
                    claimed,
                    claimant,
                } => Rejection::Overlap(claimed, name(claimant), held, name(holder)),
            }
        })
    }

    fn adopt(&mut self, position: Position, next: Draft) {
        let Draft {
            mesh,
            myself,
            peers,
            refused,
            removal_pending,
        } = next;
        self.removal_pending
            .retain(|node| !peers.contains_key(node));
        self.removal_pending.extend(removal_pending);
        let gone = peers
            .iter()
            .filter(|(_, peer)| peer.is_none())
            .filter_map(|(node, _)| Some((*node, self.pin(*node)?)));
        self.departed.extend(gone.collect::<Vec<_>>());
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
        if let Some(admitted) = &mut known.admitted {
            for (node, touched) in &peers {
                match (touched, known.peers.get(node)) {
                    (Some(peer), before) => {
                        before.iter().for_each(|before| {
                            admitted.follow(before.statement.identity, peer.statement.identity)
                        });
                        admitted.learn(self.mesh, peer);
                    }
                    (None, Some(gone)) => admitted.forget(gone),
                    (None, None) => {}
                }
            }
        }
        put(&mut known.peers, peers);
        put(&mut self.refused, refused);
    }
}

/// Whether a delta or a heartbeat can lead from one position to another. A new epoch begins with a
/// snapshot.
fn follows(from: Position, to: Position) -> bool {
    to.epoch == from.epoch && to.revision >= from.revision
}

/// Whether a removal of so many of all peers at once waits for somebody: an empty database looks
/// the same as an intended farewell. One peer alone always goes.
fn must_be_confirmed(removed: usize, all: usize) -> bool {
    removed > 1 && removed * 2 > all
}
