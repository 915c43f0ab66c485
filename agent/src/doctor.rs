//! `wattle-agent doctor`: what stands in the way of this gateway's packets, and what to do about
//! it.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;
use tokio::{net::lookup_host, time::timeout};
use wattle_mesh::{
    agent::replica::KnownPeer,
    diagnose::doctor::{self, Device, Finding, PeerSymptoms, Severity, Symptoms},
    host::state::{Family, ObservedPeer},
};

use crate::{config::Paths, coordinator::Coordinator, kernel::symptoms, output, status};

/// How long a name may take to be resolved.
const DNS: Duration = Duration::from_secs(5);
/// The port that a mesh uses of which nothing is known yet.
const USUAL_PORT: u16 = 51820;

#[derive(Serialize)]
struct Examined {
    ok: bool,
    findings: Vec<Finding>,
}

pub(crate) async fn doctor(paths: &Paths, json: bool) -> anyhow::Result<ExitCode> {
    let found = status::find(paths)?;
    // Without rights much cannot be seen, which is a finding itself.
    let observed = found.host.observe().await.unwrap_or_default();
    let coordinator =
        Coordinator::new(found.membership.urls.clone(), found.membership.pins.clone())?;
    let (unresolved, answer, ruleset) = tokio::join!(
        unresolved(&found.membership.urls),
        coordinator.clock_ahead(),
        symptoms::ruleset()
    );
    let interface = observed.interface.as_ref();
    let none = ObservedPeer::default();
    let peers = found
        .known
        .iter()
        .flat_map(|known| known.peers.values())
        .map(
            |known @ KnownPeer {
                 peer, statement, ..
             }| {
                let seen = interface
                    .and_then(|interface| known.entry(interface))
                    .unwrap_or(&none);
                PeerSymptoms {
                    name: peer.name.clone(),
                    unmanaged: statement.unmanaged,
                    handshake_age_s: seen.handshake_age_s,
                    endpoint: seen.endpoint.map(|endpoint| endpoint.to_string()),
                    sent_bytes: seen.sent_bytes,
                }
            },
        );
    let known = found.known.as_ref();
    let findings = doctor::diagnose(&Symptoms {
        interface: paths.interface.clone(),
        may_administer: symptoms::may_administer(),
        runs: found.store.is_locked()?,
        device: interface.map(|interface| Device {
            kind: interface.device,
            up: interface.up,
            port: interface.listen_port,
            mtu: interface.mtu,
        }),
        port: found
            .known
            .as_ref()
            .map_or(USUAL_PORT, |known| known.mesh.listen_port),
        probes: found
            .known
            .as_ref()
            .is_some_and(|known| known.mesh.health.probes),
        forwards: observed.forwarding.contains(&Family::V4),
        rp_filter: symptoms::rp_filter(&paths.interface),
        underlay: symptoms::underlay(),
        lans: known.map_or_else(Vec::new, |known| {
            let subnets: Vec<_> = known
                .myself
                .subnets
                .iter()
                .map(|subnet| subnet.net())
                .collect();
            symptoms::lans(&subnets)
        }),
        far_lans: known.map_or_else(Vec::new, |known| {
            let peers = known.peers.values();
            peers.flat_map(|known| known.peer.subnets.clone()).collect()
        }),
        ruleset,
        has_legacy_rules: symptoms::has_legacy_rules(),
        unresolved,
        coordinator: answer.map_err(|error| format!("{error:#}")),
        peers: peers.collect(),
    });
    let ok = !findings
        .iter()
        .any(|finding| finding.severity == Severity::Fault);
    if json {
        output::json(&Examined { ok, findings })?;
    } else {
        print(&findings);
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Host names of URLs that have no address, with the error.
async fn unresolved(urls: &[String]) -> Vec<(String, String)> {
    let mut unresolved = Vec::new();
    for url in urls {
        let Some((host, port)) = reqwest::Url::parse(url)
            .ok()
            .and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)))
        else {
            continue;
        };
        let error = match timeout(DNS, lookup_host(format!("{host}:{port}"))).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DNS.as_secs()),
        };
        unresolved.push((host, error));
    }
    unresolved
}

fn print(findings: &[Finding]) {
    for Finding {
        check,
        severity,
        detail,
        fix,
    } in findings
    {
        let mark = match severity {
            Severity::Fine => output::green("ok    "),
            Severity::Notice => output::yellow("notice"),
            Severity::Fault => output::red("FAULT "),
        };
        output::line(format!("{mark}  {check}: {detail}"));
        if let Some(fix) = fix {
            output::line(format!("        do: {fix}"));
        }
    }
    let count = |wanted| {
        findings
            .iter()
            .filter(|finding| finding.severity == wanted)
            .count()
    };
    output::line(match (count(Severity::Fault), count(Severity::Notice)) {
        (0, 0) => "all is well".to_owned(),
        (0, notices) => format!("nothing is broken; {notices} to look at"),
        (faults, _) => format!("{faults} to mend"),
    });
}
