//! `GET /events/stream`: people and scripts follow what is new in the mesh.
//!
//! Like an agent's stream it keeps no queue: it reads the cache, which the coordinator has while
//! somebody watches, and a slow reader gets the newest state. The id of an event names the cache
//! and the look at it, so that who comes back hears of what is new only.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep},
};
use wattle_mesh::access::Action;
use wattle_wire::{event_stream::MeshUpdate, ids::Position};

use crate::{
    error::{Error, Result},
    http::auth,
    state::{
        app::App,
        link_tracker::{EventId, REFRESH_INTERVAL},
    },
};

/// How often a stream shows a sign of life, and proves again that its credential is valid.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Follows the mesh: sites, nodes and the state of links.
///
/// Server-sent events. The first, `snapshot`, holds everything; each `change` what is new since the
/// event before. With the `Last-Event-ID` of an event that it has received, a client is told only
/// what is new since then, if this coordinator still knows.
#[utoipa::path(get, path = "/events/stream", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "id of the last event \
        received; absent: tell everything")),
    responses((status = 200, content_type = "text/event-stream", body = MeshUpdate)))]
pub async fn follow(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    let Some(place) = app.link_tracker.place() else {
        return Err(Error::Unavailable("too many streams of events"));
    };
    let last_event = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .and_then(EventId::parse);
    let session = Session {
        position: app.mesh_cache.subscribe(),
        app,
        headers,
        last_event,
        proven: Instant::now(),
        _place: place,
    };
    let events = stream::unfold(session, |mut session| async move {
        let event = session.next().await?;
        Some((Ok::<_, Infallible>(event), session))
    });
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    Ok(([("x-accel-buffering", "no")], stream).into_response())
}

/// One who watches.
struct Session {
    app: App,
    /// They hold the credential.
    headers: HeaderMap,
    /// The last event that it has.
    last_event: Option<EventId>,
    position: watch::Receiver<Position>,
    /// When the credential was last found valid.
    proven: Instant,
    _place: OwnedSemaphorePermit,
}

impl Session {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.position.borrow_and_update();
            if let Some((event, news)) = self
                .app
                .link_tracker
                .changes_since(self.app.sources(), self.last_event)
                .await
            {
                self.last_event = Some(event);
                let kind = if news.complete { "snapshot" } else { "change" };
                return Event::default()
                    .event(kind)
                    .id(event.id())
                    .json_data(&news)
                    .ok();
            }
            tokio::select! {
                () = self.app.stop.cancelled() => return None,
                _ = self.position.changed() => {}
                () = sleep(REFRESH_INTERVAL) => {}
            }
            if self.proven.elapsed() >= HEARTBEAT {
                if !auth::admits_api_token(&self.app, &self.headers, Action::Read).await {
                    return None;
                }
                self.proven = Instant::now();
            }
        }
    }
}
