//! How a change is asked for: as a dry run, only if its object is as it was, or once
//! however often it is sent.

use std::collections::BTreeSet;

use reqwest::{Method, header};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, time::Instant};
use wattle_mesh::{access::Action, agent::admission::Operator};
use wattle_server::router::{self, Operation};
use wattle_wire::admin::Node;

use crate::{
    agents::{NodeKeys, new_node},
    harness::{Answer, Coordinator, SOON, send, send_head},
    nodes::signed,
    removals::{holding_lost, lose, signed_removals},
};

/// A digest of every row of every table, but for when api tokens were used.
async fn rows(coordinator: &Coordinator) -> Vec<(String, Option<String>)> {
    let mut connection = coordinator.connection().await;
    let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
    let tables: Vec<String> = sqlx::query_scalar(tables)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut digests = Vec::new();
    for table in tables {
        let sql = format!(
            "SELECT md5(string_agg(row::text, ' ' ORDER BY row::text)) FROM (SELECT to_jsonb(t) - \
             'last_used_at' AS row FROM {table} AS t) AS rows"
        );
        let digest = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        digests.push((table, digest));
    }
    digests
}

fn links(pairs: &[[&str; 2]]) -> Value {
    json!({"count": pairs.len(), "nodes": pairs})
}

#[tokio::test]
async fn a_dry_run_of_every_change_says_what_it_would_do_and_does_nothing() {
    let coordinator = Coordinator::start().await;
    for (name, subnet) in [
        ("cork", "10.10.0.0/24"),
        ("dublin", "10.20.0.0/24"),
        ("galway", "10.30.0.0/24"),
    ] {
        new_node(&coordinator, json!({"name": name, "subnets": [subnet]})).await;
    }
    coordinator
        .post("/sites", json!({"name": "sligo"}))
        .await
        .expect(201);
    new_node(&coordinator, json!({"name": "wicklow"})).await;
    coordinator.delete("/sites/wicklow").await.expect(204);
    let api_token = coordinator
        .post("/api-tokens", json!({"name": "x", "role": "viewer"}))
        .await
        .expect(201)
        .json();
    let join_token = coordinator
        .post("/sites/cork/join-tokens", json!({}))
        .await
        .expect(201)
        .json();
    let webhook = json!({"url": "http://127.0.0.9/hook"});
    let made = coordinator
        .post("/webhooks", webhook.clone())
        .await
        .expect(201)
        .json();
    let id = |token: &Value| token["id"].as_str().unwrap().to_owned();
    let admissions = signed(&coordinator, &Operator::new(&[7; 32]).unwrap()).await;
    let removals = signed_removals(&coordinator, &Operator::new(&[7; 32]).unwrap()).await;
    let site = json!({"name": "limerick", "subnets": ["10.40.0.0/24"]});
    let of_cork = links(&[["cork", "dublin"], ["cork", "galway"]]);
    let nothing = json!({"added": links(&[]), "removed": links(&[]), "changed": links(&[])});
    let with = |effect: &str, pairs: &Value| {
        let mut links = nothing.clone();
        links[effect] = pairs.clone();
        links
    };
    let changes = [
        (
            "POST /sites",
            "/sites".to_owned(),
            site.clone(),
            json!("site.create"),
            nothing.clone(),
        ),
        (
            "POST /import",
            "/import".to_owned(),
            json!({"sites": [site]}),
            json!("site.import"),
            nothing.clone(),
        ),
        (
            "PATCH /sites/{site}",
            "/sites/cork".to_owned(),
            json!({"subnets": []}),
            json!("site.change"),
            with("changed", &of_cork),
        ),
        (
            "PATCH /sites/{site}",
            "/sites/cork".to_owned(),
            json!({"description": "x"}),
            json!("site.change"),
            nothing.clone(),
        ),
        (
            "PATCH /sites/{site}",
            "/sites/cork".to_owned(),
            json!({"name": "cork"}),
            Value::Null,
            nothing.clone(),
        ),
        (
            "DELETE /sites/{site}",
            "/sites/cork".to_owned(),
            json!({}),
            json!("site.remove"),
            with("removed", &of_cork),
        ),
        (
            "PATCH /sites/{site}",
            "/sites/cork".to_owned(),
            json!({"name": "kinsale"}),
            json!("site.change"),
            with(
                "changed",
                &links(&[["kinsale", "dublin"], ["kinsale", "galway"]]),
            ),
        ),
        (
            "PATCH /nodes/{node}",
            "/nodes/cork".to_owned(),
            json!({"name": "kinsale"}),
            json!("node.rename"),
            with(
                "changed",
                &links(&[["kinsale", "dublin"], ["kinsale", "galway"]]),
            ),
        ),
        (
            "DELETE /nodes/{node}",
            "/nodes/cork".to_owned(),
            json!({}),
            json!("node.revoke"),
            with("removed", &of_cork),
        ),
        (
            "POST /nodes/{node}/rotate",
            "/nodes/cork/rotate".to_owned(),
            json!({}),
            json!("node.rotate"),
            nothing.clone(),
        ),
        (
            "POST /admissions",
            "/admissions".to_owned(),
            json!({"admissions": &admissions[..1]}),
            json!("node.admit"),
            with("changed", &of_cork),
        ),
        (
            "POST /removals",
            "/removals".to_owned(),
            json!({ "removals": removals }),
            json!("node.confirm_removal"),
            nothing.clone(),
        ),
        (
            "POST /sites/{site}/join-tokens",
            "/sites/cork/join-tokens".to_owned(),
            json!({}),
            json!("join-token.create"),
            nothing.clone(),
        ),
        (
            "DELETE /join-tokens/{id}",
            format!("/join-tokens/{}", id(&join_token)),
            json!({}),
            json!("join-token.revoke"),
            nothing.clone(),
        ),
        (
            "POST /sites/{site}/wg-quick",
            "/sites/sligo/wg-quick".to_owned(),
            json!({}),
            json!("wg-quick.create"),
            with(
                "added",
                &links(&[["cork", "sligo"], ["dublin", "sligo"], ["galway", "sligo"]]),
            ),
        ),
        (
            "POST /api-tokens",
            "/api-tokens".to_owned(),
            json!({"name": "y", "role": "viewer"}),
            json!("api-token.create"),
            nothing.clone(),
        ),
        (
            "POST /webhooks",
            "/webhooks".to_owned(),
            webhook,
            json!("webhook.create"),
            nothing.clone(),
        ),
        (
            "DELETE /webhooks/{id}",
            format!("/webhooks/{}", id(&made)),
            json!({}),
            json!("webhook.delete"),
            nothing.clone(),
        ),
        (
            "DELETE /api-tokens/{id}",
            format!("/api-tokens/{}", id(&api_token)),
            json!({}),
            json!("api-token.revoke"),
            nothing.clone(),
        ),
        (
            "PATCH /mesh",
            "/mesh".to_owned(),
            json!({"psk": "prefer"}),
            json!("mesh.change"),
            with(
                "changed",
                &links(&[["cork", "dublin"], ["cork", "galway"], ["dublin", "galway"]]),
            ),
        ),
    ];
    let before = rows(&coordinator).await;
    let mut tried = BTreeSet::new();
    for (route, path, body, would, links) in changes {
        let method = Method::from_bytes(route.split(' ').next().unwrap().as_bytes()).unwrap();
        let answer = send(
            coordinator
                .request(method, &format!("{path}?dry_run=true"))
                .json(&body),
        )
        .await
        .expect(200);
        let told = answer.json();
        assert_eq!(
            (&told["would"], &told["links"]),
            (&would, &links),
            "{route} {body}"
        );
        assert!(
            !["wattle1.", "wattle_", "Key ="]
                .iter()
                .any(|secret| answer.text.contains(secret)),
            "no secret is made: {}",
            answer.text
        );
        if route == "POST /sites" {
            assert_eq!(
                (
                    &told["sites"][0]["name"],
                    &told["sites"][0]["tunnel_address"]
                ),
                (&json!("limerick"), &json!("10.99.0.5"))
            );
        }
        tried.insert(route.to_owned());
    }
    // What is sent is sent: there is no dry run of it.
    let sending = coordinator
        .post(
            &format!("/webhooks/{}/test?dry_run=true", id(&made)),
            json!({}),
        )
        .await;
    assert_eq!(sending.problem().0, 422);
    tried.insert("POST /webhooks/{id}/test".to_owned());
    assert_eq!(rows(&coordinator).await, before);
    // A node that the database has lost.
    let nenagh = new_node(&coordinator, json!({"name": "nenagh"})).await;
    new_node(&coordinator, json!({"name": "tralee"})).await;
    let tralee = coordinator.get("/nodes/tralee").await.json();
    let tralee: Node = serde_json::from_value(tralee).unwrap();
    let statement = lose(&coordinator, "tralee").await;
    let report = holding_lost(&tralee, &statement, "tralee");
    nenagh.report(&coordinator, report).await.expect(204);
    let held = "SELECT count(*) FROM node_reports WHERE held IS NOT NULL";
    coordinator.until(held, 1).await;
    let nodes = json!([{"node": tralee.id, "identity": tralee.identity_key}]);
    let told = coordinator
        .post("/nodes/readmit?dry_run=true", json!({ "nodes": nodes }))
        .await
        .expect(200)
        .json();
    assert_eq!(told["would"], json!("node.readmit"), "{told}");
    coordinator.get("/nodes/tralee").await.expect(404);
    tried.insert("POST /nodes/readmit".to_owned());
    let is_change = |method: &str, action: &Action| {
        method != "GET" && ![Action::Ask, Action::TakePart].contains(action)
    };
    let all = router::table()
        .into_iter()
        .filter(|operation| is_change(operation.method, &operation.action));
    let all: BTreeSet<_> = all
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    assert_eq!(tried, all, "each change is tried here");
}

#[tokio::test]
async fn a_dry_run_is_refused_as_the_change_would_be_and_wherever_it_means_nothing() {
    let coordinator = Coordinator::start().await;
    let node = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let create = async |body: Value| {
        coordinator
            .post("/sites?dry_run=true", body)
            .await
            .problem()
    };
    assert_eq!(
        create(json!({"name": "dublin"})).await,
        (409, "name_taken".to_owned(), Some("name".to_owned()))
    );
    assert_eq!(
        create(json!({"name": "cork", "subnets": ["10.10.0.0/16"]}))
            .await
            .1,
        "subnet_taken"
    );
    assert_eq!(create(json!({"name": "cork", "role": "hub"})).await.0, 422);
    for query in [
        "dry_run=yes",
        "dry_run=",
        "dry_run",
        "dryrun=true",
        "dry_run=true&x=1",
        "dry_run=true&dry_run=false",
    ] {
        let answer = coordinator
            .post(&format!("/sites?{query}"), json!({"name": "cork"}))
            .await;
        assert_eq!(answer.problem().1, "invalid_query", "{query}");
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 1);
    for Operation {
        method,
        path,
        action,
        ..
    } in router::table()
    {
        if method != "GET" && ![Action::Ask, Action::TakePart].contains(&action) {
            continue;
        }
        let token = if action == Action::TakePart {
            node.token()
        } else {
            coordinator.token.clone()
        };
        let path = path.replace("{site}", "dublin").replace("{node}", "dublin");
        let url = coordinator.url(&format!("{path}?dry_run=true"));
        let answer = send_head(
            coordinator
                .client
                .request(Method::from_bytes(method.as_bytes()).unwrap(), url)
                .bearer_auth(token),
        )
        .await;
        assert_eq!(
            answer.problem(),
            (422, "invalid_query".to_owned(), Some("dry_run".to_owned())),
            "{method} {path}"
        );
    }
    coordinator
        .post("/sites?dry_run=false", json!({"name": "cork"}))
        .await
        .expect(201);
}

fn tag(answer: &Answer) -> String {
    answer.headers[header::ETAG].to_str().unwrap().to_owned()
}

/// A change that is to be made only if the object has one of these tags.
async fn if_match(
    coordinator: &Coordinator,
    method: Method,
    path: &str,
    tags: &str,
    body: Value,
) -> Answer {
    send(
        coordinator
            .request(method, path)
            .header(header::IF_MATCH, tags)
            .json(&body),
    )
    .await
}

#[tokio::test]
async fn a_change_with_if_match_is_made_only_to_what_its_caller_saw() {
    let coordinator = Coordinator::start().await;
    let created = coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    let seen = coordinator.get("/sites/dublin").await.expect(200);
    let first = tag(&seen);
    assert_eq!(first, tag(&created), "what was made is what is shown");
    assert!(
        first.len() > 10 && first.starts_with('"') && first.ends_with('"'),
        "a strong tag: {first}"
    );
    assert_eq!(
        tag(&coordinator.another().await.get("/sites/dublin").await),
        first,
        "every coordinator gives the same"
    );

    let patch = async |tags: &str, text: &str| {
        if_match(
            &coordinator,
            Method::PATCH,
            "/sites/dublin",
            tags,
            json!({"description": text}),
        )
        .await
    };
    let second = tag(&patch(&first, "by the first").await.expect(200));
    assert_ne!(second, first);
    assert_eq!(second, tag(&coordinator.get("/sites/dublin").await));
    let stale = patch(&first, "by the second").await;
    assert_eq!(stale.problem(), (412, "changed_meanwhile".to_owned(), None));
    // Whatever else is wrong with it: the sender saw another site.
    for wrong in [
        json!({"endpoint": "10.99.0.1:51820"}),
        json!({"subnets": ["10.10.0.0/24", "10.10.0.0/25"]}),
    ] {
        let stale = if_match(&coordinator, Method::PATCH, "/sites/dublin", &first, wrong).await;
        assert_eq!(stale.problem().0, 412);
    }
    for none in [
        "",
        "\"x\"",
        &format!("W/{second}"),
        second.trim_matches('"'),
    ] {
        assert_eq!(patch(none, "by nobody").await.problem().0, 412, "{none}");
    }
    assert_eq!(
        coordinator.get("/sites/dublin").await.json()["description"],
        "by the first"
    );
    assert_eq!(
        tag(&patch(&second, "by the first").await.expect(200)),
        second,
        "nothing was to be done"
    );
    let third = tag(&patch(&format!("\"x\", {second}"), "again")
        .await
        .expect(200));
    patch("*", "whatever it was").await.expect(200);

    // A gateway that joined since is a reason to look again, before its site is taken away.
    let before_it_joined = tag(&coordinator.get("/sites/dublin").await);
    let join = coordinator
        .post("/sites/dublin/join-tokens", json!({}))
        .await
        .json()["join_string"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let node = NodeKeys::new().enrol(&coordinator, &join).await;
    for stale in [&third, &before_it_joined] {
        assert_eq!(
            if_match(
                &coordinator,
                Method::DELETE,
                "/sites/dublin",
                stale,
                json!({})
            )
            .await
            .problem()
            .0,
            412
        );
    }

    // What a node reports is not its configuration.
    let seen = tag(&coordinator.get("/nodes/dublin").await);
    node.report(
        &coordinator,
        json!({"applied": "1.1", "device": "kernel", "links": [], "problems": []}),
    )
    .await
    .expect(204);
    assert_eq!(tag(&coordinator.get("/nodes/dublin").await), seen);
    coordinator
        .patch("/sites/dublin", json!({"endpoint": "203.0.113.10:51820"}))
        .await
        .expect(200);
    assert_eq!(
        if_match(
            &coordinator,
            Method::DELETE,
            "/nodes/dublin",
            &seen,
            json!({})
        )
        .await
        .problem()
        .0,
        412
    );
    let dry = if_match(
        &coordinator,
        Method::DELETE,
        "/nodes/dublin?dry_run=true",
        &seen,
        json!({}),
    )
    .await;
    assert_eq!(dry.problem().0, 412, "a dry run, too");
    let rotate = async |tags: &str| {
        if_match(
            &coordinator,
            Method::POST,
            "/nodes/dublin/rotate",
            tags,
            json!({}),
        )
        .await
    };
    assert_eq!(rotate(&seen).await.problem().0, 412);
    let seen = tag(&coordinator.get("/nodes/dublin").await);
    rotate(&seen).await.expect(202);
    assert_eq!(
        rotate(&seen).await.problem().0,
        412,
        "it was asked for a key meanwhile"
    );
    let seen = tag(&coordinator.get("/nodes/dublin").await);
    if_match(
        &coordinator,
        Method::DELETE,
        "/nodes/dublin",
        &seen,
        json!({}),
    )
    .await
    .expect(204);
    let seen = tag(&coordinator.get("/sites/dublin").await);
    if_match(
        &coordinator,
        Method::DELETE,
        "/sites/dublin",
        &seen,
        json!({}),
    )
    .await
    .expect(204);

    let mesh = tag(&coordinator.get("/mesh").await);
    let configure = async |tag: &str, psk: &str| {
        if_match(
            &coordinator,
            Method::PATCH,
            "/mesh",
            tag,
            json!({"psk": psk}),
        )
        .await
    };
    assert_ne!(tag(&configure(&mesh, "prefer").await.expect(200)), mesh);
    assert_eq!(configure(&mesh, "require").await.problem().0, 412);
    // What has no tag matches none.
    assert_eq!(
        if_match(
            &coordinator,
            Method::POST,
            "/sites",
            &seen,
            json!({"name": "cork"})
        )
        .await
        .problem()
        .0,
        412
    );
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 0);
}

#[tokio::test]
async fn of_two_changes_at_once_to_what_both_saw_one_is_made() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    let other = coordinator.another().await;
    for round in 0..10 {
        let seen = tag(&coordinator.get("/sites/dublin").await);
        let patch = async |at, who| {
            if_match(
                at,
                Method::PATCH,
                "/sites/dublin",
                &seen,
                json!({"description": format!("{who} {round}")}),
            )
            .await
        };
        let (a, b) = tokio::join!(patch(&coordinator, "a"), patch(&other, "b"));
        let mut statuses = [a.status.as_u16(), b.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{} {}", a.text, b.text);
        coordinator.server.app.mesh_cache.refresh().await;
    }
}

/// A POST that may be sent again.
async fn once(
    coordinator: &Coordinator,
    token: &str,
    key: &str,
    path: &str,
    body: &Value,
) -> Answer {
    let request = coordinator
        .client
        .post(coordinator.url(path))
        .bearer_auth(token)
        .header("idempotency-key", key);
    send(request.json(body)).await
}

#[tokio::test]
async fn what_is_sent_again_with_its_idempotency_key_is_answered_again_and_done_once() {
    let coordinator = Coordinator::start().await;
    let (token, other) = (&coordinator.token, coordinator.another().await);
    let site = json!({"name": "dublin"});
    for (path, body) in [
        ("/sites", site.clone()),
        (
            "/import",
            json!({"sites": [{"name": "cork"}, {"name": "galway"}]}),
        ),
        ("/sites/dublin/join-tokens", json!({})),
        ("/sites/galway/wg-quick", json!({})),
        ("/api-tokens", json!({"name": "x", "role": "owner"})),
    ] {
        let first = once(&coordinator, token, path, path, &body)
            .await
            .expect(201);
        let before = rows(&coordinator).await;
        for again in [&coordinator, &other] {
            let answer = once(again, token, path, path, &body).await.expect(201);
            assert_eq!(
                (&answer.text, answer.headers.get(header::LOCATION)),
                (&first.text, first.headers.get(header::LOCATION)),
                "{path}"
            );
            assert_eq!(
                answer.headers.get(header::ETAG),
                first.headers.get(header::ETAG)
            );
            assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        }
        assert_eq!(rows(&coordinator).await, before, "{path}");
    }
    let used = (409, "idempotency_key_reused".to_owned(), None);
    assert_eq!(
        once(
            &coordinator,
            token,
            "/sites",
            "/sites",
            &json!({"name": "dublin", "labels": {}})
        )
        .await
        .problem(),
        used
    );
    assert_eq!(
        once(
            &coordinator,
            token,
            "/sites",
            "/import",
            &json!({"sites": [site]})
        )
        .await
        .problem(),
        used
    );

    // A key is its caller's own, and what failed was not done.
    let second = coordinator
        .post("/api-tokens", json!({"name": "y", "role": "owner"}))
        .await
        .json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        once(&coordinator, &second, "/sites", "/sites", &site)
            .await
            .problem()
            .1,
        "name_taken"
    );
    coordinator.delete("/sites/dublin").await.expect(204);
    once(&coordinator, &second, "/sites", "/sites", &site)
        .await
        .expect(201);

    // After a day it is forgotten.
    let mut connection = coordinator.connection().await;
    sqlx::query("UPDATE answers SET made_at = now() - interval '25 hours'")
        .execute(&mut connection)
        .await
        .unwrap();
    wattle_server::db::idempotency::queries::forget_old(&mut connection)
        .await
        .unwrap();
    assert_eq!(coordinator.count("SELECT count(*) FROM answers").await, 0);
    assert_eq!(
        once(&coordinator, &second, "/sites", "/sites", &site)
            .await
            .problem()
            .1,
        "name_taken"
    );
}

#[tokio::test]
async fn an_idempotency_key_is_refused_where_it_would_mean_nothing() {
    let coordinator = Coordinator::start().await;
    let token = &coordinator.token;
    let field = Some("Idempotency-Key".to_owned());
    for key in ["", "schlüssel", &"k".repeat(256)] {
        let answer = once(
            &coordinator,
            token,
            key,
            "/sites",
            &json!({"name": "dublin"}),
        )
        .await;
        assert_eq!(
            answer.problem(),
            (422, "invalid_idempotency_key".to_owned(), field.clone()),
            "{key}"
        );
    }
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    for method in [Method::PATCH, Method::DELETE] {
        let answer = send(
            coordinator
                .request(method, "/sites/dublin")
                .header("idempotency-key", "k")
                .json(&json!({})),
        )
        .await;
        assert_eq!(answer.problem().1, "invalid_idempotency_key");
    }
    let large = json!({"name": "cork", "description": "x".repeat(5 * 1024 * 1024)});
    assert_eq!(
        once(&coordinator, token, "k", "/sites", &large)
            .await
            .problem()
            .0,
        413
    );
    once(
        &coordinator,
        token,
        "k",
        "/sites?dry_run=true",
        &json!({"name": "cork"}),
    )
    .await
    .expect(200);
    once(&coordinator, token, "k", "/sites", &json!({"name": "cork"}))
        .await
        .expect(201);
}

#[tokio::test]
async fn f2_of_many_that_send_the_same_at_once_all_hear_of_one_site() {
    let coordinator = Coordinator::start().await;
    let other = coordinator.another().await;
    for round in 0..5 {
        let (key, body) = (
            format!("key-{round}"),
            json!({"name": format!("site-{round}")}),
        );
        let attempts = (0..10).map(|turn| {
            once(
                if turn % 2 == 0 { &coordinator } else { &other },
                &coordinator.token,
                &key,
                "/sites",
                &body,
            )
        });
        let answers = futures_util::future::join_all(attempts).await;
        let texts: BTreeSet<_> = answers
            .into_iter()
            .map(|answer| answer.expect(201).text)
            .collect();
        assert_eq!(texts.len(), 1);
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 5);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM join_tokens").await,
        5
    );
}

#[tokio::test]
async fn f2_who_is_cut_off_after_the_commit_gets_the_lost_join_token_by_sending_the_same_again() {
    let coordinator = Coordinator::start().await;
    let mut committed = 0;
    while committed < 5 {
        let (name, token) = (format!("site-{committed}"), &coordinator.token);
        let body = json!({"name": name});
        let text = serde_json::to_string(&body).unwrap();
        let request = format!(
            "POST /sites HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nidempotency-key: \
             {name}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        let mut connection = coordinator.connect().await;
        connection.write_all(request.as_bytes()).await.unwrap();
        let deadline = Instant::now() + SOON;
        while coordinator.count("SELECT count(*) FROM sites").await == committed {
            assert!(Instant::now() < deadline, "the site was not made");
        }
        drop(connection);
        committed += 1;
        let answer = once(&coordinator, token, &name, "/sites", &body)
            .await
            .expect(201)
            .json();
        let join = answer["join_token"]["join_string"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        NodeKeys::new().enrol(&coordinator, &join).await;
        assert_eq!(
            coordinator.count("SELECT count(*) FROM sites").await,
            committed
        );
    }
}
