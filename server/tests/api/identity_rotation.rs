//! Other identities, as nodes take them up.

use serde_json::{Value, json};
use wattle_mesh::keys::node_keys::{NodeKeys, StoredNodeKeys};
use wattle_wire::{
    enrol::SignedStatement,
    ids::NodeId,
    stream::{ByeReason, StreamMessage, ViewChange},
};
use zeroize::Zeroizing;

use crate::{
    agents::{self, Node, new_node},
    harness::{Answer, Coordinator, send},
    rotation,
};

/// The machine of a node, as its agent has it.
pub(crate) fn machine_of(node: &Node) -> NodeKeys {
    let identity = Zeroizing::new(node.machine.pkcs8.clone());
    let wireguard = Zeroizing::new(node.machine.wireguard.to_bytes());
    let kept = StoredNodeKeys {
        identity,
        wireguard,
        sequence: 1,
        since: 0,
        next: None,
        issued: 1,
        predecessors: vec![],
        successor: None,
    };
    NodeKeys::restore(&kept).unwrap()
}

pub(crate) async fn succeed(
    coordinator: &Coordinator,
    node: NodeId,
    statement: &SignedStatement,
) -> Answer {
    let body = json!({"node": node, "statement": statement});
    send(
        coordinator
            .client
            .post(coordinator.url("/agent/identity"))
            .json(&body),
    )
    .await
}

async fn view(coordinator: &Coordinator, token: &str) -> Answer {
    send(
        coordinator
            .client
            .get(coordinator.url("/agent/view"))
            .bearer_auth(token),
    )
    .await
}

#[tokio::test]
async fn another_identity_is_taken_and_told_byte_for_byte_and_who_has_the_former_one_is_nobody_any_more()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let mesh = dublin.enrolled.mesh;
    let mut peer = frankfurt.follow(&coordinator, None).await;
    let mut own = dublin.follow(&coordinator, None).await;
    assert!(matches!(
        own.news().await,
        Some(StreamMessage::Snapshot { .. })
    ));
    peer.news().await;
    coordinator
        .post("/nodes/dublin/rotate", json!({}))
        .await
        .expect(202);

    let next = machine_of(&dublin).preparing_identity(&[7; 32]).unwrap();
    let statement = next.next_identity_statement(mesh).unwrap().unwrap();
    let after = next.identity_switched(mesh).unwrap();
    let revisions = "SELECT count(*) FROM changes";
    succeed(&coordinator, dublin.id(), &statement)
        .await
        .expect(204);
    let before = coordinator.count(revisions).await;
    succeed(&coordinator, dublin.id(), &statement)
        .await
        .expect(204);
    assert_eq!(
        coordinator.count(revisions).await,
        before,
        "an answer that was lost costs nothing"
    );

    view(&coordinator, &dublin.token()).await.expect(401);
    view(
        &coordinator,
        after
            .token(&dublin.enrolled, chrono::Utc::now().timestamp())
            .unwrap()
            .reveal(),
    )
    .await
    .expect(200);
    loop {
        match own.news().await {
            Some(StreamMessage::Bye { reason }) => break assert_eq!(reason, ByeReason::Superseded),
            Some(_) => {}
            None => panic!("no farewell"),
        }
    }
    let told = loop {
        let Some(StreamMessage::Delta { changes, .. }) = peer.news().await else {
            panic!("no delta")
        };
        if let [ViewChange::Peer(peer)] = &changes[..]
            && peer.statement.statement.contains("predecessors")
        {
            break peer.statement.clone();
        }
    };
    assert_eq!(told, statement);
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(
        (&shown["identity_key"], &shown["wireguard_key"]),
        (&json!(after.identity_key()), &json!(after.wireguard_key()))
    );
    assert_eq!(
        shown["rotation"]["phase"], "requested",
        "a new WireGuard key is still wanted"
    );
    let events = coordinator.get("/events").await.json();
    let changes = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["action"] == "node.identity.change")
        .count();
    assert_eq!(changes, 1);

    // The former identity enrols nowhere again, and no other node takes it up.
    let join = agents::new_site(&coordinator, json!({"name": "new-york"})).await;
    let old = agents::NodeKeys {
        wireguard: agents::NodeKeys::new().wireguard,
        ..dublin.machine
    };
    assert_eq!(
        old.try_enrol(&coordinator, &join).await.problem().1,
        "key_taken"
    );
}

#[tokio::test]
async fn a_statement_that_the_present_identity_did_not_sign_for_changes_nothing() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let mesh = dublin.enrolled.mesh;
    let succession = |machine: &NodeKeys, seed: u8| {
        machine
            .preparing_identity(&[seed; 32])
            .unwrap()
            .next_identity_statement(mesh)
            .unwrap()
            .unwrap()
    };
    let succeeded = |machine: &NodeKeys, seed: u8| {
        machine
            .preparing_identity(&[seed; 32])
            .unwrap()
            .identity_switched(mesh)
            .unwrap()
    };
    let own = machine_of(&dublin);
    let first = succession(&own, 7);
    let forged = SignedStatement {
        signature: succession(&own, 8).signature,
        ..first.clone()
    };
    let stranger = NodeKeys::new(&[9; 32], &[9; 32], 0).unwrap();
    let nodes = "SELECT count(*) FROM nodes JOIN former_identities ON true";
    for (node, statement) in [
        (dublin.id(), forged),
        (dublin.id(), succession(&stranger, 7)),
        (dublin.id(), succession(&machine_of(&frankfurt), 7)),
        (frankfurt.id(), first.clone()),
        (NodeId(uuid::Uuid::nil()), first.clone()),
        (
            dublin.id(),
            SignedStatement {
                statement: "{}".to_owned(),
                ..first.clone()
            },
        ),
    ] {
        succeed(&coordinator, node, &statement).await.expect(401);
    }
    assert_eq!(
        succeed(&coordinator, dublin.id(), &own.statement(mesh).unwrap())
            .await
            .expect(204)
            .text,
        "",
        "it has that one"
    );
    assert_eq!(coordinator.count(nodes).await, 0);

    // Who has been succeeded signs for nobody; a restored database takes several at once.
    let second = succeeded(&succeeded(&own, 7), 8);
    succeed(&coordinator, dublin.id(), &second.statement(mesh).unwrap())
        .await
        .expect(204);
    for late in [
        first,
        succession(&succeeded(&own, 7), 10),
        succession(&own, 11),
    ] {
        succeed(&coordinator, dublin.id(), &late).await.expect(401);
    }
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(shown["identity_key"], json!(second.identity_key()));

    // One that another node has or had is nobody else's.
    for seed in [8, 7] {
        let taken = succeed(
            &coordinator,
            frankfurt.id(),
            &succession(&machine_of(&frankfurt), seed),
        )
        .await;
        assert_eq!(
            taken.problem(),
            (409, "key_taken".to_owned(), Some("statement".to_owned()))
        );
    }
}

#[tokio::test]
async fn another_identity_withdraws_the_key_that_was_announced_and_is_no_way_around_the_order_of_statements()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mesh = dublin.enrolled.mesh;
    let announced = machine_of(&dublin).preparing(&[5; 32]).unwrap();
    let key = rotation::NextKey::new(&dublin, 2);
    rotation::announce(&coordinator, &dublin, &key)
        .await
        .expect(200);
    let next = announced.preparing_identity(&[7; 32]).unwrap();
    succeed(
        &coordinator,
        dublin.id(),
        &next.next_identity_statement(mesh).unwrap().unwrap(),
    )
    .await
    .expect(204);
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["rotation"],
        Value::Null
    );
    let after = next.identity_switched(mesh).unwrap();
    let mut statement: Value =
        serde_json::from_str(&after.statement(mesh).unwrap().statement).unwrap();
    statement["sequence"] = json!(2);
    let older = serde_json::from_value(statement).unwrap();
    let kept = after.kept().unwrap();
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(&kept.identity).unwrap();
    let older = wattle_mesh::keys::enrolment::sign_statement(&older, &pair).unwrap();
    assert_eq!(
        succeed(&coordinator, dublin.id(), &older).await.problem().0,
        422
    );
}

#[tokio::test]
async fn a21_another_identity_is_all_that_a_statement_without_a_token_can_bring() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mesh = dublin.enrolled.mesh;
    let machine = machine_of(&dublin);
    let other_key = machine.preparing(&[5; 32]).unwrap().switched(0).unwrap();
    let both = other_key.preparing_identity(&[7; 32]).unwrap();
    let revisions = "SELECT count(*) FROM changes";
    let before = coordinator.count(revisions).await;
    for (statement, why) in [
        (other_key.statement(mesh).unwrap(), "this identity already"),
        (
            both.next_identity_statement(mesh).unwrap().unwrap(),
            "has to keep the WireGuard key",
        ),
    ] {
        let refused = succeed(&coordinator, dublin.id(), &statement).await;
        assert_eq!(
            refused.problem(),
            (422, "statement".to_owned(), Some("statement".to_owned()))
        );
        assert!(refused.text.contains(why), "{}", refused.text);
    }
    assert_eq!(coordinator.count(revisions).await, before);
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(shown["wireguard_key"], json!(machine.wireguard_key()));
    assert_eq!(shown["identity_key"], json!(machine.identity_key()));
}
