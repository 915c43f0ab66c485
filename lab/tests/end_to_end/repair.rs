//! Strangers meddle; the agent keeps what is its own in order and leaves the rest alone.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Api, Flow, Gateway, Host, Lab,
    gateway::{INTERFACE, STATE_DIR},
    patience,
    process::Daemon,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK, PORT},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{CreatedSite, Node, Page};

use crate::expected_peers;

/// Tables of somebody else, one with a name much like ours.
const FOREIGN_RULES: &str = "
table inet foreign {
    set s { type ipv4_addr; elements = { 10.0.0.1 }; }
    chain c {
        type filter hook forward priority 10; policy accept;
        ip saddr @s drop
    }
}
table ip wattle {
    chain c { counter; }
}
";

pub(crate) fn h4_a_deleted_interface_and_what_a_stranger_set_are_repaired_within_ten_seconds(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let nodes: Page<Node> = api.get("/nodes")?;
    let dublin = lab.gateway(DUBLIN)?;
    let peers = expected_peers(&nodes.items, DUBLIN, &GUIDE)?;
    let key = &peers[0].0;
    let stranger = dublin
        .host
        .run("wg genkey")
        .and_then(|key| dublin.host.run_with("wg pubkey", &key))?;
    let meddling = [
        format!("ip link del {INTERFACE}"),
        format!("ip link set {INTERFACE} down"),
        format!("ip address flush dev {INTERFACE}"),
        "ip route del 10.20.0.0/24".to_owned(),
        format!("wg set {INTERFACE} peer {key} allowed-ips 10.66.0.0/24"),
        format!("wg set {INTERFACE} peer {key} remove"),
        format!(
            "wg set {INTERFACE} peer {} allowed-ips 10.20.0.0/24 endpoint 192.0.2.99:1",
            stranger.trim()
        ),
        format!("wg set {INTERFACE} listen-port 4444"),
        "nft delete table inet wattle".to_owned(),
        "sysctl -q -w net.ipv4.ip_forward=0".to_owned(),
    ];
    for meddling in meddling {
        dublin.host.run(&meddling)?;
        let deadline = Instant::now() + patience(10.0);
        wait_for("it is repaired", patience(10.0), || {
            same(&dublin.allowed_ips()?, &peers)?;
            same(&dublin.device()?.listen_port, &PORT)?;
            lab.ping_all()
        })
        .and_then(|()| {
            let left = deadline.saturating_duration_since(Instant::now());
            lab.wait_for_rules(&[DUBLIN], "chain", left)
        })
        .with_context(|| format!("after `{meddling}`"))?;
    }
    Ok(())
}

pub(crate) fn h8_down_leaves_the_gateway_as_it_was_and_nothing_of_others_was_touched(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let host = &lab.gateway(DUBLIN)?.host;
    host.run("ip link add br-foreign type bridge")?;
    host.run("ip address add 172.30.0.1/24 dev br-foreign")?;
    host.run("ip link set br-foreign up")?;
    host.run("ip route add 172.31.0.0/24 via 172.30.0.2")?;
    host.run("ip rule add from 172.30.0.0/24 table 77")?;
    host.run_with("nft -f -", FOREIGN_RULES)?;
    let before = state(host)?;

    lab.weave()?;
    let running = state(&lab.gateway(DUBLIN)?.host)?;
    for line in before.lines().filter(|line| {
        !line.starts_with("net.") && line.contains("foreign")
            || line.contains("172.3")
            || line.contains("table ip wattle")
    }) {
        ensure!(running.contains(line), "`{line}` is gone");
    }

    let refused = lab.gateway(DUBLIN)?.try_agent(&["down"])?;
    ensure!(
        !refused.status.success(),
        "`down` took the tunnels away from a running agent"
    );
    lab.ping_all()?;
    lab.gateway_mut(DUBLIN)?.stop_agent()?;
    lab.ping_all()?;
    let dublin = lab.gateway(DUBLIN)?;
    dublin.agent_says(&["down"])?;
    wait_for("the gateway is as it was", patience(5.0), || {
        let after = state(&dublin.host)?;
        let other = |of: &str, than: &str| {
            of.lines()
                .filter(|line| !than.lines().any(|found| found == *line))
                .collect::<Vec<_>>()
                .join("\n")
        };
        same(
            &(other(&before, &after), other(&after, &before)),
            &Default::default(),
        )?;
        same(&after, &before)
    })?;
    ensure!(
        !has_device_process(dublin)?,
        "the device's process is still there"
    );

    // Once more is no error, and the agent comes back as if nothing had been.
    dublin.agent_says(&["down"])?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    wait_for("the LANs ping again", patience(10.0), || lab.ping_all())
}

pub(crate) fn h3_a_state_directory_that_is_full_read_only_damaged_or_gone_costs_no_tunnel_and_no_key(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    lab.gateway(DUBLIN)?
        .host
        .run(&format!("mkdir -p {STATE_DIR}"))?;
    // Z2: what can still be done is done, and the reason is told here and at the coordinator.
    let tells = |lab: &Lab, api: &Api, wanted: bool, has_socket: bool| -> Result<()> {
        wait_for("the reason is told, or no more", patience(10.0), || {
            let node: Value = api.get("/nodes/dublin")?;
            let mut places = vec![node["problems"].clone()];
            if has_socket {
                places.push(lab.gateway(DUBLIN)?.status()?["problems"].clone());
            }
            for problems in places {
                let told = problems
                    .to_string()
                    .contains(&format!("{STATE_DIR}/view.json"));
                ensure!(told == wanted, "{problems}");
            }
            Ok(())
        })
    };
    lab.gateway(DUBLIN)?.host.run(&format!(
        "mount -t tmpfs -o size=1m,mode=755 state {STATE_DIR}"
    ))?;
    let api = lab.weave()?;
    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    let key = lab.gateway(DUBLIN)?.public_key()?;
    let mut number = 40;
    let mut follows = |lab: &Lab| -> Result<()> {
        number += 1;
        let lan = format!("10.{number}.0.0/24");
        let patch = api.request(
            "PATCH",
            "/sites/frankfurt",
            Some(&json!({ "subnets": [FRANKFURT.lan, lan] }).to_string()),
        )?;
        ensure!(patch.status == 200, "{patch:?}");
        lab.wait_for_route(&[DUBLIN], &lan, patience(10.0))
    };

    let host = &lab.gateway(DUBLIN)?.host;
    let kept = host.read(&format!("{STATE_DIR}/node.json"))?;
    let view = |host: &Host| host.read(&format!("{STATE_DIR}/view.json"));
    // The view before the last one would make room for the next. What else takes the place of
    // another does so, too, and is filled up.
    host.run(&format!("rm -f {STATE_DIR}/view.json.previous"))?;
    let mut fill = host.command("sh");
    fill.args([
        "-c",
        &format!("while :; do cat /dev/zero >>{STATE_DIR}/ballast; sleep 0.02; done"),
    ]);
    let fill = Daemon::start(fill, &folder.join("fill.log"))?;
    wait_for("the disk is full", patience(5.0), || {
        let free = host.run(&format!("df --output=avail {STATE_DIR}"))?;
        same(&free.split_whitespace().last(), &Some("0"))
    })?;
    let before = view(host)?;
    follows(&lab).context("on a full disk")?;
    tells(&lab, &api, true, true)?;
    let created: CreatedSite = api.post("/sites", &NEW_YORK.body())?;
    lab.add_site(NEW_YORK)?;
    lab.gateway(NEW_YORK)?
        .join(created.join_token.join_string.reveal())?;
    lab.gateway_mut(NEW_YORK)?.start_agent()?;
    wait_for("a new peer is reached", patience(10.0), || {
        lab.gateway(DUBLIN)?.host.ping(NEW_YORK.lan_host())
    })?;
    same(&view(&lab.gateway(DUBLIN)?.host)?, &before)?;
    fill.kill()?;
    let host = &lab.gateway(DUBLIN)?.host;
    host.run(&format!("rm {STATE_DIR}/ballast"))?;
    host.run(&format!("mount --bind {STATE_DIR} {STATE_DIR}"))?;
    host.run(&format!("mount -o remount,bind,ro {STATE_DIR}"))?;
    follows(&lab).context("on a disk that is read-only")?;
    lab.gateway_mut(DUBLIN)?.kill_agent()?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    follows(&lab).context("of an agent that starts on a disk that is read-only")?;
    // Here the socket is on that disk, too.
    tells(&lab, &api, true, false)?;
    lab.gateway(DUBLIN)?
        .host
        .run(&format!("mount -o remount,bind,rw {STATE_DIR}"))?;
    follows(&lab)?;
    let host = &lab.gateway(DUBLIN)?.host;
    wait_for("what is known is on disk again", patience(5.0), || {
        let view = view(host)?;
        ensure!(view != before, "{view}");
        Ok(())
    })?;
    same(&host.read(&format!("{STATE_DIR}/node.json"))?, &kept)?;
    tells(&lab, &api, false, false)?;

    // A damaged view gives way to the one before it, pins and all; a key that is open to others is
    // private again.
    lab.gateway_mut(DUBLIN)?.kill_agent()?;
    let host = &lab.gateway(DUBLIN)?.host;
    host.run(&format!("truncate --size=100 {STATE_DIR}/view.json"))?;
    host.run(&format!("chmod 0644 {STATE_DIR}/node.json"))?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    follows(&lab).context("with a damaged view")?;
    let log = lab.gateway_mut(DUBLIN)?.agent()?.log();
    ensure!(
        log.contains("using the previous version of the file")
            && log.contains("loaded the view from disk"),
        "{log}"
    );
    same(
        &lab.gateway(DUBLIN)?
            .host
            .run(&format!("stat --format=%a {STATE_DIR}/node.json"))?
            .trim(),
        &"600",
    )?;

    // A damaged key is said, and neither thrown away nor replaced.
    lab.gateway_mut(DUBLIN)?.kill_agent()?;
    let host = &lab.gateway(DUBLIN)?.host;
    host.run(&format!("cp {STATE_DIR}/node.json {STATE_DIR}/copy"))?;
    host.run(&format!("truncate --size=100 {STATE_DIR}/node.json"))?;
    let output = lab.gateway(DUBLIN)?.try_agent(&["run"])?;
    ensure!(
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("node.json is damaged"),
        "{output:?}"
    );
    let host = &lab.gateway(DUBLIN)?.host;
    same(
        &host
            .run(&format!("stat --format=%s {STATE_DIR}/node.json"))?
            .trim(),
        &"100",
    )?;
    flow.more(20)?;
    host.run(&format!("mv {STATE_DIR}/copy {STATE_DIR}/node.json"))?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    follows(&lab)?;

    // Gone while the agent runs, and after: the tunnels stay.
    lab.gateway(DUBLIN)?.host.run(&format!(
        "rm -r {STATE_DIR}/node.json {STATE_DIR}/view.json {STATE_DIR}/view.json.previous"
    ))?;
    follows(&lab).context("with the files gone")?;
    lab.gateway_mut(DUBLIN)?.kill_agent()?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    let agent = lab.gateway_mut(DUBLIN)?.agent()?;
    agent.wait_for_log("this machine is not a node yet", patience(5.0))?;
    same(&lab.gateway(DUBLIN)?.public_key()?, &key)?;
    flow.more(20)?;
    // An agent that starts without what the one before could not write down finds a table that it
    // does not know, and makes it anew. A packet that comes at that moment may be lost (ADR 5).
    let lost = flow.finish()?.lost;
    ensure!(lost.len() <= 1, "{lost:?} were lost");
    Ok(())
}

/// Everything of a host's network that an agent could have touched, as text.
fn state(host: &Host) -> Result<String> {
    let mut text = String::new();
    for command in [
        "ip address show",
        "ip -4 route show table all",
        "ip -6 route show table main",
        "ip rule show",
        "nft list ruleset",
        "sysctl -a --pattern net.ipv4.(ip_forward|conf.(all|default|eth0|lan0|br-foreign))",
    ] {
        text += &format!("# {command}\n{}", host.run(command)?);
    }
    Ok(text)
}

fn has_device_process(gateway: &Gateway) -> Result<bool> {
    Ok(gateway
        .host
        .output(&format!("ls /run/wireguard/{INTERFACE}.sock"))?
        .status
        .success())
}
