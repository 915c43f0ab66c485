//! The lock, as an operator keeps it.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wattle_lab::{
    Gateway, Lab, LabSite,
    api::Api,
    coordinator,
    gateway::CONFIG,
    patience,
    site::{DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO},
    wait::same,
    wait_for,
};
use wattle_wire::{
    admin::{CreatedJoinToken, Node, Removed},
    report::HeldBecause,
};

/// An operator, on any machine that reaches the coordinator.
pub(crate) struct Operator {
    /// What gateways write into their guard's file.
    rules: String,
    signing: Vec<String>,
}

impl Operator {
    /// Makes the operator's key on the machine of a gateway.
    pub(crate) fn new(folder: &Path, api: &Api, machine: &Gateway) -> Result<Self> {
        let path = |name: &str| {
            let path = folder.join(name).to_str().map(str::to_owned);
            path.context("a path that is no text")
        };
        let (key, token, ca) = (path("operator.key")?, path("api-token")?, path("ca.crt")?);
        fs::write(&token, &api.token)?;
        let said = machine.agent_says(&["lock", "init", "--key", &key])?;
        let lines = said.lines().skip_while(|line| *line != "[guard]");
        let rules: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        ensure!(rules.len() == 3, "{said}");
        let url = coordinator::url(coordinator::PORT);
        let signing = [
            "lock",
            "sign",
            "--yes",
            "--url",
            &url,
            "--token-file",
            &token,
            "--ca-file",
            &ca,
            "--key",
            &key,
        ];
        Ok(Self {
            rules: rules.join("\n"),
            signing: signing.map(str::to_owned).to_vec(),
        })
    }

    /// `lock sign` on the machine of a gateway: what it says.
    pub(crate) fn sign(&self, machine: &Gateway) -> Result<String> {
        machine.agent_says(&self.signing.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Turns the lock on at all gateways.
    pub(crate) fn lock(&self, lab: &mut Lab) -> Result<()> {
        let sites: Vec<_> = lab.gateways.iter().map(|gateway| gateway.site).collect();
        self.lock_at(lab, &sites)
    }

    /// Turns the lock on at the gateways of these sites.
    pub(crate) fn lock_at(&self, lab: &mut Lab, sites: &[LabSite]) -> Result<()> {
        for site in sites {
            let gateway = lab.gateway_mut(*site)?;
            gateway.stop_agent()?;
            gateway
                .host
                .run_with(&format!("tee {CONFIG}"), &self.rules)?;
            gateway.start_agent()?;
        }
        Ok(())
    }
}

const OTHERS: [LabSite; 3] = [FRANKFURT, NEW_YORK, SAO_PAULO];

pub(crate) fn e4_a_gateway_that_was_away_while_all_others_were_replaced_follows_when_an_operator_signs_once_and_holds_until_then(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO])?;
    let api = lab.weave()?;
    let operator = Operator::new(folder, &api, lab.gateway(DUBLIN)?)?;
    operator.sign(lab.gateway(DUBLIN)?)?;
    operator.lock(&mut lab)?;
    let ping = |lab: &Lab| wait_for("all LANs ping", patience(20.0), || lab.ping_all());
    ping(&lab)?;

    // It comes back before anybody has signed.
    lab.gateway_mut(DUBLIN)?.stop_agent()?;
    replace_others(&mut lab, &api)?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    let dublin = || api.get::<Node>("/nodes/dublin");
    wait_for("it says whom it holds", patience(20.0), || {
        let node = dublin()?;
        let held = node.held.context("it holds nobody")?;
        ensure!(node.locked && held.total == 3, "{held:?}");
        let mut names: Vec<_> = held
            .peers
            .iter()
            .map(|peer| peer.name.to_string())
            .collect();
        names.sort();
        same(&names, &OTHERS.map(|site| site.name.to_owned()).to_vec())?;
        let is_removed = |because| because == HeldBecause::Removed;
        ensure!(
            held.peers.iter().all(|peer| is_removed(peer.because)),
            "{held:?}"
        );
        Ok(())
    })?;
    let said = operator.sign(lab.gateway(DUBLIN)?)?;
    ensure!(
        said.contains("removed: frankfurt of site frankfurt, identity ")
            && said.contains("held by dublin")
            && said.ends_with("signed 3 and 3 removals\n"),
        "{said}"
    );
    wait_for("it holds nobody", patience(20.0), || {
        let node = dublin()?;
        ensure!(node.held.is_none(), "{:?}", node.held);
        ensure!(node.problems.is_empty(), "{:?}", node.problems);
        Ok(())
    })?;
    ping(&lab)?;
    let said = operator.sign(lab.gateway(DUBLIN)?)?;
    ensure!(said.contains("nothing to do"), "{said}");

    // It comes back when all is signed.
    lab.gateway_mut(DUBLIN)?.stop_agent()?;
    replace_others(&mut lab, &api)?;
    operator.sign(lab.gateway(DUBLIN)?)?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    ping(&lab)?;
    let status = lab.gateway(DUBLIN)?.status()?;
    same(&status["problems"], &json!([]))?;
    same(&status["peers"].as_array().map(Vec::len), &Some(3))
}

pub(crate) fn e4_with_the_lock_a_gateway_that_is_revoked_stays_a_peer_until_an_operator_signs(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT, NEW_YORK])?;
    let api = lab.weave()?;
    let operator = Operator::new(folder, &api, lab.gateway(DUBLIN)?)?;
    operator.sign(lab.gateway(DUBLIN)?)?;
    operator.lock(&mut lab)?;
    wait_for("all LANs ping", patience(20.0), || lab.ping_all())?;
    wait_for("all say that they are locked", patience(20.0), || {
        for site in [DUBLIN, FRANKFURT, NEW_YORK] {
            let node = api.get::<Node>(&format!("/nodes/{}", site.name))?;
            ensure!(node.locked, "{} is not", site.name);
        }
        Ok(())
    })?;

    // One of two peers: without the lock it would go at once.
    let removed: Removed = api
        .request("DELETE", "/nodes/frankfurt", None)?
        .expect(200)?;
    let waits = removed.waits_for_signature;
    same(
        &(waits.count, waits.to_string().as_str()),
        &(2, "dublin, new-york"),
    )?;
    for site in [DUBLIN, NEW_YORK] {
        wait_for("it holds the peer", patience(20.0), || {
            let node = api.get::<Node>(&format!("/nodes/{}", site.name))?;
            let held = node.held.context("it holds nobody")?;
            same(
                &(held.total, held.peers[0].name.as_str()),
                &(1, "frankfurt"),
            )?;
            let status = lab.gateway(site)?.status()?.to_string();
            ensure!(status.contains("no operator has signed that"), "{status}");
            Ok(())
        })?;
        let doctor = lab.gateway(site)?.try_agent(&["doctor"])?;
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(said.contains("no operator has signed that"), "{said}");
    }
    lab.ping_all()?;
    operator.sign(lab.gateway(DUBLIN)?)?;
    let is_gone = |lab: &Lab, at: LabSite, other: &str| {
        let peers = lab.gateway(at)?.status()?["peers"].to_string();
        ensure!(!peers.contains(other), "{peers}");
        Ok(())
    };
    for site in [DUBLIN, NEW_YORK] {
        wait_for("the peer is gone", patience(20.0), || {
            is_gone(&lab, site, "frankfurt")
        })?;
    }
    let ping = format!("ping -c 1 -W 1 {}", FRANKFURT.lan_host());
    let answered = lab.gateway(DUBLIN)?.lan_host.run(&ping);
    ensure!(answered.is_err(), "{answered:?}");
    lab.ping_all_of(&[DUBLIN, NEW_YORK])?;

    // Somebody on the gateway can confirm it as well.
    api.delete("/nodes/new-york")?;
    wait_for("it holds the peer", patience(20.0), || {
        let held = api.get::<Node>("/nodes/dublin")?.held;
        ensure!(held.is_some(), "it holds nobody");
        Ok(())
    })?;
    lab.ping_all_of(&[DUBLIN, NEW_YORK])?;
    lab.gateway(DUBLIN)?.agent_says(&["confirm"])?;
    wait_for("the peer is gone", patience(20.0), || {
        is_gone(&lab, DUBLIN, "new-york")
    })
}

/// Another machine takes the place of each gateway but Dublin's.
fn replace_others(lab: &mut Lab, api: &Api) -> Result<()> {
    for site in OTHERS {
        api.delete(&format!("/nodes/{}", site.name))?;
        let path = format!("/sites/{}/join-tokens", site.name);
        let token: CreatedJoinToken = api.post(&path, &json!({}))?;
        let gateway = lab.gateway_mut(site)?;
        gateway.stop_agent()?;
        // A new machine has nothing of the old one.
        gateway.agent_says(&["down"])?;
        gateway.agent_says(&["join", "--replace", token.join_string.reveal()])?;
        gateway.start_agent()?;
    }
    Ok(())
}
