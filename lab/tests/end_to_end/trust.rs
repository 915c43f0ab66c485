//! What a coordinator in the wrong hands can and cannot do.

use std::path::Path;

use anyhow::{Result, ensure};
use wattle_lab::{
    Flow, Lab, patience,
    site::{DUBLIN, FRANKFURT, GUIDE},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{Node, Page};

/// A new epoch, so that every agent gets what the database says now.
const TELL_ALL: &str = "UPDATE mesh SET epoch = epoch + 1;";

pub(crate) fn e2_a_key_swapped_in_the_database_reaches_no_kernel_and_is_reported(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let dublin = lab.gateway(DUBLIN)?;
    let flow = Flow::start(&dublin.lan_host, &lab.gateway(FRANKFURT)?.lan_host, FRANKFURT.lan_host())?;
    let before = dublin.allowed_ips()?;
    let thief = dublin.host.run("wg genkey").and_then(|key| dublin.host.run_with("wg pubkey", &key))?;
    lab.coordinator.sql(&format!(
        "UPDATE nodes SET statement = replace(statement, encode(wireguard_key, 'base64'), '{thief}'), wireguard_key = decode('{thief}', 'base64')
         WHERE name = 'frankfurt'; {TELL_ALL}",
        thief = thief.trim()
    ))?;
    wait_for("every other node reports it", patience(20.0), || {
        let nodes: Page<Node> = api.get("/nodes")?;
        for node in nodes.items.iter().filter(|node| node.site_name.to_string() != FRANKFURT.name) {
            let problems = node.last_report.as_ref().map(|report| report.problems.join("; ")).unwrap_or_default();
            ensure!(problems.contains("peer frankfurt refused: the statement is not signed"), "{}: {problems:?}", node.name);
        }
        Ok(())
    })?;
    same(&dublin.allowed_ips()?, &before)?;
    flow.more(50)?;
    flow.expect_no_loss()?;
    lab.ping_all()
}

pub(crate) fn e1_a_prefix_that_would_cut_a_gateway_off_is_refused_and_the_rest_carried_out(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    // Dublin's own underlay, the coordinator's address, and an innocent one.
    lab.coordinator.sql(&format!(
        "INSERT INTO subnets (site, prefix) SELECT id, unnest(ARRAY['203.0.113.0/24', '198.18.0.0/24', '10.77.0.0/24']::inet[])
         FROM sites WHERE name = 'frankfurt'; {TELL_ALL}"
    ))?;
    let dublin = lab.gateway(DUBLIN)?;
    let (routes, allowed) = wait_for("the innocent prefix is carried out", patience(20.0), || {
        let routes = dublin.host.run("ip -4 route show")?;
        let allowed = format!("{:?}", dublin.allowed_ips()?);
        ensure!(routes.contains("10.77.0.0/24 dev wattle0") && allowed.contains("10.77.0.0/24"), "{routes} {allowed}");
        Ok((routes, allowed))
    })?;
    ensure!(!routes.contains("203.0.113.0/24 dev wattle0") && !routes.contains("198.18.0.0/24"), "{routes}");
    ensure!(!allowed.contains("203.0.113.") && !allowed.contains("198.18."), "{allowed}");
    wait_for("it is reported", patience(10.0), || {
        let node: Node = api.get("/nodes/dublin")?;
        let problems = node.last_report.map(|report| report.problems.join("; ")).unwrap_or_default();
        for prefix in ["203.0.113.0/24", "198.18.0.0/24"] {
            ensure!(problems.contains(&format!("the guard refused {prefix} of peer frankfurt")), "{problems:?}");
        }
        Ok(())
    })?;
    lab.ping_all()
}
