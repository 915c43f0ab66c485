//! What streams say, as server-sent events: written once for all streams that are told the same.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::body::Bytes;
use serde::Serialize;
use wattle_mesh::config::{
    feed::{Audience, Changed, Feed},
    view,
};
use wattle_wire::{
    ids::{NodeId, Position},
    stream::StreamMessage,
};

/// The most of a message that is handed to a connection at a time, in bytes: what a reader has yet
/// to take is not copied for it.
const PIECE: usize = 16 * 1024;
/// Deltas that are kept, each from another position: streams that are not slow are told of a change
/// from the one or two positions before it.
const MOST_DELTAS: usize = 8;

/// A message on its way, in pieces.
#[derive(Debug, Default)]
pub struct Text(VecDeque<Bytes>);

/// What was written at the newest position.
#[derive(Debug, Default)]
pub struct Texts(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    at: Option<Position>,
    /// By the position from which they lead.
    deltas: BTreeMap<Position, Arc<Delta>>,
    /// Lives as long as it is being sent to somebody.
    peers: Weak<Peers>,
}

#[derive(Debug)]
struct Delta {
    changed: Changed,
    /// For those whom it does not concern.
    event: Bytes,
}

/// All nodes as their peers are told of them, and all that are gone.
#[derive(Debug)]
struct Peers {
    /// In JSON, each after a comma.
    json: Bytes,
    /// The nodes, in order, and where each ends.
    ends: Vec<(NodeId, usize)>,
    /// What follows them: the tombstones, and the end of the message.
    tail: Bytes,
}

impl Text {
    pub fn of(message: &StreamMessage) -> Self {
        Self([event(message)].into())
    }

    /// The next piece; `None` when all of it was handed out.
    pub fn next_piece(&mut self) -> Option<Bytes> {
        let part = self.0.front_mut()?;
        let piece = part.split_to(part.len().min(PIECE));
        if part.is_empty() {
            self.0.pop_front();
        }
        Some(piece)
    }
}

impl Texts {
    /// Tells a node what changed since a position from which there is a delta.
    pub fn delta(&self, feed: &Feed, node: NodeId, since: Position) -> Text {
        let delta = self.written(feed.position(), |written| {
            if let Some(delta) = written.deltas.get(&since) {
                return Arc::clone(delta);
            }
            let changed = feed.changed_since(since);
            let event = event(&feed.delta(&changed, Audience::Others));
            let delta = Arc::new(Delta { changed, event });
            if written.deltas.len() < MOST_DELTAS {
                written.deltas.insert(since, Arc::clone(&delta));
            }
            delta
        });
        match feed.audience(&delta.changed, node) {
            Audience::Others => Text([delta.event.clone()].into()),
            concerned @ Audience::Node(_) => Text::of(&feed.delta(&delta.changed, concerned)),
        }
    }

    /// Tells a node the whole view; `None` if it does not take part.
    pub fn snapshot(&self, feed: &Feed, node: NodeId) -> Option<Text> {
        let peers = self.written(feed.position(), |written| {
            written.peers.upgrade().unwrap_or_else(|| {
                let peers = Arc::new(Peers::of(feed));
                written.peers = Arc::downgrade(&peers);
                peers
            })
        });
        let directory = feed.directory();
        let myself = view::myself(directory, node)?;
        let (position, mesh) = (json(&feed.position()), json(&directory.mesh));
        let head = [
            br#"data: {"type":"snapshot","position":"#,
            &position[..],
            br#","view":{"mesh":"#,
            &mesh,
            br#","myself":"#,
            &json(&myself),
            br#","peers":["#,
        ]
        .concat();
        let strangers: Vec<_> = directory
            .nodes_of(myself.site)
            .map(|node| node.id)
            .collect();
        let mut text = VecDeque::from([head.into()]);
        text.extend(peers.without(&strangers));
        text.push_back(peers.tail.clone());
        Some(Text(text))
    }

    fn written<T>(&self, position: Position, read: impl FnOnce(&mut Written) -> T) -> T {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.at != Some(position) {
            *written = Written {
                at: Some(position),
                ..Written::default()
            };
        }
        read(&mut written)
    }
}

impl Peers {
    fn of(feed: &Feed) -> Self {
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        for peer in feed
            .directory()
            .nodes
            .keys()
            .filter_map(|node| view::as_peer(feed.directory(), *node))
        {
            text.push(b',');
            text.extend(json(&peer));
            ends.push((peer.node, text.len()));
        }
        let tombstones: Vec<_> = feed.directory().tombstones().collect();
        let tail = [&br#"]},"removed":"#[..], &json(&tombstones), b"}\n\n"];
        Self {
            json: text.into(),
            ends,
            tail: tail.concat().into(),
        }
    }

    /// The text of all but some nodes, which are in order, without the comma before the first.
    fn without(&self, nodes: &[NodeId]) -> Vec<Bytes> {
        let end = |index: usize| index.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let left_out = nodes
            .iter()
            .filter_map(|node| self.ends.binary_search_by_key(node, |(node, _)| *node).ok());
        let mut from = 0;
        let mut parts = Vec::new();
        for index in left_out {
            parts.push(self.json.slice(from..end(index)));
            from = self.ends[index].1;
        }
        parts.push(self.json.slice(from..));
        parts.retain(|part| !part.is_empty());
        if let Some(first) = parts.first_mut() {
            *first = first.slice(1..);
        }
        parts
    }
}

fn event(message: &StreamMessage) -> Bytes {
    [b"data: ", &json(message)[..], b"\n\n"].concat().into()
}

/// Our own types, whose keys are text, can always be written.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;
    use wattle_mesh::{
        config::directory::{Directory, NodeRecord, RecordChange, SiteRecord},
        keys::node_keys::NodeKeys,
    };
    use wattle_wire::{
        admin::{NodeState, SiteSpec},
        ids::{MeshId, SiteId},
        peer::MeshSettings,
    };

    use super::*;

    const MESH: MeshId = MeshId(Uuid::from_u128(1));
    const NODES: u8 = 60;

    fn node(number: u8) -> NodeId {
        NodeId(Uuid::from_u128(u128::from(number)))
    }

    /// Nodes of which the first, one in the middle and the last share a site; each other has its
    /// own.
    fn feed() -> Feed {
        let mesh = MeshSettings {
            id: MESH,
            tunnel_prefix: "10.99.0.0/16".parse().unwrap(),
            listen_port: 51820,
            keepalive_s: 25,
            psk: wattle_wire::psk::PskPolicy::Require,
            rotate_days: 0,
            health: wattle_wire::probe::HealthSettings::default(),
        };
        let mut directory = Directory::new(mesh);
        for number in 1..=NODES {
            let shares = [1, 30, NODES].contains(&number);
            let site = SiteId(Uuid::from_u128(if shares { 1 } else { u128::from(number) }));
            let machine = NodeKeys::new(&[number; 32], &[number; 32], 0).unwrap();
            directory.apply(&RecordChange::Site(SiteRecord {
                id: site,
                spec: SiteSpec {
                    name: format!("site-{}", site.0.as_u128()).parse().unwrap(),
                    description: String::new(),
                    labels: BTreeMap::new(),
                    endpoint: None,
                    subnets: vec![format!("10.{}.0.0/16", site.0.as_u128()).parse().unwrap()],
                },
                tunnel_address: [10, 99, 0, number].into(),
                created_at: DateTime::UNIX_EPOCH,
            }));
            directory.apply(&RecordChange::Node(NodeRecord {
                id: node(number),
                site,
                name: format!("node-{number}").parse().unwrap(),
                name_follows_site: true,
                state: if number > 1 && shares {
                    NodeState::Standby
                } else {
                    NodeState::Active
                },
                tunnel_address: [10, 99, 0, number].into(),
                identity_key: machine.identity_key(),
                wireguard_key: machine.wireguard_key(),
                statement: machine.statement(MESH).unwrap(),
                highest_sequence: 1,
                announced: None,
                rotate_since: None,
                admission: None,
                endpoint_check: None,
                endpoint: None,
                agent_version: Some(String::new()),
                unmanaged: None,
                generation: 1,
                enrolled_at: DateTime::UNIX_EPOCH,
            }));
        }
        directory.apply(&RecordChange::NodeRevoked(node(99)));
        Feed::new(
            directory,
            Position {
                epoch: 1,
                revision: 7,
            },
            [],
        )
    }

    fn read(mut text: Text) -> StreamMessage {
        let pieces: Vec<_> = std::iter::from_fn(|| text.next_piece()).collect();
        assert!(
            pieces
                .iter()
                .all(|piece| (1..=PIECE).contains(&piece.len()))
        );
        let event = String::from_utf8(pieces.concat()).unwrap();
        serde_json::from_str(
            event
                .strip_prefix("data: ")
                .unwrap()
                .strip_suffix("\n\n")
                .unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_snapshot_in_pieces_is_the_view_of_each_node() {
        let (texts, feed) = (Texts::default(), feed());
        for number in 1..=NODES {
            let view = view::view(feed.directory(), node(number)).unwrap();
            let expected = StreamMessage::Snapshot {
                position: feed.position(),
                view,
                removed: vec![node(99).into()],
            };
            assert_eq!(
                read(texts.snapshot(&feed, node(number)).unwrap()),
                expected,
                "node {number}"
            );
        }
        assert!(texts.snapshot(&feed, node(99)).is_none());
    }

    #[test]
    fn a_change_is_written_once_for_all_whom_it_does_not_concern() {
        let (texts, mut feed) = (Texts::default(), feed());
        let since = feed.position();
        let site = feed
            .directory()
            .nodes_of(SiteId(Uuid::from_u128(2)))
            .next()
            .unwrap()
            .site;
        let mut site = feed.directory().sites[&site].clone();
        site.spec.endpoint = Some("203.0.113.1:51820".parse().unwrap());
        feed.advance(8, &[RecordChange::Site(site)]).unwrap();
        let event_of = |number| {
            texts
                .delta(&feed, node(number), since)
                .next_piece()
                .unwrap()
        };
        assert_eq!(event_of(3).as_ptr(), event_of(60).as_ptr());
        let changed = feed.changed_since(since);
        for number in [1, 2, 3] {
            let expected = feed.delta(&changed, feed.audience(&changed, node(number)));
            assert_eq!(
                read(texts.delta(&feed, node(number), since)),
                expected,
                "node {number}"
            );
        }
        assert_ne!(event_of(2), event_of(3));
    }
}
