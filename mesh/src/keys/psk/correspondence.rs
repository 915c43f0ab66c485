//! The letters of a node about all of its preshared keys: what is to be sent, what was read, and
//! when to ask the coordinator's mailbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use wattle_wire::{
    ids::NodeId,
    name::Name,
    psk::{Errand, GivenPsk, IncomingLetter, Mail, OutgoingLetter, SignedPskMessage},
};

use super::{Ignored, Kem, exchange::Exchange, files::Moved};
use crate::{
    agent::replica::{Known, KnownPeer},
    host::state::Interface,
    keys::node_keys::Machine,
};

/// How many letters of nodes wait that the view does not hold yet: as many as a coordinator without
/// malice could have.
const MOST_EARLY: usize = 1024;

/// The keys of a node's tunnels, and the letters about them. One errand to the mailbox is under way
/// at a time.
#[derive(Debug, Default)]
pub struct Correspondence {
    exchange: Exchange,
    /// What is to be sent: a newer letter to the same node takes the place of an older one.
    outbox: BTreeMap<NodeId, SignedPskMessage>,
    /// Letters that were dealt with, and what came of them is kept on disk.
    taken: Vec<i64>,
    /// Peers of whose new WireGuard key no handshake has succeeded yet.
    unsettled: BTreeSet<NodeId>,
    /// Letters of nodes that the view does not hold yet, for a letter may be faster than the view,
    /// and of those that are unsettled.
    early: BTreeMap<NodeId, SignedPskMessage>,
    /// Keys that the coordinator gave, by their numbers, until the view holds the unmanaged node
    /// and they are kept on disk. Nobody would give them again, so they stay at the coordinator as
    /// well.
    given: BTreeMap<i64, GivenPsk>,
    /// There is mail.
    waiting: bool,
    problem: Option<String>,
}

/// What the correspondence needs of the world.
#[expect(missing_debug_implementations, reason = "it is for one call")]
pub struct Means<'a, K> {
    pub machine: &'a Machine,
    /// Seconds since 1970.
    pub now: u64,
    pub kem: &'a K,
    /// Keeps the keys for a restart, or says why it cannot.
    pub keep: &'a dyn Fn(&Exchange) -> Result<(), String>,
}

/// What came of a step.
#[derive(Debug, Default)]
pub struct Progress {
    /// A key may be another one now.
    pub may_differ: bool,
    /// Letters of these peers were passed over.
    pub ignored: Vec<(Name, Ignored)>,
}

/// What came of an errand.
#[derive(Debug)]
pub enum Brought {
    Mail(Mail),
    /// The coordinator would not have it: a letter was for a node that has gone.
    Refused,
    Nothing,
}

impl Correspondence {
    /// With what is on disk, and what is the matter with that.
    pub fn new(exchange: Exchange, problem: Option<String>) -> Self {
        Self {
            exchange,
            problem,
            ..Self::default()
        }
    }

    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Why what was agreed on could not be kept, or is lost.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// As [`Exchange::want_others`].
    pub fn want_others(&mut self) {
        self.exchange.want_others();
    }

    pub fn mail_is_waiting(&mut self) {
        self.waiting = true;
    }

    /// Does what is due by now, and reads the letters of nodes that have become known. With
    /// `unsettled` peers no key is changed.
    pub fn tick<K: Kem>(
        &mut self,
        known: &Known,
        means: &Means<'_, K>,
        unsettled: BTreeSet<NodeId>,
    ) -> Progress {
        self.unsettled = unsettled;
        // What could not be kept is still at the coordinator.
        self.waiting |= self.problem.is_some();
        let (early, later): (BTreeMap<_, _>, _) = mem::take(&mut self.early)
            .into_iter()
            .partition(|(node, _)| self.is_readable(Some(known), node));
        self.early = later;
        let is_due = self
            .exchange
            .is_due(known, means.machine, means.now, &self.unsettled);
        if early.is_empty() && !self.is_given_for(known) && !is_due {
            return Progress::default();
        }
        let mut next = self.exchange.clone();
        let letters = next.tick(known, means.machine, means.now, means.kem, &self.unsettled);
        let (progress, _) = self.read(next, known, &early, letters, means);
        progress
    }

    /// Takes note of what the device shows. Whether a key may be another one now.
    pub fn observe<K: Kem>(
        &mut self,
        known: &Known,
        interface: &Interface,
        means: &Means<'_, K>,
    ) -> bool {
        // Most observations find no candidate, and a copy of a thousand pairs is megabytes.
        if !self.exchange.has_candidates() {
            return false;
        }
        let mut next = self.exchange.clone();
        let moved = next.observe(known, interface, means.now);
        if moved == Moved::OnDisk {
            return self.keep(next, Vec::new(), means);
        }
        self.exchange = next;
        moved == Moved::InMemory
    }

    /// The errand to go on now, if there is reason to.
    pub fn next_errand(&mut self) -> Option<Errand> {
        if !(self.waiting || !self.outbox.is_empty() || !self.taken.is_empty()) {
            return None;
        }
        self.waiting = false;
        let leave = self.outbox.iter().take(Errand::MOST_LETTERS);
        let leave = leave
            .map(|(to, message)| OutgoingLetter {
                to: *to,
                message: message.clone(),
            })
            .collect();
        Some(Errand {
            leave,
            taken: self
                .taken
                .iter()
                .copied()
                .take(Errand::MOST_LETTERS)
                .collect(),
        })
    }

    /// Reads what an errand has brought.
    pub fn take_in<K: Kem>(
        &mut self,
        errand: &Errand,
        brought: Brought,
        known: Option<&Known>,
        means: &Means<'_, K>,
    ) -> Progress {
        if !matches!(brought, Brought::Nothing) {
            // What was refused and is still due is said again in time.
            self.outbox.retain(|to, message| {
                !errand
                    .leave
                    .iter()
                    .any(|left| left.to == *to && left.message == *message)
            });
        }
        let Brought::Mail(mail) = brought else {
            self.waiting |= matches!(brought, Brought::Nothing) || !errand.taken.is_empty();
            return Progress::default();
        };
        self.taken.retain(|id| !errand.taken.contains(id));
        let new: Vec<_> = mail
            .letters
            .into_iter()
            .take(Errand::MOST_LETTERS)
            .filter(|letter| !self.taken.contains(&letter.id))
            .collect();
        let is_new = |given: &GivenPsk| {
            !self.taken.contains(&given.id) && !self.given.contains_key(&given.id)
        };
        let given: Vec<_> = mail
            .given
            .into_iter()
            .take(Errand::MOST_LETTERS)
            .filter(is_new)
            .collect();
        if new.is_empty() && given.is_empty() {
            return Progress::default();
        }
        self.waiting |= mail.more;
        let ids: Vec<_> = new.iter().map(|letter| letter.id).collect();
        let letters: BTreeMap<_, _> = new
            .into_iter()
            .map(|IncomingLetter { from, message, .. }| (from, message))
            .collect();
        let (readable, early): (BTreeMap<_, _>, BTreeMap<_, _>) = letters
            .into_iter()
            .partition(|(from, _)| self.is_readable(known, from));
        let room = MOST_EARLY.saturating_sub(self.given.len());
        self.given
            .extend(given.into_iter().take(room).map(|given| (given.id, given)));
        let (progress, kept) = match known
            .filter(|known| !readable.is_empty() || self.is_given_for(known))
        {
            Some(known) => self.read(self.exchange.clone(), known, &readable, Vec::new(), means),
            None => (Progress::default(), true),
        };
        if kept {
            self.early.extend(
                early
                    .into_iter()
                    .take(MOST_EARLY.saturating_sub(self.early.len())),
            );
            self.taken.extend(ids);
        } else {
            // The disk is at fault: they wait at the coordinator.
            self.waiting = false;
        }
        progress
    }

    fn is_given_for(&self, known: &Known) -> bool {
        self.given
            .values()
            .any(|given| known.peers.contains_key(&given.from))
    }

    fn is_readable(&self, known: Option<&Known>, from: &NodeId) -> bool {
        known.is_some_and(|known| known.peers.contains_key(from)) && !self.unsettled.contains(from)
    }

    /// Reads letters and all given keys of known peers, keeps what is known then, and says what
    /// there is to say. Whether it could be kept.
    fn read<K: Kem>(
        &mut self,
        mut next: Exchange,
        known: &Known,
        letters: &BTreeMap<NodeId, SignedPskMessage>,
        mut said: Vec<OutgoingLetter>,
        means: &Means<'_, K>,
    ) -> (Progress, bool) {
        let mut ignored = Vec::new();
        let mut pass_over =
            |peer: &KnownPeer, reason| ignored.push((peer.peer.name.clone(), reason));
        for (from, message) in letters {
            let Some(peer) = known.peers.get(from) else {
                continue;
            };
            match next.receive(known, means.machine, peer, message, means.now, means.kem) {
                Ok(answer) => said.extend(answer),
                Err(reason) => pass_over(peer, reason),
            }
        }
        let mut taken = Vec::new();
        for (id, given) in &self.given {
            let Some(peer) = known.peers.get(&given.from) else {
                continue;
            };
            if let Err(reason) = next.take(known, means.machine, peer, given, means.now) {
                pass_over(peer, reason);
            }
            taken.push(*id);
        }
        let kept = self.keep(next, said, means);
        let may_differ = kept && !(letters.is_empty() && taken.is_empty());
        if kept {
            self.given.retain(|id, _| !taken.contains(id));
            self.taken.extend(taken);
        }
        (
            Progress {
                may_differ,
                ignored,
            },
            kept,
        )
    }

    /// Keeps what is known now, and only then puts what it says into the outbox. Whether it could
    /// be kept.
    fn keep<K>(
        &mut self,
        next: Exchange,
        letters: Vec<OutgoingLetter>,
        means: &Means<'_, K>,
    ) -> bool {
        self.problem = (means.keep)(&next.kept()).err();
        if self.problem.is_some() {
            return false;
        }
        self.exchange = next;
        self.outbox.extend(
            letters
                .into_iter()
                .map(|letter| (letter.to, letter.message)),
        );
        true
    }
}

#[cfg(test)]
mod tests;
