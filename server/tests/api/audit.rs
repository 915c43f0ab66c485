//! What the audit log says: who did what, in words, with what was and what is, and no secret.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use wattle_mesh::{access::Action, agent::admission::Operator};
use wattle_server::{
    router,
    routes::events::{self, Filter},
};
use wattle_wire::{admin::Node, join::JoinString};

use crate::{
    agents::{NodeKeys, new_node, new_site},
    harness::{Answer, Coordinator, send},
    identity_rotation::{machine_of, succeed},
    names::further,
    nodes, removals, rotation,
};

/// The newest events, the oldest of them first.
async fn events(coordinator: &Coordinator, query: &str) -> Vec<Value> {
    let answer = coordinator
        .get(&format!("/events{query}"))
        .await
        .expect(200);
    let mut events = answer.json()["items"].as_array().unwrap().clone();
    events.reverse();
    events
}

fn all<'e>(events: &'e [Value], field: &str) -> Vec<&'e str> {
    let texts = events.iter().map(|event| event[field].as_str().unwrap());
    texts.collect()
}

#[tokio::test]
async fn an_event_says_by_name_who_did_what_also_when_both_are_gone() {
    let coordinator = Coordinator::start().await;
    let carol = coordinator
        .post("/api-tokens", json!({"name": "carol", "role": "operator"}))
        .await
        .expect(201)
        .json();
    let by_carol = |method: Method, path: &str| {
        coordinator
            .client
            .request(method, coordinator.url(path))
            .bearer_auth(carol["token"].as_str().unwrap())
    };
    let new = json!({"name": "hq", "subnets": ["10.1.0.0/24"]});
    send(by_carol(Method::POST, "/sites").json(&new))
        .await
        .expect(201);
    let join = further(&coordinator, "hq").await;
    let change = json!({"subnets": ["10.1.0.0/24", "10.2.0.0/24"]});
    send(by_carol(Method::PATCH, "/sites/hq").json(&change))
        .await
        .expect(200);
    let next = rotation::NextKey::new(&join, 2);
    rotation::announce(&coordinator, &join, &next)
        .await
        .expect(200);
    coordinator
        .patch(
            "/sites/hq",
            json!({"name": "office", "endpoint": "198.51.100.7:51820"}),
        )
        .await
        .expect(200);
    send(by_carol(Method::DELETE, "/sites/office"))
        .await
        .expect(204);
    let carol = carol["id"].as_str().unwrap();
    coordinator
        .delete(&format!("/api-tokens/{carol}"))
        .await
        .expect(204);

    let events = events(&coordinator, "").await;
    assert_eq!(
        all(&events, "sentence")
            .into_iter()
            .filter(|sentence| !sentence.contains("identity key"))
            .map(|sentence| sentence
                .split("next key announced at none → ")
                .next()
                .unwrap())
            .collect::<Vec<_>>(),
        [
            "made the api token carol: role operator",
            "created site hq: subnets 10.1.0.0/24; tunnel address 10.99.0.1",
            &format!(
                "made a join token for site hq: expires at {}; uses left 1",
                events[2]["changes"][0]["after"].as_str().unwrap()
            ),
            "changed site hq: subnets 10.1.0.0/24 → 10.1.0.0/24, 10.2.0.0/24",
            "announced the next WireGuard key of node hq of site hq: ",
            "changed site office: endpoint none → 198.51.100.7:51820; name hq → office",
            "renamed node office of site office: name hq → office",
            "removed site office: endpoint 198.51.100.7:51820; subnets 10.1.0.0/24, \
             10.2.0.0/24; tunnel address 10.99.0.1",
            "revoked the api token carol: role operator",
        ]
    );
    assert_eq!(
        events
            .iter()
            .map(|event| event["actor_name"].as_str().unwrap())
            .collect::<Vec<_>>(),
        [
            "first start",
            "carol",
            "first start",
            "join token",
            "carol",
            "hq",
            "first start",
            "first start",
            "carol",
            "carol",
            "first start",
        ]
    );
    let (enrolled, announced) = (&events[3], &events[5]);
    assert_eq!(
        (
            &enrolled["actor_site"],
            &announced["actor_site"],
            &announced["object_site"]
        ),
        (&json!("hq"), &json!("hq"), &json!("hq"))
    );
    assert_eq!(
        events[4]["changes"],
        json!([{"field": "subnets", "before": ["10.1.0.0/24"],
            "after": ["10.1.0.0/24", "10.2.0.0/24"]}])
    );
    events_verify(&coordinator).await;
}

async fn events_verify(coordinator: &Coordinator) {
    events::verify(&coordinator.server.app.db, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn events_of_an_object_an_actor_and_a_time_can_be_asked_for_by_a_viewer() {
    let coordinator = Coordinator::start().await;
    let viewer = coordinator
        .post("/api-tokens", json!({"name": "dave", "role": "viewer"}))
        .await
        .expect(201)
        .json();
    let many = ["cork", "oslo", "rome"].map(|name| json!({ "name": name }));
    coordinator
        .post("/import", json!({ "sites": many }))
        .await
        .expect(201);
    new_node(&coordinator, json!({"name": "hq"})).await;
    let site = coordinator.get("/sites/hq").await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for name in ["office", "branch"] {
        coordinator
            .patch(&format!("/sites/{site}"), json!({ "name": name }))
            .await
            .expect(200);
    }
    let ask = async |query: &str| -> Answer {
        let url = coordinator.url(&format!("/events{query}"));
        send(
            coordinator
                .client
                .get(url)
                .bearer_auth(viewer["token"].as_str().unwrap()),
        )
        .await
    };
    let numbers = async |query: &str| -> Vec<i64> {
        let answer = ask(query).await.expect(200).json();
        let items = answer["items"].as_array().unwrap().iter();
        items
            .map(|event| event["number"].as_i64().unwrap())
            .collect()
    };
    // 1 the token; 2, 3, 4 the import; 5 hq, 6 its node; 7, 9 its new names, 8, 10 the node's.
    assert_eq!(numbers("").await, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(numbers("?object=oslo").await, [3]);
    assert_eq!(numbers(&format!("?object={site}")).await, [9, 7, 5]);
    assert_eq!(
        numbers("?object=office").await,
        [10, 9, 8, 7, 6, 5],
        "whatever was ever so called"
    );
    assert_eq!(numbers("?object=nowhere").await, Vec::<i64>::new());
    assert_eq!(numbers("?actor=join%20token").await, [6]);
    let all = events(&coordinator, "").await;
    let (token, at) = (
        all[5]["actor"].as_str().unwrap(),
        all[4]["at"].as_str().unwrap(),
    );
    assert_eq!(numbers(&format!("?actor={token}")).await, [6]);
    let (_, bare) = token.split_once(':').unwrap();
    assert_eq!(numbers(&format!("?actor={bare}&object=hq")).await, [6]);
    assert_eq!(numbers(&format!("?since={at}")).await, [10, 9, 8, 7, 6, 5]);
    assert_eq!(numbers(&format!("?until={at}")).await, [4, 3, 2, 1]);
    assert_eq!(
        numbers(&format!(
            "?since={at}&until=2999-01-01T00:00:00%2B01:00&object=branch"
        ))
        .await,
        [10, 9, 8, 7, 6, 5]
    );
    let page = ask("?object=office&limit=4").await.expect(200).json();
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(
        numbers(&format!("?object=office&limit=4&cursor={cursor}")).await,
        [6, 5]
    );
    let filter = Filter {
        object: Some("oslo".to_owned()),
        ..Filter::default()
    };
    let listed = events::newest(&coordinator.server.app.db, &filter, 10)
        .await
        .unwrap();
    let printed: Vec<_> = listed.iter().map(events::line).collect();
    assert!(
        printed.len() == 1
            && printed[0].starts_with("3  20")
            && printed[0].contains("Z  first start (api-token:")
            && printed[0].contains(")  imported site oslo: tunnel address "),
        "{printed:?}"
    );
    for (query, field) in [
        ("?since=yesterday", Some("since")),
        ("?until=2026-11-28", Some("until")),
        (
            "?since=2026-11-28T10:00:00Z&until=2026-11-28T10:00:00Z",
            Some("until"),
        ),
        ("?object=", Some("object")),
        ("?actor=%00", Some("actor")),
        ("?limit=0", Some("limit")),
        ("?site=hq", None),
    ] {
        let expected = (422, "invalid_query".to_owned(), field.map(str::to_owned));
        assert_eq!(ask(query).await.problem(), expected, "{query}");
    }
    events_verify(&coordinator).await;
}

/// What is secret of a join token.
fn secret_of(created: &Value) -> String {
    let join: JoinString = created["join_string"].as_str().unwrap().parse().unwrap();
    join.secret.reveal().to_owned()
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_in_words_and_no_secret_is() {
    let coordinator = Coordinator::start().await;
    let mut secrets: Vec<String> = vec![coordinator.token[40..83].to_owned()];
    let mut called = BTreeSet::new();
    let mut call = async |method: &str, route: &str, path: &str, body: Value| -> Value {
        called.insert(format!("{method} {route}"));
        let before = coordinator.count("SELECT count(*) FROM events").await;
        let request = coordinator.request(Method::from_bytes(method.as_bytes()).unwrap(), path);
        let answer = send(request.json(&body)).await;
        assert!(
            answer.status.is_success(),
            "{method} {path}: {}",
            answer.text
        );
        let after = coordinator.count("SELECT count(*) FROM events").await;
        assert!(after > before, "{method} {route} is no event");
        serde_json::from_str(&answer.text).unwrap_or_default()
    };

    let token = call(
        "POST",
        "/api-tokens",
        "/api-tokens",
        json!({"name": "x", "role": "viewer"}),
    )
    .await;
    secrets.push(token["token"].as_str().unwrap()[40..83].to_owned());
    let id = token["id"].as_str().unwrap();
    call(
        "DELETE",
        "/api-tokens/{id}",
        &format!("/api-tokens/{id}"),
        json!({}),
    )
    .await;
    let site = call("POST", "/sites", "/sites", json!({"name": "hq"})).await;
    secrets.push(secret_of(&site["join_token"]));
    let sites = json!({"sites": [{"name": "cork"}, {"name": "oslo"}]});
    let imported = call("POST", "/import", "/import", sites).await;
    for site in imported["sites"].as_array().unwrap() {
        secrets.push(secret_of(&site["join_token"]));
    }
    let route = "/sites/{site}/join-tokens";
    let join = call("POST", route, "/sites/hq/join-tokens", json!({})).await;
    secrets.push(secret_of(&join));
    let id = join["id"].as_str().unwrap();
    call(
        "DELETE",
        "/join-tokens/{id}",
        &format!("/join-tokens/{id}"),
        json!({}),
    )
    .await;
    call(
        "PATCH",
        "/sites/{site}",
        "/sites/hq",
        json!({"description": "x"}),
    )
    .await;
    let route = "/sites/{site}/wg-quick";
    let made = call("POST", route, "/sites/oslo/wg-quick", json!({})).await;
    let file = made["file"].as_str().unwrap();
    let lines = file.lines().filter_map(|line| line.split_once("Key = "));
    secrets.extend(
        lines
            .filter(|(kind, _)| *kind != "Public")
            .map(|(_, key)| key.to_owned()),
    );
    call("DELETE", "/nodes/{node}", "/nodes/oslo", json!({})).await;
    let url = "https://127.0.0.9/services/of-the-path?token=of-the-query#of-the-fragment";
    let webhook = call("POST", "/webhooks", "/webhooks", json!({"url": url})).await;
    secrets.push(webhook["secret"].as_str().unwrap().to_owned());
    secrets.extend(["of-the-path", "of-the-query", "of-the-fragment"].map(str::to_owned));
    let id = webhook["id"].as_str().unwrap();
    call(
        "DELETE",
        "/webhooks/{id}",
        &format!("/webhooks/{id}"),
        json!({}),
    )
    .await;
    call("PATCH", "/mesh", "/mesh", json!({"rotate_days": 90})).await;

    // What machines and nodes do.
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    secrets.push(join.secret.reveal().to_owned());
    let dublin = NodeKeys::new().enrol(&coordinator, &join).await;
    NodeKeys::new()
        .try_enrol(&coordinator, &join)
        .await
        .expect(401);
    secrets.push(dublin.token());
    further(&coordinator, "dublin").await;
    call(
        "POST",
        "/nodes/{node}/rotate",
        "/nodes/dublin/rotate",
        json!({}),
    )
    .await;
    call(
        "PATCH",
        "/nodes/{node}",
        "/nodes/dublin",
        json!({"name": "gw"}),
    )
    .await;
    let operator = Operator::new(&[7; 32]).unwrap();
    let admissions = nodes::signed(&coordinator, &operator).await;
    call(
        "POST",
        "/admissions",
        "/admissions",
        json!({ "admissions": admissions }),
    )
    .await;
    let first = rotation::NextKey::new(&dublin, 2);
    let second = rotation::NextKey::new(&dublin, 3);
    rotation::announce(&coordinator, &dublin, &first)
        .await
        .expect(200);
    rotation::step(&coordinator, &dublin, json!({"withdraw": {}}))
        .await
        .expect(200);
    rotation::announce(&coordinator, &dublin, &second)
        .await
        .expect(200);
    rotation::done(&coordinator, &dublin, &second)
        .await
        .expect(200);
    let machine = machine_of(&new_node(&coordinator, json!({"name": "rome"})).await)
        .preparing_identity(&[7; 32])
        .unwrap();
    let rome = coordinator.get("/nodes/rome").await.json();
    let mesh = coordinator.server.app.settings.mesh;
    let next = machine.next_identity_statement(mesh).unwrap().unwrap();
    succeed(
        &coordinator,
        serde_json::from_value(rome["id"].clone()).unwrap(),
        &next,
    )
    .await
    .expect(204);
    coordinator.delete("/nodes/gw").await.expect(204);
    let removals = removals::signed_removals(&coordinator, &operator).await;
    assert!(!removals.is_empty());
    call(
        "POST",
        "/removals",
        "/removals",
        json!({ "removals": removals }),
    )
    .await;
    let bergen = new_node(&coordinator, json!({"name": "bergen"})).await;
    new_node(&coordinator, json!({"name": "turku"})).await;
    let turku = coordinator.get("/nodes/turku").await.json();
    let turku: Node = serde_json::from_value(turku).unwrap();
    let statement = removals::lose(&coordinator, "turku").await;
    let report = removals::holding_lost(&turku, &statement, "turku");
    bergen.report(&coordinator, report).await.expect(204);
    let held = "SELECT count(*) FROM node_reports WHERE held IS NOT NULL";
    coordinator.until(held, 1).await;
    let nodes = json!([{"node": turku.id, "identity": turku.identity_key}]);
    let nodes = json!({ "nodes": nodes });
    call("POST", "/nodes/readmit", "/nodes/readmit", nodes).await;
    call("DELETE", "/sites/{site}", "/sites/dublin", json!({})).await;

    // Each route of a change was called, but for the one that changes nothing.
    let changes = router::table().into_iter().filter(|operation| {
        let by_people = matches!(
            operation.action,
            Action::Change | Action::Grant | Action::Configure
        );
        by_people && operation.method != "GET"
    });
    let mut wanted: BTreeSet<_> = changes
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    assert!(wanted.remove("POST /webhooks/{id}/test"));
    assert_eq!(called, wanted);

    let events = events(&coordinator, "?limit=1000").await;
    let text = json!(events).to_string();
    assert!(
        text.contains("made a webhook to https://127.0.0.9: url https://127.0.0.9/…"),
        "{text}"
    );
    for secret in &secrets {
        assert!(!text.contains(secret), "{secret} is in the audit log");
    }
    for event in &events {
        let (action, sentence) = (&event["action"], event["sentence"].as_str().unwrap());
        assert!(
            !sentence.starts_with(action.as_str().unwrap()) && !sentence.contains(" ?"),
            "{action} has no words: {sentence}"
        );
        assert!(!event["actor_name"].as_str().unwrap().is_empty(), "{event}");
    }
    let actions: BTreeSet<_> = all(&events, "action").into_iter().collect();
    let told = [
        "join-token.refuse",
        "node.activate",
        "node.enrol",
        "node.identity.change",
        "node.key.announce",
        "node.key.change",
        "node.key.withdraw",
        "node.revoke",
    ];
    assert!(
        told.iter().all(|action| actions.contains(action)),
        "{actions:?}"
    );
    events_verify(&coordinator).await;
}
