//! Going inside: this program starts itself again in namespaces of its own, as the first process of
//! which all others are children.
//!
//! ```text
//!   outside ── setpriv ── unshare ── init (PID 1 inside) ── worker ── hosts, coordinator, agents
//! ```
//!
//! `setpriv` and `unshare` pass the death of their parent down, and with PID 1 the kernel ends
//! everything inside and takes back the network namespaces, which have no names. There is nothing
//! to clean up, not even after `kill -9`.

use std::{
    env,
    fmt::Display,
    fs,
    io::Write,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, wait},
    unistd::{Pid, geteuid},
};

use crate::flow::end;

/// Which part of the lab this process is.
const ROLE: &str = "WATTLE_LAB_ROLE";
/// What the worker is to do.
const JOB: &str = "WATTLE_LAB_JOB";
/// Set to 1, a lab of root uses a user namespace too, as everybody else's does.
const UNPRIVILEGED: &str = "WATTLE_LAB_UNPRIVILEGED";

/// Runs `outside`, or, in a process that the lab started itself, that process' part; `inside` gets
/// the job given to [`command`].
///
/// To be called first in `main` of every program that makes labs.
pub fn main(
    inside: impl FnOnce(&str) -> Result<()>,
    outside: impl FnOnce() -> ExitCode,
) -> ExitCode {
    let part = env::var(ROLE).ok();
    let result = match part.as_deref() {
        None => return outside(),
        Some("init") => init(),
        Some("worker") => worker(inside),
        Some(end::ROLE) => end::main().map(|()| ExitCode::SUCCESS),
        Some(other) => Err(anyhow::anyhow!(
            "{ROLE} is {other}, which is no part of a lab"
        )),
    };
    result.unwrap_or_else(|error| {
        say(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// The command that does `job` inside a new lab. It ends when this thread ends.
pub fn command(job: &str) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    if !geteuid().is_root() || env::var_os(UNPRIVILEGED).is_some() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .arg(env::current_exe().context("finding this program")?)
        .env(ROLE, "init")
        .env(JOB, job);
    // Nobody inside reaches the machine's proxy.
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    // Debian keeps these from the path of ordinary users, and here everybody is root.
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    Ok(command)
}

/// The command that plays another part of this program inside a lab: `prefix` goes before it.
pub(crate) fn part(mut prefix: Command, role: &str) -> Result<Command> {
    prefix
        .arg(env::current_exe().context("finding this program")?)
        .env(ROLE, role);
    Ok(prefix)
}

/// Whether root inside is root of the machine, and not of a user namespace only.
pub fn is_real_root() -> Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").context("reading /proc/self/uid_map")?;
    Ok(geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// What to tell a person whose machine did not let the lab in.
pub fn explain(log: &str) -> Option<&'static str> {
    let refused = log.contains("unshare failed")
        || log.contains("write failed /proc/self/")
        || log.contains("mount /proc failed");
    refused.then_some(
        "this machine does not let this user make namespaces: run it as root, or \
        allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
        kernel.apparmor_restrict_unprivileged_userns=0)",
    )
}

/// PID 1: starts the worker, buries orphans, and ends as the worker does.
fn init() -> Result<ExitCode> {
    let worker = Command::new(env::current_exe()?)
        .env(ROLE, "worker")
        .spawn()
        .context("starting the worker")?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => {
                return Ok(ExitCode::from(u8::try_from(code)?));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => {
                bail!("the worker was ended by {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("waiting for the worker: {error}"),
        }
    }
}

fn worker(inside: impl FnOnce(&str) -> Result<()>) -> Result<ExitCode> {
    let job = env::var(JOB).context("a worker without a job")?;
    inside(&job).map(|()| ExitCode::SUCCESS)
}

fn say(what: impl Display) {
    // Nobody is left to be told when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{what}");
}
