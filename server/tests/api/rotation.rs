//! New WireGuard keys, as nodes announce and take them up.

use reqwest::Method;
use serde_json::{Value, json};
use wattle_mesh::keys::enrolment;
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    key::{Signature, WireguardKey},
    rotation::{KeyAnnouncement, SignedAnnouncement},
    stream::{StreamMessage, ViewChange},
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    agents::{Node, NodeKeys, enrol, new_node, new_site},
    harness::{Answer, Coordinator, send},
    identity_rotation::{self, succeed},
};

/// A key that a node is about to take up, and what the node says of it.
pub(crate) struct NextKey {
    pub(crate) secret: StaticSecret,
    pub(crate) announcement: SignedAnnouncement,
    pub(crate) statement: SignedStatement,
}

impl NextKey {
    pub(crate) fn new(node: &Node, sequence: u64) -> Self {
        Self::of(node, &node.machine, StaticSecret::random(), sequence)
    }

    /// Signed by any machine.
    fn of(node: &Node, by: &NodeKeys, secret: StaticSecret, sequence: u64) -> Self {
        let key = WireguardKey::try_from(PublicKey::from(&secret).to_bytes()).unwrap();
        let statement = Statement {
            mesh: node.enrolled.mesh,
            identity: by.identity_key(),
            wireguard_key: key,
            sequence,
            predecessors: vec![],
            unmanaged: false,
        };
        Self::saying(by, secret, &statement)
    }

    fn saying(by: &NodeKeys, secret: StaticSecret, statement: &Statement) -> Self {
        Self {
            secret,
            announcement: enrolment::sign_announcement(statement, &by.identity).unwrap(),
            statement: enrolment::sign_statement(statement, &by.identity).unwrap(),
        }
    }

    pub(crate) fn key(&self) -> WireguardKey {
        WireguardKey::try_from(PublicKey::from(&self.secret).to_bytes()).unwrap()
    }

    /// The announcement, passed off as a statement.
    fn as_statement(&self) -> SignedStatement {
        SignedStatement {
            statement: self.announcement.announcement.clone(),
            signature: self.announcement.signature,
        }
    }

    /// The statement, passed off as an announcement.
    fn as_announcement(&self) -> SignedAnnouncement {
        SignedAnnouncement {
            announcement: self.statement.statement.clone(),
            signature: self.statement.signature,
        }
    }
}

pub(crate) async fn step(coordinator: &Coordinator, node: &Node, body: Value) -> Answer {
    send(
        node.request(coordinator, Method::POST, "/agent/rotation")
            .json(&body),
    )
    .await
}

pub(crate) async fn announce(coordinator: &Coordinator, node: &Node, next: &NextKey) -> Answer {
    let claim = claim(coordinator, node, &next.announcement, &next.secret).await;
    step(coordinator, node, json!({"announce": claim})).await
}

/// An announcement with a proof of this key.
async fn claim(
    coordinator: &Coordinator,
    node: &Node,
    announcement: &SignedAnnouncement,
    secret: &StaticSecret,
) -> KeyAnnouncement {
    let answer = step(coordinator, node, json!({"prepare": {}})).await;
    let challenge = answer.expect(200).json()["challenge"].clone();
    let challenge = serde_json::from_value(challenge).unwrap();
    enrolment::prove_announced(&challenge, announcement.clone(), secret)
}

pub(crate) async fn done(coordinator: &Coordinator, node: &Node, next: &NextKey) -> Answer {
    step(coordinator, node, json!({"done": next.statement})).await
}

async fn withdraw(coordinator: &Coordinator, node: &Node) {
    step(coordinator, node, json!({"withdraw": {}}))
        .await
        .expect(200);
}

/// What stands for a node's word: the coordinator forwards it, and has no use for it.
fn word_of(node: &Node) -> Signature {
    let mut word = [0; 64];
    word[..32].copy_from_slice(node.machine.wireguard_key().as_bytes());
    Signature::from(word)
}

async fn armed(coordinator: &Coordinator, node: &Node, peer: &Node, sequence: u64) {
    let word = word_of(node);
    let armed = json!([{"peer": peer.id(), "sequence": sequence, "signature": word}]);
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

    let next = NextKey::new(&dublin, 2);
    let ready = |answer: Answer| answer.expect(200).json()["ready"].clone();
    let word = |node: &Node| json!({"node": node.id(), "signature": word_of(node)});
    assert_eq!(
        ready(announce(&coordinator, &dublin, &next).await),
        json!([])
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
    assert_eq!(told, next.announcement, "byte for byte");

    armed(&coordinator, &frankfurt, &dublin, 2).await;
    armed(&coordinator, &new_york, &dublin, 1).await;
    assert_eq!(
        ready(announce(&coordinator, &dublin, &next).await),
        json!([word(&frankfurt)])
    );
    armed(&coordinator, &new_york, &dublin, 2).await;
    assert_eq!(
        ready(announce(&coordinator, &dublin, &next).await),
        json!([word(&frankfurt), word(&new_york)])
    );

    for _ in 0..2 {
        done(&coordinator, &dublin, &next).await.expect(200);
    }
    let shown = coordinator.get("/nodes/dublin").await.json();
    assert_eq!(
        (&shown["wireguard_key"], &shown["rotation"]),
        (&json!(next.key()), &Value::Null)
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
    let (first, second) = (NextKey::new(&dublin, 2), NextKey::new(&frankfurt, 2));
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
        withdraw(&coordinator, &dublin).await;
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
    let first = NextKey::new(&dublin, 3);
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
async fn b21_a_node_that_announces_again_and_again_gives_others_their_turn() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, cork] = three(&coordinator).await;
    let [first, second, third] = [&dublin, &frankfurt, &cork].map(|node| NextKey::new(node, 2));
    let is_let_in = async |node: &Node, next: &NextKey| {
        let answer = announce(&coordinator, node, next).await;
        let is_let_in = answer.status == 200;
        if !is_let_in {
            assert_eq!(answer.problem().1, "rotation_under_way");
        }
        is_let_in
    };
    let goes_by = async |seconds: i32| {
        let age = "UPDATE nodes SET announced_at = announced_at - make_interval(secs => $1), \
            turn_since = turn_since - make_interval(secs => $1), \
            turn_asked_at = turn_asked_at - make_interval(secs => $1)";
        let mut connection = coordinator.connection().await;
        let aged = sqlx::query(age).bind(seconds).execute(&mut connection);
        aged.await.unwrap();
    };
    assert!(is_let_in(&dublin, &first).await);
    assert!(!is_let_in(&frankfurt, &second).await);
    assert!(!is_let_in(&cork, &third).await);
    goes_by(61).await;
    assert!(!is_let_in(&frankfurt, &second).await);
    assert!(!is_let_in(&cork, &third).await);
    // Neither its standing key nor another one keeps the turn.
    assert!(!is_let_in(&dublin, &first).await);
    assert!(!is_let_in(&dublin, &NextKey::new(&dublin, 3)).await);
    goes_by(5).await;
    assert!(!is_let_in(&cork, &third).await);
    assert!(!is_let_in(&frankfurt, &second).await);
    withdraw(&coordinator, &dublin).await;
    // In the order in which they asked.
    assert!(!is_let_in(&dublin, &NextKey::new(&dublin, 3)).await);
    assert!(!is_let_in(&cork, &third).await);
    assert!(is_let_in(&frankfurt, &second).await);
    withdraw(&coordinator, &frankfurt).await;
    // Who does not ask any more is not waited for.
    goes_by(11).await;
    assert!(is_let_in(&dublin, &NextKey::new(&dublin, 3)).await);
}

#[tokio::test]
async fn a_key_that_is_anothers_and_a_statement_that_does_not_follow_are_refused() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let random = StaticSecret::random;
    let by = |machine, secret, sequence| NextKey::of(&dublin, machine, secret, sequence);
    let unreadable = NextKey {
        announcement: SignedAnnouncement {
            announcement: "{}".to_owned(),
            ..NextKey::new(&dublin, 2).announcement
        },
        ..NextKey::new(&dublin, 2)
    };
    for next in [
        by(&frankfurt.machine, random(), 2),
        NextKey::new(&dublin, 1),
        NextKey::new(&dublin, u64::MAX),
        unreadable,
    ] {
        assert_eq!(
            announce(&coordinator, &dublin, &next).await.problem(),
            invalid(),
            "{:?}",
            next.announcement
        );
        assert_eq!(
            done(&coordinator, &dublin, &next).await.problem().1,
            "not_announced"
        );
    }
    for secret in [&frankfurt.machine.wireguard, &dublin.machine.wireguard] {
        let next = by(&dublin.machine, secret.clone(), 2);
        assert_eq!(
            announce(&coordinator, &dublin, &next).await.problem().1,
            "key_taken"
        );
        assert_eq!(
            done(&coordinator, &dublin, &next).await.problem().1,
            "not_announced"
        );
    }
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["wireguard_key"],
        json!(dublin.machine.wireguard_key())
    );
    let stranger = json!([{"peer": dublin.id(), "sequence": 1, "signature": word_of(&dublin)}]);
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

    let next = NextKey::new(&dublin, 2);
    announce(&coordinator, &dublin, &next).await.expect(200);
    let file_is_current = async || {
        coordinator.get("/nodes/cork").await.json()["unmanaged"]["file_is_current"].clone()
    };
    assert_eq!(file_is_current().await, true);
    done(&coordinator, &dublin, &next).await.expect(200);
    assert_eq!(file_is_current().await, false);

    // A node with an agent stays one.
    let secret = StaticSecret::random();
    let claim = Statement {
        mesh: frankfurt.enrolled.mesh,
        identity: frankfurt.machine.identity_key(),
        wireguard_key: WireguardKey::try_from(PublicKey::from(&secret).to_bytes()).unwrap(),
        sequence: 2,
        predecessors: vec![],
        unmanaged: true,
    };
    let claim = NextKey::saying(&frankfurt.machine, secret, &claim);
    assert_eq!(
        announce(&coordinator, &frankfurt, &claim).await.problem(),
        invalid()
    );
    assert_eq!(
        done(&coordinator, &frankfurt, &claim).await.problem().1,
        "not_announced"
    );
}

/// A statement or announcement that is not taken.
fn invalid() -> (u16, String, Option<String>) {
    (422, "statement".to_owned(), Some("statement".to_owned()))
}

#[tokio::test]
async fn a21_whoever_has_seen_an_announcement_cannot_pass_it_off_as_a_statement_anywhere() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let join = new_site(&coordinator, json!({"name": "cork"})).await;
    let next = NextKey::new(&dublin, 2);
    announce(&coordinator, &dublin, &next).await.expect(200);
    let revisions = "SELECT count(*) FROM changes";
    for is_withdrawn in [false, true] {
        if is_withdrawn {
            withdraw(&coordinator, &dublin).await;
        }
        let before = coordinator.count(revisions).await;
        let seen = next.as_statement();
        // A stranger says so for every node, and with a join token as a machine that enrols.
        for node in [&dublin, &frankfurt] {
            succeed(&coordinator, node.id(), &seen).await.expect(401);
        }
        let mut applicant = NodeKeys::new().finish(&coordinator, &join).await;
        applicant.statement = seen.clone();
        enrol(&coordinator, &applicant).await.expect(401);
        // With tokens of nodes, that of the one which has announced it among them.
        for node in [&dublin, &frankfurt] {
            let passed_off = step(&coordinator, node, json!({"done": seen})).await;
            assert_eq!(passed_off.problem(), invalid());
        }
        // Nor is a statement an announcement.
        let reverse = claim(&coordinator, &dublin, &next.as_announcement(), &next.secret).await;
        let reverse = json!({"announce": reverse});
        assert_eq!(
            step(&coordinator, &dublin, reverse).await.problem(),
            invalid()
        );
        // The statement itself, which only the node has, needs its token and an announcement.
        assert_eq!(
            succeed(&coordinator, dublin.id(), &next.statement)
                .await
                .problem(),
            invalid()
        );
        assert_eq!(coordinator.count(revisions).await, before);
        assert_eq!(
            coordinator.get("/nodes/dublin").await.json()["wireguard_key"],
            json!(dublin.machine.wireguard_key())
        );
    }
}

#[tokio::test]
async fn a22_no_number_is_used_twice_and_what_was_withdrawn_is_never_taken_up() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let first = NextKey::new(&dublin, 4);
    announce(&coordinator, &dublin, &first).await.expect(200);
    withdraw(&coordinator, &dublin).await;
    for sequence in [2, 3, 4] {
        let spent = NextKey::new(&dublin, sequence);
        assert_eq!(
            announce(&coordinator, &dublin, &spent).await.problem(),
            invalid(),
            "{sequence}"
        );
    }
    assert_eq!(
        announce(&coordinator, &dublin, &first).await.problem(),
        invalid()
    );
    assert_eq!(
        done(&coordinator, &dublin, &first).await.problem(),
        (
            409,
            "not_announced".to_owned(),
            Some("statement".to_owned())
        )
    );
    let highest = send(dublin.request(&coordinator, Method::GET, "/agent/view"))
        .await
        .expect(200)
        .json()["myself"]["keys"]["highest"]
        .clone();
    assert_eq!(highest, 4, "the node is told");

    // Its own numbers are nobody else's.
    let other = NextKey::new(&frankfurt, 2);
    announce(&coordinator, &frankfurt, &other).await.expect(200);
    done(&coordinator, &frankfurt, &other).await.expect(200);

    let second = NextKey::new(&dublin, 5);
    announce(&coordinator, &dublin, &second).await.expect(200);
    let revisions = "SELECT count(*) FROM changes";
    let before = coordinator.count(revisions).await;
    announce(&coordinator, &dublin, &second).await.expect(200);
    assert_eq!(coordinator.count(revisions).await, before);
    let another = NextKey::new(&dublin, 5);
    for next in [&first, &another] {
        assert_eq!(
            done(&coordinator, &dublin, next).await.problem().1,
            "not_announced"
        );
    }
    for _ in 0..2 {
        done(&coordinator, &dublin, &second).await.expect(200);
    }
    assert_eq!(
        announce(&coordinator, &dublin, &second).await.problem(),
        invalid()
    );
}

#[tokio::test]
async fn a23_who_does_not_have_the_new_private_key_does_not_announce_it() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let join = new_site(&coordinator, json!({"name": "cork"})).await;
    let (next, other) = (NextKey::new(&dublin, 2), NextKey::new(&dublin, 3));
    let honest = claim(&coordinator, &dublin, &next.announcement, &next.secret).await;
    let enrolment = NodeKeys::new().finish(&coordinator, &join).await;
    for (claim, why) in [
        (
            claim(&coordinator, &dublin, &next.announcement, &other.secret).await,
            "another key",
        ),
        (
            KeyAnnouncement {
                announcement: other.announcement.clone(),
                ..honest.clone()
            },
            "another announcement",
        ),
        (
            KeyAnnouncement {
                nonce: enrolment.nonce,
                ..honest.clone()
            },
            "another challenge",
        ),
        (
            KeyAnnouncement {
                nonce: [0; 32].into(),
                ..honest.clone()
            },
            "long expired",
        ),
    ] {
        let refused = step(&coordinator, &dublin, json!({"announce": claim})).await;
        let field = Some("wireguard_proof".to_owned());
        assert_eq!(
            refused.problem(),
            (422, "key_not_proved".to_owned(), field),
            "{why}"
        );
    }
    for field in ["nonce", "wireguard_proof"] {
        let mut without = json!(honest);
        without.as_object_mut().unwrap().remove(field);
        let refused = step(&coordinator, &dublin, json!({"announce": without})).await;
        assert_eq!(refused.status, 422, "{field}");
    }
    // What another node proves is not this one's.
    let stolen = step(&coordinator, &frankfurt, json!({"announce": honest})).await;
    assert_eq!(stolen.problem(), invalid());
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["rotation"],
        Value::Null
    );
    let taken = step(&coordinator, &dublin, json!({"announce": honest})).await;
    taken.expect(200);
}

#[tokio::test]
async fn a24_a_key_that_a_node_had_or_announced_is_nobodys_again_and_of_a_revoked_node_revoked() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let join = new_site(&coordinator, json!({"name": "cork"})).await;
    let (withdrawn, replaced, present) = (
        NextKey::new(&dublin, 2),
        NextKey::new(&dublin, 3),
        NextKey::new(&dublin, 4),
    );
    announce(&coordinator, &dublin, &withdrawn)
        .await
        .expect(200);
    withdraw(&coordinator, &dublin).await;
    announce(&coordinator, &dublin, &replaced).await.expect(200);
    announce(&coordinator, &dublin, &present).await.expect(200);
    done(&coordinator, &dublin, &present).await.expect(200);
    let keys = [
        &dublin.machine.wireguard,
        &withdrawn.secret,
        &replaced.secret,
        &present.secret,
    ];
    for is_revoked in [false, true] {
        let refused = if is_revoked {
            coordinator.delete("/nodes/dublin").await.expect(204);
            (403, "key_revoked".to_owned(), None)
        } else {
            (409, "key_taken".to_owned(), Some("statement".to_owned()))
        };
        for key in keys {
            let machine = NodeKeys {
                wireguard: key.clone(),
                ..NodeKeys::new()
            };
            assert_eq!(
                machine.try_enrol(&coordinator, &join).await.problem(),
                refused
            );
            let next = NextKey::of(&frankfurt, &frankfurt.machine, key.clone(), 2);
            assert_eq!(
                announce(&coordinator, &frankfurt, &next).await.problem().1,
                "key_taken"
            );
        }
    }
    let former = "SELECT count(*) FROM former_keys";
    assert_eq!(coordinator.count(former).await, 3, "a row for each");
}

#[tokio::test]
async fn a25_a_node_gives_up_few_keys_in_an_hour_and_is_ready_for_announced_ones_alone() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, _] = three(&coordinator).await;
    let next = NextKey::new(&dublin, 2);
    announce(&coordinator, &dublin, &next).await.expect(200);
    for sequence in [1, 3, 7, u64::MAX, 2] {
        armed(&coordinator, &frankfurt, &dublin, sequence).await;
    }
    armed(&coordinator, &frankfurt, &frankfurt, 2).await;
    let stored = "SELECT count(*) FROM armed_peers WHERE sequence <> 2";
    coordinator
        .until("SELECT count(*) FROM armed_peers WHERE sequence = 2", 1)
        .await;
    assert_eq!(coordinator.count(stored).await, 0);

    withdraw(&coordinator, &dublin).await;
    for sequence in 3..22 {
        let next = NextKey::new(&dublin, sequence);
        announce(&coordinator, &dublin, &next).await.expect(200);
        withdraw(&coordinator, &dublin).await;
    }
    let next = NextKey::new(&dublin, 22);
    let refused = announce(&coordinator, &dublin, &next).await;
    assert_eq!(refused.problem(), (429, "too_many_keys".to_owned(), None));
    assert_eq!(refused.headers["retry-after"], "600");
    let other = NextKey::new(&frankfurt, 2);
    announce(&coordinator, &frankfurt, &other).await.expect(200);
    done(&coordinator, &frankfurt, &other).await.expect(200);
    let age = sqlx::query("UPDATE former_keys SET since = since - interval '1 hour'");
    age.execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    announce(&coordinator, &dublin, &next).await.expect(200);
}

/// As if a node had made so many changes, some time ago.
async fn made_changes(coordinator: &Coordinator, node: &Node, count: i32, minutes_ago: i32) {
    let events = "INSERT INTO events
            (number, at, actor, actor_name, action, object, object_name, changes, hash)
        SELECT -(SELECT count(*) FROM events) - made, now() - interval '1 minute' * $2,
            'node:' || $1, 'a node', 'node.key.announce', $1, 'a node', '[]',
            decode(repeat('61', 32), 'hex')
        FROM generate_series(1, $3) AS made";
    sqlx::query(events)
        .bind(node.id().to_string())
        .bind(minutes_ago)
        .bind(count)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
}

#[tokio::test]
async fn b20_a_node_makes_few_changes_in_an_hour_whatever_they_are() {
    let coordinator = Coordinator::start().await;
    let [dublin, frankfurt, new_york] = three(&coordinator).await;
    made_changes(&coordinator, &dublin, 59, 30).await;
    made_changes(&coordinator, &frankfurt, 60, 30).await;
    made_changes(&coordinator, &new_york, 200, 61).await;
    let next = NextKey::new(&dublin, 2);
    announce(&coordinator, &dublin, &next).await.expect(200);

    let revisions = "SELECT revision FROM mesh";
    let before = coordinator.count(revisions).await;
    let machine = identity_rotation::machine_of(&frankfurt);
    let identity = machine.preparing_identity(&[7; 32]).unwrap();
    let mesh = dublin.enrolled.mesh;
    let identity = identity.next_identity_statement(mesh).unwrap().unwrap();
    for refused in [
        step(&coordinator, &dublin, json!({"withdraw": {}})).await,
        done(&coordinator, &dublin, &next).await,
        succeed(&coordinator, frankfurt.id(), &identity).await,
    ] {
        let too_many = (429, "too_many_changes".to_owned(), None);
        assert_eq!(refused.problem(), too_many);
        assert_eq!(refused.headers["retry-after"], "600");
    }
    assert_eq!(coordinator.count(revisions).await, before);
    // What changes nothing is no change, and others go on.
    announce(&coordinator, &dublin, &next).await.expect(200);
    withdraw(&coordinator, &new_york).await;
    coordinator.delete("/nodes/dublin").await.expect(204);
    let next = NextKey::new(&new_york, 2);
    announce(&coordinator, &new_york, &next).await.expect(200);
}

#[tokio::test]
async fn b20_of_revisions_the_last_ten_thousand_are_kept_and_who_is_further_behind_reads_the_whole()
{
    let coordinator = Coordinator::start().await;
    let [dublin, ..] = three(&coordinator).await;
    let other = coordinator.another().await;
    // As if much had been changed that the other one has not heard of.
    let grow =
        "WITH moved AS (UPDATE mesh SET revision = revision + 10500 RETURNING revision, epoch)
        INSERT INTO changes (revision, epoch, changes)
        SELECT generate_series(revision - 9999, revision), epoch, '[]' FROM moved";
    sqlx::query(grow)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let db = &coordinator.server.app.db;
    wattle_server::server::forget_old(db).await.unwrap();
    let kept = "SELECT count(*) FROM changes";
    assert_eq!(coordinator.count(kept).await, 10_000);
    for at in [&coordinator, &other] {
        at.server.app.mesh_cache.refresh().await;
        let position = at.server.app.mesh_cache.position();
        assert_eq!(
            position.revision,
            coordinator.count("SELECT revision FROM mesh").await
        );
        let since = Some("1.2".parse().unwrap());
        let message = dublin.follow(at, since).await.next().await;
        assert!(matches!(message, Some(StreamMessage::Snapshot { .. })));
    }
}
