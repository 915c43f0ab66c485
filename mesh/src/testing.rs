//! Keys and records for tests, the same at each run.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use uuid::Uuid;
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    ids::MeshId,
    key::{IdentityKey, WireguardKey},
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::admit;

pub(crate) const MESH: MeshId = MeshId(Uuid::from_u128(0xa1));

/// The keys of the node with a number.
pub(crate) struct Keys {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) wireguard: StaticSecret,
}

impl Keys {
    pub(crate) fn of(number: u64) -> Self {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        Self { identity: Ed25519KeyPair::from_seed_unchecked(&seed).unwrap(), wireguard: StaticSecret::from(seed) }
    }

    pub(crate) fn identity_key(&self) -> IdentityKey {
        let bytes: [u8; 32] = self.identity.public_key().as_ref().try_into().unwrap();
        IdentityKey::from(bytes)
    }

    pub(crate) fn wireguard_key(&self) -> WireguardKey {
        WireguardKey::try_from(PublicKey::from(&self.wireguard).to_bytes()).unwrap()
    }

    pub(crate) fn statement(&self, sequence: u64) -> SignedStatement {
        let statement = Statement { mesh: MESH, identity: self.identity_key(), wireguard_key: self.wireguard_key(), sequence };
        admit::sign_statement(&statement, &self.identity).unwrap()
    }
}
