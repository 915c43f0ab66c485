//! One measurement from beginning to end: sites, enrolments, streams, changes, a restart.

use std::{
    net::Ipv4Addr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use wattle_wire::join::JoinString;

use crate::{
    Options,
    agent::{Agent, Counters, Reached},
    coordinator::Coordinator,
    figures::{self, mib, spread},
    progress,
};

/// Requests at the same time, while sites are made and agents enrol.
const PARALLEL: usize = 16;
/// How long all agents may take to reach a revision.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the fleet idles while idleness is measured.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) async fn run(options: &Options) -> anyhow::Result<Table> {
    let mut coordinator = Coordinator::open(options).await?;
    let mut rows = Rows(vec![]);
    let count = options.agents;
    rows.add("agents", count.to_string());

    progress(&format!("making {count} sites"));
    let begin = Instant::now();
    let joins: Vec<JoinString> = stream::iter(0..count).map(|number| site(&coordinator, number)).buffered(PARALLEL).try_collect().await?;
    rows.add("sites made", rate(count, begin.elapsed()));

    progress("enrolling");
    let begin = Instant::now();
    let enrol = |join: JoinString| Agent::enrol(join_at(join, &coordinator.url));
    let agents: Vec<Agent> = stream::iter(joins).map(enrol).buffered(PARALLEL).try_collect().await?;
    rows.add("enrolments (both requests, fsync)", rate(count, begin.elapsed()));

    let before = coordinator.pid().map(figures::usage);
    progress("opening the streams, each with a snapshot");
    let counters = Arc::new(Counters::default());
    let (stop, stopped) = watch::channel(false);
    let (sender, mut reached) = mpsc::unbounded_channel();
    let begin = Instant::now();
    for agent in agents {
        tokio::spawn(agent.follow(Arc::clone(&counters), sender.clone(), stopped.clone()));
    }
    let newest = all(&mut reached, count, 0).await?.iter().map(|reached| reached.revision).max().context("no agent")?;
    rows.add("all streams open with a snapshot", format!("{:.1} s", begin.elapsed().as_secs_f64()));
    rows.add("bytes of the snapshots", mib(counters.bytes.load(Ordering::Relaxed)));

    idle(&coordinator, before, count, &mut rows).await;
    changes(options, &coordinator, &counters, &mut reached, newest, &mut rows).await?;
    restart(&mut coordinator, options, &counters, &mut reached, &mut rows).await?;

    let _ = stop.send(true);
    if options.url.is_some() {
        progress("removing the sites");
        let remove = |number| {
            let coordinator = &coordinator;
            async move { coordinator.admin(Method::DELETE, &format!("/sites/fleet-{number}"), None).await.map(drop) }
        };
        stream::iter(0..count).map(remove).buffered(PARALLEL).try_collect::<()>().await?;
    }
    rows.add("note", "the fleet runs on the same machine: its processor time is in all times".to_owned());
    Ok(rows.table())
}

async fn idle(coordinator: &Coordinator, before: Option<figures::Usage>, count: u32, rows: &mut Rows) {
    let (Some(pid), Some(before)) = (coordinator.pid(), before) else { return };
    progress("idling");
    let start = figures::usage(pid);
    tokio::time::sleep(IDLE).await;
    let end = figures::usage(pid);
    rows.add("coordinator: memory", format!("{} ({} before the streams)", mib(end.memory), mib(before.memory)));
    let each = end.memory.saturating_sub(before.memory) / u64::from(count) / 1024;
    rows.add("coordinator: memory for each open stream, snapshots sent", format!("{each} KiB"));
    rows.add("coordinator: idle", format!("{:.1} % of a core", (end.cpu_s - start.cpu_s) / IDLE.as_secs_f64() * 100.0));
}

async fn changes(
    options: &Options,
    coordinator: &Coordinator,
    counters: &Counters,
    reached: &mut mpsc::UnboundedReceiver<Reached>,
    mut newest: i64,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    progress(&format!("{} changes of one site, one after the other", options.changes));
    let (mut applied, mut acknowledged, mut last) = (vec![], vec![], vec![]);
    let cpu = coordinator.pid().map(figures::usage);
    let bytes = counters.bytes.load(Ordering::Relaxed);
    for number in 0..options.changes {
        let body = json!({ "description": format!("change {number}"), "subnets": [subnet(0), subnet(options.agents + number)] });
        let begin = Instant::now();
        coordinator.admin(Method::PATCH, "/sites/fleet-0", Some(&body)).await?;
        let all = all(reached, options.agents, newest).await?;
        newest = all.iter().map(|reached| reached.revision).max().context("no agent")?;
        applied.extend(all.iter().map(|reached| reached.applied - begin));
        acknowledged.extend(all.iter().map(|reached| reached.acknowledged - begin));
        last.extend(all.iter().map(|reached| reached.acknowledged - begin).max());
    }
    rows.add("change → applied by an agent, p50 / p99 / max", spread(applied));
    rows.add("change → acknowledged by an agent", spread(acknowledged));
    rows.add("change → acknowledged by all", spread(last));
    let bytes = (counters.bytes.load(Ordering::Relaxed) - bytes) / u64::from(options.agents) / u64::from(options.changes);
    rows.add("bytes for each agent and change, heartbeats included", bytes.to_string());
    if let (Some(pid), Some(cpu)) = (coordinator.pid(), cpu) {
        let used = (figures::usage(pid).cpu_s - cpu.cpu_s) / f64::from(options.changes) * 1e3;
        rows.add("coordinator: processor time for each change", format!("{used:.0} ms"));
    }
    Ok(())
}

async fn restart(
    coordinator: &mut Coordinator,
    options: &Options,
    counters: &Counters,
    reached: &mut mpsc::UnboundedReceiver<Reached>,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    if coordinator.pid().is_none() {
        return Ok(());
    }
    progress("kill -9 of the coordinator");
    let snapshots = counters.snapshots.load(Ordering::Relaxed);
    let begin = Instant::now();
    let ready = coordinator.restart().await?.context("the coordinator is not ours")?;
    // What changes now reaches those that are back.
    coordinator.admin(Method::PATCH, "/sites/fleet-0", Some(&json!({ "description": "after the restart" }))).await?;
    all(reached, options.agents, 0).await?;
    rows.add("kill -9 → ready again", format!("{:.1} s", ready.as_secs_f64()));
    rows.add("kill -9 → all back and current", format!("{:.1} s", begin.elapsed().as_secs_f64()));
    rows.add("snapshots sent after the restart", (counters.snapshots.load(Ordering::Relaxed) - snapshots).to_string());
    Ok(())
}

/// Waits until so many agents have reached a revision after `than`.
async fn all(reached: &mut mpsc::UnboundedReceiver<Reached>, count: u32, than: i64) -> anyhow::Result<Vec<Reached>> {
    let mut all = Vec::new();
    let collect = async {
        while all.len() < count as usize {
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
        Err(_) => bail!("only {} of {count} agents reached the revision after {than} within {} s", all.len(), PATIENCE.as_secs()),
    }
    Ok(all)
}

async fn site(coordinator: &Coordinator, number: u32) -> anyhow::Result<JoinString> {
    let body = json!({ "name": format!("fleet-{number}"), "endpoint": endpoint(number), "subnets": [subnet(number)] });
    let created = coordinator.admin(Method::POST, "/sites", Some(&body)).await?;
    let text = created.pointer("/join_token/join_string").and_then(|text| text.as_str()).context("no join string")?;
    Ok(text.parse()?)
}

/// The agents reach the coordinator as the fleet does, whatever its join strings say.
fn join_at(join: JoinString, url: &str) -> JoinString {
    JoinString { urls: vec![url.to_owned()], ..join }
}

/// 10.128.0.0/24 and on: the upper half of 10.0.0.0/8, clear of the tunnel prefix.
fn subnet(number: u32) -> String {
    format!("{}/24", Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number * 256))
}

/// Of the range for benchmarks, RFC 2544; nothing is ever sent there.
fn endpoint(number: u32) -> String {
    format!("{}:51820", Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number))
}

fn rate(count: u32, time: Duration) -> String {
    format!("{:.1} s, {:.0}/s", time.as_secs_f64(), f64::from(count) / time.as_secs_f64())
}

struct Rows(Vec<[String; 2]>);

impl Rows {
    fn add(&mut self, what: &str, figure: String) {
        self.0.push([what.to_owned(), figure]);
    }

    fn table(self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for row in self.0 {
            table.add_row(row);
        }
        table
    }
}
