//! What the agent made on this host, remembered across its restarts, so that it takes away that and
//! nothing else.

use std::fs;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tracing::warn;
use wattle_mesh::host::ruleset::Ruleset;

use super::userspace::namespace_of;
use crate::store::Store;

/// What the agent made. Nothing of it outlives a boot or its network namespace, so neither does the
/// record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Owned {
    /// Boot and network namespace in which it was made.
    host: String,
    /// The interface; absent means the agent made none.
    pub(super) interface: Option<OwnedInterface>,
    /// The table `inet wattle`; absent means the agent made none.
    pub(super) ruleset: Option<OwnedRuleset>,
    /// Switches that the agent set, in order.
    pub(super) sysctls: Vec<OwnedSysctl>,
}

/// How the interface was made. It is written down before, so that a crash in between leaves nothing
/// unowned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "device")]
pub(super) enum OwnedInterface {
    Kernel,
    /// The process behind it; absent means it was being started.
    Userspace {
        process: Option<u32>,
    },
}

/// The table as it was ordered, and as nft listed it right after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnedRuleset {
    pub(super) ruleset: Ruleset,
    /// What the agent that made it wrote; a newer one may write another text for the same ruleset.
    pub(super) text: String,
    pub(super) listing: String,
}

/// A switch under `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnedSysctl {
    /// Below `/proc/sys`.
    pub(super) path: String,
    pub(super) before: String,
    pub(super) set_to: String,
}

const FILE: &str = "made.json";

/// The file that holds it. Each change reads it again: `wattle-agent down` may be another process
/// than the one that made things.
#[derive(Clone, Debug)]
pub(super) struct OwnedStore {
    store: Store,
    host: String,
}

impl OwnedStore {
    pub(super) fn new(store: &Store) -> anyhow::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?;
        let namespace = namespace_of("self").context("cannot read /proc/self/ns/net")?;
        Ok(Self {
            store: store.clone(),
            host: format!("{} {}", boot.trim(), namespace.display()),
        })
    }

    pub(super) fn load(&self) -> anyhow::Result<Owned> {
        let nothing = Owned {
            host: self.host.clone(),
            ..Owned::default()
        };
        match self.store.read::<Owned>(FILE) {
            Ok(Some(made)) if made.host == self.host => Ok(made),
            Ok(_) => Ok(nothing),
            Err(error) if error.is::<serde_json::Error>() => {
                warn!("cannot read the list of what the agent made on this host: {error:#}");
                Ok(nothing)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Owned)) -> anyhow::Result<()> {
        let mut made = self.load()?;
        change(&mut made);
        self.store.write(FILE, &made)
    }

    pub(super) fn forget(&self) -> anyhow::Result<()> {
        self.store.remove(FILE)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_was_made_is_remembered_until_the_next_boot() {
        let folder = tempfile::tempdir().unwrap();
        let owned = OwnedStore::new(&Store::open(folder.path()).unwrap()).unwrap();
        assert_eq!(owned.load().unwrap().interface, None);

        owned
            .change(|made| made.interface = Some(OwnedInterface::Userspace { process: Some(7) }))
            .unwrap();
        let ruleset = Ruleset {
            interface: "wattle0".parse().unwrap(),
            local: BTreeSet::new(),
            remote: BTreeSet::new(),
        };
        owned
            .change(|made| {
                made.ruleset = Some(OwnedRuleset {
                    ruleset,
                    text: "a".to_owned(),
                    listing: "b".to_owned(),
                })
            })
            .unwrap();
        let made = owned.load().unwrap();
        assert_eq!(
            made.interface,
            Some(OwnedInterface::Userspace { process: Some(7) })
        );
        assert_eq!(made.ruleset.unwrap().listing, "b");

        let after_boot = OwnedStore {
            host: "another boot".to_owned(),
            ..owned.clone()
        };
        assert_eq!(
            after_boot.load().unwrap(),
            Owned {
                host: "another boot".to_owned(),
                ..Owned::default()
            }
        );

        owned.forget().unwrap();
        owned.forget().unwrap();
        assert_eq!(owned.load().unwrap().interface, None);
    }

    #[test]
    fn a_spoilt_memory_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        let owned = OwnedStore::new(&Store::open(folder.path()).unwrap()).unwrap();
        assert_eq!(owned.load().unwrap().sysctls, Vec::new());
    }
}
