//! Preshared keys: who has them, who has not, and what their change costs.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use wattle_lab::{
    Api, Coordinator, Flow, Gateway, Lab,
    device::TunnelPeer,
    gateway::STATE_DIR,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait::same,
    wait_for,
};
use wattle_wire::{
    admin::{CreatedJoinToken, CreatedSite, Node, Page},
    key::Bytes32,
};

/// Keeps every letter that is ever in the mailbox.
const KEEP_ALL: &str = "
CREATE TABLE ever (message text);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO ever VALUES (NEW.message || encode(NEW.signature, 'base64')); RETURN NEW; \
    END $$;
CREATE TRIGGER keep BEFORE INSERT ON psk_messages FOR EACH ROW EXECUTE FUNCTION keep();
";

pub(crate) fn e11_each_pair_has_a_key_of_its_own_which_no_coordinator_ever_had(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.start_coordinator()?;
    lab.coordinator.sql(KEEP_ALL)?;
    lab.join_all(&api)?;
    let mut keys = BTreeSet::new();
    for (one, other) in lab.pairs() {
        keys.insert(wait_for("both ends have one key", patience(10.0), || {
            key(one, other)
        })?);
    }
    ensure!(keys.len() == 3, "three pairs have {} keys", keys.len());
    wait_for("the mailbox is empty", patience(10.0), || {
        let left = lab.coordinator.sql("SELECT count(*) FROM psk_messages")?;
        if left.trim() == "0" {
            Ok(())
        } else {
            bail!("{left} letters")
        }
    })?;

    let mut public = lab.coordinator.dump()?;
    ensure!(
        public.matches("ciphertext").count() >= 3 && public.matches("kem_key").count() >= 3,
        "the dump lacks letters"
    );
    public += &lab.coordinator.server()?.log();
    for gateway in &mut lab.gateways {
        public += &gateway.agent()?.log();
        for words in [&["status"][..], &["status", "--json"], &["plan", "--json"]] {
            public += &gateway.agent_says(words)?;
        }
    }
    for key in keys {
        let bytes = *key.parse::<Bytes32>()?.as_bytes();
        let hex = hex::encode(bytes);
        ensure!(
            !public.contains(&key)
                && !public.contains(&hex)
                && !public.contains(&format!("{bytes:?}")),
            "a key is seen"
        );
    }
    Ok(())
}

pub(crate) fn without_a_key_no_packet_passes_unless_the_mesh_says_so_and_with_one_the_tunnel_stays(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    lose(&lab.coordinator, "request", None)?;
    for gateway in &mut lab.gateways {
        gateway.start_agent()?;
        let created: CreatedSite = api.post("/sites", &gateway.site.body())?;
        gateway.join(created.join_token.join_string.reveal())?;
    }
    wait_for("both know of each other", patience(10.0), || {
        for gateway in &lab.gateways {
            let status = gateway.status()?;
            ensure!(
                status["peers"]
                    .as_array()
                    .is_some_and(|peers| peers.len() == 1),
                "{status}"
            );
        }
        Ok(())
    })?;
    wait_for("a key was asked for in vain", patience(10.0), || {
        let lost = lab.coordinator.sql("SELECT count(*) FROM lost")?;
        if lost.trim() == "0" {
            bail!("not yet")
        } else {
            Ok(())
        }
    })?;
    for gateway in &lab.gateways {
        same(&gateway.allowed_ips()?, &Vec::new())?;
    }
    ensure!(lab.ping_all().is_err(), "a packet passes without a key");

    set_policy(&api, "prefer")?;
    wait_for("packets pass without a key", patience(5.0), || {
        lab.ping_all()
    })?;
    let keys = ends(lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?)?;
    same(&keys, &[None, None])?;
    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    lose_nothing(&lab.coordinator)?;
    let frankfurt = lab.gateway_mut(FRANKFURT)?;
    frankfurt.kill_agent()?;
    frankfurt.start_agent()?;
    let key = || key(lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?);
    let agreed = wait_for("both ends have one key", patience(10.0), key)?;
    set_policy(&api, "require")?;
    let changes = api.changes()?;
    changes.wait_for("both have heard of it", patience(5.0), || {
        let nodes: Page<Node> = api.get("/nodes")?;
        let applied: BTreeSet<_> = nodes
            .items
            .iter()
            .filter_map(|node| Some(node.last_report.as_ref()?.applied.revision))
            .collect();
        ensure!(
            applied.len() == 1 && applied.iter().all(|revision| *revision >= 6),
            "{applied:?}"
        );
        Ok(())
    })?;
    same(&key()?, &agreed)?;
    flow.more(50)?;
    flow.expect_no_loss().map(drop)
}

pub(crate) fn whoever_asks_for_new_keys_gets_one_with_each_peer_and_a_peer_that_is_away_is_named(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    let all = |lab: &Lab| -> Result<Vec<String>> {
        lab.pairs().map(|(one, other)| key(one, other)).collect()
    };
    let before = wait_for("each pair has a key", patience(10.0), || all(&lab))?;
    // The second of three to enrol: it begins the rounds with one peer, and asks the other to.
    let said = lab.gateway(FRANKFURT)?.agent_says(&["rotate", "--psk"])?;
    ensure!(
        said.contains("with 2 peers") && said.contains("all preshared keys are new"),
        "{said}"
    );
    let after = wait_for(
        "both ends of each pair have one key",
        patience(10.0),
        || all(&lab),
    )?;
    for ((one, other), (before, after)) in lab.pairs().zip(before.iter().zip(&after)) {
        let is_asked = [one, other]
            .iter()
            .any(|gateway| gateway.site.name == FRANKFURT.name);
        ensure!(
            (before != after) == is_asked,
            "{} and {}",
            one.site.name,
            other.site.name
        );
    }
    lab.gateway_mut(NEW_YORK)?.stop_agent()?;
    let refused = lab.gateway(FRANKFURT)?.try_agent(&["rotate", "--psk"])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && error.contains("new-york") && !error.contains("dublin"),
        "{error}"
    );
    lab.gateway_mut(NEW_YORK)?.start_agent()?;
    let key = || key(lab.gateway(FRANKFURT)?, lab.gateway(NEW_YORK)?);
    wait_for(
        "it gets its new key when it is back",
        patience(20.0),
        || {
            ensure!(!after.contains(&key()?), "it has the old one");
            Ok(())
        },
    )?;
    flow.more(50)?;
    flow.expect_no_loss().map(drop)
}

pub(crate) fn after_a_cut_in_which_both_peers_were_replaced_keys_and_tunnels_are_there_within_seconds(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let cut = "add table inet cut\nadd chain inet cut out { type filter hook output priority 0; }\n\
        add rule inet cut out tcp dport 8443 drop\n";
    lab.gateway(DUBLIN)?.host.run_with("nft -f -", cut)?;
    for site in [FRANKFURT, NEW_YORK] {
        api.delete(&format!("/nodes/{}", site.name))?;
        let created: CreatedJoinToken =
            api.post(&format!("/sites/{}/join-tokens", site.name), &json!({}))?;
        lab.gateway_mut(site)?.stop_agent()?;
        lab.gateway(site)?
            .agent_says(&["join", "--replace", created.join_string.reveal()])?;
        lab.gateway_mut(site)?.start_agent()?;
    }
    // Long enough for the agent to hang up, and for messages to have been sent in vain.
    let begin = Instant::now();
    wait_for(
        "the cut has lasted for half a minute",
        patience(40.0),
        || {
            ensure!(begin.elapsed() > Duration::from_secs(30), "not yet");
            Ok(())
        },
    )?;
    lab.gateway(DUBLIN)?.host.run("nft delete table inet cut")?;
    wait_for("it hears the coordinator again", patience(20.0), || {
        let status = lab.gateway(DUBLIN)?.status()?;
        ensure!(status["coordinator"]["connected"] == true, "{status}");
        Ok(())
    })?;
    lab.gateway(DUBLIN)?.agent_says(&["confirm"])?;
    let open = Instant::now();
    wait_for("each pair has a key", patience(5.0), || {
        let keys = lab.pairs().map(|(one, other)| key(one, other));
        keys.collect::<Result<Vec<_>>>().map(drop)
    })?;
    let left = patience(5.0).saturating_sub(open.elapsed());
    wait_for("every LAN host pings every other", left, || lab.ping_all())?;
    Ok(())
}

fn set_policy(api: &Api, policy: &str) -> Result<()> {
    let answer = api.request(
        "PATCH",
        "/mesh",
        Some(&json!({ "psk": policy }).to_string()),
    )?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

pub(crate) fn h2_a_round_that_is_cut_short_at_any_step_by_the_death_of_all_ends_with_a_new_key_and_loses_no_packet(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    lab.weave()?;
    let (dublin, frankfurt) = (lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?);
    let flow = Flow::start(&dublin.lan_host, &frankfurt.lan_host, FRANKFURT.lan_host())?;
    let mut before = wait_for("both ends have one key", patience(10.0), || {
        key(lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?)
    })?;
    for step in ["request", "offer", "confirm", "commit"] {
        lose(&lab.coordinator, step, None)?;
        renew(lab.gateway_mut(FRANKFURT)?)?;
        wait_for("the step is taken", patience(20.0), || {
            let lost = lab.coordinator.sql("SELECT count(*) FROM lost")?;
            if lost.trim() == "0" {
                bail!("no {step} yet")
            } else {
                Ok(())
            }
        })?;
        lab.coordinator.kill()?;
        for gateway in &mut lab.gateways {
            gateway.kill_agent()?;
        }
        lab.coordinator.start_server()?;
        lab.coordinator.wait_ready()?;
        lose_nothing(&lab.coordinator)?;
        for gateway in &mut lab.gateways {
            gateway.start_agent()?;
        }
        let after = wait_for("both ends have a new key", patience(20.0), || {
            let key = key(lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?)?;
            if key == before {
                bail!("it is the old one")
            } else {
                Ok(key)
            }
        });
        before = after.with_context(|| format!("without {step}"))?;
        flow.more(20)?;
    }
    flow.expect_no_loss().map(drop)
}

pub(crate) fn the_session_that_is_renewed_with_another_key_loses_no_packet_even_when_one_end_missed_the_commit(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let [dublin, frankfurt, new_york] = [DUBLIN, FRANKFURT, NEW_YORK].map(|site| lab.gateway(site));
    let flow = |from: &Gateway, to: &Gateway| {
        Flow::start(&from.lan_host, &to.lan_host, to.site.lan_host())
    };
    let (dublin, frankfurt, new_york) = (dublin?, frankfurt?, new_york?);
    let flows = [
        flow(dublin, frankfurt)?,
        flow(frankfurt, new_york)?,
        flow(new_york, dublin)?,
    ];
    let all = [
        (DUBLIN, FRANKFURT),
        (FRANKFURT, NEW_YORK),
        (NEW_YORK, DUBLIN),
    ];
    let keys = |lab: &Lab| -> Result<Vec<String>> {
        all.iter()
            .map(|(one, other)| key(lab.gateway(*one)?, lab.gateway(*other)?))
            .collect()
    };
    let before = wait_for("all have keys", patience(10.0), || keys(&lab))?;

    // New York came last and so begins every round of its pairs; of Dublin's commit it will not
    // hear.
    lose(&lab.coordinator, "commit", Some("new-york"))?;
    for site in [FRANKFURT, NEW_YORK] {
        renew(lab.gateway_mut(site)?)?;
    }
    wait_for(
        "those that missed nothing have a new key, and the others differ",
        patience(20.0),
        || {
            let key = key(lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?)?;
            ensure!(key != before[0], "it is the old one");
            for site in [DUBLIN, FRANKFURT] {
                let ends = ends(lab.gateway(site)?, lab.gateway(NEW_YORK)?)?;
                ensure!(
                    ends[0] != ends[1],
                    "{} and New York have one key",
                    site.name
                );
            }
            Ok(())
        },
    )?;
    let handshakes = |lab: &Lab| -> Result<Vec<u64>> {
        let ends = all
            .iter()
            .flat_map(|(one, other)| [(*one, *other), (*other, *one)]);
        ends.map(|(one, other)| handshake(lab.gateway(one)?, lab.gateway(other)?))
            .collect()
    };
    let old = handshakes(&lab)?;
    let after = wait_for(
        "every session is renewed, each with a new key",
        patience(200.0),
        || {
            let new = handshakes(&lab)?;
            ensure!(
                old.iter().zip(&new).all(|(old, new)| new > old),
                "{new:?} after {old:?}"
            );
            keys(&lab)
        },
    )?;
    ensure!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after),
        "a session was renewed with the old key"
    );
    for flow in flows {
        flow.more(100)?;
        flow.expect_no_loss()?;
    }
    Ok(())
}

/// The preshared key of a pair, which both ends must have.
fn key(one: &Gateway, other: &Gateway) -> Result<String> {
    let [key, same] = ends(one, other)?;
    ensure!(
        key == same,
        "{} and {} do not agree",
        one.site.name,
        other.site.name
    );
    key.with_context(|| format!("{} has no key", one.site.name))
}

/// What each end has.
fn ends(one: &Gateway, other: &Gateway) -> Result<[Option<String>; 2]> {
    Ok([
        peer(one, other)?.preshared_key,
        peer(other, one)?.preshared_key,
    ])
}

/// What the device of `one` has of `other`.
fn peer(one: &Gateway, other: &Gateway) -> Result<TunnelPeer> {
    one.device()?
        .peers
        .remove(&other.public_key()?)
        .context("there is no such peer")
}

/// Seconds since 1970 at which `one` last shook hands with `other`.
fn handshake(one: &Gateway, other: &Gateway) -> Result<u64> {
    Ok(peer(one, other)?.handshake_s)
}

/// Ends the agent with `kill -9`, and starts it again on a day on which its keys are due.
fn renew(gateway: &mut Gateway) -> Result<()> {
    let path = format!("{STATE_DIR}/psk.json");
    let mut pairs = wait_for("no round is under way", patience(10.0), || {
        let pairs: Map<String, Value> = serde_json::from_str(&gateway.host.read(&path)?)?;
        ensure!(
            pairs
                .values()
                .all(|pair| pair["phase"] == "idle" && pair["current"].is_object()),
            "a round is under way"
        );
        Ok(pairs)
    })?;
    gateway.kill_agent()?;
    for pair in pairs.values_mut() {
        pair["current"]["due"] = 0.into();
    }
    gateway
        .host
        .run_with(&format!("tee {path}"), &serde_json::to_string(&pairs)?)?;
    gateway.start_agent()
}

/// Lets the mailbox lose every letter of a step, or those to one node alone.
fn lose(coordinator: &Coordinator, step: &str, to: Option<&str>) -> Result<()> {
    let to = to.map_or_else(String::new, |name| {
        format!("AND NEW.recipient = (SELECT id FROM nodes WHERE name = '{name}')")
    });
    coordinator
        .sql(&format!(
            "CREATE TABLE lost (message text);
         CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.message LIKE '%\"step\":{{\"{step}\":%' {to} THEN INSERT INTO lost VALUES \
             (NEW.message); RETURN NULL; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER lose BEFORE INSERT ON psk_messages FOR EACH ROW EXECUTE FUNCTION lose();"
        ))
        .map(drop)
}

fn lose_nothing(coordinator: &Coordinator) -> Result<()> {
    coordinator
        .sql("DROP TRIGGER lose ON psk_messages; DROP FUNCTION lose; DROP TABLE lost;")
        .map(drop)
}
