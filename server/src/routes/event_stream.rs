//! `GET /events/stream`: people and scripts follow what is new in the mesh.
//!
//! Like an agent's stream it keeps no queue: it reads the cache, which the coordinator has while
//! somebody watches, and a slow reader gets the newest state. The id of an event names the cache
//! and the look at it, so that who comes back hears of what is new only.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use wattle_wire::event_stream::MeshUpdate;

use crate::{
    error::{self, Result},
    state::{
        app::App,
        link_tracker::EventId,
        shares::{Share, SharePlace},
    },
};

/// How often a stream shows a sign of life.
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
pub async fn follow(
    State(app): State<App>,
    Extension(share): Extension<Arc<Share>>,
    headers: HeaderMap,
) -> Result<Response> {
    let own = share
        .event_stream()
        .ok_or_else(|| error::too_much("streams of events"))?;
    let place = app
        .link_tracker
        .place()
        .ok_or_else(error::streams_are_full)?;
    let last_event = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .and_then(EventId::parse);
    let session = Session {
        looks: app.link_tracker.looks(),
        app,
        share,
        last_event,
        _places: (own, place),
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
    /// Of the credential that opened it.
    share: Arc<Share>,
    /// The last event that it has.
    last_event: Option<EventId>,
    looks: watch::Receiver<()>,
    _places: (SharePlace, OwnedSemaphorePermit),
}

impl Session {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.looks.borrow_and_update();
            if let Some((event, news)) = self.app.link_tracker.changes_since(self.last_event) {
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
                () = self.share.ended() => return None,
                _ = self.looks.changed() => {}
            }
            // Without the database nobody knows who may still watch.
            if !self.app.mesh_cache.is_fresh() {
                return None;
            }
        }
    }
}
