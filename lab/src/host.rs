//! A host: a network namespace and a mount namespace with a `/run` of its own, kept by one process.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::process;

/// What `ps` shows in front of the host's name.
pub const MARK: &str = "wattle-lab-host";

/// Makes the inside of a host, then waits for as long as its standard input is open.
///
/// Forwarding and filtering begin as they are on a machine just installed, whatever the machine
/// below has set: namespaces inherit. Nobody else has the hosts' IPv6 addresses, so none waits to
/// see whether somebody has.
const HOLDER: &str = "
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mount -t sysfs sysfs /sys || true
for setting in /proc/sys/net/ipv6/conf/*/accept_dad; do
    [ ! -e $setting ] || echo 0 > $setting
done
ip link set lo up
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter
echo ready
read -r _
";

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    holder: Child,
    /// Closed, it ends the holder.
    _leash: ChildStdin,
}

impl Host {
    pub fn start(name: &str) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", HOLDER, MARK, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let (Some(leash), Some(stdout)) = (holder.stdin.take(), holder.stdout.take()) else {
            bail!("the holder of {name} has no pipes")
        };
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer)?;
        if answer.trim() != "ready" {
            bail!("the host {name} did not come up: {}", holder.wait()?);
        }
        Ok(Self {
            name: name.to_owned(),
            holder,
            _leash: leash,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process whose namespaces are the host.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs on the host; its arguments are still to be added.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.enter();
        command.arg(program);
        command
    }

    /// What goes before a program so that it runs on the host. The program takes the place of
    /// `nsenter`, and with it the process id.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.pid().to_string(),
            "--net",
            "--mount",
            "--",
        ]);
        command
    }

    /// Runs a line of words, without quotes or any other meaning of a shell, and gives what it
    /// printed; it has to succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        process::run(self.line(line)?, None).with_context(|| format!("on {}", self.name))
    }

    /// As [`Host::run`], with something to read.
    pub fn run_with(&self, line: &str, input: &str) -> Result<String> {
        process::run(self.line(line)?, Some(input)).with_context(|| format!("on {}", self.name))
    }

    /// Runs a line of words, whatever comes of it.
    pub fn output(&self, line: &str) -> Result<Output> {
        process::output(&mut self.line(line)?, None).with_context(|| format!("on {}", self.name))
    }

    /// One ping; an error says what came instead of the answer.
    pub fn ping(&self, address: impl std::fmt::Display) -> Result<()> {
        self.run(&format!("ping -n -c 1 -W 0.5 {address}"))
            .map(drop)
    }

    fn line(&self, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command")?);
        command.args(words);
        Ok(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What else runs in the namespaces keeps them, and ends with the lab.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
