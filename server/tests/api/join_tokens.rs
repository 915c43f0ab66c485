//! `/join-tokens`

use reqwest::Method;
use serde_json::json;

use crate::{
    agents::{NodeKeys, new_site},
    harness::{Coordinator, send},
};

#[tokio::test]
async fn a_join_token_is_shown_once_listed_without_its_secret_and_revoked() {
    let coordinator = Coordinator::start().await;
    let first = new_site(&coordinator, json!({"name": "dublin"})).await;
    let answer = coordinator
        .post(
            "/sites/dublin/join-tokens",
            json!({"uses": 3, "expires_in_s": 60}),
        )
        .await
        .expect(201);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let created = answer.json();
    let id = created["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/join-tokens/{id}"));
    // An empty body asks for the usual.
    send(coordinator.request(Method::POST, "/sites/dublin/join-tokens"))
        .await
        .expect(201);
    let list = coordinator
        .get("/sites/dublin/join-tokens")
        .await
        .expect(200);
    assert_eq!(list.json()["items"].as_array().unwrap().len(), 3);
    assert!(!list.text.contains("wattle1.") && !list.text.contains(first.secret.reveal()));
    let shown = coordinator
        .get(&format!("/join-tokens/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(shown["uses_left"], 3);
    let join = created["join_string"].as_str().unwrap().parse().unwrap();
    for left in [2, 1, 0] {
        NodeKeys::new().enrol(&coordinator, &join).await;
        assert_eq!(
            coordinator.get(&format!("/join-tokens/{id}")).await.json()["uses_left"],
            left
        );
    }
    coordinator
        .delete(&format!("/join-tokens/{id}"))
        .await
        .expect(204);
    coordinator
        .delete(&format!("/join-tokens/{id}"))
        .await
        .expect(404);
    coordinator
        .get(&format!("/join-tokens/{id}"))
        .await
        .expect(404);
    coordinator.get("/join-tokens/x").await.expect(404);
    coordinator
        .post("/sites/cork/join-tokens", json!({}))
        .await
        .expect(404);
}

#[tokio::test]
async fn a4_a_join_token_has_limits() {
    let coordinator = Coordinator::start().await;
    new_site(&coordinator, json!({"name": "dublin"})).await;
    for (field, value) in [
        ("uses", json!(0)),
        ("uses", json!(101)),
        ("uses", json!(-1)),
        ("uses", json!(1.5)),
        ("uses", json!(9_999_999_999_i64)),
        ("expires_in_s", json!(0)),
        ("expires_in_s", json!(7 * 24 * 3600 + 1)),
        ("expires_in_s", json!(i64::MAX)),
        ("expires_in_s", json!("1h")),
        ("role", json!("owner")),
    ] {
        let (status, _, named) = coordinator
            .post("/sites/dublin/join-tokens", json!({field: value}))
            .await
            .problem();
        assert_eq!((status, named.as_deref()), (422, Some(field)));
    }
    let longest = json!({"uses": 100, "expires_in_s": 7 * 24 * 3600});
    coordinator
        .post("/sites/dublin/join-tokens", longest)
        .await
        .expect(201);
}
