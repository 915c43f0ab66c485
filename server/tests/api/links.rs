//! `/links` and `/agent/report`

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;
use wattle_server::state::link_tracker::queries;
use wattle_wire::{ids::NodeId, stream::StreamMessage};

use crate::{
    agents::{Node, new_node},
    harness::{Coordinator, SOON, send},
};

fn said(peer: NodeId, age: Value) -> Value {
    json!({"peer": peer, "handshake_age_s": age, "received_bytes": 10, "sent_bytes": 20, "endpoint": "198.51.100.20:51820"})
}

fn report(links: &[Value]) -> Value {
    json!({"applied": "1.4", "device": "userspace", "links": links})
}

async fn states(coordinator: &Coordinator) -> Vec<String> {
    let links = coordinator.get("/links").await.expect(200).json();
    links["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["state"].as_str().unwrap().to_owned())
        .collect()
}

async fn two_nodes(coordinator: &Coordinator) -> (Node, Node) {
    (
        new_node(coordinator, json!({"name": "dublin"})).await,
        new_node(coordinator, json!({"name": "frankfurt"})).await,
    )
}

#[tokio::test]
async fn e9_a_link_is_up_when_both_ends_say_so() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    assert_eq!(states(&coordinator).await, ["never"]);
    dublin
        .report(&coordinator, report(&[said(frankfurt.id(), json!(3))]))
        .await
        .expect(204);
    assert_eq!(states(&coordinator).await, ["degraded"]);
    // The other end follows another coordinator; the database joins what they say.
    frankfurt
        .report(&another, report(&[said(dublin.id(), json!(5))]))
        .await
        .expect(204);
    assert_eq!(
        (states(&coordinator).await, states(&another).await),
        (vec!["up".to_owned()], vec!["up".to_owned()])
    );
    let link = &coordinator.get("/links").await.json()["items"][0];
    let end = &link["ends"][0];
    assert_eq!(
        (&end["name"], &end["up"], &end["received_bytes"]),
        (&json!("dublin"), &json!(true), &json!(10))
    );
    assert_eq!(end["peer_endpoint"], "198.51.100.20:51820");
    assert!(link["since"].is_string() && end["last_handshake_at"].is_string());
    dublin
        .report(&coordinator, report(&[said(frankfurt.id(), json!(181))]))
        .await
        .expect(204);
    assert_eq!(states(&coordinator).await, ["degraded"]);
    frankfurt
        .report(&coordinator, report(&[said(dublin.id(), json!(null))]))
        .await
        .expect(204);
    assert_eq!(states(&coordinator).await, ["down"]);
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(states(&coordinator).await, Vec::<String>::new());
}

fn probed(peer: NodeId, state: &str) -> Value {
    let mut said = said(peer, json!(3));
    said["probe"] = json!({"state": state, "loss_percent": 25, "round_trip_us": 12_345});
    said
}

#[tokio::test]
async fn probes_tell_more_than_handshakes_and_the_first_end_that_misses_them_speaks_for_both() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let tell = async |node: &Node, peer: &Node, state: &str| {
        node.report(&coordinator, report(&[probed(peer.id(), state)]))
            .await
            .expect(204);
        let link = coordinator
            .get("/links/frankfurt/dublin")
            .await
            .expect(200)
            .json();
        (
            link["state"].as_str().unwrap().to_owned(),
            link["fault"].as_str().unwrap_or("none").to_owned(),
        )
    };
    let is = |state: &str, fault: &str| (state.to_owned(), fault.to_owned());
    assert_eq!(tell(&dublin, &frankfurt, "up").await, is("up", "none"));
    assert_eq!(tell(&frankfurt, &dublin, "up").await, is("up", "none"));
    assert_eq!(
        tell(&dublin, &frankfurt, "lossy").await,
        is("degraded", "lossy")
    );
    assert_eq!(
        tell(&frankfurt, &dublin, "slow").await,
        is("degraded", "lossy")
    );
    assert_eq!(
        tell(&dublin, &frankfurt, "up").await,
        is("degraded", "slow")
    );
    assert_eq!(tell(&frankfurt, &dublin, "down").await, is("down", "none"));
    assert_eq!(
        tell(&dublin, &frankfurt, "one_way").await,
        is("degraded", "asymmetric")
    );
    let end = &coordinator.get("/links/dublin/frankfurt").await.json()["ends"][0];
    assert_eq!(
        (&end["state"], &end["up"], &end["loss_percent"]),
        (&json!("one_way"), &json!(false), &json!(25))
    );
    assert_eq!(
        (&end["round_trip_ms"], &end["endpoint_source"]),
        (&json!(12.34), &json!("learned"))
    );
    assert_eq!(
        coordinator.get("/links/dublin/dublin").await.problem().0,
        404
    );
}

#[tokio::test]
async fn the_history_of_a_link_is_written_once_by_all_coordinators_and_not_what_passes_at_once() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let history = async |query: &str| {
        coordinator
            .get(&format!("/links/dublin/frankfurt/history{query}"))
            .await
            .expect(200)
            .json()
    };
    let states = |page: &Value| -> Vec<String> {
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| change["state"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut expected = Vec::new();
    for state in ["up", "down", "up"] {
        // The ends do not notice at the same moment: between the two the link is neither.
        dublin
            .report(&coordinator, report(&[probed(frankfurt.id(), state)]))
            .await
            .expect(204);
        frankfurt
            .report(&another, report(&[probed(dublin.id(), state)]))
            .await
            .expect(204);
        expected.insert(0, state.to_owned());
        let deadline = Instant::now() + SOON;
        while states(&history("").await) != expected {
            assert!(Instant::now() < deadline, "{}", history("").await);
        }
    }
    assert_eq!(
        coordinator.count("SELECT count(*) FROM link_history").await,
        3
    );
    let first = history("?limit=2").await;
    let rest = history(&format!(
        "?limit=2&cursor={}",
        first["next_cursor"].as_str().unwrap()
    ))
    .await;
    assert_eq!(
        (states(&first), states(&rest)),
        (expected[..2].to_vec(), expected[2..].to_vec())
    );
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM link_history").await,
        0
    );
}

#[tokio::test]
async fn thresholds_of_health_are_settings_of_the_mesh() {
    let coordinator = Coordinator::start().await;
    let mesh = coordinator.get("/mesh").await.json();
    assert_eq!(
        (&mesh["probes"], &mesh["lossy_percent"], &mesh["slow_ms"]),
        (&json!(true), &json!(10), &json!(500))
    );
    let patched = coordinator
        .patch("/mesh", json!({"probes": false, "slow_ms": 60_000}))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (
            &patched["probes"],
            &patched["lossy_percent"],
            &patched["slow_ms"]
        ),
        (&json!(false), &json!(10), &json!(60_000))
    );
    for (field, value) in [
        ("lossy_percent", 0),
        ("lossy_percent", 101),
        ("slow_ms", 0),
        ("slow_ms", 60_001),
    ] {
        let (status, _, named) = coordinator
            .patch("/mesh", json!({field: value}))
            .await
            .problem();
        assert_eq!((status, named.as_deref()), (422, Some(field)));
    }
}

#[tokio::test]
async fn what_an_end_repeats_is_not_written_again() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let up = report(&[said(frankfurt.id(), json!(3))]);
    dublin.report(&coordinator, up.clone()).await.expect(204);
    let version = "SELECT sum(xmin::text::bigint)::bigint FROM (SELECT xmin FROM links UNION ALL \
        SELECT xmin FROM node_reports) AS rows";
    // Its history is written once, a moment later.
    coordinator
        .until("SELECT count(*) FROM link_history", 1)
        .await;
    let written = coordinator.count(version).await;
    for _ in 0..3 {
        dublin.report(&coordinator, up.clone()).await.expect(204);
    }
    assert_eq!(coordinator.count(version).await, written);
    assert_eq!(
        coordinator.count("SELECT revision FROM mesh").await,
        4,
        "health is not configuration"
    );
}

#[tokio::test]
async fn e9_b15_a_report_speaks_for_its_own_node_and_its_own_links() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    new_node(&coordinator, json!({"name": "new-york"})).await;
    let stranger = NodeId(uuid::Uuid::now_v7());
    let links = [
        said(stranger, json!(1)),
        said(dublin.id(), json!(1)),
        said(frankfurt.id(), json!(u64::MAX)),
        said(frankfurt.id(), json!(1)),
    ];
    dublin
        .report(&coordinator, report(&links))
        .await
        .expect(204);
    assert_eq!(coordinator.count("SELECT count(*) FROM links").await, 1);
    assert_eq!(states(&coordinator).await, ["degraded", "never", "never"]);
    let first = coordinator.get("/links?limit=2").await.json();
    let second = coordinator
        .get(&format!(
            "/links?cursor={}",
            first["next_cursor"].as_str().unwrap()
        ))
        .await
        .json();
    assert_eq!(
        (
            first["items"].as_array().unwrap().len(),
            second["items"].as_array().unwrap().len()
        ),
        (2, 1)
    );
    let of_dublin = coordinator
        .get("/links?node=dublin")
        .await
        .expect(200)
        .json();
    assert_eq!(of_dublin["items"].as_array().unwrap().len(), 2);
    assert_eq!(coordinator.get("/links?node=nobody").await.problem().0, 404);
}

#[tokio::test]
async fn b15_malformed_reports_are_refused() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let many: Vec<_> = (0..18).map(|_| said(frankfurt.id(), json!(1))).collect();
    let with = |field: &str, value: Value| {
        let mut report = report(&[said(frankfurt.id(), json!(1))]);
        report[field] = value;
        report
    };
    let problem = |words: &str| json!({"code": "route", "words": words});
    for (body, field) in [
        (report(&many), "links"),
        (with("problems", json!(vec![problem("x"); 17])), "problems"),
        (
            with("problems", json!([problem("a\u{1b}[2J")])),
            "problems[0].words",
        ),
        (
            with("problems", json!([problem(&"x".repeat(385))])),
            "problems[0].words",
        ),
        (
            with(
                "problems",
                json!([{"code": "route", "words": "", "remedy": "a\n"}]),
            ),
            "problems[0].remedy",
        ),
        (with("node", json!(frankfurt.id())), "node"),
        (with("applied", json!("1")), "applied"),
        (with("device", json!("quantum")), "device"),
        (
            report(&[said(frankfurt.id(), json!(-1))]),
            "links[0].handshake_age_s",
        ),
        (
            report(&[
                json!({"peer": frankfurt.id(), "handshake_age_s": 1, "received_bytes": -1, "sent_bytes": 0, "endpoint": null}),
            ]),
            "links[0].received_bytes",
        ),
    ] {
        let (status, _, named) = dublin.report(&coordinator, body).await.problem();
        assert_eq!((status, named.as_deref()), (422, Some(field)));
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM links").await, 0);
}

#[tokio::test]
async fn c7_a_report_is_answered_while_the_database_is_busy_and_written_when_it_is_not() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let mut stream = dublin.follow(&coordinator, None).await;
    stream.next().await;
    let mut blocker = coordinator.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE links, node_reports")
        .execute(&mut blocker)
        .await
        .unwrap();
    let request = dublin
        .request(&coordinator, Method::POST, "/agent/report")
        .json(&report(&[said(frankfurt.id(), json!(3))]));
    send(request).await.expect(204);
    assert_eq!(
        coordinator.get("/nodes/dublin").await.json()["last_report"]["applied"],
        "1.4"
    );
    coordinator
        .patch("/sites/frankfurt", json!({"subnets": ["10.20.0.0/24"]}))
        .await
        .expect(200);
    assert!(
        matches!(stream.news().await, Some(StreamMessage::Delta { .. })),
        "streams and changes do not wait for reports"
    );
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut blocker)
        .await
        .unwrap();
    let deadline = Instant::now() + SOON;
    while states(&coordinator).await != ["degraded"] {
        assert!(
            Instant::now() < deadline,
            "what the node said was never written"
        );
    }
}

#[tokio::test]
async fn what_a_node_said_to_another_coordinator_meanwhile_is_overwritten_when_it_comes_back() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let [up, down] = [json!(3), json!(181)].map(|age| report(&[said(frankfurt.id(), age)]));
    dublin.report(&coordinator, up.clone()).await.expect(204);
    dublin.report(&another, down).await.expect(204);
    assert_eq!(states(&coordinator).await, ["down"]);
    dublin.follow(&coordinator, None).await.next().await;
    dublin.report(&coordinator, up).await.expect(204);
    assert_eq!(states(&coordinator).await, ["degraded"]);
}

#[tokio::test]
async fn b15_a_report_of_three_thousand_links_is_read_and_one_of_many_megabytes_is_not() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let links = |count: usize| report(&vec![said(frankfurt.id(), json!(1)); count]);
    // It is too many for this small mesh, which can only be told once it was read.
    let (status, code, field) = dublin.report(&coordinator, links(3_000)).await.problem();
    assert_eq!(
        (status, code.as_str(), field.as_deref()),
        (422, "too_many", Some("links"))
    );
    assert_eq!(
        dublin.report(&coordinator, links(40_000)).await.problem().0,
        413
    );
}

#[tokio::test]
async fn a_node_is_told_what_is_made_of_its_own_links_and_where_peers_see_it() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let madrid = new_node(&coordinator, json!({"name": "madrid"})).await;
    let own = async |node: &Node, of: &Coordinator| {
        let request = node.request(of, Method::GET, "/agent/links");
        send(request).await.expect(200).json()
    };
    let verdict =
        |peer: &Node, state: &str| json!({"peer": peer.id(), "state": state, "lan": "ok"});
    assert_eq!(
        own(&dublin, &coordinator).await,
        json!({"links": [verdict(&frankfurt, "never"), verdict(&madrid, "never")], "seen_at": []})
    );
    dublin
        .report(&coordinator, report(&[said(frankfurt.id(), json!(3))]))
        .await
        .expect(204);
    let seen = own(&dublin, &coordinator).await["seen_at"].clone();
    assert_eq!(
        seen,
        json!([]),
        "what it says itself of others does not count"
    );
    let trouble = json!({"code": "route", "subject": "10.10.0.0/24", "words": "a route", "lan": "degraded",
        "peer": dublin.id()});
    let mut theirs = report(&[said(dublin.id(), json!(5))]);
    theirs["problems"] = json!([trouble]);
    frankfurt.report(&coordinator, theirs).await.expect(204);
    let mut link = verdict(&frankfurt, "up");
    link["lan"] = json!("degraded");
    assert_eq!(
        own(&dublin, &coordinator).await,
        json!({"links": [link, verdict(&madrid, "never")], "seen_at": ["198.51.100.20:51820"]})
    );
    // The verdict is the same everywhere; who saw the node is known where it reported.
    let deadline = Instant::now() + SOON;
    loop {
        let told = own(&dublin, &another).await;
        if told["links"][0] == link {
            assert_eq!(told["seen_at"], json!([]));
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    coordinator.get("/agent/links").await.expect(403);
}

#[tokio::test]
async fn c18_links_that_come_and_go_push_nobody_elses_history_out() {
    let coordinator = Coordinator::start().await;
    let (dublin, frankfurt) = two_nodes(&coordinator).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let mut connection = coordinator.connection().await;
    // Dublin's come and go. What Frankfurt and Cork have of each other is the oldest.
    for (one, other, changes, hours) in [
        (&frankfurt, &cork, 2, 9),
        (&dublin, &frankfurt, 40, 5),
        (&dublin, &cork, 40, 1),
    ] {
        let made = "WITH link AS (
                INSERT INTO links (a, b) VALUES (least($1, $2), greatest($1, $2)) RETURNING a, b)
            INSERT INTO link_history (a, b, at, state)
            SELECT a, b, now() - make_interval(hours => $4, secs => age), 'up'
            FROM link, generate_series(1, $3) AS age";
        sqlx::query(made)
            .bind(one.id().0)
            .bind(other.id().0)
            .bind(changes)
            .bind(hours)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    while queries::prune_history(&mut connection, 50).await.unwrap() {}
    let rows: Vec<(bool, i64)> = sqlx::query_as(
        "SELECT $1 IN (a, b), count(*) FROM link_history GROUP BY a, b ORDER BY min(at)",
    )
    .bind(dublin.id().0)
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(rows, [(false, 2), (true, 8), (true, 40)]);
}
