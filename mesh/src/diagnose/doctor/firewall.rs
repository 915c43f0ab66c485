//! Which rules of this host are in the way of the tunnel's own packets.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;
use wattle_wire::probe::PROBE_PORT;

use super::{Finding, Symptoms, Uplink, fault, fine, names, notice};
use crate::diagnose::{
    firewall::{Firewall, Hook, Packet, Transport},
    remedy::{Manager, firewalld, iptables, manager, nft},
};

const CHECK: &str = "firewall";

pub(super) fn findings(symptoms: &Symptoms) -> Vec<Finding> {
    let ruleset = match &symptoms.facts.ruleset {
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
    let mut findings: Vec<_> = own_table(symptoms, &firewall).into_iter().collect();
    findings.extend(handshakes(symptoms, &firewall));
    if symptoms.probes {
        findings.extend(probes(symptoms, &firewall));
    }
    findings
}

fn own_table(symptoms: &Symptoms, firewall: &Firewall<'_>) -> Option<Finding> {
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

/// Whether others can start a handshake with this gateway.
fn handshakes(symptoms: &Symptoms, firewall: &Firewall<'_>) -> Option<Finding> {
    let port = symptoms.served.port;
    let in_the_way = |uplink: &Uplink| {
        let anywhere = anywhere(uplink.is_v4);
        let packet = Packet {
            from: Some(&uplink.interface),
            to: None,
            source: anywhere,
            destination: anywhere,
            transport: Transport::UdpPort(port),
        };
        // A chain that lets some in may know the peers.
        let mut obstacles = firewall.obstacles(Hook::Input, &packet).into_iter();
        obstacles.find(|obstacle| obstacle.certain)
    };
    let obstacle = symptoms.uplinks.iter().find_map(in_the_way)?;
    let fix = match manager(firewall, &obstacle) {
        Manager::Ufw => format!("ufw allow {port}/udp"),
        Manager::Firewalld => {
            let zone = obstacle.zone().map(|zone| format!("--zone={zone} "));
            format!(
                "firewall-cmd --permanent {}--add-port={port}/udp; firewall-cmd --reload",
                zone.unwrap_or_default()
            )
        }
        Manager::Iptables => iptables(&obstacle, &format!("-p udp --dport {port}")),
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
fn probes(symptoms: &Symptoms, firewall: &Firewall<'_>) -> Option<Finding> {
    let interface = symptoms.served.interface.as_str();
    let packet = Packet {
        from: Some(interface),
        to: None,
        source: anywhere(true),
        destination: anywhere(true),
        transport: Transport::UdpPort(PROBE_PORT),
    };
    let mut obstacles = firewall.obstacles(Hook::Input, &packet).into_iter();
    let obstacle = obstacles.find(|obstacle| obstacle.certain)?;
    let fix = match manager(firewall, &obstacle) {
        Manager::Ufw => format!("ufw allow in on {interface} to any port {PROBE_PORT}"),
        Manager::Firewalld => firewalld(&symptoms.served.interface),
        Manager::Iptables => ["udp", "tcp"]
            .map(|protocol| {
                let means = format!("-i {interface} -p {protocol} --dport {PROBE_PORT}");
                iptables(&obstacle, &means)
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

fn anywhere(is_v4: bool) -> IpNet {
    if is_v4 {
        IpNet::V4(Ipv4Net::default())
    } else {
        IpNet::V6(Ipv6Net::default())
    }
}
