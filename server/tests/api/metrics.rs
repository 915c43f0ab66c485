//! `/metrics`, as Prometheus takes it.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    agents::new_node,
    harness::{Coordinator, SOON, send},
};

/// The value of a sample.
fn value(text: &str, sample: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn metrics_say_how_the_coordinator_and_the_mesh_are_and_promtool_finds_no_fault() {
    let coordinator = Coordinator::start().await;
    let anonymous = send(coordinator.client.get(coordinator.url("/metrics"))).await;
    assert_eq!(anonymous.problem().0, 401);
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let mut stream = dublin.follow(&coordinator, None).await;
    stream.next().await.unwrap();
    let report = |from: &str, peer, age: Option<u64>| {
        let link = json!({"peer": peer, "handshake_age_s": age, "received_bytes": 1, "sent_bytes": 2, "endpoint": null});
        json!({"applied": from, "device": "kernel", "links": [link]})
    };
    dublin
        .report(&coordinator, report("1.3", frankfurt.id(), Some(1)))
        .await
        .expect(204);
    dublin
        .report(&coordinator, report("1.4", frankfurt.id(), Some(1)))
        .await
        .expect(204);
    frankfurt
        .report(&coordinator, report("1.2", dublin.id(), Some(1)))
        .await
        .expect(204);

    let deadline = Instant::now() + SOON;
    let text = loop {
        let answer = coordinator.get("/metrics").await.expect(200);
        assert!(
            answer.headers["content-type"]
                .to_str()
                .unwrap()
                .starts_with("text/plain; version=0.0.4")
        );
        if value(&answer.text, r#"wattle_links{state="up"}"#) == Some(1.0) {
            break answer.text;
        }
        assert!(Instant::now() < deadline, "{}", answer.text);
        sleep(Duration::from_millis(50)).await;
    };
    for (sample, expected) in [
        ("wattle_revision", 4.0),
        ("wattle_epoch", 1.0),
        ("wattle_copy_fresh", 1.0),
        ("wattle_sites", 2.0),
        (r#"wattle_nodes{state="active"}"#, 2.0),
        (r#"wattle_links{state="down"}"#, 0.0),
        ("wattle_agents_connected", 1.0),
        ("wattle_mailbox_letters", 0.0),
        ("wattle_slowest_agent_lag_revisions", 0.0),
        ("wattle_propagation_seconds_count", 1.0),
        (
            r#"wattle_requests_total{method="POST",route="/agent/report",status="204"}"#,
            3.0,
        ),
    ] {
        assert_eq!(value(&text, sample), Some(expected), "{sample} in {text}");
    }

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn what_callers_make_up_makes_no_new_series() {
    let coordinator = Coordinator::start().await;
    let series = async || {
        let text = coordinator.get("/metrics").await.expect(200).text;
        text.lines()
            .filter(|line| line.starts_with("wattle_requests_total"))
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    for path in ["/nowhere", "/sites/x"] {
        coordinator.get(path).await.expect(404);
    }
    let (_, before) = (series().await, series().await);
    for number in 0..20 {
        coordinator
            .get(&format!("/nowhere/{number}"))
            .await
            .expect(404);
        coordinator
            .get(&format!("/sites/{number}"))
            .await
            .expect(404);
        let method = reqwest::Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
        send(coordinator.request(method, "/nowhere"))
            .await
            .expect(404);
    }
    assert_eq!(series().await, before);
}

/// A folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn each_alert_of_the_package_fires_when_it_should_and_not_else() {
    let folder = repository("packaging/prometheus");
    let promtool = Command::new("promtool")
        .args(["test", "rules", "wattle.rules.test.yml"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(
        promtool.status.success(),
        "{}{}",
        String::from_utf8_lossy(&promtool.stdout),
        String::from_utf8_lossy(&promtool.stderr)
    );
    let rules = fs::read_to_string(folder.join("wattle.rules.yml")).unwrap();
    let tests = fs::read_to_string(folder.join("wattle.rules.test.yml")).unwrap();
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        assert!(
            tests.contains(&format!(
                "alertname: {alert}\n        exp_alerts:\n          - "
            )),
            "no test in which {alert} fires"
        );
    }
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let code = [
        "server/src/state/metrics.rs",
        "server/src/routes/metrics.rs",
        "agent/src/metrics.rs",
    ]
    .map(|path| fs::read_to_string(repository(path)).unwrap())
    .concat();
    let dashboard: Value = serde_json::from_str(
        &fs::read_to_string(repository("packaging/grafana/wattle.json")).unwrap(),
    )
    .unwrap();
    let targets = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut asked: String = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned() + "\n")
        .collect();
    let rules = fs::read_to_string(repository("packaging/prometheus/wattle.rules.yml")).unwrap();
    asked.extend(
        rules
            .lines()
            .filter(|line| line.trim().starts_with("expr:")),
    );
    let words = asked.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names: BTreeSet<_> = words
        .filter(|word| word.starts_with("wattle_") || word.starts_with("wireguard_"))
        .collect();
    assert!(names.len() > 10);
    for name in names {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(code.contains(&format!("\"{name}\"")), "nobody tells {name}");
    }
}

/// A Prometheus that ends with this value.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_prometheus_scrapes_the_coordinator_with_an_api_token() {
    let coordinator = Coordinator::start().await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), &coordinator.token).unwrap();
    // As packaging/prometheus/prometheus.yml has it, but for the certificate, which a test need not
    // know.
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{
            "job_name": "wattle-server",
            "scheme": "https",
            "authorization": {"credentials_file": folder.path().join("token")},
            "tls_config": {"insecure_skip_verify": true},
            "static_configs": [{"targets": [coordinator.server.address.to_string()]}],
        }],
    });
    fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let child = Command::new("prometheus")
        .arg(format!(
            "--config.file={}",
            folder.path().join("prometheus.yml").display()
        ))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.path().join("data").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus has to be installed: scripts/setup");
    let _prometheus = Prometheus(child);
    let client = reqwest::Client::new();
    let deadline = Instant::now() + 3 * SOON;
    loop {
        let query = client
            .get(format!(
                "http://{address}/api/v1/query?query=wattle_revision"
            ))
            .send()
            .await;
        let found = match query {
            Ok(answer) => answer.json::<Value>().await.unwrap_or_default(),
            Err(_) => Value::Null,
        };
        if found["data"]["result"][0]["value"][1] == "0" {
            return;
        }
        assert!(Instant::now() < deadline, "{found}");
        sleep(Duration::from_millis(100)).await;
    }
}
