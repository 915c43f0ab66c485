//! `/webhooks`

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::hmac;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout},
};
use wattle_server::db::webhook_news;

use crate::{
    agents::{Node, new_node},
    harness::{Coordinator, SOON, empty_database},
};

type Received = mpsc::UnboundedReceiver<(String, String)>;

#[derive(Clone)]
struct Listener {
    sender: mpsc::UnboundedSender<(String, String)>,
    statuses: Arc<Mutex<Vec<u16>>>,
    url: String,
}

/// Somebody who listens, and answers with the statuses in their order, and then with 200. A
/// redirect leads to itself.
async fn listener(statuses: &[u16]) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?token=hush", listener.local_addr().unwrap());
    let (sender, received) = mpsc::unbounded_channel();
    let statuses = Arc::new(Mutex::new(statuses.to_vec()));
    let take =
        async |State(listener): State<Listener>, headers: HeaderMap, body: String| -> Response {
            listener
                .sender
                .send((
                    headers["wattle-signature"].to_str().unwrap().to_owned(),
                    body,
                ))
                .unwrap();
            let mut statuses = listener.statuses.lock().unwrap();
            let status = if statuses.is_empty() {
                200
            } else {
                statuses.remove(0)
            };
            (
                StatusCode::from_u16(status).unwrap(),
                [(header::LOCATION, listener.url)],
            )
                .into_response()
        };
    let router = Router::new()
        .route("/hook", post(take))
        .with_state(Listener {
            sender,
            statuses,
            url: url.clone(),
        });
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, received)
}

async fn next(received: &mut Received, secret: &str) -> Value {
    let (signature, body) = timeout(3 * SOON, received.recv())
        .await
        .expect("no message")
        .unwrap();
    let (at, signed) = signature
        .strip_prefix("t=")
        .unwrap()
        .split_once(",v1=")
        .unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let expected = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    assert_eq!(
        signed,
        expected
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    );
    serde_json::from_str(&body).unwrap()
}

async fn says(coordinator: &Coordinator, node: &Node, peers: &[&Node], state: &str) {
    let link = |peer: &&Node| {
        json!({"peer": peer.id(), "handshake_age_s": 3, "received_bytes": 0, "sent_bytes": 0, "endpoint": null,
            "probe": {"state": state, "loss_percent": 0, "round_trip_us": 1000}})
    };
    let links: Vec<_> = peers.iter().map(link).collect();
    node.report(
        coordinator,
        json!({"applied": "1.1", "device": "kernel", "links": links}),
    )
    .await
    .expect(204);
}

#[tokio::test]
async fn a_site_that_loses_its_uplink_is_one_signed_message_from_one_of_two_coordinators_and_comes_again_until_it_is_taken()
 {
    let coordinator =
        Coordinator::start_with(empty_database().await, &["--webhook-allow", "127.0.0.1/32"]).await;
    let another = coordinator.another().await;
    let (url, mut received) = listener(&[307, 200, 200, 500]).await;
    let created = coordinator
        .post("/webhooks", json!({"url": url}))
        .await
        .expect(201)
        .json();
    let (id, secret) = (
        created["id"].as_str().unwrap(),
        created["secret"].as_str().unwrap(),
    );
    let listed = coordinator.get("/webhooks").await.expect(200).json();
    assert_eq!(
        (&listed["items"][0]["url"], &listed["items"][0]["secret"]),
        (&json!(url), &Value::Null)
    );

    // A redirect is not followed.
    let tested = coordinator
        .post(&format!("/webhooks/{id}/test"), json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(next(&mut received, secret).await["alerts"], json!([]));
    assert!(
        tested["error"].as_str().unwrap().contains("307")
            && !tested["error"].as_str().unwrap().contains("hush"),
        "{tested}"
    );
    let tested = coordinator
        .post(&format!("/webhooks/{id}/test"), json!({}))
        .await
        .expect(200)
        .json();
    next(&mut received, secret).await;
    assert!(
        tested["error"].is_null() && tested["delivered_at"].is_string(),
        "{tested}"
    );

    let mut nodes = Vec::new();
    for name in ["dublin", "frankfurt", "new-york"] {
        nodes.push(new_node(&coordinator, json!({"name": name})).await);
    }
    let [dublin, frankfurt, new_york] = &nodes[..] else {
        panic!("three nodes")
    };
    let message = next(&mut received, secret).await;
    assert_eq!(message["summary"], "joined: dublin and 2 more");
    assert_eq!(message["alerts"][0]["nodes"][2]["name"], "new-york");
    let others = [frankfurt, new_york];
    for state in ["up", "down"] {
        says(&coordinator, dublin, &others, state).await;
        for other in others {
            says(&another, other, &[dublin], state).await;
        }
        coordinator
            .until(
                "SELECT count(*) FROM link_history",
                if state == "up" { 2 } else { 4 },
            )
            .await;
    }
    let message = next(&mut received, secret).await;
    assert_eq!(message["summary"], "2 of 2 links of dublin are down");
    let [alert] = &message["alerts"].as_array().unwrap()[..] else {
        panic!("{message}")
    };
    assert_eq!(
        (&alert["kind"], &alert["name"], &alert["links"]),
        (&json!("node"), &json!("dublin"), &json!(2))
    );
    // It was answered with 500, so it waits; and that need not be long for a test.
    coordinator
        .count(
            "WITH due AS (UPDATE webhook_deliveries SET next_at = now() RETURNING 1) \
        SELECT count(*) FROM due",
        )
        .await;
    assert_eq!(next(&mut received, secret).await["id"], message["id"]);
    let deadline = Instant::now() + SOON;
    while coordinator
        .count("SELECT count(*) FROM webhook_deliveries")
        .await
        > 0
    {
        assert!(Instant::now() < deadline, "it is not taken");
    }
    assert!(received.try_recv().is_err(), "nobody else sent it");
    coordinator
        .delete(&format!("/webhooks/{id}"))
        .await
        .expect(204);
    assert_eq!(
        coordinator
            .delete(&format!("/webhooks/{id}"))
            .await
            .problem()
            .0,
        404
    );
}

#[tokio::test]
async fn nodes_that_fall_silent_come_back_and_are_revoked_are_told_of_once() {
    let coordinator =
        Coordinator::start_with(empty_database().await, &["--webhook-allow", "127.0.0.1/32"]).await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let (url, mut received) = listener(&[]).await;
    let created = coordinator
        .post("/webhooks", json!({"url": url}))
        .await
        .expect(201)
        .json();
    let secret = created["secret"].as_str().unwrap();
    for (node, other) in [(&dublin, &frankfurt), (&frankfurt, &dublin)] {
        says(&coordinator, node, &[other], "up").await;
    }
    coordinator
        .until("SELECT count(*) FROM node_reports", 2)
        .await;

    // As if Dublin had said nothing for long: one look notes it, the next one nothing more, nor
    // that of one who does not miss it.
    coordinator
        .count(
            "WITH aged AS (UPDATE node_reports SET at = now() - interval '1 hour' WHERE \
        node = (SELECT id FROM nodes WHERE name = 'dublin') RETURNING 1) SELECT count(*) FROM \
        aged",
        )
        .await;
    let mut connection = coordinator.connection().await;
    for missed in [
        vec![],
        vec![dublin.id().0, frankfurt.id().0],
        vec![dublin.id().0],
        vec![],
    ] {
        webhook_news::note_silence(&mut connection, &missed, 150)
            .await
            .unwrap();
    }
    assert_eq!(
        coordinator.count("SELECT count(*) FROM webhook_news").await,
        1
    );
    assert_eq!(
        next(&mut received, secret).await["summary"],
        "dublin stopped reporting"
    );
    // The coordinator itself sees that it is back.
    coordinator
        .count(
            "WITH heard AS (UPDATE node_reports SET at = now() RETURNING 1) SELECT \
        count(*) FROM heard",
        )
        .await;
    assert_eq!(
        next(&mut received, secret).await["summary"],
        "dublin reports again"
    );
    // A problem that keeps its LANs from others is one message, not one for each link, nor for each
    // report.
    let problem = json!({"code": "nat", "words": "masquerades", "lan": "degraded"});
    for (problems, summary) in [
        (
            json!([problem]),
            "LANs are kept from others by a problem of dublin",
        ),
        (json!([]), "LANs reach others again: dublin"),
    ] {
        for applied in ["1.1", "1.2"] {
            let report = json!({"applied": applied, "device": "kernel", "links": [],
                "problems": problems});
            dublin.report(&coordinator, report).await.expect(204);
        }
        let message = next(&mut received, secret).await;
        assert_eq!(message["summary"], summary);
        assert_eq!(message["alerts"].as_array().unwrap().len(), 1);
    }
    coordinator.delete("/sites/dublin").await.expect(204);
    coordinator.delete("/nodes/frankfurt").await.expect(204);
    let message = next(&mut received, secret).await;
    assert_eq!(
        (&message["summary"], &message["alerts"][0]["count"]),
        (&json!("revoked: dublin and 1 more"), &json!(2))
    );
}

#[tokio::test]
async fn d10_a_webhook_leads_neither_to_the_coordinator_itself_nor_to_what_is_not_public() {
    let arguments = &["--url", "https://9.9.9.77:8443,https://[2a00::77]:8443"];
    let coordinator = Coordinator::start_with(empty_database().await, arguments).await;
    // Of this host's interfaces, where it has any.
    let own = coordinator.server.app.coordinators.known_addresses();
    let own: Vec<_> = own
        .iter()
        .map(|own| format!("http://{}/", SocketAddr::new(*own, 80)))
        .collect();
    assert!(own.len() >= 2, "{own:?}");
    let own = own.iter().map(String::as_str);
    for url in own.chain([
        "http://[::ffff:9.9.9.77]/",
        "http://[64:ff9b::9.9.9.77]/",
        "http://10.0.0.5/",
        "http://[fd00::5]/",
        "http://168.63.129.16/",
        "http://[fd20:ce::254]/",
        "http://[::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b:1::1]/",
        "http://127.0.0.1/",
        "http://localhost:5432/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "ftp://203.0.113.9/",
        "file:///etc/passwd",
        "https://user:word@203.0.113.9/",
        "no url",
    ]) {
        let (status, code, field) = coordinator
            .post("/webhooks", json!({"url": url}))
            .await
            .problem();
        assert_eq!(
            (status, code.as_str(), field.as_deref()),
            (422, "invalid_url", Some("url")),
            "{url}"
        );
    }
    // What was allowed once, or resolved to something else then, is refused when it is sent.
    let id = "01900000-0000-7000-8000-000000000001";
    coordinator
        .count(
            "WITH made AS (INSERT INTO webhooks (id, url) VALUES \
             ('01900000-0000-7000-8000-000000000001', 'http://127.0.0.1:9/') RETURNING 1)
             SELECT count(*) FROM made",
        )
        .await;
    let tested = coordinator
        .post(&format!("/webhooks/{id}/test"), json!({}))
        .await
        .expect(200)
        .json();
    assert!(
        tested["error"]
            .as_str()
            .unwrap()
            .contains("--webhook-allow 127.0.0.1"),
        "{tested}"
    );
}

#[tokio::test]
async fn d12_what_is_kept_of_a_webhooks_url_is_canonical_and_printable() {
    let coordinator = Coordinator::start().await;
    for hidden in [
        '\r', '\n', '\t', '\u{1b}', '\u{7f}', '\u{202e}', '\u{2066}', '\u{200b}',
    ] {
        for url in [
            format!("https://127.0.0.9/a{hidden}b"),
            format!("https://127.0.{hidden}0.9/"),
            format!("{hidden}https://127.0.0.9/"),
            format!("https://127.0.0.9/#{hidden}"),
        ] {
            let answer = coordinator.post("/webhooks", json!({"url": url})).await;
            let problem = (422, "invalid_url".to_owned(), Some("url".to_owned()));
            assert_eq!(answer.problem(), problem, "{url:?}");
        }
    }
    for (url, kept) in [
        ("HTTPS://127.0.0.9", "https://127.0.0.9/"),
        ("https://127.0.0.9:443/x", "https://127.0.0.9/x"),
        (
            "https://127.0.0.9/../ü x?é=\"#ñ",
            "https://127.0.0.9/%C3%BC%20x?%C3%A9=%22#%C3%B1",
        ),
    ] {
        let made = coordinator.post("/webhooks", json!({"url": url})).await;
        assert_eq!(made.expect(201).json()["url"], kept);
    }
    let long = format!("https://127.0.0.9/{}", "ü".repeat(900));
    let answer = coordinator.post("/webhooks", json!({"url": long})).await;
    assert_eq!(
        answer.problem().0,
        422,
        "5,400 characters once it is canonical"
    );
}

#[tokio::test]
async fn d13_a_webhook_that_is_slow_keeps_neither_another_nor_the_making_of_messages_waiting() {
    let coordinator =
        Coordinator::start_with(empty_database().await, &["--webhook-allow", "127.0.0.1/32"]).await;
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow = format!("http://{}/", silent.local_addr().unwrap());
    let (url, mut received) = listener(&[]).await;
    let mut made = Vec::new();
    for url in [slow, url] {
        let answer = coordinator.post("/webhooks", json!({"url": url})).await;
        made.push(answer.expect(201).json());
    }
    // Ten seconds each, one after the other.
    let waiting = "INSERT INTO webhook_deliveries (id, webhook, body)
        SELECT gen_random_uuid(), $1, '{}' FROM generate_series(1, 20)";
    sqlx::query(waiting)
        .bind(uuid::Uuid::parse_str(made[0]["id"].as_str().unwrap()).unwrap())
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let (_slow, _) = timeout(SOON, silent.accept()).await.unwrap().unwrap();
    new_node(&coordinator, json!({"name": "dublin"})).await;
    let message = next(&mut received, made[1]["secret"].as_str().unwrap()).await;
    assert_eq!(message["summary"], "joined: dublin");
}
