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
    /// What is to be on disk before anything else is done.
    unkept: Option<Unkept>,
    problem: Option<String>,
}

/// What the mailbox needs of the world.
#[expect(missing_debug_implementations, reason = "it is for one call")]
pub struct Means<'a, K> {
    pub node_keys: &'a NodeKeys,
    /// Seconds since 1970.
    pub now: u64,
    pub kem: &'a K,
}

/// Messages that were passed over: of which peers, and why.
pub type PassedOver = Vec<(Name, Ignored)>;

/// A step that counts once its keys are on disk.
#[derive(Debug)]
struct Unkept {
    exchange: Exchange,
    /// What there is to say then.
    says: Vec<OutgoingMessage>,
    /// Given keys that are among them, by their numbers.
    given: Vec<i64>,
    /// Of a reply, the messages that are dealt with then.
    read: Option<Read>,
    /// A key may be another one then.
    may_differ: bool,
}

/// The messages of a reply.
#[derive(Debug)]
struct Read {
    ids: Vec<i64>,
    /// Of nodes that are not known yet.
    early: BTreeMap<NodeId, SignedPskMessage>,
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

    /// The keys that are to be on disk before anything else is asked of the mailbox:
    /// [`PskMailbox::kept`] is to say whether they are.
    pub fn to_keep(&self) -> Option<Exchange> {
        Some(self.unkept.as_ref()?.exchange.kept())
    }

    /// Goes by the keys that were to be kept, if they were; otherwise says why not. Whether a key
    /// may be another one now.
    pub fn kept(&mut self, result: Result<(), String>) -> bool {
        let Some(unkept) = self.unkept.take() else {
            return false;
        };
        self.problem = result.err();
        if self.problem.is_some() {
            // The disk is at fault: the messages wait at the coordinator.
            self.waiting &= unkept.read.is_none();
            return false;
        }
        self.exchange = unkept.exchange;
        let says = unkept.says.into_iter();
        self.outbox
            .extend(says.map(|message| (message.to, message.message)));
        self.given.retain(|id, _| !unkept.given.contains(id));
        self.taken.extend(unkept.given);
        if let Some(read) = unkept.read {
            self.dealt_with(read);
        }
        unkept.may_differ
    }

    fn dealt_with(&mut self, Read { ids, early }: Read) {
        let room = MOST_EARLY.saturating_sub(self.early.len());
        self.early.extend(early.into_iter().take(room));
        self.taken.extend(ids);
    }

    /// Does what is due by now, and reads the messages of nodes that have become known. With
    /// `unsettled` peers no key is changed. There may be something [to keep](Self::to_keep) then.
    pub fn tick<K: Kem>(
        &mut self,
        known: &Known,
        means: &Means<'_, K>,
        unsettled: BTreeSet<NodeId>,
    ) -> PassedOver {
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
            return PassedOver::new();
        }
        let mut next = self.exchange.clone();
        let messages = next.tick(
            known,
            means.node_keys,
            means.now,
            means.kem,
            &self.unsettled,
        );
        self.read(next, known, &early, messages, means)
    }

    /// Takes note of what the device shows at a time, in seconds since 1970. Whether a key is
    /// another one now; there may be something [to keep](Self::to_keep) as well.
    pub fn observe(&mut self, known: &Known, interface: &Interface, now: u64) -> bool {
        self.watch_sessions(known, interface, now);
        // Most observations find no candidate, and a copy of a thousand pairs is megabytes.
        if !self.exchange.has_candidates() {
            return false;
        }
        let mut next = self.exchange.clone();
        let moved = next.observe(known, interface, now);
        if moved == Moved::OnDisk {
            self.unkept = Some(Unkept {
                exchange: next,
                says: Vec::new(),
                given: Vec::new(),
                read: None,
                may_differ: true,
            });
            return false;
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

    /// Reads what a request has brought. There may be something [to keep](Self::to_keep) then.
    pub fn take_in<K: Kem>(
        &mut self,
        request: &MailboxRequest,
        reply: MailboxReply,
        known: Option<&Known>,
        means: &Means<'_, K>,
    ) -> PassedOver {
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
            return PassedOver::new();
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
            return PassedOver::new();
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
        let read = Read { ids, early };
        let Some(known) = known.filter(|known| !readable.is_empty() || self.is_given_for(known))
        else {
            self.dealt_with(read);
            return PassedOver::new();
        };
        let passed_over = self.read(self.exchange.clone(), known, &readable, Vec::new(), means);
        if let Some(unkept) = &mut self.unkept {
            unkept.read = Some(read);
        }
        passed_over
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

    /// Reads messages and all given keys of known peers: what is known then is to be kept before
    /// what there is to say is said.
    fn read<K: Kem>(
        &mut self,
        mut next: Exchange,
        known: &Known,
        messages: &BTreeMap<NodeId, SignedPskMessage>,
        mut says: Vec<OutgoingMessage>,
        means: &Means<'_, K>,
    ) -> PassedOver {
        let mut passed_over = PassedOver::new();
        let mut pass_over =
            |peer: &KnownPeer, reason| passed_over.push((peer.peer.name.clone(), reason));
        for (from, message) in messages {
            let Some(peer) = known.peers.get(from) else {
                continue;
            };
            match next.receive(known, means.node_keys, peer, message, means.now, means.kem) {
                Ok(answer) => says.extend(answer),
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
        self.unkept = Some(Unkept {
            exchange: next,
            says,
            may_differ: !(messages.is_empty() && taken.is_empty()),
            given: taken,
            read: None,
        });
        passed_over
    }
}

#[cfg(test)]
mod tests;
