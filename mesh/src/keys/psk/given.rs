//! Preshared keys of tunnels with unmanaged nodes. Nobody there could agree on one, so the
//! coordinator makes it together with the node's file, seals it for the node at the other end, and
//! forgets it.
//!
//! It is sealed by HPKE (RFC 9180) in its base mode, with X25519, HKDF-SHA256 and
//! ChaCha20-Poly1305, to the WireGuard key of the node at the other end. That says nothing of who
//! made it, which is the coordinator's word as the whole file is. It does not withstand a quantum
//! computer, which would need the sealed key as well: it is in the coordinator's database until the
//! node has taken it. Sealing needs random numbers, so the coordinator itself does it.

pub use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey};
use wattle_wire::{
    ids::{MeshId, NodeId},
    key::{SealedPsk, WireguardKey},
};
use zeroize::Zeroizing;

use super::Psk;

/// What a key is sealed for: `info` of HPKE.
pub const PURPOSE: &[u8] = b"wattle given psk v1\0";
/// Bytes of the encapsulated secret, with which a sealed key begins.
const ENCAPSULATED: usize = 32;

/// For which tunnel a key is given, and in which file. A sealed key opens for that one alone.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub mesh: MeshId,
    /// The node without an agent, and its key.
    pub from: (NodeId, WireguardKey),
    /// The node for which it is sealed, and its key.
    pub to: (NodeId, WireguardKey),
    /// When the file was made, in milliseconds since 1970.
    pub made_ms: u64,
}

impl Given {
    /// Opens a key that was sealed for the holder of this private key. `None` when it was not, or
    /// for another tunnel or file.
    pub fn open(&self, sealed: &SealedPsk, private_key: &[u8; 32]) -> Option<Psk> {
        let (encapsulated, ciphertext) = sealed.as_bytes().split_at(ENCAPSULATED);
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let key = HpkePrivateKey::from(private_key.to_vec());
        let opened = Zeroizing::new(
            SUITE
                .open(&encapsulated, PURPOSE, &self.bound(), ciphertext, &key)
                .ok()?,
        );
        <[u8; 32]>::try_from(opened.as_slice()).ok().map(Psk::new)
    }

    /// What a sealed key is bound to: `aad` of HPKE.
    pub fn bound(&self) -> Vec<u8> {
        let ends = [self.from, self.to]
            .map(|(node, key)| [node.0.as_bytes().as_slice(), key.as_bytes()].concat());
        [
            self.mesh.0.as_bytes(),
            ends.concat().as_slice(),
            &self.made_ms.to_be_bytes(),
        ]
        .concat()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use rustls::crypto::hpke::HpkePublicKey;

    use super::*;

    /// Seals a key, as the coordinator does.
    #[expect(
        clippy::disallowed_methods,
        reason = "no seal is the same twice: HPKE takes no random numbers of its caller"
    )]
    pub(crate) fn seal(given: &Given, psk: &Psk) -> SealedPsk {
        let key = HpkePublicKey(given.to.1.as_bytes().to_vec());
        let (encapsulated, ciphertext) = SUITE
            .seal(PURPOSE, &given.bound(), psk.reveal(), &key)
            .unwrap();
        let sealed: [u8; 80] = [encapsulated.0, ciphertext].concat().try_into().unwrap();
        sealed.into()
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::seal, *};
    use crate::testing::{MESH, node_id, node_keys_of};

    #[test]
    fn a_given_key_opens_for_its_tunnel_and_file_alone() {
        let [router, gateway, other] =
            [1, 2, 3].map(|number| (node_id(number), node_keys_of(number).wireguard_key()));
        let private = |number| node_keys_of(number).wireguard_private_key();
        let given = Given {
            mesh: MESH,
            from: router,
            to: gateway,
            made_ms: 7,
        };
        let psk = Psk::new([9; 32]);
        let sealed = seal(&given, &psk);
        assert!(given.open(&sealed, &private(2)) == Some(psk.clone()));
        assert!(given.open(&sealed, &private(3)).is_none());
        for elsewhere in [
            Given {
                from: other,
                ..given
            },
            Given { to: other, ..given },
            Given {
                made_ms: 8,
                ..given
            },
        ] {
            assert!(
                elsewhere.open(&sealed, &private(2)).is_none(),
                "{elsewhere:?}"
            );
        }
        let mut spoilt = *sealed.as_bytes();
        spoilt[79] ^= 1;
        assert!(given.open(&spoilt.into(), &private(2)).is_none());
        assert!(
            !sealed
                .as_bytes()
                .windows(32)
                .any(|window| window == psk.reveal())
        );
    }
}
