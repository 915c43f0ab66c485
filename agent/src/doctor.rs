//! `wattle-agent doctor`: what stands in the way of this gateway's packets, and what to do about
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use anstyle::AnsiColor;
use serde::{Deserialize, Serialize};
use tokio::{net::lookup_host, time::timeout};
use wattle_client::{http, node::NodeClient};
use wattle_mesh::{
    agent::replica::{Known, KnownPeer},
    diagnose::{
        doctor::{self, Device, Finding, PeerSymptoms, Severity, Symptoms, Unreached, Uplink},
        lan::{Facts, Served},
        size,
    },
    health::replies::Replies,
    host::state::{Interface, ObservedPeer},
    keys::authorities::Authorities,
};
use wattle_wire::{
    ids::NodeId,
    join::JoinString,
    name::Name,
    report::{ProbeReport, Problem},
    verdict::{LinkVerdict, OwnLinks},
};

use crate::{
    config::Settings,
    control::{self, Request},
    host::Host,
    identity::Membership,
    kernel::symptoms,
    output, status,
    store::Store,
};

/// How long a name may take to be resolved.
const DNS: Duration = Duration::from_secs(5);
/// The port that a mesh uses of which nothing is known yet.
const USUAL_PORT: u16 = 51820;

/// What was found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Examined {
    /// Whether nothing is a fault.
    ok: bool,
    findings: Vec<Finding>,
}

/// What is known of the node that the host is.
pub(crate) struct Node<'n> {
    pub(crate) membership: &'n Membership,
    pub(crate) known: Option<&'n Known>,
    /// What the running agent's probes find.
    pub(crate) probes: &'n BTreeMap<NodeId, ProbeReport>,
    /// Bytes of the largest packets that get to peers, as these find.
    pub(crate) sizes: &'n BTreeMap<NodeId, u16>,
    /// What hosts of its LANs send back.
    pub(crate) replies: &'n Replies,
    /// What the agent has to tell besides what is looked at here.
    pub(crate) problems: Vec<Problem>,
    /// What the coordinator makes of the links; absent when it does not say.
    pub(crate) own_links: Option<OwnLinks>,
}

/// `join_string` names the coordinators of a machine that is not a node yet.
pub(crate) async fn doctor(
    settings: &Settings,
    join_string: Option<&str>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let examined = match control::ask::<Option<Examined>>(settings, Request::Doctor).await? {
        Some(Some(examined)) => examined,
        Some(None) | None => without_agent(settings, join_string).await?,
    };
    let ok = examined.ok;
    if json {
        output::json(&examined)?;
    } else {
        print(&examined.findings);
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Looks at the host without an agent to ask.
async fn without_agent(settings: &Settings, join_string: Option<&str>) -> anyhow::Result<Examined> {
    let store = Store::open(&settings.state_dir)?;
    let runs = store.is_locked()?;
    let Some(found) = status::find_node(settings)? else {
        let host = Host::new(settings, &store, &[])?;
        return examine(&host, None, join_string, runs).await;
    };
    let node = Node {
        membership: &found.membership,
        known: found.known.as_ref(),
        probes: &BTreeMap::new(),
        sizes: &BTreeMap::new(),
        replies: &Replies::default(),
        problems: found.problems.clone(),
        own_links: None,
    };
    examine(&found.host, Some(node), None, runs).await
}

/// Looks at the host. `runs` says whether its agent does.
pub(crate) async fn examine(
    host: &Host,
    node: Option<Node<'_>>,
    join_string: Option<&str>,
    runs: bool,
) -> anyhow::Result<Examined> {
    let known = node.as_ref().and_then(|node| node.known);
    // Without rights much cannot be seen, which is a finding itself.
    let observed = host.observe().await.unwrap_or_default();
    let membership = node.as_ref().map(|node| node.membership);
    let interface = observed.interface.as_ref();
    let (served, large_packets) = match (known, &node) {
        (Some(known), Some(node)) => {
            let refused = host.refused(known).await.unwrap_or_default();
            let name = host.interface();
            let large_packets =
                interface.map(|found| size::problems(known, &refused, name, found, node.sizes));
            let served = Served::new(known, name, &refused, interface, node.replies);
            (served, large_packets.unwrap_or_default())
        }
        _ => {
            let nothing = Served {
                interface: host.interface().clone(),
                port: USUAL_PORT,
                own: Vec::new(),
                far: Vec::new(),
                unheard: Vec::new(),
                silent: BTreeSet::new(),
                answering: BTreeSet::new(),
                came: BTreeSet::new(),
            };
            (nothing, Vec::new())
        }
    };
    let (way, facts) = tokio::join!(way(membership, join_string), host.between_lans(&served));
    let way = way?;
    let facts = facts.unwrap_or_else(|error| Facts::unread(format!("{error:#}")));
    let peers = node
        .as_ref()
        .map_or_else(Vec::new, |node| peers(node, interface));
    let findings = doctor::diagnose(&Symptoms {
        joined: node.is_some(),
        mover: symptoms::mover(),
        taken: host.taken(&observed).await,
        may_administer: symptoms::may_administer(),
        runs,
        device: interface.map(|interface| Device {
            kind: interface.device,
            up: interface.up,
            port: interface.listen_port,
            mtu: interface.mtu,
        }),
        no_offload: host.no_offload().clone(),
        kernel_release: symptoms::release(),
        probes: known.is_some_and(|known| known.mesh.health.probes),
        rp_filter: symptoms::rp_filter(host.interface()),
        uplinks: uplinks(&peers, &facts),
        served,
        facts,
        large_packets,
        unresolved: way.unresolved,
        coordinator: way.coordinator,
        loses_large_packets: way.loses_large_packets,
        peers,
        verdicts: node.as_ref().and_then(verdicts),
        problems: node.map(|node| node.problems).unwrap_or_default(),
    });
    let ok = !findings
        .iter()
        .any(|finding| finding.severity == Severity::Fault);
    Ok(Examined { ok, findings })
}

fn peers(node: &Node<'_>, interface: Option<&Interface>) -> Vec<PeerSymptoms> {
    let none = ObservedPeer::default();
    let symptoms = |known: &KnownPeer| {
        let seen = interface.and_then(|interface| known.entry(interface));
        let seen = seen.unwrap_or(&none);
        PeerSymptoms {
            name: known.peer.name.clone(),
            unmanaged: known.statement.unmanaged,
            handshake_age_s: seen.handshake_age_s,
            endpoint: seen.endpoint,
            sent_bytes: seen.sent_bytes,
            probe: node.probes.get(&known.peer.node).copied(),
            largest: node.sizes.get(&known.peer.node).copied(),
        }
    };
    let peers = node
        .known
        .into_iter()
        .flat_map(|known| known.peers.values());
    peers.map(symptoms).collect()
}

/// The interfaces by which packets leave for the peers.
fn uplinks(peers: &[PeerSymptoms], facts: &Facts) -> Vec<Uplink> {
    let endpoints = peers.iter().filter_map(|peer| Some(peer.endpoint?.ip()));
    let uplink = |(interface, is_v4): (String, bool)| {
        let mtu = symptoms::mtu(&interface)?;
        Some(Uplink {
            interface,
            is_v4,
            mtu,
        })
    };
    let ways = doctor::ways_out(endpoints, &facts.routes);
    ways.into_iter().filter_map(uplink).collect()
}

/// What the coordinator makes of the link with each peer that is known here.
fn verdicts(node: &Node<'_>) -> Option<Vec<(Name, LinkVerdict)>> {
    let (own, known) = (node.own_links.as_ref()?, node.known?);
    let named = own.links.iter().filter_map(|verdict| {
        let peer = &known.peers.get(&verdict.peer)?.peer;
        Some((peer.name.clone(), *verdict))
    });
    Some(named.collect())
}

/// The way to the coordinators.
#[derive(Default)]
struct WayToCoordinator {
    unresolved: Vec<(String, String)>,
    /// Absent where none is known.
    coordinator: Option<Result<i64, Unreached>>,
    loses_large_packets: bool,
}

/// Looks for the coordinators of the node, or for those of a join string.
async fn way(
    membership: Option<&Membership>,
    join_string: Option<&str>,
) -> anyhow::Result<WayToCoordinator> {
    let (urls, authorities) = match (membership, join_string) {
        (Some(membership), _) => (membership.urls.clone(), membership.authorities.clone()),
        (None, Some(join_string)) => {
            let join: JoinString = join_string.parse()?;
            (join.urls, Authorities::new(join.pins))
        }
        (None, None) => return Ok(WayToCoordinator::default()),
    };
    let coordinator = NodeClient::new(urls.clone(), authorities)?;
    let (unresolved, answer) = tokio::join!(unresolved(&urls), coordinator.clock_ahead());
    let answer = answer.map_err(|error| Unreached {
        out_of_time: error.out_of_time(),
        error: format!("{:#}", anyhow::Error::new(error)),
    });
    Ok(WayToCoordinator {
        unresolved,
        coordinator: Some(answer),
        loses_large_packets: coordinator.loses_large_packets(),
    })
}

/// Host names of URLs that have no address, with the error.
async fn unresolved(urls: &[String]) -> Vec<(String, String)> {
    let mut unresolved = Vec::new();
    for url in urls {
        let Ok(uri) = url.parse() else { continue };
        let host = http::host(&uri);
        let error = match timeout(DNS, lookup_host((host, http::port(&uri)))).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DNS.as_secs()),
        };
        unresolved.push((host.to_owned(), error));
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
        let (colour, mark) = match severity {
            Severity::Fine => (AnsiColor::Green, "ok    "),
            Severity::Notice => (AnsiColor::Yellow, "notice"),
            Severity::Fault => (AnsiColor::Red, "FAULT "),
        };
        output::marked_line(colour, mark, format!("  {check}: {detail}"));
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
