//! New WireGuard keys: what changing over costs, and what comes of one that is cut short.

use std::{env, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wattle_lab::{
    Api, Flow, Lab, LabSite,
    flow::{Outcome, load::Numbered},
    gateway::STATE_DIR,
    kernel::OWN_MACHINE,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait_for,
};
use wattle_wire::{
    admin::{CreatedSite, Node, Page},
    key::WireguardKey,
};

/// Datagrams that may be lost when handshakes are: those of a second, and of half of one more, for
/// other tests have the processors, too.
const MOST_LOST: usize = 152;
/// No peer's word that it is ready is kept, so that the rotating node waits.
const NOBODY_READY: &str = "
CREATE FUNCTION refuse_ready() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER refuse_ready BEFORE INSERT ON armed_peers FOR EACH ROW EXECUTE FUNCTION \
refuse_ready();
";
/// The coordinator cannot take another identity.
const NO_IDENTITY: &str = "
CREATE FUNCTION refuse_identity() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.identity_key <> OLD.identity_key THEN RAISE 'not now' USING ERRCODE = \
    'lock_not_available'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse_identity BEFORE UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION \
refuse_identity();
";
/// The coordinator cannot take note that a key was taken up.
const NOTHING_DONE: &str = "
CREATE FUNCTION refuse_done() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now' USING \
ERRCODE = 'lock_not_available'; END $$;
CREATE TRIGGER refuse_done BEFORE UPDATE OF wireguard_key ON nodes FOR EACH ROW EXECUTE FUNCTION \
refuse_done();
";
/// In the place of `nft`, one that says when it lists something, and is not done while there is a
/// file `/run/hold`.
const SLOW_NFT: &str = r#"
cp /usr/sbin/nft /run/nft
cat >/run/slow-nft <<'END'
#!/bin/sh
while [ -e /run/hold ]; do touch /run/listing; sleep 0.1; done
exec /run/nft "$@"
END
chmod 755 /run/slow-nft
mount --bind /run/slow-nft /usr/sbin/nft
"#;

pub(crate) fn a_node_takes_up_a_new_key_and_no_packet_is_lost_in_either_direction(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    if env::var_os(OWN_MACHINE).is_some() {
        // Not every host's kernel can do this; that of the machine can.
        lab.gateway(NEW_YORK)?
            .host
            .run("tc qdisc add dev eth0 root netem delay 50ms")?;
    }
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    ask(&api)?;
    let after = taken_up(&lab, &before)?;
    everybody_goes_by(&lab, &api, &after)?;
    flows.iter().try_for_each(|flow| flow.more(200))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))
}

pub(crate) fn a_busy_node_takes_up_a_new_key_and_no_packet_is_lost_or_out_of_order(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flow = |from: LabSite, to: LabSite| {
        let (from, to) = (lab.gateway(from)?, lab.gateway(to)?);
        let address = to.site.lan_host().into();
        Numbered::start(&from.lan_host, &to.lan_host, address)
    };
    let flows = [flow(DUBLIN, FRANKFURT)?, flow(FRANKFURT, NEW_YORK)?];
    flows.iter().try_for_each(|flow| flow.more(1000))?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    ask(&api)?;
    let after = taken_up(&lab, &before)?;
    everybody_goes_by(&lab, &api, &after)?;
    flows.iter().try_for_each(|flow| flow.more(1000))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.finish().map(drop))
}

pub(crate) fn peers_whose_firewalls_are_long_in_listing_their_rules_follow_to_a_new_key_all_the_same(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    for site in [DUBLIN, NEW_YORK] {
        lab.gateway(site)?.host.run_with("sh -eu", SLOW_NFT)?;
    }
    // The rotating node is stopped until both are ready, and in the middle of a look at their
    // rules.
    ask(&api)?;
    wait_for("it is announced", patience(20.0), || {
        count(&lab, "nodes WHERE announced IS NOT NULL", 1)
    })?;
    let pid = lab.gateway_mut(FRANKFURT)?.agent()?.pid();
    lab.gateway(FRANKFURT)?
        .host
        .run(&format!("kill -STOP {pid}"))?;
    wait_for("both are ready", patience(20.0), || {
        count(&lab, "armed_peers", 2)
    })?;
    for site in [DUBLIN, NEW_YORK] {
        lab.gateway(site)?.host.run("touch /run/hold")?;
    }
    for site in [DUBLIN, NEW_YORK] {
        wait_for("it lists its rules", patience(10.0), || {
            lab.gateway(site)?.host.read("/run/listing")
        })?;
    }
    lab.gateway(FRANKFURT)?
        .host
        .run(&format!("kill -CONT {pid}"))?;
    let after = taken_up(&lab, &before)?;
    wait_for("the peers have followed", patience(10.0), || {
        have_followed(&lab, &after)
    })?;
    for site in [DUBLIN, NEW_YORK] {
        lab.gateway(site)?.host.run("rm /run/hold")?;
    }
    everybody_goes_by(&lab, &api, &after)?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))
}

pub(crate) fn h2_a_node_that_dies_before_and_after_it_took_up_a_key_loses_no_packet(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    lab.coordinator.sql(NOBODY_READY)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    ask(&api)?;
    let announced = wait_for("all stand ready", patience(20.0), || all_stand_ready(&lab))?;
    let frankfurt = lab.gateway_mut(FRANKFURT)?;
    frankfurt.kill_agent()?;
    frankfurt.start_agent()?;
    flows[0].more(100)?;
    let frankfurt = lab.gateway_mut(FRANKFURT)?;
    ensure!(frankfurt.public_key()? == before, "it was not to change");

    // It dies between keeping the key as its own and giving it to the device.
    frankfurt.kill_agent()?;
    let path = format!("{STATE_DIR}/node.json");
    let mut kept: Value = serde_json::from_str(&frankfurt.host.read(&path)?)?;
    kept["wireguard"] = kept["next_wireguard"].take();
    kept["sequence"] = kept["issued"].clone();
    frankfurt
        .host
        .run_with(&format!("tee {path}"), &kept.to_string())?;
    frankfurt.start_agent()?;
    let after = taken_up(&lab, &before)?;
    ensure!(after == announced, "it is another key than was announced");
    everybody_goes_by(&lab, &api, &after)?;
    flows.iter().try_for_each(|flow| flow.more(100))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))
}

pub(crate) fn without_the_coordinator_all_follow_to_a_new_key_and_an_agent_that_starts_meanwhile_does_too(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    lab.coordinator.sql(NOTHING_DONE)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    ask(&api)?;
    let after = taken_up(&lab, &before)?;
    lab.coordinator.kill()?;
    wait_for("the peers have followed", patience(10.0), || {
        have_followed(&lab, &after)
    })?;
    let dublin = lab.gateway_mut(DUBLIN)?;
    dublin.kill_agent()?;
    dublin.start_agent()?;
    flows[0].more(200)?;
    have_followed(&lab, &after)?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    lab.coordinator.sql("DROP TRIGGER refuse_done ON nodes")?;
    everybody_goes_by(&lab, &api, &after)?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))
}

pub(crate) fn a_peer_that_was_away_learns_the_key_when_it_is_back(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.start_coordinator()?;
    let mut away = String::new();
    for site in [NEW_YORK, DUBLIN, FRANKFURT] {
        let gateway = lab.gateway_mut(site)?;
        gateway.start_agent()?;
        let created: CreatedSite = api.post("/sites", &site.body())?;
        gateway.join(created.join_token.join_string.reveal())?;
        if site == NEW_YORK {
            wait_for("it has an interface", patience(10.0), || {
                gateway.public_key().map(|key| away = key)
            })?;
            gateway.stop_agent()?;
            gateway.agent_says(&["down"])?;
        }
    }
    wait_for("two are linked", patience(20.0), || {
        lab.ping_all_of(&[DUBLIN, FRANKFURT])
    })?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    ask(&api)?;
    let after = taken_up(&lab, &before)?;
    lab.gateway_mut(NEW_YORK)?.start_agent()?;
    everybody_goes_by(&lab, &api, &after)
}

pub(crate) fn a_rotation_that_somebody_is_not_ready_for_is_given_up_with_the_reason_and_no_packet_is_lost(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let (before, nodes) = (
        lab.gateway(FRANKFURT)?.public_key()?,
        api.get::<Page<Node>>("/nodes")?,
    );
    let dublin = nodes
        .items
        .iter()
        .find(|node| node.name.as_str() == "dublin")
        .context("no dublin")?
        .id;
    lab.coordinator.sql(&NOBODY_READY.replace(
        "RETURN NULL",
        &format!("IF NEW.peer = '{dublin}' THEN RETURN NULL; END IF; RETURN NEW"),
    ))?;
    let output = lab.gateway(FRANKFURT)?.try_agent(&["rotate"])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        error.contains("dublin") && !error.contains("new-york"),
        "{error}"
    );
    ensure!(
        lab.gateway(FRANKFURT)?.public_key()? == before,
        "the key changed"
    );
    wait_for("the announcement is withdrawn", patience(10.0), || {
        let node: Value = api.get("/nodes/frankfurt")?;
        ensure!(node["rotation"].is_null(), "{node}");
        Ok(())
    })?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))?;

    lab.coordinator
        .sql("DROP TRIGGER refuse_ready ON armed_peers")?;
    let output = lab.gateway(FRANKFURT)?.agent_says(&["rotate"])?;
    let after = lab.gateway(FRANKFURT)?.public_key()?;
    ensure!(
        output.contains(&before) && output.contains(&after) && before != after,
        "{output}"
    );
    everybody_goes_by(&lab, &api, &after)
}

pub(crate) fn handshakes_that_are_lost_while_a_key_is_taken_up_cost_little_and_the_tunnels_come_up(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let before = lab.gateway(FRANKFURT)?.public_key()?;
    // Each second first message of a handshake that comes from or goes to Frankfurt: 148 bytes (the
    // WireGuard paper, section 5.4.2), and 8 of UDP.
    let drop = "add table inet loss\nadd chain inet loss in { type filter hook input priority 0; \
        }\n\
        add rule inet loss in udp dport 51820 udp length 156 numgen inc mod 2 == 0 counter drop\n";
    for site in [DUBLIN, FRANKFURT, NEW_YORK] {
        lab.gateway(site)?.host.run_with("nft -f -", drop)?;
    }
    ask(&api)?;
    let after = taken_up(&lab, &before)?;
    everybody_goes_by(&lab, &api, &after)?;
    let counted = lab.gateway(DUBLIN)?.host.run("nft list table inet loss")?;
    ensure!(!counted.contains("packets 0 "), "none was lost: {counted}");
    for flow in flows {
        let Outcome { sent, lost } = flow.finish()?;
        ensure!(
            lost.len() <= MOST_LOST,
            "{} of {sent} were lost",
            lost.len()
        );
    }
    Ok(())
}

pub(crate) fn h2_another_identity_is_taken_up_whoever_dies_at_whatever_step_and_no_packet_is_lost(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let flows = flows(&lab)?;
    let first = identity(&lab, &api)?;
    lab.coordinator.sql(NO_IDENTITY)?;
    let asking = lab
        .gateway(FRANKFURT)?
        .start_command(&["rotate", "--identity"])?;
    let next = wait_for("it has another identity on disk", patience(20.0), || {
        let kept = kept(&lab)?;
        ensure!(kept["next_identity"].is_string(), "it has one alone");
        Ok(kept["next_identity"].clone())
    })?;
    // Both die before the coordinator could take it.
    lab.gateway_mut(FRANKFURT)?.kill_agent()?;
    drop(asking);
    lab.coordinator.kill()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    let before = kept(&lab)?;
    ensure!(before["next_identity"] == next, "it has yet another");
    lab.gateway_mut(FRANKFURT)?.start_agent()?;
    flows[0].more(100)?;
    lab.coordinator
        .sql("CREATE TABLE backup AS SELECT * FROM nodes; DROP TRIGGER refuse_identity ON nodes")?;
    let second = succeeded(&lab, &api, &first)?;
    ensure!(
        kept(&lab)?["identity"] == next,
        "it is another than was made"
    );

    // The agent dies between the coordinator's word and its own disk: the coordinator knows it as
    // somebody whom it is yet to become.
    lab.gateway_mut(FRANKFURT)?.kill_agent()?;
    lab.gateway(FRANKFURT)?
        .host
        .run_with(&format!("tee {STATE_DIR}/node.json"), &before.to_string())?;
    lab.gateway_mut(FRANKFURT)?.start_agent()?;
    wait_for(
        "it is who the coordinator says it is",
        patience(20.0),
        || {
            ensure!(
                kept(&lab)?["next_identity"].is_null() && identity(&lab, &api)? == second,
                "it is not"
            );
            Ok(())
        },
    )?;

    // A database that was restored knows it as who it was.
    lab.coordinator.sql(
        "UPDATE nodes SET identity_key = backup.identity_key, statement = backup.statement, \
         statement_signature = backup.statement_signature,
         highest_sequence = backup.highest_sequence
         FROM backup WHERE backup.id = nodes.id; UPDATE mesh SET epoch = epoch + 1",
    )?;
    lab.coordinator.kill()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    wait_for("the coordinator knows it again", patience(20.0), || {
        ensure!(identity(&lab, &api)? == second, "it does not");
        Ok(())
    })?;

    let said = lab
        .gateway(FRANKFURT)?
        .agent_says(&["rotate", "--identity"])?;
    let third = succeeded(&lab, &api, &second)?;
    ensure!(said.contains(&second) && said.contains(&third), "{said}");
    // The peers believe what it signs now, and nothing of this touched a tunnel.
    let key = lab.gateway(FRANKFURT)?.public_key()?;
    lab.gateway(FRANKFURT)?.agent_says(&["rotate"])?;
    let after = taken_up(&lab, &key)?;
    everybody_goes_by(&lab, &api, &after)?;
    flows.iter().try_for_each(|flow| flow.more(100))?;
    flows
        .into_iter()
        .try_for_each(|flow| flow.expect_no_loss().map(drop))
}

/// What Frankfurt has on disk of its keys.
fn kept(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_str(
        &lab.gateway(FRANKFURT)?
            .host
            .read(&format!("{STATE_DIR}/node.json"))?,
    )?)
}

/// Frankfurt's identity, of which its agent and the coordinator say the same.
fn identity(lab: &Lab, api: &Api) -> Result<String> {
    let node: Value = api.get("/nodes/frankfurt")?;
    let status = lab.gateway(FRANKFURT)?.status()?;
    ensure!(
        status["identity"] == node["identity_key"],
        "{} {}",
        status["identity"],
        node["identity_key"]
    );
    ensure!(
        status["coordinator"]["connected"] == true,
        "{}",
        status["coordinator"]
    );
    Ok(node["identity_key"]
        .as_str()
        .context("no identity")?
        .to_owned())
}

/// Waits until Frankfurt has another identity, and gives it.
fn succeeded(lab: &Lab, api: &Api, before: &str) -> Result<String> {
    wait_for("the identity is another one", patience(20.0), || {
        let after = identity(lab, api)?;
        ensure!(after != before, "it is the old one");
        Ok(after)
    })
}

/// Asks for a new key of Frankfurt.
fn ask(api: &Api) -> Result<()> {
    let answer = api.request("POST", "/nodes/frankfurt/rotate", None)?;
    ensure!(answer.status == 202, "{answer:?}");
    Ok(())
}

/// Whether the coordinator's database has so many rows.
fn count(lab: &Lab, of: &str, rows: usize) -> Result<()> {
    let found = lab.coordinator.sql(&format!("SELECT count(*) FROM {of}"))?;
    ensure!(found.trim() == rows.to_string(), "{found} of {of}");
    Ok(())
}

/// The key for which both peers of Frankfurt have an entry without prefixes.
fn all_stand_ready(lab: &Lab) -> Result<String> {
    let bare = |site| -> Result<String> {
        let entries = lab.gateway(site)?.allowed_ips()?;
        entries
            .into_iter()
            .find(|(_, prefixes)| prefixes.is_empty())
            .map(|(key, _)| key)
            .context("nothing was announced")
    };
    let [dublin, new_york] = [bare(DUBLIN)?, bare(NEW_YORK)?];
    ensure!(dublin == new_york, "they stand ready for different keys");
    Ok(dublin)
}

/// Whether both peers use the key.
fn have_followed(lab: &Lab, key: &str) -> Result<()> {
    for site in [DUBLIN, NEW_YORK] {
        let entries = lab.gateway(site)?.allowed_ips()?;
        let entry = entries
            .iter()
            .find(|(found, _)| found == key)
            .with_context(|| format!("{} does not have it", site.name))?;
        ensure!(entry.1.len() == 2, "{} has {entry:?}", site.name);
    }
    lab.ping_all()
}

/// Between all three, there and back.
fn flows(lab: &Lab) -> Result<Vec<Flow>> {
    let flow = |from, to: LabSite| {
        Flow::start(
            &lab.gateway(from)?.lan_host,
            &lab.gateway(to)?.lan_host,
            to.lan_host(),
        )
    };
    [
        (DUBLIN, FRANKFURT),
        (FRANKFURT, NEW_YORK),
        (NEW_YORK, DUBLIN),
    ]
    .into_iter()
    .map(|(from, to)| flow(from, to))
    .collect()
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
        for site in [DUBLIN, NEW_YORK] {
            let peers = lab.gateway(site)?.device()?.peers;
            ensure!(peers.len() == 2, "{} has {} peers", site.name, peers.len());
            let peer = peers
                .get(key)
                .with_context(|| format!("{} does not have the key", site.name))?;
            ensure!(peer.handshake_s != 0, "{} has shaken no hands", site.name);
        }
        key.parse::<WireguardKey>()?;
        lab.ping_all()?;
        // What takes a program comes last, and seldom twice.
        let node: Value = api.get("/nodes/frankfurt")?;
        ensure!(
            node["wireguard_key"] == key && node["rotation"].is_null(),
            "{node}"
        );
        Ok(())
    })
}
