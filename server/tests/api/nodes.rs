//! `/nodes`

use serde_json::json;

use crate::{agents::new_node, harness::Coordinator};

#[tokio::test]
async fn a_node_is_shown_with_its_keys_and_its_last_report() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]})).await;
    let shown = coordinator.get("/nodes/dublin").await.expect(200).json();
    assert_eq!(coordinator.get(&format!("/nodes/{}", node.id())).await.json(), shown);
    assert_eq!(coordinator.get("/nodes").await.json()["items"], json!([shown]));
    for (field, value) in [
        ("id", json!(node.id())),
        ("name", json!("dublin")),
        ("site_name", json!("dublin")),
        ("state", json!("active")),
        ("tunnel_address", json!("10.99.0.1")),
        ("wireguard_key", json!(node.machine.wireguard_key())),
        ("identity_key", json!(node.machine.identity_key())),
        ("endpoint", json!("203.0.113.10:51820")),
        ("agent_version", json!("1.2.3")),
        ("last_report", json!(null)),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    node.report(&coordinator, json!({"applied": "1.2", "device": "kernel", "links": [], "problems": ["no nft"]})).await.expect(204);
    let report = &coordinator.get("/nodes/dublin").await.json()["last_report"];
    assert_eq!((&report["applied"], &report["device"], &report["problems"]), (&json!("1.2"), &json!("kernel"), &json!(["no nft"])));
}

#[tokio::test]
async fn a_revoked_node_is_gone_for_every_coordinator() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    // It may turn to the other coordinator before that has heard of it.
    node.report(&another, json!({"applied": "1.2", "device": "kernel", "links": []})).await.expect(204);
    coordinator.delete("/nodes/dublin").await.expect(204);
    coordinator.delete("/nodes/dublin").await.expect(404);
    coordinator.get("/nodes/dublin").await.expect(404);
    node.report(&coordinator, json!({"applied": "1.2", "device": "kernel", "links": []})).await.expect(401);
    another.server.app.copy.refresh().await;
    node.report(&another, json!({"applied": "1.2", "device": "kernel", "links": []})).await.expect(401);
    assert_eq!(coordinator.get("/sites/dublin").await.json()["nodes"], json!([]));
}
