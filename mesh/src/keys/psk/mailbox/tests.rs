use wattle_wire::{ids::Position, psk::PskPolicy, report::DeviceKind, stream::StreamMessage};

use super::*;
use crate::{
    agent::replica::Replica,
    config::{
        directory::{Directory, RecordChange},
        view,
    },
    host::state::ObservedPeer,
    keys::psk::{
        Psk,
        given::{Given, testing::seal},
        kem::seeded::SeededKem,
    },
    testing::{MESH, directory_of, node_id, node_keys_of, snapshot, unmanaged_record},
};

const NODES: u64 = 3;
const NOW: u64 = 1_800_000_000;

struct Node {
    id: NodeId,
    node_keys: NodeKeys,
    replica: Replica,
    messages: PskMailbox,
    disk_is_full: bool,
    now: u64,
}

impl Node {
    fn new(number: u64, directory: &Directory) -> Self {
        let (id, node_keys) = (node_id(number), node_keys_of(number));
        let mut replica = Replica::new(MESH, node_keys.wireguard_key());
        let view = view::view(directory, id).unwrap();
        replica.receive(snapshot(view), 0);
        Self {
            id,
            node_keys,
            replica,
            messages: PskMailbox::default(),
            disk_is_full: false,
            now: NOW,
        }
    }

    /// Its device shows a handshake of that age with a peer, or none.
    fn sees(&mut self, peer: u64, handshake_age_s: Option<u64>) {
        let entry = ObservedPeer {
            handshake_age_s,
            ..ObservedPeer::default()
        };
        let mut interface = Interface::new(DeviceKind::Kernel);
        let key = node_keys_of(peer).wireguard_key();
        interface.peers.insert(key, entry);
        self.step(|messages, known, means| messages.observe(known, &interface, means.now));
    }

    /// Takes a step and keeps what came of it. What the step gave, and whether a key may be another
    /// one now.
    fn step<T>(
        &mut self,
        step: impl FnOnce(&mut PskMailbox, &Known, &Means<'_, SeededKem>) -> T,
    ) -> (T, bool) {
        let means = Means {
            node_keys: &self.node_keys,
            now: self.now,
            kem: &SeededKem,
        };
        let gave = step(&mut self.messages, self.replica.known().unwrap(), &means);
        let is_kept = if self.disk_is_full {
            Err("it is full".to_owned())
        } else {
            Ok(())
        };
        let may_differ = self.messages.to_keep().is_some() && self.messages.kept(is_kept);
        (gave, may_differ)
    }
}

/// What waits, by the recipient and the sender; and how many messages there ever were.
#[derive(Default)]
struct Mailbox {
    messages: BTreeMap<(NodeId, NodeId), IncomingMessage>,
    given: BTreeMap<(NodeId, NodeId), GivenPsk>,
    ever: i64,
}

impl Mailbox {
    fn serve(&mut self, node: NodeId, request: &MailboxRequest) -> MailboxResponse {
        self.messages
            .retain(|(to, _), message| *to != node || !request.taken.contains(&message.id));
        self.given
            .retain(|(to, _), given| *to != node || !request.taken.contains(&given.id));
        for OutgoingMessage { to, message } in &request.leave {
            self.ever += 1;
            self.messages.insert(
                (*to, node),
                IncomingMessage {
                    id: self.ever,
                    from: node,
                    message: message.clone(),
                },
            );
        }
        let messages = self
            .messages
            .iter()
            .filter(|((to, _), _)| *to == node)
            .map(|(_, message)| message.clone())
            .collect();
        let given = self
            .given
            .iter()
            .filter(|((to, _), _)| *to == node)
            .map(|(_, given)| given.clone())
            .collect();
        MailboxResponse {
            messages,
            given,
            more: false,
        }
    }

    /// The coordinator makes a file of an unmanaged node.
    fn give(&mut self, from: u64, to: u64, made_ms: u64, psk: &Psk) {
        let [(from, sender), (to, recipient)] =
            [from, to].map(|number| (node_id(number), node_keys_of(number).wireguard_key()));
        let given = Given {
            mesh: MESH,
            from: (from, sender),
            to: (to, recipient),
            made_ms,
        };
        let sealed = seal(&given, psk);
        self.ever += 1;
        self.given.insert(
            (to, from),
            GivenPsk {
                id: self.ever,
                from,
                made_ms,
                sealed,
            },
        );
    }
}

/// Lets all do what they have to until nobody has anything left to do.
fn settle(nodes: &mut [Node], mailbox: &mut Mailbox) {
    let mut is_quiet = false;
    while !mem::replace(&mut is_quiet, true) {
        for node in &mut *nodes {
            node.step(|messages, known, means| messages.tick(known, means, BTreeSet::new()));
            if mailbox
                .messages
                .keys()
                .chain(mailbox.given.keys())
                .any(|(to, _)| *to == node.id)
            {
                node.messages.messages_are_waiting();
            }
            let Some(request) = node.messages.next_request() else {
                continue;
            };
            let response = mailbox.serve(node.id, &request);
            let (passed_over, may_differ) = node.step(|messages, known, means| {
                messages.take_in(
                    &request,
                    MailboxReply::Response(response),
                    Some(known),
                    means,
                )
            });
            assert!(passed_over.is_empty(), "{passed_over:?}");
            is_quiet &= !may_differ && request.leave.is_empty() && request.taken.is_empty();
        }
    }
}

#[test]
fn all_pairs_agree_with_four_letters_each_and_none_stays() {
    let directory = directory_of(NODES);
    let mut nodes: Vec<_> = (1..=NODES)
        .map(|number| Node::new(number, &directory))
        .collect();
    let mut mailbox = Mailbox::default();
    settle(&mut nodes, &mut mailbox);
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        let key = |of: usize, with: usize| {
            nodes[of]
                .messages
                .exchange()
                .key(nodes[with].id, PskPolicy::Require)
                .cloned()
        };
        assert!(
            key(one, other).is_some() && key(one, other) == key(other, one),
            "{one} and {other}"
        );
    }
    assert!(mailbox.messages.is_empty());
    assert_eq!(mailbox.ever, 4 * 3);
}

#[test]
fn what_cannot_be_kept_is_neither_used_nor_said_and_stays_at_the_coordinator() {
    let directory = directory_of(2);
    let mut nodes: Vec<_> = (1..=2)
        .map(|number| Node::new(number, &directory))
        .collect();
    let mut mailbox = Mailbox::default();
    let initiator = usize::from(nodes[1].id > nodes[0].id);
    nodes[1 - initiator].disk_is_full = true;
    settle(&mut nodes, &mut mailbox);
    assert!(
        nodes
            .iter()
            .all(|node| !node.messages.exchange().has_candidates())
    );
    assert!(nodes[1 - initiator].messages.problem().is_some());
    assert_eq!(
        (mailbox.messages.len(), mailbox.ever),
        (1, 1),
        "the request waits"
    );

    nodes[1 - initiator].disk_is_full = false;
    settle(&mut nodes, &mut mailbox);
    assert!(nodes[1 - initiator].messages.problem().is_none());
    assert!(
        nodes[0]
            .messages
            .exchange()
            .key(nodes[1].id, PskPolicy::Require)
            .is_some()
    );
    assert!(mailbox.messages.is_empty());
}

/// Node 1 has an agent, node 2 has none.
fn with_an_unmanaged_peer() -> Directory {
    let mut directory = directory_of(2);
    directory.apply(&RecordChange::Node(unmanaged_record(2)));
    directory
}

/// What the first node goes by with the second.
fn key(node: &Node) -> Option<Psk> {
    key_with(2, node)
}

fn key_with(peer: u64, node: &Node) -> Option<Psk> {
    let exchange = node.messages.exchange();
    exchange.key(node_id(peer), PskPolicy::Require).cloned()
}

#[test]
fn a_given_key_is_used_and_kept_and_nothing_is_said_to_an_unmanaged_peer() {
    let mut nodes = [Node::new(1, &with_an_unmanaged_peer())];
    let mut mailbox = Mailbox::default();
    settle(&mut nodes, &mut mailbox);
    assert_eq!(
        (
            nodes[0]
                .messages
                .exchange()
                .problems(nodes[0].replica.known().unwrap(), PskPolicy::Require)
                .count(),
            mailbox.ever
        ),
        (1, 0)
    );
    let [first, second] = [1, 2].map(|byte| Psk::new([byte; 32]));
    mailbox.give(2, 1, 1, &first);
    settle(&mut nodes, &mut mailbox);
    assert!(key(&nodes[0]) == Some(first.clone()) && mailbox.given.is_empty());
    assert_eq!(
        nodes[0]
            .messages
            .exchange()
            .problems(nodes[0].replica.known().unwrap(), PskPolicy::Require)
            .count(),
        0
    );

    let kept = serde_json::to_string(&nodes[0].messages.exchange().kept()).unwrap();
    nodes[0].messages = PskMailbox::new(serde_json::from_str(&kept).unwrap(), None);
    assert!(
        key(&nodes[0]) == Some(first.clone()) && !nodes[0].messages.exchange().has_candidates()
    );
    // The next file: the key in use stays for a turn, and nobody asks for another one.
    mailbox.give(2, 1, 2, &second);
    nodes[0].messages.want_others();
    settle(&mut nodes, &mut mailbox);
    assert!(key(&nodes[0]) == Some(first) && nodes[0].messages.exchange().has_candidates());
    assert_eq!(
        (mailbox.given.len(), mailbox.messages.len(), mailbox.ever),
        (0, 0, 2)
    );
}

#[test]
fn a_given_key_stays_at_the_coordinator_until_the_view_holds_its_node_and_it_is_kept() {
    let mut nodes = [Node::new(1, &directory_of(1))];
    let (mut mailbox, psk) = (Mailbox::default(), Psk::new([7; 32]));
    mailbox.give(2, 1, 1, &psk);
    settle(&mut nodes, &mut mailbox);
    assert_eq!((key(&nodes[0]), mailbox.given.len()), (None, 1));
    // Whoever dies now gets it again.
    nodes[0].messages = PskMailbox::default();
    settle(&mut nodes, &mut mailbox);
    nodes[0].disk_is_full = true;
    let view = view::view(&with_an_unmanaged_peer(), node_id(1)).unwrap();
    nodes[0].replica.receive(
        StreamMessage::Snapshot {
            position: Position {
                epoch: 1,
                revision: 2,
            },
            view,
            removed: vec![],
        },
        0,
    );
    settle(&mut nodes, &mut mailbox);
    assert_eq!((key(&nodes[0]), mailbox.given.len()), (None, 1));
    assert!(nodes[0].messages.problem().is_some());
    nodes[0].disk_is_full = false;
    settle(&mut nodes, &mut mailbox);
    assert!(key(&nodes[0]) == Some(psk) && mailbox.given.is_empty());
}

#[test]
fn a_key_is_given_for_tunnels_with_unmanaged_nodes_alone_and_to_the_present_wireguard_key() {
    let managed = directory_of(2);
    for (directory, sealed_for, expected) in [
        (managed, 1, Ignored::Managed),
        (with_an_unmanaged_peer(), 3, Ignored::Sealed),
    ] {
        let (mut node, mut mailbox) = (Node::new(1, &directory), Mailbox::default());
        mailbox.give(2, sealed_for, 1, &Psk::new([7; 32]));
        let given = mailbox.given.into_values().collect();
        let request = MailboxRequest {
            leave: vec![],
            taken: vec![],
        };
        let response = MailboxReply::Response(MailboxResponse {
            messages: vec![],
            given,
            more: false,
        });
        let (passed_over, _) = node.step(|messages, known, means| {
            messages.take_in(&request, response, Some(known), means)
        });
        assert_eq!(
            passed_over
                .iter()
                .map(|(_, reason)| *reason)
                .collect::<Vec<_>>(),
            [expected]
        );
        assert_eq!(
            (
                key(&node),
                node.messages.next_request().map(|request| request.taken)
            ),
            (None, Some(vec![1]))
        );
    }
}

#[test]
fn a_message_that_is_refused_keeps_no_other_from_being_left() {
    let directory = directory_of(NODES);
    let mut node = Node::new(NODES, &directory);
    node.step(|messages, known, means| messages.tick(known, means, BTreeSet::new()));
    let request = node.messages.next_request().unwrap();
    let to = |request: &MailboxRequest| -> Vec<_> {
        request.leave.iter().map(|message| message.to).collect()
    };
    assert_eq!(to(&request), [node_id(1), node_id(2)]);
    let refused = MailboxReply::Refused(Some(0));
    node.step(|messages, known, means| messages.take_in(&request, refused, Some(known), means));
    let request = node.messages.next_request().unwrap();
    assert_eq!(to(&request), [node_id(2)]);
    // A refusal that names none is of all.
    let refused = MailboxReply::Refused(None);
    node.step(|messages, known, means| messages.take_in(&request, refused, Some(known), means));
    assert!(node.messages.next_request().is_none());
}

#[test]
fn a_peer_of_whose_new_wireguard_key_no_handshake_has_succeeded_gets_a_first_key_and_no_other() {
    let directory = directory_of(2);
    let unsettled = || BTreeSet::from([node_id(1)]);
    let mut nodes = [Node::new(1, &directory), Node::new(2, &directory)];
    let ask = |node: &mut Node| {
        node.step(|messages, known, means| messages.tick(known, means, unsettled()));
        node.messages.next_request().is_some()
    };
    assert!(ask(&mut nodes[1]), "there is no first key");
    settle(&mut nodes, &mut Mailbox::default());
    nodes[1].messages.want_others();
    assert!(!ask(&mut nodes[1]), "the key is changed");
    nodes[1].step(|messages, known, means| messages.tick(known, means, BTreeSet::new()));
    assert!(nodes[1].messages.next_request().is_some());
}

#[test]
fn another_key_is_agreed_on_once_with_a_peer_with_which_there_is_no_session_whichever_end_finds_it()
{
    const LIVE: Option<u64> = Some(170);
    for (finder, peer) in [(0, 2), (1, 1)] {
        let directory = directory_of(2);
        let mut nodes = [Node::new(1, &directory), Node::new(2, &directory)];
        let mut mailbox = Mailbox::default();
        settle(&mut nodes, &mut mailbox);
        let first = key(&nodes[0]);
        let mut sees_later = |seconds, handshake_age_s| {
            nodes.iter_mut().for_each(|node| node.now += seconds);
            nodes[finder].sees(peer, handshake_age_s);
            settle(&mut nodes, &mut mailbox);
            assert_eq!(key(&nodes[0]), key_with(1, &nodes[1]));
            key(&nodes[0])
        };
        assert_eq!(sees_later(100, LIVE), first);
        assert_eq!(sees_later(1, None), first);
        assert_eq!(sees_later(WITHOUT_SESSION_S - 1, None), first);
        let second = sees_later(1, None);
        assert!(second != first, "the key stays");
        assert_eq!(
            sees_later(100, None),
            second,
            "the link is down for another reason"
        );
        assert_eq!(sees_later(100, LIVE), second);
        assert_eq!(sees_later(100, Some(200)), second);
        assert!(sees_later(WITHOUT_SESSION_S, Some(215)) != second);
    }
}

#[test]
fn without_keepalives_a_tunnel_that_nobody_uses_gets_no_other_key() {
    let mut directory = directory_of(2);
    directory.mesh.keepalive_s = 0;
    let mut nodes = [Node::new(1, &directory), Node::new(2, &directory)];
    settle(&mut nodes, &mut Mailbox::default());
    for seconds in [0, 100] {
        nodes[1].now = NOW + seconds;
        nodes[1].sees(1, None);
        nodes[1].step(|messages, known, means| messages.tick(known, means, BTreeSet::new()));
        assert!(nodes[1].messages.next_request().is_none());
    }
}
