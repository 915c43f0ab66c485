//! `/events/stream`

use std::{pin::Pin, time::Duration};

use eventsource_stream::{Event, Eventsource};
use futures_util::{Stream, StreamExt};
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;
use wattle_wire::{admin::LinkState, event_stream::MeshUpdate, ids::NodeId};

use crate::{
    agents::new_node,
    harness::{Coordinator, SOON},
};

type Events = Pin<Box<dyn Stream<Item = Event>>>;

async fn follow(coordinator: &Coordinator, last: Option<&str>) -> Events {
    let mut request = coordinator.request(Method::GET, "/events/stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Box::pin(
        response
            .bytes_stream()
            .eventsource()
            .map(|event| event.unwrap()),
    )
}

async fn next(events: &mut Events) -> (Event, MeshUpdate) {
    let event = timeout(SOON, events.next())
        .await
        .expect("no event")
        .expect("the stream ended");
    let news: MeshUpdate = serde_json::from_str(&event.data).unwrap();
    assert_eq!(
        event.event,
        if news.complete { "snapshot" } else { "change" }
    );
    (event, news)
}

/// The next news in which something is; a moment may fall between two parts of what happened.
async fn news_with(events: &mut Events, is_there: impl Fn(&MeshUpdate) -> bool) -> MeshUpdate {
    loop {
        let (_, news) = next(events).await;
        if is_there(&news) {
            return news;
        }
    }
}

fn report(peer: NodeId, age: u64) -> serde_json::Value {
    let link = json!({"peer": peer, "handshake_age_s": age, "received_bytes": 1, "sent_bytes": 2, "endpoint": null});
    json!({"applied": "1.4", "device": "userspace", "links": [link]})
}

#[tokio::test]
async fn who_watches_hears_of_sites_nodes_and_links_as_they_change() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut events = follow(&coordinator, None).await;
    let (_, all) = next(&mut events).await;
    assert_eq!(
        (
            all.complete,
            all.sites.len(),
            all.nodes.len(),
            all.links.len()
        ),
        (true, 1, 1, 0)
    );

    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let news = news_with(&mut events, |news| !news.links.is_empty()).await;
    assert_eq!(
        (news.complete, news.links[0].state),
        (false, LinkState::Never)
    );

    dublin
        .report(&coordinator, report(frankfurt.id(), 3))
        .await
        .expect(204);
    frankfurt
        .report(&coordinator, report(dublin.id(), 3))
        .await
        .expect(204);
    let up = |news: &MeshUpdate| {
        news.links
            .iter()
            .any(|link| link.state == LinkState::Up && link.since.is_some())
    };
    news_with(&mut events, up).await;

    coordinator
        .patch("/sites/dublin", json!({"description": "the first"}))
        .await
        .expect(200);
    let news = news_with(&mut events, |news| !news.sites.is_empty()).await;
    assert_eq!(
        (news.sites.len(), news.sites[0].description.as_str()),
        (1, "the first")
    );

    coordinator.delete("/sites/frankfurt").await.expect(204);
    let news = news_with(&mut events, |news| !news.removed_sites.is_empty()).await;
    assert_eq!(news.removed_nodes, [frankfurt.id()]);
}

#[tokio::test]
async fn who_watches_hears_of_a_change_while_nobody_can_read_how_links_are() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut events = follow(&coordinator, None).await;
    next(&mut events).await;
    let mut blocker = coordinator.connection().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE links")
        .execute(&mut blocker)
        .await
        .unwrap();
    coordinator
        .patch("/sites/dublin", json!({"description": "the first"}))
        .await
        .expect(200);
    let changed = news_with(&mut events, |news| !news.sites.is_empty());
    // The database gives up a statement that waits for a lock after three seconds.
    timeout(Duration::from_secs(2), changed)
        .await
        .expect("the change waits for the links");
    // Nor does who begins to watch.
    let mut others = follow(&coordinator, None).await;
    let all = timeout(Duration::from_secs(2), next(&mut others));
    assert!(
        all.await
            .expect("the first event waits for the links")
            .1
            .complete
    );
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut blocker)
        .await
        .unwrap();
}

#[tokio::test]
async fn who_comes_back_hears_only_what_is_new() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin"})).await;
    let (event, _) = next(&mut follow(&coordinator, None).await).await;
    coordinator
        .post("/sites", json!({"name": "frankfurt"}))
        .await
        .expect(201);
    let (_, news) = next(&mut follow(&coordinator, Some(&event.id)).await).await;
    assert!(!news.complete && news.nodes.is_empty());
    assert_eq!(
        news.sites
            .iter()
            .map(|site| site.name.as_str())
            .collect::<Vec<_>>(),
        ["frankfurt"]
    );

    // Another coordinator does not know what was told here; nonsense is as good as nothing.
    for (coordinator, id) in [
        (&coordinator.another().await, event.id.as_str()),
        (&coordinator, "0"),
        (&coordinator, "x.1"),
    ] {
        let (_, news) = next(&mut follow(coordinator, Some(id)).await).await;
        assert_eq!((news.complete, news.sites.len()), (true, 2), "{id}");
    }
}

#[tokio::test]
async fn a15_a_stream_ends_with_the_token_that_opened_it() {
    let coordinator = Coordinator::start().await;
    let mut events = follow(&coordinator, None).await;
    next(&mut events).await;
    let revoke = "WITH gone AS (UPDATE api_tokens SET revoked_at = now() RETURNING 1) SELECT \
        count(*) FROM gone";
    assert_eq!(coordinator.count(revoke).await, 1);
    let ended = timeout(2 * SOON + Duration::from_secs(1), events.next())
        .await
        .expect("the stream goes on");
    assert_eq!(ended, None);
}
