//! Messages of `GET /agent/stream`: server-sent events whose `data` is one [`StreamMessage`] in
//! JSON.

use serde::{Deserialize, Serialize};

use crate::{
    bounded::at_most,
    ids::{NodeId, Position},
    lock::SignedRemoval,
    peer::{MeshSettings, Myself, Peer, View},
};

/// Seconds between two heartbeats of a stream: half of [`SILENCE_S`], for each costs both ends a
/// wake-up.
pub const HEARTBEAT_S: u64 = 15;
/// Seconds of silence after which either side hangs up.
pub const SILENCE_S: u64 = 30;

/// One message from the coordinator. An agent ignores message types that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamMessage {
    /// The whole view, to a node that has none or one too old for a delta.
    Snapshot {
        position: Position,
        view: View,
        /// Nodes that are gone for good. A peer that is merely absent from the view stays where it
        /// is.
        removed: Vec<Tombstone>,
    },
    /// What changed since `since`; to a node whose position is another it is a gap, and it asks for
    /// a snapshot.
    Delta {
        since: Position,
        position: Position,
        changes: Vec<ViewChange>,
    },
    /// Nothing changed for this node up to `position`: the first answer to a node that is current,
    /// and afterwards a sign of life.
    Heartbeat { position: Position },
    /// Messages wait in the mailbox.
    #[serde(rename = "mail")]
    MessagesWaiting,
    /// The coordinator ends the stream.
    Bye { reason: ByeReason },
    /// A message of a newer coordinator.
    #[serde(other)]
    Unknown,
}

/// As [`StreamMessage::Snapshot`].
#[derive(Deserialize)]
struct Snapshot {
    position: Position,
    view: View,
    #[serde(deserialize_with = "at_most::<{ StreamMessage::MOST_REMOVED }, _, _>")]
    removed: Vec<Tombstone>,
}

/// As [`StreamMessage::Delta`].
#[derive(Deserialize)]
struct Delta {
    since: Position,
    position: Position,
    #[serde(deserialize_with = "at_most::<{ StreamMessage::MOST_CHANGES }, _, _>")]
    changes: Vec<ViewChange>,
}

#[derive(Deserialize)]
struct Typed {
    #[serde(rename = "type")]
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Snapshot,
    Delta,
    #[serde(other)]
    Another,
}

impl StreamMessage {
    /// The longest message that an agent reads, in bytes: a snapshot of a mesh of
    /// [`View::MOST_PEERS`] whose nodes are all admitted is shorter.
    pub const LONGEST: usize = 16 << 20;
    /// The most nodes that a snapshot says are gone.
    pub const MOST_REMOVED: usize = 100_000;
    /// The most steps of a delta: all peers go, and as many come.
    pub const MOST_CHANGES: usize = 2 * View::MOST_PEERS + 2;

    /// Reads a message of at most [`StreamMessage::LONGEST`] bytes. It takes hardly more memory
    /// than its text, whatever is in it.
    ///
    /// # Errors
    ///
    /// When it is no message, is too long, or has a list that is.
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        if text.len() > Self::LONGEST {
            return Err(serde::de::Error::custom("the message is too long"));
        }
        // As a tagged enum it would be held as a tree of values first.
        Ok(match serde_json::from_slice::<Typed>(text)?.kind {
            Kind::Snapshot => {
                let Snapshot {
                    position,
                    view,
                    removed,
                } = serde_json::from_slice(text)?;
                Self::Snapshot {
                    position,
                    view,
                    removed,
                }
            }
            Kind::Delta => {
                let Delta {
                    since,
                    position,
                    changes,
                } = serde_json::from_slice(text)?;
                Self::Delta {
                    since,
                    position,
                    changes,
                }
            }
            Kind::Another if text.len() > LONG => {
                return Err(serde::de::Error::custom("the message is too long"));
            }
            Kind::Another => serde_json::from_slice(text)?,
        })
    }
}

/// The longest message, in bytes, that tells nothing of peers.
const LONG: usize = 64 << 10;

/// One step from an old view to a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViewChange {
    /// The peer is new or changed; this is all of it.
    Peer(Peer),
    /// The peer is gone for good.
    PeerRemoved(Tombstone),
    Myself(Myself),
    Mesh(MeshSettings),
}

/// That a node is gone for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub node: NodeId,
    /// An operator's word that it is; absent means that none has signed it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<SignedRemoval>,
}

impl From<NodeId> for Tombstone {
    /// One that no operator has signed.
    fn from(node: NodeId) -> Self {
        Self {
            node,
            removal: None,
        }
    }
}

/// Why the coordinator ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// The node is no longer part of the mesh.
    Revoked,
    /// The same node opened a newer stream.
    Superseded,
    /// The coordinator stops; come back.
    Shutdown,
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b17_a_message_of_a_newer_coordinator_is_ignored_not_an_error() {
        let message: StreamMessage =
            serde_json::from_str(r#"{"type":"confetti","colour":"red"}"#).unwrap();
        assert_eq!(message, StreamMessage::Unknown);
        let message: StreamMessage =
            serde_json::from_str(r#"{"type":"bye","reason":"tired","new":1}"#).unwrap();
        assert_eq!(
            message,
            StreamMessage::Bye {
                reason: ByeReason::Unknown
            }
        );
    }

    #[test]
    fn b17_fields_that_a_newer_coordinator_adds_are_ignored_and_steps_that_it_invents_are_not_guessed_at()
     {
        let peer = r#""node":"00000000-0000-0000-0000-000000000000","name":"a","site_name":"a","statement":{"statement":"","signature":"SIGNATURE","new":1},
            "tunnel_address":"10.99.0.1","subnets":[],"endpoint":null,"new":{}"#;
        let peer = peer.replace(
            "SIGNATURE",
            &crate::key::Signature::from([0; 64]).to_string(),
        );
        let delta = |change: &str| {
            format!(
                r#"{{"type":"delta","since":"1.6","position":"1.7","new":0,"changes":[{change}]}}"#
            )
        };
        let message: StreamMessage =
            serde_json::from_str(&delta(&format!(r#"{{"peer":{{{peer}}}}}"#))).unwrap();
        assert!(
            matches!(message, StreamMessage::Delta { changes, .. } if matches!(&changes[..], [ViewChange::Peer(_)]))
        );
        // What follows may rely on it: an agent that cannot read a step stays as it is.
        assert!(serde_json::from_str::<StreamMessage>(&delta(r#"{"peer_moved":{}}"#)).is_err());
    }

    #[test]
    fn e15_a_message_is_read_as_a_tagged_enum_would_be_and_long_lists_are_not() {
        let texts = [
            r#"{"type":"confetti","colour":"red"}"#,
            r#"{"position":"1.7","type":"heartbeat"}"#,
            r#"{"changes":[],"type":"delta","since":"1.6","new":[1],"position":"1.7"}"#,
            r#"{"type":"mail"}"#,
            r#"{"type":"bye","reason":"revoked"}"#,
        ];
        for text in texts {
            let message: StreamMessage = serde_json::from_str(text).unwrap();
            assert_eq!(StreamMessage::from_json(text.as_bytes()).unwrap(), message);
        }
        let step = r#"{"peer_removed":{"node":"00000000-0000-0000-0000-000000000000"}}"#;
        let delta = |steps: usize| {
            let changes = vec![step; steps].join(",");
            format!(r#"{{"type":"delta","since":"1.6","position":"1.7","changes":[{changes}]}}"#)
        };
        assert!(StreamMessage::from_json(delta(StreamMessage::MOST_CHANGES).as_bytes()).is_ok());
        let error = StreamMessage::from_json(delta(StreamMessage::MOST_CHANGES + 1).as_bytes());
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("at most 20002 entries")
        );
    }

    #[test]
    fn golden_messages() {
        let position = Position {
            epoch: 1,
            revision: 7,
        };
        let delta = StreamMessage::Delta {
            since: Position {
                revision: 6,
                ..position
            },
            position,
            changes: vec![ViewChange::PeerRemoved(NodeId(uuid::Uuid::nil()).into())],
        };
        let text = r#"{"type":"delta","since":"1.6","position":"1.7","changes":[{"peer_removed":{"node":"00000000-0000-0000-0000-000000000000"}}]}"#;
        assert_eq!(serde_json::to_string(&delta).unwrap(), text);
        assert_eq!(
            serde_json::to_string(&StreamMessage::Heartbeat { position }).unwrap(),
            r#"{"type":"heartbeat","position":"1.7"}"#
        );
    }
}
