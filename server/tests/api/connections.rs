//! Gateways that are silent or behind or keep their LANs from others, as every coordinator tells it.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use wattle_mesh::health::connection::Sign;
use wattle_server::state::reports::Signs;

use crate::{
    agents::{Node, new_node},
    harness::Coordinator,
    page::signed_in,
};

async fn reports(coordinator: &Coordinator, node: &Node, applied: &str, problems: Value) {
    let report = json!({"applied": applied, "device": "kernel", "links": [],
        "problems": problems});
    node.report(coordinator, report).await.expect(204);
}

async fn connection(coordinator: &Coordinator, node: &str) -> (String, Value) {
    let node = coordinator
        .get(&format!("/nodes/{node}"))
        .await
        .expect(200)
        .json();
    let connection = &node["connection"];
    (
        connection["state"].as_str().unwrap().to_owned(),
        connection["since"].clone(),
    )
}

async fn until(coordinator: &Coordinator, node: &str, state: &str) -> Value {
    for _ in 0..300 {
        let (now, since) = connection(coordinator, node).await;
        if now == state {
            return since;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!(
        "{node} is not {state}: {:?}",
        connection(coordinator, node).await
    );
}

#[tokio::test]
async fn a_gateway_that_is_behind_or_has_problems_is_told_of_by_every_coordinator_and_never_all_up()
{
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    coordinator
        .post("/sites/frankfurt/join-tokens", json!({}))
        .await
        .expect(201);
    assert_eq!(
        connection(&coordinator, "dublin").await,
        ("connected".to_owned(), Value::Null)
    );
    reports(&coordinator, &dublin, "1.4", json!([])).await;
    reports(&coordinator, &frankfurt, "1.1", json!([])).await;
    coordinator
        .until("SELECT count(*) FROM node_reports", 2)
        .await;
    let aged = "WITH aged AS (UPDATE changes SET at = now() - interval '10 minutes' RETURNING 1)
        SELECT count(*) FROM aged";
    coordinator.count(aged).await;
    let browser = signed_in(&coordinator).await;
    for told_by in [&coordinator, &another] {
        let since = until(told_by, "frankfurt", "behind").await;
        let since: chrono::DateTime<Utc> = since.as_str().unwrap().parse().unwrap();
        let ago = (Utc::now() - since).num_seconds();
        assert!((600..700).contains(&ago), "{ago} s");
        assert_eq!(connection(told_by, "dublin").await.0, "connected");
        let metrics = told_by.get("/metrics").await.text;
        for (state, agents) in [("connected", 1), ("silent", 0), ("behind", 1)] {
            let line = format!("\nwattle_agents{{state=\"{state}\"}} {agents}\n");
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
    }
    browser
        .see("#sentence", "frankfurt is behind for 10 min")
        .await;
    browser.see(".attention", "behind").await;
    browser.keep("behind").await;

    // Who caught up is connected at once where it says so; what it cannot carry out is told.
    reports(
        &coordinator,
        &frankfurt,
        "1.4",
        json!([{"code": "unreadable", "words": "the interface wattle0 is missing"}]),
    )
    .await;
    assert_eq!(
        connection(&coordinator, "frankfurt").await,
        ("connected".to_owned(), Value::Null)
    );
    browser.see("#sentence", "frankfurt has problems").await;
    browser
        .see(".attention", "the interface wattle0 is missing")
        .await;
    assert!(!browser.text("#sentence").await.contains("all up"));
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_gateway_of_which_no_coordinator_heard_is_silent_since_it_was_last_heard_of() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let (minute, applied) = (TimeDelta::minutes(1), "1.2".parse().unwrap());
    let last = Utc::now() - minute * 10;
    // The coordinator reads the signs of nodes again and again, and has listened for a moment only.
    let silent = async || {
        let sign = Sign {
            at: last,
            missed_since: None,
        };
        coordinator.server.app.reports.note_signs(Signs {
            of: [(dublin.id(), (sign, applied))].into(),
            listening_since: Some(last - minute),
        });
        connection(&coordinator, "dublin").await
    };
    let mut found = silent().await;
    while found.0 != "silent" {
        found = silent().await;
    }
    assert_eq!(found.1, json!(last));
    until(&coordinator, "dublin", "connected").await;
}

/// What a link and its two nodes say of the LANs, by one coordinator.
async fn lans(coordinator: &Coordinator) -> (Value, Vec<Value>, Value) {
    let link = coordinator.get("/links/dublin/frankfurt").await.json();
    let mut nodes = Vec::new();
    for node in ["dublin", "frankfurt"] {
        let shown = coordinator.get(&format!("/nodes/{node}")).await.json();
        nodes.push(shown["lan"].clone());
    }
    (link["lan"].clone(), nodes, link["lan_problems"].clone())
}

#[tokio::test]
async fn what_keeps_a_lan_from_others_is_told_by_every_coordinator_since_when_and_after_a_restart()
{
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    reports(&coordinator, &dublin, "1.4", json!([])).await;
    reports(&coordinator, &frankfurt, "1.4", json!([])).await;
    let ok = (json!("ok"), vec![json!("ok"); 2], Value::Null);
    assert_eq!(lans(&coordinator).await, ok);

    let problem = json!({"code": "route", "subject": "10.20.0.0/24", "lan": "degraded",
        "words": "packets leave by eth1", "remedy": "ip rule add to 10.20.0.0/24 lookup main"});
    let other = json!({"code": "state", "words": "the disk is full"});
    reports(&coordinator, &dublin, "1.4", json!([problem, other])).await;
    let first = coordinator.get("/nodes/dublin").await.json()["problems"].clone();
    assert_eq!(first.as_array().unwrap().len(), 2);
    coordinator
        .until("SELECT count(*) FROM node_reports WHERE lan_degraded", 1)
        .await;
    // Another code, which this coordinator does not know, and an effect that is not sure.
    let newer = json!({"code": "of a later version", "words": "who knows", "lan": "unproven"});
    reports(&coordinator, &dublin, "1.4", json!([problem, newer])).await;
    let named = json!([
        {"node": dublin.id(), "code": "route", "subject": "10.20.0.0/24"},
        {"node": dublin.id(), "code": "other", "subject": ""},
    ]);
    let degraded = (
        json!("degraded"),
        vec![json!("degraded"), json!("ok")],
        named,
    );
    let restarted = coordinator.another().await;
    for told_by in [&coordinator, &another, &restarted] {
        for _ in 0..300 {
            if lans(told_by).await == degraded {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(lans(told_by).await, degraded);
        let problems = told_by.get("/nodes/dublin").await.json()["problems"].clone();
        assert_eq!(
            problems[0], first[0],
            "since it began, not since it was said again"
        );
        let metrics = told_by.get("/metrics").await.text;
        for (state, gateways) in [("ok", 1), ("degraded", 1), ("unproven", 0), ("unknown", 0)] {
            let line = format!("\nwattle_gateway_lans{{state=\"{state}\"}} {gateways}\n");
            assert!(metrics.contains(&line), "{line}{metrics}");
        }
    }
    let browser = signed_in(&coordinator).await;
    browser
        .see(
            "#sentence",
            "dublin cannot reach the LANs of others: a route of this host is in the way",
        )
        .await;
    browser.see(".attention", "packets leave by eth1").await;
    browser
        .see(".attention", "ip rule add to 10.20.0.0/24 lookup main")
        .await;
    browser.go("#/links/dublin/frankfurt").await;
    browser.see("#lan", "kept from each other").await;
    browser.keep("lan").await;
    // With one peer alone it names that one's site.
    let mut with_one = problem.clone();
    with_one["peer"] = json!(frankfurt.id());
    reports(&coordinator, &dublin, "1.4", json!([with_one])).await;
    browser.go("#/").await;
    browser
        .see("#sentence", "dublin cannot reach frankfurt's LAN: a route")
        .await;

    // It goes when it goes.
    reports(&coordinator, &dublin, "1.4", json!([])).await;
    assert_eq!(lans(&coordinator).await, ok);
    coordinator
        .until(
            "SELECT count(*) FROM node_reports WHERE NOT lan_degraded AND problems = '[]'",
            2,
        )
        .await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}
