//! The mesh changes while it carries packets.

use std::{env, net::Ipv4Addr, path::Path, thread};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Flow, Host, Lab, coordinator,
    kernel::OWN_MACHINE,
    patience, process,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK, SAO_PAULO},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{CreatedSite, Node, Page};

use crate::expected_peers;

pub(crate) fn a_fourth_site_reaches_all_two_seconds_after_it_joined_and_nobody_two_seconds_after_its_removal(
    folder: &Path,
) -> Result<()> {
    let [dublin, frankfurt, new_york] = GUIDE;
    let mut lab = Lab::build(folder, &[dublin, frankfurt, new_york])?;
    let api = lab.weave()?;
    lab.add_site(SAO_PAULO)?;
    lab.gateway_mut(SAO_PAULO)?.start_agent()?;
    let between_the_others = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;

    // The very line of the README.
    let mut curl = api.curl();
    curl.args([
        "-sS",
        "-H",
        &format!("Authorization: Bearer {}", api.token),
        "-d",
        &SAO_PAULO.body().to_string(),
    ]);
    curl.arg(format!("{}/sites", coordinator::url(coordinator::PORT)));
    let text = process::run(curl, None)?;
    let created: Value = serde_json::from_str(&text).with_context(|| format!("reading {text}"))?;
    let join_string = created
        .pointer("/join_token/join_string")
        .and_then(Value::as_str)
        .with_context(|| text.clone())?;
    lab.gateway(SAO_PAULO)?.join(join_string)?;

    at_once(paths(&lab)?, |from, to| {
        wait_for(
            "an answer within two seconds of joining",
            patience(2.0),
            || from.ping(to),
        )
    })?;

    let nodes: Page<Node> = api.get("/nodes")?;
    let all = [DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO];
    for gateway in &lab.gateways {
        same(
            &gateway.allowed_ips()?,
            &expected_peers(&nodes.items, gateway.site, &all)?,
        )?;
    }

    // A gateway that does not hear of its removal, or will not, goes on sending.
    lab.gateway_mut(SAO_PAULO)?.kill_agent()?;
    let of_the_removed = Flow::start(
        &lab.gateway(SAO_PAULO)?.lan_host,
        &lab.gateway(NEW_YORK)?.lan_host,
        NEW_YORK.lan_host(),
    )?;
    let sent = of_the_removed.sent();
    api.delete("/sites/sao-paulo")?;
    let others = || {
        let gateways = lab.gateways.iter();
        gateways.filter(|gateway| gateway.site != SAO_PAULO)
    };
    wait_for(
        "the site is gone from every kernel within two seconds",
        patience(2.0),
        || {
            for gateway in others() {
                same(
                    &gateway.allowed_ips()?,
                    &expected_peers(&nodes.items, gateway.site, &GUIDE)?,
                )?;
                let routes = gateway.host.routes()?;
                ensure!(
                    !routes.contains(&SAO_PAULO.lan),
                    "{} still has a route: {routes:?}",
                    gateway.site.name
                );
            }
            // What takes a program comes last, and seldom twice.
            for gateway in others() {
                let routes = gateway.host.run("ip -4 route show table all")?;
                ensure!(
                    !routes.contains("10.40.0."),
                    "{} still has a route: {routes}",
                    gateway.site.name
                );
                let rules = gateway.host.run("nft list table inet wattle")?;
                ensure!(
                    !rules.contains("10.40.0."),
                    "{} still has a rule: {rules}",
                    gateway.site.name
                );
            }
            Ok(())
        },
    )?;
    at_once(paths(&lab)?, |from, to| {
        if from.ping(to).is_ok() {
            bail!(
                "a packet of the removed site from {} to {to} still passes",
                from.name()
            )
        } else {
            Ok(())
        }
    })?;
    of_the_removed.more(100)?;
    let passed_for = of_the_removed.finish()?.came_back_after(sent)?;
    ensure!(
        passed_for <= patience(1.0),
        "packets of the removed site passed for {} ms",
        passed_for.as_millis()
    );
    between_the_others.expect_no_loss()?;
    lab.ping_all_of(&GUIDE)
}

pub(crate) fn a_removed_gateway_that_hears_of_it_gives_up_its_peers_when_that_is_confirmed(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let gateway = lab.gateway(NEW_YORK)?;
    let before = gateway.allowed_ips()?;
    api.delete("/nodes/new-york")?;
    wait_for("it tells that the removal is held", patience(2.0), || {
        let problems = gateway.status()?["problems"].to_string();
        ensure!(
            problems.contains("removed 2 of 2 peers within 24 hours"),
            "{problems}"
        );
        Ok(())
    })?;
    same(&gateway.allowed_ips()?, &before)?;
    same(&gateway.agent_says(&["confirm"])?.lines().count(), &2)?;
    wait_for(
        "its kernel has no peer and no route to another LAN",
        patience(10.0),
        || {
            same(&gateway.allowed_ips()?, &Vec::new())?;
            let routes = gateway.host.routes()?;
            ensure!(
                !routes.contains(&DUBLIN.lan) && !routes.contains(&FRANKFURT.lan),
                "{routes:?}"
            );
            let routes = gateway.host.run("ip -4 route show table all")?;
            ensure!(
                !routes.contains("10.10.0.") && !routes.contains("10.20.0."),
                "{routes}"
            );
            Ok(())
        },
    )?;
    lab.ping_all_of(&[DUBLIN, FRANKFURT])
}

pub(crate) fn a_hundred_changes_of_one_site_lose_no_packet_of_another(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    // A machine of the kernel ground takes a second for each: there, a fifth has to do.
    let changes = if env::var_os(OWN_MACHINE).is_some() {
        20
    } else {
        100
    };
    let mut last = String::new();
    for number in 0..changes {
        last = format!("10.{}.0.0/24", 100 + number);
        let body = json!({ "subnets": [NEW_YORK.lan, last] }).to_string();
        let answer = api.request("PATCH", "/sites/new-york", Some(&body))?;
        ensure!(answer.status == 200, "{answer:?}");
        flow.more(3)?;
    }
    lab.wait_for_rules(&[DUBLIN, FRANKFURT], &last, patience(2.0))
        .context("with the last change")?;
    flow.expect_no_loss().map(drop)
}

pub(crate) fn an_agent_that_waits_for_its_enrolment_starts_at_once_and_joining_again_changes_nothing(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    // One agent runs before it is enrolled, the other after.
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    let mut join_strings = Vec::new();
    for site in [DUBLIN, FRANKFURT] {
        let created: CreatedSite = api.post("/sites", &site.body())?;
        lab.gateway(site)?
            .join(created.join_token.join_string.reveal())?;
        join_strings.push(created.join_token.join_string);
    }
    lab.gateway_mut(FRANKFURT)?.start_agent()?;
    wait_for("both LANs ping", patience(5.0), || lab.ping_all())?;

    let nodes: Page<Node> = api.get("/nodes")?;
    let again = lab.gateway(DUBLIN)?.try_join(join_strings[0].reveal())?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned()
        + &String::from_utf8_lossy(&again.stdout);
    ensure!(
        again.status.success() || said.contains("already"),
        "joining again said: {said}"
    );
    let after: Page<Node> = api.get("/nodes")?;
    same(
        &after.items.iter().map(|node| node.id).collect::<Vec<_>>(),
        &nodes.items.iter().map(|node| node.id).collect(),
    )?;
    lab.ping_all()
}

/// From the LAN host of the fourth site to those of all others, and back.
fn paths(lab: &Lab) -> Result<Vec<(&Host, Ipv4Addr)>> {
    let fourth = lab.gateway(SAO_PAULO)?;
    let others = lab
        .gateways
        .iter()
        .filter(|gateway| gateway.site != SAO_PAULO);
    Ok(others
        .flat_map(|other| {
            [
                (&fourth.lan_host, other.site.lan_host()),
                (&other.lan_host, SAO_PAULO.lan_host()),
            ]
        })
        .collect())
}

/// Does the same from each host to each address, all at the same time.
fn at_once(
    paths: Vec<(&Host, Ipv4Addr)>,
    work: impl Fn(&Host, Ipv4Addr) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = paths
            .into_iter()
            .map(|(from, to)| {
                scope.spawn(move || {
                    work(from, to).with_context(|| format!("from {} to {to}", from.name()))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}
