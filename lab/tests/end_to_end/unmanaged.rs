//! A site whose gateway has no agent, but the file that the coordinator made for it, brought up by
//! the real `wg-quick`.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Api, Flow, Gateway, Lab,
    binaries::Binaries,
    gateway::INTERFACE,
    patience,
    site::{DUBLIN, FRANKFURT, NEW_YORK},
    wait::same,
    wait_for,
};
use wattle_wire::{
    admin::{CreatedSite, CreatedWgQuick},
    key::Bytes32,
};

/// Starts a userspace device where `wg-quick` finds no module: in the background, as it expects,
/// and after the one before has ended.
const DEVICE: &str = r#"#!/bin/sh
while [ -e "/run/wireguard/$1.sock" ]; do sleep 0.05; done
setsid "AGENT" device "$1" >>/run/device.log 2>&1 &
until wg show "$1" >/run/device.shown 2>&1; do sleep 0.05; done
"#;

pub(crate) fn a_site_with_a_file_reaches_all_and_gets_through_with_the_old_file_until_it_has_the_new_one(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.weave()?;
    lab.add_site(NEW_YORK)?;
    let _: CreatedSite = api.post("/sites", &NEW_YORK.body())?;
    let first = make_file(&api)?;
    let router = lab.gateway(NEW_YORK)?;
    router
        .host
        .run_with("tee /proc/sys/net/ipv4/ip_forward", "1")?;
    router.host.run_with(
        "tee /run/device",
        &DEVICE.replace("AGENT", Binaries::find()?.agent()),
    )?;
    router.host.run("chmod 755 /run/device")?;
    install(router, &first)?;
    wait_for("every LAN host pings every other", patience(20.0), || {
        lab.ping_all()
    })?;
    what_is_said_of_it(&lab, &router.public_key()?)?;

    // The router is where it was, with the old file.
    let flows = flows(&lab)?;
    // Shown once, the private key is with the router alone.
    let second = make_file(&api)?;
    same(
        &values(&second, "PrivateKey"),
        &vec!["INSERT-THE-PRIVATE-KEY-HERE".to_owned()],
    )
    .context("the coordinator still had the private key")?;
    // U2: as it is, the file cannot be loaded by mistake, and nothing is lost by trying.
    router.host.run_with("tee /run/refreshed.conf", &second)?;
    let stripped = router.host.run("wg-quick strip /run/refreshed.conf")?;
    router.host.run_with("tee /run/refreshed", &stripped)?;
    let key_before = router.public_key()?;
    let refused = router
        .host
        .run(&format!("wg syncconf {INTERFACE} /run/refreshed"));
    ensure!(refused.is_err(), "wg took a file without a key");
    same(&router.public_key()?, &key_before)?;
    let [key] = values(&first, "PrivateKey")
        .try_into()
        .ok()
        .context("one private key")?;
    let with_key = |line: &str| {
        if line.starts_with("PrivateKey") {
            format!("PrivateKey = {key}\n")
        } else {
            format!("{line}\n")
        }
    };
    let second: String = second.lines().map(with_key).collect();
    let is_in_turn = |gateway: &Gateway| {
        let mut peers = gateway.device()?.peers;
        let peer = peers
            .remove(&router.public_key()?)
            .context("there is no such peer")?;
        let psk = peer.preshared_key.context("it has no preshared key")?;
        ensure!(
            values(&second, "PresharedKey").contains(&psk),
            "it still has the turn of the old key"
        );
        Ok(())
    };
    for site in [DUBLIN, FRANKFURT] {
        wait_for("the new key has its turn", patience(20.0), || {
            is_in_turn(lab.gateway(site)?)
        })?;
        let plan = lab.gateway(site)?.agent_says(&["plan"])?;
        ensure!(plan.contains("nothing to do"), "{plan}");
    }
    flows.iter().try_for_each(|flow| flow.more(100))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))?;

    install(router, &second)?;
    wait_for("the new file is good", patience(20.0), || lab.ping_all())?;
    let flows = self::flows(&lab)?;
    flows.iter().try_for_each(|flow| flow.more(500))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))?;

    let gone = router.public_key()?;
    nothing_shows_a_secret(&mut lab, &[first, second])?;
    api.delete("/sites/new-york")?;
    for site in [DUBLIN, FRANKFURT] {
        wait_for("the peer is gone", patience(5.0), || {
            ensure!(
                !lab.gateway(site)?.device()?.peers.contains_key(&gone),
                "{} still has it",
                site.name
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Another file for New York.
fn make_file(api: &Api) -> Result<String> {
    let made: CreatedWgQuick = api.post("/sites/new-york/wg-quick", &json!({}))?;
    Ok(made.file.reveal().to_owned())
}

/// Brings the tunnels up with a file, after it has taken down those of the file before.
fn install(router: &Gateway, file: &str) -> Result<()> {
    let path = format!("/run/{INTERFACE}.conf");
    if router
        .host
        .output(&format!("wg show {INTERFACE}"))?
        .status
        .success()
    {
        router.host.run(&format!("wg-quick down {path}"))?;
    }
    router.host.run_with(&format!("tee {path}"), file)?;
    router.host.run(&format!("chmod 600 {path}"))?;
    router
        .host
        .run(&format!(
            "env WG_QUICK_USERSPACE_IMPLEMENTATION=/run/device wg-quick up {path}"
        ))
        .map(drop)
}

/// What a file says of something, once for each time.
fn values(file: &str, name: &str) -> Vec<String> {
    let pairs = file.lines().filter_map(|line| line.split_once(" = "));
    pairs
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// A stream to the router's LAN, and one from it.
fn flows(lab: &Lab) -> Result<Vec<Flow>> {
    let pairs = [(DUBLIN, NEW_YORK), (NEW_YORK, FRANKFURT)];
    pairs
        .iter()
        .map(|(from, to)| {
            Flow::start(
                &lab.gateway(*from)?.lan_host,
                &lab.gateway(*to)?.lan_host,
                to.lan_host(),
            )
        })
        .collect()
}

/// A gateway with an agent knows the router as what it is, and does not cut it off without being
/// told to.
fn what_is_said_of_it(lab: &Lab, key: &str) -> Result<()> {
    let dublin = lab.gateway(DUBLIN)?;
    let status = dublin.status()?;
    let unmanaged: Vec<_> = status["peers"]
        .as_array()
        .context("no peers")?
        .iter()
        .filter(|peer| peer["unmanaged"] == true)
        .collect();
    let [Value::Object(peer)] = unmanaged[..] else {
        anyhow::bail!("{status}")
    };
    ensure!(
        peer["name"] == "new-york" && peer["preshared_key"] == true && peer["state"] == "up",
        "{status}"
    );
    ensure!(dublin.device()?.peers.contains_key(key), "{status}");
    dublin.agent_says(&["verify"])?;
    let before = dublin.public_key()?;
    let refused = dublin.try_agent(&["rotate"])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && error.contains("new-york") && error.contains("--force"),
        "{error}"
    );
    ensure!(dublin.public_key()? == before, "the key is another");
    Ok(())
}

/// No secret of a file is in the database, or in any log, or in what agents say.
fn nothing_shows_a_secret(lab: &mut Lab, files: &[String]) -> Result<()> {
    let secrets: BTreeSet<_> = files
        .iter()
        .flat_map(|file| ["PresharedKey", "PrivateKey"].map(|name| values(file, name)))
        .flatten()
        .collect();
    ensure!(secrets.len() == 2 * 2 + 1, "{} secrets", secrets.len());
    let mut public = lab.coordinator.dump()?;
    public += &lab.coordinator.server()?.log();
    for site in [DUBLIN, FRANKFURT] {
        let gateway = lab.gateway_mut(site)?;
        let log = gateway.agent()?.log();
        ensure!(
            !log.contains("preshared key differs"),
            "each turn of a key is told"
        );
        public += &log;
        for words in [
            &["status"][..],
            &["status", "--json"],
            &["plan", "--json"],
            &["doctor"],
            &["history"],
        ] {
            public += &String::from_utf8_lossy(&gateway.try_agent(words)?.stdout);
        }
    }
    ensure!(public.contains("new-york"), "nothing is said of it at all");
    for secret in secrets {
        let bytes = *secret.parse::<Bytes32>()?.as_bytes();
        let hex = hex::encode(bytes);
        ensure!(
            !public.contains(&secret)
                && !public.contains(&hex)
                && !public.contains(&format!("{bytes:?}")),
            "a secret is seen"
        );
    }
    Ok(())
}
