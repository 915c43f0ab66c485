//! What the agent made on this host, remembered across its restarts, so that it takes away that and
//! nothing else.

use std::{
    collections::BTreeSet,
    fs, mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
    /// Addresses with a route past the tunnel. Each is written down before its route is made.
    pub(super) underlay: BTreeSet<IpAddr>,
    /// Switches that the agent set, in order.
    pub(super) sysctls: Vec<OwnedSysctl>,
}

/// The interface that the agent made. It is written down before, so that a crash in between leaves
/// nothing unowned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnedInterface {
    #[serde(flatten)]
    pub(super) device: OwnedDevice,
    /// The kernel's number of the interface, which it gives to no other until it boots. Absent
    /// means it was being made.
    #[serde(default)]
    pub(super) index: Option<u32>,
}

/// What moves the packets of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "device")]
pub(super) enum OwnedDevice {
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

/// The record in memory, and the file that holds it. One process at a time changes it: the agent,
/// or `wattle-agent down` when no agent runs.
#[derive(Clone, Debug)]
pub(super) struct OwnedStore {
    store: Store,
    record: Arc<Mutex<OwnedRecord>>,
}

#[derive(Debug)]
struct OwnedRecord {
    owned: Owned,
    /// Why the file is older than this; absent means it is not.
    unsaved: Option<String>,
}

impl OwnedStore {
    pub(super) fn new(store: &Store) -> anyhow::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?;
        let namespace = namespace_of("self").context("cannot read /proc/self/ns/net")?;
        Self::on_host(store, format!("{} {}", boot.trim(), namespace.display()))
    }

    fn on_host(store: &Store, host: String) -> anyhow::Result<Self> {
        let nothing = Owned {
            host,
            ..Owned::default()
        };
        let owned = match store.read::<Owned>(FILE) {
            Ok(Some(owned)) if owned.host == nothing.host => owned,
            Ok(_) => nothing,
            Err(error) if error.is::<serde_json::Error>() => {
                warn!("cannot read the list of what the agent made on this host: {error:#}");
                nothing
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            store: store.clone(),
            record: Arc::new(Mutex::new(OwnedRecord {
                owned,
                unsaved: None,
            })),
        })
    }

    pub(super) fn get(&self) -> Owned {
        self.read(Owned::clone)
    }

    /// A part of it: the whole has all rules of the table, and is worth no copy for each step.
    pub(super) fn read<T>(&self, part: impl FnOnce(&Owned) -> T) -> T {
        part(&self.record().owned)
    }

    pub(super) fn interface(&self) -> Option<OwnedInterface> {
        self.read(|owned| owned.interface.clone())
    }

    /// Changes the record. Where the disk is full or may not be written, the record is in memory
    /// alone, and [`OwnedStore::problem`] says so: what the host needs is done all the same.
    pub(super) fn change(&self, change: impl FnOnce(&mut Owned)) {
        let mut record = self.record();
        change(&mut record.owned);
        self.save(&mut record);
    }

    pub(super) fn forget(&self) -> anyhow::Result<()> {
        let mut record = self.record();
        record.owned = Owned {
            host: mem::take(&mut record.owned.host),
            ..Owned::default()
        };
        record.unsaved = None;
        self.store.remove(FILE)
    }

    /// What is not on disk, in words; tries again to write it first.
    pub(super) fn problem(&self) -> Option<String> {
        let mut record = self.record();
        if record.unsaved.is_some() {
            self.save(&mut record);
        }
        record.unsaved.clone()
    }

    fn save(&self, record: &mut OwnedRecord) {
        record.unsaved =
            self.store.write(FILE, &record.owned).err().map(|error| {
                format!("cannot write down what the agent made on this host: {error:#}")
            });
    }

    fn record(&self) -> MutexGuard<'_, OwnedRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::ids::NodeId;

    use super::*;

    const NODE: &str = "018f3c1e-7d2a-7b31-9c55-0242ac120002";
    const KERNEL: OwnedInterface = OwnedInterface {
        device: OwnedDevice::Kernel,
        index: Some(7),
    };

    #[test]
    fn what_was_made_is_remembered_until_the_next_boot() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let open = || OwnedStore::new(&store).unwrap();
        let owned = open();
        assert_eq!(owned.interface(), None);

        owned.change(|made| made.interface = Some(KERNEL));
        let ruleset = Ruleset {
            node: NODE.parse::<NodeId>().unwrap(),
            interface: "wattle0".parse().unwrap(),
            local: BTreeSet::new(),
            remote: BTreeSet::new(),
        };
        owned.change(|made| {
            made.ruleset = Some(OwnedRuleset {
                ruleset,
                text: "a".to_owned(),
                listing: "b".to_owned(),
            });
        });
        let made = open().get();
        assert_eq!(made.interface, Some(KERNEL));
        assert_eq!(made.ruleset.unwrap().listing, "b");

        let after_boot = OwnedStore::on_host(&store, "another boot".to_owned()).unwrap();
        assert_eq!(
            after_boot.get(),
            Owned {
                host: "another boot".to_owned(),
                ..Owned::default()
            }
        );

        owned.forget().unwrap();
        owned.forget().unwrap();
        assert_eq!((owned.interface(), open().interface()), (None, None));
    }

    #[test]
    fn z2_what_cannot_be_written_down_is_remembered_and_told_and_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state")).unwrap();
        let owned = OwnedStore::new(&store).unwrap();
        fs::remove_dir(store.dir()).unwrap();
        owned.change(|made| made.interface = Some(KERNEL));
        assert_eq!(owned.interface(), Some(KERNEL));
        assert!(owned.problem().unwrap().contains("cannot write"));
        fs::create_dir(store.dir()).unwrap();
        assert_eq!(owned.problem(), None);
        assert_eq!(OwnedStore::new(&store).unwrap().interface(), Some(KERNEL));
    }

    #[test]
    fn a_spoilt_memory_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        let owned = OwnedStore::new(&Store::open(folder.path()).unwrap()).unwrap();
        assert_eq!(owned.get().sysctls, Vec::new());
    }
}
