//! What one good credential may take of a coordinator, and what it gives back when it ends.

use std::{
    fs, io,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::{future::join_all, stream};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;
use wattle_server::{http::auth, secret::ApiCredential, state::origin::Origin};
use wattle_wire::join::JoinString;

use crate::{
    agents::{Node, NodeKeys, new_node, new_site, start},
    harness::{Answer, Coordinator, SOON, client, send},
};

type Connection = TlsStream<TcpStream>;

/// What SECURITY.md promises.
const CONNECTIONS: usize = 64;
const REQUESTS: usize = 64;
const EVENT_STREAMS: usize = 16;
const CONNECTIONS_OF_A_NODE: usize = 16;
const REQUESTS_OF_A_NODE: usize = 16;

/// An api token, by its id and as its holder sends it.
async fn token(coordinator: &Coordinator, role: &str) -> (String, String) {
    let body = json!({"name": role, "role": role});
    let made = coordinator.post("/api-tokens", body).await.expect(201);
    let text = |field: &str| made.json()[field].as_str().unwrap().to_owned();
    (text("id"), text("token"))
}

/// A client whose connections are its own.
fn stranger(coordinator: &Coordinator) -> Client {
    client(coordinator.data_dir.path())
}

async fn watch(coordinator: &Coordinator, client: &Client, token: &str) -> Response {
    let request = client.get(coordinator.url("/events/stream"));
    request.bearer_auth(token).send().await.unwrap()
}

fn is_too_much(answer: &Answer) {
    assert_eq!(answer.problem(), (429, "too_much".to_owned(), None));
    assert!(answer.headers.contains_key("retry-after"));
}

/// The statuses of as many requests, each on a connection of its own, which all stay open.
async fn on_own_connections(
    coordinator: &Coordinator,
    number: usize,
    path: &str,
    token: &str,
) -> (Vec<u16>, Vec<Connection>) {
    let (mut statuses, mut open) = (Vec::new(), Vec::new());
    for _ in 0..number {
        let mut connection = coordinator.connect().await;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        connection.read_exact(&mut head).await.unwrap();
        statuses.push(String::from_utf8_lossy(&head[9..]).parse().unwrap());
        open.push(connection);
    }
    (statuses, open)
}

#[tokio::test]
async fn c12_a_credential_has_so_many_connections_and_others_have_their_own() {
    let coordinator = Coordinator::start().await;
    let (_, viewer) = token(&coordinator, "viewer").await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    for (most, path, token) in [
        (CONNECTIONS, "/sites", viewer),
        (CONNECTIONS_OF_A_NODE, "/agent/links", node.token()),
    ] {
        // What a node used to enrol is one of its own.
        let (statuses, _open) = on_own_connections(&coordinator, most + 3, path, &token).await;
        let let_in = statuses.iter().take_while(|status| **status == 200).count();
        assert!((most - 1..=most).contains(&let_in), "{statuses:?}");
        assert!(
            statuses[let_in..].iter().all(|status| *status == 429),
            "{statuses:?}"
        );
        coordinator.get("/sites").await.expect(200);
        let (statuses, _) = on_own_connections(&coordinator, 1, "/sites", &coordinator.token).await;
        assert_eq!(statuses, [200]);
    }
}

#[tokio::test]
async fn c18_a_node_that_sends_letters_and_reports_without_end_is_slowed_down_and_no_other() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let ask = async |node: &Node| {
        let request = coordinator.client.post(coordinator.url("/agent/mailbox"));
        send(request.bearer_auth(node.token()).json(&json!({}))).await
    };
    let mut let_in = 0;
    let refused = loop {
        let answer = ask(&dublin).await;
        if answer.status != 200 {
            break answer;
        }
        let_in += 1;
    };
    is_too_much(&refused);
    assert!(let_in >= 590, "{let_in}");
    ask(&cork).await.expect(200);
    // Whoever waits is let in.
    let deadline = Instant::now() + SOON;
    while ask(&dublin).await.status == 429 {
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn c12_a_credential_has_so_many_streams_of_events_and_all_together_so_many_more() {
    let coordinator = Coordinator::start().await;
    let (_, viewer) = token(&coordinator, "viewer").await;
    let client = stranger(&coordinator);
    let mut streams = Vec::new();
    for _ in 0..EVENT_STREAMS {
        let stream = watch(&coordinator, &client, &viewer).await;
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    let request = client.get(coordinator.url("/events/stream"));
    is_too_much(&send(request.bearer_auth(&viewer)).await);
    let owner = watch(&coordinator, &coordinator.client, &coordinator.token).await;
    assert_eq!(owner.status(), 200);

    let tracker = &coordinator.server.app.link_tracker;
    let places: Vec<_> = std::iter::from_fn(|| tracker.place()).collect();
    let full = coordinator.get("/events/stream").await;
    assert_eq!(full.problem(), (503, "streams_are_full".to_owned(), None));
    assert!(!full.text.contains("database"), "{}", full.text);
    drop(places);
}

#[tokio::test]
async fn c12_a_credential_has_so_many_requests_and_its_slow_ones_hold_up_nobody_else() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let (_, operator) = token(&coordinator, "operator").await;
    for (most, path, token) in [
        (REQUESTS, "/import", operator),
        (REQUESTS_OF_A_NODE, "/agent/report", node.token()),
    ] {
        // More than a connection of HTTP/2 has streams.
        let clients = [stranger(&coordinator), stranger(&coordinator)];
        let slow = join_all((0..most + 5).map(|number| {
            let client = &clients[number % 2];
            let body = reqwest::Body::wrap_stream(stream::pending::<io::Result<Vec<u8>>>());
            let request = client.post(coordinator.url(path)).bearer_auth(&token);
            send(
                request
                    .header("content-type", "application/json")
                    .body(body),
            )
        }));
        let others = async {
            for _ in 0..20 {
                let began = Instant::now();
                coordinator.get("/api-tokens").await.expect(200);
                assert!(
                    began.elapsed() < Duration::from_secs(2),
                    "{:?}",
                    began.elapsed()
                );
            }
        };
        let (slow, ()) = tokio::join!(slow, others);
        let (late, refused): (Vec<_>, Vec<_>) =
            slow.iter().partition(|answer| answer.status == 408);
        assert!((1..=3).contains(&late.len()), "{}", late.len());
        refused.into_iter().for_each(is_too_much);
    }
}

#[tokio::test]
async fn c12_an_import_that_one_operator_tries_out_again_and_again_keeps_nobody_else_waiting() {
    let coordinator = Coordinator::start().await;
    let (_, operator) = token(&coordinator, "operator").await;
    let sites: Vec<_> = (0..100)
        .map(|number| json!({"name": format!("site-{number}")}))
        .collect();
    let body = json!({ "sites": sites });
    let client = stranger(&coordinator);
    let tries = join_all((0..24).map(|_| {
        let request = client.post(coordinator.url("/import?dry_run=true"));
        send(request.bearer_auth(&operator).json(&body))
    }));
    let owner = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let began = Instant::now();
            coordinator.get("/api-tokens").await.expect(200);
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let (tries, slowest) = tokio::join!(tries, owner);
    for tried in &tries {
        match tried.status.as_u16() {
            200 => {}
            _ => is_too_much(tried),
        }
    }
    assert!(tries.iter().any(|tried| tried.status == 200));
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

/// Waits until a stream ends, and says how long that took.
async fn end_of(mut stream: Response) -> Duration {
    let began = Instant::now();
    let ends = async { while let Ok(Some(_)) = stream.chunk().await {} };
    timeout(SOON, ends).await.expect("the stream goes on");
    began.elapsed()
}

/// Waits until the other side closes a connection.
async fn closed(mut connection: Connection) -> Duration {
    let began = Instant::now();
    let mut buffer = [0; 4096];
    let ends = async { while !matches!(connection.read(&mut buffer).await, Ok(0) | Err(_)) {} };
    timeout(2 * SOON, ends).await.expect("it stays open");
    began.elapsed()
}

#[tokio::test]
async fn c13_whatever_a_revoked_token_has_open_ends_within_a_second_here_and_three_elsewhere() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let (id, viewer) = token(&coordinator, "viewer").await;
    let mut open = Vec::new();
    for at in [&coordinator, &another] {
        let client = stranger(at);
        let streams = join_all((0..EVENT_STREAMS).map(|_| watch(at, &client, &viewer))).await;
        let (statuses, connections) = on_own_connections(at, 3, "/sites", &viewer).await;
        assert_eq!(statuses, [200; 3]);
        open.push((streams, connections));
    }
    coordinator
        .delete(&format!("/api-tokens/{id}"))
        .await
        .expect(204);
    let limits = [Duration::from_secs(1), Duration::from_secs(3)];
    let ends = open
        .into_iter()
        .zip(limits)
        .map(|((streams, connections), limit)| async move {
            let began = Instant::now();
            join_all(streams.into_iter().map(end_of)).await;
            join_all(connections.into_iter().map(closed)).await;
            assert!(began.elapsed() < limit, "{:?}", began.elapsed());
        });
    join_all(ends).await;
    for at in [&coordinator, &another] {
        let tracker = &at.server.app.link_tracker;
        let places: Vec<_> = std::iter::from_fn(|| tracker.place()).collect();
        assert_eq!(places.len(), 256);
        at.get("/sites").await.expect(200);
    }
}

#[tokio::test]
async fn c13_the_connections_of_a_revoked_node_end_and_a_stream_first_says_why() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let (_, mut connections) =
        on_own_connections(&coordinator, 2, "/agent/stream", &node.token()).await;
    coordinator.delete("/nodes/dublin").await.expect(204);
    let began = Instant::now();
    let mut told = String::new();
    let read = connections.pop().unwrap().read_to_string(&mut told).await;
    assert!(read.is_ok() && told.contains("revoked"), "{told}");
    join_all(connections.into_iter().map(closed)).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn c17_a_join_string_that_is_used_up_keeps_no_connection_open() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let good = challenged(&coordinator, &join).await;
    NodeKeys::new().enrol(&coordinator, &join).await;
    let began = Instant::now();
    closed(good).await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    closed(challenged(&coordinator, &join).await).await;
    assert_eq!(
        start(&coordinator, &join).await.status,
        200,
        "who used it may ask again"
    );
}

/// A connection on which a join string was shown.
async fn challenged(coordinator: &Coordinator, join: &JoinString) -> Connection {
    let body = json!({"token": join.token, "secret": join.secret}).to_string();
    let length = body.len();
    let request = format!(
        "POST /agent/enrol/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut connection = coordinator.connect().await;
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    connection.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[9..], b"200");
    connection
}

#[tokio::test]
async fn c14_guesses_at_the_same_time_are_looked_up_no_more_often_than_one_after_the_other() {
    let coordinator = Coordinator::start().await;
    let app = &coordinator.server.app;
    let origin = Some(Origin::of(IpAddr::from([192, 0, 2, 1])));
    let looked_up = AtomicU32::new(0);
    let guesses = join_all((0..64).map(|_| {
        auth::unless_guessing(app, origin, async {
            looked_up.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(None::<()>)
        })
    }));
    let refused = guesses.await.into_iter().filter(Result::is_err).count();
    assert_eq!((looked_up.into_inner(), refused), (20, 44));
}

#[tokio::test]
async fn c14_a_known_id_with_a_wrong_secret_and_a_revoked_token_are_nobody_known() {
    let coordinator = Coordinator::start().await;
    let (id, viewer) = token(&coordinator, "viewer").await;
    let call = |token: String| {
        send(
            coordinator
                .client
                .get(coordinator.url("/sites"))
                .bearer_auth(token),
        )
    };
    let known = |token: &str| {
        let token = ApiCredential::parse(token).unwrap();
        coordinator.server.app.known.has(&token)
    };
    call(viewer.clone()).await.expect(200);
    assert!(known(&viewer));
    let mut guess = ApiCredential::fresh().unwrap();
    guess.id = id.parse().unwrap();
    assert!(!known(&guess.reveal()));
    coordinator
        .delete(&format!("/api-tokens/{id}"))
        .await
        .expect(204);
    assert!(!known(&viewer));
    call(viewer.clone()).await.expect(401);
    assert!(!known(&viewer));
}

#[tokio::test]
async fn c16_an_answer_to_a_body_that_nobody_wants_reaches_curl_whole() {
    let coordinator = Coordinator::start().await;
    let file = coordinator.data_dir.path().join("body");
    fs::write(&file, vec![b' '; 3 * 1024 * 1024]).unwrap();
    for (protocol, path) in [
        ("--http2", "/sites"),
        ("--http2", "/import"),
        ("--http2", "/agent/report"),
        ("--http2", "/nowhere"),
        ("--http1.1", "/import"),
    ] {
        for _ in 0..5 {
            let mut curl = Command::new("curl");
            curl.args([
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                protocol,
                "--cacert",
            ])
            .arg(coordinator.data_dir.path().join("ca.crt"))
            .args([
                "--header",
                "Content-Type: application/json",
                "--data-binary",
            ])
            .arg(format!("@{}", file.display()))
            .arg(coordinator.url(path));
            let output = curl.output().await.unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{protocol} {path}: {error}");
            let problem: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(problem["status"].is_number(), "{problem}");
        }
    }
}
