//! How the tools that manage a host's firewall are told to let packets through.

use std::collections::BTreeSet;

use ipnet::IpNet;
use wattle_wire::probe::PROBE_PORT;

use crate::{
    diagnose::firewall::{Firewall, Obstacle, RuleNumber},
    host::interface::InterfaceName,
};

/// As many LANs one remedy lets through; the others are told when these are.
const MOST_PAIRS: usize = 4;

/// Who manages a chain, and so has to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    Docker,
    Ufw,
    Firewalld,
    /// iptables of either kind, whose chains have names in capitals.
    Iptables,
    Nft,
}

impl Manager {
    /// Whose a chain is, to be put behind its name.
    pub(super) fn remark(self) -> &'static str {
        match self {
            Self::Docker => " (Docker's)",
            Self::Ufw => " (ufw's)",
            Self::Firewalld => " (firewalld's)",
            Self::Iptables | Self::Nft => "",
        }
    }
}

/// What lets packets between LANs through where chains do not know yet, or not any more, by which
/// interfaces they go.
pub(super) fn let_pairs_through(
    manager: Manager,
    obstacle: &Obstacle,
    near: IpNet,
    far: &BTreeSet<IpNet>,
) -> String {
    let both_ways = far.iter().take(MOST_PAIRS);
    let pairs = both_ways.flat_map(|far| [(near, *far), (*far, near)]);
    let commands = pairs.map(|(source, destination)| {
        if obstacle.legacy || manager == Manager::Iptables {
            iptables(obstacle, &format!("-s {source} -d {destination}"))
        } else {
            let ip = if source.addr().is_ipv4() { "ip" } else { "ip6" };
            let rule = format!("{ip} saddr {source} {ip} daddr {destination} accept");
            nft(obstacle, &rule)
        }
    });
    commands.collect::<Vec<_>>().join("; ")
}

/// What lets packets between the LANs and the tunnel through. The rules come right before the one
/// that is in the way, so that what an administrator forbade before it stays forbidden.
pub(super) fn let_through(
    interface: &InterfaceName,
    manager: Manager,
    obstacle: &Obstacle,
) -> String {
    match manager {
        Manager::Docker => ["-i", "-o"]
            .map(|by| {
                let program = obstacle.iptables();
                format!("{program} -I DOCKER-USER {by} {interface} -j ACCEPT")
            })
            .join("; "),
        Manager::Ufw => {
            format!("ufw route allow in on {interface}; ufw route allow out on {interface}")
        }
        Manager::Firewalld => firewalld(interface),
        Manager::Iptables => ["-i", "-o"]
            .map(|by| iptables(obstacle, &format!("{by} {interface}")))
            .join("; "),
        Manager::Nft => ["iifname", "oifname"]
            .map(|key| nft(obstacle, &format!("{key} {interface} accept")))
            .join("; "),
    }
}

/// What keeps the source address of packets into the tunnel: in the same chain, since only there
/// an `accept` is the last word.
pub(super) fn keep_source(
    interface: &InterfaceName,
    manager: Manager,
    obstacle: &Obstacle,
) -> String {
    match manager {
        Manager::Nft | Manager::Firewalld => nft(obstacle, &format!("oifname {interface} accept")),
        Manager::Docker | Manager::Ufw | Manager::Iptables => {
            iptables(obstacle, &format!("-o {interface}"))
        }
    }
}

pub(super) fn iptables(obstacle: &Obstacle, means: &str) -> String {
    let Obstacle { table, chain, .. } = obstacle;
    let program = obstacle.iptables();
    let table = match table.as_str() {
        "filter" => String::new(),
        other => format!("-t {other} "),
    };
    match obstacle.rule {
        Some(RuleNumber { number, .. }) => {
            format!("{program} {table}-I {chain} {number} {means} -j ACCEPT")
        }
        None => format!("{program} {table}-A {chain} {means} -j ACCEPT"),
    }
}

pub(super) fn nft(obstacle: &Obstacle, rule: &str) -> String {
    let place = obstacle.place();
    match obstacle.rule.and_then(|rule| rule.handle) {
        Some(handle) => format!("nft insert rule {place} position {handle} {rule}"),
        None => format!("nft add rule {place} {rule}"),
    }
}

/// A zone for the tunnel, and policies that let the other zones and it talk to each other.
pub(super) fn firewalld(interface: &InterfaceName) -> String {
    [
        "--new-zone=wattle".to_owned(),
        format!("--zone=wattle --add-interface={interface}"),
        format!("--zone=wattle --add-port={PROBE_PORT}/udp --add-port={PROBE_PORT}/tcp"),
        "--new-policy=wattle-in".to_owned(),
        "--policy=wattle-in --add-ingress-zone=wattle".to_owned(),
        "--policy=wattle-in --add-egress-zone=ANY".to_owned(),
        "--policy=wattle-in --set-target=ACCEPT".to_owned(),
        "--new-policy=wattle-out".to_owned(),
        "--policy=wattle-out --add-ingress-zone=ANY".to_owned(),
        "--policy=wattle-out --add-egress-zone=wattle".to_owned(),
        "--policy=wattle-out --set-target=ACCEPT".to_owned(),
    ]
    .map(|words| format!("firewall-cmd --permanent {words}"))
    .join("; ")
        + "; firewall-cmd --reload"
}

pub(super) fn manager(firewall: &Firewall<'_>, obstacle: &Obstacle) -> Manager {
    let has_chain = |start: &str| {
        firewall.of("chain").any(|chain| {
            chain["family"] == *obstacle.family
                && chain["table"] == *obstacle.table
                && (chain["legacy"] == true) == obstacle.legacy
                && chain["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(start))
        })
    };
    let is_forward = obstacle.base == "FORWARD";
    if obstacle.table == "firewalld" {
        Manager::Firewalld
    } else if is_forward && has_chain("DOCKER-USER") {
        Manager::Docker
    } else if has_chain("ufw-") || has_chain("ufw6-") {
        Manager::Ufw
    } else if ["ip", "ip6"].contains(&obstacle.family.as_str())
        && ["PREROUTING", "FORWARD", "INPUT", "POSTROUTING"].contains(&obstacle.base.as_str())
    {
        Manager::Iptables
    } else {
        Manager::Nft
    }
}
