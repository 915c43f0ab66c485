//! What operators see of a mesh: metrics.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Lab, patience,
    process::Daemon,
    site::{DUBLIN, FRANKFURT, GUIDE},
    wait::same,
    wait_for,
};
use wattle_wire::admin::CreatedSite;

const AGENT_METRICS: &str = "127.0.0.1:9586";

pub(crate) fn a_prometheus_scrapes_agent_and_coordinator_and_promtool_finds_no_fault(folder: &Path) -> Result<()> {
    let mut lab = Lab::build(folder, &GUIDE)?;
    let api = lab.start_coordinator()?;
    for gateway in &mut lab.gateways {
        gateway.start_agent_under(&["env", &format!("WATTLE_METRICS={AGENT_METRICS}")])?;
        let created: CreatedSite = api.post("/sites", &gateway.site.body())?;
        gateway.join(created.join_token.join_string.reveal())?;
    }
    wait_for("every LAN host pings every other", patience(20.0), || lab.ping_all())?;
    let dublin = lab.gateway(DUBLIN)?;
    let up = |text: &str| text.lines().filter(|line| line.starts_with("wattle_peer_up{") && line.ends_with(" 1")).count();
    let text = wait_for("the agent tells of two peers that are up", patience(15.0), || {
        let text = dublin.host.run(&format!("curl --silent --show-error --fail http://{AGENT_METRICS}/metrics"))?;
        same(&up(&text), &2)?;
        Ok(text)
    })?;
    dublin.host.run_with("promtool check metrics", &text)?;
    for begin in [
        r#"wattle_agent_connected{site="dublin"} 1"#,
        r#"wattle_interface_up{device="wattle0",site="dublin"} 1"#,
        r#"wireguard_device_info{device="wattle0",public_key=""#,
        r#"wireguard_peer_last_handshake_seconds{device="wattle0",peer="frankfurt",peer_site="frankfurt",public_key=""#,
        r#"wireguard_peer_allowed_ips_info{allowed_ips="10.20.0.0/24",device="wattle0",peer="frankfurt""#,
    ] {
        ensure!(text.lines().any(|line| line.starts_with(begin)), "nothing begins with {begin}: {text}");
    }
    ensure!(!text.contains(&FRANKFURT.address.to_string()), "an endpoint is in a label: {text}");

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
    prometheus.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display())).arg("--web.listen-address=127.0.0.1:9090");
    let _prometheus = Daemon::start(prometheus, &folder.join("prometheus.log"))?;
    for (query, expected) in [
        ("sum(wattle_peer_up)", "2"),
        ("sum(wattle_links{state=%22up%22})", "3"),
        ("wattle_agents_connected", "3"),
        ("count(time()-wireguard_peer_last_handshake_seconds<180)", "2"),
    ] {
        wait_for(query, patience(30.0), || {
            let answer =
                dublin.host.run(&format!("curl --silent --show-error --globoff http://127.0.0.1:9090/api/v1/query?query={query}"))?;
            let answer: Value = serde_json::from_str(&answer)?;
            let value = answer.pointer("/data/result/0/value/1").and_then(Value::as_str).with_context(|| answer.to_string())?;
            same(value, expected)
        })?;
    }
    Ok(())
}
