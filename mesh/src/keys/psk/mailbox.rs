//! The messages of a node about all of its preshared keys: what is to be sent, what was read, and
//! when to ask the coordinator's mailbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use wattle_wire::{
    ids::NodeId,
    name::Name,
    psk::{
        GivenPsk, IncomingMessage, MailboxRequest, MailboxResponse, OutgoingMessage,
        SignedPskMessage,
    },
};

use super::{Ignored, Kem, exchange::Exchange, files::Moved};
use crate::{
    agent::replica::{Known, KnownPeer},
    host::state::Interface,
    keys::node_keys::NodeKeys,
};

/// How many messages of nodes wait that the view does not hold yet: as many as a coordinator
/// without malice could have.
const MOST_EARLY: usize = 1024;
/// Seconds without a session after which another key is agreed on with a peer, once: at least two of
/// WireGuard's attempts, which are 5 s apart (`REKEY_TIMEOUT`).
const WITHOUT_SESSION_S: u64 = 15;

/// The keys of a node's tunnels, and the messages about them. One request to the mailbox is under
/// way at a time.
#[derive(Debug, Default)]
pub struct PskMailbox {
    exchange: Exchange,
    /// What is to be sent: a newer message to the same node takes the place of an older one.
    outbox: BTreeMap<NodeId, SignedPskMessage>,
    /// Messages that were dealt with, and what came of them is kept on disk.
    taken: Vec<i64>,
    /// Peers of whose new WireGuard key no handshake has succeeded yet.
    unsettled: BTreeSet<NodeId>,
    /// Peers without a session, since when, and whether another key was wanted for that.
    without_session: BTreeMap<NodeId, (u64, bool)>,
    /// Messages of nodes that the view does not hold yet, for a message may be faster than the
    /// view, and of those that are unsettled.
    early: BTreeMap<NodeId, SignedPskMessage>,
    /// Keys that the coordinator gave, by their numbers, until the view holds the unmanaged node
    /// and they are kept on disk. Nobody would give them again, so they stay at the coordinator as
    /// well.
    given: BTreeMap<i64, GivenPsk>,
    /// Messages wait at the coordinator.
    waiting: bool,
    problem: Option<String>,
}

/// What the mailbox needs of the world.
#[expect(missing_debug_implementations, reason = "it is for one call")]
pub struct Means<'a, K> {
    pub node_keys: &'a NodeKeys,
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
    /// Messages of these peers were passed over.
    pub ignored: Vec<(Name, Ignored)>,
}

/// What came of a request.
#[derive(Debug)]
pub enum MailboxReply {
    Response(MailboxResponse),
    /// The coordinator would not have it for the message of this number, which is for a node that
    /// has gone; absent means for all of it.
    Refused(Option<usize>),
    Failed,
}

impl PskMailbox {
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

    pub fn messages_are_waiting(&mut self) {
        self.waiting = true;
    }

    /// As [`Exchange::say_again`].
    pub fn say_again(&mut self) {
        self.exchange.say_again();
    }

    /// Does what is due by now, and reads the messages of nodes that have become known. With
    /// `unsettled` peers no key is changed.
    pub fn tick<K: Kem>(
        &mut self,
        known: &Known,
        means: &Means<'_, K>,
        unsettled: BTreeSet<NodeId>,
    ) -> Progress {
        self.unsettled = unsettled;
        // One message to a node that has gone would keep the others from being left.
        self.outbox.retain(|to, _| known.peers.contains_key(to));
        // What could not be kept is still at the coordinator.
        self.waiting |= self.problem.is_some();
        let (early, later): (BTreeMap<_, _>, _) = mem::take(&mut self.early)
            .into_iter()
            .partition(|(node, _)| self.is_readable(Some(known), node));
        self.early = later;
        let is_due = self
            .exchange
            .is_due(known, means.node_keys, means.now, &self.unsettled);
        if early.is_empty() && !self.is_given_for(known) && !is_due {
            return Progress::default();
        }
        let mut next = self.exchange.clone();
        let messages = next.tick(
            known,
            means.node_keys,
            means.now,
            means.kem,
            &self.unsettled,
        );
        let (progress, _) = self.read(next, known, &early, messages, means);
        progress
    }

    /// Takes note of what the device shows. Whether a key may be another one now.
    pub fn observe<K: Kem>(
        &mut self,
        known: &Known,
        interface: &Interface,
        means: &Means<'_, K>,
    ) -> bool {
        self.watch_sessions(known, interface, means.now);
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

    /// Wants another key with those peers with which there is no session: one of the two may have an
    /// earlier disk, and so another key than the other. Without keepalives a tunnel that nobody uses
    /// has no session either.
    fn watch_sessions(&mut self, known: &Known, interface: &Interface, now: u64) {
        let has_keepalives = known.mesh.keepalive_s > 0;
        let has_none = |(node, peer): &(&NodeId, &KnownPeer)| {
            has_keepalives
                && self.exchange.since(**node).is_some()
                && peer.entry(interface).is_some_and(|entry| !entry.is_live())
        };
        let without = known.peers.iter().filter(has_none);
        let before = mem::take(&mut self.without_session);
        self.without_session = without
            .map(|(node, _)| (*node, *before.get(node).unwrap_or(&(now, false))))
            .collect();
        for (node, (since, is_wanted)) in &mut self.without_session {
            if !*is_wanted && now.abs_diff(*since) >= WITHOUT_SESSION_S {
                *is_wanted = true;
                self.exchange.want_another(*node);
            }
        }
    }

    /// The request to send now, if there is reason to.
    pub fn next_request(&mut self) -> Option<MailboxRequest> {
        if !(self.waiting || !self.outbox.is_empty() || !self.taken.is_empty()) {
            return None;
        }
        self.waiting = false;
        let leave = self.outbox.iter().take(MailboxRequest::MOST_MESSAGES);
        let leave = leave
            .map(|(to, message)| OutgoingMessage {
                to: *to,
                message: message.clone(),
            })
            .collect();
        Some(MailboxRequest {
            leave,
            taken: self
                .taken
                .iter()
                .copied()
                .take(MailboxRequest::MOST_MESSAGES)
                .collect(),
        })
    }

    /// Reads what a request has brought.
    pub fn take_in<K: Kem>(
        &mut self,
        request: &MailboxRequest,
        reply: MailboxReply,
        known: Option<&Known>,
        means: &Means<'_, K>,
    ) -> Progress {
        // The messages that are done with. What was refused and is still due is said again in time.
        let done = match reply {
            MailboxReply::Failed => &[],
            MailboxReply::Refused(Some(index)) => {
                request.leave.get(index..=index).unwrap_or(&request.leave)
            }
            MailboxReply::Refused(None) | MailboxReply::Response(_) => &request.leave[..],
        };
        self.outbox.retain(|to, message| {
            !done
                .iter()
                .any(|left| left.to == *to && left.message == *message)
        });
        let MailboxReply::Response(response) = reply else {
            self.waiting |= matches!(reply, MailboxReply::Failed) || !request.taken.is_empty();
            return Progress::default();
        };
        self.taken.retain(|id| !request.taken.contains(id));
        let new: Vec<_> = response
            .messages
            .into_iter()
            .take(MailboxRequest::MOST_MESSAGES)
            .filter(|message| !self.taken.contains(&message.id))
            .collect();
        let is_new = |given: &GivenPsk| {
            !self.taken.contains(&given.id) && !self.given.contains_key(&given.id)
        };
        let given: Vec<_> = response
            .given
            .into_iter()
            .take(MailboxRequest::MOST_MESSAGES)
            .filter(is_new)
            .collect();
        if new.is_empty() && given.is_empty() {
            return Progress::default();
        }
        self.waiting |= response.more;
        let ids: Vec<_> = new.iter().map(|message| message.id).collect();
        let messages: BTreeMap<_, _> = new
            .into_iter()
            .map(|IncomingMessage { from, message, .. }| (from, message))
            .collect();
        let (readable, early): (BTreeMap<_, _>, BTreeMap<_, _>) = messages
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
        known.is_some_and(|known| known.peers.contains_key(from))
            && self.exchange.may_agree(*from, &self.unsettled)
    }

    /// Reads messages and all given keys of known peers, keeps what is known then, and says what
    /// there is to say. Whether it could be kept.
    fn read<K: Kem>(
        &mut self,
        mut next: Exchange,
        known: &Known,
        messages: &BTreeMap<NodeId, SignedPskMessage>,
        mut said: Vec<OutgoingMessage>,
        means: &Means<'_, K>,
    ) -> (Progress, bool) {
        let mut ignored = Vec::new();
        let mut pass_over =
            |peer: &KnownPeer, reason| ignored.push((peer.peer.name.clone(), reason));
        for (from, message) in messages {
            let Some(peer) = known.peers.get(from) else {
                continue;
            };
            match next.receive(known, means.node_keys, peer, message, means.now, means.kem) {
                Ok(answer) => said.extend(answer),
                Err(reason) => pass_over(peer, reason),
            }
        }
        let mut taken = Vec::new();
        for (id, given) in &self.given {
            let Some(peer) = known.peers.get(&given.from) else {
                continue;
            };
            if let Err(reason) = next.take(known, means.node_keys, peer, given, means.now) {
                pass_over(peer, reason);
            }
            taken.push(*id);
        }
        let kept = self.keep(next, said, means);
        let may_differ = kept && !(messages.is_empty() && taken.is_empty());
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
        messages: Vec<OutgoingMessage>,
        means: &Means<'_, K>,
    ) -> bool {
        self.problem = (means.keep)(&next.kept()).err();
        if self.problem.is_some() {
            return false;
        }
        self.exchange = next;
        self.outbox.extend(
            messages
                .into_iter()
                .map(|message| (message.to, message.message)),
        );
        true
    }
}

#[cfg(test)]
mod tests;
