//! A coordinator in the wrong hands, which has the mesh's own authority and says whatever it likes:
//! what gateways keep meanwhile, and that they come back by themselves.
//!
//! `WATTLE_FUZZ_S` says for how many seconds it goes on, `WATTLE_FUZZ_SEED` what it says.

mod coordinator;
mod draw;

use std::{
    collections::BTreeMap,
    env, fs,
    net::Ipv4Addr,
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wattle_lab::{
    Gateway, Lab,
    api::Api,
    gateway::STATE_DIR,
    lab::items,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait_for,
};

use self::{
    coordinator::Hostile,
    draw::{Liar, unix_s},
};
use crate::{lock::Operator, say};

/// Seconds for which it goes on where nobody says otherwise.
const SECONDS: u64 = 60;
/// By how many KiB an agent may grow.
const MOST_GROWTH_KIB: u64 = 64 << 10;
/// Least time between two looks at the laws.
const PACE: Duration = Duration::from_secs(1);

pub(crate) fn e14_e15_e16_e17_whatever_a_coordinator_with_the_meshs_authority_says_its_gateways_keep_their_networks_and_come_back(
    folder: &Path,
) -> Result<()> {
    let (seconds, seed) = (
        number("WATTLE_FUZZ_S", SECONDS)?,
        number("WATTLE_FUZZ_SEED", 1)?,
    );
    say(&format!("the seed is {seed}, for {seconds} s"));
    let lies = try_lies(folder, Duration::from_secs(seconds), seed);
    lies.with_context(|| format!("WATTLE_FUZZ_SEED={seed} WATTLE_FUZZ_S={seconds}"))
}

fn try_lies(folder: &Path, time: Duration, seed: u64) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let operator = Operator::new(folder, &api, lab.gateway(DUBLIN)?)?;
    operator.sign(lab.gateway(DUBLIN)?)?;
    operator.lock_at(&mut lab, &[DUBLIN, FRANKFURT])?;
    all_is_well(&lab, &api, patience(30.0))?;

    let mut before = Vec::new();
    let mut liars = BTreeMap::new();
    for gateway in &mut lab.gateways {
        before.push(Before::of(gateway)?);
        let kept: Value =
            serde_json::from_str(&gateway.host.read(&format!("{STATE_DIR}/view.json"))?)?;
        let own = [gateway.site.address, gateway.site.gateway_on_lan()];
        let mut liar = Liar::new(seed + before.len() as u64, kept, own)?;
        liar.is_locked = [DUBLIN, FRANKFURT].contains(&gateway.site);
        liars.insert(gateway.site.address, Mutex::new(liar));
    }
    let authority = lab.coordinator.host.read("/run/wattle-server/ca.pem")?;
    lab.coordinator.stop()?;
    let hostile = Hostile::start(&lab.coordinator.host, &authority, liars)?;
    let begun = Instant::now();
    while begun.elapsed() < time {
        for (gateway, before) in lab.gateways.iter_mut().zip(&before) {
            before.holds(gateway)?;
        }
        let (dublin, frankfurt) = (lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?);
        let tunnel_address = before[1].tunnel_address;
        wait_for(
            "the tunnel of two gateways with the lock goes on",
            patience(5.0),
            || dublin.host.ping(tunnel_address),
        )
        .with_context(|| format!("from {} to {}", dublin.site.name, frankfurt.site.name))?;
        thread::sleep(PACE);
    }
    say(&format!(
        "{} messages and answers in {:?}",
        hostile.sent(),
        begun.elapsed()
    ));
    drop(hostile);

    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    wait_for("all follow it again", patience(120.0), || {
        are_followed(&lab)
    })?;
    // Without the lock, machines of the thief's stay as peers that the coordinator has lost.
    lab.gateway(NEW_YORK)?.agent_says(&["confirm"])?;
    // One that waits for the handshake of a new WireGuard key agrees on no other preshared key for
    // some seconds, and a gateway that lost its peers has to.
    all_is_well(&lab, &api, patience(120.0))?;
    for (gateway, before) in lab.gateways.iter_mut().zip(&before) {
        before.holds(gateway)?;
        let (rest, most) = (before.resident_kib, memory_kib(gateway, "VmHWM")?);
        let name = gateway.site.name;
        say(&format!(
            "{name}: {rest} KiB at rest, {most} KiB at the most"
        ));
    }
    Ok(())
}

fn number(variable: &str, otherwise: u64) -> Result<u64> {
    env::var(variable).map_or(Ok(otherwise), |text| {
        text.parse()
            .with_context(|| format!("{variable} is no number"))
    })
}

/// Each gateway is where the coordinator is, every link is up, and LANs reach each other.
fn all_is_well(lab: &Lab, api: &Api, deadline: Duration) -> Result<()> {
    wait_for("all is well", deadline, || {
        are_followed(lab)?;
        let links: Value = api.get("/links")?;
        let links = items(&links);
        ensure!(links.len() == 3, "{links:?}");
        ensure!(links.iter().all(|link| link["state"] == "up"), "{links:?}");
        lab.ping_all()
    })
}

/// Each gateway is where the coordinator is.
fn are_followed(lab: &Lab) -> Result<()> {
    let position = lab
        .coordinator
        .sql("SELECT epoch || '.' || revision FROM mesh;")?;
    for gateway in &lab.gateways {
        let status = gateway.status()?;
        let has = status["position"].as_str().unwrap_or_default();
        ensure!(
            has == position.trim(),
            "{} is at {has}, the coordinator at {} ({}): {}",
            gateway.site.name,
            position.trim(),
            unix_s(),
            status["problems"]
        );
    }
    Ok(())
}

/// What a gateway had before, and what it keeps.
struct Before {
    pid: u32,
    resident_kib: u64,
    tunnel_address: Ipv4Addr,
    /// Lines of `ip` about its own networks.
    networks: Vec<String>,
}

impl Before {
    fn of(gateway: &mut Gateway) -> Result<Self> {
        let pid = gateway.agent()?.pid();
        // The highest that it was is what it is now.
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        Ok(Self {
            pid,
            resident_kib: memory_kib(gateway, "VmRSS")?,
            tunnel_address: gateway.tunnel_address()?,
            networks: networks(gateway)?,
        })
    }

    fn holds(&self, gateway: &mut Gateway) -> Result<()> {
        let name = gateway.site.name;
        ensure!(gateway.agent()?.pid() == self.pid, "{name}: another agent");
        let most = memory_kib(gateway, "VmHWM")?;
        ensure!(
            most <= self.resident_kib + MOST_GROWTH_KIB,
            "{name}: {most} KiB of memory, and {} KiB at rest",
            self.resident_kib
        );
        let now = networks(gateway)?;
        let lost: Vec<_> = self
            .networks
            .iter()
            .filter(|line| !now.contains(line))
            .collect();
        ensure!(lost.is_empty(), "{name} lost {lost:?} and has {now:?}");
        let way = gateway.host.run("ip route get 198.18.0.2")?;
        ensure!(
            way.contains("dev eth0"),
            "{name} reaches the coordinator by {way}"
        );
        wait_for(
            "it reaches its coordinator and its LAN",
            patience(5.0),
            || {
                gateway.host.ping(wattle_lab::coordinator::ADDRESS)?;
                gateway.host.ping(gateway.site.lan_host())?;
                gateway.lan_host.ping(gateway.site.gateway_on_lan())
            },
        )
        .with_context(|| name)
    }
}

/// The addresses of a gateway's own interfaces, and the routes there.
fn networks(gateway: &Gateway) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for device in ["eth0", "lan0"] {
        for what in ["-o -4 address show dev", "-4 route show dev"] {
            let said = gateway.host.run(&format!("ip {what} {device}"))?;
            lines.extend(
                said.lines()
                    .map(|line| format!("{device}: {}", line.trim())),
            );
        }
    }
    Ok(lines)
}

/// A figure that the kernel has of the agent's memory.
fn memory_kib(gateway: &mut Gateway, figure: &str) -> Result<u64> {
    let pid = gateway.agent()?.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(figure));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.with_context(|| status.clone())?.parse()?)
}
