//! `wattle-agent status` and `wattle-agent plan`: what is, and what would be done.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use comfy_table::{Cell, CellAlignment, Color, Table, presets};
use serde::Serialize;
use wattle_mesh::{
    agent::{
        guard::Refused,
        replica::{Known, KnownPeer, Replica},
    },
    health::link,
    host::{
        plan::{Plan, plan},
        state::{Observed, ObservedPeer},
    },
    keys::{
        node_keys::Machine,
        psk::exchange::Exchange,
        rotation::{self, canary::Watch},
    },
};
use wattle_wire::{
    admin::EndpointSource, ids::Position, key::IdentityKey, name::Name, report::DeviceKind,
};

use crate::{
    config::Paths,
    follow::{self, Connection},
    identity::{Membership, Slot, unix_s},
    output, psk,
    reconcile::Host,
    store::Store,
};

/// What the state directory and the host say.
pub(crate) struct Found {
    pub(crate) membership: Membership,
    pub(crate) machine: Machine,
    pub(crate) known: Option<Known>,
    /// What of the coordinator's newest word is not carried out.
    problems: Vec<String>,
    psks: Exchange,
    pub(crate) host: Host,
    pub(crate) store: Store,
}

#[derive(Serialize)]
struct Status {
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
    coordinator: Option<Connection>,
    /// What the agent does not carry out of the coordinator's word, and why.
    problems: Vec<String>,
    peers: Vec<PeerStatus>,
}

#[derive(Serialize)]
struct PeerStatus {
    name: Name,
    /// Whether no agent runs there.
    unmanaged: bool,
    state: PeerState,
    endpoint: Option<String>,
    /// How this node knows the endpoint.
    endpoint_source: Option<EndpointSource>,
    handshake_age_s: Option<u64>,
    /// Whether the tunnel has a preshared key.
    preshared_key: bool,
    received_bytes: u64,
    sent_bytes: u64,
    prefixes: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum PeerState {
    Up,
    Down,
    Never,
    /// No operator has admitted it, so it is not configured.
    Unsigned,
}

pub(crate) async fn status(paths: &Paths, json: bool) -> anyhow::Result<ExitCode> {
    let found = find(paths)?;
    let observed = found.host.observe().await?;
    let refused = match &found.known {
        Some(known) => found.host.limits(known).await?.refused,
        None => Refused::default(),
    };
    let status = describe(paths, &found, &observed, &refused)?;
    if json {
        output::json(&status)?;
    } else {
        print(&status);
    }
    Ok(if status.device.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(crate) async fn plan_command(paths: &Paths, json: bool) -> anyhow::Result<()> {
    let mut found = find(paths)?;
    let known = found
        .known
        .as_ref()
        .context("this node has no view of the mesh yet: start `wattle-agent run` first")?;
    let observed = found.host.observe().await?;
    observed
        .link
        .iter()
        .for_each(|link| found.psks.resume(known, link));
    let turns = observed
        .link
        .as_ref()
        .map(|link| Watch::default().look(known, link, Duration::ZERO))
        .unwrap_or_default();
    let desired = found.host.desired(
        known,
        &found.machine,
        &found.psks,
        &turns,
        &found.host.limits(known).await?,
    );
    let Plan { steps } = plan(&desired, &observed);
    if json {
        return output::json(&Plan { steps });
    }
    if steps.is_empty() {
        output::line("nothing to do: this host is as the mesh wants it");
    }
    for step in steps {
        output::line(step);
    }
    Ok(())
}

pub(crate) fn find(paths: &Paths) -> anyhow::Result<Found> {
    let store = Store::open(&paths.state_dir)?;
    let Some((machine, Some(membership))) = Slot::Present.load(&store)? else {
        bail!(
            "this machine is not a node yet: run `wattle-agent join` with the join string of its \
             site"
        );
    };
    let host = Host::new(paths, &store, &membership.urls)?;
    let mut replica =
        Replica::new(membership.enrolled.mesh, machine.wireguard_key()).locked_by(host.operators());
    if let Some(stored) = follow::load_view(&store)? {
        replica
            .restore(stored)
            .context("the view kept on disk is not usable")?;
    }
    let known = replica.known().cloned();
    let mut problems: Vec<_> = replica.problems().collect();
    let psks = psk::load(&store).unwrap_or_else(|error| {
        problems.push(format!("cannot read the preshared keys: {error:#}"));
        Exchange::default()
    });
    Ok(Found {
        membership,
        machine,
        known,
        problems,
        psks,
        host,
        store,
    })
}

fn describe(
    paths: &Paths,
    found: &Found,
    observed: &Observed,
    refused: &Refused,
) -> anyhow::Result<Status> {
    let none = ObservedPeer::default();
    let peers = found
        .known
        .iter()
        .flat_map(|known| known.peers.values())
        .map(
            |known @ KnownPeer {
                 peer, statement, ..
             }| {
                let entry = observed
                    .link
                    .as_ref()
                    .and_then(|link| known.entry(link))
                    .unwrap_or(&none);
                let state = match entry.handshake_age_s {
                    _ if refused.is_unsigned(peer.node) => PeerState::Unsigned,
                    None => PeerState::Never,
                    age if link::is_fresh(age) => PeerState::Up,
                    Some(_) => PeerState::Down,
                };
                PeerStatus {
                    name: peer.name.clone(),
                    unmanaged: statement.unmanaged,
                    state,
                    endpoint: entry.endpoint.map(|endpoint| endpoint.to_string()),
                    endpoint_source: entry
                        .endpoint
                        .map(|used| link::endpoint_source(used, peer.endpoint)),
                    handshake_age_s: entry.handshake_age_s,
                    preshared_key: entry.psk.is_some(),
                    received_bytes: entry.received_bytes,
                    sent_bytes: entry.sent_bytes,
                    prefixes: entry.allowed_ips.iter().map(ToString::to_string).collect(),
                }
            },
        );
    let kept = found
        .known
        .as_ref()
        .and_then(|known| rotation::kept_for_unmanaged(known, &found.machine, unix_s()));
    let enrolled = &found.membership.enrolled;
    let myself = found.known.as_ref().map(|known| &known.myself);
    Ok(Status {
        // As they are called now; enrolment knows how they were called then.
        node: myself.map_or(&enrolled.name, |myself| &myself.name).clone(),
        site: myself
            .map_or(&enrolled.site, |myself| &myself.site_name)
            .clone(),
        identity: found.machine.identity_key(),
        locked: found.host.operators().is_some(),
        interface: paths.interface.to_string(),
        device: observed.link.as_ref().map(|link| link.device),
        mtu: observed.link.as_ref().map(|link| link.mtu),
        tunnel_address: found
            .known
            .as_ref()
            .map(|known| known.myself.tunnel_address.to_string()),
        position: found.known.as_ref().map(|known| known.position),
        agent_running: found.store.is_locked()?,
        coordinator: follow::load_connection(&found.store)?,
        problems: found
            .problems
            .iter()
            .cloned()
            .chain(refused.problems())
            .chain(kept)
            .collect(),
        peers: peers.collect(),
    })
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
        output::line(format!("PROBLEM: {problem}"));
    }
    if status.peers.is_empty() {
        return output::line("no peers");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !output::has_colour() {
        table.force_no_tty();
    }
    table.set_header([
        "peer",
        "state",
        "handshake",
        "endpoint",
        "received",
        "sent",
        "prefixes",
    ]);
    for peer in &status.peers {
        let state = match peer.state {
            PeerState::Up => Cell::new("up").fg(Color::Green),
            PeerState::Down => Cell::new("down").fg(Color::Red),
            PeerState::Never => Cell::new("never").fg(Color::Yellow),
            PeerState::Unsigned => Cell::new("unsigned").fg(Color::Red),
        };
        table.add_row([
            Cell::new(if peer.unmanaged {
                format!("{} (unmanaged)", peer.name)
            } else {
                peer.name.to_string()
            }),
            state,
            Cell::new(
                peer.handshake_age_s
                    .map_or_else(|| "-".to_owned(), |age| format!("{} ago", output::age(age))),
            ),
            Cell::new(endpoint(peer)),
            Cell::new(output::bytes(peer.received_bytes)),
            Cell::new(output::bytes(peer.sent_bytes)),
            Cell::new(peer.prefixes.join(" ")),
        ]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    for number in [4, 5] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    output::line(table);
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
            "the agent does not run: start `wattle-agent run`. The tunnels are as it left them"
                .to_owned()
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
