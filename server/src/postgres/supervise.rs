//! The thread that starts the private Postgres, waits for it, and starts it again should it die.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    PORT,
    binaries::{self, Binaries},
    folder::{Folder, PostmasterFile},
};

/// How long to wait before a Postgres that died is started again.
const PAUSE: Duration = Duration::from_millis(500);
/// Starts that may fail in a row: children of a Postgres that was killed need a moment to go.
const MOST_FAILURES: u32 = 5;
/// How long a Postgres that is to stop may take.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// A log longer than this is begun anew at the next start.
const LONGEST_LOG: u64 = 1 << 20;

/// What the thread of a private Postgres and its owner tell each other.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    pid: Option<i32>,
    ended: bool,
}

impl Supervisor {
    /// Starts Postgres in a thread of its own and waits until it is ready.
    pub(crate) fn start(
        folder: Folder,
        binaries: &Binaries,
        ready_within: Duration,
    ) -> anyhow::Result<Arc<Self>> {
        let supervisor = Arc::new(Self::default());
        let (exits, exited) = mpsc::channel();
        let (owner, postgres, home) =
            (Arc::clone(&supervisor), binaries.postgres(), folder.clone());
        thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || owner.run(&home, &postgres, &exits))
            .context("cannot start a thread")?;
        let deadline = Instant::now() + ready_within;
        let mut failures = 0;
        while !supervisor.is_ready(&folder) {
            if let Ok(error) = exited.try_recv() {
                failures += 1;
                if failures == MOST_FAILURES {
                    supervisor.stop();
                    bail!("Postgres does not start ({error}): {}", folder.last_words());
                }
            }
            if Instant::now() > deadline {
                supervisor.stop();
                bail!(
                    "Postgres is not ready after {} seconds: {}",
                    ready_within.as_secs(),
                    folder.last_words()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(supervisor)
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.lock().pid
    }

    /// Stops Postgres and waits until it is gone.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.changed.notify_all();
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
            if let Some(pid) = state.pid {
                let _ = kill(Pid::from_raw(pid), signal);
            }
            (state, _) = self
                .changed
                .wait_timeout_while(state, STOP_WITHIN, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
        }
    }

    fn is_ready(&self, folder: &Folder) -> bool {
        let pid = self.pid();
        pid.is_some()
            && PostmasterFile::read(&folder.data)
                .is_some_and(|file| file.ready && Some(file.pid) == pid)
    }

    fn run(&self, folder: &Folder, postgres: &Path, exits: &mpsc::Sender<String>) {
        while !self.lock().stopping {
            let error = match self.run_once(folder, postgres) {
                Ok(()) => "it ended".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            let state = self.lock();
            if state.stopping {
                break;
            }
            tracing::warn!(error, "the private Postgres stopped; starting it again");
            let _ = exits.send(error);
            drop(
                self.changed
                    .wait_timeout_while(state, PAUSE, |state| !state.stopping),
            );
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn run_once(&self, folder: &Folder, postgres: &Path) -> anyhow::Result<()> {
        folder.free()?;
        let mut child = spawn(folder, postgres)?;
        let pid = i32::try_from(child.id()).context("a process number out of range")?;
        let stopping = {
            let mut state = self.lock();
            state.pid = Some(pid);
            state.stopping
        };
        if stopping {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let status = child.wait();
        self.lock().pid = None;
        let status = status.context("cannot wait for Postgres")?;
        if !status.success() {
            bail!("{status}");
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(folder: &Folder, postgres: &Path) -> anyhow::Result<Child> {
    let grown = fs::metadata(&folder.log).is_ok_and(|metadata| metadata.len() > LONGEST_LOG);
    if grown {
        fs::remove_file(&folder.log)?;
    }
    let no_link = OFlag::O_NOFOLLOW.bits();
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(no_link)
        .open(&folder.log)
        .context("cannot write the log of Postgres")?;
    let mut command: Command = match binaries::setpriv() {
        Some(setpriv) => {
            let mut command = folder.command(&setpriv);
            command.args(["--pdeathsig", "INT", "--"]).arg(postgres);
            command
        }
        None => folder.command(postgres),
    };
    // In quotes, because the setting is a list.
    let mut socket = OsString::from("unix_socket_directories=\"");
    socket.push(&folder.socket_folder);
    socket.push("\"");
    command
        .arg("-D")
        .arg(&folder.data)
        .args(["-p", &PORT.to_string(), "-c", "listen_addresses=", "-c"])
        .arg(socket);
    for setting in [
        "unix_socket_permissions=0700",
        "max_connections=100",
        "shared_buffers=32MB",
        "wal_level=minimal",
        "max_wal_senders=0",
        "log_min_messages=warning",
    ] {
        command.args(["-c", setting]);
    }
    command
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {}", postgres.display()))
}
