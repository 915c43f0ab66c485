//! A private Postgres in the data directory: what the coordinator runs on when it is given no
//! database.
//!
//! It listens on a Unix socket in a folder of its own and nowhere else, is stopped with the
//! coordinator, and goes down with it even when that is killed: `setpriv --pdeathsig` ties it to
//! the thread which started it, so that thread lives as long.

mod binaries;
mod folder;
mod supervise;

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use sqlx::postgres::PgConnectOptions;

use self::{
    folder::{Folder, Process},
    supervise::Supervisor,
};

/// How long a Postgres may take to become ready; it may have to replay its log first.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The one role of the private cluster.
const USER: &str = "wattle";
const PORT: u16 = 5432;

/// A private Postgres that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Postgres {
    folder: Folder,
    supervisor: Arc<Supervisor>,
    /// Held for as long as this Postgres runs: one coordinator per data directory.
    _lock: Flock<fs::File>,
}

impl Postgres {
    /// Starts the Postgres of a data directory, and makes it first if there is none. Blocks until
    /// it is ready.
    ///
    /// # Errors
    ///
    /// In words for an operator: no Postgres is installed, another coordinator uses the directory,
    /// or what Postgres itself said.
    pub fn start(data_dir: &Path) -> anyhow::Result<Self> {
        let folder = Folder::prepare(data_dir)?;
        let lock_path = data_dir.join("lock");
        let file = fs::File::create(&lock_path)
            .with_context(|| format!("cannot write {}", lock_path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another wattle-server uses {}: give this one another --data-dir",
                data_dir.display()
            );
        };
        let binaries = binaries::find(folder.major_version()?)?;
        folder.initialise(&binaries)?;
        let supervisor = Supervisor::start(folder.clone(), &binaries, READY_WITHIN)?;
        Ok(Self {
            folder,
            supervisor,
            _lock: lock,
        })
    }

    /// How to connect to it.
    pub fn options(&self) -> PgConnectOptions {
        connect_options(&self.folder.socket_folder)
    }

    /// Its process; `None` while it is down.
    pub fn pid(&self) -> Option<i32> {
        self.supervisor.pid()
    }

    /// Stops it, as one stops a Postgres: transactions are rolled back, nothing that was
    /// acknowledged is lost.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.supervisor.stop();
    }
}

/// How to connect to the Postgres that a coordinator runs in this data directory; `None` when none
/// runs.
pub fn running(data_dir: &Path) -> Option<PgConnectOptions> {
    let data = fs::canonicalize(data_dir.join("postgres/data")).ok()?;
    let postmaster = folder::PostmasterFile::read(&data)?;
    (postmaster.ready && folder::process_of(postmaster.pid, &data) == Process::Runs)
        .then(|| connect_options(&postmaster.socket_folder))
}

/// Whether a coordinator has made a Postgres in this data directory.
pub fn exists(data_dir: &Path) -> bool {
    data_dir.join("postgres/data/PG_VERSION").exists()
}

fn connect_options(socket_folder: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_folder)
        .port(PORT)
        .username(USER)
        .database("postgres")
}
