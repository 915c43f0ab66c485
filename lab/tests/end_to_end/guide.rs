//! The checks of the guide that Wattle grew from, on its three sites.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wattle_lab::{
    Flow, Gateway, Ground, Lab,
    gateway::INTERFACE,
    patience,
    process::Daemon,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{Link, LinkState, Node, Page};

use crate::expected_peers;

pub(crate) fn every_tunnel_address_and_every_lan_host_pings_every_other(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let addresses = lab
        .gateways
        .iter()
        .map(|gateway| gateway.tunnel_address())
        .collect::<Result<Vec<_>>>()?;
    same(
        &addresses,
        &vec![
            "10.99.0.1".parse()?,
            "10.99.0.2".parse()?,
            "10.99.0.3".parse()?,
        ],
    )?;
    for (from, to) in lab.pairs() {
        let tunnel = to.tunnel_address()?;
        from.host.ping(tunnel)?;
        from.host.ping(to.site.lan_host())?;
        from.lan_host.ping(tunnel)?;
        from.lan_host.ping(to.site.lan_host())?;
    }
    Ok(())
}

pub(crate) fn a_lan_host_reaches_another_by_the_direct_path_under_its_own_address(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    for (from, to) in lab.pairs() {
        let trace = from
            .lan_host
            .run(&format!("traceroute -n -q 1 -w 2 {}", to.site.lan_host()))?;
        let hops: Vec<IpAddr> = trace
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
            .collect();
        let far_gateway = [to.site.gateway_on_lan().into(), to.tunnel_address()?.into()];
        let direct = matches!(hops[..], [near, far, host]
            if near == from.site.gateway_on_lan() && far_gateway.contains(&far) && host == to.site.lan_host());
        ensure!(
            direct,
            "the path from {} to {} is {trace}",
            from.site.name,
            to.site.name
        );

        let flow = Flow::start(&from.lan_host, &to.lan_host, to.site.lan_host())?;
        same(&flow.source()?, &from.site.lan_host().into())?;
        flow.expect_no_loss()?;
    }

    let (from, to) = (
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
    );
    let mut server = to.command("iperf3");
    server.arg("--server");
    let _server = Daemon::start(server, &folder.join("iperf3.log"))?;
    for direction in ["", "--reverse"] {
        // An iperf3 whose server does not listen yet says so in its report, and some versions then
        // end with success.
        let received = wait_for("iperf3 gives a number", patience(10.0), || {
            let text = from.run(&format!(
                "iperf3 --json --time 1 {direction} --client {}",
                FRANKFURT.lan_host()
            ))?;
            let report: Value = serde_json::from_str(&text)?;
            report
                .pointer("/end/sum_received/bits_per_second")
                .and_then(Value::as_f64)
                .with_context(|| text.clone())
        })?;
        report_figure(
            folder,
            &format!("iperf3 {direction} {:.0} Mbit/s\n", received / 1e6),
        )?;
        ensure!(received > 1e6, "only {received} bit/s crossed");
    }
    Ok(())
}

pub(crate) fn each_peer_may_use_its_tunnel_address_and_its_lan_and_every_link_is_up_from_both_ends(
    folder: &Path,
) -> Result<()> {
    let ground = Ground::find_here()?;
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let nodes: Page<Node> = api.get("/nodes")?;
    for gateway in &lab.gateways {
        let expected = expected_peers(&nodes.items, gateway.site, &GUIDE)?;
        same(&gateway.allowed_ips()?, &expected)?;
        same(&shown_by_wg(gateway)?, &expected)?;
    }

    let names = [
        [DUBLIN, FRANKFURT],
        [DUBLIN, NEW_YORK],
        [FRANKFURT, NEW_YORK],
    ]
    .map(|pair| pair.map(|site| site.name.to_owned()));
    api.changes()?.wait_for(
        "every link is up, seen from both ends",
        patience(20.0),
        || {
            let links: Page<Link> = api.get("/links")?;
            let mut pairs: Vec<[String; 2]> = links
                .items
                .iter()
                .map(|link| link.ends.clone().map(|end| end.site_name.to_string()))
                .collect();
            pairs.iter_mut().for_each(|pair| pair.sort());
            pairs.sort();
            same(&pairs[..], &names[..])?;
            let up = links.items.iter().all(|link| {
                link.state == LinkState::Up
                    && link.since.is_some()
                    && link
                        .ends
                        .iter()
                        .all(|end| end.up && end.last_handshake_at.is_some())
            });
            ensure!(up, "{:?}", links.items);
            Ok(())
        },
    )?;
    api.changes()?.wait_for(
        "every node says what moves its packets",
        patience(10.0),
        || {
            let nodes: Page<Node> = api.get("/nodes")?;
            let devices: Vec<_> = nodes
                .items
                .iter()
                .map(|node| {
                    node.last_report
                        .as_ref()
                        .map(|report| (report.device, node.problems.clone()))
                })
                .collect();
            same(&devices, &vec![Some((Some(ground.device()), vec![])); 3])
        },
    )
}

/// The same as [`Gateway::allowed_ips`], as `wg` has it.
fn shown_by_wg(gateway: &Gateway) -> Result<Vec<(String, Vec<String>)>> {
    let text = gateway
        .host
        .run(&format!("wg show {INTERFACE} allowed-ips"))?;
    let mut peers: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let key = words.next()?;
            let mut prefixes: Vec<_> = words.filter(|word| word != "(none)").collect();
            prefixes.sort();
            Some((key, prefixes))
        })
        .collect();
    peers.sort();
    Ok(peers)
}

fn report_figure(folder: &Path, line: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("figures"))?;
    file.write_all(line.as_bytes()).map_err(Into::into)
}
