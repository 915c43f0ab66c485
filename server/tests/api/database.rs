//! The database: several coordinators on one, and what it holds.

use std::process::Command;

use serde_json::json;
use sqlx::Row;
use tokio::time::{Instant, timeout};
use wattle_wire::ids::Position;

use crate::{
    agents::new_node,
    harness::{Coordinator, SOON},
};

async fn reaches(coordinator: &Coordinator, revision: i64) {
    let mut position = coordinator.server.app.mesh_cache.subscribe();
    timeout(
        SOON,
        position.wait_for(|position| position.revision >= revision),
    )
    .await
    .expect("the copy does not follow")
    .unwrap();
}

#[tokio::test]
async fn coordinators_see_each_others_changes_with_and_without_notifications() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    reaches(&another, 1).await;
    another.get("/sites/dublin").await.expect(200);

    // Kill the connections that listen: polling closes the gap.
    let listeners = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = \
        current_database() AND query ILIKE 'LISTEN%'";
    let deadline = Instant::now() + SOON;
    while coordinator.count(listeners).await < 2 {
        assert!(Instant::now() < deadline, "nobody listens");
    }
    another
        .post("/sites", json!({"name": "frankfurt"}))
        .await
        .expect(201);
    reaches(&coordinator, 2).await;
    coordinator.get("/sites/frankfurt").await.expect(200);
}

#[tokio::test]
async fn a_change_that_was_never_notified_is_found() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    let by_hand =
        "WITH taken AS (UPDATE mesh SET revision = revision + 1 RETURNING revision, epoch)
                   INSERT INTO changes (revision, epoch, changes) SELECT revision, epoch, '[]' \
                   FROM taken";
    sqlx::query(by_hand)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    reaches(&coordinator, 2).await;
}

#[tokio::test]
async fn f3_a_database_that_lost_revisions_begins_a_new_epoch() {
    let coordinator = Coordinator::start().await;
    for name in ["dublin", "frankfurt"] {
        coordinator
            .post("/sites", json!({"name": name}))
            .await
            .expect(201);
    }
    let restore = "WITH lost AS (DELETE FROM changes WHERE revision = 2), site AS (DELETE FROM \
        sites WHERE name = 'frankfurt')
                   UPDATE mesh SET revision = 1";
    sqlx::query(restore)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let mut position = coordinator.server.app.mesh_cache.subscribe();
    let new = timeout(SOON, position.wait_for(|position| position.epoch == 2))
        .await
        .expect("no new epoch")
        .map(|position| *position)
        .unwrap();
    assert_eq!(
        new,
        Position {
            epoch: 2,
            revision: 1
        }
    );
    coordinator.get("/sites/frankfurt").await.expect(404);
    let answer = coordinator
        .post("/sites", json!({"name": "frankfurt"}))
        .await
        .expect(201);
    assert_eq!(answer.headers["wattle-position"], "2.2");
}

#[tokio::test]
async fn a_busy_database_is_answered_with_503_and_reads_go_on() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    let mut blocker = coordinator.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE sites")
        .execute(&mut blocker)
        .await
        .unwrap();
    let answer = coordinator
        .post("/sites", json!({"name": "frankfurt"}))
        .await;
    assert_eq!(answer.problem(), (503, "unavailable".to_owned(), None));
    assert!(answer.headers.contains_key("retry-after"));
    coordinator.get("/sites/dublin").await.expect(200);
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut blocker)
        .await
        .unwrap();
    coordinator
        .post("/sites", json!({"name": "frankfurt"}))
        .await
        .expect(201);
}

#[tokio::test]
async fn connections_that_are_cut_cost_no_request_that_comes_later() {
    let coordinator = Coordinator::start().await;
    coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201);
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = \
        current_database() AND pid <> pg_backend_pid()";
    assert!(coordinator.count(cut).await > 0);
    let answer = coordinator
        .post("/sites", json!({"name": "frankfurt"}))
        .await;
    assert!(
        [201, 503].contains(&answer.status.as_u16()),
        "{}",
        answer.text
    );
    coordinator
        .post("/sites", json!({"name": "new-york"}))
        .await
        .expect(201);
}

#[tokio::test]
async fn a_dump_of_the_database_holds_no_secret() {
    let coordinator = Coordinator::start().await;
    let created = coordinator
        .post("/sites", json!({"name": "dublin"}))
        .await
        .expect(201)
        .json();
    let join: wattle_wire::join::JoinString = created["join_token"]["join_string"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let node = crate::agents::NodeKeys::new()
        .enrol(&coordinator, &join)
        .await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let text = dump(&coordinator).await;
    assert!(text.contains("dublin"));
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let api_secret = coordinator.token[coordinator.token.len() - 43..].to_owned();
    for secret in [
        join.secret.reveal().to_owned(),
        coordinator.token.clone(),
        api_secret,
        node.token(),
        hex(node.machine.wireguard.as_bytes()),
    ] {
        assert!(!text.contains(&secret));
        assert!(!text.contains(&hex(secret.as_bytes())));
    }
}

/// Every row of every table as text, and the schema, by `pg_dump` where it is beside the `postgres`
/// that runs.
async fn dump(coordinator: &Coordinator) -> String {
    let mut connection = coordinator.connection().await;
    let row = sqlx::query("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let options = &coordinator.database;
    let output = Command::new(format!("{}/pg_dump", row.get::<String, _>(0)))
        .arg("-h")
        .arg(options.get_socket().unwrap())
        .args([
            "-U",
            options.get_username(),
            options.get_database().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_coordinator_serves_a_database_that_a_later_version_has_added_to() {
    let coordinator = Coordinator::start().await;
    coordinator.post("/sites", json!({"name": "dublin"})).await;
    let mut connection = coordinator.connection().await;
    for sql in [
        "ALTER TABLE sites ADD COLUMN news text",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
            VALUES (9999, 'news', true, 'x', 0)",
    ] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
    let another = coordinator.another().await;
    another
        .patch("/sites/dublin", json!({"description": "x"}))
        .await
        .expect(200);
}
