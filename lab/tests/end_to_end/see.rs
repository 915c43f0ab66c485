//! What operators see of a mesh: metrics, and what the agent says of it on the terminal.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Gateway, Lab, LabSite,
    lab::items,
    patience,
    process::Daemon,
    site::{DUBLIN, FRANKFURT, GUIDE},
    wait::same,
    wait_for,
};
use wattle_wire::admin::CreatedSite;

use crate::browser::Browser;

const AGENT_METRICS: &str = "127.0.0.1:9586";
/// A link that is cut is down within five seconds; a second each goes by until the coordinator
/// looks and until the page is drawn.
const SEEN_WITHIN: Duration = Duration::from_secs(7);

pub(crate) fn a_prometheus_scrapes_agent_and_coordinator_and_promtool_finds_no_fault(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.start_coordinator()?;
    for gateway in &mut lab.gateways {
        gateway.start_agent_under(&["env", &format!("WATTLE_METRICS={AGENT_METRICS}")])?;
        let created: CreatedSite = api.post("/sites", &gateway.site.body())?;
        gateway.join(created.join_token.join_string.reveal())?;
    }
    wait_for("every LAN host pings every other", patience(20.0), || {
        lab.ping_all()
    })?;
    let dublin = lab.gateway(DUBLIN)?;
    let up = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("wattle_peer_up{") && line.ends_with(" 1"))
            .count()
    };
    let text = wait_for(
        "the agent tells of two peers that are up",
        patience(15.0),
        || {
            let text = dublin.host.run(&format!(
                "curl --silent --show-error --fail http://{AGENT_METRICS}/metrics"
            ))?;
            same(&up(&text), &2)?;
            Ok(text)
        },
    )?;
    dublin.host.run_with("promtool check metrics", &text)?;
    for begin in [
        r#"wattle_agent_connected{site="dublin"} 1"#,
        r#"wattle_interface_up{device="wattle0",site="dublin"} 1"#,
        r#"wireguard_device_info{device="wattle0",public_key=""#,
        r#"wireguard_peer_last_handshake_seconds{device="wattle0",peer="frankfurt",peer_site="frankfurt",public_key=""#,
        r#"wireguard_peer_allowed_ips_info{allowed_ips="10.20.0.0/24",device="wattle0",peer="frankfurt""#,
    ] {
        ensure!(
            text.lines().any(|line| line.starts_with(begin)),
            "nothing begins with {begin}: {text}"
        );
    }
    ensure!(
        !text.contains(&FRANKFURT.address.to_string()),
        "an endpoint is in a label: {text}"
    );

    fs::write(folder.join("token"), &api.token)?;
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "wattle-server",
                "scheme": "https",
                "authorization": {"credentials_file": folder.join("token")},
                "tls_config": {"ca_file": api.ca},
                "static_configs": [{"targets": [api.url.trim_start_matches("https://")]}],
            },
            {"job_name": "wattle-agent", "static_configs": [{"targets": [AGENT_METRICS]}]},
        ],
    });
    fs::write(folder.join("prometheus.yml"), config.to_string())?;
    let mut prometheus = dublin.host.command("prometheus");
    prometheus.arg(format!(
        "--config.file={}",
        folder.join("prometheus.yml").display()
    ));
    prometheus
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("prometheus").display()
        ))
        .arg("--web.listen-address=127.0.0.1:9090");
    let _prometheus = Daemon::start(prometheus, &folder.join("prometheus.log"))?;
    for (query, expected) in [
        ("sum(wattle_peer_up)", "2"),
        ("sum(wattle_links{state=%22up%22})", "3"),
        ("wattle_agents_connected", "3"),
        (
            "count(time()-wireguard_peer_last_handshake_seconds<180)",
            "2",
        ),
        ("count(wattle_peer_round_trip_seconds>0)", "2"),
        ("count(wattle_peer_loss_ratio<0.5)", "2"),
    ] {
        wait_for(query, patience(30.0), || {
            let answer = dublin.host.run(&format!(
                "curl --silent --show-error --globoff \
                    http://127.0.0.1:9090/api/v1/query?query={query}"
            ))?;
            let answer: Value = serde_json::from_str(&answer)?;
            let value = answer
                .pointer("/data/result/0/value/1")
                .and_then(Value::as_str)
                .with_context(|| answer.to_string())?;
            same(value, expected)
        })?;
    }
    Ok(())
}

pub(crate) fn verify_tells_whether_every_tunnel_and_every_lan_answers(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let dublin = lab.gateway(DUBLIN)?;
    let said: Value = serde_json::from_str(&dublin.agent_says(&["verify", "--json"])?)?;
    let checks: Vec<_> = said["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|check| check["address"].as_str().unwrap_or_default())
        .collect();
    same(
        &checks[..],
        &["10.99.0.2", "10.20.0.1", "10.99.0.3", "10.30.0.1"][..],
    )?;
    ensure!(said["ok"] == true, "{said}");
    let host = FRANKFURT.lan_host().to_string();
    let table = dublin.agent_says(&["verify", "--host", &host])?;
    ensure!(
        table.contains(&host) && table.contains("all 4 answer, directly"),
        "{table}"
    );
    let status = dublin.status()?;
    let peer = &status["peers"][0];
    same(
        &(&status["mtu"], &peer["endpoint"], &peer["endpoint_source"]),
        &(
            &json!(1420),
            &json!("198.51.100.20:51820"),
            &json!("configured"),
        ),
    )?;
    // Both ends say so soon after they joined.
    wait_for("the coordinator's verdict", patience(20.0), || {
        let verdict = &dublin.status()?["peers"][0]["coordinator"];
        same(
            &(&verdict["state"], &verdict["lan"]),
            &(&json!("up"), &json!("ok")),
        )
    })?;
    let measured: Value =
        serde_json::from_str(&dublin.agent_says(&["verify", "--throughput", "--json"])?)?;
    let checks = measured["checks"].as_array().into_iter().flatten();
    let rates: Vec<_> = checks
        .filter(|check| check["what"] == "tunnel")
        .map(|check| &check["mbit_per_s"])
        .collect();
    ensure!(
        rates.len() == 2 && rates.iter().all(|rate| rate.as_f64() > Some(1.0)),
        "{measured}"
    );
    let foreign = dublin.try_agent(&["verify", "--host", "10.77.0.1"])?;
    ensure!(
        !foreign.status.success() && String::from_utf8_lossy(&foreign.stderr).contains("10.77.0.1"),
        "{foreign:?}"
    );

    // A service that listens, and one that does not; each named address is asked by itself.
    let lan_host = &lab.gateway(FRANKFURT)?.lan_host;
    let listener = lan_host.in_its_network(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
    let service = format!("{host}:{}", listener.local_addr()?.port());
    let table = dublin.agent_says(&["verify", "--host", &host, "--tcp", &service])?;
    ensure!(
        table.contains(&service) && table.contains("all 5 answer, directly"),
        "{table}"
    );
    drop(listener);
    expect_failure(dublin, &["--tcp", &service], "10.20.0.0/24", "is refused")?;

    // A firewall that rejects is no answer, whatever ICMP message it sends.
    let frankfurt = &lab.gateway(FRANKFURT)?.host;
    for reject in [
        "icmpx admin-prohibited",
        "icmp host-unreachable",
        "icmp port-unreachable",
    ] {
        frankfurt.run_with(
            "nft -f -",
            &format!(
                "table inet strangers {{\nchain way {{ type filter hook forward priority 0; \
                 reject with {reject}; }}\n}}"
            ),
        )?;
        let said = if reject.contains("host") {
            "unreachable, says"
        } else {
            "refused by"
        };
        expect_failure(dublin, &["--host", &host], "10.20.0.0/24", said).context(reject)?;
        frankfurt.run("nft delete table inet strangers")?;
    }

    // A LAN whose host is cut off, and a gateway that is gone.
    lab.gateway(FRANKFURT)?.host.run("ip link set lan0 down")?;
    expect_failure(dublin, &["--host", &host], "10.20.0.0/24", "no answer")?;
    lab.gateway(FRANKFURT)?.host.run("ip link set eth0 down")?;
    expect_failure(dublin, &["--host", &host], "tunnel", "no answer")
}

pub(crate) fn g8_a_link_that_is_cut_is_down_within_five_seconds_and_one_that_is_cut_one_way_asymmetric(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let peers = lab.gateway(DUBLIN)?.device()?.peers;
    let is = |state: &str, fault: Option<&str>| {
        let link: Value = api.get("/links/dublin/frankfurt")?;
        same(
            &(&link["state"], &link["fault"]),
            &(&json!(state), &json!(fault)),
        )?;
        Ok(link)
    };
    let link = api
        .changes()?
        .wait_for("both ends probe the link", patience(20.0), || {
            let link = is("up", None)?;
            let measured = link["ends"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|end| end["round_trip_ms"].is_number())
                .count();
            same(&measured, &2)?;
            Ok(link)
        })?;
    same(&link["ends"][0]["mtu"], &json!(1420))?;

    cut(&lab, DUBLIN, FRANKFURT)?;
    api.changes()?
        .wait_for("the link is down", patience(5.0), || is("down", None))?;
    same(&lab.gateway(DUBLIN)?.device()?.peers.len(), &peers.len())?;
    let third: Value = api.get("/links/dublin/new-york")?;
    same(&third["state"], &json!("up"))?;

    // What Dublin sends arrives nowhere; it hears Frankfurt.
    lab.gateway(DUBLIN)?.host.run("nft delete table inet cut")?;
    api.changes()?
        .wait_for("the link works one way", patience(20.0), || {
            is("degraded", Some("asymmetric"))
        })?;
    lab.gateway(FRANKFURT)?
        .host
        .run("nft delete table inet cut")?;
    api.changes()?
        .wait_for("the link is up again", patience(30.0), || is("up", None))?;
    wait_for("the history tells of it", patience(10.0), || {
        let history: Value = api.get("/links/dublin/frankfurt/history")?;
        let states: Vec<_> = items(&history)
            .iter()
            .map(|change| change["state"].as_str().unwrap_or_default())
            .collect();
        same(&states[..3], &["up", "degraded", "down"][..])
    })?;

    // A gateway whose agent is gone still carries packets, and its host says so.
    lab.gateway_mut(FRANKFURT)?.kill_agent()?;
    let dublin = lab.gateway(DUBLIN)?;
    let refused = || -> Result<u64> {
        let text = dublin.host.proc_net("snmp")?;
        let mut lines = text
            .lines()
            .filter(|line| line.starts_with("Icmp:"))
            .map(|line| line.split_whitespace());
        let (names, values) = (
            lines.next().context("no Icmp")?,
            lines.next().context("no Icmp")?,
        );
        names
            .zip(values)
            .find(|(name, _)| *name == "InDestUnreachs")
            .context("no such count")?
            .1
            .parse()
            .context("a number")
    };
    let before = refused()?;
    wait_for("the host refuses probes", patience(20.0), || {
        if refused()? > before + 8 {
            Ok(())
        } else {
            bail!("not yet")
        }
    })?;
    is("up", None).map(drop)
}

/// Cuts two sites off from each other, and from nobody else.
fn cut(lab: &Lab, one: LabSite, other: LabSite) -> Result<()> {
    for (at, from) in [(one, other), (other, one)] {
        let rules = format!(
            "table inet cut {{\nchain way {{ type filter hook input priority 0; ip saddr {} drop; \
             }}\n}}",
            from.address
        );
        lab.gateway(at)?.host.run_with("nft -f -", &rules)?;
    }
    Ok(())
}

pub(crate) fn the_page_shows_three_sites_whose_links_are_up_and_within_seconds_one_that_is_cut(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.weave()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let browser = Browser::open(&api.url).await;
        browser.sign_in(&api.token).await;
        browser.see("#sentence", "3 sites, 3 links, all up").await;
        browser.keep("lab-up").await;
        browser.go("#/links/dublin/frankfurt").await;
        browser.see("table[aria-label='Both ends']", "ms").await;
        browser
            .see("table[aria-label='Both ends']", "1420 bytes")
            .await;
        browser
            .see(
                "table[aria-label='Both ends']",
                "203.0.113.10:51820 configured",
            )
            .await;
        browser.keep("lab-link").await;

        browser.go("#/").await;
        browser.see("#sentence", "all up").await;
        let start = Instant::now();
        cut(&lab, DUBLIN, FRANKFURT)?;
        browser
            .see("#sentence", "3 sites, 3 links, 1 down since")
            .await;
        let took = start.elapsed();
        ensure!(took < SEEN_WITHIN, "seen after {took:?}");
        browser.see(".attention", "dublin – frankfurt").await;
        browser.keep("lab-down").await;
        browser.become_("dark", 390).await;
        browser.keep("lab-down-phone").await;
        browser.go("#/links/dublin/frankfurt").await;
        browser.see("table[aria-label=History]", "down").await;
        browser.see("table[aria-label=History]", "up").await;
        browser.keep("lab-history-phone").await;
        same(&browser.complaints().await, &Vec::new())
    })
}

fn expect_failure(gateway: &Gateway, asked: &[&str], what: &str, reason: &str) -> Result<()> {
    let output = gateway.try_agent(&[&["verify", "--count", "1"], asked].concat())?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    same(&output.status.code(), &Some(1))?;
    let told = table
        .lines()
        .any(|line| line.starts_with("frankfurt") && line.contains(what) && line.contains(reason));
    if told { Ok(()) } else { bail!("{table}") }
}

pub(crate) fn doctor_names_what_is_in_the_way_and_the_remedy_helps(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let dublin = lab.gateway(DUBLIN)?;
    let said = dublin.agent_says(&["doctor"])?;
    for check in [
        "rights",
        "agent",
        "wireguard",
        "interface",
        "port",
        "lan",
        "mtu",
        "firewall",
        "dns",
        "coordinator",
        "clock",
        "tunnel",
    ] {
        ensure!(
            said.lines()
                .any(|line| line.contains(&format!("{check}: "))),
            "{check}: {said}"
        );
    }
    ensure!(
        !said.contains("FAULT") && !said.contains('\u{1b}'),
        "{said}"
    );

    // A firewall that drops what it does not know; its own rule, as the doctor has it, lets the
    // LANs through again.
    dublin.host.run_with(
        "nft -f -",
        "table inet strangers {\nchain way { type filter hook forward \
        priority 0; policy drop; }\n}",
    )?;
    ensure!(
        dublin.lan_host.ping(FRANKFURT.lan_host()).is_err(),
        "the firewall drops nothing"
    );
    let [fault] = &faults(dublin)?[..] else {
        bail!(
            "one fault was expected: {}",
            dublin.agent_says(&["doctor"])?
        )
    };
    same(&fault["check"], &json!("firewall"))?;
    let fix = fault["fix"].as_str().context("no fix")?;
    fix.split("; ")
        .try_for_each(|command| dublin.host.run(command).map(drop))?;
    dublin.lan_host.ping(FRANKFURT.lan_host())?;
    ensure!(faults(dublin)?.is_empty(), "the remedy does not count");

    // One that lets nothing in by the tunnel but answers: probes of others are not among those.
    let deaf = "table inet deaf {\nchain way { type filter hook input priority 0; policy drop; ct \
        state established,related accept\n\
                icmp type echo-request accept\nudp dport 51820 accept\niifname lo accept\n}\n}";
    dublin.host.run_with("nft -f -", deaf)?;
    let said = dublin.agent_says(&["doctor"])?;
    let fix = said
        .lines()
        .skip_while(|line| !line.contains("probes: "))
        .nth(1)
        .context("it is not named")?;
    fix.trim()
        .trim_start_matches("do: ")
        .split("; ")
        .try_for_each(|command| dublin.host.run(command).map(drop))?;
    let said = dublin.agent_says(&["doctor"])?;
    ensure!(
        !said.contains("probes: "),
        "the remedy does not count: {said}"
    );

    lab.coordinator.kill()?;
    let dublin = lab.gateway(DUBLIN)?;
    let faults = faults(dublin)?;
    ensure!(
        faults.iter().any(|fault| fault["check"] == "coordinator"),
        "{faults:?}"
    );
    Ok(())
}

pub(crate) fn doctor_tells_before_a_join_what_the_machine_lacks_and_who_has_the_agents_names(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN])?;
    let api = lab.start_coordinator()?;
    let created: CreatedSite = api.post("/sites", &DUBLIN.body())?;
    let join_string = created.join_token.join_string;
    let dublin = lab.gateway(DUBLIN)?;
    let said = dublin.agent_says(&["doctor"])?;
    ensure!(
        said.contains("not a node yet") && said.contains("doctor FILE") && !said.contains("FAULT"),
        "{said}"
    );
    let said = dublin.agent_says(&["doctor", join_string.reveal()])?;
    ensure!(
        said.contains("coordinator: answers") && said.contains("clock: differs"),
        "{said}"
    );

    dublin.host.run("ip link add wattle0 type bridge")?;
    dublin.host.run("nft add table inet wattle")?;
    let taken = [
        ("wattle0 is an interface of kind bridge", "--interface"),
        ("of another program", "nft delete table inet wattle"),
    ];
    let expect_both = |lab: &Lab| -> Result<()> {
        let faults = faults(lab.gateway(DUBLIN)?)?;
        for (what, remedy) in taken {
            let has = |fault: &Value, field: &str, words| {
                let text = fault[field].as_str();
                text.is_some_and(|text| text.contains(words))
            };
            let is_told = faults
                .iter()
                .any(|fault| has(fault, "detail", what) && has(fault, "fix", remedy));
            ensure!(is_told, "{what}: {faults:?}");
        }
        Ok(())
    };
    expect_both(&lab)?;
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    lab.gateway(DUBLIN)?.join(join_string.reveal())?;
    expect_both(&lab).context("when the machine is a node")?;
    let dublin = lab.gateway(DUBLIN)?;
    dublin.host.run("ip link del wattle0")?;
    dublin.host.run("nft delete table inet wattle")?;
    wait_for("nothing is in the way", patience(20.0), || {
        let faults = faults(dublin)?;
        ensure!(faults.is_empty(), "{faults:?}");
        Ok(())
    })
}

/// What the doctor finds broken.
fn faults(gateway: &Gateway) -> Result<Vec<Value>> {
    let output = gateway.try_agent(&["doctor", "--json"])?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let findings = said["findings"].as_array().context("no findings")?;
    let faults: Vec<_> = findings
        .iter()
        .filter(|finding| finding["severity"] == "fault")
        .cloned()
        .collect();
    same(
        &(output.status.success(), said["ok"] == true),
        &(faults.is_empty(), faults.is_empty()),
    )?;
    Ok(faults)
}
