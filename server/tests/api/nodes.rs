//! `/nodes`

use ipnet::IpNet;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use wattle_mesh::agent::admission::Operator;
use wattle_wire::{
    PROTOCOL_HEADER, PROTOCOL_VERSION,
    admin::{Node, Site},
    lock::SignedAdmission,
    stream::{StreamMessage, ViewChange},
};

use crate::{
    agents::{self, new_node},
    harness::{Coordinator, SOON, send},
};

#[tokio::test]
async fn a_node_is_shown_with_its_keys_and_its_last_report() {
    let coordinator = Coordinator::start().await;
    let node = new_node(
        &coordinator,
        json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let shown = coordinator.get("/nodes/dublin").await.expect(200).json();
    assert_eq!(
        coordinator
            .get(&format!("/nodes/{}", node.id()))
            .await
            .json(),
        shown
    );
    assert_eq!(
        coordinator.get("/nodes").await.json()["items"],
        json!([shown])
    );
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
    node.report(
        &coordinator,
        json!({"applied": "1.2", "device": "kernel", "links": [], "problems": [{"code": "not_applied", "words": "no nft"}]}),
    )
    .await
    .expect(204);
    let shown = coordinator.get("/nodes/dublin").await.json();
    let report = &shown["last_report"];
    assert_eq!(
        (
            &report["applied"],
            &report["device"],
            &shown["problems"][0]["words"]
        ),
        (&json!("1.2"), &json!("kernel"), &json!("no nft"))
    );
}

#[tokio::test]
async fn e7_e10_what_a_compromised_node_says_of_prefixes_and_endpoints_reaches_no_other() {
    let coordinator = Coordinator::start().await;
    let site = |name: &str, host: u8| json!({"name": name, "endpoint": format!("203.0.113.{host}:51820"), "subnets": [format!("10.{host}.0.0/24")]});
    let (dublin, frankfurt) = (
        new_node(&coordinator, site("dublin", 10)).await,
        new_node(&coordinator, site("frankfurt", 20)).await,
    );
    let before = coordinator.get("/nodes").await.json()["items"].clone();
    let mut stream = dublin
        .follow(&coordinator, Some("1.4".parse().unwrap()))
        .await;
    stream.next().await;
    let claims = |field: &str, value: Value| {
        let mut report = json!({"applied": "1.4", "device": "kernel", "links": []});
        report[field] = value;
        report
    };
    for (field, value) in [
        ("subnets", json!(["10.10.0.0/24"])),
        ("prefixes", json!(["0.0.0.0/0"])),
        ("endpoint", json!("192.0.2.66:53")),
    ] {
        let (status, code, named) = frankfurt
            .report(&coordinator, claims(field, value))
            .await
            .problem();
        assert_eq!(
            (status, code.as_str(), named.as_deref()),
            (422, "unknown_field", Some(field))
        );
    }
    // An agent that is newer than the coordinator says what this one does not know, and is heard.
    let mut news = claims("prefixes", json!(["0.0.0.0/0"]));
    news["problems"] =
        json!([{"code": "newer_than_this", "subject": "", "words": "too new", "since": 5}]);
    let request = frankfurt.request(&coordinator, Method::POST, "/agent/report");
    let request = request.header(PROTOCOL_HEADER, PROTOCOL_VERSION + 1);
    send(request.json(&news)).await.expect(204);
    let shown = coordinator.get("/nodes/frankfurt").await.json();
    let problem = &shown["problems"][0];
    assert_eq!(
        (&problem["code"], &problem["words"]),
        (&json!("other"), &json!("too new"))
    );
    // An operator is as new as the coordinator's API, whatever the request says.
    let request = coordinator.client.post(coordinator.url("/sites"));
    let request = request
        .bearer_auth(&coordinator.token)
        .header(PROTOCOL_HEADER, 999);
    let refused = send(request.json(&json!({"name": "cork", "subnet": "10.30.0.0/24"}))).await;
    assert_eq!(refused.problem().1, "unknown_field");
    // The endpoint at which it says to see a peer is its own view, and sends nobody anywhere.
    let victim = json!([{"peer": dublin.id(), "handshake_age_s": 1, "received_bytes": 1, "sent_bytes": 1, "endpoint": "192.0.2.66:53"}]);
    frankfurt
        .report(&coordinator, claims("links", victim))
        .await
        .expect(204);
    // It has no way to ask for what is the operator's to say.
    for (method, path) in [
        (Method::PATCH, "/sites/frankfurt"),
        (Method::POST, "/admissions"),
        (Method::POST, "/import"),
    ] {
        let request = frankfurt
            .request(&coordinator, method, path)
            .json(&json!({"endpoint": "192.0.2.66:53"}));
        assert_eq!(send(request).await.problem().0, 403, "{path}");
    }
    let endpoints = |nodes: &Value| {
        nodes
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node["endpoint"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        endpoints(&coordinator.get("/nodes").await.json()["items"]),
        endpoints(&before)
    );
    assert_eq!(coordinator.count("SELECT revision FROM mesh").await, 4);
    // The next that the other hears is the next change of the operator's.
    coordinator
        .patch(
            "/sites/frankfurt",
            json!({"description": "x", "subnets": ["10.21.0.0/24"]}),
        )
        .await
        .expect(200);
    let Some(StreamMessage::Delta { since, changes, .. }) = stream.news().await else {
        panic!("no delta")
    };
    let [ViewChange::Peer(peer)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (since, peer.endpoint),
        (
            "1.4".parse().unwrap(),
            Some("203.0.113.20:51820".parse().unwrap())
        )
    );
}

#[tokio::test]
async fn a14_a_revoked_node_is_gone_for_every_coordinator() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    // It may turn to the other coordinator before that has heard of it.
    node.report(
        &another,
        json!({"applied": "1.2", "device": "kernel", "links": []}),
    )
    .await
    .expect(204);
    coordinator.delete("/nodes/dublin").await.expect(204);
    coordinator.delete("/nodes/dublin").await.expect(404);
    coordinator.get("/nodes/dublin").await.expect(404);
    node.report(
        &coordinator,
        json!({"applied": "1.2", "device": "kernel", "links": []}),
    )
    .await
    .expect(401);
    another.server.app.mesh_cache.refresh().await;
    node.report(
        &another,
        json!({"applied": "1.2", "device": "kernel", "links": []}),
    )
    .await
    .expect(401);
    assert_eq!(
        coordinator.get("/sites/dublin").await.json()["nodes"],
        json!([])
    );
}

/// What an operator signs of the nodes that the interface lists.
pub(crate) async fn signed(coordinator: &Coordinator, operator: &Operator) -> Vec<SignedAdmission> {
    let nodes: Vec<Node> =
        serde_json::from_value(coordinator.get("/nodes").await.json()["items"].clone()).unwrap();
    let sites: Vec<Site> =
        serde_json::from_value(coordinator.get("/sites").await.json()["items"].clone()).unwrap();
    let mesh = coordinator.server.app.settings.mesh;
    let of = |node: &Node| {
        operator.candidate(
            mesh,
            node,
            sites.iter().find(|site| site.id == node.site).unwrap(),
            None,
        )
    };
    nodes
        .iter()
        .filter_map(of)
        .map(|candidate| {
            operator
                .sign(mesh, &candidate, 1_800_000_000, None)
                .unwrap()
        })
        .collect()
}

fn admitted(shown: &Value) -> Vec<bool> {
    shown["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["admitted"].as_bool().unwrap())
        .collect()
}

#[tokio::test]
async fn admissions_are_kept_and_told_to_peers_byte_for_byte_in_one_revision_and_once() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let frankfurt = new_node(
        &coordinator,
        json!({"name": "frankfurt", "subnets": ["10.20.0.0/24"]}),
    )
    .await;
    let mut stream = dublin
        .follow(&coordinator, Some("1.4".parse().unwrap()))
        .await;
    let operator = Operator::new(&[7; 32]).unwrap();
    let admissions = signed(&coordinator, &operator).await;
    assert_eq!(
        admitted(&coordinator.get("/nodes").await.json()),
        [false, false]
    );
    coordinator
        .post("/admissions", json!({ "admissions": admissions }))
        .await
        .expect(204);
    let shown = coordinator.get("/nodes").await.json();
    assert_eq!(admitted(&shown), [true, true]);
    assert_eq!(shown["items"][1]["admission"], json!(admissions[1]));

    let Some(StreamMessage::Delta {
        position, changes, ..
    }) = stream.news().await
    else {
        panic!("no delta")
    };
    assert_eq!(position, "1.5".parse().unwrap());
    let told = changes
        .iter()
        .find_map(|change| {
            if let ViewChange::Peer(peer) = change {
                Some(peer)
            } else {
                None
            }
        })
        .unwrap();
    assert_eq!(
        (told.node, told.admission.as_ref()),
        (frankfurt.id(), Some(&admissions[1]))
    );

    // The same again is nothing new; a changed prefix is, and does not carry the admission along.
    coordinator
        .post("/admissions", json!({ "admissions": admissions }))
        .await
        .expect(204);
    coordinator
        .patch("/sites/frankfurt", json!({"subnets": ["10.20.0.0/16"]}))
        .await
        .expect(200);
    let Some(StreamMessage::Delta {
        position, changes, ..
    }) = stream.news().await
    else {
        panic!("no delta")
    };
    assert_eq!(position, "1.6".parse().unwrap());
    let [ViewChange::Peer(told)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (told.subnets.clone(), &told.admission),
        (vec!["10.20.0.0/16".parse::<IpNet>().unwrap()], &None)
    );
    assert_eq!(
        admitted(&coordinator.get("/nodes").await.json()),
        [true, false]
    );

    // Who joins later is told with the snapshot, and every coordinator knows.
    let another = coordinator.another().await;
    let Some(StreamMessage::Snapshot { view, .. }) =
        dublin.follow(&another, None).await.next().await
    else {
        panic!("no snapshot")
    };
    assert_eq!(view.peers[0].admission.as_ref(), Some(&admissions[1]));
    let events = coordinator.get("/events").await.json();
    let events = events["items"].as_array().unwrap().iter();
    let admitted: Vec<_> = events
        .filter(|event| event["action"] == "node.admit")
        .collect();
    let [second, first] = admitted[..] else {
        panic!("{admitted:?}")
    };
    assert_eq!(
        (&first["object"], &second["object"], &first["revision"]),
        (
            &json!(dublin.id()),
            &json!(frankfurt.id()),
            &second["revision"]
        ),
        "one of each node, in one revision"
    );
}

#[tokio::test]
async fn an_admission_that_is_not_signed_of_another_mesh_or_of_nobody_is_refused_with_all_that_came_with_it()
 {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let operator = Operator::new(&[7; 32]).unwrap();
    let [good, other] = &signed(&coordinator, &operator).await[..] else {
        panic!("two nodes")
    };
    let with = |from: &str, to: &str| {
        let text = other.admission.replace(from, to);
        assert_ne!(text, other.admission);
        SignedAdmission {
            admission: text,
            ..other.clone()
        }
    };
    let mesh = coordinator.server.app.settings.mesh;
    let wattle_wire::lock::Admission { prefixes, .. } =
        serde_json::from_str(&other.admission).unwrap();
    let name: wattle_wire::name::Name = "nobody".parse().unwrap();
    let nobody = wattle_mesh::agent::admission::Candidate {
        name: name.clone(),
        site: name,
        identity: [3; 32].into(),
        prefixes,
        before: None,
    };
    for bad in [
        with("10.99.0.2/32", "0.0.0.0/0"),
        SignedAdmission {
            admission: String::new(),
            ..other.clone()
        },
        SignedAdmission {
            admission: " ".repeat(SignedAdmission::LONGEST + 1),
            ..other.clone()
        },
        operator.sign(mesh, &nobody, 1, None).unwrap(),
        operator
            .sign(
                wattle_wire::ids::MeshId(uuid::Uuid::nil()),
                &nobody,
                1,
                None,
            )
            .unwrap(),
    ] {
        let answer = coordinator
            .post("/admissions", json!({ "admissions": [good, bad] }))
            .await;
        assert_eq!(
            answer.problem(),
            (
                422,
                "invalid_admission".to_owned(),
                Some("admissions[1]".to_owned())
            )
        );
    }
    assert_eq!(
        coordinator
            .post("/admissions", json!({ "admissions": [good, good] }))
            .await
            .problem()
            .0,
        422
    );
    assert_eq!(
        coordinator
            .post("/admissions", json!({ "admissions": [] }))
            .await
            .problem()
            .0,
        422
    );
    assert_eq!(
        admitted(&coordinator.get("/nodes").await.json()),
        [false, false]
    );
}

/// A report of a node that holds another.
fn holding(other: &agents::Node, because: &str) -> Value {
    let (node, identity) = (other.id(), other.machine.identity_key());
    let peer = json!({"node": node, "name": "old", "identity": identity, "because": because});
    json!({
        "applied": "1.4", "device": "kernel", "links": [],
        "locked": true, "held": {"total": 3, "peers": [peer]}
    })
}

async fn until_held(coordinator: &Coordinator, expected: &Value) {
    let deadline = Instant::now() + SOON;
    loop {
        let shown = coordinator.get("/nodes/dublin").await.expect(200).json();
        if shown["held"] == *expected {
            let listed = coordinator.get("/nodes").await.json()["items"].clone();
            let held: Vec<_> = listed.as_array().unwrap().iter().collect();
            assert!(held.iter().any(|node| node["held"] == *expected));
            return;
        }
        assert!(Instant::now() < deadline, "{shown}");
        sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_a_node_holds_is_told_by_all_coordinators_and_by_one_that_starts_later() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let old = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let another = coordinator.another().await;
    let report = holding(&old, "removed");
    dublin
        .report(&coordinator, report.clone())
        .await
        .expect(204);
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(shown["held"], report["held"], "at once");
    until_held(&another, &report["held"]).await;
    until_held(&coordinator.another().await, &report["held"]).await;
    let metrics = another.get("/metrics").await.expect(200).text;
    assert!(
        metrics.contains("\nwattle_nodes_with_held_peers 1\n"),
        "{metrics}"
    );

    // It says otherwise, and to another coordinator.
    let mut confirmed = report.clone();
    confirmed["held"] = json!(null);
    dublin.report(&another, confirmed).await.expect(204);
    until_held(&coordinator, &Value::Null).await;
    let metrics = coordinator.get("/metrics").await.expect(200).text;
    assert!(
        metrics.contains("\nwattle_nodes_with_held_peers 0\n"),
        "{metrics}"
    );

    let mut many = report.clone();
    many["held"]["peers"] = json!(vec![report["held"]["peers"][0].clone(); 65]);
    let (status, code, field) = dublin.report(&coordinator, many).await.problem();
    assert_eq!(
        (status, code.as_str(), field.as_deref()),
        (422, "too_many", Some("held.peers"))
    );
}
