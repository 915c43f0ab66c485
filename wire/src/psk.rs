//! How two nodes agree on the preshared key of their tunnel, with the coordinator as a mailbox that
//! cannot read it: see `mesh::keys::psk`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ids::{MeshId, NodeId},
    key::{Bytes32, KemCiphertext, KemKey, SealedPsk, Signature, WireguardKey},
};

/// A message from one end of a tunnel to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PskMessage {
    pub mesh: MeshId,
    pub from: NodeId,
    pub to: NodeId,
    /// Grows with each request; the messages that follow it bear its number.
    pub round: u64,
    pub step: PskStep,
}

/// What a message says. The initiator is the node with the higher id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PskStep {
    /// Initiator: send me a secret under this key, which I made for this round alone. The WireGuard
    /// keys say for which tunnel.
    Request {
        initiator_key: WireguardKey,
        responder_key: WireguardKey,
        kem_key: KemKey,
    },
    /// Responder: here it is.
    Offer { ciphertext: KemCiphertext },
    /// Initiator: I have the key on disk; this shows it.
    Confirm { proof: Bytes32 },
    /// Responder: I use the key.
    Commit {},
    /// Responder: I have no key of this round, or, with round 0, somebody here wants another than
    /// the one that I have; begin a new one.
    Renew {
        /// The newest round that I know, where what you said is of no later one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        newest: Option<u64>,
    },
}

/// A [`PskMessage`] as its node wrote it, with the node's signature over those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedPskMessage {
    /// The message's JSON, verbatim, at most [`SignedPskMessage::LONGEST`] bytes. It is held until
    /// the peer has answered, and while it is sent.
    #[schema(value_type = String)]
    pub message: Arc<str>,
    pub signature: Signature,
}

impl SignedPskMessage {
    pub const LONGEST: usize = 2048;
}

/// `POST /agent/mailbox`: leaves messages for other nodes, takes away those that were dealt with,
/// and asks for what is waiting.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MailboxRequest {
    /// At most [`MailboxRequest::MOST_MESSAGES`]. A message takes the place of an earlier one to
    /// the same node that still waits there.
    pub leave: Vec<OutgoingMessage>,
    /// Numbers of messages that were dealt with.
    pub taken: Vec<i64>,
}

impl MailboxRequest {
    pub const MOST_MESSAGES: usize = 64;
}

/// A message to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutgoingMessage {
    pub to: NodeId,
    pub message: SignedPskMessage,
}

/// Answer to a [`MailboxRequest`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MailboxResponse {
    /// The oldest, at most [`MailboxRequest::MOST_MESSAGES`].
    #[serde(rename = "letters")]
    pub messages: Vec<IncomingMessage>,
    /// Of tunnels with unmanaged nodes, at most [`MailboxRequest::MOST_MESSAGES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<GivenPsk>,
    /// Whether still more are waiting.
    pub more: bool,
}

/// A message that waits for the calling node.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct IncomingMessage {
    pub id: i64,
    pub from: NodeId,
    pub message: SignedPskMessage,
}

/// A preshared key that the coordinator made for the tunnel with an unmanaged node, when it made
/// that node's file. It is no node's message, and has its number among theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GivenPsk {
    pub id: i64,
    /// The unmanaged node.
    pub from: NodeId,
    /// When the file was made, in milliseconds since 1970: the newest counts.
    pub made_ms: u64,
    pub sealed: SealedPsk,
}

/// Whether packets may pass between two nodes that have not agreed on a preshared key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum PskPolicy {
    /// None passes. A new mesh has this.
    Require,
    /// They do, until the nodes have agreed. A mesh made before there were preshared keys has this.
    #[default]
    Prefer,
}
