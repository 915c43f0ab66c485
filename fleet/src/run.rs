//! One measurement from beginning to end: sites, enrolments, streams, changes, a flap of links, the
//! end of a coordinator.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use comfy_table::Table;
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use wattle_client::error::RequestError;
use wattle_wire::{
    admin::{CreatedSite, Imported},
    ids::Position,
    report::LinkReport,
    stream::HEARTBEAT_S,
};

use crate::{
    Options,
    agent::{Agent, Reached, Shared},
    coordinator::Coordinators,
    figures::{Usages, mib, rate, spread},
    progress,
    site::{site, subnet},
    table::Rows,
};

/// Enrolments at the same time.
const PARALLEL: usize = 16;
/// Sites of one import.
const IMPORT: usize = 500;
/// How long all agents may take to reach a revision.
const PATIENCE: Duration = Duration::from_secs(120);
/// With how many others a node that joins agrees on preshared keys.
const MOST_PARTNERS: usize = 1_000;
/// How long the fleet idles while idleness is measured: a heartbeat of each stream.
const IDLE: Duration = Duration::from_secs(HEARTBEAT_S);
/// How long a new connection may take to be part of the idle fleet.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn run(options: &Options) -> anyhow::Result<Table> {
    let mut coordinators = Coordinators::open(options).await?;
    let result = tokio::select! {
        result = measure(options, &mut coordinators) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if !options.url.is_empty() {
        // And the one that joined later.
        remove(&coordinators, options.agents + 1).await?;
    }
    result
}

type Agents = (Arc<Shared>, Vec<Arc<Agent>>);

/// The agents, and what they tell.
struct Fleet {
    shared: Arc<Shared>,
    agents: Vec<Arc<Agent>>,
    reached: mpsc::UnboundedReceiver<Reached>,
    /// Ends the streams when it is dropped.
    _stop: watch::Sender<bool>,
}

async fn measure(options: &Options, coordinators: &mut Coordinators) -> anyhow::Result<Table> {
    let mut rows = Rows::default();
    rows.add(
        "agents, of which hold the whole view",
        format!("{}, {}", options.agents, options.whole.min(options.agents)),
    );
    rows.add("coordinators", coordinators.urls.len().to_string());
    let begin = Usages::of(&coordinators.pids());
    let agents = enrol(options, coordinators, &mut rows).await?;
    let enrolled = Usages::of(&coordinators.pids());
    let mut fleet = open(options, coordinators, agents, &mut rows).await?;
    idle(coordinators, [&begin, &enrolled], options.agents, &mut rows).await;
    changes(options, coordinators, &mut fleet, &mut rows).await?;
    join(options, coordinators, &mut fleet, &mut rows).await?;
    flap(options, coordinators, &mut fleet, &mut rows).await?;
    lose_one(coordinators, options, &mut fleet, &mut rows).await?;
    rows.add(
        "reports that had to be sent again",
        fleet
            .shared
            .counters
            .repeated
            .load(Ordering::Relaxed)
            .to_string(),
    );
    Ok(rows.table())
}

/// Makes the sites and enrols an agent for each.
async fn enrol(
    options: &Options,
    coordinators: &Coordinators,
    rows: &mut Rows,
) -> anyhow::Result<Agents> {
    let count = options.agents;
    progress(&format!("making {count} sites"));
    let begin = Instant::now();
    let numbers: Vec<_> = (0..count).collect();
    let mut sites: Vec<CreatedSite> = Vec::new();
    for numbers in numbers.chunks(IMPORT) {
        let body =
            json!({ "sites": numbers.iter().map(|number| site(*number)).collect::<Vec<_>>() });
        sites.extend(
            coordinators
                .operator
                .ask::<Imported>(Method::POST, "/import", Some(&body))
                .await?
                .sites,
        );
    }
    rows.add(
        &format!("sites made, imported by {IMPORT}"),
        rate(count, begin.elapsed()),
    );

    progress("enrolling");
    let shared = Arc::new(Shared::new(coordinators.urls.clone())?);
    let (begin, before) = (Instant::now(), Usages::of(&coordinators.pids()));
    let enrol = |(number, site)| Agent::enrol(Arc::clone(&shared), number, site);
    let agents = stream::iter((0..).zip(sites))
        .map(enrol)
        .buffered(PARALLEL)
        .map_ok(Arc::new)
        .try_collect::<Vec<_>>()
        .await?;
    rows.add(
        "enrolments (both requests, fsync)",
        rate(count, begin.elapsed()),
    );
    rows.add_processor_time("enrolment", &before, coordinators, count);
    Ok((shared, agents))
}

/// Opens the streams of all agents.
async fn open(
    options: &Options,
    coordinators: &Coordinators,
    (shared, agents): Agents,
    rows: &mut Rows,
) -> anyhow::Result<Fleet> {
    progress("opening the streams");
    let (stop, stopped) = watch::channel(false);
    let (sender, reached) = mpsc::unbounded_channel();
    let mut fleet = Fleet {
        shared,
        agents,
        reached,
        _stop: stop,
    };
    let mesh = fleet.agents[0].view().await?.mesh;
    let (whole, resumed) = fleet
        .agents
        .split_at(fleet.agents.len().min(options.whole as usize));
    let begin = Instant::now();
    let follow = |agent: &Arc<Agent>, replica| {
        tokio::spawn(Arc::clone(agent).follow(replica, sender.clone(), stopped.clone()))
    };
    for agent in whole {
        follow(agent, agent.blank());
    }
    let expected = whole.len();
    all(&mut fleet.reached, expected, 0).await?;
    if expected > 0 {
        rows.add(
            &format!("{expected} streams open, each with a snapshot"),
            format!("{:.1} s", begin.elapsed().as_secs_f64()),
        );
        let bytes = fleet.shared.counters.bytes.load(Ordering::Relaxed) / expected as u64;
        rows.add("bytes of a snapshot", mib(bytes));
    }
    // They know all up to the change before the newest, and hear of that one first.
    let position = coordinators.position().await?;
    let since = Position {
        revision: position.revision - 1,
        ..position
    };
    for agent in resumed {
        follow(agent, agent.resumed(since, &mesh)?);
    }
    let expected = resumed.len();
    let begin = Instant::now();
    all(&mut fleet.reached, expected, since.revision).await?;
    rows.add(
        "the other streams open and current",
        rate(u32::try_from(expected)?, begin.elapsed()),
    );
    Ok(fleet)
}

async fn idle(
    coordinators: &Coordinators,
    [begin, enrolled]: [&Usages; 2],
    count: u32,
    rows: &mut Rows,
) {
    let pids = coordinators.pids();
    if pids.is_empty() {
        return;
    }
    progress("idling");
    tokio::time::sleep(SETTLE).await;
    let start = Usages::of(&pids);
    tokio::time::sleep(IDLE).await;
    let end = Usages::of(&pids);
    rows.add(
        "memory: coordinators / Postgres / fleet",
        [end.coordinators, end.postgres, end.fleet]
            .map(|usage| mib(usage.memory))
            .join(" / "),
    );
    let each = |from: &Usages, to: &Usages| {
        format!(
            "{} KiB",
            to.coordinators
                .memory
                .saturating_sub(from.coordinators.memory)
                / u64::from(count)
                / 1024
        )
    };
    rows.add(
        "coordinators: memory for each site and node",
        each(begin, enrolled),
    );
    rows.add(
        "coordinators: memory for each open stream",
        each(enrolled, &end),
    );
    let share = |now: f64, then: f64| (now - then) / IDLE.as_secs_f64() * 100.0;
    let coordinator = share(end.coordinators.cpu_s, start.coordinators.cpu_s);
    rows.add(
        "idle: coordinators / Postgres, of a core",
        format!(
            "{coordinator:.1} / {:.1} %",
            share(end.postgres.cpu_s, start.postgres.cpu_s)
        ),
    );
}

async fn changes(
    options: &Options,
    coordinators: &Coordinators,
    fleet: &mut Fleet,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    progress(&format!(
        "{} changes of one site, one after the other",
        options.changes
    ));
    let (mut applied, mut acknowledged, mut last) = (vec![], vec![], vec![]);
    let before = Usages::of(&coordinators.pids());
    let counters = &fleet.shared.counters;
    let counted = || {
        (
            counters.bytes.load(Ordering::Relaxed),
            counters.messages.load(Ordering::Relaxed),
        )
    };
    let (bytes, messages) = counted();
    let agents = fleet.agents.len();
    for number in 0..options.changes {
        let body = json!({ "description": format!("change \
            {number}"), "subnets": [subnet(0), subnet(options.agents + 1 + number)] });
        let (begin, all) = change(coordinators, &mut fleet.reached, agents, &body).await?;
        applied.extend(all.iter().map(|reached| reached.applied - begin));
        acknowledged.extend(all.iter().map(|reached| reached.acknowledged - begin));
        last.extend(all.iter().map(|reached| reached.acknowledged - begin).max());
    }
    rows.add(
        "change → applied by an agent, p50 / p99 / max",
        spread(applied),
    );
    rows.add("change → acknowledged by an agent", spread(acknowledged));
    rows.add("change → acknowledged by all", spread(last));
    let (now, total) = (
        counted(),
        u64::from(options.agents) * u64::from(options.changes),
    );
    rows.add(
        "bytes for each agent and change, heartbeats included",
        ((now.0 - bytes) / total).to_string(),
    );
    #[expect(
        clippy::cast_precision_loss,
        reason = "two digits after the point are shown"
    )]
    rows.add(
        "messages for each agent and change, heartbeats included",
        format!("{:.2}", (now.1 - messages) as f64 / total as f64),
    );
    rows.add_processor_time("change", &before, coordinators, options.changes);
    Ok(())
}

/// A node joins and agrees on a preshared key with each of many others, while changes go on.
async fn join(
    options: &Options,
    coordinators: &Coordinators,
    fleet: &mut Fleet,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let partners = &fleet.agents[..fleet.agents.len().min(MOST_PARTNERS)];
    progress(&format!(
        "a node joins, and agrees on preshared keys with {}",
        partners.len()
    ));
    let created = coordinators
        .operator
        .ask(Method::POST, "/sites", Some(&site(options.agents)))
        .await?;
    let node = Arc::new(Agent::enrol(Arc::clone(&fleet.shared), options.agents, created).await?);
    partners
        .iter()
        .for_each(|agent| agent.agree_with([node.node()].into()));
    node.agree_with(partners.iter().map(|agent| agent.node()).collect());
    let letters = || {
        fleet
            .shared
            .counters
            .mailbox_messages
            .load(Ordering::Relaxed)
    };
    let (_stop, stopped) = watch::channel(false);
    let (sender, _reached) = mpsc::unbounded_channel();
    let (begin, mut applied, mut most) = (Instant::now(), vec![], 0);
    tokio::spawn(Arc::clone(&node).follow(node.blank(), sender, stopped));
    while node.agreed() < partners.len() {
        anyhow::ensure!(
            begin.elapsed() < PATIENCE,
            "it agreed with {} of {} only",
            node.agreed(),
            partners.len()
        );
        let body = json!({ "description": format!("while keys are agreed on, {}", applied.len()) });
        let (changed, all) =
            change(coordinators, &mut fleet.reached, fleet.agents.len(), &body).await?;
        applied.extend(all.iter().map(|reached| reached.applied - changed));
        most = most.max(coordinators.letters().await?);
    }
    let count = u32::try_from(partners.len())?;
    rows.add(
        &format!("a node joins → preshared keys with {count} others"),
        rate(count, begin.elapsed()),
    );
    rows.add("changes meanwhile → applied by an agent", spread(applied));
    rows.add(
        "letters for each of them, in the mailbox at one time at most",
        format!("{}, {most}", letters() / u64::from(count)),
    );
    Ok(())
}

/// One site loses its uplink: both ends of all its links say so at one moment, while a change is on
/// its way.
async fn flap(
    options: &Options,
    coordinators: &Coordinators,
    fleet: &mut Fleet,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    progress("all links of one site go up, and then down");
    let position = coordinators.position().await?;
    let (site, others) = fleet.agents.split_first().context("no agent")?;
    let link = |peer: &Agent, up: bool| {
        let handshake_age_s = Some(if up { 1 } else { 1_000 });
        LinkReport {
            peer: peer.node(),
            handshake_age_s,
            received_bytes: 1,
            sent_bytes: 1,
            endpoint: None,
            probe: None,
        }
    };
    for up in [true, false] {
        let begin = Instant::now();
        let tell_others = async {
            let reports =
                stream::iter(others).map(|agent| agent.report(position, vec![link(site, up)]));
            reports
                .buffer_unordered(others.len())
                .try_collect::<()>()
                .await?;
            site.report(
                position,
                others.iter().map(|agent| link(agent, up)).collect(),
            )
            .await?;
            Ok::<_, anyhow::Error>(begin.elapsed())
        };
        let change = async {
            let body = json!({ "description": format!("while links go \
                {}", if up { "up" } else { "down" }) });
            coordinators
                .operator
                .ask::<Value>(Method::PATCH, "/sites/fleet-0", Some(&body))
                .await?;
            all(
                &mut fleet.reached,
                options.agents as usize,
                coordinators.position().await?.revision - 1,
            )
            .await
        };
        let (told, reached) = tokio::try_join!(tell_others, change)?;
        if !up {
            rows.add(
                &format!(
                    "{} links down at both ends: all reports taken",
                    others.len()
                ),
                format!("{:.0} ms", told.as_secs_f64() * 1e3),
            );
            rows.add(
                "a change at that moment → applied by an agent",
                spread(
                    reached
                        .iter()
                        .map(|reached| reached.applied - begin)
                        .collect(),
                ),
            );
        }
    }
    Ok(())
}

async fn lose_one(
    coordinators: &mut Coordinators,
    options: &Options,
    fleet: &mut Fleet,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    if coordinators.pids().is_empty() {
        return Ok(());
    }
    progress("kill -9 of a coordinator");
    let snapshots = fleet.shared.counters.snapshots.load(Ordering::Relaxed);
    let begin = Instant::now();
    let ready = coordinators
        .kill_one()
        .await?
        .context("the coordinator is not ours")?;
    // What changes now reaches those that are back.
    change(
        coordinators,
        &mut fleet.reached,
        options.agents as usize,
        &json!({ "description": "after the end of one" }),
    )
    .await?;
    rows.add(
        "kill -9 → a coordinator is ready",
        format!("{:.1} s", ready.as_secs_f64()),
    );
    rows.add(
        "kill -9 → all back and current",
        format!("{:.1} s", begin.elapsed().as_secs_f64()),
    );
    rows.add(
        "snapshots sent after that",
        (fleet.shared.counters.snapshots.load(Ordering::Relaxed) - snapshots).to_string(),
    );
    Ok(())
}

/// Removes the fleet's sites from somebody else's coordinator, however far it came.
async fn remove(coordinators: &Coordinators, count: u32) -> anyhow::Result<()> {
    progress("removing the sites");
    let remove = |number| async move {
        match coordinators
            .operator
            .ask::<Value>(
                Method::DELETE,
                &format!("/sites/fleet-{number}"),
                None::<&()>,
            )
            .await
        {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    };
    stream::iter(0..count)
        .map(remove)
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

fn is_gone(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref();
    matches!(
        refused,
        Some(RequestError::Refused {
            status: StatusCode::NOT_FOUND,
            ..
        })
    )
}

/// Changes a site, and waits until so many agents have that. Gives when it was asked for, and when
/// each had it.
async fn change(
    coordinators: &Coordinators,
    reached: &mut mpsc::UnboundedReceiver<Reached>,
    agents: usize,
    body: &Value,
) -> anyhow::Result<(Instant, Vec<Reached>)> {
    let newest = coordinators.position().await?.revision;
    let begin = Instant::now();
    coordinators
        .operator
        .ask::<Value>(Method::PATCH, "/sites/fleet-0", Some(body))
        .await?;
    Ok((begin, all(reached, agents, newest).await?))
}

/// Waits until so many agents have reached a revision after `than`, each once.
async fn all(
    reached: &mut mpsc::UnboundedReceiver<Reached>,
    count: usize,
    than: i64,
) -> anyhow::Result<Vec<Reached>> {
    let mut all = Vec::new();
    let collect = async {
        while all.len() < count {
            match reached.recv().await {
                Some(one) if one.revision > than => all.push(one),
                Some(_) => {}
                None => bail!("the agents are gone"),
            }
        }
        Ok(())
    };
    match timeout(PATIENCE, collect).await {
        Ok(result) => result?,
        Err(_) => bail!(
            "only {} of {count} agents reached the revision after {than} within {} s",
            all.len(),
            PATIENCE.as_secs()
        ),
    }
    Ok(all)
}
