//! What the agent made on this host, remembered across its restarts, so that it takes away that and nothing else.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tracing::warn;
use wattle_mesh::ruleset::Ruleset;

use super::userspace::namespace_of;

/// What the agent made. Nothing of it outlives a boot or its network namespace, so neither does the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Made {
    /// Boot and network namespace in which it was made.
    host: String,
    /// The interface; absent means the agent made none.
    pub(super) interface: Option<MadeInterface>,
    /// The table `inet wattle`; absent means the agent made none.
    pub(super) ruleset: Option<MadeRuleset>,
    /// Switches that the agent set, in order.
    pub(super) sysctls: Vec<MadeSysctl>,
}

/// How the interface was made. It is written down before, so that a crash in between leaves nothing unowned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "device")]
pub(super) enum MadeInterface {
    Kernel,
    /// The process behind it; absent means it was being started.
    Userspace {
        process: Option<u32>,
    },
}

/// The table as it was ordered, and as nft listed it right after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeRuleset {
    pub(super) ruleset: Ruleset,
    /// What the agent that made it wrote; a newer one may write another text for the same ruleset.
    pub(super) text: String,
    pub(super) listing: String,
}

/// A switch under `/proc/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeSysctl {
    /// Below `/proc/sys`.
    pub(super) path: String,
    pub(super) before: String,
    pub(super) set_to: String,
}

/// The file that holds it. Each change reads it again: `wattle-agent down` may be another process than the one that made things.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    path: PathBuf,
    host: String,
}

impl Memory {
    pub(super) fn new(state_dir: &Path) -> anyhow::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
        let namespace = namespace_of("self").context("cannot read /proc/self/ns/net")?;
        Ok(Self { path: state_dir.join("made.json"), host: format!("{} {}", boot.trim(), namespace.display()) })
    }

    pub(super) fn recall(&self) -> anyhow::Result<Made> {
        let nothing = Made { host: self.host.clone(), ..Made::default() };
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        match serde_json::from_str::<Made>(&text) {
            Ok(made) if made.host == self.host => Ok(made),
            Ok(_) => Ok(nothing),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "cannot make sense of the memory of what was made on this host: taken as empty");
                Ok(nothing)
            }
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Made)) -> anyhow::Result<()> {
        let mut made = self.recall()?;
        change(&mut made);
        self.store(&made).with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub(super) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whole or not at all; a temporary file has the mode 0600.
    fn store(&self, made: &Made) -> anyhow::Result<()> {
        let folder = self.path.parent().context("it has no folder")?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(made)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn what_was_made_is_remembered_privately_until_the_next_boot() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path()).unwrap();
        assert_eq!(memory.recall().unwrap().interface, None);

        memory.change(|made| made.interface = Some(MadeInterface::Userspace { process: Some(7) })).unwrap();
        let ruleset = Ruleset { interface: "wattle0".parse().unwrap(), local: BTreeSet::new(), remote: BTreeSet::new() };
        memory.change(|made| made.ruleset = Some(MadeRuleset { ruleset, text: "a".to_owned(), listing: "b".to_owned() })).unwrap();
        let made = memory.recall().unwrap();
        assert_eq!(made.interface, Some(MadeInterface::Userspace { process: Some(7) }));
        assert_eq!(made.ruleset.unwrap().listing, "b");
        assert_eq!(fs::metadata(folder.path().join("made.json")).unwrap().permissions().mode() & 0o777, 0o600);

        let after_boot = Memory { host: "another boot".to_owned(), ..memory.clone() };
        assert_eq!(after_boot.recall().unwrap(), Made { host: "another boot".to_owned(), ..Made::default() });

        memory.forget().unwrap();
        memory.forget().unwrap();
        assert_eq!(memory.recall().unwrap().interface, None);
    }

    #[test]
    fn a_spoilt_memory_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("made.json"), "{").unwrap();
        let memory = Memory::new(folder.path()).unwrap();
        assert_eq!(memory.recall().unwrap().sysctls, Vec::new());
    }
}
