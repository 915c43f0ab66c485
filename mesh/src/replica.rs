//! The agent's half of the stream: its own copy of the view, which believes only what holds together and what the nodes themselves signed.

mod claims;
#[cfg(test)]
mod properties;

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    enrol::Statement,
    ids::{MeshId, NodeId, Position},
    key::WireguardKey,
    name::Name,
    peer::{MeshSettings, Myself, Peer, View},
    stream::{ByeReason, StreamMessage, ViewChange},
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

/// [`Known`] as it is kept on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub position: Position,
    pub view: View,
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
        Self { mesh, own_key, known: None, claims: Claims::default(), out_of_step: false, refused: BTreeMap::new(), rejected: None }
    }

    /// Takes up what was kept on disk, as far as it holds. Returns what was refused.
    ///
    /// # Errors
    ///
    /// [`Rejection`] when it contradicts itself; the replica then knows nothing.
    pub fn restore(&mut self, stored: Stored) -> Result<Vec<Refusal>, Rejection> {
        let message = StreamMessage::Snapshot { position: stored.position, view: stored.view, removed: Vec::new() };
        match self.receive(message) {
            Received::Changed { refused } => Ok(refused),
            Received::Rejected(rejection) => Err(rejection),
            Received::Unchanged | Received::Gap | Received::Bye(_) => Ok(Vec::new()),
        }
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
        rejected.chain(self.refused.values().map(ToString::to_string))
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
        Some(Stored { position: known.position, view })
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
                if let (ByeReason::Revoked, Some(known)) = (reason, &mut self.known) {
                    // The tombstone of the node itself: it has no peers any more, as they do not have it.
                    known.peers.clear();
                    self.claims = Claims::of(known);
                }
                Received::Bye(reason)
            }
            StreamMessage::Unknown => Received::Unchanged,
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
                ViewChange::Peer(peer) => match believe(&peer, self.mesh, self.peer_in(&next, peer.node)) {
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
        let Draft { mesh, myself, peers, refused } = next;
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
}

impl Draft {
    fn new(mesh: MeshSettings, myself: Myself) -> Self {
        Self { mesh, myself, peers: BTreeMap::new(), refused: BTreeMap::new() }
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

fn believe(peer: &Peer, mesh: MeshId, known: Option<&KnownPeer>) -> Result<Statement, RefusalReason> {
    if let Some(known) = known
        && known.peer.statement == peer.statement
    {
        return Ok(known.statement.clone());
    }
    let statement = verify_statement(&peer.statement, mesh)?;
    match known {
        Some(known) if known.statement.identity != statement.identity => Err(RefusalReason::Identity),
        Some(known) if known.statement.sequence >= statement.sequence => Err(RefusalReason::Older),
        Some(_) | None => Ok(statement),
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

    #[test]
    fn a_revoked_node_has_no_peers_and_any_other_end_of_the_stream_changes_nothing() {
        let (mut replica, _) = world();
        let before = peers(&replica);
        for reason in [ByeReason::Shutdown, ByeReason::Superseded, ByeReason::Unknown] {
            assert_eq!(replica.receive(StreamMessage::Bye { reason }), Received::Bye(reason));
            assert_eq!(peers(&replica), before);
        }
        assert_eq!(replica.receive(StreamMessage::Bye { reason: ByeReason::Revoked }), Received::Bye(ByeReason::Revoked));
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
