//! What holds for every route: shapes of errors, limits, headers.

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wattle_server::{
    http::listen::{self, Listeners},
    router,
    server::Server,
};

use crate::harness::{Coordinator, client, config, empty_database, reachable_folder, send};

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let coordinator = Coordinator::start().await;
    assert_eq!(
        coordinator.get("/nowhere").await.problem(),
        (404, "not_found".to_owned(), None)
    );
    assert_eq!(
        coordinator.get("/sites/nowhere").await.problem(),
        (404, "not_found".to_owned(), None)
    );
    let answer = send(coordinator.request(Method::PUT, "/sites")).await;
    assert_eq!(answer.problem().0, 405);
    assert_eq!(answer.headers["allow"], "GET,HEAD,POST");
}

#[tokio::test]
async fn b1_bodies_of_the_wrong_kind_or_size_are_refused() {
    let coordinator = Coordinator::start().await;
    let site = r#"{"name":"dublin"}"#;
    let post = |kind: &str, body: Vec<u8>| {
        coordinator
            .request(Method::POST, "/sites")
            .header("content-type", kind)
            .body(body)
    };
    assert_eq!(send(post("text/plain", site.into())).await.problem().0, 415);
    assert_eq!(
        send(coordinator.request(Method::POST, "/sites").body(site))
            .await
            .problem()
            .0,
        415
    );
    assert_eq!(
        send(post("application/json", site.into()).header("content-encoding", "gzip"))
            .await
            .problem()
            .0,
        415
    );
    assert_eq!(
        send(post("application/json", b"{\"name\"".to_vec()))
            .await
            .problem(),
        (400, "invalid_json".to_owned(), None)
    );
    assert_eq!(
        send(post("application/json", b"\xff\xfe".to_vec()))
            .await
            .problem()
            .0,
        400
    );
    let deep = "[".repeat(1000);
    assert_eq!(
        send(post(
            "application/json",
            format!(r#"{{"name":"a","labels":{deep}"#).into()
        ))
        .await
        .status
        .as_u16()
            / 100,
        4
    );
    assert_eq!(
        send(post("application/json", vec![b' '; 256 * 1024 + 1]))
            .await
            .problem(),
        (413, "too_large".to_owned(), None)
    );
    let chunks =
        futures_util::stream::iter((0..300).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024])));
    let chunked = coordinator
        .request(Method::POST, "/sites")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(send(chunked).await.problem().0, 413);
    // `curl -d` says that it sends a form.
    send(post("application/x-www-form-urlencoded", site.into()))
        .await
        .expect(201);
}

#[tokio::test]
async fn b1_a_body_that_ends_before_its_time_stores_nothing() {
    let coordinator = Coordinator::start().await;
    let token = &coordinator.token;
    let request = format!(
        "POST /sites HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: \
         application/json\r\ncontent-length: 500\r\n\r\n{{\"name\":\"dublin\"}}"
    );
    let mut connection = coordinator.connect().await;
    connection.write_all(request.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = connection.read_to_string(&mut answer).await;
    assert!(!answer.contains("201"), "{answer}");
    assert_eq!(coordinator.get("/sites").await.json()["items"], json!([]));
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let coordinator = Coordinator::start().await;
    let answer = send(
        coordinator
            .request(Method::GET, "/sites")
            .header("x-request-id", "mine-7"),
    )
    .await;
    assert_eq!(answer.headers["x-request-id"], "mine-7");
    let answer = send(
        coordinator
            .request(Method::GET, "/nowhere")
            .header("x-request-id", "with blanks"),
    )
    .await;
    assert_eq!(answer.headers["x-request-id"].len(), 36);
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    assert_eq!(
        coordinator
            .count(
                "SELECT count(*) FROM events WHERE action = 'site.create' AND \
        request_id IS NOT NULL"
            )
            .await,
        1
    );
}

#[tokio::test]
async fn d2_lists_refuse_what_is_no_page() {
    let coordinator = Coordinator::start().await;
    for query in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "cursor=x",
        "cursor=AAAA",
        "order=name",
        "limit=1&limit=2",
        "cursor=%27%20OR%201=1",
    ] {
        for list in ["/sites", "/nodes", "/links"] {
            assert_eq!(
                coordinator
                    .get(&format!("{list}?{query}"))
                    .await
                    .problem()
                    .0,
                422,
                "{list}?{query}"
            );
        }
    }
}

#[tokio::test]
async fn health_and_the_description_need_no_token() {
    let coordinator = Coordinator::start().await;
    let anyone = |method: Method, path: &str| {
        send(coordinator.client.request(method, coordinator.url(path)))
    };
    anyone(Method::GET, "/healthz").await.expect(204);
    anyone(Method::HEAD, "/readyz").await.expect(200);
    anyone(Method::GET, "/version").await.expect(401);
    assert_eq!(
        coordinator.get("/version").await.expect(200).json(),
        json!({"version": env!("CARGO_PKG_VERSION")})
    );
    assert_eq!(
        anyone(Method::GET, "/readyz").await.expect(200).json(),
        json!({"ready": true, "position": "1.0"})
    );
    assert_eq!(
        anyone(Method::GET, "/openapi.json").await.expect(200).text,
        router::openapi_json()
    );
}

#[test]
fn the_description_that_is_checked_in_is_that_of_the_code() {
    let checked_in = include_str!("../../../proto-docs/openapi.json");
    assert!(
        checked_in == router::openapi_json(),
        "refresh it: cargo run -p wattle-server -- openapi > proto-docs/openapi.json"
    );
}

#[tokio::test]
async fn each_listener_serves_what_it_is_for_and_knows_of_nothing_else() {
    let data_dir = reachable_folder();
    let bind = || listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listeners = Listeners {
        agents: bind(),
        admin: Some(bind()),
        metrics: Some(bind()),
    };
    let [agents, admin, metrics] = [
        Some(&listeners.agents),
        listeners.admin.as_ref(),
        listeners.metrics.as_ref(),
    ]
    .map(|listener| listener.unwrap().local_addr().unwrap());
    let config = config(data_dir.path(), &[]);
    let server = Server::start(empty_database().await, listeners, &config)
        .await
        .unwrap();
    let token = fs::read_to_string(data_dir.path().join("api-token")).unwrap();
    let client = client(data_dir.path());
    for (path, served) in router::table()
        .into_iter()
        .map(|operation| operation.path)
        .chain(["/".to_owned(), "/ui/main.js".to_owned()])
        .map(|path| {
            let served = match path.as_str() {
                "/healthz" | "/readyz" => vec![agents, admin, metrics],
                "/metrics" => vec![metrics],
                path if path.starts_with("/agent/") => vec![agents],
                _ => vec![admin],
            };
            (path, served)
        })
    {
        for address in [agents, admin, metrics] {
            // No route takes this method: where there is one, it says so.
            let request = client
                .request(Method::TRACE, format!("https://{address}{path}"))
                .bearer_auth(token.trim());
            let status = send(request).await.status.as_u16();
            let expected = if served.contains(&address) { 405 } else { 404 };
            assert_eq!(
                status, expected,
                "{path} at {address} of {agents} {admin} {metrics}"
            );
        }
    }
    assert_eq!(
        server.app.settings.urls,
        [format!("https://{agents}")],
        "join strings name the listener of agents"
    );
    let url = |address| format!("https://{address}/metrics");
    send(client.get(url(metrics)).bearer_auth(token.trim()))
        .await
        .expect(200);
    send(client.get(url(metrics))).await.expect(401);
    server.stop().await.unwrap();
    assert!(
        client
            .get(format!("https://{admin}/healthz"))
            .send()
            .await
            .is_err()
    );
}

#[test]
fn insecure_http_is_refused_on_any_listener_that_others_reach() {
    let config = config(Path::new("/nowhere"), &["--insecure-http"]);
    let [loopback, open] = ["127.0.0.1:1", "192.0.2.1:2"].map(|address| address.parse().unwrap());
    assert_eq!(
        config.urls(&[loopback, loopback]).unwrap(),
        ["http://127.0.0.1:1"]
    );
    let error = config.urls(&[loopback, open]).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1:2"), "{error}");
}
