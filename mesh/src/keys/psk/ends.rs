//! The two ends of a tunnel: what one signs for the other, and reads of the other.

use std::sync::Arc;

use thiserror::Error;
use wattle_wire::{
    ids::{MeshId, NodeId},
    key::{IdentityKey, WireguardKey},
    psk::{PskMessage, PskStep, SignedPskMessage},
    strict,
};

use super::PURPOSE;
use crate::keys::{enrolment, node_keys::NodeKeys};

/// The two ends of a tunnel, from one of them.
#[derive(Debug)]
pub struct Ends<'a> {
    pub mesh: MeshId,
    pub node_keys: &'a NodeKeys,
    pub me: NodeId,
    pub peer: NodeId,
    /// Who the peer is pinned to be.
    pub peer_identity: IdentityKey,
    pub peer_key: WireguardKey,
    /// One of the two is about to take up another WireGuard key. Both ends must have the same
    /// preshared key at that moment.
    pub is_turning: bool,
}

impl Ends<'_> {
    pub(super) fn is_initiator(&self) -> bool {
        self.me > self.peer
    }

    /// The initiator's and the responder's WireGuard key.
    pub(super) fn keys(&self) -> [WireguardKey; 2] {
        let mine = self.node_keys.wireguard_key();
        if self.is_initiator() {
            [mine, self.peer_key]
        } else {
            [self.peer_key, mine]
        }
    }

    pub(super) fn identities(&self) -> [IdentityKey; 2] {
        [self.node_keys.identity_key(), self.peer_identity]
    }

    pub(super) fn sign(&self, round: u64, step: PskStep) -> Option<SignedPskMessage> {
        let message = PskMessage {
            mesh: self.mesh,
            from: self.me,
            to: self.peer,
            round,
            step,
        };
        Some(self.signed(serde_json::to_string(&message).ok()?.into()))
    }

    /// A message under the present identity. It is what it was unless the machine has taken up
    /// another identity since, whose word alone the peer believes.
    pub(super) fn signed(&self, message: Arc<str>) -> SignedPskMessage {
        let signature = self.node_keys.sign(&[PURPOSE, message.as_bytes()].concat());
        SignedPskMessage { message, signature }
    }

    /// Reads a message that the peer signed for this node.
    pub(super) fn open(&self, signed: &SignedPskMessage) -> Result<PskMessage, Ignored> {
        let message: PskMessage =
            strict::from_str(&signed.message).map_err(|_| Ignored::Unreadable)?;
        if !enrolment::verify(
            self.peer_identity,
            &[PURPOSE, signed.message.as_bytes()].concat(),
            &signed.signature,
        ) {
            return Err(Ignored::Signature);
        }
        if (message.mesh, message.from, message.to) != (self.mesh, self.peer, self.me) {
            return Err(Ignored::Address);
        }
        Ok(message)
    }
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Ignored {
    #[error("the message cannot be read")]
    Unreadable,
    #[error("the message is not signed by the peer")]
    Signature,
    #[error("the message is for another node or of another mesh")]
    Address,
    #[error("the message is of an earlier round, or the key of an earlier file")]
    Old,
    #[error("the message answers no message of this node")]
    Unexpected,
    #[error("the message is about other WireGuard keys")]
    Keys,
    #[error("the key in the message is not a valid key")]
    Kem,
    #[error(
        "the coordinator sent a preshared key for a tunnel whose two gateways agree on their own"
    )]
    Managed,
    #[error(
        "cannot open the preshared key from the coordinator: it was made for another WireGuard \
         key, or is damaged"
    )]
    Sealed,
}
