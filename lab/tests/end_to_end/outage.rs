//! Programs die; packets go on.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Api, Flow, Gateway, Lab,
    device::TunnelDevice,
    lab::items,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait::same,
    wait_for,
};
use wattle_wire::{admin::CreatedSite, ids::Position};

pub(crate) fn without_the_coordinator_no_packet_is_lost_and_its_return_costs_no_snapshot(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = [flow(&lab, 0, 1)?, flow(&lab, 2, 0)?];

    lab.coordinator.kill()?;
    flows[0].more(100)?;
    // An agent comes up from its disk while nobody can tell it anything.
    let dublin = lab.gateway_mut(DUBLIN)?;
    dublin.kill_agent()?;
    leave_work(dublin)?;
    dublin.start_agent()?;
    wait_in_charge(lab.gateway(DUBLIN)?, patience(5.0)).context("from its disk")?;
    flows[0].more(100)?;
    lab.ping_all()?;

    let snapshots = lab
        .gateways
        .iter_mut()
        .map(snapshots)
        .collect::<Result<Vec<_>>>()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    // What is changed now arrives, so the streams are there again.
    let patch = api.request(
        "PATCH",
        "/sites/new-york",
        Some(&json!({ "subnets": ["10.30.0.0/24", "10.31.0.0/24"] }).to_string()),
    )?;
    ensure!(patch.status == 200, "{patch:?}");
    lab.wait_for_route(&[DUBLIN, FRANKFURT], "10.31.0.0/24", patience(20.0))?;
    for (gateway, before) in lab.gateways.iter_mut().zip(snapshots) {
        let after = self::snapshots(gateway)?;
        ensure!(after == before, "{} needed a snapshot", gateway.site.name);
    }
    for flow in flows {
        flow.expect_no_loss()?;
    }
    Ok(())
}

pub(crate) fn no_restart_of_the_coordinator_and_nothing_it_says_again_changes_anything_on_a_gateway(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let settled = wait_for("all have agreed on preshared keys", patience(20.0), || {
        lab.gateways
            .iter()
            .map(settings)
            .collect::<Result<Vec<_>>>()
    })?;
    let epochs = |api: &Api| -> Result<Vec<i64>> {
        let nodes: Value = api.get("/nodes")?;
        items(&nodes)
            .iter()
            .map(|node| {
                let applied = node["last_report"]["applied"]
                    .as_str()
                    .context("a node has not reported")?;
                Ok(applied.parse::<Position>()?.epoch)
            })
            .collect()
    };
    let before = wait_for("all have reported", patience(20.0), || epochs(&api))?;
    let told = lab
        .gateways
        .iter()
        .map(|gateway| gateway.host.changes())
        .collect::<Result<Vec<_>>>()?;
    let snapshots_before = lab
        .gateways
        .iter_mut()
        .map(snapshots)
        .collect::<Result<Vec<_>>>()?;

    // Killed and started, stopped and started, and then with a new epoch, as after a restored
    // database or an upgrade that says everything again: every agent gets a snapshot.
    lab.coordinator.kill()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    lab.coordinator.stop()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    lab.coordinator.sql("UPDATE mesh SET epoch = epoch + 1")?;
    wait_for(
        "every agent has what was said again",
        patience(30.0),
        || {
            let now = epochs(&api)?;
            ensure!(
                now.iter().zip(&before).all(|(now, before)| now > before),
                "{before:?}, then {now:?}"
            );
            for (gateway, before) in lab.gateways.iter_mut().zip(&snapshots_before) {
                ensure!(
                    snapshots(gateway)? > *before,
                    "{} got no snapshot",
                    gateway.site.name
                );
            }
            Ok(())
        },
    )?;

    for ((gateway, told), settled) in lab.gateways.iter().zip(told).zip(&settled) {
        let name = gateway.site.name;
        ensure!(told.are_none()?, "the kernel of {name} told of a change");
        same(&settings(gateway)?, settled).context(name)?;
        leave_work(gateway)?;
        ensure!(!told.are_none()?, "the kernel of {name} tells nothing");
    }
    Ok(())
}

/// What the agent has set on its gateway's device, once each peer has a preshared key; handshakes,
/// which only the device makes, left out.
fn settings(gateway: &Gateway) -> Result<TunnelDevice> {
    let mut device = gateway.device()?;
    for peer in device.peers.values_mut() {
        ensure!(peer.preshared_key.is_some(), "a peer has no preshared key");
        peer.handshake_s = 0;
    }
    Ok(device)
}

pub(crate) fn join_and_changes_get_through_where_large_packets_are_lost_and_no_router_says_so(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    lab.lose_large_packets(DUBLIN, 1280)?;
    let host = &lab.gateway(DUBLIN)?.host;
    let ping = |bytes: u32| host.output(&format!("ping -c 1 -W 1 -M do -s {bytes} 198.18.0.2"));
    // With the headers of IPv4 and ICMP these are packets of 1,280 bytes and of one more.
    ensure!(ping(1252)?.status.success(), "no packet gets through");
    ensure!(!ping(1253)?.status.success(), "large packets are not lost");
    let curl = "curl --silent --insecure --max-time 3 https://198.18.0.2:8443/openapi.json";
    ensure!(
        !host.output(curl)?.status.success(),
        "a large answer arrives"
    );

    for gateway in &mut lab.gateways {
        gateway.start_agent()?;
    }
    let [dublin, frankfurt]: [CreatedSite; 2] = [
        api.post("/sites", &DUBLIN.body())?,
        api.post("/sites", &FRANKFURT.body())?,
    ];
    lab.gateway(FRANKFURT)?
        .join(frankfurt.join_token.join_string.reveal())?;
    let begin = Instant::now();
    lab.gateway(DUBLIN)?
        .join(dublin.join_token.join_string.reveal())?;
    // More than fits one packet.
    let subnets: Vec<_> = (0..100).map(|net| format!("10.20.{net}.0/24")).collect();
    let patch = api.request(
        "PATCH",
        "/sites/frankfurt",
        Some(&json!({ "subnets": subnets }).to_string()),
    )?;
    ensure!(patch.status == 200, "{patch:?}");
    let left = patience(15.0).saturating_sub(begin.elapsed());
    lab.wait_for_route(&[DUBLIN], "10.20.99.0/24", left)?;
    wait_for("its report arrives", patience(5.0), || {
        let node: Value = api.get("/nodes/dublin")?;
        ensure!(node["last_report"].is_object(), "{node}");
        Ok(())
    })?;
    let log = lab.gateway_mut(DUBLIN)?.agent()?.log();
    ensure!(log.contains("tries small packets"), "{log}");
    let log = lab.gateway_mut(FRANKFURT)?.agent()?.log();
    ensure!(!log.contains("tries small packets"), "{log}");
    Ok(())
}

pub(crate) fn agents_move_between_coordinators_without_a_snapshot_or_a_lost_packet(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    // The first one has the Postgres; agents only know the two others.
    let ports = [8444, 8445];
    lab.coordinator.announce(&ports);
    lab.start_coordinator()?;
    let mut apis = ports
        .map(|port| lab.coordinator.start_another(port))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    lab.join_all(&apis[0])?;
    let flow = flow(&lab, 0, 1)?;
    let before = lab
        .gateways
        .iter_mut()
        .map(snapshots)
        .collect::<Result<Vec<_>>>()?;
    let arrives = |lab: &Lab, api: &Api, subnet: &str| -> Result<()> {
        let patch = api.request(
            "PATCH",
            "/sites/new-york",
            Some(&json!({ "subnets": ["10.30.0.0/24", subnet] }).to_string()),
        )?;
        ensure!(patch.status == 200, "{patch:?}");
        lab.wait_for_route(&[DUBLIN, FRANKFURT], subnet, patience(5.0))
    };

    arrives(&lab, &apis[1], "10.31.0.0/24")
        .context("through the coordinator that no agent is connected to")?;
    lab.coordinator.kill_another(ports[0])?;
    arrives(&lab, &apis[1], "10.32.0.0/24").context("after the death of the one")?;
    apis[0] = lab.coordinator.start_another(ports[0])?;
    lab.coordinator.kill_another(ports[1])?;
    arrives(&lab, &apis[0], "10.33.0.0/24").context("after the death of the other")?;

    let after = lab
        .gateways
        .iter_mut()
        .map(snapshots)
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        after == before,
        "snapshots were sent: {before:?}, then {after:?}"
    );
    flow.expect_no_loss()?;
    Ok(())
}

pub(crate) fn h1_a_killed_agent_leaves_its_tunnels_up(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let flows = [flow(&lab, 0, 1)?, flow(&lab, 1, 2)?];
    for gateway in &mut lab.gateways {
        gateway.kill_agent()?;
    }
    flows[0].more(200)?;
    lab.ping_all()?;
    lab.gateways.iter().try_for_each(leave_work)?;
    for gateway in &mut lab.gateways {
        gateway.start_agent()?;
    }
    let deadline = Instant::now() + patience(10.0);
    for gateway in &lab.gateways {
        wait_in_charge(gateway, deadline.saturating_duration_since(Instant::now()))?;
    }
    flows[0].more(100)?;
    for flow in flows {
        flow.expect_no_loss()?;
    }
    Ok(())
}

pub(crate) fn an_agent_that_is_stopped_and_started_again_loses_no_packet(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[FRANKFURT, NEW_YORK])?;
    lab.weave()?;
    let flow = flow(&lab, 0, 1)?;
    for gateway in &mut lab.gateways {
        wait_for("nothing is left to do", patience(10.0), || {
            let plan = gateway.agent_says(&["plan"])?;
            if plan.starts_with("nothing to do") {
                Ok(())
            } else {
                bail!("{plan}")
            }
        })?;
        gateway.stop_agent()?;
        flow.more(50)?;
        leave_work(gateway)?;
        let plan = gateway.agent_says(&["plan"])?;
        ensure!(
            plan.lines().count() == 1 && !plan.starts_with("nothing to do"),
            "the plan is {plan}"
        );
        gateway.start_agent()?;
        wait_in_charge(gateway, patience(10.0))?;
        flow.more(50)?;
    }
    flow.expect_no_loss().map(drop)
}

pub(crate) fn h7_programs_without_descriptors_or_time_go_on_and_no_packet_is_lost(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flow = flow(&lab, 0, 1)?;
    let agent = lab.gateway_mut(DUBLIN)?.agent()?.pid();
    let server = lab.coordinator.server()?.pid();
    let descriptors = |lab: &Lab, pid: u32, most: u32| {
        lab.coordinator
            .host
            .run(&format!("prlimit --pid {pid} --nofile={most}:"))
    };
    let change = |subnet: &str| -> Result<()> {
        let patch = api.request(
            "PATCH",
            "/sites/new-york",
            Some(&json!({ "subnets": ["10.30.0.0/24", subnet] }).to_string()),
        )?;
        ensure!(patch.status == 200, "{patch:?}");
        Ok(())
    };
    let arrives = |lab: &Lab, subnet: &str| lab.wait_for_route(&[DUBLIN], subnet, patience(20.0));

    // Fewer than it has open: it gets no more.
    descriptors(&lab, agent, 3)?;
    change("10.31.0.0/24")?;
    let dublin = lab.gateway_mut(DUBLIN)?.agent()?;
    dublin.wait_for_log("Too many open files", patience(20.0))?;
    descriptors(&lab, agent, 1024)?;
    arrives(&lab, "10.31.0.0/24").context("to an agent that had no descriptors")?;

    descriptors(&lab, server, 3)?;
    wait_for(
        "the coordinator has run out of descriptors",
        patience(20.0),
        || {
            ensure!(api.get::<Value>("/nodes").is_err(), "it answers");
            Ok(())
        },
    )?;
    flow.more(50)?;
    descriptors(&lab, server, 1024)?;
    wait_for("the coordinator answers again", patience(20.0), || {
        change("10.32.0.0/24")
    })?;
    arrives(&lab, "10.32.0.0/24").context("from a coordinator that had no descriptors")?;

    // A machine that gives them no time, and then some.
    for pid in [agent, server] {
        lab.coordinator.host.run(&format!("kill -STOP {pid}"))?;
    }
    flow.more(300)?;
    for pid in [agent, server] {
        lab.coordinator.host.run(&format!("kill -CONT {pid}"))?;
    }
    wait_for("the coordinator answers again", patience(20.0), || {
        change("10.33.0.0/24")
    })?;
    arrives(&lab, "10.33.0.0/24").context("between two programs that stood still")?;
    same(
        &[
            lab.gateway_mut(DUBLIN)?.agent()?.pid(),
            lab.coordinator.server()?.pid(),
        ],
        &[agent, server],
    )?;
    // Nothing half written is left: the next start goes on from what the last one kept.
    let dublin = lab.gateway_mut(DUBLIN)?;
    dublin.kill_agent()?;
    leave_work(dublin)?;
    dublin.start_agent()?;
    wait_in_charge(lab.gateway(DUBLIN)?, patience(10.0))?;
    flow.expect_no_loss().map(drop)
}

pub(crate) fn a_device_of_before_an_upgrade_is_told_and_when_it_is_ended_the_new_one_comes(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let old = |gateway: &Gateway| -> Result<Option<String>> {
        let status = gateway.status()?;
        let mut problems = status["problems"].as_array().into_iter().flatten();
        let found = problems.find(|problem| problem["code"] == "old_device");
        Ok(found.map(|problem| problem["remedy"].as_str().unwrap_or_default().to_owned()))
    };
    let dublin = lab.gateway_mut(DUBLIN)?;
    same(&old(dublin)?, &None)?;
    dublin.stop_agent()?;
    // Another file of the same program, as an upgrade leaves one.
    let program = folder.join("wattle-agent");
    fs::copy(dublin.program(), &program)?;
    let newer = format!("shift; exec '{}' \"$@\"", program.display());
    dublin.start_agent_under(&["sh", "-c", &newer, "sh"])?;
    wait_for("the old device is told", patience(10.0), || {
        old(dublin)?.context("nothing is told").map(drop)
    })?;
    let remedy = old(dublin)?.context("nothing is told")?;
    let doctor = dublin.try_agent(&["doctor"])?;
    let told = String::from_utf8_lossy(&doctor.stdout);
    ensure!(told.contains("notice  old_device"), "{told}");

    dublin.host.run(&remedy)?;
    let dublin = lab.gateway(DUBLIN)?;
    wait_for("the new device moves packets", patience(20.0), || {
        same(&old(dublin)?, &None)?;
        lab.ping_all()
    })
}

pub(crate) fn h7_systemd_is_told_that_an_agent_is_ready_and_that_its_loop_goes_on(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let socket = folder.join("notify");
    let systemd = UnixDatagram::bind(&socket)?;
    let (told, tells) = mpsc::channel();
    // Read at once, as systemd does: whoever tells waits while nobody reads.
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok(length) = systemd.recv(&mut buffer) {
            if told
                .send(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let hears = || {
        tells
            .recv_timeout(patience(20.0))
            .context("nothing is heard")
    };
    let notify = format!("NOTIFY_SOCKET={}", socket.display());
    lab.gateway_mut(DUBLIN)?
        .start_agent_under(&["env", &notify, "WATCHDOG_USEC=1000000"])?;
    // Before it has joined, and after.
    same(&hears()?.as_str(), &"READY=1")?;
    same(&hears()?.as_str(), &"WATCHDOG=1")?;
    let api = lab.start_coordinator()?;
    let dublin = lab.gateway(DUBLIN)?;
    let created: CreatedSite = api.post("/sites", &dublin.site.body())?;
    dublin.join(created.join_token.join_string.reveal())?;
    wait_in_charge(lab.gateway(DUBLIN)?, patience(20.0))?;
    while tells.try_recv().is_ok() {}
    same(&hears()?.as_str(), &"WATCHDOG=1")
}

/// A stream from the LAN of one gateway to that of another.
fn flow(lab: &Lab, from: usize, to: usize) -> Result<Flow> {
    let (from, to) = (&lab.gateways[from], &lab.gateways[to]);
    Flow::start(&from.lan_host, &to.lan_host, to.site.lan_host())
}

/// Takes away what no packet needs here, for the next agent to put back: the rules for forwarding,
/// where everything is forwarded anyway.
fn leave_work(gateway: &Gateway) -> Result<()> {
    gateway.host.run("nft delete table inet wattle").map(drop)
}

/// Waits until an agent runs that has done what [`leave_work`] left.
fn wait_in_charge(gateway: &Gateway, deadline: Duration) -> Result<()> {
    let changes = gateway.host.changes()?;
    changes.wait_for("an agent is in charge", deadline, || {
        gateway.host.run("nft list table inet wattle")?;
        let status = gateway.status()?;
        ensure!(status["agent_running"] == true, "{status}");
        Ok(())
    })
}

/// How many snapshots the agent has taken since it began to log.
fn snapshots(gateway: &mut Gateway) -> Result<usize> {
    Ok(gateway.agent()?.log().matches("snapshot").count())
}
