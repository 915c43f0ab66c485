//! The agent's half of the stream: its own copy of the view, which believes only what holds together and what the nodes themselves signed.

mod claims;
#[cfg(test)]
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    enrol::Statement,
    ids::{MeshId, NodeId, Position},
    key::{IdentityKey, WireguardKey},
    name::Name,
    peer::{MeshSettings, Myself, Peer, View},
    stream::{ByeReason, StreamMessage, ViewChange},
    subnet::{InvalidSubnet, Subnet},
};

pub(crate) use self::claims::prefixes;
use self::claims::{Claims, Contradiction};
use crate::admit::{InvalidStatement, verify_statement};

/// What a node knows of its mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub position: Position,
    pub mesh: MeshSettings,
    pub myself: Myself,
    pub peers: BTreeMap<NodeId, KnownPeer>,
}

/// A peer with what it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    pub peer: Peer,
    pub statement: Statement,
}

/// [`Known`] as it is kept on disk, with all that must outlive a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub position: Position,
    pub view: View,
    /// Peers of the view whose removal waits to be confirmed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held: BTreeSet<NodeId>,
    /// What peers that were removed are pinned to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub departed: BTreeMap<NodeId, Pin>,
}

/// Who a node is, from first sight on: nobody else can take its place, nor can an old key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub identity: IdentityKey,
    /// Number of the newest statement seen.
    pub sequence: u64,
}

/// A node's copy of its view.
#[derive(Clone, Debug)]
pub struct Replica {
    mesh: MeshId,
    own_key: WireguardKey,
    known: Option<Known>,
    /// Who of `known` holds which key and prefix.
    claims: Claims,
    /// A message was missed or rejected: what follows it says nothing until a snapshot comes.
    out_of_step: bool,
    /// Records of peers that were not believed, and still are what the coordinator says.
    refused: BTreeMap<NodeId, Refusal>,
    rejected: Option<Rejection>,
    /// Peers whose removal waits to be confirmed; they stay.
    held: BTreeSet<NodeId>,
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

/// A peer whose new record is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub name: Name,
    pub reason: RefusalReason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {} refused: {}", self.name, self.reason)
    }
}

/// Why a peer's new record is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RefusalReason {
    #[error(transparent)]
    Statement(#[from] InvalidStatement),
    #[error("it is signed by another identity than the one known")]
    Identity,
    #[error("its statement is older than the one known")]
    Older,
    #[error("it claims a prefix that no site can have: {0}")]
    Prefix(#[from] InvalidSubnet),
}

/// Why a whole revision is not carried out: the kernel would take it silently, and move traffic to the wrong peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    #[error("the view is of another mesh")]
    Mesh,
    #[error("peer {0} has this node's own key")]
    OwnKey(Name),
    #[error("peers {0} and {1} have the same key")]
    SameKey(Name, Name),
    #[error("{0} is claimed by {1} and lies in {2} of {3}")]
    Overlap(IpNet, Name, IpNet, Name),
}

impl Replica {
    pub fn new(mesh: MeshId, own_key: WireguardKey) -> Self {
        Self {
            mesh,
            own_key,
            known: None,
            claims: Claims::default(),
            out_of_step: false,
            refused: BTreeMap::new(),
            rejected: None,
            held: BTreeSet::new(),
            departed: BTreeMap::new(),
        }
    }

    /// Takes up what was kept on disk, as far as it holds. Returns what was refused.
    ///
    /// # Errors
    ///
    /// [`Rejection`] when it contradicts itself; the replica then knows nothing.
    pub fn restore(&mut self, stored: Stored) -> Result<Vec<Refusal>, Rejection> {
        self.departed = stored.departed;
        let message = StreamMessage::Snapshot { position: stored.position, view: stored.view, removed: Vec::new() };
        let refused = match self.receive(message) {
            Received::Changed { refused } => refused,
            Received::Rejected(rejection) => return Err(rejection),
            Received::Unchanged | Received::Gap | Received::Bye(_) => Vec::new(),
        };
        self.held = stored.held;
        Ok(refused)
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
        let rejected = self.rejected.iter().map(|rejection| format!("the newest revision was rejected: {rejection}"));
        let held = (!self.held.is_empty()).then(|| {
            let (held, all) = (self.held.len(), self.known.as_ref().map_or(0, |known| known.peers.len()));
            format!("{held} of {all} peers are to be removed at once, and stay until `wattle-agent confirm` is run on the gateway")
        });
        rejected.chain(held).chain(self.refused.values().map(ToString::to_string))
    }

    /// Peers whose removal waits to be confirmed.
    pub fn held(&self) -> &BTreeSet<NodeId> {
        &self.held
    }

    /// Removes the peers of these whose removal was held. Whether there were any.
    pub fn confirm(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let confirmed: BTreeSet<_> = self.held.intersection(nodes).copied().collect();
        self.held.retain(|node| !confirmed.contains(node));
        confirmed.iter().for_each(|node| self.remove(*node));
        !confirmed.is_empty()
    }

    /// How far the copy has come.
    pub fn position(&self) -> Option<Position> {
        self.known.as_ref().map(|known| known.position)
    }

    /// What to keep on disk.
    pub fn stored(&self) -> Option<Stored> {
        let known = self.known.as_ref()?;
        let peers = known.peers.values().map(|known| known.peer.clone()).collect();
        let view = View { mesh: known.mesh.clone(), myself: known.myself.clone(), peers };
        Some(Stored { position: known.position, view, held: self.held.clone(), departed: self.departed.clone() })
    }

    /// Takes in a message. A removal is always explicit: a peer that is merely absent from a snapshot stays.
    pub fn receive(&mut self, message: StreamMessage) -> Received {
        match message {
            StreamMessage::Snapshot { position, view, removed } => self.snapshot(position, view, removed),
            StreamMessage::Delta { since, position, changes } => match &self.known {
                Some(known) if known.position == since && !self.out_of_step => {
                    let next = Draft::new(known.mesh.clone(), known.myself.clone());
                    self.take_in(position, next, changes)
                }
                Some(_) | None => self.gap(),
            },
            StreamMessage::Heartbeat { position } => match &mut self.known {
                Some(known) if !self.out_of_step => {
                    known.position = position;
                    Received::Unchanged
                }
                Some(_) | None => self.gap(),
            },
            StreamMessage::Bye { reason } => {
                if let (ByeReason::Revoked, Some(known)) = (reason, &self.known) {
                    // The tombstone of the node itself, and so of all its peers. Those have dropped it if it is true, and if it is not, the
                    // tunnels are worth keeping.
                    let all: BTreeSet<_> = known.peers.keys().copied().collect();
                    if must_be_confirmed(all.len(), all.len()) {
                        self.held = all;
                    } else {
                        all.into_iter().for_each(|node| self.remove(node));
                    }
                }
                Received::Bye(reason)
            }
            StreamMessage::Mail | StreamMessage::Unknown => Received::Unchanged,
        }
    }

    fn gap(&mut self) -> Received {
        self.out_of_step = true;
        Received::Gap
    }

    fn snapshot(&mut self, position: Position, view: View, removed: Vec<NodeId>) -> Received {
        let removed = removed.into_iter().map(ViewChange::PeerRemoved);
        let changes = view.peers.into_iter().map(ViewChange::Peer).chain(removed).collect();
        self.take_in(position, Draft::new(view.mesh, view.myself), changes)
    }

    /// Costs what the changes touch, whatever the size of the view.
    fn take_in(&mut self, position: Position, mut next: Draft, changes: Vec<ViewChange>) -> Received {
        let mut news = Vec::new();
        for change in changes {
            match change {
                ViewChange::Peer(peer) => match believe(&peer, self.mesh, self.peer_in(&next, peer.node), self.pin(peer.node)) {
                    Ok(statement) => {
                        next.refused.insert(peer.node, None);
                        next.peers.insert(peer.node, Some(KnownPeer { peer, statement }));
                    }
                    Err(reason) => {
                        let refusal = Refusal { name: peer.name, reason };
                        news.push(refusal.clone());
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
        self.hold(&mut next);
        if let Err(rejection) = self.claim(&next) {
            // A revision that is rejected is rare: making the claims anew is simpler than to undo some of them.
            self.claims = self.known.as_ref().map(Claims::of).unwrap_or_default();
            self.out_of_step = true;
            self.rejected = Some(rejection.clone());
            return Received::Rejected(rejection);
        }
        self.adopt(position, next);
        (self.rejected, self.out_of_step) = (None, false);
        Received::Changed { refused: news }
    }

    /// Keeps the peers that are not to go without being asked about: those of a message that removes more than half of all, and those of
    /// earlier ones.
    fn hold(&self, next: &mut Draft) {
        let Some(known) = &self.known else { return };
        let goes = |(node, peer): (&NodeId, &Option<KnownPeer>)| (peer.is_none() && known.peers.contains_key(node)).then_some(*node);
        let (again, new): (BTreeSet<_>, BTreeSet<_>) = next.peers.iter().filter_map(goes).partition(|node| self.held.contains(node));
        if must_be_confirmed(new.len(), known.peers.len()) {
            next.held = new;
        }
        next.peers.retain(|node, _| !again.contains(node) && !next.held.contains(node));
    }

    /// What a node is pinned to, whether it is a peer now or was one once.
    fn pin(&self, node: NodeId) -> Option<Pin> {
        let known = self.known.as_ref().and_then(|known| known.peers.get(&node));
        known.map(Pin::of).or_else(|| self.departed.get(&node).copied())
    }

    fn remove(&mut self, node: NodeId) {
        if let Some(peer) = self.known.as_mut().and_then(|known| known.peers.remove(&node)) {
            self.claims.give_up_peer(&peer);
            self.departed.insert(node, Pin::of(&peer));
        }
    }

    fn peer_in<'a>(&'a self, next: &'a Draft, node: NodeId) -> Option<&'a KnownPeer> {
        match next.peers.get(&node) {
            Some(touched) => touched.as_ref(),
            None => self.known.as_ref()?.peers.get(&node),
        }
    }

    /// Moves the claims on to what is next: first all that is given up, then all that is taken, so that two peers can swap.
    fn claim(&mut self, next: &Draft) -> Result<(), Rejection> {
        if next.mesh.id != self.mesh {
            return Err(Rejection::Mesh);
        }
        let moved = self.known.as_ref().is_none_or(|known| known.myself != next.myself);
        if let Some(known) = &self.known {
            next.peers.keys().filter_map(|node| known.peers.get(node)).for_each(|peer| self.claims.give_up_peer(peer));
            if moved {
                self.claims.give_up_own(&known.myself);
            }
        }
        let mut peers = next.peers.values().flatten();
        if let Some(own) = peers.clone().find(|peer| peer.statement.wireguard_key == self.own_key) {
            return Err(Rejection::OwnKey(own.peer.name.clone()));
        }
        let own = if moved { self.claims.take_own(&next.myself) } else { Ok(()) };
        let taken = own.and_then(|()| peers.try_for_each(|peer| self.claims.take_peer(peer)));
        taken.map_err(|contradiction| {
            let name = |node| match self.peer_in(next, node) {
                Some(known) if node != next.myself.node => known.peer.name.clone(),
                Some(_) | None => next.myself.name.clone(),
            };
            match contradiction {
                Contradiction::Key { holder, claimant } => Rejection::SameKey(name(holder), name(claimant)),
                Contradiction::Prefix { held, holder, claimed, claimant } => {
                    Rejection::Overlap(claimed, name(claimant), held, name(holder))
                }
            }
        })
    }

    fn adopt(&mut self, position: Position, next: Draft) {
        let Draft { mesh, myself, peers, refused, held } = next;
        self.held.retain(|node| !peers.contains_key(node));
        self.held.extend(held);
        let gone = peers.iter().filter(|(_, peer)| peer.is_none()).filter_map(|(node, _)| Some((*node, self.pin(*node)?)));
        self.departed.extend(gone.collect::<Vec<_>>());
        let known = match &mut self.known {
            Some(known) => {
                (known.position, known.mesh, known.myself) = (position, mesh, myself);
                known
            }
            None => self.known.insert(Known { position, mesh, myself, peers: BTreeMap::new() }),
        };
        put(&mut known.peers, peers);
        put(&mut self.refused, refused);
    }
}

/// What a message makes of the view, until it is clear that it holds together.
struct Draft {
    mesh: MeshSettings,
    myself: Myself,
    /// Peers that it touches; `None` for those that go.
    peers: BTreeMap<NodeId, Option<KnownPeer>>,
    refused: BTreeMap<NodeId, Option<Refusal>>,
    /// Peers that were to go and stay for now.
    held: BTreeSet<NodeId>,
}

impl Draft {
    fn new(mesh: MeshSettings, myself: Myself) -> Self {
        Self { mesh, myself, peers: BTreeMap::new(), refused: BTreeMap::new(), held: BTreeSet::new() }
    }
}

/// Writes entries, and takes those away that are `None`.
fn put<V>(map: &mut BTreeMap<NodeId, V>, entries: BTreeMap<NodeId, Option<V>>) {
    for (node, entry) in entries {
        match entry {
            Some(value) => map.insert(node, value),
            None => map.remove(&node),
        };
    }
}

/// Whether a removal of so many of all peers at once waits for somebody: an empty database looks the same as an intended farewell. One peer
/// alone always goes.
fn must_be_confirmed(removed: usize, all: usize) -> bool {
    removed > 1 && removed * 2 > all
}

/// The statement of a peer's record, if all of the record can be believed. `known` is the record that it follows; a peer without one, that
/// was removed before, is still pinned.
fn believe(peer: &Peer, mesh: MeshId, known: Option<&KnownPeer>, pin: Option<Pin>) -> Result<Statement, RefusalReason> {
    for prefix in &peer.subnets {
        Subnet::try_from(*prefix)?;
    }
    if let Some(known) = known
        && known.peer.statement == peer.statement
    {
        return Ok(known.statement.clone());
    }
    let statement = verify_statement(&peer.statement, mesh)?;
    // Nobody signs two statements of one number; who was removed may come back with his last one.
    let is_old = |sequence| if known.is_some() { statement.sequence <= sequence } else { statement.sequence < sequence };
    match known.map(Pin::of).or(pin) {
        Some(pin) if pin.identity != statement.identity => Err(RefusalReason::Identity),
        Some(pin) if is_old(pin.sequence) => Err(RefusalReason::Older),
        Some(_) | None => Ok(statement),
    }
}

impl Pin {
    fn of(known: &KnownPeer) -> Self {
        Self { identity: known.statement.identity, sequence: known.statement.sequence }
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::enrol::SignedStatement;

    use super::*;
    use crate::{
        directory::RecordChange,
        feed::Feed,
        testing::{Keys, MESH, directory_of, next_message, node_id},
        view,
    };

    /// Node 1's replica and the feed it follows, in a mesh of three.
    pub(super) fn world() -> (Replica, Feed) {
        let feed = Feed::new(directory_of(3), Position { epoch: 1, revision: 10 }, []);
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        let message = next(&feed, replica.position());
        assert_eq!(replica.receive(message), Received::Changed { refused: vec![] });
        (replica, feed)
    }

    fn next(feed: &Feed, since: Option<Position>) -> StreamMessage {
        next_message(feed, node_id(1), since).unwrap()
    }

    fn peers(replica: &Replica) -> Vec<Peer> {
        replica.stored().unwrap().view.peers
    }

    #[test]
    fn a_removed_peer_goes_and_an_absent_one_stays() {
        let (mut replica, mut feed) = world();
        let before = peers(&replica);
        let mut shrunken = view::view(feed.directory(), node_id(1)).unwrap();
        shrunken.peers.clear();
        let snapshot = StreamMessage::Snapshot { position: feed.position(), view: shrunken, removed: vec![] };
        assert_eq!(replica.receive(snapshot), Received::Changed { refused: vec![] });
        assert_eq!(peers(&replica), before);

        feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))]).unwrap();
        assert_eq!(replica.receive(next(&feed, replica.position())), Received::Changed { refused: vec![] });
        assert_eq!(peers(&replica).iter().map(|peer| peer.node).collect::<Vec<_>>(), [node_id(3)]);
    }

    /// Node 1's replica in a mesh of five, and the feed it follows.
    fn larger_world() -> (Replica, Feed) {
        let feed = Feed::new(directory_of(5), Position { epoch: 1, revision: 10 }, []);
        let mut replica = Replica::new(MESH, Keys::of(1).wireguard_key());
        replica.receive(next(&feed, None));
        (replica, feed)
    }

    fn kept(replica: &Replica) -> Replica {
        let mut kept = Replica::new(MESH, Keys::of(1).wireguard_key());
        let stored = serde_json::from_str(&serde_json::to_string(&replica.stored().unwrap()).unwrap()).unwrap();
        assert_eq!(kept.restore(stored), Ok(vec![]));
        kept
    }

    #[test]
    fn e4_a_removal_of_more_than_half_of_all_peers_is_held_until_it_is_confirmed() {
        let (mut replica, mut feed) = larger_world();
        let before = peers(&replica);
        feed.advance(11, &[2, 3, 4].map(|number| RecordChange::NodeRevoked(node_id(number)))).unwrap();
        assert_eq!(replica.receive(next(&feed, replica.position())), Received::Changed { refused: vec![] });
        assert_eq!(peers(&replica), before);
        assert_eq!(replica.position(), Some(feed.position()));
        let problem = "3 of 4 peers are to be removed at once, and stay until `wattle-agent confirm` is run on the gateway";
        let mut replica = kept(&replica);
        assert_eq!(replica.problems().collect::<Vec<_>>(), [problem]);
        assert!(!replica.confirm(&[node_id(5)].into()), "of another peer nobody asked");
        assert!(replica.confirm(&replica.held().clone()));
        assert_eq!(peers(&replica).iter().map(|peer| peer.node).collect::<Vec<_>>(), [node_id(5)]);
        assert_eq!(replica.problems().count(), 0);
    }

    #[test]
    fn e4_half_of_all_peers_and_the_last_one_go_at_once() {
        let (mut replica, mut feed) = larger_world();
        for numbers in [&[2, 3][..], &[4], &[5]] {
            let revision = feed.position().revision + 1;
            feed.advance(revision, &numbers.iter().map(|number| RecordChange::NodeRevoked(node_id(*number))).collect::<Vec<_>>()).unwrap();
            replica.receive(next(&feed, replica.position()));
            assert!(peers(&replica).iter().all(|peer| numbers.iter().all(|number| peer.node != node_id(*number))));
        }
    }

    #[test]
    fn e4_a_held_removal_is_off_when_the_coordinator_has_the_peers_again() {
        let (mut replica, mut feed) = larger_world();
        let whole = next(&feed, None);
        feed.advance(11, &[2, 3, 4].map(|number| RecordChange::NodeRevoked(node_id(number)))).unwrap();
        replica.receive(next(&feed, replica.position()));
        assert_eq!(replica.receive(whole), Received::Changed { refused: vec![] });
        assert_eq!((replica.held().len(), peers(&replica).len()), (0, 4));
    }

    #[test]
    fn e2_a_peer_that_was_removed_comes_back_as_it_was_or_not_at_all() {
        let (mut replica, mut feed) = world();
        let second = peers(&replica)[0].clone();
        feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))]).unwrap();
        replica.receive(next(&feed, replica.position()));
        let come_back = |replica: &mut Replica, statement| {
            let since = replica.position().unwrap();
            let peer = Peer { statement, ..second.clone() };
            replica.receive(StreamMessage::Delta { since, position: since, changes: vec![ViewChange::Peer(peer)] })
        };
        let mut replica = kept(&replica);
        let refused = vec![Refusal { name: second.name.clone(), reason: RefusalReason::Identity }];
        assert_eq!(come_back(&mut replica, Keys::of(66).statement(9)), Received::Changed { refused });
        assert_eq!(come_back(&mut replica, second.statement.clone()), Received::Changed { refused: vec![] });
        assert_eq!(peers(&replica).len(), 2);

        // Nor does it help to remove and add it in one breath.
        let since = replica.position().unwrap();
        let swapped = Peer { statement: Keys::of(66).statement(9), ..second.clone() };
        let changes = vec![ViewChange::PeerRemoved(second.node), ViewChange::Peer(swapped)];
        let refused = vec![Refusal { name: second.name, reason: RefusalReason::Identity }];
        assert_eq!(replica.receive(StreamMessage::Delta { since, position: since, changes }), Received::Changed { refused });
        assert_eq!(peers(&replica).iter().map(|peer| peer.node).collect::<Vec<_>>(), [node_id(3)]);
    }

    #[test]
    fn e1_a_peer_that_claims_what_can_be_nobodys_lan_is_refused_and_its_old_record_stays() {
        let (mut replica, _) = world();
        let before = peers(&replica);
        for claim in ["0.0.0.0/0", "::/0", "0.0.0.0/1", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "10.2.0.1/24"] {
            let peer = Peer { subnets: vec![claim.parse().unwrap()], ..before[0].clone() };
            let since = replica.position().unwrap();
            let received = replica.receive(StreamMessage::Delta { since, position: since, changes: vec![ViewChange::Peer(peer)] });
            assert!(matches!(received, Received::Changed { refused } if refused.len() == 1), "{claim}");
            assert_eq!(peers(&replica), before);
        }
    }

    #[test]
    fn a_revoked_node_has_no_peers_once_that_is_confirmed_and_any_other_end_of_the_stream_changes_nothing() {
        let (mut replica, _) = world();
        let before = peers(&replica);
        for reason in [ByeReason::Shutdown, ByeReason::Superseded, ByeReason::Unknown] {
            assert_eq!(replica.receive(StreamMessage::Bye { reason }), Received::Bye(reason));
            assert_eq!(peers(&replica), before);
        }
        assert_eq!(replica.receive(StreamMessage::Bye { reason: ByeReason::Revoked }), Received::Bye(ByeReason::Revoked));
        assert_eq!(peers(&replica), before);
        assert!(replica.confirm(&replica.held().clone()));
        assert_eq!(peers(&replica), []);
    }

    #[test]
    fn a_delta_that_does_not_follow_is_a_gap() {
        let (mut replica, mut feed) = world();
        feed.advance(11, &[RecordChange::NodeRevoked(node_id(2))]).unwrap();
        let missed = feed.position();
        feed.advance(12, &[RecordChange::NodeRevoked(node_id(3))]).unwrap();
        let before = replica.stored().unwrap().view;
        let mut deaf = replica.clone();
        assert_eq!(deaf.receive(next(&feed, Some(missed))), Received::Gap);
        assert_eq!(deaf.stored().unwrap().view, before);
        let once = next(&feed, replica.position());
        assert_eq!(replica.receive(once.clone()), Received::Changed { refused: vec![] });
        let mut twice = replica.clone();
        assert_eq!(twice.receive(once), Received::Gap, "the same delta once more");
        assert_eq!(twice.resume_from(), None);
        let mut empty = Replica::new(MESH, Keys::of(1).wireguard_key());
        assert_eq!(empty.receive(StreamMessage::Heartbeat { position: missed }), Received::Gap);
    }

    #[test]
    fn a_key_that_its_node_did_not_sign_is_refused_and_the_old_one_stays() {
        let (mut replica, feed) = world();
        let before = peers(&replica);
        let peer_with = |statement: SignedStatement| {
            let peer = Peer { statement, ..before[0].clone() };
            let since = feed.position();
            StreamMessage::Delta { since, position: since, changes: vec![ViewChange::Peer(peer)] }
        };
        let swapped = Keys { identity: Keys::of(2).identity, wireguard: Keys::of(66).wireguard };
        let mut forged = swapped.statement(2);
        forged.signature = before[0].statement.signature;
        for (statement, reason) in [
            (forged, RefusalReason::Statement(InvalidStatement::Signature)),
            (Keys::of(66).statement(2), RefusalReason::Identity),
            (swapped.statement(1), RefusalReason::Older),
        ] {
            let refused = vec![Refusal { name: before[0].name.clone(), reason }];
            assert_eq!(replica.receive(peer_with(statement)), Received::Changed { refused });
            assert_eq!(peers(&replica), before);
            let unrelated = StreamMessage::Delta { since: feed.position(), position: feed.position(), changes: vec![] };
            assert_eq!(replica.receive(unrelated), Received::Changed { refused: vec![] });
            assert_eq!(replica.problems().count(), 1, "it is told until the coordinator says something better");
        }
        assert_eq!(replica.receive(peer_with(swapped.statement(2))), Received::Changed { refused: vec![] });
        assert_eq!(replica.problems().count(), 0);
        assert_ne!(peers(&replica), before);
    }

    #[test]
    fn a_revision_that_contradicts_itself_changes_nothing() {
        let (replica, feed) = world();
        let before = peers(&replica);
        let since = feed.position();
        let receive = |change: Peer| {
            let mut replica = replica.clone();
            let position = Position { revision: since.revision + 1, ..since };
            let received = replica.receive(StreamMessage::Delta { since, position, changes: vec![ViewChange::Peer(change)] });
            assert_eq!(peers(&replica), before);
            // What the coordinator says after it relies on what was rejected.
            assert_eq!(replica.receive(StreamMessage::Heartbeat { position }), Received::Gap);
            assert_eq!((replica.position(), replica.resume_from()), (Some(since), None));
            assert!(replica.problems().next().is_some());
            assert_eq!(replica.receive(next(&feed, replica.resume_from())), Received::Changed { refused: vec![] });
            assert_eq!((replica.resume_from(), replica.problems().count()), (Some(since), 0));
            received
        };
        let [second, third] = [before[0].clone(), before[1].clone()];
        let own_key = Peer { node: node_id(9), statement: Keys::of(1).statement(1), ..second.clone() };
        assert_eq!(receive(own_key), Received::Rejected(Rejection::OwnKey(second.name.clone())));
        let same_key = Peer { node: node_id(9), ..second.clone() };
        assert!(matches!(receive(same_key), Received::Rejected(Rejection::SameKey(..))));
        let same_prefix = Peer { subnets: second.subnets, ..third.clone() };
        assert!(matches!(receive(same_prefix), Received::Rejected(Rejection::Overlap(..))));
        let inside = Peer { subnets: vec!["10.2.0.128/25".parse().unwrap(), "10.77.0.0/24".parse().unwrap()], ..third.clone() };
        assert!(matches!(receive(inside), Received::Rejected(Rejection::Overlap(..))));
        let own_lan = Peer { subnets: vec!["10.1.0.0/24".parse().unwrap()], ..third };
        assert!(matches!(receive(own_lan), Received::Rejected(Rejection::Overlap(..))));
    }
}
