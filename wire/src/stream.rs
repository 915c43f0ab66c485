//! Messages of `GET /agent/stream`: server-sent events whose `data` is one [`StreamMessage`] in
//! JSON.

use serde::{Deserialize, Serialize};

use crate::{
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
