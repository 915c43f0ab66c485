//! What nodes are called, and how that follows their sites.

use futures_util::future::join_all;
use reqwest::{Method, header};
use serde_json::{Value, json};
use wattle_wire::stream::{StreamMessage, ViewChange};

use crate::{
    agents::{Node, NodeKeys, new_node, new_site},
    harness::{Coordinator, send},
};

/// The names of all nodes with those of their sites, `node@site`, in the order of enrolment.
async fn names(coordinator: &Coordinator) -> Vec<String> {
    let nodes = coordinator.get("/nodes").await.expect(200).json();
    let name = |node: &Value| {
        let of = |field: &str| node[field].as_str().unwrap().to_owned();
        format!("{}@{}", of("name"), of("site_name"))
    };
    nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(name)
        .collect()
}

/// A further gateway of a site.
pub(crate) async fn further(coordinator: &Coordinator, site: &str) -> Node {
    let created = coordinator
        .post(&format!("/sites/{site}/join-tokens"), json!({}))
        .await
        .expect(201)
        .json();
    let join = created["join_string"].as_str().unwrap().parse().unwrap();
    NodeKeys::new().enrol(coordinator, &join).await
}

async fn rename_site(coordinator: &Coordinator, site: &str, name: &str) {
    coordinator
        .patch(&format!("/sites/{site}"), json!({ "name": name }))
        .await
        .expect(200);
}

async fn rename(coordinator: &Coordinator, node: &str, name: Value) -> crate::harness::Answer {
    coordinator
        .patch(&format!("/nodes/{node}"), json!({ "name": name }))
        .await
}

/// Action and object of the newest events, the newest first.
async fn events(coordinator: &Coordinator, count: usize) -> Vec<(String, String)> {
    let events = coordinator
        .get(&format!("/events?limit={count}"))
        .await
        .json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let events = events["items"].as_array().unwrap().iter();
    events
        .map(|event| (text(&event["action"]), text(&event["object"])))
        .collect()
}

#[tokio::test]
async fn nodes_follow_the_name_of_their_site_in_one_revision_and_their_peers_are_told() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let second = further(&coordinator, "dublin").await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let mut stream = cork
        .follow(&coordinator, Some("1.5".parse().unwrap()))
        .await;
    let dry_run = coordinator
        .patch("/sites/dublin?dry_run=true", json!({"name": "docklands"}))
        .await
        .expect(200)
        .json();
    let listed = |nodes: &Value| {
        let nodes = nodes.as_array().unwrap().iter();
        nodes
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (
            listed(&dry_run["sites"][0]["nodes"]),
            listed(&dry_run["nodes"])
        ),
        (
            vec!["docklands".to_owned(), "docklands-2".to_owned()],
            vec!["docklands".to_owned(), "docklands-2".to_owned()]
        )
    );
    assert_eq!(
        names(&coordinator).await,
        ["dublin@dublin", "dublin-2@dublin", "cork@cork"]
    );
    let answer = coordinator
        .patch("/sites/dublin", json!({"name": "docklands"}))
        .await
        .expect(200);
    assert_eq!(
        listed(&answer.json()["nodes"]),
        ["docklands", "docklands-2"]
    );
    assert_eq!(
        names(&coordinator).await,
        ["docklands@docklands", "docklands-2@docklands", "cork@cork"]
    );
    let Some(StreamMessage::Delta {
        position, changes, ..
    }) = stream.news().await
    else {
        panic!("no delta")
    };
    let told: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            ViewChange::Peer(peer) => Some((peer.node, peer.name.as_str())),
            ViewChange::PeerRemoved(_) | ViewChange::Myself(_) | ViewChange::Mesh(_) => None,
        })
        .collect();
    assert_eq!(
        (position, told),
        (
            "1.6".parse().unwrap(),
            vec![(dublin.id(), "docklands"), (second.id(), "docklands-2")]
        )
    );
    let Some(StreamMessage::Snapshot { view, .. }) =
        dublin.follow(&coordinator, None).await.next().await
    else {
        panic!("no snapshot")
    };
    assert_eq!(
        (view.myself.name.as_str(), view.myself.site_name.as_str()),
        ("docklands", "docklands")
    );
    let site = answer.json()["id"].as_str().unwrap().to_owned();
    let renamed = |node: &Node| ("node.rename".to_owned(), node.id().to_string());
    assert_eq!(
        events(&coordinator, 3).await,
        [
            renamed(&second),
            renamed(&dublin),
            ("site.change".to_owned(), site)
        ]
    );
    assert_eq!(
        coordinator
            .count("SELECT count(*) FROM events WHERE revision = 6")
            .await,
        3
    );
    wattle_server::routes::events::verify(&coordinator.server.app.db, None)
        .await
        .unwrap();
    // Another coordinator has it from the database.
    let another = coordinator.another().await;
    another.get("/nodes/docklands-2").await.expect(200);
    another.get("/nodes/dublin").await.expect(404);
}

#[tokio::test]
async fn whoever_gets_a_name_that_was_given_up_bears_it_whole() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    rename_site(&coordinator, "dublin", "docklands").await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    further(&coordinator, "docklands").await;
    assert_eq!(
        names(&coordinator).await,
        [
            "docklands@docklands",
            "dublin@dublin",
            "docklands-2@docklands"
        ]
    );
    // They swap their names, and swap them back.
    for (first, second) in [("docklands", "dublin"), ("dublin", "docklands")] {
        rename_site(&coordinator, first, "between").await;
        rename_site(&coordinator, second, first).await;
        rename_site(&coordinator, "between", second).await;
        let third = format!("{second}-2@{second}");
        assert_eq!(
            names(&coordinator).await,
            [
                format!("{second}@{second}"),
                format!("{first}@{first}"),
                third
            ]
        );
    }
    // A node that is revoked gives its name up, too.
    coordinator.delete("/nodes/dublin").await.expect(204);
    further(&coordinator, "dublin").await;
    assert_eq!(
        names(&coordinator).await,
        [
            "docklands@docklands",
            "docklands-2@docklands",
            "dublin@dublin"
        ]
    );
    coordinator.delete("/nodes/docklands").await.expect(204);
    rename_site(&coordinator, "docklands", "quays").await;
    assert_eq!(
        names(&coordinator).await,
        ["quays@quays", "dublin@dublin"],
        "who took the place of the first is called so"
    );
    rename(&coordinator, "quays", json!("harbour"))
        .await
        .expect(200);
    coordinator.delete("/nodes/harbour").await.expect(204);
    rename(&coordinator, "dublin", json!("harbour"))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_name_that_is_made_of_a_number_makes_way_for_a_site_and_one_that_was_given_does_not() {
    let coordinator = Coordinator::start().await;
    let dc = new_node(&coordinator, json!({"name": "dc"})).await;
    let second = further(&coordinator, "dc").await;
    new_node(&coordinator, json!({"name": "dc-2"})).await;
    assert_eq!(names(&coordinator).await, ["dc@dc", "dc-3@dc", "dc-2@dc-2"]);
    // Nobody takes the name of a site, not even while that has no gateway.
    new_site(&coordinator, json!({"name": "dc-4"})).await;
    further(&coordinator, "dc").await;
    let imported = json!({"sites": [{"name": "dc-3"}, {"name": "dc-6"}]});
    coordinator.post("/import", imported).await.expect(201);
    assert_eq!(
        names(&coordinator).await,
        ["dc@dc", "dc-7@dc", "dc-2@dc-2", "dc-5@dc"]
    );
    assert_eq!(
        events(&coordinator, 1).await,
        [("node.rename".to_owned(), second.id().to_string())]
    );
    // A name that is given up in the same request is free.
    rename_site(&coordinator, "dc", "dc-5").await;
    assert_eq!(
        names(&coordinator).await,
        ["dc-5@dc-5", "dc-5-2@dc-5", "dc-2@dc-2", "dc-5-3@dc-5"]
    );

    rename(&coordinator, "dc-2", json!("athena"))
        .await
        .expect(200);
    let holder = json!({"site": "dc-2", "holds": "athena"});
    let path = format!("/nodes/{}", dc.id());
    for (method, path, body, field) in [
        (Method::POST, "/sites", json!({"name": "athena"}), "name"),
        (
            Method::PATCH,
            "/sites/dc-5",
            json!({"name": "athena"}),
            "name",
        ),
        (Method::PATCH, &path, json!({"name": "athena"}), "name"),
        (
            Method::POST,
            "/import",
            json!({"sites": [{"name": "x"}, {"name": "athena"}]}),
            "sites[1].name",
        ),
    ] {
        for query in ["", "?dry_run=true"] {
            let path = format!("{path}{query}");
            let answer = send(coordinator.request(method.clone(), &path).json(&body)).await;
            assert_eq!(
                answer.problem(),
                (409, "name_taken".to_owned(), Some(field.to_owned())),
                "{path}"
            );
            assert_eq!(answer.json()["holder"], holder, "{path}");
        }
    }
    // Its own site may be called so; its node keeps what it was given.
    rename_site(&coordinator, "dc-2", "athena").await;
    rename_site(&coordinator, "athena", "sparta").await;
    assert!(
        names(&coordinator)
            .await
            .contains(&"athena@sparta".to_owned())
    );
}

#[tokio::test]
async fn a_node_keeps_the_name_that_somebody_gives_it_until_that_is_taken_away() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let second = further(&coordinator, "dublin").await;
    new_site(&coordinator, json!({"name": "cork"})).await;
    let revision = async || coordinator.count("SELECT revision FROM mesh").await;
    let numbers = async || coordinator.count("SELECT event_number FROM mesh").await;

    let answer = rename(&coordinator, "dublin", json!("athena"))
        .await
        .expect(200);
    assert_eq!(
        (&answer.json()["name"], &answer.json()["name_follows_site"]),
        (&json!("athena"), &json!(false))
    );
    let shown = coordinator.get("/nodes/athena").await.expect(200);
    assert_eq!(
        (shown.json(), &shown.headers[header::ETAG]),
        (answer.json(), &answer.headers[header::ETAG])
    );
    assert_eq!(
        events(&coordinator, 1).await,
        [("node.rename".to_owned(), dublin.id().to_string())]
    );
    // What is so already is no change.
    let before = (revision().await, numbers().await);
    for (node, body) in [
        ("athena", json!({"name": "athena"})),
        ("athena", json!({})),
        ("dublin-2", json!({"name": "dublin-2"})),
    ] {
        let path = format!("/nodes/{node}");
        coordinator.patch(&path, body.clone()).await.expect(200);
        let dry_run = coordinator
            .patch(&format!("{path}?dry_run=true"), body)
            .await
            .expect(200);
        assert_eq!(dry_run.json()["would"], Value::Null);
    }
    for (body, status, code, holder) in [
        (
            json!({"name": "dublin-2"}),
            409,
            "name_taken",
            json!("dublin"),
        ),
        (json!({"name": "cork"}), 409, "name_taken", json!("cork")),
        (json!({"name": "Athena"}), 422, "invalid_field", Value::Null),
        (json!({"name": ""}), 422, "invalid_field", Value::Null),
        (
            json!({"name": second.id()}),
            422,
            "invalid_field",
            Value::Null,
        ),
    ] {
        let answer = coordinator.patch("/nodes/athena", body.clone()).await;
        assert_eq!(
            answer.problem(),
            (status, code.to_owned(), Some("name".to_owned())),
            "{body}"
        );
        let named = answer.json()["holder"]["site"].clone();
        assert_eq!(named, holder, "{body}");
    }
    let stale = coordinator
        .request(Method::PATCH, "/nodes/athena")
        .header(header::IF_MATCH, "\"other\"")
        .json(&json!({"name": "sparta"}));
    assert_eq!(send(stale).await.problem().0, 412);
    assert_eq!(
        rename(&coordinator, "dublin", json!("x")).await.problem().0,
        404
    );
    assert_eq!((revision().await, numbers().await), before);

    rename_site(&coordinator, "dublin", "docklands").await;
    assert_eq!(
        names(&coordinator).await,
        ["athena@docklands", "docklands-2@docklands"]
    );
    let matching = coordinator.get("/nodes/athena").await;
    let taken_back = coordinator
        .request(Method::PATCH, "/nodes/athena")
        .header(header::IF_MATCH, &matching.headers[header::ETAG])
        .json(&json!({"name": null}));
    let taken_back = send(taken_back).await.expect(200).json();
    assert_eq!(
        (&taken_back["name"], &taken_back["name_follows_site"]),
        (&json!("docklands"), &json!(true))
    );
    let before = (revision().await, numbers().await);
    for node in ["docklands", "docklands-2"] {
        rename(&coordinator, node, Value::Null).await.expect(200);
    }
    assert_eq!((revision().await, numbers().await), before);
    // Who is given the name of its site bears it as the first does.
    rename(&coordinator, "docklands", json!("athena"))
        .await
        .expect(200);
    rename(&coordinator, "docklands-2", json!("docklands"))
        .await
        .expect(200);
    rename_site(&coordinator, "docklands", "quays").await;
    assert_eq!(names(&coordinator).await, ["athena@quays", "quays@quays"]);
}

#[tokio::test]
async fn only_operators_rename_nodes() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    let token = |created: Value| created["token"].as_str().unwrap().to_owned();
    for (role, status) in [("viewer", 403), ("operator", 200)] {
        let created = coordinator
            .post("/api-tokens", json!({"name": role, "role": role}))
            .await
            .expect(201)
            .json();
        let request = coordinator
            .client
            .request(Method::PATCH, coordinator.url("/nodes/dublin"))
            .bearer_auth(token(created))
            .json(&json!({"name": "athena"}));
        send(request).await.expect(status);
    }
}

#[tokio::test]
async fn links_and_files_show_the_name_that_a_node_has_now() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    coordinator
        .post("/sites", json!({"name": "branch"}))
        .await
        .expect(201);
    let file = async || {
        let made = coordinator
            .post("/sites/branch/wg-quick", json!({}))
            .await
            .expect(201)
            .json();
        made["file"].as_str().unwrap().to_owned()
    };
    assert!(file().await.contains("dublin"));
    rename_site(&coordinator, "dublin", "docklands").await;
    rename_site(&coordinator, "branch", "outpost").await;
    let links = coordinator.get("/links").await.json();
    let ends: Vec<_> = links["items"][0]["ends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|end| end["name"].as_str().unwrap())
        .collect();
    assert_eq!(ends, ["docklands", "outpost"]);
    let unmanaged = coordinator.get("/nodes/outpost").await.expect(200).json();
    assert_eq!(
        unmanaged["unmanaged"]["file_is_current"], true,
        "a name is a comment: no gateway needs another file"
    );
    let made = coordinator
        .post("/sites/outpost/wg-quick", json!({}))
        .await
        .expect(201)
        .json();
    let file = made["file"].as_str().unwrap();
    assert!(
        file.contains("# Wattle: outpost,")
            && file.contains("docklands")
            && !file.contains("dublin"),
        "the comments are of now"
    );
}

#[tokio::test]
async fn gateways_that_join_while_their_site_is_renamed_are_called_as_it_is_in_the_end() {
    let coordinator = Coordinator::start().await;
    let created = coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201)
        .json();
    let (path, count) = (format!("/sites/{}", created["id"].as_str().unwrap()), 6);
    let tokens = coordinator
        .post(&format!("{path}/join-tokens"), json!({"uses": count}))
        .await
        .expect(201)
        .json();
    let join = tokens["join_string"].as_str().unwrap().parse().unwrap();
    let joins = join_all((0..count).map(|_| NodeKeys::new().enrol(&coordinator, &join)));
    let renames = async {
        for name in ["cork", "dublin", "docklands"] {
            coordinator
                .patch(&path, json!({ "name": name }))
                .await
                .expect(200);
        }
    };
    tokio::join!(joins, renames);
    let mut found = names(&coordinator).await;
    found.sort();
    let expected = (2..=count).map(|number| format!("docklands-{number}@docklands"));
    let mut expected: Vec<_> = expected.collect();
    expected.push("docklands@docklands".to_owned());
    expected.sort();
    assert_eq!(found, expected);
}
