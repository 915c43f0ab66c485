//! Secrets for tests, with an ML-KEM-768 by others: their random numbers are counted.

use std::cell::Cell;

use aws_lc_rs::kem::ML_KEM_768;
use ml_kem::{KeyExport, MlKem768};

use super::*;
use crate::agent::node::Secrets;

pub(super) type TheirSecret = ml_kem::DecapsulationKey<MlKem768>;
type TheirKey = ml_kem::EncapsulationKey<MlKem768>;

/// Each secret that it makes in a test is another one, and the same at each run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeededKem;

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

fn seed<const N: usize>() -> [u8; N] {
    let drawn = DRAWN.get() + 1;
    DRAWN.set(drawn);
    let mut seed = [0; N];
    seed[..8].copy_from_slice(&drawn.to_be_bytes());
    seed
}

impl Secrets for SeededKem {
    fn secret(&self) -> Option<Zeroizing<[u8; 32]>> {
        Some(Zeroizing::new(seed()))
    }
}

impl Kem for SeededKem {
    fn generate(&self) -> Option<(KemSecret, KemKey)> {
        let theirs = TheirSecret::from_seed(seed::<64>().into());
        let key = theirs.encapsulation_key().to_bytes();
        let key: [u8; 1184] = key.as_slice().try_into().ok()?;
        Some((ours(&theirs), key.into()))
    }

    fn encapsulate(&self, key: &KemKey) -> Option<(KemCiphertext, Zeroizing<[u8; 32]>)> {
        let key = TheirKey::new(&(*key.as_bytes()).into()).ok()?;
        let (ciphertext, secret) = key.encapsulate_deterministic(&seed::<32>().into());
        let ciphertext: [u8; 1088] = ciphertext.as_slice().try_into().ok()?;
        Some((ciphertext.into(), Zeroizing::new(secret.into())))
    }
}

#[expect(
    deprecated,
    reason = "the vectors, and aws-lc-rs, have decapsulation keys in the form of FIPS 203"
)]
fn expanded(secret: &TheirSecret) -> Vec<u8> {
    ml_kem::ExpandedKeyEncoding::to_expanded_bytes(secret).to_vec()
}

pub(super) fn ours(secret: &TheirSecret) -> KemSecret {
    KemSecret(Arc::new(
        DecapsulationKey::new(&ML_KEM_768, &expanded(secret)).unwrap(),
    ))
}
