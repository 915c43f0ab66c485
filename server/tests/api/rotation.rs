//! New WireGuard keys, as nodes announce and take them up.

use reqwest::Method;
use serde_json::{Value, json};
use wattle_mesh::keys::enrolment;
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    key::WireguardKey,
    stream::{StreamMessage, ViewChange},
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    agents::{Node, NodeKeys, new_node, new_site},
    harness::{Answer, Coordinator, send},
};

pub(crate) fn new_key() -> WireguardKey {
    WireguardKey::try_from(PublicKey::from(&StaticSecret::random()).to_bytes()).unwrap()
}

pub(crate) fn signed(
    node: &Node,
    by: &NodeKeys,
    key: WireguardKey,
    sequence: u64,
) -> SignedStatement {
    let statement = Statement {
        mesh: node.enrolled.mesh,
        identity: by.identity_key(),
        wireguard_key: key,
        sequence,
        predecessors: vec![],
        unmanaged: false,
    };
    enrolment::sign_statement(&statement, &by.identity).unwrap()
}

pub(crate) async fn step(coordinator: &Coordinator, node: &Node, body: Value) -> Answer {
    send(
        node.request(coordinator, Method::POST, "/agent/rotation")
            .json(&body),
    )
    .await
}

async fn announce(coordinator: &Coordinator, node: &Node, statement: &SignedStatement) -> Answer {
    step(coordinator, node, json!({"announce": statement})).await
}

async fn armed(coordinator: &Coordinator, node: &Node, peer: &Node, sequence: u64) {
    let armed = json!([{"peer": peer.id(), "sequence": sequence}]);
    let report = json!({"applied": "1.1", "device": "kernel", "links": [], "armed": armed});
    node.report(coordinator, report).await.expect(204);
}

async fn three(coordinator: &Coordinator) -> [Node; 3] {
    [
        new_node(coordinator, json!({"name": "dublin"})).await,
        new_node(coordinator, json!({"name": "frankfurt"})).await,
        new_node(coordinator, json!({"name": "new-york"})).await,
    ]
}

#[tokio::test]
async fn a_key_is_announced_to_all_counted_who_is_ready_and_taken_up() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    let mut stream = frankfurt.follow(&coordinator, None).await;
    stream.news().await;

    let asked = coordinator
        .post("/nodes/dublin/rotate", json!({}))
        .await
        .expect(202)
        .json();
    assert_eq!(asked["rotation"]["phase"], "requested");
    let revisions = "SELECT count(*) FROM changes";
    let before = coordinator.count(revisions).await;
    coordinator
        .post("/nodes/dublin/rotate", json!({}))
        .await
        .expect(202);
    assert_eq!(
        coordinator.count(revisions).await,
        before,
        "asked again, it is still one new key"
    );

    let key = new_key();
    let statement = signed(&dublin, &dublin.machine, key, 2);
    let waiting = |answer: Answer| answer.expect(200).json()["waiting_for"].clone();
    assert_eq!(
        waiting(announce(&coordinator, &dublin, &statement).await),
        json!([frankfurt.id(), new_york.id()])
    );
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(
        (&shown["rotation"]["phase"], &shown["wireguard_key"]),
        (&json!("announced"), &json!(dublin.machine.wireguard_key()))
    );
    let told = loop {
        let Some(StreamMessage::Delta { changes, .. }) = stream.news().await else {
            panic!("no delta")
        };
        if let [ViewChange::Peer(peer)] = &changes[..]
            && let Some(announced) = &peer.announced
        {
            break announced.clone();
        }
    };
    assert_eq!(told, statement, "byte for byte");

    armed(&coordinator, &frankfurt, &dublin, 2).await;
    armed(&coordinator, &new_york, &dublin, 1).await;
    assert_eq!(
        waiting(announce(&coordinator, &dublin, &statement).await),
        json!([new_york.id()])
    );
    armed(&coordinator, &new_york, &dublin, 2).await;
    assert_eq!(
        waiting(announce(&coordinator, &dublin, &statement).await),
        json!([])
    );

    for _ in 0..2 {
        step(&coordinator, &dublin, json!({"done": statement}))
            .await
            .expect(200);
    }
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(
        (&shown["wireguard_key"], &shown["rotation"]),
        (&json!(key), &Value::Null)
    );
    assert_eq!(
        coordinator.count("SELECT count(*) FROM armed_peers").await,
        0
    );
    let events = coordinator.get("/events").await.json();
    let of_dublin = |event: &&Value| event["object"] == json!(dublin.id());
    let actions: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(of_dublin)
        .map(|event| event["action"].clone())
        .collect();
    for action in ["node.rotate", "node.key.announce", "node.key.change"] {
        assert_eq!(
            actions.iter().filter(|taken| **taken == action).count(),
            1,
            "{action} in {actions:?}"
        );
    }
}

#[tokio::test]
async fn one_node_at_a_time_changes_its_key_and_who_withdraws_makes_room() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let (first, second) = (
        signed(&dublin, &dublin.machine, new_key(), 2),
        signed(&frankfurt, &frankfurt.machine, new_key(), 2),
    );
    announce(&coordinator, &dublin, &first).await.expect(200);
    let refused = announce(&coordinator, &frankfurt, &second).await;
    assert_eq!(
        refused.problem(),
        (
            409,
            "rotation_under_way".to_owned(),
            Some("statement".to_owned())
        )
    );
    assert!(refused.text.contains("dublin"), "{}", refused.text);
    for _ in 0..2 {
        step(&coordinator, &dublin, json!({"withdraw": {}}))
            .await
            .expect(200);
    }
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["rotation"],
        Value::Null
    );
    announce(&coordinator, &frankfurt, &second)
        .await
        .expect(200);

    // Who announced long ago holds up nobody, and has to ask again like everybody.
    let age = sqlx::query(
        "UPDATE nodes SET announced_at = now() - interval '3 minutes' WHERE announced_at IS NOT \
         NULL",
    );
    age.execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    announce(&coordinator, &dublin, &first).await.expect(200);
    assert_eq!(
        announce(&coordinator, &frankfurt, &second)
            .await
            .problem()
            .1,
        "rotation_under_way"
    );
}

#[tokio::test]
async fn a_key_that_is_anothers_and_a_statement_that_does_not_follow_are_refused() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let invalid = (422, "statement".to_owned(), Some("statement".to_owned()));
    for statement in [
        signed(&dublin, &frankfurt.machine, new_key(), 2),
        signed(&dublin, &dublin.machine, new_key(), 1),
        signed(&dublin, &dublin.machine, new_key(), u64::MAX),
        SignedStatement {
            statement: "{}".to_owned(),
            ..signed(&dublin, &dublin.machine, new_key(), 2)
        },
    ] {
        assert_eq!(
            announce(&coordinator, &dublin, &statement).await.problem(),
            invalid,
            "{statement:?}"
        );
        assert_eq!(
            step(&coordinator, &dublin, json!({"done": statement}))
                .await
                .problem(),
            invalid,
            "{statement:?}"
        );
    }
    for key in [
        frankfurt.machine.wireguard_key(),
        dublin.machine.wireguard_key(),
    ] {
        let statement = signed(&dublin, &dublin.machine, key, 2);
        assert_eq!(
            announce(&coordinator, &dublin, &statement)
                .await
                .problem()
                .1,
            "key_taken"
        );
        assert_eq!(
            step(&coordinator, &dublin, json!({"done": statement}))
                .await
                .problem()
                .1,
            "key_taken"
        );
    }
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["wireguard_key"],
        json!(dublin.machine.wireguard_key())
    );
    let stranger = json!([{"peer": dublin.id(), "sequence": 1}]);
    let report = json!({"applied": "1.1", "device": "kernel", "links": [], "armed": stranger});
    dublin.report(&coordinator, report).await.expect(204);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM armed_peers").await,
        0,
        "no node is ready for itself"
    );
}

#[tokio::test]
async fn how_long_keys_are_used_is_a_setting_of_the_mesh() {
    let coordinator = Coordinator::start().await;
    let patch = |days: Value| coordinator.patch("/mesh", json!({ "rotate_days": days }));
    assert_eq!(coordinator.get("/mesh").await.json()["rotate_days"], 0);
    assert_eq!(patch(json!(30)).await.expect(200).json()["rotate_days"], 30);
    assert_eq!(coordinator.get("/mesh").await.json()["rotate_days"], 30);
    assert_eq!(
        patch(json!(3651)).await.problem(),
        (
            422,
            "out_of_range".to_owned(),
            Some("rotate_days".to_owned())
        )
    );
}

#[tokio::test]
async fn a_new_key_of_a_node_that_files_name_is_refused_unless_it_is_forced_and_then_waits_for_nobody_without_an_agent()
 {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    for site in ["cork", "galway"] {
        new_site(&coordinator, json!({"name": site})).await;
        coordinator
            .post(&format!("/sites/{site}/wg-quick"), json!({}))
            .await
            .expect(201);
    }
    for query in ["", "?force=false", "?dry_run=true"] {
        let refused = coordinator
            .post(&format!("/nodes/dublin/rotate{query}"), json!({}))
            .await;
        assert_eq!(
            refused.problem(),
            (409, "unmanaged_sites".to_owned(), None),
            "{query}"
        );
        assert!(
            refused.text.contains("?force=true")
                && refused
                    .text
                    .ends_with("because theirs name its present key: cork, galway\"}"),
            "{}",
            refused.text
        );
    }
    for query in ["", "?force=true"] {
        let refused = coordinator
            .post(&format!("/nodes/cork/rotate{query}"), json!({}))
            .await;
        assert_eq!(
            refused.problem(),
            (409, "unmanaged_node".to_owned(), None),
            "{query}"
        );
    }
    for (path, body) in [
        ("/sites/cork/join-tokens?force=true", json!({})),
        ("/nodes/dublin/rotate?force=yes", json!({})),
    ] {
        assert_eq!(
            coordinator.post(path, body).await.problem().1,
            "invalid_query",
            "{path}"
        );
    }
    let asked = coordinator
        .post("/nodes/dublin/rotate?force=true", json!({}))
        .await
        .expect(202)
        .json();
    assert_eq!(asked["rotation"]["phase"], "requested");

    let statement = signed(&dublin, &dublin.machine, new_key(), 2);
    let waiting_for = announce(&coordinator, &dublin, &statement)
        .await
        .expect(200)
        .json()["waiting_for"]
        .clone();
    assert_eq!(
        waiting_for.as_array().map(Vec::len),
        Some(2),
        "both with an agent: {waiting_for}"
    );
    let file_is_current = async || {
        coordinator.get("/nodes/cork").await.json()["unmanaged"]["file_is_current"].clone()
    };
    assert_eq!(file_is_current().await, true);
    step(&coordinator, &dublin, json!({"done": statement}))
        .await
        .expect(200);
    assert_eq!(file_is_current().await, false);

    // A node with an agent stays one.
    let claim = Statement {
        mesh: frankfurt.enrolled.mesh,
        identity: frankfurt.machine.identity_key(),
        wireguard_key: new_key(),
        sequence: 2,
        predecessors: vec![],
        unmanaged: true,
    };
    let claim = enrolment::sign_statement(&claim, &frankfurt.machine.identity).unwrap();
    for step_of_it in ["announce", "done"] {
        let refused = step(&coordinator, &frankfurt, json!({step_of_it: claim})).await;
        assert_eq!(
            refused.problem(),
            (422, "statement".to_owned(), Some("statement".to_owned())),
            "{step_of_it}"
        );
    }
}
