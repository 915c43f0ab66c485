//! `/links` and `/agent/report`

use serde_json::{Value, json};
use wattle_wire::ids::NodeId;

use crate::{
    agents::{Node, new_node},
    harness::Coordinator,
};

fn said(peer: NodeId, age: Value) -> Value {
    json!({"peer": peer, "handshake_age_s": age, "received_bytes": 10, "sent_bytes": 20, "endpoint": "198.51.100.20:51820"})
}

fn report(links: &[Value]) -> Value {
    json!({"applied": "1.4", "device": "userspace", "links": links})
}

async fn states(coordinator: &Coordinator) -> Vec<String> {
    let links = coordinator.get("/links").await.expect(200).json();
    links["items"].as_array().unwrap().iter().map(|link| link["state"].as_str().unwrap().to_owned()).collect()
}

async fn two_nodes(coordinator: &Coordinator) -> (Node, Node) {
    (new_node(coordinator, json!({"name": "dublin"})).await, new_node(coordinator, json!({"name": "frankfurt"})).await)
}

#[tokio::test]
async fn a_link_is_up_when_both_ends_say_so() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    assert_eq!(states(&coordinator).await, ["never"]);
    dublin.report(&coordinator, report(&[said(frankfurt.id(), json!(3))])).await.expect(204);
    assert_eq!(states(&coordinator).await, ["degraded"]);
    // The other end follows another coordinator; the database joins what they say.
    frankfurt.report(&another, report(&[said(dublin.id(), json!(5))])).await.expect(204);
    assert_eq!((states(&coordinator).await, states(&another).await), (vec!["up".to_owned()], vec!["up".to_owned()]));
    let link = &coordinator.get("/links").await.json()["items"][0];
    let end = &link["ends"][0];
    assert_eq!((&end["name"], &end["up"], &end["received_bytes"]), (&json!("dublin"), &json!(true), &json!(10)));
    assert_eq!(end["peer_endpoint"], "198.51.100.20:51820");
    assert!(link["since"].is_string() && end["last_handshake_at"].is_string());
    dublin.report(&coordinator, report(&[said(frankfurt.id(), json!(181))])).await.expect(204);
    assert_eq!(states(&coordinator).await, ["degraded"]);
    frankfurt.report(&coordinator, report(&[said(dublin.id(), json!(null))])).await.expect(204);
    assert_eq!(states(&coordinator).await, ["down"]);
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(states(&coordinator).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_an_end_repeats_is_not_written_again() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let up = report(&[said(frankfurt.id(), json!(3))]);
    dublin.report(&coordinator, up.clone()).await.expect(204);
    let version = "SELECT sum(xmin::text::bigint)::bigint FROM (SELECT xmin FROM links UNION ALL SELECT xmin FROM node_reports) AS rows";
    let written = coordinator.count(version).await;
    for _ in 0..3 {
        dublin.report(&coordinator, up.clone()).await.expect(204);
    }
    assert_eq!(coordinator.count(version).await, written);
    assert_eq!(coordinator.count("SELECT revision FROM mesh").await, 4, "health is not configuration");
}

#[tokio::test]
async fn a_report_speaks_for_its_own_node_and_its_own_links() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    new_node(&coordinator, json!({"name": "new-york"})).await;
    let stranger = NodeId(uuid::Uuid::now_v7());
    let links =
        [said(stranger, json!(1)), said(dublin.id(), json!(1)), said(frankfurt.id(), json!(u64::MAX)), said(frankfurt.id(), json!(1))];
    dublin.report(&coordinator, report(&links)).await.expect(204);
    assert_eq!(coordinator.count("SELECT count(*) FROM links").await, 1);
    assert_eq!(states(&coordinator).await, ["degraded", "never", "never"]);
    let first = coordinator.get("/links?limit=2").await.json();
    let second = coordinator.get(&format!("/links?cursor={}", first["next_cursor"].as_str().unwrap())).await.json();
    assert_eq!((first["items"].as_array().unwrap().len(), second["items"].as_array().unwrap().len()), (2, 1));
}

#[tokio::test]
async fn malformed_reports_are_refused() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let many: Vec<_> = (0..18).map(|_| said(frankfurt.id(), json!(1))).collect();
    let with = |field: &str, value: Value| {
        let mut report = report(&[said(frankfurt.id(), json!(1))]);
        report[field] = value;
        report
    };
    for (body, field) in [
        (report(&many), "links"),
        (with("problems", json!(vec!["x"; 17])), "problems"),
        (with("problems", json!(["a\u{1b}[2J"])), "problems[0]"),
        (with("node", json!(frankfurt.id())), "node"),
        (with("applied", json!("1")), "applied"),
        (with("device", json!("quantum")), "device"),
        (report(&[said(frankfurt.id(), json!(-1))]), "links[0].handshake_age_s"),
        (
            report(&[json!({"peer": frankfurt.id(), "handshake_age_s": 1, "received_bytes": -1, "sent_bytes": 0, "endpoint": null})]),
            "links[0].received_bytes",
        ),
    ] {
        let (status, _, named) = dublin.report(&coordinator, body).await.problem();
        assert_eq!((status, named.as_deref()), (422, Some(field)));
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM links").await, 0);
}
