//! Running a command on a host of a demo, from outside.

use std::{env, fs, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    binaries::Binaries,
    enter,
    gateway::{CONFIG, INTERFACE, STATE_DIR},
    host::MARK,
};

/// Becomes `command` on the host called `name`. It returns only if that fails.
pub fn exec(name: &str, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let hosts = hosts()?;
    let Some((_, pid)) = hosts.iter().rev().find(|(host, _)| host == name) else {
        if hosts.is_empty() {
            bail!("no demo runs: start one with `wattle-lab demo`");
        }
        let names: Vec<&str> = hosts.iter().map(|(host, _)| host.as_str()).collect();
        bail!("no host is called {name}; there are {}", names.join(", "));
    };
    let binaries = Binaries::find()?;
    let folder = std::path::Path::new(binaries.agent())
        .parent()
        .context("the agent is in no folder")?;
    let path = env::join_paths(
        std::iter::once(folder.to_owned())
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    )?;

    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &pid.to_string(), "--net", "--mount", "--pid"]);
    if !enter::is_real_root()? || is_in_user_namespace(*pid)? {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    nsenter.arg("--").arg(program).args(arguments);
    nsenter
        .env("PATH", path)
        .env("WATTLE_STATE_DIR", STATE_DIR)
        .env("WATTLE_INTERFACE", INTERFACE)
        .env("WATTLE_CONFIG", CONFIG);
    Err(nsenter.exec()).context("starting nsenter")
}

/// Name and process of every host of every lab that this user may see, oldest first.
fn hosts() -> Result<Vec<(String, u32)>> {
    let mut hosts = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // A process may end while we look, or be somebody else's.
        let Ok(line) = fs::read_to_string(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
        if let [.., mark, name] = words[..]
            && mark == MARK
            && words[0] == "sh"
        {
            hosts.push((name.to_owned(), pid));
        }
    }
    hosts.sort_by_key(|(_, pid)| *pid);
    Ok(hosts)
}

fn is_in_user_namespace(pid: u32) -> Result<bool> {
    let namespace = |pid: &str| {
        fs::read_link(format!("/proc/{pid}/ns/user"))
            .with_context(|| format!("looking at process {pid}"))
    };
    Ok(namespace(&pid.to_string())? != namespace("self")?)
}
