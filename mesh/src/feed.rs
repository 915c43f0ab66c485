//! The coordinator's half of the stream: what to send to a node that knows the mesh up to some position.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use wattle_wire::{
    ids::{NodeId, Position},
    stream::{StreamMessage, ViewChange},
};

use crate::{
    directory::{Directory, RecordChange},
    view,
};

/// Revisions of which the feed remembers what they touched; a node that is further behind gets a snapshot.
const REMEMBERED: usize = 100_000;

/// The directory at its newest position, and what each recent revision touched.
#[derive(Debug)]
pub struct Feed {
    directory: Directory,
    position: Position,
    /// Revision → what it touched. Every revision from the first key to the position is there.
    touched: BTreeMap<i64, Touched>,
}

/// What one revision touched.
#[derive(Debug, Default)]
struct Touched {
    /// The mesh's settings.
    mesh: bool,
    nodes: BTreeSet<NodeId>,
}

/// The revision does not follow the one before it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("revision {got} does not follow {have}")]
pub struct Gap {
    pub have: i64,
    pub got: i64,
}

/// What a node is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Message(StreamMessage),
    /// The node knows all; there is nothing to send.
    Current,
    /// The node knows more than this copy, which has yet to catch up.
    Ahead,
    /// The node does not take part.
    NotAMember,
}

impl Feed {
    /// A feed of the directory as it is at `position`. `history` holds the changes of the last revisions, without a gap and in order, the
    /// newest being that of `position`; it may be empty.
    pub fn new(directory: Directory, position: Position, history: impl IntoIterator<Item = (i64, Vec<RecordChange>)>) -> Self {
        let mut feed = Self { directory, position, touched: BTreeMap::new() };
        for (revision, changes) in history {
            feed.remember(revision, &changes);
        }
        feed
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub fn position(&self) -> Position {
        self.position
    }

    /// Takes in the next revision.
    ///
    /// # Errors
    ///
    /// [`Gap`] when it is not the one that follows; the feed is then as it was, and is to be made anew.
    pub fn advance(&mut self, revision: i64, changes: &[RecordChange]) -> Result<(), Gap> {
        if revision != self.position.revision + 1 {
            return Err(Gap { have: self.position.revision, got: revision });
        }
        for change in changes {
            self.directory.apply(change);
        }
        self.position.revision = revision;
        self.remember(revision, changes);
        Ok(())
    }

    /// What to send to a node that knows the mesh up to `since`; `None` means that it knows nothing.
    pub fn next(&self, node: NodeId, since: Option<Position>) -> Next {
        if !self.directory.nodes.contains_key(&node) {
            return Next::NotAMember;
        }
        match since {
            Some(since) if since == self.position => Next::Current,
            Some(since) if since.epoch == self.position.epoch && since.revision > self.position.revision => Next::Ahead,
            Some(since) if since.epoch == self.position.epoch && self.remembers_after(since.revision) => self.delta(node, since),
            Some(_) | None => self.snapshot(node),
        }
    }

    /// The whole view, for a node that asks for it.
    pub fn snapshot(&self, node: NodeId) -> Next {
        match view::view(&self.directory, node) {
            Some(view) => Next::Message(StreamMessage::Snapshot {
                position: self.position,
                view,
                removed: self.directory.revoked.iter().copied().collect(),
            }),
            None => Next::NotAMember,
        }
    }

    fn delta(&self, node: NodeId, since: Position) -> Next {
        let mut mesh = false;
        let mut nodes = BTreeSet::new();
        for touched in self.touched.range(since.revision + 1..).map(|(_, touched)| touched) {
            mesh |= touched.mesh;
            nodes.extend(&touched.nodes);
        }
        let mut changes: Vec<_> = mesh.then(|| ViewChange::Mesh(self.directory.mesh.clone())).into_iter().collect();
        changes.extend(nodes.into_iter().filter_map(|touched| self.view_change(node, touched)));
        if changes.is_empty() {
            // A revision that does not concern this node still moves it on.
            return Next::Message(StreamMessage::Heartbeat { position: self.position });
        }
        Next::Message(StreamMessage::Delta { since, position: self.position, changes })
    }

    fn view_change(&self, node: NodeId, touched: NodeId) -> Option<ViewChange> {
        if touched == node {
            return view::myself(&self.directory, node).map(ViewChange::Myself);
        }
        if self.directory.revoked.contains(&touched) {
            return Some(ViewChange::PeerRemoved(touched));
        }
        view::peer(&self.directory, node, touched).map(ViewChange::Peer)
    }

    fn remembers_after(&self, revision: i64) -> bool {
        self.touched.first_key_value().is_some_and(|(first, _)| *first <= revision + 1)
    }

    fn remember(&mut self, revision: i64, changes: &[RecordChange]) {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                RecordChange::Mesh(_) => touched.mesh = true,
                // Nodes that have left the site since then are touched by the revision in which they left.
                RecordChange::Site(site) => touched.nodes.extend(self.directory.nodes_of(site.id).map(|node| node.id)),
                RecordChange::SiteRemoved(_) => {}
                RecordChange::Node(node) => {
                    touched.nodes.insert(node.id);
                }
                RecordChange::NodeRevoked(node) => {
                    touched.nodes.insert(*node);
                }
            }
        }
        self.touched.insert(revision, touched);
        if self.touched.len() > REMEMBERED {
            self.touched.pop_first();
        }
    }
}
