//! New WireGuard keys: what changing over costs, and what comes of one that is cut short.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wattle_lab::{
    Api, Flow, Lab, Site, patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait_for,
};
use wattle_wire::key::WireguardKey;

pub(crate) fn a_node_takes_up_a_new_key_and_no_packet_is_lost_in_either_direction(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    let answer = api.request("POST", "/nodes/frankfurt/rotate", None)?;
    ensure!(answer.status == 202, "{answer:?}");
    let after = taken_up(&lab, &before)?;
    everybody_goes_by(&lab, &api, &after)?;
    flows.iter().try_for_each(|flow| flow.more(200))?;
    flows.into_iter().try_for_each(|flow| flow.expect_no_loss().map(drop))
}

/// Between all three, there and back.
fn flows(lab: &Lab) -> Result<Vec<Flow>> {
    let flow = |from, to: Site| Flow::start(&lab.gateway(from)?.lan_host, &lab.gateway(to)?.lan_host, to.lan_host());
    [(DUBLIN, FRANKFURT), (FRANKFURT, NEW_YORK), (NEW_YORK, DUBLIN)].into_iter().map(|(from, to)| flow(from, to)).collect()
}

/// Waits until the gateway's interface has another key, and gives it.
fn taken_up(lab: &Lab, before: &str) -> Result<String> {
    wait_for("the key is another one", patience(30.0), || {
        let after = lab.gateway(FRANKFURT)?.public_key()?;
        ensure!(after != before, "it is the old one");
        Ok(after)
    })
}

/// Waits until the coordinator and all peers go by the key alone, and every tunnel is up.
fn everybody_goes_by(lab: &Lab, api: &Api, key: &str) -> Result<()> {
    wait_for("all go by the new key", patience(20.0), || {
        let node: Value = api.get("/nodes/frankfurt")?;
        ensure!(node["wireguard_key"] == key && node["rotation"].is_null(), "{node}");
        for site in [DUBLIN, NEW_YORK] {
            let peers = lab.gateway(site)?.by_peer("latest-handshakes")?;
            ensure!(peers.len() == 2, "{} has {} peers", site.name, peers.len());
            let at = peers.get(key).with_context(|| format!("{} does not have the key", site.name))?;
            ensure!(at != "0", "{} has shaken no hands", site.name);
        }
        key.parse::<WireguardKey>()?;
        lab.ping_all()
    })
}
