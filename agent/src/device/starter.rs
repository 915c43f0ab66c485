//! How the agent has a device started, and hears how that goes.
//!
//! ```text
//!   with systemd   agent ── /run/wattle-device.sock ── systemd ── a unit of its own
//!   without        agent ── a pair of sockets ── its own program, in a session of its own
//! ```
//!
//! Either way standard input of the device is a connection of the agent. Over systemd's the agent
//! first names the interface, its own network namespace and what to do without: an agent in another
//! namespace than systemd's starts its device itself. The device answers with one line.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use wattle_mesh::host::{interface::InterfaceName, offload::Offload};

/// Where `wattle-device.socket` of the packaging listens. Only the agent's user may write to it.
pub(crate) const SOCKET: &str = "/run/wattle-device.sock";
/// Longest request or answer in bytes.
pub(crate) const LONGEST_LINE: u64 = 4096;
/// How long the agent may take to say what it wants.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

const READY: &str = "ready";
const ELSEWHERE: &str = "another network namespace";

/// What the agent writes to [`SOCKET`]. The namespace is as the kernel names it.
pub(crate) fn request(
    interface: &InterfaceName,
    namespace: &Path,
    no_offload: &BTreeSet<Offload>,
) -> String {
    let namespace = namespace.display();
    format!("{interface} {namespace} {}\n", listed(no_offload))
}

fn listed(offloads: &BTreeSet<Offload>) -> String {
    let names: Vec<_> = offloads.iter().map(Offload::to_string).collect();
    names.join(",")
}

/// What a device said of its start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ready,
    /// It would be in another network namespace than the agent.
    Elsewhere,
    Failed(String),
    /// It ended without a word.
    Nothing,
}

impl Answer {
    pub(crate) fn read(line: &str) -> Self {
        match line.trim_end() {
            "" => Self::Nothing,
            READY => Self::Ready,
            ELSEWHERE => Self::Elsewhere,
            why => Self::Failed(why.to_owned()),
        }
    }
}

/// The agent's program as the device of an interface.
pub(crate) fn command(
    interface: &InterfaceName,
    no_offload: &BTreeSet<Offload>,
) -> anyhow::Result<Command> {
    let mut command = Command::new(own_program()?);
    command
        .arg0("wattle-agent")
        .args(["device", interface.as_str(), "--starter"]);
    if !no_offload.is_empty() {
        command.arg(format!("--no-offload={}", listed(no_offload)));
    }
    Ok(command)
}

/// The agent's program. Once an upgrade replaced the file, what runs is still to be had through
/// `/proc`.
fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find the agent's own program")?;
    Ok(if path.exists() {
        path
    } else {
        PathBuf::from("/proc/self/exe")
    })
}

/// Reads at standard input which device is wanted, and becomes it: its command line names the
/// interface from then on.
pub(crate) fn become_device() -> anyhow::Result<()> {
    let starter = Starter::at_standard_input()?;
    let became = match starter.wanted() {
        Ok(Some((interface, no_offload))) => {
            command(&interface, &no_offload).map(|mut command| command.exec().into())
        }
        Ok(None) => return Ok(starter.tell(ELSEWHERE)?),
        Err(error) => Err(error),
    };
    let error = became.unwrap_or_else(|error| error);
    starter.tell_failure(&error);
    Err(error)
}

/// Who started the device, at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Starter(UnixStream);

impl Starter {
    pub(crate) fn at_standard_input() -> anyhow::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self(input.into()))
    }

    /// Which interface is wanted, and without which offloads; nothing if it is in another network
    /// namespace than this process.
    fn wanted(&self) -> anyhow::Result<Option<(InterfaceName, BTreeSet<Offload>)>> {
        self.0
            .set_read_timeout(Some(REQUEST_LIMIT))
            .context("standard input is no connection of an agent")?;
        let mut line = String::new();
        BufReader::new(&self.0)
            .take(LONGEST_LINE)
            .read_line(&mut line)
            .context("the agent did not say which interface it wants")?;
        let mut words = line.trim_end_matches('\n').split(' ');
        let (interface, namespace) = words
            .next()
            .zip(words.next())
            .context("the agent did not say which interface it wants")?;
        let interface = interface.parse()?;
        let no_offload = words
            .next()
            .into_iter()
            .flat_map(|names| names.split(','))
            .filter(|name| !name.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let own = std::fs::read_link("/proc/self/ns/net").context("cannot read its namespace")?;
        Ok((Path::new(namespace) == own).then_some((interface, no_offload)))
    }

    /// Fails where nobody hears it: the agent has given up, and will ask for another device.
    pub(super) fn tell_ready(self) -> anyhow::Result<()> {
        self.tell(READY)
            .context("the agent that asked for this device is gone")
    }

    pub(super) fn tell_failure(&self, error: &anyhow::Error) {
        // On one line, which is all that is read.
        let why = format!("{error:#}").replace('\n', " ");
        // The agent that is gone asks again when it is back.
        let _ = self.tell(&why);
    }

    fn tell(&self, line: &str) -> io::Result<()> {
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}
