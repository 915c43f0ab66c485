//! What a peer signs when it is ready for a key that a node announced.
//!
//! The coordinator forwards it. A node counts nobody as ready on the coordinator's word: one that is
//! in the wrong hands could have it take up a key that no peer has heard of.

use wattle_wire::{
    ids::NodeId,
    key::{IdentityKey, Signature},
    rotation::SignedAnnouncement,
};

use crate::keys::{enrolment, node_keys::NodeKeys};

const READINESS: &[u8] = b"wattle key in place v1\0";

/// The word of the node `me` that it is ready for this announcement.
pub(crate) fn sign(
    node_keys: &NodeKeys,
    me: NodeId,
    announcement: &SignedAnnouncement,
) -> Signature {
    node_keys.sign(&message(me, announcement))
}

/// Whether the peer with this identity has signed that it is ready for the announcement.
pub(crate) fn is_signed(
    announcement: &SignedAnnouncement,
    peer: NodeId,
    identity: IdentityKey,
    signature: &Signature,
) -> bool {
    enrolment::verify(identity, &message(peer, announcement), signature)
}

/// The text names the mesh, the node, its new key and the number, which is used once: what is
/// signed for one announcement is worth nothing for another.
fn message(peer: NodeId, announcement: &SignedAnnouncement) -> Vec<u8> {
    let text = announcement.announcement.as_bytes();
    [READINESS, peer.0.as_bytes(), text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MESH, node_id, node_keys_of};

    #[test]
    fn e21_a_peers_word_counts_for_one_announcement_and_from_that_peer_alone() {
        let (node, peer) = (node_keys_of(1), node_keys_of(2));
        let announcement = |secret| {
            let next = node.preparing(&[secret; 32]).unwrap();
            next.unproved_announcement(MESH).unwrap()
        };
        let (one, another) = (announcement(7), announcement(8));
        let word = sign(&peer, node_id(2), &one);
        let identity = peer.identity_key();
        assert!(is_signed(&one, node_id(2), identity, &word));
        assert!(!is_signed(&another, node_id(2), identity, &word));
        assert!(!is_signed(&one, node_id(3), identity, &word));
        assert!(!is_signed(
            &one,
            node_id(2),
            node_keys_of(3).identity_key(),
            &word
        ));
        // What the peer signs for another purpose is no word, nor the other way round.
        let text = one.announcement.as_bytes();
        for purpose in [enrolment::STATEMENT, enrolment::ANNOUNCEMENT] {
            let signature = peer.sign(&[purpose, text].concat());
            assert!(!is_signed(&one, node_id(2), identity, &signature));
        }
    }
}
