//! `wattle-agent status` and `wattle-agent plan`: what is, and what would be done.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Context;
use comfy_table::Color;
use serde::{Deserialize, Serialize};
use wattle_mesh::{
    agent::{
        guard::Refused,
        node::Judge,
        replica::{Known, KnownPeer, Replica},
    },
    health::link,
    host::{
        interface::InterfaceName,
        state::{Interface, ObservedPeer},
    },
    keys::{
        node_keys::NodeKeys,
        psk::exchange::Exchange,
        rotation::{self, canary::Watch},
    },
};
use wattle_wire::{
    admin::EndpointSource,
    ids::{NodeId, Position},
    key::IdentityKey,
    name::Name,
    report::{DeviceKind, EndState, ProbeReport, Problem, ProblemCode},
    verdict::{LinkVerdict, OwnLinks},
};

use crate::{
    config::Settings,
    control::{self, Request},
    follow::{self, Connection},
    host::Host,
    identity::{Membership, Slot, unix_s},
    output::{self, Cell, Table},
    psk,
    store::Store,
};

/// What a machine is told that has not joined.
pub(crate) const NOT_A_NODE: &str =
    "this machine is not a node yet: run `wattle-agent join` with the join string of its site";

/// The same where no coordinator has told anything yet.
pub(crate) const NO_VIEW: &str =
    "this node has no view of the mesh yet: start `wattle-agent run` first";

/// What the state directory and the host say.
pub(crate) struct Found {
    pub(crate) membership: Membership,
    pub(crate) node_keys: NodeKeys,
    pub(crate) known: Option<Known>,
    /// What of the coordinator's newest word is not carried out.
    pub(crate) problems: Vec<Problem>,
    psks: Exchange,
    pub(crate) host: Host,
    pub(crate) store: Store,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    node: Name,
    site: Name,
    /// What an operator signs of this node.
    identity: IdentityKey,
    /// Whether the host requires the lock.
    locked: bool,
    interface: String,
    /// Absent when there is no interface.
    device: Option<DeviceKind>,
    /// Bytes; absent when there is no interface.
    mtu: Option<u32>,
    tunnel_address: Option<String>,
    position: Option<Position>,
    agent_running: bool,
    /// Seconds since 1970 at which the running agent last wrote down what it knows of the mesh;
    /// absent while it runs, or before it knew anything.
    as_of: Option<u64>,
    coordinator: Option<Connection>,
    /// What keeps this host from what the mesh wants, or its LANs from others.
    problems: Vec<Problem>,
    peers: Vec<PeerStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PeerStatus {
    node: NodeId,
    name: Name,
    /// Whether no agent runs there.
    unmanaged: bool,
    state: PeerState,
    /// What the coordinator makes of the link, which hears both ends; absent when it does not say.
    #[serde(default)]
    coordinator: Option<LinkVerdict>,
    endpoint: Option<String>,
    /// How this node knows the endpoint.
    endpoint_source: Option<EndpointSource>,
    handshake_age_s: Option<u64>,
    /// Percent of the last 60 probes that were not answered; absent where none run, or no agent.
    #[serde(default)]
    loss_percent: Option<u8>,
    /// Milliseconds; absent as `loss_percent`.
    #[serde(default)]
    round_trip_ms: Option<f64>,
    /// Whether the tunnel has a preshared key.
    preshared_key: bool,
    received_bytes: u64,
    sent_bytes: u64,
    prefixes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PeerState {
    Up,
    /// It works, and probes are lost.
    Lossy,
    /// It works, and probes take long.
    Slow,
    /// The peer is heard and does not answer.
    OneWay,
    Down,
    /// Nothing was ever heard of it.
    Never,
    /// No operator has admitted it, so it is not configured.
    Unsigned,
}

/// What a status is made of.
pub(crate) struct Facts<'a> {
    pub(crate) interface_name: &'a InterfaceName,
    pub(crate) membership: &'a Membership,
    pub(crate) node_keys: &'a NodeKeys,
    pub(crate) known: Option<&'a Known>,
    /// Whether the host requires the lock.
    pub(crate) locked: bool,
    /// As it is now; absent when the agent has none.
    pub(crate) interface: Option<&'a Interface>,
    pub(crate) refused: &'a Refused,
    /// What the running agent's probes find.
    pub(crate) probes: &'a BTreeMap<NodeId, ProbeReport>,
    pub(crate) problems: Vec<Problem>,
    /// As [`Status::as_of`]; absent where the running agent says all this itself.
    pub(crate) as_of: Option<u64>,
    pub(crate) agent_running: bool,
    pub(crate) coordinator: Option<Connection>,
}

pub(crate) async fn status(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let status = match control::ask(settings, Request::Status).await? {
        Some(status) => status,
        None => from_disk(settings).await?,
    };
    if json {
        output::json(&status)?;
    } else {
        print(&status);
    }
    Ok(if status.has_interface() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The status as far as the state folder and the host tell it, without an agent to ask.
async fn from_disk(settings: &Settings) -> anyhow::Result<Status> {
    let found = find(settings)?;
    let interface = found.host.observe_interface().await?;
    let refused = match &found.known {
        Some(known) => found.host.refused(known).await?,
        None => Refused::default(),
    };
    let kept = found
        .known
        .as_ref()
        .and_then(|known| rotation::kept_for_unmanaged(known, &found.node_keys, unix_s()))
        .map(|words| Problem::new(ProblemCode::KeyRotation, words));
    let problems = found.problems.iter().cloned().chain(refused.problems());
    Ok(Status::new(&Facts {
        interface_name: &settings.interface,
        membership: &found.membership,
        node_keys: &found.node_keys,
        known: found.known.as_ref(),
        locked: found.host.operators().is_some(),
        interface: interface.as_ref(),
        refused: &refused,
        probes: &BTreeMap::new(),
        problems: problems.chain(kept).collect(),
        as_of: follow::view_written_at(&found.store),
        agent_running: found.store.is_locked()?,
        coordinator: follow::load_connection(&found.store)?,
    }))
}

/// What would be done to the host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    /// As [`wattle_mesh::host::plan::Plan`].
    plan: serde_json::Value,
    /// Its steps in words.
    steps: Vec<String>,
}

pub(crate) async fn plan_command(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let Planned { plan, steps } = match control::ask(settings, Request::Plan).await? {
        Some(planned) => planned,
        None => {
            let mut found = find(settings)?;
            let known = found.known.as_ref().context(NO_VIEW)?;
            let observed = found.host.observe().await?;
            let interfaces = observed.interface.iter();
            interfaces.for_each(|interface| found.psks.resume(known, interface));
            let judge = Judge {
                interface: found.host.interface(),
                guard: found.host.guard(),
                node_keys: &found.node_keys,
                psks: &found.psks,
            };
            planned(&found.host, known, judge, Watch::default(), Duration::ZERO).await?
        }
    };
    if json {
        return output::json(&plan);
    }
    if steps.is_empty() {
        output::line("nothing to do: this host is as the mesh wants it");
    }
    steps.iter().for_each(output::line);
    Ok(())
}

/// What would be done to the host now. `watch` knows which peers are on the way to new keys, and
/// `at` is the time by its clock.
pub(crate) async fn planned(
    host: &Host,
    known: &Known,
    judge: Judge<'_>,
    mut watch: Watch,
    at: Duration,
) -> anyhow::Result<Planned> {
    let policy = host.clone().policy().await?;
    let observation = host.look(policy, at).await?;
    let unix_s = chrono::Utc::now().timestamp();
    let plan = judge.judge(known, &observation, &mut watch, unix_s).plan;
    Ok(Planned {
        steps: plan.steps.iter().map(ToString::to_string).collect(),
        plan: serde_json::to_value(&plan)?,
    })
}

pub(crate) fn find(settings: &Settings) -> anyhow::Result<Found> {
    find_node(settings)?.context(NOT_A_NODE)
}

/// As [`find`]; `None` for a machine that is not a node.
pub(crate) fn find_node(settings: &Settings) -> anyhow::Result<Option<Found>> {
    let store = Store::open(&settings.state_dir)?;
    let Some((node_keys, Some(membership))) = Slot::Present.load(&store)? else {
        return Ok(None);
    };
    let host = Host::new(settings, &store, &membership.urls)?;
    let mut replica = Replica::new(membership.enrolled.mesh, node_keys.wireguard_key())
        .locked_by(host.operators());
    if let Some(stored) = follow::load_view(&store)? {
        replica
            .restore(stored)
            .context("the view kept on disk is not usable")?;
    }
    let known = replica.known().cloned();
    let mut problems: Vec<_> = replica.problems().collect();
    let psks = psk::load(&store).unwrap_or_else(|error| {
        let words = format!("cannot read the preshared keys: {error:#}");
        problems.push(Problem::new(ProblemCode::State, words));
        Exchange::default()
    });
    Ok(Some(Found {
        membership,
        node_keys,
        known,
        problems,
        psks,
        host,
        store,
    }))
}

impl Status {
    /// Whether the agent has its interface.
    pub(crate) fn has_interface(&self) -> bool {
        self.device.is_some()
    }

    pub(crate) fn new(facts: &Facts<'_>) -> Self {
        // As they are called now; enrolment knows how they were called then.
        let enrolled = &facts.membership.enrolled;
        let (node, site) = facts
            .known
            .map_or((&enrolled.name, &enrolled.site), |known| {
                (&known.myself.name, &known.myself.site_name)
            });
        let peers = facts.known.into_iter().flat_map(|known| {
            let peers = known.peers.values();
            peers.map(|peer| PeerStatus::new(peer, facts))
        });
        Self {
            node: node.clone(),
            site: site.clone(),
            identity: facts.node_keys.identity_key(),
            locked: facts.locked,
            interface: facts.interface_name.to_string(),
            device: facts.interface.map(|interface| interface.device),
            mtu: facts.interface.map(|interface| interface.mtu),
            tunnel_address: facts
                .known
                .map(|known| known.myself.tunnel_address.to_string()),
            position: facts.known.map(|known| known.position),
            agent_running: facts.agent_running,
            as_of: facts.as_of,
            coordinator: facts.coordinator.clone(),
            problems: facts.problems.clone(),
            peers: peers.collect(),
        }
    }

    /// With what the coordinator makes of the links.
    pub(crate) fn with_verdicts(mut self, own_links: Option<OwnLinks>) -> Self {
        let links = own_links.into_iter().flat_map(|own| own.links);
        let verdicts: BTreeMap<_, _> = links.map(|link| (link.peer, link)).collect();
        for peer in &mut self.peers {
            peer.coordinator = verdicts.get(&peer.node).copied();
        }
        self
    }
}

impl PeerStatus {
    fn new(of: &KnownPeer, facts: &Facts<'_>) -> Self {
        let KnownPeer {
            peer, statement, ..
        } = of;
        let none = ObservedPeer::default();
        let entry = facts.interface.and_then(|interface| of.entry(interface));
        let entry = entry.unwrap_or(&none);
        let probe = facts.probes.get(&peer.node).copied();
        let was_heard =
            probe.is_some() || entry.handshake_age_s.is_some() || entry.received_bytes > 0;
        let state = match link::found_state(probe, entry.handshake_age_s) {
            _ if facts.refused.is_unsigned(peer.node) => PeerState::Unsigned,
            EndState::Up => PeerState::Up,
            EndState::Lossy => PeerState::Lossy,
            EndState::Slow => PeerState::Slow,
            EndState::OneWay => PeerState::OneWay,
            EndState::Down if was_heard => PeerState::Down,
            EndState::Down => PeerState::Never,
        };
        Self {
            node: peer.node,
            name: peer.name.clone(),
            unmanaged: statement.unmanaged,
            state,
            coordinator: None,
            endpoint: entry.endpoint.map(|endpoint| endpoint.to_string()),
            endpoint_source: entry
                .endpoint
                .map(|used| link::endpoint_source(used, peer.endpoint)),
            handshake_age_s: entry.handshake_age_s,
            loss_percent: probe.map(|probe| probe.loss_percent),
            round_trip_ms: probe.map(|probe| f64::from(probe.round_trip_us) / 1000.0),
            preshared_key: entry.psk.is_some(),
            received_bytes: entry.received_bytes,
            sent_bytes: entry.sent_bytes,
            prefixes: entry.allowed_ips.iter().map(ToString::to_string).collect(),
        }
    }
}

fn print(status: &Status) {
    let device = match status.device {
        Some(DeviceKind::Kernel) => "the kernel's WireGuard",
        Some(DeviceKind::Userspace) => "a userspace device",
        None => "MISSING",
    };
    let position = status.position.map_or_else(
        || "nothing known yet".to_owned(),
        |position| format!("revision {position}"),
    );
    output::line(format!(
        "node {} of site {}, {position}",
        status.node, status.site
    ));
    output::line(format!(
        "identity {}{}",
        status.identity,
        if status.locked {
            ", accepts only peers that an operator has admitted"
        } else {
            ""
        }
    ));
    let mtu = status
        .mtu
        .map(|mtu| format!(", MTU {mtu}"))
        .unwrap_or_default();
    output::line(format!(
        "interface {}: {device}, {}{mtu}",
        status.interface,
        status.tunnel_address.as_deref().unwrap_or("no address")
    ));
    output::line(coordinator(status));
    for problem in &status.problems {
        output::line(format!("PROBLEM: {}", problem.words));
        if let Some(remedy) = &problem.remedy {
            output::line(format!("     do: {remedy}"));
        }
    }
    if status.peers.is_empty() {
        return output::line("no peers");
    }
    let mut table = Table::new(&[
        "peer",
        "state",
        "coordinator",
        "handshake",
        "lost",
        "round trip",
        "endpoint",
        "received",
        "sent",
        "prefixes",
    ]);
    for peer in &status.peers {
        let state = match peer.state {
            PeerState::Up => Cell::coloured("up", Color::Green),
            PeerState::Lossy => Cell::coloured("lossy", Color::Yellow),
            PeerState::Slow => Cell::coloured("slow", Color::Yellow),
            PeerState::OneWay => Cell::coloured("one-way", Color::Red),
            PeerState::Down => Cell::coloured("down", Color::Red),
            PeerState::Never => Cell::coloured("never", Color::Yellow),
            PeerState::Unsigned => Cell::coloured("unsigned", Color::Red),
        };
        table.row([
            Cell::new(if peer.unmanaged {
                format!("{} (unmanaged)", peer.name)
            } else {
                peer.name.to_string()
            }),
            state,
            Cell::new(
                peer.coordinator
                    .map_or_else(|| "-".to_owned(), |verdict| verdict.in_words()),
            ),
            Cell::new(
                peer.handshake_age_s
                    .map_or_else(|| "-".to_owned(), |age| format!("{} ago", output::age(age))),
            ),
            Cell::new(
                peer.loss_percent
                    .map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
            ),
            Cell::new(
                peer.round_trip_ms
                    .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            ),
            Cell::new(endpoint(peer)),
            Cell::new(output::bytes(peer.received_bytes)),
            Cell::new(output::bytes(peer.sent_bytes)),
            Cell::new(peer.prefixes.join(" ")),
        ]);
    }
    table.align_right(&[4, 5, 7, 8]);
    table.print();
}

fn endpoint(peer: &PeerStatus) -> String {
    match (&peer.endpoint, peer.endpoint_source) {
        (Some(endpoint), Some(EndpointSource::Learned)) => format!("{endpoint} learned"),
        (Some(endpoint), _) => endpoint.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn coordinator(status: &Status) -> String {
    let since = |connection: &Connection| {
        let now = chrono::Utc::now().timestamp();
        output::age(u64::try_from(now - connection.since).unwrap_or_default())
    };
    match &status.coordinator {
        _ if !status.agent_running => {
            let age = status
                .as_of
                .map(|at| output::age(unix_s().saturating_sub(at)));
            let age = age
                .map(|age| format!(". What it knew is {age} old"))
                .unwrap_or_default();
            format!(
                "the agent does not run: start `wattle-agent run`. The tunnels are as it left \
                 them{age}"
            )
        }
        None => "not yet connected to the coordinator".to_owned(),
        Some(connection) if connection.connected => {
            format!("connected to {} for {}", connection.url, since(connection))
        }
        Some(connection) => {
            format!(
                "not connected for {}: {}",
                since(connection),
                connection.error.as_deref().unwrap_or("no reason known")
            )
        }
    }
}
