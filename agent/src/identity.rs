//! The node's keys, which are made here and never leave, and what enrolment said, in one file of the state directory.

use anyhow::{Context, anyhow};
use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use wattle_mesh::machine::Machine;
use wattle_wire::{enrol::Enrolled, key::Bytes32, secret::Secret};
use zeroize::Zeroizing;

use crate::store::Store;

/// Which of the machine's identities: the present one, or the one that `join --replace` is about to put in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Present,
    Next,
}

/// [`Machine`] and [`Membership`] as they are kept, in one file, so that they change together: private halves in base64.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// PKCS#8.
    identity: Secret,
    wireguard: Secret,
    sequence: u64,
    /// Absent until the machine is a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
}

/// Of which mesh the machine is a node, and where its coordinators are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) enrolled: Enrolled,
    pub(crate) urls: Vec<String>,
    #[serde(default)]
    pub(crate) pins: Vec<Bytes32>,
}

impl Slot {
    fn file(self) -> &'static str {
        match self {
            Self::Present => "node.json",
            Self::Next => "node.next.json",
        }
    }

    /// Reads the keys, and the membership if the machine is a node; `None` if there are no keys yet.
    pub(crate) fn load(self, store: &Store) -> anyhow::Result<Option<(Machine, Option<Membership>)>> {
        let Some(stored) = store.read::<Stored>(self.file())? else { return Ok(None) };
        let damaged = || anyhow!("{} is damaged; restore it, or join again with --replace", store.path(self.file()).display());
        let bytes = |secret: &Secret| STANDARD.decode(secret.reveal()).map(Zeroizing::new).map_err(|_| damaged());
        let wireguard = <[u8; 32]>::try_from(bytes(&stored.wireguard)?.as_slice()).map(Zeroizing::new).map_err(|_| damaged())?;
        let machine = Machine::restore(&bytes(&stored.identity)?, &wireguard, stored.sequence).with_context(damaged)?;
        Ok(Some((machine, stored.membership)))
    }

    /// Reads the keys, or makes new ones and keeps them.
    pub(crate) fn load_or_make(self, store: &Store) -> anyhow::Result<Machine> {
        if let Some((machine, _)) = self.load(store)? {
            return Ok(machine);
        }
        let mut seeds = Zeroizing::new([[0; 32]; 2]);
        rand::fill(seeds.as_flattened_mut()).map_err(|_| anyhow!("the system has no random numbers"))?;
        let machine = Machine::new(&seeds[0], &seeds[1])?;
        self.save(store, &machine, None)?;
        Ok(machine)
    }

    pub(crate) fn save(self, store: &Store, machine: &Machine, membership: Option<Membership>) -> anyhow::Result<()> {
        let stored = Stored {
            identity: Secret::new(STANDARD.encode(machine.identity_private_key()?)),
            wireguard: Secret::new(STANDARD.encode(machine.wireguard_private_key())),
            sequence: machine.sequence(),
            membership,
        };
        store.write(self.file(), &stored)
    }

    /// Removes the keys.
    pub(crate) fn clear(self, store: &Store) -> anyhow::Result<()> {
        store.remove(self.file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(Slot::Present.load(&store).unwrap().is_none());
        let made = Slot::Present.load_or_make(&store).unwrap();
        let (read, membership) = Slot::Present.load(&store).unwrap().unwrap();
        assert!(membership.is_none());
        assert_eq!(made.wireguard_key(), read.wireguard_key());
        assert_eq!(made.identity_key(), read.identity_key());
        assert_eq!(Slot::Present.load_or_make(&store).unwrap().wireguard_key(), made.wireguard_key());
        assert_ne!(Slot::Next.load_or_make(&store).unwrap().wireguard_key(), made.wireguard_key());
    }
}
