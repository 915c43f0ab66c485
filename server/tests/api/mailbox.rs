//! `/agent/mailbox` and the setting that goes with it.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use wattle_wire::stream::StreamMessage;

use crate::{
    agents::{Node, NodeKeys, new_node},
    harness::{Answer, Coordinator, send},
};

fn letter(to: &Node, text: &str) -> Value {
    json!({"to": to.id(), "message": {"message": text, "signature": format!("{}==", "A".repeat(86))}})
}

async fn errand(coordinator: &Coordinator, node: &Node, body: Value) -> Answer {
    send(
        node.request(coordinator, Method::POST, "/agent/mailbox")
            .json(&body),
    )
    .await
}

/// What waits for a node: numbers, senders and texts.
async fn mail(coordinator: &Coordinator, node: &Node) -> Vec<(i64, Value, String)> {
    let mail = errand(coordinator, node, json!({}))
        .await
        .expect(200)
        .json();
    let letters = mail["letters"].as_array().unwrap().iter();
    letters
        .map(|letter| {
            (
                letter["id"].as_i64().unwrap(),
                letter["from"].clone(),
                letter["message"]["message"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

async fn three(coordinator: &Coordinator) -> [Node; 3] {
    [
        new_node(coordinator, json!({"name": "dublin"})).await,
        new_node(coordinator, json!({"name": "frankfurt"})).await,
        new_node(coordinator, json!({"name": "new-york"})).await,
    ]
}

#[tokio::test]
async fn a6_a_letter_reaches_its_recipient_alone_who_alone_takes_it_away() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    errand(
        &coordinator,
        &dublin,
        json!({"leave": [letter(&frankfurt, "one")]}),
    )
    .await
    .expect(200);
    let found = mail(&coordinator, &frankfurt).await;
    let [(id, from, text)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((from, text.as_str()), (&json!(dublin.id()), "one"));
    for other in [&dublin, &new_york] {
        assert_eq!(mail(&coordinator, other).await, []);
        errand(&coordinator, other, json!({"taken": [id]}))
            .await
            .expect(200);
    }
    assert_eq!(
        mail(&coordinator, &frankfurt).await,
        found,
        "nobody else takes it away"
    );
    errand(&coordinator, &frankfurt, json!({"taken": [id]}))
        .await
        .expect(200);
    assert_eq!(mail(&coordinator, &frankfurt).await, []);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM psk_messages").await,
        0
    );
}

#[tokio::test]
async fn b16_one_letter_waits_for_each_pair_and_who_takes_the_old_one_leaves_the_new_one() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    errand(
        &coordinator,
        &dublin,
        json!({"leave": [letter(&frankfurt, "old")]}),
    )
    .await
    .expect(200);
    let old = mail(&coordinator, &frankfurt).await[0].0;
    for number in 0..20 {
        let leave = [
            letter(&frankfurt, "older"),
            letter(&frankfurt, &format!("number {number}")),
        ];
        errand(&coordinator, &dublin, json!({"leave": leave}))
            .await
            .expect(200);
    }
    errand(
        &coordinator,
        &new_york,
        json!({"leave": [letter(&frankfurt, "from new york")]}),
    )
    .await
    .expect(200);
    errand(&coordinator, &frankfurt, json!({"taken": [old]}))
        .await
        .expect(200);
    let texts: Vec<_> = mail(&coordinator, &frankfurt)
        .await
        .into_iter()
        .map(|(_, _, text)| text)
        .collect();
    assert_eq!(texts, ["number 19", "from new york"]);
}

#[tokio::test]
async fn b16_letters_that_are_too_long_too_many_or_for_no_peer_are_refused_and_none_of_them_is_left()
 {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let good = || letter(&frankfurt, &"x".repeat(2048));
    let revoked = new_node(&coordinator, json!({"name": "sao-paulo"})).await;
    coordinator
        .delete(&format!("/nodes/{}", revoked.id()))
        .await
        .expect(204);
    let problem =
        |status, code: &str, field: &str| (status, code.to_owned(), Some(field.to_owned()));
    for (leave, expected) in [
        (
            vec![good(), letter(&frankfurt, &"x".repeat(2049))],
            problem(413, "too_large", "leave[1]"),
        ),
        (
            vec![good(), letter(&dublin, "to myself")],
            problem(404, "not_found", "leave[1]"),
        ),
        (
            vec![letter(&revoked, "hello?")],
            problem(404, "not_found", "leave[0]"),
        ),
        (vec![good(); 65], problem(422, "too_many", "leave")),
        (
            vec![json!({"from": frankfurt.id(), "to": frankfurt.id(), "message": {}})],
            problem(422, "unknown_field", "leave[0].from"),
        ),
    ] {
        assert_eq!(
            errand(&coordinator, &dublin, json!({"leave": leave}))
                .await
                .problem(),
            expected
        );
    }
    let taken = vec![1; 65];
    assert_eq!(
        errand(&coordinator, &dublin, json!({"taken": taken}))
            .await
            .problem(),
        problem(422, "too_many", "taken")
    );
    assert_eq!(mail(&coordinator, &frankfurt).await, []);
    errand(&coordinator, &dublin, json!({"leave": [good()]}))
        .await
        .expect(200);
}

#[tokio::test]
async fn the_recipient_is_told_on_its_stream_by_whichever_coordinator_it_follows() {
    let coordinator = Coordinator::start().await;
    let further = coordinator.another().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    let mut near = frankfurt.follow(&coordinator, None).await;
    let mut far = new_york.follow(&further, None).await;
    for follower in [&mut near, &mut far] {
        assert!(matches!(
            follower.news().await,
            Some(StreamMessage::Snapshot { .. })
        ));
    }
    errand(
        &coordinator,
        &dublin,
        json!({"leave": [letter(&frankfurt, "hello"), letter(&new_york, "hello")]}),
    )
    .await
    .expect(200);
    for follower in [&mut near, &mut far] {
        assert_eq!(follower.news().await, Some(StreamMessage::MessagesWaiting));
    }
    // A letter that came before the stream is told of, too.
    let mut again = frankfurt.follow(&further, None).await;
    assert!(matches!(
        again.news().await,
        Some(StreamMessage::Snapshot { .. })
    ));
    assert_eq!(again.news().await, Some(StreamMessage::MessagesWaiting));
}

#[tokio::test]
async fn letters_of_a_revoked_node_go_with_it() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    let leave = [letter(&frankfurt, "hello"), letter(&new_york, "hello")];
    errand(&coordinator, &dublin, json!({"leave": leave}))
        .await
        .expect(200);
    errand(
        &coordinator,
        &new_york,
        json!({"leave": [letter(&frankfurt, "hello")]}),
    )
    .await
    .expect(200);
    coordinator
        .delete(&format!("/nodes/{}", dublin.id()))
        .await
        .expect(204);
    let left: Vec<_> = mail(&coordinator, &frankfurt)
        .await
        .into_iter()
        .map(|(_, from, _)| from)
        .collect();
    assert_eq!(left, [json!(new_york.id())]);
    coordinator.delete("/sites/new-york").await.expect(204);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM psk_messages").await,
        0
    );
}

#[tokio::test]
async fn a_new_mesh_requires_preshared_keys_and_a_change_reaches_every_node() {
    let coordinator = Coordinator::start().await;
    let node = NodeKeys::new()
        .enrol(
            &coordinator,
            &crate::agents::new_site(&coordinator, json!({"name": "dublin"})).await,
        )
        .await;
    assert_eq!(
        coordinator.get("/mesh").await.expect(200).json()["psk"],
        "require"
    );
    let mut follower = node.follow(&coordinator, None).await;
    assert!(matches!(
        follower.news().await,
        Some(StreamMessage::Snapshot { .. })
    ));
    assert_eq!(
        coordinator
            .patch("/mesh", json!({"psk": "prefer"}))
            .await
            .expect(200)
            .json()["psk"],
        "prefer"
    );
    let Some(StreamMessage::Delta { changes, .. }) = follower.news().await else {
        panic!("no delta")
    };
    assert_eq!(
        serde_json::to_value(changes).unwrap()[0]["mesh"]["psk"],
        "prefer"
    );
    let position = coordinator
        .patch("/mesh", json!({"psk": "prefer"}))
        .await
        .expect(200)
        .headers["wattle-position"]
        .clone();
    assert_eq!(
        coordinator.get("/mesh").await.headers["wattle-position"],
        position,
        "the same again takes no revision"
    );
    for bad in [json!({"psk": "never"}), json!({"keepalive": 1})] {
        coordinator.patch("/mesh", bad).await.expect(422);
    }
}

#[tokio::test]
async fn two_nodes_that_answer_each_other_at_the_same_moment_do_not_wait_for_one_another() {
    /// How many messages each leaves.
    const MESSAGES: usize = 100;
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    let begin = Instant::now();
    let converse = async |me: &Node, others: [&Node; 2]| {
        let mut taken = Vec::new();
        for message in 0..MESSAGES {
            let text = message.to_string();
            let leave = others.map(|other| letter(other, &text));
            let answer = errand(&coordinator, me, json!({"leave": leave, "taken": taken}));
            let mail = answer.await.expect(200).json();
            let letters = mail["letters"].as_array().unwrap().iter();
            taken = letters.map(|letter| letter["id"].clone()).collect();
        }
    };
    tokio::join!(
        converse(&dublin, [&frankfurt, &new_york]),
        converse(&frankfurt, [&new_york, &dublin]),
        converse(&new_york, [&dublin, &frankfurt]),
    );
    assert!(begin.elapsed() < Duration::from_secs(30));
}
