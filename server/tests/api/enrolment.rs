//! `/agent/enrol`

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use wattle_mesh::keys::enrolment;
use wattle_wire::{
    enrol::{Enrolled, Statement},
    join::JoinString,
    peer::{EndpointCheck, Peer},
    secret::Secret,
    stream::{StreamMessage, ViewChange},
};

use crate::{
    agents::{Follower, NodeKeys, enrol, new_node, new_site, start},
    harness::Coordinator,
};

fn refused() -> (u16, String, Option<String>) {
    (401, "join_token_refused".to_owned(), None)
}

#[tokio::test]
async fn the_first_node_carries_the_site_and_further_ones_stand_by() {
    let coordinator = Coordinator::start().await;
    let first = new_node(
        &coordinator,
        json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    new_site(&coordinator, json!({"name": "frankfurt"})).await;
    let token = coordinator
        .post("/sites/dublin/join-tokens", json!({}))
        .await
        .expect(201)
        .json();
    let join: JoinString = token["join_string"].as_str().unwrap().parse().unwrap();
    let second = NodeKeys::new().enrol(&coordinator, &join).await;
    let nodes = coordinator.get("/nodes").await.json();
    let shown: Vec<_> = nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (&node["name"], &node["state"], &node["tunnel_address"]))
        .collect();
    assert_eq!(
        shown[0],
        (&json!("dublin"), &json!("active"), &json!("10.99.0.1"))
    );
    assert_eq!(
        shown[1],
        (&json!("dublin-2"), &json!("standby"), &json!("10.99.0.3"))
    );

    // Revoking the first, the second takes over in the same revision; the site keeps its address
    // for the next.
    coordinator
        .delete(&format!("/nodes/{}", first.id()))
        .await
        .expect(204);
    let nodes = coordinator.get("/nodes").await;
    assert_eq!(nodes.headers["wattle-position"], "1.5");
    let node = &nodes.json()["items"][0];
    assert_eq!(
        (&node["id"], &node["state"]),
        (&json!(second.id()), &json!("active"))
    );
    let token = coordinator
        .post("/sites/dublin/join-tokens", json!({}))
        .await
        .expect(201)
        .json();
    let third = NodeKeys::new()
        .enrol(
            &coordinator,
            &token["join_string"].as_str().unwrap().parse().unwrap(),
        )
        .await;
    let node = coordinator
        .get(&format!("/nodes/{}", third.id()))
        .await
        .json();
    assert_eq!(
        (&node["name"], &node["state"], &node["tunnel_address"]),
        (&json!("dublin"), &json!("standby"), &json!("10.99.0.1"))
    );
}

#[tokio::test]
async fn a2_fifty_machines_with_one_token_give_exactly_one_node() {
    let coordinators = [Coordinator::start().await];
    let further = [
        coordinators[0].another().await,
        coordinators[0].another().await,
    ];
    let all: Vec<_> = coordinators.iter().chain(&further).collect();
    let join = new_site(all[0], json!({"name": "dublin"})).await;
    let machines: Vec<_> = (0..50).map(|_| NodeKeys::new()).collect();
    let attempts = machines
        .iter()
        .enumerate()
        .map(|(number, machine)| machine.try_enrol(all[number % all.len()], &join));
    let answers = join_all(attempts).await;
    let (accepted, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(accepted.len(), 1);
    others
        .iter()
        .for_each(|answer| assert_eq!(answer.problem(), refused()));
    assert_eq!(all[0].count("SELECT count(*) FROM nodes").await, 1);
}

#[tokio::test]
async fn a3_a_lost_answer_is_given_again_and_no_second_use_is_taken() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let machine = NodeKeys::new();
    let finish = machine.finish(&coordinator, &join).await;
    let first = enrol(&coordinator, &finish).await.expect(200).json();
    assert_eq!(enrol(&coordinator, &finish).await.expect(200).json(), first);
    // An agent that was restarted meanwhile asks for a new challenge.
    assert_eq!(
        machine
            .try_enrol(&coordinator, &join)
            .await
            .expect(200)
            .json(),
        first
    );
    assert_eq!(coordinator.count("SELECT count(*) FROM nodes").await, 1);
    assert_eq!(coordinator.count("SELECT revision FROM mesh").await, 2);
    assert_eq!(
        NodeKeys::new()
            .try_enrol(&coordinator, &join)
            .await
            .problem(),
        refused()
    );
}

#[tokio::test]
async fn a4_whatever_is_wrong_with_a_token_is_answered_alike() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let wrong_secret = JoinString {
        secret: Secret::new("A".repeat(43)),
        ..join.clone()
    };
    let unknown = JoinString {
        token: wattle_wire::ids::TokenId(uuid::Uuid::now_v7()),
        ..join.clone()
    };
    for join in [&wrong_secret, &unknown] {
        assert_eq!(start(&coordinator, join).await.problem(), refused());
    }
    let mut finish = NodeKeys::new().finish(&coordinator, &join).await;
    finish.secret = wrong_secret.secret;
    assert_eq!(enrol(&coordinator, &finish).await.problem(), refused());

    let machine = NodeKeys::new();
    sqlx::query("UPDATE join_tokens SET expires_at = now()")
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    assert_eq!(
        machine.try_enrol(&coordinator, &join).await.problem(),
        refused()
    );
    sqlx::query("UPDATE join_tokens SET expires_at = now() + interval '1 hour'")
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let finish = machine.finish(&coordinator, &join).await;
    coordinator
        .delete(&format!("/join-tokens/{}", join.token))
        .await
        .expect(204);
    assert_eq!(enrol(&coordinator, &finish).await.problem(), refused());
    assert_eq!(start(&coordinator, &join).await.problem(), refused());
    assert_eq!(coordinator.count("SELECT count(*) FROM nodes").await, 0);
}

#[tokio::test]
async fn b13_forged_proofs_are_refused_and_take_no_use() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let (mine, theirs) = (NodeKeys::new(), NodeKeys::new());
    let honest = mine.finish(&coordinator, &join).await;

    let claim = Statement {
        wireguard_key: theirs.wireguard_key(),
        ..mine.statement(&join)
    };
    let mut foreign_wireguard = honest.clone();
    foreign_wireguard.statement = enrolment::sign_statement(&claim, &mine.identity).unwrap();
    let claim = Statement {
        identity: theirs.identity_key(),
        ..mine.statement(&join)
    };
    let mut foreign_identity = honest.clone();
    foreign_identity.statement = enrolment::sign_statement(&claim, &mine.identity).unwrap();
    let mut other_nonce = honest.clone();
    other_nonce.nonce = theirs.finish(&coordinator, &join).await.nonce;
    let mut altered = honest.clone();
    altered.statement.statement.push(' ');
    let mut old = honest.clone();
    old.nonce = enrolment::challenge_nonce(1, [0; 24]);
    for forged in [
        foreign_wireguard,
        foreign_identity,
        other_nonce,
        altered,
        old,
    ] {
        assert_eq!(
            enrol(&coordinator, &forged).await.problem(),
            (401, "proof_refused".to_owned(), None)
        );
    }
    enrol(&coordinator, &honest).await.expect(200);
}

#[tokio::test]
async fn a16_keys_of_others_and_of_revoked_nodes_do_not_enrol() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let join = new_site(&coordinator, json!({"name": "frankfurt"})).await;
    assert_eq!(
        dublin
            .machine
            .try_enrol(&coordinator, &join)
            .await
            .problem(),
        (409, "key_taken".to_owned(), Some("statement".to_owned()))
    );
    let same_wireguard = NodeKeys {
        wireguard: dublin.machine.wireguard.clone(),
        ..NodeKeys::new()
    };
    assert_eq!(
        same_wireguard
            .try_enrol(&coordinator, &join)
            .await
            .problem()
            .0,
        409
    );
    coordinator.delete("/nodes/dublin").await.expect(204);
    for machine in [&dublin.machine, &same_wireguard] {
        assert_eq!(
            machine.try_enrol(&coordinator, &join).await.problem(),
            (403, "key_revoked".to_owned(), None)
        );
    }
    NodeKeys::new().enrol(&coordinator, &join).await;
}

#[tokio::test]
async fn a5_a8_b11_e7_a_malformed_claim_or_one_of_prefixes_names_its_field_and_repeats_no_secret() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let honest = serde_json::to_value(NodeKeys::new().finish(&coordinator, &join).await).unwrap();
    for (field, value) in [
        ("token", json!("x")),
        ("nonce", json!("AAAA")),
        ("wireguard_proof", json!(7)),
        ("identity_proof", json!("")),
        ("endpoint", json!("127.0.0.1:1")),
        ("agent_version", json!("1\n2")),
        ("site", json!("frankfurt")),
        ("prefixes", json!(["0.0.0.0/0"])),
    ] {
        let mut body = honest.clone();
        body[field] = value;
        let answer = crate::harness::send(
            coordinator
                .client
                .post(coordinator.url("/agent/enrol/finish"))
                .json(&body),
        )
        .await;
        let (status, _, named) = answer.problem();
        assert_eq!(
            (status, named.as_deref()),
            (422, Some(field)),
            "{}",
            answer.text
        );
        assert!(!answer.text.contains(join.secret.reveal()));
    }
    // Keys that no honest machine has: all-zero, of low order, not canonical.
    for key in [
        "A".repeat(43) + "=",
        "AQ".to_owned() + &"A".repeat(41) + "=",
        "/".repeat(42) + "8=",
    ] {
        let mut body = honest.clone();
        let statement = honest["statement"]["statement"].as_str().unwrap();
        let at = statement.find("\"wireguard_key\":\"").unwrap() + 17;
        body["statement"]["statement"] = json!(format!(
            "{}{key}{}",
            &statement[..at],
            &statement[at + 44..]
        ));
        let answer = crate::harness::send(
            coordinator
                .client
                .post(coordinator.url("/agent/enrol/finish"))
                .json(&body),
        )
        .await;
        assert_eq!(answer.problem().1, "proof_refused");
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM nodes").await, 0);
}

#[tokio::test]
async fn b10_e10_an_endpoint_of_another_gateway_is_refused() {
    let coordinator = Coordinator::start().await;
    new_site(
        &coordinator,
        json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let join = new_site(&coordinator, json!({"name": "frankfurt"})).await;
    let machine = NodeKeys::new();
    let mut finish = machine.finish(&coordinator, &join).await;
    finish.endpoint = Some("203.0.113.10:51820".parse().unwrap());
    let answer = enrol(&coordinator, &finish).await;
    assert_eq!(
        answer.problem(),
        (
            409,
            "endpoint_taken".to_owned(),
            Some("endpoint".to_owned())
        )
    );
    assert_eq!(answer.json()["holder"]["site"], "dublin");
    finish.endpoint = Some("10.10.0.1:51820".parse().unwrap());
    assert_eq!(
        enrol(&coordinator, &finish).await.problem().1,
        "endpoint_in_subnet"
    );
    finish.endpoint = Some("198.51.100.20:51820".parse().unwrap());
    enrol(&coordinator, &finish).await.expect(200);
    assert_eq!(
        coordinator.get("/nodes/frankfurt").await.json()["endpoint"],
        "198.51.100.20:51820"
    );
}

#[tokio::test]
async fn e10_an_endpoint_that_a_node_names_is_tried_by_one_peer_and_by_all_once_one_has_met_it_there()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let seen = |links: Value| json!({"applied": "1.1", "device": "kernel", "links": links});
    for node in [&dublin, &cork] {
        node.report(&coordinator, seen(json!([]))).await.expect(204);
    }
    let mut streams = [
        dublin.follow(&coordinator, None).await,
        cork.follow(&coordinator, None).await,
    ];
    let join = new_site(&coordinator, json!({"name": "frankfurt"})).await;
    let machine = NodeKeys::new();
    let mut finish = machine.finish(&coordinator, &join).await;
    let endpoint = "198.51.100.20:51820".parse().unwrap();
    finish.endpoint = Some(endpoint);
    let frankfurt: Enrolled =
        serde_json::from_value(enrol(&coordinator, &finish).await.expect(200).json()).unwrap();

    // Both are told the same: that the one alone tries it.
    for stream in &mut streams {
        let tried = told_of(stream, |peer| peer.endpoint_check.is_some()).await;
        assert_eq!((tried.node, tried.endpoint), (frankfurt.node, None));
        assert_eq!(
            tried.endpoint_check,
            Some(EndpointCheck {
                endpoint,
                by: dublin.id()
            })
        );
        assert_eq!(
            (
                tried.endpoint_for(dublin.id()),
                tried.endpoint_for(cork.id())
            ),
            (Some(endpoint), None)
        );
    }
    let shown = coordinator.get("/nodes/frankfurt").await.json();
    assert_eq!(
        (&shown["endpoint"], &shown["endpoint_verified"]),
        (&json!(endpoint), &json!(false))
    );

    // Where its packets come from elsewhere, it has shown nothing.
    let link = |from: &str| json!([{"peer": frankfurt.node, "handshake_age_s": 1, "received_bytes": 1, "sent_bytes": 1, "endpoint": from}]);
    dublin
        .report(&coordinator, seen(link("192.0.2.66:51820")))
        .await
        .expect(204);
    coordinator
        .patch("/sites/frankfurt", json!({"endpoint": "203.0.113.9:51820"}))
        .await
        .expect(200);
    let hinted = told_of(&mut streams[1], |peer| peer.endpoint.is_some()).await;
    assert_eq!(
        hinted.endpoint,
        Some("203.0.113.9:51820".parse().unwrap()),
        "where the operator says, all look"
    );
    assert!(hinted.endpoint_check.is_some());
    cork.report(&coordinator, seen(link("198.51.100.20:40000")))
        .await
        .expect(204);
    for stream in &mut streams {
        let met = told_of(stream, |peer| {
            peer.endpoint_check.is_none() && peer.endpoint.is_some()
        })
        .await;
        assert_eq!(met.endpoint, Some(endpoint));
    }
    assert_eq!(
        coordinator.get("/nodes/frankfurt").await.json()["endpoint_verified"],
        true
    );
    let actions = "SELECT count(*) FROM events WHERE object = (SELECT id::text FROM nodes WHERE \
        name = 'frankfurt') AND action LIKE 'node.endpoint.%'";
    assert_eq!(coordinator.count(actions).await, 2, "it was tried and met");
}

/// The next that a stream tells of a peer of which this holds.
async fn told_of(stream: &mut Follower, holds: impl Fn(&Peer) -> bool) -> Peer {
    loop {
        let (peers, changes) = match stream.news().await {
            Some(StreamMessage::Snapshot { view, .. }) => (view.peers, Vec::new()),
            Some(StreamMessage::Delta { changes, .. }) => (Vec::new(), changes),
            other => panic!("{other:?}"),
        };
        let changed = changes.into_iter().filter_map(|change| {
            if let ViewChange::Peer(peer) = change {
                Some(peer)
            } else {
                None
            }
        });
        if let Some(peer) = peers.into_iter().chain(changed).find(&holds) {
            return peer;
        }
    }
}

#[tokio::test]
async fn gateways_of_one_site_that_enrol_at_one_moment_get_names_addresses_and_one_active_among_them()
 {
    let coordinator = Coordinator::start().await;
    let mut joins = vec![new_site(&coordinator, json!({"name": "dublin"})).await];
    for _ in 0..5 {
        let created = coordinator
            .post("/sites/dublin/join-tokens", json!({}))
            .await
            .expect(201)
            .json();
        joins.push(created["join_string"].as_str().unwrap().parse().unwrap());
    }
    join_all(
        joins
            .iter()
            .map(|join| NodeKeys::new().enrol(&coordinator, join)),
    )
    .await;
    let nodes = coordinator.get("/nodes").await.json()["items"]
        .as_array()
        .unwrap()
        .clone();
    let distinct = |field: &str| {
        nodes
            .iter()
            .map(|node| node[field].to_string())
            .collect::<BTreeSet<_>>()
            .len()
    };
    assert_eq!(
        (nodes.len(), distinct("name"), distinct("tunnel_address")),
        (6, 6, 6)
    );
    assert_eq!(
        nodes
            .iter()
            .filter(|node| node["state"] == "active")
            .count(),
        1
    );
}
