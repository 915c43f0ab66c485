//! No subnet may hold the coordinator, whatever its URL is.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use reqwest::Method;
use serde_json::{Value, json};
use wattle_server::{
    http::listen, server::Server, state::coordinators::Resolver, tasks::coordinator_addresses,
};

use crate::{
    agents::new_site,
    harness::{Answer, Coordinator, among_others, config, empty_database, reachable_folder, send},
    page::signed_in,
};

const ARGUMENTS: &[&str] = &["--url", "https://Coordinator.Example:8443"];

/// A resolver that knows the same addresses for all names; none means that it fails.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Vec<IpAddr>>>);

impl Names {
    fn new(addresses: &[&str]) -> Self {
        let names = Self::default();
        names.become_(addresses);
        names
    }

    fn become_(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        *self.0.lock().unwrap() = addresses;
    }
}

impl Resolver for Names {
    fn resolve(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let addresses = self.0.lock().unwrap().clone();
        Box::pin(async move {
            assert_eq!(host, "coordinator.example");
            match addresses.is_empty() {
                true => Err(io::Error::other("no answer")),
                false => Ok(addresses),
            }
        })
    }
}

async fn start(names: &Names) -> Coordinator {
    let names = Arc::new(names.clone());
    Coordinator::start_resolving(
        among_others().await,
        empty_database().await,
        ARGUMENTS,
        names,
    )
    .await
}

async fn refresh(coordinator: &Coordinator) {
    coordinator_addresses::refresh(&coordinator.server.app).await;
}

/// What a site with a subnet would meet: the code of the problem or of its warnings.
async fn would(coordinator: &Coordinator, subnet: &str) -> String {
    let body = json!({"name": "probe", "subnets": [subnet]});
    let answer = coordinator.post("/sites?dry_run=true", body).await.json();
    let code = answer["code"].as_str().map(str::to_owned);
    code.unwrap_or_else(|| codes(&answer["warnings"]))
}

fn codes(warnings: &Value) -> String {
    let warnings = warnings.as_array().unwrap().iter();
    let codes: Vec<_> = warnings
        .map(|warning| warning["code"].as_str().unwrap())
        .collect();
    codes.join(" ")
}

const HELD: &str = "subnet_holds_coordinator";

#[tokio::test]
async fn b8_a_subnet_is_refused_that_holds_what_the_name_of_the_coordinator_leads_to() {
    let names = Names::new(&["198.18.0.2", "fd50::2"]);
    let coordinator = start(&names).await;
    new_site(
        &coordinator,
        json!({"name": "hq", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let before = coordinator.count("SELECT event_number FROM mesh").await;
    let refused = |answer: &Answer, field: &str, address: &str| {
        let named = Some(field.to_owned());
        assert_eq!(answer.problem(), (409, HELD.to_owned(), named));
        let problem = answer.json();
        assert_eq!(problem["holder"], json!({"site": "mesh", "holds": address}));
        let detail = problem["detail"].as_str().unwrap();
        let both = [address, "coordinator.example", "?force=true"];
        assert!(both.iter().all(|word| detail.contains(word)), "{detail}");
    };
    for (subnet, address) in [
        ("198.18.0.0/24", "198.18.0.2"),
        ("198.18.0.2/32", "198.18.0.2"),
        ("fd50::/64", "fd50::2"),
    ] {
        let subnets = json!(["10.10.0.0/24", subnet]);
        let site = json!({"name": "cork", "subnets": ["10.20.0.0/24", subnet]});
        for query in ["", "?dry_run=true", "?force=false"] {
            for (method, path, body, field) in [
                (Method::POST, "/sites", site.clone(), "subnets[1]"),
                (
                    Method::PATCH,
                    "/sites/hq",
                    json!({ "subnets": subnets }),
                    "subnets[1]",
                ),
                (
                    Method::POST,
                    "/import",
                    json!({"sites": [{"name": "a"}, site]}),
                    "sites[1].subnets[1]",
                ),
            ] {
                let request = coordinator.request(method, &format!("{path}{query}"));
                refused(&send(request.json(&body)).await, field, address);
            }
        }
    }
    let after = coordinator.count("SELECT event_number FROM mesh").await;
    assert_eq!(
        (after, would(&coordinator, "198.18.1.0/24").await),
        (before, String::new())
    );
}

#[tokio::test]
async fn a_subnet_with_the_coordinator_can_be_forced_which_the_audit_log_says() {
    let coordinator = start(&Names::new(&["198.18.0.2"])).await;
    let newest = async || coordinator.get("/events?limit=1").await.json()["items"][0].clone();
    // What needs no force is not called forced.
    let created = coordinator
        .post("/sites?force=true", json!({"name": "hq"}))
        .await
        .expect(201)
        .json();
    assert_eq!(created["warnings"], json!([]));
    assert_eq!(newest().await["action"], "site.create");

    let subnets = json!({"subnets": ["198.18.0.0/24"]});
    let dry_run = coordinator
        .patch("/sites/hq?force=true&dry_run=true", subnets.clone())
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&dry_run["would"], codes(&dry_run["warnings"])),
        (&json!("site.change.forced"), HELD.to_owned())
    );
    let changed = coordinator
        .patch("/sites/hq?force=true", subnets.clone())
        .await
        .expect(200)
        .json();
    assert_eq!(codes(&changed["warnings"]), HELD);
    assert_eq!(newest().await["action"], "site.change.forced");
    // What a site has is not asked about again.
    let described = coordinator
        .patch("/sites/hq", json!({"description": "x"}))
        .await
        .expect(200)
        .json();
    assert_eq!(codes(&described["warnings"]), HELD);
    assert_eq!(newest().await["action"], "site.change");
    let metrics = coordinator.get("/metrics").await.text;
    assert!(
        metrics.contains("\nwattle_prefixes_with_coordinator 1\n"),
        "{metrics}"
    );
    coordinator
        .patch("/sites/hq", json!({"subnets": []}))
        .await
        .expect(200);
    coordinator.patch("/sites/hq", subnets).await.expect(409);

    for (path, body, action) in [
        (
            "/sites",
            json!({"name": "cork", "subnets": ["198.18.0.0/25"]}),
            "site.create.forced",
        ),
        (
            "/import",
            json!({"sites": [{"name": "sligo", "subnets": ["198.18.0.0/26"]}]}),
            "site.import.forced",
        ),
    ] {
        coordinator
            .post(&format!("{path}?force=true"), body)
            .await
            .expect(201);
        assert_eq!(newest().await["action"], action);
        let remove = if path == "/sites" { "cork" } else { "sligo" };
        coordinator
            .delete(&format!("/sites/{remove}"))
            .await
            .expect(204);
    }
    for path in ["/sites/hq", "/nodes/hq"] {
        let request = coordinator.request(Method::DELETE, &format!("{path}?force=true"));
        assert_eq!(send(request).await.problem().1, "invalid_query", "{path}");
    }
}

#[tokio::test]
async fn a_name_is_resolved_again_and_its_last_answer_counts_while_there_is_no_other() {
    let names = Names::new(&["198.18.0.2"]);
    let coordinator = start(&names).await;
    assert_eq!(would(&coordinator, "198.18.0.0/24").await, HELD);
    names.become_(&[]);
    refresh(&coordinator).await;
    assert_eq!(would(&coordinator, "198.18.0.0/24").await, HELD);
    // One that starts meanwhile has it from the others.
    let another = coordinator.another_resolving(Arc::new(names.clone())).await;
    assert_eq!(would(&another, "198.18.0.0/24").await, HELD);
    names.become_(&["198.19.0.2", "198.19.0.3"]);
    refresh(&coordinator).await;
    refresh(&another).await;
    for (subnet, expected) in [
        ("198.18.0.0/24", ""),
        ("198.19.0.2/32", HELD),
        ("198.19.0.3/32", HELD),
    ] {
        assert_eq!(would(&coordinator, subnet).await, expected, "{subnet}");
        assert_eq!(would(&another, subnet).await, expected, "{subnet}");
    }
}

#[tokio::test]
async fn all_coordinators_refuse_what_one_of_them_would() {
    let first = start(&Names::new(&["198.18.0.2"])).await;
    let names = Names::new(&["203.0.113.2"]);
    let second = first.another_resolving(Arc::new(names.clone())).await;
    for coordinator in [&first, &second] {
        assert_eq!(would(coordinator, "198.18.0.0/24").await, HELD);
        assert_eq!(would(coordinator, "203.0.113.0/24").await, HELD);
    }
    // One that has ended is not asked for ever.
    let mut connection = first.connection().await;
    sqlx::query(
        "UPDATE coordinator_addresses SET found_at = now() - interval '4 minutes'
         WHERE host = 'coordinator.example' AND address = '203.0.113.2'",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    refresh(&first).await;
    assert_eq!(would(&first, "203.0.113.0/24").await, "");
    refresh(&second).await;
    assert_eq!(would(&first, "203.0.113.0/24").await, HELD);
}

#[tokio::test]
async fn a_subnet_with_an_address_of_the_coordinators_host_is_warned_of_and_not_refused() {
    let coordinator = start(&Names::new(&["198.18.0.2"])).await;
    let mut connection = coordinator.connection().await;
    sqlx::query(
        "INSERT INTO coordinator_addresses (coordinator, host, address)
         VALUES (gen_random_uuid(), NULL, '10.77.0.5')",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    assert_eq!(
        would(&coordinator, "10.77.0.0/24").await,
        "subnet_holds_own_address"
    );
    let body = json!({"name": "hq", "subnets": ["10.77.0.0/24"]});
    let created = coordinator.post("/sites", body).await.expect(201).json();
    assert_eq!(codes(&created["warnings"]), "subnet_holds_own_address");
    let detail = created["warnings"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("10.77.0.5"), "{detail}");
    let changed = coordinator
        .patch("/sites/hq", json!({"subnets": ["10.77.0.0/16"]}))
        .await
        .expect(200)
        .json();
    assert_eq!(codes(&changed["warnings"]), "subnet_holds_own_address");
    let imported = json!({"sites": [{"name": "x"}, {"name": "y", "subnets": ["10.78.0.0/16"]}]});
    let imported = coordinator
        .post("/import", imported)
        .await
        .expect(201)
        .json();
    assert_eq!(imported["sites"][1]["warnings"], json!([]));
}

#[tokio::test]
async fn b8_a_new_mesh_does_not_take_its_tunnel_addresses_from_where_the_coordinator_is() {
    let data_dir = reachable_folder();
    let prefix = ["--tunnel-prefix", "198.18.0.0/16"];
    let config = config(data_dir.path(), &[ARGUMENTS, &prefix[..]].concat());
    let database = empty_database().await;
    let start = async |names: &[&str]| {
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let names = Arc::new(Names::new(names));
        Server::start_with(database.clone(), listener, &config, names).await
    };
    let error = format!("{:#}", start(&["198.18.0.2"]).await.unwrap_err());
    for word in ["198.18.0.0/16", "198.18.0.2", "coordinator.example"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!data_dir.path().join("api-token").exists());
    // A mesh that is there goes on: gateways need it more than this.
    start(&["203.0.113.2"]).await.unwrap().stop().await.unwrap();
    start(&["198.18.0.2"]).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn the_page_says_why_a_subnet_is_refused_and_lets_an_operator_have_it_all_the_same() {
    let coordinator = start(&Names::new(&["198.18.0.2"])).await;
    let browser = signed_in(&coordinator).await;
    browser.go("#/add").await;
    browser.fill("#field-name", "hq").await;
    browser.fill("#field-subnets", "198.18.0.0/24").await;
    browser.click("form.site button.primary").await;
    browser.see("#error-subnets", "coordinator.example").await;
    browser.click("#force").await;
    browser.see("main h1", "hq is added").await;
    browser.see(".warning", "198.18.0.2").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}
