//! The secret of a round, by ML-KEM-768, and the preshared key that both ends compute of it.

#[cfg(test)]
pub(crate) mod seeded;
#[cfg(test)]
mod vectors;

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest::{SHA256, digest},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    kem::{AlgorithmId, Ciphertext, DecapsulationKey},
};
use serde::{Deserialize, Serialize};
use wattle_wire::{
    key::{Bytes32, KemCiphertext, KemKey, WireguardKey},
    psk::SignedPskMessage,
};
use zeroize::Zeroizing;

use super::{PURPOSE, Psk};

/// The two operations of ML-KEM-768 that need random numbers, which the caller brings. `None` when
/// there are none, or the key is not one.
pub trait Kem {
    fn generate(&self) -> Option<(KemSecret, KemKey)>;
    /// A new secret, and what carries it to the holder of the key.
    fn encapsulate(&self, key: &KemKey) -> Option<(KemCiphertext, Zeroizing<[u8; 32]>)>;
}

/// The private half of a [`KemKey`].
#[derive(Clone)]
pub struct KemSecret(pub Arc<DecapsulationKey<AlgorithmId>>);

impl fmt::Debug for KemSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KemSecret(…)")
    }
}

impl KemSecret {
    /// The secret that somebody has put into a ciphertext for this key.
    pub fn decapsulate(&self, ciphertext: &KemCiphertext) -> Option<Zeroizing<[u8; 32]>> {
        let secret = self
            .0
            .decapsulate(Ciphertext::from(ciphertext.as_bytes().as_slice()))
            .ok()?;
        <[u8; 32]>::try_from(secret.as_ref())
            .ok()
            .map(Zeroizing::new)
    }
}

/// What both ends compute of the secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Derived {
    #[serde(with = "crate::keys::preshared_key::on_disk")]
    pub(super) psk: Psk,
    /// Shows to whoever has the key that one has it, too, and tells nothing about it.
    pub(super) proof: Bytes32,
}

/// The key and its proof, by HKDF-SHA256 (RFC 5869) of the secret, bound to both WireGuard keys and
/// to the whole of both signed messages.
pub(super) fn derive(
    secret: &[u8; 32],
    keys: [WireguardKey; 2],
    request: &SignedPskMessage,
    offer: &SignedPskMessage,
) -> Option<Derived> {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            64
        }
    }
    let whole = |signed: &SignedPskMessage| {
        digest(
            &SHA256,
            &[signed.message.as_bytes(), signed.signature.as_bytes()].concat(),
        )
    };
    let (request, offer) = (whole(request), whole(offer));
    let info = [
        PURPOSE,
        keys[0].as_bytes(),
        keys[1].as_bytes(),
        request.as_ref(),
        offer.as_ref(),
    ];
    let mut okm = Zeroizing::new([0; 64]);
    Salt::new(HKDF_SHA256, PURPOSE)
        .extract(secret)
        .expand(&info, Length)
        .ok()?
        .fill(&mut *okm)
        .ok()?;
    let (psk, proof) = okm.split_at(32);
    Some(Derived {
        psk: Psk::new(psk.try_into().ok()?),
        proof: Bytes32::from(<[u8; 32]>::try_from(proof).ok()?),
    })
}
