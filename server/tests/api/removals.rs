//! `/removals`

use serde_json::{Value, json};
use wattle_mesh::agent::admission::Operator;
use wattle_wire::{
    admin::{Node, RemovedNode},
    ids::MeshId,
    lock::SignedRemoval,
    stream::{StreamMessage, Tombstone, ViewChange},
};

use crate::{agents::new_node, harness::Coordinator, nodes::signed};

/// What an operator signs of the nodes that the interface lists as removed, or that a node holds.
pub(crate) async fn signed_removals(
    coordinator: &Coordinator,
    operator: &Operator,
) -> Vec<SignedRemoval> {
    let items = async |path: &str| coordinator.get(path).await.expect(200).json()["items"].clone();
    let removed: Vec<RemovedNode> = serde_json::from_value(items("/removals").await).unwrap();
    let nodes: Vec<Node> = serde_json::from_value(items("/nodes").await).unwrap();
    let mesh = coordinator.server.app.settings.mesh;
    let candidates = operator.removal_candidates(mesh, &removed, &nodes);
    let sign = |candidate| operator.sign_removal(mesh, candidate, 1_800_000_000);
    candidates.iter().map(|one| sign(one).unwrap()).collect()
}

fn operator() -> Operator {
    Operator::new(&[7; 32]).unwrap()
}

#[tokio::test]
async fn signed_removals_are_kept_and_told_with_the_tombstone_in_one_revision_and_once() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let admissions = signed(&coordinator, &operator()).await;
    coordinator
        .post("/admissions", json!({ "admissions": admissions }))
        .await
        .expect(204);
    coordinator.delete("/nodes/frankfurt").await.expect(204);
    coordinator.delete("/sites/cork").await.expect(204);
    let listed = coordinator.get("/removals").await.expect(200).json()["items"].clone();
    for (index, node, name, site) in [
        (0, &frankfurt, "frankfurt", json!("frankfurt")),
        (1, &cork, "cork", Value::Null),
    ] {
        let shown = &listed[index];
        assert_eq!(shown["id"], json!(node.id()), "{listed}");
        assert_eq!((&shown["name"], &shown["site_name"]), (&json!(name), &site));
        assert_eq!(shown["identity_key"], json!(node.machine.identity_key()));
        assert!(shown["admission"].is_object() && shown["removed_at"].is_string());
        assert_eq!(shown["removal"], Value::Null);
    }

    let removals = signed_removals(&coordinator, &operator()).await;
    let position = coordinator.server.app.mesh_cache.position();
    let mut stream = dublin.follow(&coordinator, Some(position)).await;
    stream.next().await;
    coordinator
        .post("/removals", json!({ "removals": removals }))
        .await
        .expect(204);
    let tombstones: Vec<_> = [&frankfurt, &cork]
        .iter()
        .zip(&removals)
        .map(|(node, removal)| Tombstone {
            node: node.id(),
            removal: Some(removal.clone()),
        })
        .collect();
    let Some(StreamMessage::Delta { since, changes, .. }) = stream.news().await else {
        panic!("no delta")
    };
    let told = tombstones.iter().cloned().map(ViewChange::PeerRemoved);
    assert_eq!((since, changes), (position, told.collect::<Vec<_>>()));

    // The same again is nothing new, and there is nothing left to sign.
    coordinator
        .post("/removals", json!({ "removals": removals }))
        .await
        .expect(204);
    let now = coordinator.server.app.mesh_cache.position();
    assert_eq!(now.revision, position.revision + 1);
    let listed = coordinator.get("/removals?limit=1").await.json();
    assert_eq!(listed["items"][0]["removal"], json!(removals[0]));
    assert!(listed["next_cursor"].is_string());
    assert_eq!(signed_removals(&coordinator, &operator()).await, []);
    let events = coordinator.get("/events").await.json();
    for event in &events["items"].as_array().unwrap()[..2] {
        assert_eq!(event["action"], "node.confirm_removal");
        let sentence = event["sentence"].as_str().unwrap();
        assert!(sentence.starts_with("confirmed that node "), "{sentence}");
    }

    // Who comes later gets it with the snapshot, whichever coordinator it turns to.
    for coordinator in [&coordinator, &coordinator.another().await] {
        let message = dublin.follow(coordinator, None).await.next().await;
        let Some(StreamMessage::Snapshot { removed, .. }) = message else {
            panic!("no snapshot")
        };
        assert_eq!(removed, tombstones);
    }
}

#[tokio::test]
async fn a_removal_that_is_not_signed_or_of_nobody_who_is_out_of_the_mesh_is_refused_with_all_others()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    for name in ["frankfurt", "cork", "galway"] {
        new_node(&coordinator, json!({ "name": name })).await;
    }
    for node in ["frankfurt", "cork"] {
        coordinator
            .delete(&format!("/nodes/{node}"))
            .await
            .expect(204);
    }
    let removals = signed_removals(&coordinator, &operator()).await;
    let [good, other] = &removals[..] else {
        panic!("two removals")
    };
    let mesh = coordinator.server.app.settings.mesh;
    let as_removed = |node: &Value| -> RemovedNode {
        let (id, identity) = (&node["id"], &node["identity_key"]);
        let removed = json!({
            "id": id, "identity_key": identity, "name": null, "site_name": null,
            "removed_at": null, "admission": null, "removal": null
        });
        serde_json::from_value(removed).unwrap()
    };
    let sign = |mesh: MeshId, removed: RemovedNode| {
        let candidates = operator().removal_candidates(mesh, &[removed], &[]);
        operator().sign_removal(mesh, &candidates[0], 1).unwrap()
    };
    let galway = as_removed(&coordinator.get("/nodes/galway").await.json());
    let cork = coordinator.get("/removals").await.json()["items"][1].clone();
    let with_identity_of_another = RemovedNode {
        identity_key: galway.identity_key,
        ..as_removed(&cork)
    };
    let lost = RemovedNode {
        id: uuid::Uuid::now_v7().to_string().parse().unwrap(),
        ..galway.clone()
    };
    for bad in [
        SignedRemoval {
            removal: other.removal.replace("1800000000", "1800000001"),
            ..other.clone()
        },
        SignedRemoval {
            removal: " ".repeat(SignedRemoval::LONGEST + 1),
            ..other.clone()
        },
        sign(MeshId(uuid::Uuid::nil()), as_removed(&cork)),
        sign(mesh, with_identity_of_another),
        sign(mesh, galway),
        sign(mesh, lost.clone()),
    ] {
        let answer = coordinator
            .post("/removals", json!({ "removals": [good, bad] }))
            .await;
        let (status, code, field) = answer.problem();
        let expected = (422, "invalid_removal", Some("removals[1]"));
        assert_eq!((status, code.as_str(), field.as_deref()), expected);
    }
    for wrong in [json!([good, good]), json!([])] {
        let answer = coordinator.post("/removals", json!({ "removals": wrong }));
        assert_eq!(answer.await.problem().0, 422);
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM removals").await, 0);

    // A node that the database does not have, and that a gateway has all the same.
    let mut report = json!({"applied": "1.4", "device": "kernel", "links": []});
    report["held"] = json!({"total": 1, "peers": [{
        "node": lost.id, "name": "lost", "identity": lost.identity_key, "because": "lost"}]});
    dublin.report(&coordinator, report).await.expect(204);
    let held = "SELECT count(*) FROM node_reports WHERE held IS NOT NULL";
    coordinator.until(held, 1).await;
    // It takes part under another id by now, so an operator is not even asked.
    assert_eq!(signed_removals(&coordinator, &operator()).await.len(), 2);
    coordinator.delete("/nodes/galway").await.expect(204);
    let removals = signed_removals(&coordinator, &operator()).await;
    assert_eq!(removals.len(), 4);
    coordinator
        .post("/removals", json!({ "removals": removals }))
        .await
        .expect(204);
    let message = dublin.follow(&coordinator, None).await.next().await;
    let Some(StreamMessage::Snapshot { removed, .. }) = message else {
        panic!("no snapshot")
    };
    let is_told = |tombstone: &Tombstone| tombstone.node == lost.id && tombstone.removal.is_some();
    assert!(removed.iter().any(is_told), "{removed:?}");
    let listed = coordinator.get("/removals").await.json()["items"].clone();
    assert_eq!(listed[3]["name"], Value::Null);
    assert_eq!(listed[3]["identity_key"], json!(lost.identity_key));
    assert_eq!(signed_removals(&coordinator, &operator()).await, []);
    assert_eq!(
        coordinator.another().await.get("/nodes").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn e4_who_removes_a_node_is_told_which_gateways_keep_it_until_an_operator_signs() {
    let coordinator = Coordinator::start().await;
    let report =
        |locked: bool| json!({"applied": "1.4", "device": "kernel", "links": [], "locked": locked});
    let mut nodes = Vec::new();
    for name in ["dublin", "frankfurt", "cork", "galway", "athlone"] {
        nodes.push(new_node(&coordinator, json!({ "name": name })).await);
    }
    for (node, locked) in nodes.iter().zip([true, true, false, true, true]) {
        node.report(&coordinator, report(locked)).await.expect(204);
    }
    let locked = "SELECT count(*) FROM node_reports WHERE locked";
    coordinator.until(locked, 4).await;
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["locked"],
        json!(true)
    );
    // Nobody let it in, so nobody keeps it.
    coordinator.delete("/nodes/athlone").await.expect(204);
    let admissions = signed(&coordinator, &operator()).await;
    coordinator
        .post("/admissions", json!({ "admissions": admissions }))
        .await
        .expect(204);
    let dry = coordinator
        .delete("/nodes/frankfurt?dry_run=true")
        .await
        .expect(200);
    let warning = &dry.json()["warnings"][0];
    assert_eq!(warning["code"], "removal_waits_for_signature");
    let detail = warning["detail"].as_str().unwrap();
    assert!(detail.ends_with(": dublin, galway"), "{detail}");
    for (path, keepers) in [
        ("/nodes/frankfurt", &["dublin", "galway"][..]),
        ("/sites/galway", &["dublin"]),
    ] {
        let answer = coordinator.delete(path).await.expect(200).json();
        let waits = json!({"count": keepers.len(), "names": keepers});
        assert_eq!(answer, json!({ "waits_for_signature": waits }));
        let events = coordinator.get("/events?limit=1").await.json();
        let sentence = events["items"][0]["sentence"].as_str().unwrap();
        let told = format!("; stays until signed on {}", keepers.join(", "));
        assert!(sentence.ends_with(&told), "{sentence}");
    }
    // Nobody with the lock is left beside it.
    coordinator.delete("/nodes/dublin").await.expect(204);
}

#[tokio::test]
async fn e19_a_node_that_gateways_know_as_removed_is_listed_told_once_and_revoked_by_one_call() {
    let coordinator = Coordinator::start().await;
    let mut nodes = Vec::new();
    for name in ["dublin", "frankfurt", "cork"] {
        nodes.push(new_node(&coordinator, json!({ "name": name })).await);
    }
    let (cork, nobody) = (nodes[2].id(), uuid::Uuid::now_v7());
    let report = |returned: Value| json!({"applied": "1.4", "device": "kernel", "links": [], "returned": returned});
    let returned = report(json!([cork, nobody]));
    for node in &nodes {
        // Of itself a node says nothing, and nothing of strangers.
        node.report(&coordinator, returned.clone())
            .await
            .expect(204);
    }
    let told = "SELECT count(*) FROM events WHERE action = 'node.returned'";
    coordinator.until(told, 1).await;
    let says = "SELECT count(*) FROM node_reports WHERE returned <> '[]'";
    coordinator.until(says, 2).await;
    for coordinator in [&coordinator, &coordinator.another().await] {
        let app = &coordinator.server.app;
        app.reports.read_accounts(&app.db).await.unwrap();
        let listed = coordinator.get("/nodes").await.json()["items"].clone();
        let removed_on: Vec<_> = listed.as_array().unwrap().iter().collect();
        let expected = json!({"count": 2, "names": ["dublin", "frankfurt"]});
        assert_eq!(removed_on[2]["removed_on"], expected, "{listed}");
        assert!(
            removed_on[..2]
                .iter()
                .all(|node| node["removed_on"].is_null())
        );
    }
    let many: Vec<_> = (0..65).map(|_| uuid::Uuid::now_v7()).collect();
    let (status, _, field) = nodes[0]
        .report(&coordinator, report(json!(many)))
        .await
        .problem();
    assert_eq!((status, field.as_deref()), (422, Some("returned")));
    nodes[0]
        .report(&coordinator, report(json!([])))
        .await
        .expect(204);
    let shown = coordinator.get("/nodes/cork").await.json();
    let expected = json!({"count": 1, "names": ["frankfurt"]});
    assert_eq!(shown["removed_on"], expected);
    coordinator.delete("/nodes/cork").await.expect(204);
    coordinator.get("/nodes/cork").await.expect(404);
    assert_eq!(coordinator.count(told).await, 1);
}

/// A gateway's report that it holds a node which the database has lost.
pub(crate) fn holding_lost(node: &Node, statement: &Value, site_name: &str) -> Value {
    let lost = json!({"site_name": site_name, "statement": statement});
    json!({"applied": "1.4", "device": "kernel", "links": [], "held": {"total": 1, "peers": [{
        "node": node.id, "name": node.name, "identity": node.identity_key, "because": "lost",
        "lost": lost}]}})
}

/// Takes a node and all that is known of it out of the database, as a restored backup does. Gives
/// its statement.
pub(crate) async fn lose(coordinator: &Coordinator, name: &str) -> Value {
    let statement = "SELECT json_build_object('statement', statement, 'signature', \
        translate(encode(statement_signature, 'base64'), E'\\n', '')) FROM nodes WHERE name = $1";
    let mut connection = coordinator.server.app.db.begin().await.unwrap();
    let statement = sqlx::query_scalar::<_, Value>(statement)
        .bind(name)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    for lose in [
        "UPDATE tunnel_addresses SET node = NULL WHERE node = (SELECT id FROM nodes WHERE name = $1)",
        "DELETE FROM links WHERE (SELECT id FROM nodes WHERE name = $1) IN (a, b)",
        "DELETE FROM node_reports WHERE node = (SELECT id FROM nodes WHERE name = $1)",
        "DELETE FROM nodes WHERE name = $1",
        "UPDATE mesh SET epoch = epoch + 1 WHERE $1 <> ''",
    ] {
        sqlx::query(lose)
            .bind(name)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    connection.commit().await.unwrap();
    coordinator.server.app.mesh_cache.refresh().await;
    statement
}

#[tokio::test]
async fn e20_a_node_that_a_restored_database_lost_is_taken_in_again_by_its_own_statement_alone() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let before: Node = serde_json::from_value(coordinator.get("/nodes/cork").await.json()).unwrap();
    let galway = new_node(&coordinator, json!({"name": "galway"})).await;
    let statement = lose(&coordinator, "cork").await;
    coordinator.get("/nodes/cork").await.expect(404);
    let ask = async |node: &Node| {
        let nodes = json!([{"node": node.id, "identity": node.identity_key}]);
        coordinator
            .post("/nodes/readmit", json!({ "nodes": nodes }))
            .await
    };
    let refused = async |node: &Node| {
        let (status, code, field) = ask(node).await.problem();
        assert_eq!(
            (status, field.as_deref()),
            (422, Some("nodes[0]")),
            "{code}"
        );
    };
    // Nobody holds it.
    refused(&before).await;
    let holds = "SELECT count(*) FROM node_reports WHERE held->'peers'->0->'lost' IS NOT NULL";
    let hold = async |report: Value| {
        dublin.report(&coordinator, report).await.expect(204);
        coordinator.until(holds, 1).await;
    };
    // Of another identity, of another's statement, of a site that is not there, of a known node.
    hold(holding_lost(&before, &statement, "cork")).await;
    let other = Node {
        identity_key: galway.machine.identity_key(),
        ..before.clone()
    };
    refused(&other).await;
    hold(holding_lost(&other, &statement, "cork")).await;
    refused(&other).await;
    hold(holding_lost(&before, &statement, "nowhere")).await;
    refused(&before).await;
    let known = Node {
        id: galway.id(),
        ..before.clone()
    };
    hold(holding_lost(&known, &statement, "cork")).await;
    refused(&known).await;

    hold(holding_lost(&before, &statement, "cork")).await;
    ask(&before).await.expect(204);
    let after: Node = serde_json::from_value(coordinator.get("/nodes/cork").await.json()).unwrap();
    assert_eq!(after.id, before.id);
    assert_eq!(after.wireguard_key, before.wireguard_key);
    assert_eq!(after.tunnel_address, before.tunnel_address);
    // It is who it was, with the keys that it has.
    cork.report(
        &coordinator,
        json!({"applied": "2.6", "device": "kernel", "links": []}),
    )
    .await
    .expect(204);
    let events = coordinator.get("/events?limit=1").await.json();
    let sentence = events["items"][0]["sentence"].as_str().unwrap();
    let begins = "took in node cork of site cork again, which the database had lost";
    assert!(sentence.starts_with(begins), "{sentence}");
    refused(&before).await;
    let none = coordinator
        .post("/nodes/readmit", json!({"nodes": []}))
        .await;
    assert_eq!(none.problem().0, 422);
}
