//! A site's gateway with its agent, and the host of the LAN behind it.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    binaries::Binaries,
    device::TunnelDevice,
    host::Host,
    process::{self, Daemon},
    site::LabSite,
};

/// The agent's state on each gateway; `/run` is the gateway's own.
pub const STATE_DIR: &str = "/run/wattle";
/// The settings of each gateway; none unless a test writes them.
pub const CONFIG: &str = "/run/wattle-agent.toml";
/// The interface that the agent makes.
pub const INTERFACE: &str = "wattle0";

/// Where each agent finds its things.
const PLACE: [&str; 6] = [
    "--state-dir",
    STATE_DIR,
    "--interface",
    INTERFACE,
    "--config",
    CONFIG,
];

/// A site of the lab: its gateway and its LAN.
#[derive(Debug)]
pub struct Gateway {
    pub site: LabSite,
    pub host: Host,
    pub lan_host: Host,
    binaries: Binaries,
    logs: PathBuf,
    agent: Option<Daemon>,
}

impl Gateway {
    pub(crate) fn start(site: LabSite, binaries: Binaries, logs: PathBuf) -> Result<Self> {
        let host = Host::start(site.name)?;
        let lan_host = Host::start(&format!("{}-host", site.name))?;
        Ok(Self {
            site,
            host,
            lan_host,
            binaries,
            logs,
            agent: None,
        })
    }

    /// `wattle-agent run`, in the background.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_under(&[])
    }

    /// As [`Gateway::start_agent`], with words before it that take rights from it, such as those of
    /// `setpriv`.
    pub fn start_agent_under(&mut self, words: &[&str]) -> Result<()> {
        let mut command = self.host.enter();
        command
            .args(words)
            .arg(self.binaries.agent())
            .args(PLACE)
            .arg("run")
            .env("RUST_BACKTRACE", "1");
        self.agent = Some(Daemon::start(
            command,
            &self.logs.join(format!("{}-agent.log", self.site.name)),
        )?);
        Ok(())
    }

    /// The agent's program.
    pub fn program(&self) -> &Path {
        Path::new(self.binaries.agent())
    }

    /// The running agent.
    pub fn agent(&mut self) -> Result<&mut Daemon> {
        let agent = self
            .agent
            .as_mut()
            .with_context(|| format!("no agent runs on {}", self.site.name))?;
        agent
            .expect_running()
            .with_context(|| format!("the agent of {}", self.site.name))?;
        Ok(agent)
    }

    /// Ends the agent with `kill -9`.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// Ends the agent with SIGTERM; it has to end well.
    pub fn stop_agent(&mut self) -> Result<()> {
        let status = self.agent.take().context("no agent runs")?.stop()?;
        if status.success() {
            Ok(())
        } else {
            bail!("the agent of {} ended with {status}", self.site.name)
        }
    }

    /// `wattle-agent join`, which has to succeed.
    pub fn join(&self, join_string: &str) -> Result<String> {
        let output = self.try_join(join_string)?;
        if !output.status.success() {
            bail!(
                "joining {}: {}: {}",
                self.site.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `wattle-agent join`, whatever comes of it.
    pub fn try_join(&self, join_string: &str) -> Result<Output> {
        self.try_agent(&["join", join_string])
    }

    /// Another command of the agent, which has to succeed: what it printed.
    pub fn agent_says(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command(self.binaries.agent());
        command.args(PLACE).args(arguments);
        process::run(command, None)
    }

    /// Another command of the agent, whatever comes of it.
    pub fn try_agent(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.host.command(self.binaries.agent());
        command.args(PLACE).args(arguments);
        process::output(&mut command, None)
    }

    /// Another command of the agent, which runs beside what follows.
    pub fn start_command(&self, arguments: &[&str]) -> Result<Daemon> {
        let mut command = self.host.command(self.binaries.agent());
        command.args(PLACE).args(arguments);
        let log = format!("{}-{}.log", self.site.name, arguments.join("-"));
        Daemon::start(command, &self.logs.join(log))
    }

    /// `wattle-agent status --json`.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.agent_says(&["status", "--json"])?)
            .context("reading the agent's status")
    }

    /// What the device of the tunnels says of itself.
    pub fn device(&self) -> Result<TunnelDevice> {
        TunnelDevice::of(&self.host, INTERFACE)
    }

    /// Each peer's public key with its allowed prefixes, sorted, as the device has them.
    pub fn allowed_ips(&self) -> Result<Vec<(String, Vec<String>)>> {
        let peers = self.device()?.peers.into_iter();
        Ok(peers.map(|(key, peer)| (key, peer.allowed_ips)).collect())
    }

    /// Public half of the interface's key.
    pub fn public_key(&self) -> Result<String> {
        Ok(self.device()?.public_key)
    }

    /// The tunnel address that the interface has.
    pub fn tunnel_address(&self) -> Result<Ipv4Addr> {
        let text = self
            .host
            .run(&format!("ip -json -4 address show dev {INTERFACE}"))?;
        let links: Value = serde_json::from_str(&text)?;
        let address = links
            .pointer("/0/addr_info/0/local")
            .and_then(Value::as_str)
            .with_context(|| format!("no address: {text}"))?;
        Ok(address.parse()?)
    }
}
