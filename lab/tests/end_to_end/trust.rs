//! What a coordinator in the wrong hands can and cannot do.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Flow, Host, Lab, LabSite,
    api::Api,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK, SAO_PAULO},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{CreatedSite, Node, Page};

use crate::lock::Operator;

/// A new epoch, so that every agent gets what the database says now.
const TELL_ALL: &str = "UPDATE mesh SET epoch = epoch + 1;";

pub(crate) fn e2_a_key_swapped_in_the_database_reaches_no_kernel_and_is_reported(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let dublin = lab.gateway(DUBLIN)?;
    let flow = Flow::start(
        &dublin.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    let before = dublin.allowed_ips()?;
    let thief = dublin
        .host
        .run("wg genkey")
        .and_then(|key| dublin.host.run_with("wg pubkey", &key))?;
    lab.coordinator.sql(&format!(
        "UPDATE nodes SET statement = replace(statement, encode(wireguard_key, 'base64'), \
         '{thief}'), wireguard_key = decode('{thief}', 'base64')
         WHERE name = 'frankfurt'; {TELL_ALL}",
        thief = thief.trim()
    ))?;
    let changes = api.changes()?;
    changes.wait_for("every other node reports it", patience(20.0), || {
        let nodes: Page<Node> = api.get("/nodes")?;
        for node in nodes
            .items
            .iter()
            .filter(|node| node.site_name.to_string() != FRANKFURT.name)
        {
            let problems = words(node);
            ensure!(
                problems.contains("peer frankfurt refused: the statement is not signed"),
                "{}: {problems:?}",
                node.name
            );
        }
        Ok(())
    })?;
    same(&dublin.allowed_ips()?, &before)?;
    flow.more(50)?;
    flow.expect_no_loss()?;
    lab.ping_all()
}

pub(crate) fn e1_a_prefix_that_would_cut_a_gateway_off_is_refused_and_the_rest_carried_out(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    // Dublin's own underlay, the coordinator's address, and an innocent one.
    lab.coordinator.sql(&format!(
        "INSERT INTO subnets (site, prefix) SELECT id, unnest(ARRAY['203.0.113.0/24', \
         '198.18.0.0/24', '10.77.0.0/24']::inet[])
         FROM sites WHERE name = 'frankfurt'; {TELL_ALL}"
    ))?;
    let dublin = lab.gateway(DUBLIN)?;
    // Of the coordinator's prefix, its address alone is left out.
    let carried_out = [
        "10.77.0.0/24 dev wattle0",
        "198.18.0.0/24 dev wattle0",
        &format!("198.18.0.2 via {} dev eth0", DUBLIN.router()),
    ];
    let changes = dublin.host.changes()?;
    let (routes, allowed) = changes.wait_for("the rest is carried out", patience(20.0), || {
        let routes = dublin.host.run("ip -4 route show")?;
        let allowed = format!("{:?}", dublin.allowed_ips()?);
        ensure!(
            carried_out.iter().all(|route| routes.contains(route))
                && allowed.contains("10.77.0.0/24"),
            "{routes} {allowed}"
        );
        Ok((routes, allowed))
    })?;
    ensure!(!routes.contains("203.0.113.0/24 dev wattle0"), "{routes}");
    ensure!(!allowed.contains("203.0.113."), "{allowed}");
    let changes = api.changes()?;
    changes.wait_for("it is reported", patience(10.0), || {
        let problems = problems(&api, DUBLIN.name)?;
        for expected in [
            "the guard refused 203.0.113.0/24 of peer frankfurt",
            "198.18.0.2, where this gateway reaches its coordinator, lies in 198.18.0.0/24 of \
             frankfurt: it stays outside the tunnel",
        ] {
            ensure!(problems.contains(expected), "{problems:?}");
        }
        Ok(())
    })?;
    lab.ping_all()
}

pub(crate) fn e3_e12_whoever_has_the_coordinator_brings_nothing_into_a_kernel_that_no_operator_signed(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let operator = Operator::new(folder, &api, lab.gateway(DUBLIN)?)?;
    let said = operator.sign(lab.gateway(DUBLIN)?)?;
    ensure!(
        said.contains("new: dublin") && said.ends_with("signed 3\n"),
        "{said}"
    );
    let said = operator.sign(lab.gateway(DUBLIN)?)?;
    ensure!(said.contains("nothing to do"), "{said}");
    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    let before = lab
        .gateways
        .iter()
        .map(wattle_lab::Gateway::allowed_ips)
        .collect::<Result<Vec<_>>>()?;
    operator.lock(&mut lab)?;

    // A machine of the thief's, let in with the owner's token; a wider prefix, a swapped key and no
    // admissions, by hand.
    lab.add_site(SAO_PAULO)?;
    lab.gateway_mut(SAO_PAULO)?.start_agent()?;
    let created: CreatedSite = api.post("/sites", &SAO_PAULO.body())?;
    lab.gateway(SAO_PAULO)?
        .join(created.join_token.join_string.reveal())?;
    let host = &lab.gateway(SAO_PAULO)?.host;
    let thief = host
        .run("wg genkey")
        .and_then(|key| host.run_with("wg pubkey", &key))?;
    lab.coordinator.sql(&format!(
        "INSERT INTO subnets (site, prefix) SELECT id, '10.77.0.0/24' FROM sites WHERE name = \
         'new-york';
         UPDATE nodes SET statement = replace(statement, encode(wireguard_key, 'base64'), \
         '{thief}'), wireguard_key = decode('{thief}', 'base64')
         WHERE name = 'frankfurt';
         UPDATE nodes SET admission = NULL, admission_signature = NULL; {TELL_ALL}",
        thief = thief.trim()
    ))?;
    for (site, expected) in [
        (
            DUBLIN,
            &[
                "the guard refused 10.77.0.0/24 of peer new-york",
                "peer frankfurt refused",
                "the guard refused peer sao-paulo: no operator",
            ][..],
        ),
        (
            FRANKFURT,
            &[
                "the guard refused 10.77.0.0/24 of peer new-york",
                "the guard refused peer sao-paulo: no operator",
            ],
        ),
        (
            NEW_YORK,
            &[
                "peer frankfurt refused",
                "the guard refused peer sao-paulo: no operator",
            ],
        ),
    ] {
        let changes = api.changes()?;
        changes.wait_for("what is not signed is reported", patience(20.0), || {
            let problems = problems(&api, site.name)?;
            expected.iter().try_for_each(|expected| {
                ensure!(problems.contains(expected), "{}: {problems}", site.name);
                Ok(())
            })
        })?;
    }
    let after = lab.gateways[..3]
        .iter()
        .map(wattle_lab::Gateway::allowed_ips)
        .collect::<Result<Vec<_>>>()?;
    same(&after, &before)?;
    for gateway in &lab.gateways[..3] {
        let routes = gateway.host.run("ip -4 route show table all")?;
        ensure!(
            !routes.contains("10.77.0.") && !routes.contains("10.40.0."),
            "{}: {routes}",
            gateway.site.name
        );
        let status = gateway.status()?;
        let peer = status["peers"]
            .as_array()
            .and_then(|peers| peers.iter().find(|peer| peer["name"] == SAO_PAULO.name));
        ensure!(
            peer.is_some_and(|peer| peer["state"] == "unsigned"),
            "{status}"
        );
    }
    flow.more(50)?;
    flow.expect_no_loss()?;
    lab.ping_all_of(&GUIDE)
}

/// What a node last said is wrong.
fn problems(api: &Api, node: &str) -> Result<String> {
    let node: Node = api.get(&format!("/nodes/{node}"))?;
    Ok(words(&node))
}

fn words(node: &Node) -> String {
    let problems = node.problems.iter();
    let words: Vec<_> = problems.map(|known| &*known.problem.words).collect();
    words.join("; ")
}

pub(crate) fn e8_packets_of_a_compromised_gateway_with_anothers_source_address_are_dropped(
    folder: &Path,
) -> Result<()> {
    const FOREIGN: &str = "10.30.0.100";
    const OWN: &str = "10.20.0.1";
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let (dublin, frankfurt) = (lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?);
    // What the one device is given, and what the other lets out of the tunnel, before any other
    // rule.
    let count = |host: &Host, hook: &str, interface: &str| {
        let rule = |source: &str| {
            format!("{interface} wattle0 ip saddr {source} counter comment \"{source}\"")
        };
        let (foreign, own) = (rule(FOREIGN), rule(OWN));
        let table = format!(
            "table inet count {{\nchain c {{\ntype filter hook {hook} priority \
             -400;\n{foreign}\n{own}\n}}\n}}\n"
        );
        host.run_with("nft -f -", &table)
    };
    count(&frankfurt.host, "postrouting", "oifname")?;
    count(&dublin.host, "prerouting", "iifname")?;
    frankfurt
        .host
        .run(&format!("ip address add {FOREIGN}/32 dev lo"))?;
    let ping = |source: &str| {
        frankfurt.host.output(&format!(
            "ping -n -c 5 -i 0.2 -W 0.5 -I {source} {}",
            DUBLIN.lan_host()
        ))
    };
    ensure!(!ping(FOREIGN)?.status.success(), "an answer came back");
    ensure!(
        ping(OWN)?.status.success(),
        "its own address is not let through"
    );
    let packets = |host: &Host, source: &str| -> Result<u64> {
        let counted = host.run("nft list table inet count")?;
        let line = counted
            .lines()
            .find(|line| line.contains(&format!("comment \"{source}\"")))
            .with_context(|| counted.clone())?;
        let count = line
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .with_context(|| counted.clone())?;
        Ok(count.parse()?)
    };
    same(
        &(
            packets(&frankfurt.host, FOREIGN)?,
            packets(&dublin.host, FOREIGN)?,
        ),
        &(5, 0),
    )?;
    same(
        &(packets(&frankfurt.host, OWN)?, packets(&dublin.host, OWN)?),
        &(5, 5),
    )
}

pub(crate) fn e10_gateways_that_name_their_endpoints_come_up_at_once_and_one_that_names_anothers_sends_nobody_there(
    folder: &Path,
) -> Result<()> {
    const VICTIM: &str = "203.0.113.66:51820";
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.start_coordinator()?;
    let join = |lab: &mut Lab, site: LabSite, endpoint: &str| -> Result<()> {
        let created: CreatedSite = api.post(
            "/sites",
            &json!({ "name": site.name, "subnets": [site.lan] }),
        )?;
        lab.gateway_mut(site)?.start_agent()?;
        lab.gateway(site)?
            .agent_says(&[
                "join",
                "--endpoint",
                endpoint,
                created.join_token.join_string.reveal(),
            ])
            .map(drop)
    };
    join(&mut lab, DUBLIN, &DUBLIN.endpoint())?;
    join(&mut lab, FRANKFURT, &FRANKFURT.endpoint())?;
    // No operator said where either is, and neither was there before the other.
    wait_for("both LANs ping", patience(10.0), || {
        lab.ping_all_of(&[DUBLIN, FRANKFURT])
    })?;
    let is_verified = |site: LabSite| -> Result<bool> {
        Ok(api
            .get::<Node>(&format!("/nodes/{}", site.name))?
            .endpoint_verified)
    };
    wait_for("both were met where they are", patience(10.0), || {
        ensure!(is_verified(DUBLIN)? && is_verified(FRANKFURT)?);
        Ok(())
    })?;

    // Without preshared keys a peer is on the devices before it was heard, and this one is silent
    // for now.
    let patch = api.request(
        "PATCH",
        "/mesh",
        Some(&json!({ "psk": "prefer" }).to_string()),
    )?;
    ensure!(patch.status == 200, "{patch:?}");
    let created: CreatedSite = api.post(
        "/sites",
        &json!({ "name": NEW_YORK.name, "subnets": [NEW_YORK.lan] }),
    )?;
    lab.gateway(NEW_YORK)?.agent_says(&[
        "join",
        "--endpoint",
        VICTIM,
        created.join_token.join_string.reveal(),
    ])?;
    let key = api
        .get::<Node>("/nodes/new-york")?
        .wireguard_key
        .to_string();
    let sought_at = |lab: &Lab| -> Result<Vec<Option<String>>> {
        let of = |site: LabSite| {
            let peer = lab.gateway(site)?.device()?.peers.remove(&key);
            let peer = peer.with_context(|| format!("{} has no such peer", site.name))?;
            Ok(peer.endpoint.map(|endpoint| endpoint.to_string()))
        };
        let mut endpoints = [DUBLIN, FRANKFURT]
            .map(of)
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        endpoints.sort();
        Ok(endpoints)
    };
    let one = [None, Some(VICTIM.to_owned())];
    wait_for("one seeks it there", patience(10.0), || {
        same(&sought_at(&lab)?[..], &one)
    })?;
    lab.gateway_mut(NEW_YORK)?.start_agent()?;
    wait_for("its own packets bring it in", patience(15.0), || {
        lab.ping_all()
    })?;
    ensure!(!is_verified(NEW_YORK)?);
    let is_its_own = |endpoint: &str| endpoint.starts_with(&NEW_YORK.address.to_string());
    ensure!(
        sought_at(&lab)?
            .iter()
            .all(|endpoint| endpoint.as_deref().is_some_and(is_its_own)),
        "{:?}",
        sought_at(&lab)?
    );
    Ok(())
}

pub(crate) fn e12_without_a_lock_each_gateway_tells_what_a_thief_of_the_coordinator_changed_and_changed_back(
    folder: &Path,
) -> Result<()> {
    const VICTIM: &str = "203.0.113.66:51820";
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let history = |lab: &Lab| -> Result<Value> {
        let peers: Value =
            serde_json::from_str(&lab.gateway(DUBLIN)?.agent_says(&["history", "--json"])?)?;
        let frankfurt = peers
            .as_object()
            .and_then(|peers| peers.values().find(|peer| peer["name"] == "frankfurt"));
        Ok(frankfurt.with_context(|| format!("{peers}"))?.clone())
    };
    let move_to = |lab: &Lab, endpoint: &str| -> Result<()> {
        let (address, _) = endpoint.split_once(':').context("no port")?;
        lab.coordinator.sql(&format!(
            "UPDATE sites SET endpoint_address = '{address}' WHERE name = 'frankfurt'; {TELL_ALL}"
        ))?;
        wait_for("the gateway heard of it", patience(10.0), || {
            same(&history(lab)?["now"]["endpoint"], &json!(endpoint))
        })
    };
    let first = FRANKFURT.endpoint();
    ensure!(
        history(&lab)?["at_first"]["endpoint"] == first.as_str()
            && history(&lab)?["changes"] == json!([])
    );
    move_to(&lab, VICTIM)?;
    move_to(&lab, &first)?;

    // It outlives the agent, and what the coordinator remembers.
    lab.gateway_mut(DUBLIN)?.kill_agent()?;
    lab.coordinator.sql("DELETE FROM changes;")?;
    let told = history(&lab)?;
    let changes = told["changes"].as_array().context("no changes")?;
    let moves: Vec<_> = changes
        .iter()
        .map(|change| (&change["from"]["endpoint"], &change["to"]["endpoint"]))
        .collect();
    same(
        &moves[..],
        &[
            (&json!(first), &json!(VICTIM)),
            (&json!(VICTIM), &json!(first)),
        ],
    )?;
    ensure!(
        told["first_seen"]["at"].is_string()
            && changes[0]["from"]["wireguard_key"] == told["now"]["wireguard_key"],
        "{told}"
    );
    let words = lab.gateway(DUBLIN)?.agent_says(&["history"])?;
    ensure!(
        words.contains(&format!("frankfurt endpoint {first} -> {VICTIM}\n")),
        "{words}"
    );
    ensure!(words.contains("new-york appeared: identity "), "{words}");
    Ok(())
}
