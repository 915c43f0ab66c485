//! `/agent/stream` and `/agent/view`

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use wattle_wire::{
    ids::Position,
    stream::{ByeReason, StreamMessage, ViewChange},
};

use crate::{
    agents::{new_node, new_site},
    harness::{Coordinator, send},
};

const fn at(revision: i64) -> Position {
    Position { epoch: 1, revision }
}

#[tokio::test]
async fn a_node_gets_a_snapshot_then_what_changes_and_resumes_without_a_snapshot() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let mut stream = dublin.follow(&coordinator, None).await;
    let Some(StreamMessage::Snapshot {
        position,
        view,
        removed,
    }) = stream.next().await
    else {
        panic!("no snapshot")
    };
    assert_eq!(
        (position, view.myself.node, view.peers.len(), removed.len()),
        (at(2), dublin.id(), 0, 0)
    );

    let frankfurt =
        new_node(&coordinator, json!({"name": "frankfurt", "endpoint": "198.51.100.20:51820", "subnets": ["10.20.0.0/24"]})).await;
    let Some(StreamMessage::Delta {
        position, changes, ..
    }) = stream.news().await
    else {
        panic!("no delta")
    };
    assert_eq!(position, at(4));
    let [ViewChange::Peer(peer)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (peer.node, peer.endpoint, peer.subnets.len()),
        (
            frankfurt.id(),
            Some("198.51.100.20:51820".parse().unwrap()),
            1
        )
    );
    drop(stream);

    coordinator
        .patch("/sites/frankfurt", json!({"endpoint": null}))
        .await
        .expect(200);
    coordinator.delete("/nodes/frankfurt").await.expect(204);
    let mut stream = dublin.follow(&coordinator, Some(position)).await;
    let delta = StreamMessage::Delta {
        since: at(4),
        position: at(6),
        changes: vec![ViewChange::PeerRemoved(frankfurt.id().into())],
    };
    assert_eq!(stream.next().await, Some(delta));
    drop(stream);
    let mut stream = dublin.follow(&coordinator, Some(at(6))).await;
    assert_eq!(
        stream.next().await,
        Some(StreamMessage::Heartbeat { position: at(6) })
    );

    // Of an earlier epoch, or without any position: all of it, and who is gone.
    for since in [
        None,
        Some(Position {
            epoch: 0,
            revision: 9,
        }),
    ] {
        let message = dublin.follow(&coordinator, since).await.next().await;
        let Some(StreamMessage::Snapshot {
            position, removed, ..
        }) = message
        else {
            panic!("{message:?}")
        };
        assert_eq!((position, removed), (at(6), vec![frankfurt.id().into()]));
    }
}

#[tokio::test]
async fn f3_a_node_that_has_seen_what_a_restored_database_lost_begins_a_new_epoch_and_a_liar_no_second()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let seen = Position {
        epoch: 3,
        revision: 80,
    };
    // Nobody that remembers ran meanwhile: what was lost is in the node's memory alone.
    let mut stream = dublin.follow(&coordinator, Some(seen)).await;
    let Some(StreamMessage::Snapshot { position, .. }) = stream.next().await else {
        panic!("no snapshot")
    };
    assert_eq!(
        position,
        Position {
            epoch: 4,
            revision: 2
        }
    );
    drop(stream);
    // What a liar claims is looked at, and refused, after a wait that is long enough; nobody else
    // notices.
    for lie in [
        Position {
            epoch: 5,
            revision: 1,
        },
        Position {
            epoch: i64::MAX,
            revision: i64::MAX,
        },
    ] {
        coordinator
            .server
            .app
            .mesh_cache
            .begin_epoch_after(&coordinator.server.app.db, dublin.id(), lie)
            .await
            .unwrap();
    }
    assert_eq!(coordinator.count("SELECT epoch FROM mesh").await, 4);
    let mut stream = dublin.follow(&coordinator, Some(position)).await;
    assert_eq!(
        stream.next().await,
        Some(StreamMessage::Heartbeat { position })
    );
}

#[tokio::test]
async fn a15_a_revoked_nodes_stream_ends_with_the_reason() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut stream = dublin.follow(&another, None).await;
    assert!(matches!(
        stream.next().await,
        Some(StreamMessage::Snapshot { .. })
    ));
    coordinator.delete("/sites/dublin").await.expect(204);
    assert_eq!(
        stream.news().await,
        Some(StreamMessage::Bye {
            reason: ByeReason::Revoked
        })
    );
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn c3_the_newest_stream_of_a_node_wins() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut older = dublin.follow(&coordinator, None).await;
    older.next().await;
    let mut newer = dublin.follow(&coordinator, None).await;
    assert_eq!(
        older.next().await,
        Some(StreamMessage::Bye {
            reason: ByeReason::Superseded
        })
    );
    assert_eq!(older.next().await, None);
    newer.next().await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    assert!(matches!(
        newer.news().await,
        Some(StreamMessage::Delta { .. })
    ));
    assert!(coordinator.server.app.streams.is_open(dublin.id()));
}

#[tokio::test]
async fn streams_end_when_the_coordinator_stops() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut stream = dublin.follow(&coordinator, None).await;
    stream.next().await;
    let Coordinator { server, .. } = coordinator;
    let (stopped, message) = tokio::join!(server.stop(), stream.next());
    stopped.unwrap();
    assert_eq!(
        message,
        Some(StreamMessage::Bye {
            reason: ByeReason::Shutdown
        })
    );
}

#[tokio::test]
async fn no_stream_skips_a_change_however_writers_race() {
    let coordinator = Coordinator::start().await;
    let others = [coordinator.another().await, coordinator.another().await];
    let all: Vec<_> = [&coordinator].into_iter().chain(&others).collect();
    // Between taking its revision and the end of its commit, a writer is overtaken by others, if
    // they can.
    let slow_commits = "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_sleep(random() * 0.05); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON changes DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION dawdle();";
    sqlx::raw_sql(slow_commits)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    // One node, one stream per coordinator: each follows on its own.
    let mut streams = Vec::new();
    for coordinator in &all {
        streams.push(dublin.follow(coordinator, Some(at(2))).await);
    }
    let writers = (0..24).map(|number| {
        new_node(
            all[number % 3],
            json!({"name": format!("site-{number}"), "subnets": [format!("10.{number}.0.0/16")]}),
        )
    });
    let expected: BTreeSet<_> = join_all(writers)
        .await
        .iter()
        .map(|node| node.id())
        .collect();
    for stream in &mut streams {
        let (mut seen, mut last) = (BTreeSet::new(), at(2));
        while seen != expected {
            match stream.next().await {
                Some(StreamMessage::Delta {
                    since,
                    position,
                    changes,
                }) => {
                    assert_eq!(since, last);
                    seen.extend(changes.iter().filter_map(|change| {
                        if let ViewChange::Peer(peer) = change {
                            Some(peer.node)
                        } else {
                            None
                        }
                    }));
                    last = position;
                }
                Some(StreamMessage::Heartbeat { position }) => last = position,
                message => panic!("{message:?}"),
            }
        }
        assert!(last.revision <= 50);
    }
}

#[tokio::test]
async fn the_view_can_be_pulled() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    new_site(&coordinator, json!({"name": "frankfurt"})).await;
    let answer = send(dublin.request(&coordinator, Method::GET, "/agent/view"))
        .await
        .expect(200);
    assert_eq!(answer.headers["etag"], "\"1.3\"");
    let view = answer.json();
    assert_eq!(
        (&view["myself"]["name"], &view["mesh"]["tunnel_prefix"]),
        (&json!("dublin"), &json!("10.99.0.0/16"))
    );
    let again = dublin
        .request(&coordinator, Method::GET, "/agent/view")
        .header("if-none-match", "\"1.3\"");
    send(again).await.expect(304);
}

#[tokio::test]
async fn a_position_that_is_none_is_refused() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    for query in ["since=1", "since=x", "since=1.-1", "since=1.2&node=x"] {
        let answer =
            send(dublin.request(&coordinator, Method::GET, &format!("/agent/stream?{query}")))
                .await;
        assert_eq!(answer.problem().0, 422, "{query}");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_nobody_and_finds_one_delta_when_it_does() {
    // Who takes nothing for half a minute is cut off; a busy machine has to be through by then.
    const CHANGES: i64 = 100;
    let coordinator = Coordinator::start().await;
    let sleeper = new_node(&coordinator, json!({"name": "sleeper"})).await;
    let reader = new_node(&coordinator, json!({"name": "reader"})).await;
    new_node(&coordinator, json!({"name": "busy"})).await;
    // A node's change is all of the node: with many subnets, kilobytes.
    let subnets = |last: i64| {
        (0..255)
            .chain([255 + last])
            .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
            .collect::<Vec<_>>()
    };
    let began = at(6);
    let mut asleep = sleeper.follow_slowly(&coordinator, began).await;
    let mut awake = reader.follow(&coordinator, Some(began)).await;
    for change in 0..CHANGES {
        coordinator
            .patch("/sites/busy", json!({"subnets": subnets(change)}))
            .await
            .expect(200);
        let message = awake.news().await;
        assert!(
            matches!(message, Some(StreamMessage::Delta { position, .. }) if position == at(7 + change)),
            "{message:?}"
        );
    }
    let (mut known, mut largest) = (began, 0);
    while known != at(6 + CHANGES) {
        let Some(StreamMessage::Delta {
            since,
            position,
            changes,
        }) = asleep.news().await
        else {
            panic!("no delta")
        };
        assert_eq!((since, changes.len()), (known, 1));
        largest = largest.max(position.revision - since.revision);
        known = position;
    }
    assert!(
        largest > CHANGES / 4,
        "what came while it slept was kept, change by change; the largest delta is of {largest}"
    );
}
