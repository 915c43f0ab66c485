//! `/sites`

use reqwest::header;
use serde_json::{Value, json};
use wattle_wire::{
    join::JoinString,
    stream::{StreamMessage, ViewChange},
};

use crate::{
    agents::{NodeKeys, new_node, new_site},
    harness::Coordinator,
};

#[tokio::test]
async fn the_guides_three_sites_get_their_tunnel_addresses_in_order() {
    let coordinator = Coordinator::start().await;
    let sites = [
        ("dublin", "203.0.113.10:51820", "10.10.0.0/24", "10.99.0.1"),
        (
            "frankfurt",
            "198.51.100.20:51820",
            "10.20.0.0/24",
            "10.99.0.2",
        ),
        ("new-york", "192.0.2.30:51820", "10.30.0.0/24", "10.99.0.3"),
    ];
    for (name, endpoint, subnet, tunnel_address) in sites {
        let answer = coordinator
            .post(
                "/sites",
                json!({"name": name, "endpoint": endpoint, "subnets": [subnet]}),
            )
            .await
            .expect(201);
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        let created = answer.json();
        assert_eq!(
            answer.headers[header::LOCATION],
            format!("/sites/{}", created["id"].as_str().unwrap())
        );
        assert_eq!(
            (&created["tunnel_address"], &created["subnets"]),
            (&json!(tunnel_address), &json!([subnet]))
        );
        let command = created["join_token"]["command"].as_str().unwrap();
        let join: JoinString = command
            .strip_prefix("echo ")
            .and_then(|rest| rest.strip_suffix(" | wattle-agent join -"))
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            join.urls,
            [format!("https://{}", coordinator.server.address)]
        );
        let shown = coordinator.get(&format!("/sites/{name}")).await.expect(200);
        assert!(shown.headers.contains_key("wattle-position"));
        let mut expected = created;
        for once in ["join_token", "warnings"] {
            expected.as_object_mut().unwrap().remove(once).unwrap();
        }
        assert_eq!(shown.json(), expected);
    }
    let first = coordinator.get("/sites?limit=2").await.expect(200).json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = coordinator
        .get(&format!("/sites?limit=2&cursor={cursor}"))
        .await
        .expect(200)
        .json();
    let names: Vec<_> = [first, second]
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap().clone())
        .map(|site| site["name"].clone())
        .collect();
    assert_eq!(names, ["dublin", "frankfurt", "new-york"]);
}

#[tokio::test]
async fn b3_b4_b5_b6_b9_d1_d6_each_bad_field_is_named_and_nothing_is_stored() {
    let coordinator = Coordinator::start().await;
    let site = |field: &str, value: Value| {
        let mut site = json!({"name": "dublin"});
        site[field] = value;
        site
    };
    let mut cases: Vec<(Value, u16, &str, Option<&str>)> = vec![
        (json!({}), 422, "missing_field", Some("name")),
        (json!([]), 422, "invalid_field", None),
        (
            site("role", json!("owner")),
            422,
            "unknown_field",
            Some("role"),
        ),
        (
            site("tunnel_address", json!("10.99.0.9")),
            422,
            "unknown_field",
            Some("tunnel_address"),
        ),
        (
            site("description", json!("x".repeat(257))),
            422,
            "invalid_text",
            Some("description"),
        ),
        (
            site("description", json!("a\nPostUp = touch /tmp/p")),
            422,
            "invalid_text",
            Some("description"),
        ),
        (
            site("description", json!("a\u{202e}b")),
            422,
            "invalid_text",
            Some("description"),
        ),
        (
            site("labels", json!({"Rack": "1"})),
            422,
            "invalid_field",
            Some("labels.Rack"),
        ),
        (
            site("labels", json!({"rack": "\u{200b}"})),
            422,
            "invalid_text",
            Some("labels.rack"),
        ),
        (
            site("subnets", json!("10.10.0.0/24")),
            422,
            "invalid_field",
            Some("subnets"),
        ),
        (
            site("subnets", json!(["10.10.0.0/24", "10.10.0.0/24"])),
            422,
            "subnets_overlap",
            Some("subnets[1]"),
        ),
        (
            site("subnets", json!(["10.99.7.0/24"])),
            409,
            "subnet_taken",
            Some("subnets[0]"),
        ),
        (
            json!({"name": "a", "endpoint": "10.1.0.1:51820", "subnets": ["10.1.0.0/16"]}),
            422,
            "endpoint_in_subnet",
            Some("endpoint"),
        ),
    ];
    for name in [
        "",
        ".",
        "..",
        "-x",
        "x-",
        "Dublin",
        "a b",
        "a\nb",
        "a\u{0}",
        "\u{1b}[31m",
        "dubl\u{456}n",
        "dub\u{200b}lin",
        "а",
        "$(id)",
        "%41",
        "a/b",
        &"x".repeat(64),
    ] {
        cases.push((
            site("name", json!(name)),
            422,
            "invalid_field",
            Some("name"),
        ));
    }
    for subnet in [
        "10.1.2.3/16",
        "10.0.0.0/33",
        "10.0.0.0/08",
        "010.0.0.0/8",
        "0x0a.0.0.0/8",
        "fe80::1%eth0/64",
        " 10.0.0.0/8",
        "0.0.0.0/0",
        "::/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::ffff:10.0.0.0/104",
        "64:ff9b::/96",
        "2002::/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "fe80::/10",
        "ff00::/8",
        "0.0.0.0/8",
        "240.0.0.0/4",
        "10.0.0.0/8; reboot",
        "dublin",
    ] {
        cases.push((
            site("subnets", json!(["10.10.0.0/24", subnet])),
            422,
            "invalid_field",
            Some("subnets[1]"),
        ));
    }
    let long = format!("{}.example:51820", "x".repeat(300));
    for endpoint in [
        "203.0.113.10:0",
        "203.0.113.10:65536",
        "203.0.113.10",
        "127.0.0.1:51820",
        "0.0.0.0:51820",
        "[::]:51820",
        "224.0.0.1:51820",
        "255.255.255.255:51820",
        "[::ffff:127.0.0.1]:51820",
        "host:1; rm -rf /",
        "$(reboot):51820",
        "`id`:51820",
        "--config=x:51820",
        "203.0.113.10:51820 | sh",
        &long,
    ] {
        cases.push((
            site("endpoint", json!(endpoint)),
            422,
            "invalid_field",
            Some("endpoint"),
        ));
    }
    for (body, status, code, field) in cases {
        let answer = coordinator.post("/sites", body.clone()).await;
        assert_eq!(
            answer.problem(),
            (status, code.to_owned(), field.map(str::to_owned)),
            "{body} {}",
            answer.text
        );
        assert!(
            answer.json()["detail"].as_str().unwrap().len() <= 200,
            "{}",
            answer.text
        );
    }
    assert_eq!(coordinator.get("/sites").await.json()["items"], json!([]));
    assert_eq!(coordinator.count("SELECT revision FROM mesh").await, 0);
}

#[tokio::test]
async fn b7_b8_a_clash_says_who_holds_what() {
    let coordinator = Coordinator::start().await;
    let dublin =
        json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]});
    coordinator.post("/sites", dublin.clone()).await.expect(201);
    let holder = |holds: &str| json!({"site": "dublin", "holds": holds});
    let cases = [
        (dublin, "name_taken", "name", holder("dublin")),
        (
            json!({"name": "cork", "subnets": ["10.8.0.0/24", "10.10.0.0/25"]}),
            "subnet_taken",
            "subnets[1]",
            holder("10.10.0.0/24"),
        ),
        (
            json!({"name": "cork", "subnets": ["10.10.0.0/16"]}),
            "subnet_taken",
            "subnets[0]",
            holder("10.10.0.0/24"),
        ),
        (
            json!({"name": "cork", "endpoint": "203.0.113.10:51820"}),
            "endpoint_taken",
            "endpoint",
            holder("203.0.113.10:51820"),
        ),
        (
            json!({"name": "cork", "subnets": ["203.0.113.0/24"]}),
            "subnet_holds_endpoint",
            "subnets[0]",
            holder("203.0.113.10:51820"),
        ),
        (
            json!({"name": "cork", "subnets": ["10.99.0.0/24"]}),
            "subnet_taken",
            "subnets[0]",
            json!({"site": "mesh", "holds": "10.99.0.0/16"}),
        ),
    ];
    for (body, code, field, holder) in cases {
        let answer = coordinator.post("/sites", body.clone()).await;
        assert_eq!(
            answer.problem(),
            (409, code.to_owned(), Some(field.to_owned())),
            "{body}"
        );
        assert_eq!(answer.json()["holder"], holder, "{body}");
    }
    let answer = coordinator
        .post(
            "/sites",
            json!({"name": "cork", "endpoint": "10.10.0.1:51820"}),
        )
        .await;
    assert_eq!(
        answer.problem(),
        (
            422,
            "endpoint_in_subnet".to_owned(),
            Some("endpoint".to_owned())
        )
    );
    assert_eq!(answer.json()["holder"], holder("10.10.0.0/24"));
    // A name that is free, at another port of the same address, is nobody's.
    coordinator
        .post(
            "/sites",
            json!({"name": "cork", "endpoint": "203.0.113.10:51821"}),
        )
        .await
        .expect(201);
}

#[tokio::test]
async fn b7_of_two_parallel_sites_that_overlap_one_is_made() {
    let coordinator = Coordinator::start().await;
    for round in 0..5 {
        let body = |name: &str, length: u8| json!({"name": format!("{name}-{round}"), "subnets": [format!("10.{round}.0.0/{length}")]});
        let (a, b) = tokio::join!(
            coordinator.post("/sites", body("a", 16)),
            coordinator.post("/sites", body("b", 24))
        );
        let mut statuses = [a.status.as_u16(), b.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [201, 409], "{} {}", a.text, b.text);
    }
}

#[tokio::test]
async fn b7_overlapping_subnets_cannot_be_stored_whatever_code_writes_them() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post(
            "/sites",
            json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
        )
        .await
        .expect(201);
    let insert = "INSERT INTO subnets (prefix, site) SELECT '10.10.0.128/25', id FROM sites";
    let error = sqlx::query(insert)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap_err();
    assert_eq!(
        error.as_database_error().unwrap().constraint(),
        Some("subnets_do_not_overlap")
    );
}

/// The answer to a change that leaves a site so, and of which nothing is to be warned.
fn unwarned(site: &Value) -> Value {
    let mut answer = site.clone();
    answer["warnings"] = json!([]);
    answer
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_takes_a_revision_only_then() {
    let coordinator = Coordinator::start().await;
    let body = json!({"name": "dublin", "description": "Büro", "labels": {"rack": "7"}, "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]});
    new_site(&coordinator, body).await;
    let before = coordinator.get("/sites/dublin").await.json();
    let same = json!({"name": "dublin", "subnets": ["10.10.0.0/24"]});
    let answer = coordinator.patch("/sites/dublin", same).await.expect(200);
    assert_eq!(
        (
            answer.json(),
            answer.headers["wattle-position"].to_str().unwrap()
        ),
        (unwarned(&before), "1.1")
    );

    let answer = coordinator
        .patch("/sites/dublin", json!({"endpoint": null}))
        .await
        .expect(200)
        .json();
    let mut expected = before.clone();
    expected["endpoint"] = Value::Null;
    assert_eq!(answer, unwarned(&expected));
    let change = json!({"name": "cork", "subnets": ["10.11.0.0/24", "10.10.0.0/25"], "labels": {}, "description": ""});
    let answer = coordinator.patch("/sites/dublin", change).await.expect(200);
    assert_eq!(answer.headers["wattle-position"], "1.3");
    expected["name"] = json!("cork");
    expected["subnets"] = json!(["10.10.0.0/25", "10.11.0.0/24"]);
    (expected["labels"], expected["description"]) = (json!({}), json!(""));
    assert_eq!(answer.json(), unwarned(&expected));
    assert_eq!(coordinator.get("/sites/cork").await.json(), expected);
    coordinator.get("/sites/dublin").await.expect(404);

    new_site(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.12.0.0/24"]}),
    )
    .await;
    let answer = coordinator
        .patch("/sites/cork", json!({"subnets": ["10.12.0.0/16"]}))
        .await;
    assert_eq!(
        answer.problem(),
        (
            409,
            "subnet_taken".to_owned(),
            Some("subnets[0]".to_owned())
        )
    );
    assert_eq!(
        answer.json()["holder"],
        json!({"site": "dublin", "holds": "10.12.0.0/24"})
    );
    let answer = coordinator
        .patch("/sites/cork", json!({"name": "dublin"}))
        .await;
    assert_eq!(
        answer.problem(),
        (409, "name_taken".to_owned(), Some("name".to_owned()))
    );
    for (body, field) in [
        (json!({"name": null}), "name"),
        (json!({"subnets": ["10.1.1.1/24"]}), "subnets[0]"),
        (json!({"nodes": []}), "nodes"),
    ] {
        let (status, _, named) = coordinator.patch("/sites/cork", body).await.problem();
        assert_eq!((status, named.as_deref()), (422, Some(field)));
    }
    coordinator
        .patch("/sites/galway", json!({}))
        .await
        .expect(404);

    // It may take the addresses in which its endpoint was, with the endpoint elsewhere.
    for (body, status) in [
        (json!({"endpoint": "198.51.100.7:51820"}), 200),
        (json!({"subnets": ["198.51.100.0/24"]}), 422),
        (
            json!({"endpoint": "203.0.113.7:51820", "subnets": ["198.51.100.0/24"]}),
            200,
        ),
    ] {
        coordinator.patch("/sites/cork", body).await.expect(status);
    }
}

#[tokio::test]
async fn a_removed_site_gives_back_its_address_its_subnets_and_its_name_but_not_its_nodes_keys() {
    let coordinator = Coordinator::start().await;
    let body = json!({"name": "dublin", "subnets": ["10.10.0.0/24"]});
    let join = new_site(&coordinator, body.clone()).await;
    let node = NodeKeys::new().enrol(&coordinator, &join).await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    coordinator.delete("/sites/dublin").await.expect(204);
    coordinator.delete("/sites/dublin").await.expect(404);
    assert_eq!(
        coordinator.get("/nodes").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let again = new_site(&coordinator, body).await;
    assert_eq!(
        coordinator.get("/sites/dublin").await.json()["tunnel_address"],
        "10.99.0.1"
    );
    let answer = node.machine.try_enrol(&coordinator, &again).await;
    assert_eq!(answer.problem().1, "key_revoked");
    NodeKeys::new().enrol(&coordinator, &again).await;
}

#[tokio::test]
async fn a_hundred_sites_are_imported_in_one_revision_and_each_can_be_joined() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let mut stream = dublin.follow(&coordinator, None).await;
    stream.next().await;
    let sites: Vec<_> =
        (0..100).map(|number| json!({"name": format!("site-{number}"), "subnets": [format!("10.20.{number}.0/24")]})).collect();
    let answer = coordinator
        .post("/import", json!({"sites": sites}))
        .await
        .expect(201);
    assert_eq!(
        (
            &answer.headers["wattle-position"],
            &answer.headers[header::CACHE_CONTROL]
        ),
        (&"1.3".parse().unwrap(), &"no-store".parse().unwrap())
    );
    assert_eq!(
        stream.next().await,
        Some(StreamMessage::Heartbeat {
            position: "1.3".parse().unwrap()
        }),
        "one message for all hundred"
    );
    let made = answer.json();
    assert_eq!(made["sites"].as_array().unwrap().len(), 100);
    assert_eq!(
        (
            &made["sites"][99]["name"],
            &made["sites"][99]["tunnel_address"]
        ),
        (&json!("site-99"), &json!("10.99.0.101"))
    );
    let join: JoinString = made["sites"][99]["join_token"]["join_string"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let last = NodeKeys::new().enrol(&coordinator, &join).await;
    let Some(StreamMessage::Delta { changes, .. }) = stream.news().await else {
        panic!("no delta")
    };
    let [ViewChange::Peer(peer)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(peer.node, last.id());
}

#[tokio::test]
async fn an_import_is_all_or_nothing_and_names_the_site_and_field_that_is_wrong() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post(
            "/sites",
            json!({"name": "dublin", "endpoint": "203.0.113.1:51820", "subnets": ["10.10.0.0/24"]}),
        )
        .await
        .expect(201);
    let good =
        json!({"name": "good", "endpoint": "203.0.113.2:51820", "subnets": ["10.20.0.0/24"]});
    for (bad, status, code, field) in [
        (
            json!({"name": "a", "subnets": ["10.30.0.0/24", "10.30.1.1/24"]}),
            422,
            "invalid_field",
            "sites[1].subnets[1]",
        ),
        (
            json!({"name": "a", "role": "hub"}),
            422,
            "unknown_field",
            "sites[1].role",
        ),
        (
            json!({"name": "a", "subnets": ["10.98.0.0/15"]}),
            409,
            "subnet_taken",
            "sites[1].subnets[0]",
        ),
        (json!({"name": "good"}), 409, "name_taken", "sites[1].name"),
        (
            json!({"name": "a", "endpoint": "203.0.113.2:51820"}),
            409,
            "endpoint_taken",
            "sites[1].endpoint",
        ),
        (
            json!({"name": "a", "subnets": ["10.30.0.0/24", "10.20.0.128/25"]}),
            409,
            "subnet_taken",
            "sites[1].subnets[1]",
        ),
        (
            json!({"name": "a", "subnets": ["203.0.113.0/24"]}),
            409,
            "subnet_holds_endpoint",
            "sites[1].subnets[0]",
        ),
        (
            json!({"name": "dublin"}),
            409,
            "name_taken",
            "sites[1].name",
        ),
        (
            json!({"name": "a", "endpoint": "203.0.113.1:51820"}),
            409,
            "endpoint_taken",
            "sites[1].endpoint",
        ),
        (
            json!({"name": "a", "subnets": ["10.30.0.0/24", "10.10.0.0/16"]}),
            409,
            "subnet_taken",
            "sites[1].subnets[1]",
        ),
        (
            json!({"name": "a", "endpoint": "10.20.0.9:51820"}),
            422,
            "endpoint_in_subnet",
            "sites[1].endpoint",
        ),
        (
            json!({"name": "a", "subnets": ["10.30.0.0/24", "203.0.113.2/31"]}),
            409,
            "subnet_holds_endpoint",
            "sites[1].subnets[1]",
        ),
    ] {
        let answer = coordinator
            .post("/import", json!({"sites": [good, bad]}))
            .await;
        assert_eq!(
            answer.problem(),
            (status, code.to_owned(), Some(field.to_owned())),
            "{bad}"
        );
    }
    for sites in [vec![], vec![good; 1_001]] {
        assert_eq!(
            coordinator
                .post("/import", json!({ "sites": sites }))
                .await
                .problem()
                .2
                .as_deref(),
            Some("sites")
        );
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM sites").await, 1);
    assert_eq!(coordinator.count("SELECT revision FROM mesh").await, 1);
}
