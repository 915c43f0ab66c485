//! Machines with a systemd: the same kernel below a Debian of their own, so that units start and
//! reboots are real.
//!
//! ```text
//!   systemd ══ linux ── root/init ── /sbin/init ── lab-job.service ── root/run ── job
//!                           │
//!                  /: the files of scripts/root below the machine's disk, which keeps what is written over a reboot
//! ```

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use super::{Console, Ended, Machine, Machines, made_by};
use crate::{binaries::repository, process};

/// How much a machine may write. It takes as much of the host's disk as it does write.
const DISK: u64 = 2 << 30;

/// What makes images and containers, beside the packages, and the guides.
const FILES: [&str; 8] = [
    ".dockerignore",
    "Dockerfile",
    "docker-compose.yml",
    "docs/backup.md",
    "docs/disaster.md",
    "docs/install.md",
    "docs/several-coordinators.md",
    "docs/upgrade.md",
];

/// Machines with a systemd.
#[derive(Debug)]
pub struct Debian {
    machines: Machines,
    root: PathBuf,
}

impl Debian {
    /// Builds what is missing, and gathers it in a folder: the two programs, their units and their packages.
    pub fn prepare() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "machines with a systemd have files of many users: run this as root"
        );
        let root = made_by("scripts/root", &[]).context("the systemd ground is missing")?;
        let machines = Machines::gather("systemd", [])?;
        for (from, to) in [
            ("lab/kernel/root", "root"),
            ("packaging/systemd", "packaging"),
        ] {
            copy_files(&repository().join(from), &machines.folder.join(to))?;
        }
        let packages = made_by("scripts/package", &["--debug"]).context("there are no packages")?;
        copy_files(&packages, &machines.folder.join("packages"))?;
        fs::create_dir_all(machines.folder.join("docs"))?;
        for file in FILES {
            let to = machines.folder.join(file);
            fs::copy(repository().join(file), to).with_context(|| format!("copying {file}"))?;
        }
        Ok(Self { machines, root })
    }

    /// The folder of the machines, where what they said is.
    pub fn folder(&self) -> &Path {
        &self.machines.folder
    }

    /// Starts the machine `name`, which does `job`, lines of a shell, anew at each boot, and
    /// switches itself off when one of them ends. After `limit` it is ended.
    pub fn run(&self, name: &str, job: &str, limit: Duration) -> Result<Ended> {
        let machine = self.start(name, job, Console::Nobody)?;
        let disk = machine.folder.join("disk");
        let ended = machine.ended(limit)?;
        // Nobody looks at it any more, and it is large.
        fs::remove_file(disk)?;
        Ok(ended)
    }

    /// A shell in a machine, at this terminal.
    pub fn shell(&self) -> Result<()> {
        self.start("shell", "exec bash -i", Console::Person)?.left()
    }

    fn start(&self, name: &str, job: &str, console: Console) -> Result<Machine> {
        let folder = self.machines.folder.join("machines").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join("job"), format!("{job}\n"))?;
        let disk = folder.join("disk");
        make_disk(&disk)?;
        let mut command = self.machines.command(&folder, "root/init")?;
        // The kernel takes the quotes away. Behind a comma or a colon it looks for another file.
        for (word, path) in [("ubd0", &disk), ("ROOT", &self.root)] {
            let text = path.to_str().filter(|text| !text.contains(['"', ',', ':']));
            let Some(text) = text else {
                bail!(
                    "{} cannot be told to a machine: its path has a quote, a comma or a colon, or \
                     is not UTF-8",
                    path.display()
                );
            };
            command.arg(format!("{word}=\"{text}\""));
        }
        Machine::start(command, folder, console)
    }
}

/// An empty disk with a file system.
fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.set_len(DISK)?;
    // In a folder that an ordinary path does not have.
    let mut command = Command::new("/sbin/mkfs.ext4");
    command
        .args(["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1"])
        .arg(path);
    process::run(command, None).map(drop)
}

/// Copies the files of a folder to another, which is new.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}
