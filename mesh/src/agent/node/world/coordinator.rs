//! The coordinator: what it tells, and what it does with each request.

use std::collections::BTreeMap;

use chrono::DateTime;
use wattle_wire::{
    ids::{NodeId, Position},
    key::Signature,
    psk::{IncomingMessage, MailboxRequest, MailboxResponse, OutgoingMessage},
    rotation::{ReadyPeer, RotationAnswer, RotationStep},
    stream::{ByeReason, StreamMessage},
};

use super::{ANSWER_LIMIT, BEGINNING_S, Event, LATENCY, Reply, Request, World};
use crate::{
    config::{
        directory::{Announced, NodeRecord, RecordChange},
        feed::Feed,
    },
    keys::{
        enrolment::{check_announced, verify_announcement, verify_statement},
        identity_rotation::IdentityReply,
        psk::mailbox::MailboxReply,
        rotation::RotationReply,
        succession,
    },
    testing::{CHALLENGE_SECRET, MESH, challenge_of, directory_of, next_message},
};

pub(super) struct Coordinator {
    pub(super) feed: Feed,
    /// Up to where each open stream was told; absent before the first message.
    streams: BTreeMap<NodeId, Option<Position>>,
    /// What waits, by the recipient and the sender.
    messages: BTreeMap<(NodeId, NodeId), IncomingMessage>,
    ever: i64,
    /// Who signed to be ready for which key of whom.
    ready: BTreeMap<(NodeId, NodeId, u64), Signature>,
    pub(super) is_away: bool,
}

impl Coordinator {
    pub(super) fn new(nodes: u64) -> Self {
        let position = Position {
            epoch: BEGINNING_S - 1,
            revision: 1,
        };
        Self {
            feed: Feed::new(directory_of(nodes), position, []),
            streams: BTreeMap::new(),
            messages: BTreeMap::new(),
            ever: 0,
            ready: BTreeMap::new(),
            is_away: false,
        }
    }

    pub(super) fn open(&mut self, node: NodeId, since: Option<Position>) {
        self.streams.insert(node, since);
    }

    /// Whether there was a stream.
    pub(super) fn hang_up(&mut self, node: NodeId) -> bool {
        self.streams.remove(&node).is_some()
    }

    pub(super) fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.feed.directory().nodes.get(&node)
    }

    pub(super) fn change(&mut self, change: RecordChange) {
        let next = self.feed.position().revision + 1;
        self.feed.advance(next, &[change]).unwrap();
    }

    fn change_node(&mut self, node: NodeId, change: impl FnOnce(&mut NodeRecord)) {
        if let Some(mut record) = self.node(node).cloned() {
            change(&mut record);
            self.change(RecordChange::Node(record));
        }
    }

    /// Somebody asks for another key of a node.
    pub(super) fn ask_for_rotation(&mut self, node: NodeId) {
        self.change_node(node, |record| {
            record.rotate_since = Some(DateTime::UNIX_EPOCH);
        });
    }

    fn mailbox(&mut self, node: NodeId, request: &MailboxRequest) -> MailboxReply {
        let is_gone = |message: &OutgoingMessage| self.node(message.to).is_none();
        if let Some(index) = request.leave.iter().position(is_gone) {
            return MailboxReply::Refused(Some(index));
        }
        self.messages
            .retain(|(to, _), message| *to != node || !request.taken.contains(&message.id));
        for OutgoingMessage { to, message } in &request.leave {
            self.ever += 1;
            let message = IncomingMessage {
                id: self.ever,
                from: node,
                message: message.clone(),
            };
            self.messages.insert((*to, node), message);
        }
        let own = self.messages.iter().filter(|((to, _), _)| *to == node);
        MailboxReply::Response(MailboxResponse {
            messages: own.map(|(_, message)| message.clone()).collect(),
            given: vec![],
            more: false,
        })
    }

    /// Whether another node is changing its key. One that announced it two minutes ago is not
    /// waited for.
    fn is_waited_for(&self, node: NodeId, unix_s: u64) -> bool {
        let others = self.feed.directory().nodes.values();
        let mut others = others.filter(|other| other.id != node);
        others.any(|other| {
            let announced = other.announced.as_ref();
            announced.is_some_and(|announced| announced.at.timestamp() + 120 > unix_s.cast_signed())
        })
    }

    fn rotation(&mut self, node: NodeId, step: &RotationStep, unix_s: u64) -> RotationReply {
        let Some(record) = self.node(node).cloned() else {
            return RotationReply::Unreachable;
        };
        let refused = |why: &dyn ToString| RotationReply::Refused(why.to_string());
        match step {
            RotationStep::Prepare {} => RotationReply::Taken(RotationAnswer {
                challenge: Some(challenge_of(unix_s)),
                ..RotationAnswer::default()
            }),
            RotationStep::Announce(claim) => {
                let announcement = &claim.announcement;
                let statement = verify_announcement(announcement, MESH).unwrap();
                if !succession::stands(&record, announcement) {
                    if self.is_waited_for(node, unix_s) {
                        return RotationReply::Busy;
                    }
                    let key = statement.wireguard_key;
                    if let Err(why) = check_announced(claim, key, &CHALLENGE_SECRET, unix_s) {
                        return refused(&why);
                    }
                    if let Err(why) = succession::may_announce(&record, &statement) {
                        return refused(&why);
                    }
                    self.change_node(node, |record| {
                        record.highest_sequence = statement.sequence;
                        record.announced = Some(Announced {
                            announcement: announcement.clone(),
                            at: DateTime::from_timestamp(unix_s.cast_signed(), 0).unwrap(),
                        });
                    });
                }
                let said = self.ready.iter();
                let said = said
                    .filter(|((_, of, number), _)| *of == node && *number == statement.sequence);
                let ready = said.map(|((node, ..), signature)| ReadyPeer {
                    node: *node,
                    signature: *signature,
                });
                RotationReply::Taken(RotationAnswer {
                    ready: ready.collect(),
                    challenge: None,
                })
            }
            RotationStep::Done(signed) => {
                let statement = verify_statement(signed, MESH).unwrap();
                if record.statement != *signed {
                    if succession::may_take_up(&record, &statement).is_err() {
                        return RotationReply::Unannounced;
                    }
                    self.change_node(node, |record| {
                        (record.statement, record.announced) = (signed.clone(), None);
                        record.wireguard_key = statement.wireguard_key;
                        record.rotate_since = None;
                    });
                }
                RotationReply::Taken(RotationAnswer::default())
            }
            RotationStep::Withdraw {} => {
                self.change_node(node, |record| record.announced = None);
                RotationReply::Taken(RotationAnswer::default())
            }
        }
    }

    fn answer(&mut self, node: NodeId, request: &Request, unix_s: u64) -> Reply {
        match request {
            Request::Report(report) => {
                let said = report.keys_in_place.iter();
                let said = said.map(|key| ((node, key.peer, key.sequence), key.signature));
                self.ready.extend(said);
                Reply::Report(true)
            }
            Request::Mailbox(request) => Reply::Mailbox(self.mailbox(node, request)),
            Request::Rotation(step) => Reply::Rotation(self.rotation(node, step, unix_s)),
            Request::Identity(signed) => {
                let statement = verify_statement(signed, MESH).unwrap();
                let Some(record) = self.node(node) else {
                    return Reply::Identity(IdentityReply::Unreachable);
                };
                if record.statement != *signed {
                    if let Err(why) = succession::may_succeed(record, &statement) {
                        return Reply::Identity(IdentityReply::Refused(why.to_string()));
                    }
                    self.change_node(node, |record| {
                        (record.statement, record.announced) = (signed.clone(), None);
                        record.identity_key = statement.identity;
                        record.highest_sequence = record.highest_sequence.max(statement.sequence);
                    });
                }
                Reply::Identity(IdentityReply::Taken)
            }
            Request::OwnLinks => Reply::SeenAt(Some(vec![])),
        }
    }
}

impl World {
    /// A request arrives, and is answered.
    pub(super) fn request(&mut self, gateway: usize, agent: u64, request: &Request) {
        let node = self.gateways[gateway].id;
        let is_member = self.coordinator.node(node).is_some();
        let unix_s = self.clock().unix_s.unsigned_abs();
        let reply = if self.coordinator.is_away || !is_member {
            request.unanswered()
        } else {
            self.coordinator.answer(node, request, unix_s)
        };
        if let Request::Mailbox(request) = request {
            let to: Vec<_> = request.leave.iter().map(|message| message.to).collect();
            to.into_iter()
                .for_each(|to| self.say_that_messages_wait(to));
        }
        self.stream();
        if self.is_lost(gateway) {
            let reply = Box::new(request.unanswered());
            self.after(ANSWER_LIMIT, Event::Reply(gateway, agent, reply));
        } else {
            self.after(LATENCY, Event::Reply(gateway, agent, Box::new(reply)));
        }
    }

    /// Says so on the node's stream, if it has one and there are any.
    pub(super) fn say_that_messages_wait(&mut self, to: NodeId) {
        let mut waiting = self.coordinator.messages.keys();
        let waits = waiting.any(|(recipient, _)| *recipient == to);
        if waits && self.coordinator.streams.contains_key(&to) {
            self.send_on_stream(to, StreamMessage::MessagesWaiting);
        }
    }

    fn send_on_stream(&mut self, to: NodeId, message: StreamMessage) {
        let place = self.gateways.iter().position(|gateway| gateway.id == to);
        let Some(place) = place else { return };
        if self.is_lost(place) {
            // A stream loses nothing: it breaks.
            return self.disconnect(place);
        }
        let agent = self.gateways[place].agent;
        self.after(LATENCY, Event::Stream(place, agent, message));
    }

    /// Tells all streams what they were not told yet.
    pub(super) fn stream(&mut self) {
        if self.coordinator.is_away {
            return;
        }
        let open: Vec<_> = self.coordinator.streams.clone().into_iter().collect();
        let position = self.coordinator.feed.position();
        for (node, since) in open {
            if self.coordinator.node(node).is_none() {
                let reason = ByeReason::Revoked;
                self.send_on_stream(node, StreamMessage::Bye { reason });
                self.coordinator.hang_up(node);
                continue;
            }
            let message = next_message(&self.coordinator.feed, node, since);
            self.coordinator.streams.insert(node, Some(position));
            if let Some(message) = message {
                self.send_on_stream(node, message);
            }
        }
    }

    /// The coordinator dies; it comes back.
    pub(super) fn lose_coordinator(&mut self, time: std::time::Duration) {
        if self.coordinator.is_away {
            return;
        }
        for gateway in 0..self.gateways.len() {
            self.disconnect(gateway);
        }
        self.coordinator.is_away = true;
        self.after(time, Event::Return);
    }
}
