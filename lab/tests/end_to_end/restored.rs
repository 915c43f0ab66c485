//! A database that was restored from a backup.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wattle_lab::{
    Lab, LabSite,
    gateway::STATE_DIR,
    patience,
    site::{DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO},
    wait::same,
    wait_for,
};
use wattle_wire::{
    admin::{ConnectionState, CreatedSite, Event, Node, Page},
    report::HeldBecause,
};

const STAY: [LabSite; 3] = [DUBLIN, FRANKFURT, NEW_YORK];

pub(crate) fn e19_a_node_that_was_revoked_after_the_backup_stays_out_when_it_is_restored(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO])?;
    let api = lab.weave()?;
    lab.ping_all()?;
    lab.coordinator.stop()?;
    lab.coordinator.back_up()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    api.delete("/nodes/sao-paulo")?;
    let is_out = |lab: &Lab| {
        for site in STAY {
            let peers = lab.gateway(site)?.status()?["peers"].to_string();
            ensure!(!peers.contains("sao-paulo"), "{}: {peers}", site.name);
        }
        Ok(())
    };
    wait_for("its peers have dropped it", patience(30.0), || is_out(&lab))?;

    lab.coordinator.stop()?;
    lab.coordinator.restore_backup()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    let node = || api.get::<Node>("/nodes/sao-paulo");
    wait_for("all say that it was removed", patience(60.0), || {
        let removed_on = node()?.removed_on.context("nobody says so")?;
        same(
            &removed_on.to_string().as_str(),
            &"dublin, frankfurt, new-york",
        )
    })?;
    is_out(&lab)?;
    lab.ping_all_of(&STAY)?;
    let ping = format!("ping -c 1 -W 1 {}", SAO_PAULO.lan_host());
    let answered = lab.gateway(DUBLIN)?.lan_host.run(&ping);
    ensure!(answered.is_err(), "{answered:?}");
    let status = lab.gateway(DUBLIN)?.status()?["problems"].to_string();
    ensure!(
        status.contains("has peers again that it had removed") && status.contains("sao-paulo"),
        "{status}"
    );
    wait_for("the audit log has it", patience(20.0), || {
        let events: Page<Event> = api.get("/events?limit=50")?;
        let told = events
            .items
            .iter()
            .filter(|event| event.action == "node.returned");
        let told: Vec<_> = told.map(|event| event.sentence.as_str()).collect();
        let sentence = "found that node sao-paulo of site sao-paulo had been removed and is back";
        same(&told, &vec![sentence])
    })?;

    // Somebody on one gateway lets it in; the others keep it out.
    lab.gateway(DUBLIN)?.agent_says(&["confirm"])?;
    wait_for("it is a peer of one", patience(30.0), || {
        let peers = lab.gateway(DUBLIN)?.status()?["peers"].to_string();
        ensure!(peers.contains("sao-paulo"), "{peers}");
        let removed_on = node()?.removed_on.context("nobody says so")?;
        same(&removed_on.to_string().as_str(), &"frankfurt, new-york")
    })?;
    // One call removes it again, for all.
    api.delete("/nodes/sao-paulo")?;
    wait_for("nothing is left of it", patience(30.0), || {
        is_out(&lab)?;
        for site in STAY {
            let problems = api.get::<Node>(&format!("/nodes/{}", site.name))?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
        }
        Ok(())
    })?;
    lab.ping_all_of(&STAY)
}

pub(crate) fn h8_a_gateway_that_is_set_back_to_an_earlier_disk_says_so_at_both_ends_and_one_command_mends_it(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &STAY)?;
    let api = lab.weave()?;
    lab.ping_all()?;
    keep_disk(&lab)?;
    lab.gateway(FRANKFURT)?.agent_says(&["rotate", "--psk"])?;
    wait_for("the preshared keys are others", patience(30.0), || {
        lab.ping_all()
    })?;

    // The WireGuard key is the same: nobody has to do anything.
    set_back(&mut lab)?;
    wait_for("all LANs ping", patience(60.0), || lab.ping_all())?;

    keep_disk(&lab)?;
    lab.gateway(FRANKFURT)?.agent_says(&["rotate"])?;
    let key = lab.gateway(FRANKFURT)?.device()?.public_key;
    wait_for("all know the new key", patience(30.0), || {
        let known = api.get::<Node>("/nodes/frankfurt")?.wireguard_key;
        same(&known.to_string(), &key)?;
        lab.ping_all()
    })?;
    set_back(&mut lab)?;
    let told = "its disk is of an earlier time";
    wait_for("both ends say so", patience(30.0), || {
        let problems = api.get::<Node>("/nodes/frankfurt")?.problems;
        let is_told = |words: &str| words.contains(told);
        ensure!(
            problems.iter().any(|known| is_told(&known.problem.words)),
            "{problems:?}"
        );
        let status = lab.gateway(FRANKFURT)?.status()?["problems"].to_string();
        ensure!(is_told(&status), "{status}");
        Ok(())
    })?;
    ensure!(lab.ping_all().is_err(), "the old key works");
    lab.gateway(FRANKFURT)?.agent_says(&["rotate"])?;
    wait_for("all LANs ping", patience(60.0), || lab.ping_all())?;
    wait_for("nothing is left to say", patience(30.0), || {
        let problems = api.get::<Node>("/nodes/frankfurt")?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
}

fn keep_disk(lab: &Lab) -> Result<()> {
    let copy = format!("cp -a {STATE_DIR} {STATE_DIR}-of-yesterday");
    lab.gateway(FRANKFURT)?.host.run(&copy)?;
    Ok(())
}

/// The machine has the disk that was kept, and nothing of its interface.
fn set_back(lab: &mut Lab) -> Result<()> {
    let frankfurt = lab.gateway_mut(FRANKFURT)?;
    frankfurt.stop_agent()?;
    frankfurt.agent_says(&["down"])?;
    frankfurt.host.run(&format!("rm -r {STATE_DIR}"))?;
    let put = format!("mv {STATE_DIR}-of-yesterday {STATE_DIR}");
    frankfurt.host.run(&put)?;
    frankfurt.start_agent()
}

pub(crate) fn e20_a_gateway_that_joined_after_the_backup_is_taken_in_again_without_a_visit(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &STAY)?;
    let api = lab.weave()?;
    lab.add_site(SAO_PAULO)?;
    lab.gateway_mut(SAO_PAULO)?.start_agent()?;
    let created: CreatedSite = api.post("/sites", &SAO_PAULO.body())?;
    lab.coordinator.stop()?;
    lab.coordinator.back_up()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    lab.gateway(SAO_PAULO)?
        .join(created.join_token.join_string.reveal())?;
    let ping = |lab: &Lab| wait_for("all LANs ping", patience(30.0), || lab.ping_all());
    ping(&lab)?;
    let before = api.get::<Node>("/nodes/sao-paulo")?;

    lab.coordinator.stop()?;
    lab.coordinator.restore_backup()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    wait_for("its peers hold it", patience(60.0), || {
        for site in STAY {
            let node = api.get::<Node>(&format!("/nodes/{}", site.name))?;
            let held = node.held.context("it holds nobody")?;
            let peer = held.peers.first().context("it names nobody")?;
            same(&(peer.node, peer.because), &(before.id, HeldBecause::Lost))?;
            same(&peer.identity, &before.identity_key)?;
        }
        Ok(())
    })?;
    lab.ping_all()?;
    let nodes = json!([{"node": before.id, "identity": before.identity_key}]);
    let body = json!({ "nodes": nodes }).to_string();
    let answer = api.request("POST", "/nodes/readmit", Some(&body))?;
    ensure!(answer.status == 204, "{answer:?}");
    wait_for("it is there again", patience(90.0), || {
        let after = api.get::<Node>("/nodes/sao-paulo")?;
        same(&after.wireguard_key, &before.wireguard_key)?;
        let connection = after.connection.context("it has no agent")?;
        same(&connection.state, &ConnectionState::Connected)?;
        ensure!(after.last_report.is_some(), "it has not reported");
        for site in STAY {
            let node = api.get::<Node>(&format!("/nodes/{}", site.name))?;
            ensure!(node.held.is_none(), "{:?}", node.held);
        }
        Ok(())
    })?;
    ping(&lab)
}
