//! The coordinator's half of the stream: what to send to a node that knows the mesh up to some
//! position.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use wattle_wire::{
    ids::{NodeId, Position, SiteId},
    peer::Peer,
    stream::{StreamMessage, ViewChange},
};

use crate::config::{
    directory::{Directory, RecordChange},
    view,
};

/// Revisions of which the feed remembers what they touched; a node that is further behind gets a
/// snapshot.
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
    /// Those of the nodes that were admitted.
    admitted: BTreeSet<NodeId>,
}

/// The revision does not follow the one before it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("revision {got} does not follow {have}")]
pub struct Gap {
    pub have: i64,
    pub got: i64,
}

/// What a node is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// What changed since this position: [`Feed::changed_since`] and [`Feed::delta`] say it.
    Delta(Position),
    /// The whole view.
    Snapshot,
    /// The node knows all; there is nothing to send.
    Current,
    /// The node has seen this position, and so knows more than this copy, which has yet to catch
    /// up.
    Ahead(Position),
    /// The node does not take part.
    NotAMember,
}

/// What all revisions since some position touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    since: Position,
    mesh: bool,
    nodes: BTreeSet<NodeId>,
    /// Those of the nodes that were admitted.
    admitted: BTreeSet<NodeId>,
    /// The sites of these nodes.
    sites: BTreeSet<SiteId>,
}

/// To whom a delta is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// To this node, which was touched or shares its site with one that was.
    Node(NodeId),
    /// To all others that know the mesh up to the same position: they are told the same.
    Others,
}

impl Feed {
    /// A feed of the directory as it is at `position`. `history` holds the changes of the last
    /// revisions, without a gap and in order, the newest being that of `position`; it may be empty.
    pub fn new(
        directory: Directory,
        position: Position,
        history: impl IntoIterator<Item = (i64, Vec<RecordChange>)>,
    ) -> Self {
        let mut feed = Self {
            directory,
            position,
            touched: BTreeMap::new(),
        };
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
    /// [`Gap`] when it is not the one that follows; the feed is then as it was, and is to be made
    /// anew.
    pub fn advance(&mut self, revision: i64, changes: &[RecordChange]) -> Result<(), Gap> {
        if revision != self.position.revision + 1 {
            return Err(Gap {
                have: self.position.revision,
                got: revision,
            });
        }
        for change in changes {
            self.directory.apply(change);
        }
        self.position.revision = revision;
        self.remember(revision, changes);
        Ok(())
    }

    /// What to send to a node that knows the mesh up to `since`; `None` means that it knows
    /// nothing.
    pub fn next(&self, node: NodeId, since: Option<Position>) -> Next {
        if !self.directory.nodes.contains_key(&node) {
            return Next::NotAMember;
        }
        match since {
            Some(since) if since == self.position => Next::Current,
            Some(since) if since > self.position => Next::Ahead(since),
            Some(since)
                if since.epoch == self.position.epoch && self.remembers_after(since.revision) =>
            {
                Next::Delta(since)
            }
            Some(_) | None => Next::Snapshot,
        }
    }

    /// What changed since a position from which [`Feed::next`] makes a delta.
    pub fn changed_since(&self, since: Position) -> Changed {
        let mut changed = Changed {
            since,
            mesh: false,
            nodes: BTreeSet::new(),
            admitted: BTreeSet::new(),
            sites: BTreeSet::new(),
        };
        for touched in self
            .touched
            .range(since.revision + 1..)
            .map(|(_, touched)| touched)
        {
            changed.mesh |= touched.mesh;
            changed.nodes.extend(&touched.nodes);
            changed.admitted.extend(&touched.admitted);
        }
        changed.sites = changed
            .nodes
            .iter()
            .filter_map(|node| Some(self.directory.nodes.get(node)?.site))
            .collect();
        changed
    }

    /// To whom a node belongs when changes are told.
    pub fn audience(&self, changed: &Changed, node: NodeId) -> Audience {
        let site = self.directory.nodes.get(&node).map(|node| node.site);
        let concerned =
            changed.nodes.contains(&node) || site.is_some_and(|site| changed.sites.contains(&site));
        if concerned {
            Audience::Node(node)
        } else {
            Audience::Others
        }
    }

    /// The message that tells changes.
    pub fn delta(&self, changed: &Changed, audience: Audience) -> StreamMessage {
        let mut changes: Vec<_> = changed
            .mesh
            .then(|| ViewChange::Mesh(self.directory.mesh.clone()))
            .into_iter()
            .collect();
        changes.extend(
            changed
                .nodes
                .iter()
                .filter_map(|touched| self.view_change(changed, audience, *touched)),
        );
        if changes.is_empty() {
            // A revision that does not concern this node still moves it on.
            return StreamMessage::Heartbeat {
                position: self.position,
            };
        }
        StreamMessage::Delta {
            since: changed.since,
            position: self.position,
            changes,
        }
    }

    fn view_change(
        &self,
        changed: &Changed,
        audience: Audience,
        touched: NodeId,
    ) -> Option<ViewChange> {
        if let Some(tombstone) = self.directory.tombstone(touched) {
            return Some(ViewChange::PeerRemoved(tombstone));
        }
        match audience {
            Audience::Node(node) if node == touched => {
                view::myself(&self.directory, node).map(ViewChange::Myself)
            }
            Audience::Node(node) => view::peer(&self.directory, node, touched)
                .map(|peer| ViewChange::Peer(changed.news_of(peer))),
            Audience::Others => view::as_peer(&self.directory, touched)
                .map(|peer| ViewChange::Peer(changed.news_of(peer))),
        }
    }

    fn remembers_after(&self, revision: i64) -> bool {
        self.touched
            .first_key_value()
            .is_some_and(|(first, _)| *first <= revision + 1)
    }

    fn remember(&mut self, revision: i64, changes: &[RecordChange]) {
        let mut touched = Touched::default();
        for change in changes {
            match change {
                RecordChange::Mesh(_) => touched.mesh = true,
                // Nodes that have left the site since then are touched by the revision in which
                // they left.
                RecordChange::Site(site) => touched
                    .nodes
                    .extend(self.directory.nodes_of(site.id).map(|node| node.id)),
                RecordChange::SiteRemoved(_) => {}
                RecordChange::Node(node) => {
                    touched.nodes.insert(node.id);
                }
                RecordChange::Admission(node, _) => {
                    touched.nodes.insert(*node);
                    touched.admitted.insert(*node);
                }
                RecordChange::NodeRevoked(node) | RecordChange::Removal(node, _) => {
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

impl Changed {
    /// A peer without what those who are told know already.
    fn news_of(&self, peer: Peer) -> Peer {
        let is_news = self.admitted.contains(&peer.node);
        Peer {
            admission: peer.admission.filter(|_| is_news),
            ..peer
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{directory_of, node_id, node_record};

    /// Changes in a mesh of four nodes, of which 1 and 2 share a site.
    fn change() -> impl Strategy<Value = RecordChange> {
        prop_oneof![
            (1..5u64).prop_map(|number| RecordChange::Site(node_record(number).0)),
            (1..5u64).prop_map(|number| RecordChange::Node(shared(number))),
            (1..5u64).prop_map(|number| RecordChange::NodeRevoked(node_id(number))),
            Just(RecordChange::Mesh(directory_of(0).mesh)),
        ]
    }

    fn shared(number: u64) -> crate::config::directory::NodeRecord {
        let site = node_record(number.max(2)).0.id;
        crate::config::directory::NodeRecord {
            site,
            ..node_record(number).1
        }
    }

    proptest! {
        #[test]
        fn whoever_is_not_concerned_is_told_what_he_would_be_told_alone(history in prop::collection::vec(change(), 0..6)) {
            let since = Position { epoch: 1, revision: 10 };
            let mut feed = Feed::new(directory_of(4), since, []);
            feed.advance(11, &[RecordChange::Node(shared(1))]).unwrap();
            for (revision, change) in (12..).zip(history) {
                // A revoked node never comes back.
                let comes_back = matches!(&change, RecordChange::Node(node) if feed.directory().revoked.contains_key(&node.id));
                feed.advance(revision, &if comes_back { vec![] } else { vec![change] }).unwrap();
            }
            let changed = feed.changed_since(Position { revision: 11, ..since });
            for node in feed.directory().nodes.keys().copied() {
                let told = feed.delta(&changed, feed.audience(&changed, node));
                prop_assert_eq!(told, feed.delta(&changed, Audience::Node(node)));
            }
        }
    }
}
