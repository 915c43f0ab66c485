//! The system's random numbers, which `wattle-mesh` draws none of: for keys, and for ML-KEM-768.

use std::sync::Arc;

use aws_lc_rs::{
    kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768},
    rand,
};
use wattle_mesh::{
    agent::node::Secrets,
    keys::psk::{Kem, KemSecret},
};
use wattle_wire::key::{KemCiphertext, KemKey};
use zeroize::Zeroizing;

/// What nobody guesses, by the system's random numbers.
#[derive(Clone, Copy, Debug)]
pub struct SystemSecrets;

impl Secrets for SystemSecrets {
    fn secret(&self) -> Option<Zeroizing<[u8; 32]>> {
        bytes()
    }
}

/// Bytes for a key, or for anything that nobody should guess; absent when the system has none.
pub fn bytes<const N: usize>() -> Option<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(bytes.as_mut_slice()).ok()?;
    Some(bytes)
}

impl Kem for SystemSecrets {
    fn generate(&self) -> Option<(KemSecret, KemKey)> {
        let secret = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let key: [u8; 1184] = secret
            .encapsulation_key()
            .ok()?
            .key_bytes()
            .ok()?
            .as_ref()
            .try_into()
            .ok()?;
        Some((KemSecret(Arc::new(secret)), key.into()))
    }

    fn encapsulate(&self, key: &KemKey) -> Option<(KemCiphertext, Zeroizing<[u8; 32]>)> {
        let (ciphertext, secret) = EncapsulationKey::new(&ML_KEM_768, key.as_bytes())
            .ok()?
            .encapsulate()
            .ok()?;
        let ciphertext: [u8; 1088] = ciphertext.as_ref().try_into().ok()?;
        Some((
            ciphertext.into(),
            Zeroizing::new(secret.as_ref().try_into().ok()?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use ml_kem::{KeyExport, MlKem768, kem::Decapsulate};

    use super::*;

    #[test]
    fn it_and_an_implementation_by_others_understand_each_other() {
        let (secret, key) = SystemSecrets.generate().unwrap();
        let theirs = ml_kem::EncapsulationKey::<MlKem768>::new(&(*key.as_bytes()).into()).unwrap();
        let (ciphertext, shared) = theirs.encapsulate_deterministic(&[7; 32].into());
        let ciphertext: [u8; 1088] = ciphertext.as_slice().try_into().unwrap();
        assert_eq!(*secret.decapsulate(&ciphertext.into()).unwrap(), *shared);

        let theirs = ml_kem::DecapsulationKey::<MlKem768>::from_seed([9; 64].into());
        let key: [u8; 1184] = theirs
            .encapsulation_key()
            .to_bytes()
            .as_slice()
            .try_into()
            .unwrap();
        let (ciphertext, shared) = SystemSecrets.encapsulate(&key.into()).unwrap();
        assert_eq!(
            *theirs.decapsulate(&(*ciphertext.as_bytes()).into()),
            *shared
        );
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        assert!(SystemSecrets.encapsulate(&[0xff; 1184].into()).is_none());
    }
}
