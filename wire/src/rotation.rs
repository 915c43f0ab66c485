//! How a node takes up a new WireGuard key without losing a packet: what it says to the
//! coordinator, and its peers through it. See `mesh::keys::rotation`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    enrol::{KeyChallenge, SignedStatement},
    ids::NodeId,
    key::{Bytes32, Signature},
};

/// What a node is going to state once it has taken up its next key, signed.
///
/// Everybody sees it before the key is in use. So it is signed for this purpose alone, and nobody
/// can make a [`SignedStatement`] of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedAnnouncement {
    /// The JSON of the [`Statement`](crate::enrol::Statement) to come, verbatim.
    pub announcement: String,
    pub signature: Signature,
}

/// A node's next key, with the proof that the node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyAnnouncement {
    pub announcement: SignedAnnouncement,
    /// The challenge's number.
    pub nonce: Bytes32,
    /// Shows that the node holds the private half of the new key: see `mesh::keys::enrolment`.
    pub wireguard_proof: Bytes32,
}

/// `POST /agent/rotation`: how far the calling node is with its next key. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RotationStep {
    /// The node asks for a challenge, with which it proves its next key.
    Prepare {},
    /// The node is going to take up this key: its peers are to be ready for it.
    Announce(KeyAnnouncement),
    /// The node has taken up the key that it announced. Its statement says what the announcement
    /// said.
    Done(SignedStatement),
    /// The node stays with the key that it has.
    Withdraw {},
}

/// Answer to a [`RotationStep`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RotationAnswer {
    /// Peers that say they are ready for the announced key, in order.
    #[serde(default)]
    pub ready: Vec<ReadyPeer>,
    /// Of [`RotationStep::Prepare`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<KeyChallenge>,
}

/// What the coordinator knows of the calling node's own keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnKeys {
    /// Number of the statement that the node's peers go by.
    pub sequence: u64,
    /// The highest number that the node ever stated or announced. The next one is above it.
    #[serde(default)]
    pub highest: u64,
    /// Number of the announced one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<u64>,
    /// Somebody asks for a new key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotate: bool,
}

/// A peer's announced key for which a node is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyInPlace {
    pub peer: NodeId,
    /// Number of the announced statement.
    pub sequence: u64,
    /// The node's word for the peer, which takes no other: see `mesh::keys::rotation::readiness`.
    pub signature: Signature,
}

/// The word of a peer that it is ready for the announced key of the calling node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyPeer {
    pub node: NodeId,
    /// That of [`KeyInPlace`].
    pub signature: Signature,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_messages() {
        let announcement = SignedAnnouncement {
            announcement: "{}".to_owned(),
            signature: Signature::from([7; 64]),
        };
        let claim = KeyAnnouncement {
            announcement,
            nonce: Bytes32::from([1; 32]),
            wireguard_proof: Bytes32::from([2; 32]),
        };
        let (signature, nonce, proof) = (
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        );
        let signed = format!(r#"{{"announcement":"{{}}","signature":"{signature}"}}"#);
        for (step, text) in [
            (RotationStep::Prepare {}, r#"{"prepare":{}}"#.to_owned()),
            (
                RotationStep::Announce(claim),
                format!(
                    r#"{{"announce":{{"announcement":{signed},"nonce":"{nonce}","wireguard_proof":"{proof}"}}}}"#
                ),
            ),
            (RotationStep::Withdraw {}, r#"{"withdraw":{}}"#.to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&step).unwrap(), text);
            assert_eq!(serde_json::from_str::<RotationStep>(&text).unwrap(), step);
        }
        let node: NodeId = "00000000-0000-0000-0000-000000000002".parse().unwrap();
        let word = Signature::from([7; 64]);
        let ready = vec![ReadyPeer {
            node,
            signature: word,
        }];
        let answer = RotationAnswer {
            ready,
            challenge: None,
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            format!(r#"{{"ready":[{{"node":"{node}","signature":"{signature}"}}]}}"#)
        );
        let armed = KeyInPlace {
            peer: node,
            sequence: 3,
            signature: word,
        };
        assert_eq!(
            serde_json::to_string(&armed).unwrap(),
            format!(r#"{{"peer":"{node}","sequence":3,"signature":"{signature}"}}"#)
        );
        // Neither is read as the other.
        assert!(serde_json::from_str::<SignedStatement>(&signed).is_err());
        let statement = signed.replacen("announcement", "statement", 1);
        assert!(serde_json::from_str::<SignedStatement>(&statement).is_ok());
        assert!(serde_json::from_str::<SignedAnnouncement>(&statement).is_err());
    }
}
