//! What attackers and careless operators do, and what is due to them, where it concerns no single
//! resource. Names begin with the ids of the cases.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use wattle_mesh::access::Action;
use wattle_server::{
    router::{self, Operation},
    secret::ApiCredential,
};
use wattle_wire::{
    admin::Role,
    stream::{ByeReason, StreamMessage},
};

use crate::{
    agents::{NodeKeys, enrol, new_node, new_site},
    harness::{
        Answer, Coordinator, SOON, alone, empty_database, reachable_folder, send, send_head, serve,
    },
};

fn call(
    coordinator: &Coordinator,
    token: &str,
    method: &str,
    path: &str,
) -> reqwest::RequestBuilder {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    coordinator
        .client
        .request(method, coordinator.url(path))
        .bearer_auth(token)
}

fn links(reports: &[Value]) -> Value {
    json!({"applied": "1.1", "device": "kernel", "links": reports})
}

fn said(peer: &crate::agents::Node, endpoint: Value) -> Value {
    json!({"peer": peer.id(), "handshake_age_s": 1, "received_bytes": 0, "sent_bytes": 0, "endpoint": endpoint})
}

#[tokio::test]
async fn a1_a_join_token_that_was_used_is_refused_to_others_and_the_audit_log_says_so_once() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let owner = NodeKeys::new().enrol(&coordinator, &join).await;
    for _ in 0..3 {
        let answer = NodeKeys::new().try_enrol(&coordinator, &join).await;
        assert_eq!(
            answer.problem(),
            (401, "join_token_refused".to_owned(), None)
        );
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM nodes").await, 1);
    let event = &coordinator.get("/events?limit=1").await.json()["items"][0];
    let token = join.token.to_string();
    assert_eq!(
        (&event["action"], &event["object"], &event["revision"]),
        (&json!("join-token.refuse"), &json!(token), &Value::Null)
    );
    assert_eq!(
        coordinator
            .count("SELECT count(*) FROM events WHERE action = 'join-token.refuse'")
            .await,
        1
    );
    // Its owner is not somebody else.
    owner
        .machine
        .try_enrol(&coordinator, &join)
        .await
        .expect(200);
}

#[tokio::test]
async fn a6_a_node_is_answered_for_itself_whatever_ids_it_names() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let other = frankfurt.id().to_string();
    for query in [
        String::new(),
        format!("?node={other}"),
        format!("?sub={other}"),
        "?node=frankfurt".to_owned(),
    ] {
        let request = dublin.request(&coordinator, Method::GET, &format!("/agent/view{query}"));
        let named = ["x-node", "x-node-id", "x-forwarded-user"]
            .into_iter()
            .fold(request, |request, name| request.header(name, &other));
        let view = send(named.json(&json!({"node": other})))
            .await
            .expect(200)
            .json();
        assert_eq!(view["myself"]["node"], json!(dublin.id()), "{query}");
    }
    for path in [
        format!("/agent/view/{other}"),
        format!("/agent/{other}/view"),
        format!("/agent/mailbox/{other}"),
    ] {
        assert_eq!(
            send(dublin.request(&coordinator, Method::GET, &path))
                .await
                .problem()
                .0,
            404,
            "{path}"
        );
    }
    for (path, body) in [("/agent/report", links(&[])), ("/agent/mailbox", json!({}))] {
        for field in ["node", "node_id", "from"] {
            let mut body = body.clone();
            body[field] = json!(other);
            let answer = send(dublin.request(&coordinator, Method::POST, path).json(&body)).await;
            assert_eq!(
                answer.problem(),
                (422, "unknown_field".to_owned(), Some(field.to_owned())),
                "{path}"
            );
        }
    }
    assert_eq!(
        coordinator.get("/nodes/frankfurt").await.json()["last_report"],
        Value::Null
    );
}

#[tokio::test]
async fn a8_a_field_that_nobody_asked_for_is_refused_by_every_route_that_takes_a_body() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let events = coordinator.count("SELECT event_number FROM mesh").await;
    let mut taken = 0;
    for Operation {
        method,
        path,
        action,
        ..
    } in router::table()
    {
        let body = match (method, path.as_str()) {
            // Those take none, or one of several forms, each with a name.
            ("GET" | "DELETE", _)
            | (_, "/nodes/{node}/rotate" | "/agent/rotation" | "/webhooks/{id}/test") => continue,
            (_, "/sites") => json!({"name": "cork"}),
            (_, "/api-tokens") => json!({"name": "x", "role": "viewer"}),
            (_, "/agent/report") => links(&[]),
            _ => json!({}),
        };
        let (token, path) = if action == Action::TakePart {
            (node.token(), path)
        } else {
            (coordinator.token.clone(), path)
        };
        let path = path.replace("{site}", "dublin").replace("{node}", "dublin");
        for field in [
            "admin",
            "node_id",
            "site_id",
            "prefixes",
            "is_owner",
            "__proto__",
        ] {
            let mut body = body.clone();
            body[field] = json!("owner");
            let answer = send(call(&coordinator, &token, method, &path).json(&body)).await;
            let (status, code, named) = answer.problem();
            assert_eq!(
                (status, code.as_str(), named.as_deref()),
                (422, "unknown_field", Some(field)),
                "{method} {path}"
            );
            taken += 1;
        }
    }
    assert!(taken >= 6 * 8);
    assert_eq!(
        coordinator.count("SELECT event_number FROM mesh").await,
        events
    );
    assert_eq!(
        coordinator.count("SELECT count(*) FROM api_tokens").await,
        1
    );
}

#[tokio::test]
async fn a17_what_is_captured_and_sent_again_changes_nothing_wherever_and_after_a_restart() {
    let coordinator = Coordinator::start().await;
    let other = coordinator.another().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let machine = NodeKeys::new();
    let finish = machine.finish(&coordinator, &join).await;
    let enrolled = enrol(&coordinator, &finish).await.expect(200);
    let dublin = crate::agents::Node {
        machine,
        enrolled: serde_json::from_str(&enrolled.text).unwrap(),
    };
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let token = dublin.token();
    let letter = json!({"leave": [{"to": frankfurt.id(), "message": {"message": "sealed", "signature": "A".repeat(86) + "=="}}]});
    let captured = [
        ("/agent/report", links(&[said(&frankfurt, Value::Null)])),
        ("/agent/mailbox", letter),
    ];
    let state = async |coordinator: &Coordinator| {
        coordinator.write_reports().await;
        let mut state = Vec::new();
        for sql in [
            "SELECT revision FROM mesh",
            "SELECT event_number FROM mesh",
            "SELECT count(*) FROM nodes",
            "SELECT count(*) FROM links WHERE 'up' IN (a_state, b_state)",
            "SELECT count(*) FROM psk_messages",
        ] {
            state.push(coordinator.count(sql).await);
        }
        state
    };
    let replay = async |at: &Coordinator| {
        let mut statuses = Vec::new();
        for (path, body) in &captured {
            statuses.push(
                send(call(at, &token, "POST", path).json(body))
                    .await
                    .status
                    .as_u16(),
            );
        }
        statuses
    };
    assert_eq!(replay(&coordinator).await, [204, 200]);
    let before = state(&coordinator).await;
    let restarted = coordinator.another().await;
    for at in [&coordinator, &other, &restarted] {
        assert_eq!(replay(at).await, [204, 200]);
        assert_eq!(enrol(at, &finish).await.expect(200).text, enrolled.text);
        assert_eq!(state(at).await, before);
    }
    coordinator.delete("/nodes/dublin").await.expect(204);
    for at in [&coordinator, &other, &restarted] {
        at.server.app.mesh_cache.refresh().await;
        assert_eq!(replay(at).await, [401, 401]);
        assert_eq!(enrol(at, &finish).await.problem().0, 401);
    }
}

#[tokio::test]
async fn a18_a_state_directory_on_two_machines_is_noticed_once_whichever_coordinators_they_turn_to_and_a_restart_is_not()
 {
    let coordinator = Coordinator::start().await;
    let other = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let report = async |at: &Coordinator, start: Value| {
        let mut report = links(&[]);
        report["start"] = start;
        // As when its stream opens; else a coordinator notes it again after fifty seconds.
        at.server.app.reports.distrust(dublin.id());
        dublin.report(at, report).await.expect(204);
    };
    let start = |number: i64, drawn: i64| json!({"number": number, "drawn": drawn});
    let told = "SELECT count(*) FROM events WHERE action = 'node.copied'";
    for (number, drawn) in [(1, 11), (1, 11), (2, 22), (3, i64::MIN)] {
        report(&coordinator, start(number, drawn)).await;
        report(&other, start(number, drawn)).await;
    }
    assert_eq!(
        coordinator.count(told).await,
        0,
        "restarts, and one machine that changes over"
    );
    // The copy starts, and counts on.
    report(&other, start(4, 44)).await;
    assert_eq!(coordinator.count(told).await, 0);
    for _ in 0..3 {
        report(&coordinator, start(3, i64::MIN)).await;
        report(&other, start(4, 44)).await;
    }
    assert_eq!(coordinator.count(told).await, 1);
    assert_eq!(
        coordinator
            .count("SELECT start_number FROM node_reports")
            .await,
        4
    );
    let metrics = coordinator.get("/metrics").await.expect(200).text;
    assert!(metrics.contains("\nwattle_copied_nodes 1\n"), "{metrics}");
    // Both were started as often as each other.
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    for (at, drawn) in [(&coordinator, 1), (&other, 2)] {
        let mut report = links(&[]);
        report["start"] = start(7, drawn);
        frankfurt.report(at, report).await.expect(204);
    }
    assert_eq!(coordinator.count(told).await, 2);
    let event = &coordinator.get("/events?limit=1").await.json()["items"][0];
    assert_eq!(
        (&event["action"], &event["object"]),
        (&json!("node.copied"), &json!(frankfurt.id()))
    );
    coordinator.delete("/nodes/dublin").await.expect(204);
}

#[tokio::test]
async fn a20_a_first_start_makes_one_owner_known_to_its_own_disk_alone_however_many_start_at_once()
{
    let database = empty_database().await;
    let folders: Vec<_> = (0..4).map(|_| reachable_folder()).collect();
    let starts = folders.iter().map(|folder| {
        // Of those that start together one makes the authority; the others would need a copy of it.
        serve(&database, folder.path(), &["--insecure-http"])
    });
    let servers = join_all(starts).await;
    let files: Vec<_> = folders
        .iter()
        .map(|folder| folder.path().join("api-token"))
        .filter(|file| file.exists())
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(
        fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let token = fs::read_to_string(&files[0]).unwrap();
    let client = reqwest::Client::new();
    for server in &servers {
        let url = |path: &str| format!("http://{}{path}", server.address);
        let tokens = send(client.get(url("/api-tokens")).bearer_auth(token.trim()))
            .await
            .expect(200)
            .json();
        assert_eq!(tokens["items"].as_array().unwrap().len(), 1);
        for guess in ["admin", "wattle", "owner", ""] {
            send(client.get(url("/api-tokens")).bearer_auth(guess))
                .await
                .expect(401);
            send(
                client
                    .get(url("/api-tokens"))
                    .basic_auth("admin", Some(guess)),
            )
            .await
            .expect(401);
        }
        for path in [
            "/setup",
            "/install",
            "/admin",
            "/register",
            "/login",
            "/api-tokens/first",
        ] {
            let answer = send(
                client
                    .post(url(path))
                    .json(&json!({"name": "x", "role": "owner"})),
            )
            .await;
            assert!(
                [401, 404, 405].contains(&answer.status.as_u16()),
                "{path}: {}",
                answer.status
            );
        }
    }
    for server in servers {
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn b8_a_subnet_that_holds_the_coordinator_is_refused() {
    let arguments = &[
        "--url",
        "https://10.50.0.1:8443,https://[fd50::1]:8443,https://wattle.example:8443",
    ];
    let coordinator = Coordinator::start_with(empty_database().await, arguments).await;
    for (subnet, holds) in [
        ("10.50.0.0/16", "10.50.0.1"),
        ("10.50.0.1/32", "10.50.0.1"),
        ("fd50::/64", "fd50::1"),
    ] {
        let answer = coordinator
            .post(
                "/sites",
                json!({"name": "cork", "subnets": ["10.10.0.0/24", subnet]}),
            )
            .await;
        assert_eq!(
            answer.problem(),
            (
                409,
                "subnet_holds_coordinator".to_owned(),
                Some("subnets[1]".to_owned())
            )
        );
        assert_eq!(
            answer.json()["holder"],
            json!({"site": "mesh", "holds": holds})
        );
    }
    coordinator
        .post(
            "/sites",
            json!({"name": "cork", "subnets": ["10.51.0.0/16"]}),
        )
        .await
        .expect(201);
    assert_eq!(
        coordinator
            .patch("/sites/cork", json!({"subnets": ["10.50.0.0/16"]}))
            .await
            .problem()
            .1,
        "subnet_holds_coordinator"
    );
    assert_eq!(
        coordinator
            .count("SELECT count(*) FROM subnets WHERE prefix = '10.51.0.0/16'")
            .await,
        1
    );
}

#[tokio::test]
async fn b10_b15_endpoints_that_flap_and_counters_that_go_back_are_no_change_and_are_not_written() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let frankfurt = new_node(
        &coordinator,
        json!({"name": "frankfurt", "endpoint": "198.51.100.20:51820"}),
    )
    .await;
    let written = async || {
        coordinator.write_reports().await;
        coordinator
            .count(
                "SELECT sum(xmin::text::bigint)::bigint FROM (SELECT xmin FROM links UNION ALL \
                SELECT xmin FROM node_reports) AS r",
            )
            .await
    };
    dublin
        .report(
            &coordinator,
            links(&[said(&frankfurt, json!("203.0.113.1:1"))]),
        )
        .await
        .expect(204);
    coordinator
        .until("SELECT count(*) FROM link_history", 1)
        .await;
    let (before, revision) = (
        written().await,
        coordinator.count("SELECT revision FROM mesh").await,
    );
    for turn in 1..=200_u64 {
        let mut link = said(
            &frankfurt,
            json!(format!("203.0.113.{}:{}", turn % 250 + 1, turn)),
        );
        link["received_bytes"] = json!(1_000_000 - turn);
        dublin
            .report(&coordinator, links(&[link]))
            .await
            .expect(204);
    }
    assert_eq!(
        (
            written().await,
            coordinator.count("SELECT revision FROM mesh").await
        ),
        (before, revision)
    );
    assert_eq!(
        coordinator.get("/nodes/frankfurt").await.json()["endpoint"],
        "198.51.100.20:51820",
        "what others see of it is not where it is"
    );
}

#[tokio::test]
async fn c3_of_a_hundred_streams_of_one_node_the_newest_is_open_and_who_has_no_credential_opens_none()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(dublin.follow(&coordinator, None).await);
    }
    let mut newest = streams.pop().unwrap();
    for mut stream in streams {
        let mut last = stream.next().await;
        while let Some(message) = stream.next().await {
            last = Some(message);
        }
        assert_eq!(
            last,
            Some(StreamMessage::Bye {
                reason: ByeReason::Superseded
            })
        );
    }
    assert!(matches!(
        newest.next().await,
        Some(StreamMessage::Snapshot { .. })
    ));

    // Nothing is asked of the database for those: it answers nobody now.
    let mut blocker = coordinator.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE api_tokens, nodes, mesh IN ACCESS EXCLUSIVE MODE")
        .execute(&mut blocker)
        .await
        .unwrap();
    let began = Instant::now();
    let garbage = [
        String::new(),
        "x".to_owned(),
        "a.b.c".to_owned(),
        "wattle_x".to_owned(),
        ApiCredential::fresh().unwrap().reveal() + "x",
    ];
    for turn in 0..500 {
        let answer = send_head(call(
            &coordinator,
            &garbage[turn % garbage.len()],
            "GET",
            "/agent/stream",
        ))
        .await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn c6_who_used_his_token_before_a_restart_is_known_to_the_coordinator_that_starts() {
    let coordinator = Coordinator::start().await;
    coordinator.get("/sites").await.expect(200);
    let unused = coordinator
        .post("/api-tokens", json!({"name": "x", "role": "viewer"}))
        .await
        .expect(201)
        .json();
    let restarted = coordinator.another().await;
    let has = |token: &str| {
        restarted
            .server
            .app
            .known
            .has(&ApiCredential::parse(token).unwrap())
    };
    assert!(has(&coordinator.token));
    assert!(!has(unused["token"].as_str().unwrap()));
}

/// Numbers that look random and are the same at each run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn value(&mut self, depth: usize) -> Value {
        const TEXTS: [&str; 12] = [
            "",
            "dublin",
            "x",
            "0.0.0.0/0",
            "10.0.0.0/8",
            "203.0.113.1:51820",
            "'; DROP TABLE sites; --",
            "$(reboot)",
            "\u{0}\n\u{202e}",
            "1.1",
            "owner",
            "00000000-0000-0000-0000-000000000000",
        ];
        const FIELDS: [&str; 14] = [
            "name",
            "description",
            "labels",
            "endpoint",
            "subnets",
            "sites",
            "role",
            "expires_in_s",
            "uses",
            "psk",
            "applied",
            "links",
            "leave",
            "token",
        ];
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => (*self.one(&[
                json!(0),
                json!(-1),
                json!(i64::MAX),
                json!(i64::MIN),
                json!(u64::MAX),
                json!(1e300),
                json!(0.5),
                json!(60),
            ]))
            .clone(),
            3 => json!(TEXTS[self.below(TEXTS.len())].repeat(*self.one(&[1, 1, 1, 1000]))),
            4 => json!(*self.one(&TEXTS)),
            5 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object(
                (0..self.below(5))
                    .map(|_| ((*self.one(&FIELDS)).to_owned(), self.value(depth - 1)))
                    .collect(),
            ),
        }
    }
}

/// Memory of this process that is in use, in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

pub(crate) async fn all_routes() {
    const ROUNDS: usize = 40;
    const MOST_GROWTH_KIB: u64 = 64 * 1024;
    // So many rounds, or for so long as CONTRIBUTING says.
    let seconds = env::var("WATTLE_FUZZ_S").map_or(0, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let coordinator = Coordinator::start_in(alone().await, empty_database().await, &[]).await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut tokens = vec![String::new(), node.token()];
    for role in [Role::Viewer, Role::Operator, Role::Owner] {
        let made = coordinator
            .post("/api-tokens", json!({"name": "x", "role": role}))
            .await
            .expect(201)
            .json();
        tokens.push(made["token"].as_str().unwrap().to_owned());
    }
    let segments = [
        "dublin",
        "x",
        "%00",
        "%ff",
        "..%2f..",
        "%F0%9F%92%A9",
        "'%20OR%201=1",
        "00000000-0000-0000-0000-000000000000",
        "-",
        "a".repeat(500).leak(),
    ];
    let queries = [
        "",
        "?",
        "?dry_run=true",
        "?dry_run=1",
        "?limit=0",
        "?limit=1&cursor=AAAA",
        // -2^63, as a number and as a text.
        "?cursor=LTkyMjMzNzIwMzY4NTQ3NzU4MDg",
        "?cursor=Ii05MjIzMzcyMDM2ODU0Nzc1ODA4Ig",
        "?since=9.9",
        "?since=1.9223372036854775807",
        "?%00=%ff",
        "?node=x",
    ];
    let headers = [
        ("if-match", "*"),
        ("idempotency-key", "k"),
        ("content-encoding", "gzip"),
        ("content-type", "text/xml"),
        ("x-request-id", "a b"),
        ("range", "bytes=0-"),
        ("expect", "100-continue"),
        ("last-event-id", "9.9.9"),
        ("accept", "x"),
        ("transfer-encoding", "x"),
    ];
    let mut numbers = Numbers(0x5eed);
    let (mut tried, mut grown_from) = (0, resident_kib());
    for round in (0..).take_while(|round| *round < ROUNDS || Instant::now() < end) {
        for Operation { method, path, .. } in router::table() {
            let path: Vec<_> = path
                .split('/')
                .map(|part| {
                    if part.starts_with('{') {
                        *numbers.one(&segments)
                    } else {
                        part
                    }
                })
                .collect();
            let path = path.join("/") + queries[numbers.below(queries.len())];
            for token in &tokens {
                let method = *numbers.one(&[method, method, method, "PUT", "OPTIONS", "HEAD"]);
                let (name, value) = *numbers.one(&headers);
                let body = match numbers.below(4) {
                    0 => (0..numbers.below(300))
                        .map(|_| u8::try_from(numbers.below(256)).unwrap())
                        .collect(),
                    _ => numbers.value(4).to_string().into_bytes(),
                };
                let request = call(&coordinator, token, method, &path)
                    .header("content-type", "application/json");
                let request = if name == "transfer-encoding" {
                    request
                } else {
                    request.header(name, value)
                };
                let Ok(response) = request.body(body.clone()).send().await else {
                    continue;
                };
                let status = response.status().as_u16();
                assert!(
                    status < 500,
                    "{method} {path} {name}: {value}: {status} for {}",
                    String::from_utf8_lossy(&body)
                );
                tried += 1;
            }
        }
        if round == ROUNDS / 4 {
            grown_from = resident_kib();
        }
    }
    let grown = resident_kib().saturating_sub(grown_from);
    assert!(tried > 4_000, "{tried}");
    assert!(
        grown < MOST_GROWTH_KIB,
        "{grown} KiB more after {tried} requests"
    );
    // The tokens may be gone by now, by the hand of one of them.
    assert_eq!(coordinator.get("/healthz").await.status, 204);
    assert!(coordinator.server.app.mesh_cache.is_fresh());
}

#[tokio::test]
async fn d2_what_looks_like_sql_is_text() {
    let coordinator = Coordinator::start().await;
    let hostile = [
        "'; DROP TABLE sites; --",
        "\" OR 1=1 --",
        "$$; SELECT pg_sleep(9); $$",
        "%27%20OR%201=1",
        "\\'; --",
        "robert'); DELETE FROM nodes",
    ];
    for (number, text) in hostile.into_iter().enumerate() {
        let name = format!("site-{number}");
        let site = json!({"name": name, "description": text, "labels": {"note": text}});
        coordinator.post("/sites", site).await.expect(201);
        let shown = coordinator
            .get(&format!("/sites/{name}"))
            .await
            .expect(200)
            .json();
        assert_eq!(
            (&shown["description"], &shown["labels"]["note"]),
            (&json!(text), &json!(text))
        );
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for path in ["/sites", "/nodes", "/join-tokens", "/api-tokens"] {
            assert_eq!(
                coordinator
                    .get(&format!("{path}/{escaped}"))
                    .await
                    .problem()
                    .0,
                404,
                "{path} {text}"
            );
            let refused = [404, 422];
            assert!(
                refused.contains(
                    &coordinator
                        .get(&format!("{path}?cursor={escaped}"))
                        .await
                        .problem()
                        .0
                ),
                "{path} {text}"
            );
        }
        coordinator
            .post("/api-tokens", json!({"name": text, "role": "viewer"}))
            .await
            .expect(201);
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 6);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM api_tokens").await,
        7
    );
}

#[tokio::test]
async fn d9_a_page_of_another_origin_and_a_name_that_was_rebound_get_nowhere() {
    let coordinator = Coordinator::start().await;
    let foreign = |method: Method, path: &str| {
        let request = coordinator
            .client
            .request(method, coordinator.url(path))
            .header("origin", "https://evil.example");
        // As a browser would send it without being asked.
        request
            .header(
                "cookie",
                format!("token={0}; authorization={0}", coordinator.token),
            )
            .header("host", "evil.example:8443")
    };
    let silent = |answer: &Answer| {
        assert!(
            answer
                .headers
                .keys()
                .all(|name| !name.as_str().starts_with("access-control-") && name != "set-cookie")
        )
    };
    for Operation {
        method,
        path,
        action,
        ..
    } in router::table()
    {
        let answer = send_head(foreign(
            Method::from_bytes(method.as_bytes()).unwrap(),
            &path.replace("{site}", "x"),
        ))
        .await;
        silent(&answer);
        if action != Action::Ask {
            assert_eq!(answer.status, 401, "{method} {path}");
        }
        let preflight =
            foreign(Method::OPTIONS, &path).header("access-control-request-method", method);
        let answer =
            send(preflight.header("access-control-request-headers", "authorization")).await;
        silent(&answer);
        assert_eq!(answer.status, 405, "{path}");
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 0);
    silent(&coordinator.get("/sites").await);
}
