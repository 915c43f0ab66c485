//! Which rules of this host are in the way of the mesh's packets, and how each tool is told.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;
use wattle_wire::probe::PROBE_PORT;

use super::{Finding, Symptoms, fault, fine, names, notice};
use crate::diagnose::firewall::{Deed, Firewall, Hook, Obstacle, Packet, Transport};

const CHECK: &str = "firewall";

/// Who manages a chain, and so has to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Docker,
    Ufw,
    Firewalld,
    /// iptables, whose chains have names in capitals; or ip6tables.
    Iptables(&'static str),
    Nft,
}

pub(super) fn findings(symptoms: &Symptoms) -> Vec<Finding> {
    let ruleset = match &symptoms.ruleset {
        Ok(ruleset) => ruleset,
        Err(error) => {
            return vec![notice(
                CHECK,
                format!("cannot be read: {error}"),
                "install nftables, and run this as root",
            )];
        }
    };
    let firewall = Firewall::new(ruleset);
    let mut findings: Vec<_> = own_table(symptoms, firewall).into_iter().collect();
    if symptoms.has_legacy_rules {
        let fix = format!(
            "check `iptables-legacy -S`: it must accept UDP port {} and forward {}",
            symptoms.port, symptoms.interface
        );
        findings.push(notice(
            CHECK,
            "there are rules of iptables-legacy, and this check cannot read them",
            fix,
        ));
    }
    findings.extend(between_lans(symptoms, firewall));
    findings.extend(handshakes(symptoms, firewall));
    if symptoms.probes {
        findings.extend(probes(symptoms, firewall));
    }
    findings
}

fn own_table(symptoms: &Symptoms, firewall: Firewall<'_>) -> Option<Finding> {
    let is_own = |chain: &Value| chain["table"] == "wattle" && chain["family"] == "inet";
    let missing = || {
        fault(
            CHECK,
            "the table inet wattle is missing",
            "the running agent makes it; if not, its log says why",
        )
    };
    if let Some(taken) = names::table(symptoms) {
        Some(taken)
    } else if firewall.of("chain").any(is_own) {
        Some(fine(CHECK, "the table inet wattle is there"))
    } else {
        symptoms.joined.then(missing)
    }
}

/// What stands between the LANs of this site and those of others, either way.
fn between_lans(symptoms: &Symptoms, firewall: Firewall<'_>) -> Vec<Finding> {
    let tunnel = symptoms.interface.as_str();
    let mut found: Vec<_> = symptoms
        .lans
        .iter()
        .flat_map(|lan| symptoms.far_lans.iter().map(move |far| (lan, *far)))
        .flat_map(|(lan, far)| firewall.between(lan, tunnel, far))
        .collect();
    // One word for each rule, whatever the number of sites that it is in the way of: the worst.
    found.sort_by_key(|(_, obstacle)| !obstacle.certain);
    let mut told = BTreeSet::new();
    let is_new = |(_, obstacle): &(Packet<'_>, Obstacle)| {
        let rewrites = obstacle.deed == Deed::Rewrite;
        told.insert((obstacle.place(), obstacle.rule, rewrites))
    };
    found.retain(is_new);
    found
        .iter()
        .map(|(packet, obstacle)| barrier(symptoms, firewall, packet, obstacle))
        .collect()
}

fn barrier(
    symptoms: &Symptoms,
    firewall: Firewall<'_>,
    packet: &Packet<'_>,
    obstacle: &Obstacle,
) -> Finding {
    let manager = manager(firewall, obstacle);
    let what = match packet.transport {
        Transport::Ping => "packets",
        Transport::Tcp | Transport::TcpPort(_) | Transport::UdpPort(_) => "connections",
    };
    let mut detail = format!(
        "{obstacle}{}: {what} from {} to {}",
        match manager {
            Manager::Docker => " (Docker's)",
            Manager::Ufw => " (ufw's)",
            Manager::Firewalld => " (firewalld's)",
            Manager::Iptables(_) | Manager::Nft => "",
        },
        packet.source,
        packet.destination
    );
    if obstacle.deed == Deed::Rewrite {
        detail += ". Other sites drop what comes from an address that is not this site's";
    }
    let fix = if obstacle.deed == Deed::Rewrite {
        keep_source(symptoms, manager, obstacle)
    } else {
        let_through(symptoms, manager, obstacle)
    };
    if obstacle.certain {
        fault(CHECK, detail, fix)
    } else {
        notice(CHECK, detail, fix)
    }
}

/// What lets packets between the LANs and the tunnel through. The rules come right before the one
/// that is in the way, so that what an administrator forbade before it stays forbidden.
fn let_through(symptoms: &Symptoms, manager: Manager, obstacle: &Obstacle) -> String {
    let interface = symptoms.interface.as_str();
    match manager {
        Manager::Docker => format!(
            "iptables -I DOCKER-USER -i {interface} -j ACCEPT; iptables -I DOCKER-USER -o \
             {interface} -j ACCEPT"
        ),
        Manager::Ufw => {
            format!("ufw route allow in on {interface}; ufw route allow out on {interface}")
        }
        Manager::Firewalld => firewalld(symptoms),
        Manager::Iptables(program) => [format!("-i {interface}"), format!("-o {interface}")]
            .map(|means| iptables(program, "", obstacle, &means))
            .join("; "),
        Manager::Nft => ["iifname", "oifname"]
            .map(|key| nft(obstacle, &format!("{key} {interface} accept")))
            .join("; "),
    }
}

/// What keeps the source address of packets into the tunnel: in the same chain, since only there
/// an `accept` is the last word.
fn keep_source(symptoms: &Symptoms, manager: Manager, obstacle: &Obstacle) -> String {
    let interface = symptoms.interface.as_str();
    match manager {
        Manager::Nft | Manager::Firewalld => nft(obstacle, &format!("oifname {interface} accept")),
        Manager::Docker | Manager::Ufw => {
            iptables("iptables", "-t nat ", obstacle, &format!("-o {interface}"))
        }
        Manager::Iptables(program) => {
            iptables(program, "-t nat ", obstacle, &format!("-o {interface}"))
        }
    }
}

fn iptables(program: &str, table: &str, obstacle: &Obstacle, means: &str) -> String {
    let chain = &obstacle.chain;
    match obstacle.number {
        Some(number) => format!("{program} {table}-I {chain} {number} {means} -j ACCEPT"),
        None => format!("{program} {table}-A {chain} {means} -j ACCEPT"),
    }
}

fn nft(obstacle: &Obstacle, rule: &str) -> String {
    let place = obstacle.place();
    match obstacle.rule {
        Some(handle) => format!("nft insert rule {place} position {handle} {rule}"),
        None => format!("nft add rule {place} {rule}"),
    }
}

/// A zone for the tunnel, and policies that let the other zones and it talk to each other.
fn firewalld(symptoms: &Symptoms) -> String {
    let (interface, port) = (&symptoms.interface, symptoms.port);
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
        format!("--add-port={port}/udp"),
    ]
    .map(|words| format!("firewall-cmd --permanent {words}"))
    .join("; ")
        + "; firewall-cmd --reload"
}

/// Whether others can start a handshake with this gateway.
fn handshakes(symptoms: &Symptoms, firewall: Firewall<'_>) -> Option<Finding> {
    let port = symptoms.port;
    let (underlay, _) = symptoms.underlay.as_ref()?;
    let packet = Packet {
        from: Some(underlay),
        to: None,
        source: anywhere(),
        destination: anywhere(),
        transport: Transport::UdpPort(port),
    };
    // A chain that lets some in may know the peers.
    let mut obstacles = firewall.obstacles(Hook::Input, &packet).into_iter();
    let obstacle = obstacles.find(|obstacle| obstacle.certain)?;
    let fix = match manager(firewall, &obstacle) {
        Manager::Ufw => format!("ufw allow {port}/udp"),
        Manager::Firewalld => {
            format!("firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload")
        }
        Manager::Iptables(program) => {
            iptables(program, "", &obstacle, &format!("-p udp --dport {port}"))
        }
        Manager::Docker | Manager::Nft => nft(&obstacle, &format!("udp dport {port} accept")),
    };
    // A gateway that speaks first gets its answers all the same.
    Some(notice(
        CHECK,
        format!("{obstacle}: peers cannot start a handshake at UDP port {port}"),
        fix,
    ))
}

/// Whether the probes of others get in.
fn probes(symptoms: &Symptoms, firewall: Firewall<'_>) -> Option<Finding> {
    let interface = symptoms.interface.as_str();
    let packet = Packet {
        from: Some(interface),
        to: None,
        source: anywhere(),
        destination: anywhere(),
        transport: Transport::UdpPort(PROBE_PORT),
    };
    let mut obstacles = firewall.obstacles(Hook::Input, &packet).into_iter();
    let obstacle = obstacles.find(|obstacle| obstacle.certain)?;
    let fix = match manager(firewall, &obstacle) {
        Manager::Ufw => format!("ufw allow in on {interface} to any port {PROBE_PORT}"),
        Manager::Firewalld => firewalld(symptoms),
        Manager::Iptables(program) => ["udp", "tcp"]
            .map(|protocol| {
                let means = format!("-i {interface} -p {protocol} --dport {PROBE_PORT}");
                iptables(program, "", &obstacle, &means)
            })
            .join("; "),
        Manager::Docker | Manager::Nft => ["udp", "tcp"]
            .map(|protocol| {
                let rule = format!("iifname {interface} {protocol} dport {PROBE_PORT} accept");
                nft(&obstacle, &rule)
            })
            .join("; "),
    };
    let detail = format!(
        "{obstacle}: gateways probe each other at port {PROBE_PORT} on {interface}. Without probes \
         peers do not learn within seconds that a link is down, nor its loss and round trip"
    );
    Some(notice("probes", detail, fix))
}

fn manager(firewall: Firewall<'_>, obstacle: &Obstacle) -> Manager {
    let has_chain = |start: &str| {
        firewall.of("chain").any(|chain| {
            chain["family"] == *obstacle.family
                && chain["table"] == *obstacle.table
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
    } else if ["FORWARD", "INPUT", "POSTROUTING"].contains(&obstacle.base.as_str()) {
        match obstacle.family.as_str() {
            "ip" => Manager::Iptables("iptables"),
            "ip6" => Manager::Iptables("ip6tables"),
            _ => Manager::Nft,
        }
    } else {
        Manager::Nft
    }
}

fn anywhere() -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::default())
}
