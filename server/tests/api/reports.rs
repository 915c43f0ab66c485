//! `/agent/report`: which reports count.

use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    agents::{Node, new_node},
    harness::{Answer, Coordinator, send},
};

/// A report of one link, made so many milliseconds before another.
fn report(peer: &Node, state: &str, number: i64) -> Value {
    let problems = match state {
        "up" => json!([]),
        _ => json!([{"code": "route", "words": state, "lan": "degraded"}]),
    };
    let link = json!({"peer": peer.id(), "handshake_age_s": 1, "received_bytes": 0,
        "sent_bytes": 0, "endpoint": null,
        "probe": {"state": state, "loss_percent": 0, "round_trip_us": 1000}});
    json!({"applied": "1.1", "device": "kernel", "links": [link], "problems": problems,
        "locked": state == "down", "start": {"number": number, "drawn": number},
        "number": number})
}

/// What the database has of nodes and links, but for the numbers of reports.
async fn stored(coordinator: &Coordinator) -> Vec<i64> {
    let mut stored = Vec::new();
    for sql in [
        "SELECT sum(xmin::text::bigint)::bigint FROM node_reports",
        "SELECT sum(xmin::text::bigint)::bigint FROM links",
        "SELECT event_number FROM mesh",
        "SELECT count(*) FROM link_history",
    ] {
        stored.push(coordinator.count(sql).await);
    }
    stored
}

#[tokio::test]
async fn b19_a_report_that_is_late_or_sent_again_to_any_coordinator_changes_nothing() {
    let coordinator = Coordinator::start().await;
    let other = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let now = Utc::now().timestamp_millis();
    let [up, down, again] = [
        report(&cork, "up", now - 2),
        report(&cork, "down", now - 1),
        report(&cork, "down", now),
    ];
    for said in [&up, &down] {
        dublin.report(&coordinator, said.clone()).await.expect(204);
    }
    coordinator
        .until("SELECT count(*) FROM link_history", 1)
        .await;
    let before = stored(&coordinator).await;
    let restarted = coordinator.another().await;
    let mut unnumbered = up.clone();
    unnumbered.as_object_mut().unwrap().remove("number");

    let late = (409, "late_report".to_owned(), Some("number".to_owned()));
    for captured in [&up, &down, &unnumbered] {
        let answer = dublin.report(&coordinator, captured.clone()).await;
        assert_eq!(answer.problem(), late, "{captured}");
    }
    // Who does not know the node yet finds it out when it writes.
    for (at, captured) in [(&other, &up), (&restarted, &unnumbered)] {
        dublin.report(at, captured.clone()).await.expect(204);
        let reports = &at.server.app.reports;
        assert!(reports.last(dublin.id()).is_none(), "what it said is gone");
        assert!(reports.link(dublin.id(), cork.id()).is_none());
        let shown = at.get("/nodes/dublin").await.json();
        assert_eq!(shown["problems"][0]["words"], "down", "{shown}");
        for captured in [&up, &down, &unnumbered] {
            let answer = dublin.report(at, captured.clone()).await;
            assert_eq!(answer.problem(), late, "{captured}");
        }
    }
    assert_eq!(stored(&coordinator).await, before);

    // A report of the future would keep its node from saying anything else.
    for number in [now + 600_000, i64::MAX] {
        let answer = dublin.report(&other, report(&cork, "up", number)).await;
        let named = Some("number".to_owned());
        assert_eq!(answer.problem(), (422, "invalid_field".to_owned(), named));
    }
    dublin.report(&other, again.clone()).await.expect(204);
    dublin
        .report(&restarted, report(&cork, "up", now + 1))
        .await
        .expect(204);
    let up = "SELECT count(*) FROM links WHERE 'up' IN (a_state, b_state)";
    assert_eq!(coordinator.count(up).await, 1);
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(
        coordinator
            .count("SELECT count(*) FROM report_numbers")
            .await,
        0
    );
}

async fn send_only(coordinator: &Coordinator, node: &Node, body: &Value) -> Answer {
    let request = node.request(coordinator, Method::POST, "/agent/report");
    send(request.json(body)).await
}

/// How many wait for somebody else's lock.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

#[tokio::test]
async fn b19_of_reports_that_two_coordinators_have_not_written_the_newest_counts() {
    let coordinator = Coordinator::start().await;
    let other = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_node(&coordinator, json!({"name": "cork"})).await;
    let now = Utc::now().timestamp_millis();
    let up = "SELECT count(*) FROM links WHERE 'up' IN (a_state, b_state)";
    for (number, newest_first) in [(now - 4, true), (now - 2, false)] {
        // Both have looked which number is known, and neither has noted its own, while somebody
        // holds the table. Whose turn is first is in the order in which they came.
        let mut blocker = coordinator.connection().await;
        sqlx::raw_sql("BEGIN; LOCK TABLE report_numbers IN SHARE MODE")
            .execute(&mut blocker)
            .await
            .unwrap();
        let mut said = [(&coordinator, "up", number), (&other, "down", number + 1)];
        if newest_first {
            said.reverse();
        }
        for (waiting, (at, state, number)) in (1..).zip(said) {
            let said = report(&cork, state, number);
            // As when its stream opens there.
            at.server.app.reports.distrust(dublin.id());
            send_only(at, &dublin, &said).await.expect(204);
            coordinator.until(WAITING, waiting).await;
        }
        sqlx::raw_sql("COMMIT").execute(&mut blocker).await.unwrap();
        for (at, ..) in said {
            at.write_reports().await;
        }
        assert_eq!(coordinator.count(up).await, 0, "{newest_first}");
    }
}
