//! `GET /agent/stream`: each node follows what concerns it.
//!
//! A stream keeps no queue: it looks at the copy when the position has moved, so a slow reader costs no memory and gets the newest state.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response, Sse, sse::Event},
};
use futures_util::stream;
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use wattle_mesh::{feed::Next, view};
use wattle_wire::{
    ids::{NodeId, Position},
    stream::{ByeReason, HEARTBEAT_S, StreamMessage},
};

use crate::{
    app::App,
    auth::CallingNode,
    body::Query,
    error::{self, Result},
};

const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_S);
/// How long to wait for this coordinator to catch up with a node that knows more.
const AHEAD: Duration = Duration::from_secs(10);

/// The open streams: one per node, the newest wins.
#[derive(Debug, Default)]
pub struct Streams(Mutex<HashMap<NodeId, CancellationToken>>);

/// From where to follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// The position up to which the node knows the mesh; absent means that it knows nothing.
    since: Option<Position>,
}

/// Follows what concerns the calling node.
///
/// Server-sent events; the data of each is one message in JSON: first a snapshot, a delta or a heartbeat, then deltas as they come, a
/// heartbeat every ten seconds, and `bye` before the coordinator ends the stream.
#[utoipa::path(get, path = "/agent/stream", tag = "agents",
    params(("since" = Option<Position>, Query, description = "position up to which the node knows the mesh; absent: it knows nothing")),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn follow(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Query(query): Query<StreamQuery>,
) -> Response {
    let now = Instant::now();
    let session = Session {
        superseded: app.streams.open(node),
        position: app.copy.subscribe(),
        app,
        node,
        since: query.since,
        greeted: false,
        ended: false,
        opened: now,
        heartbeat: now + HEARTBEAT,
    };
    tracing::info!(%node, since = query.since.map(|since| since.to_string()), "stream opened");
    let events = stream::unfold(session, |mut session| async move {
        let message = session.next().await?;
        let event = Event::default().json_data(&message).unwrap_or_default();
        Some((Ok::<_, Infallible>(event), session))
    });
    ([(header::CACHE_CONTROL, "no-store"), (header::HeaderName::from_static("x-accel-buffering"), "no")], Sse::new(events)).into_response()
}

/// Shows all that the calling node must know. `ETag` is the position.
#[utoipa::path(get, path = "/agent/view", tag = "agents", responses((status = 200, body = Object), (status = 304)))]
pub async fn show(State(app): State<App>, Extension(CallingNode(node)): Extension<CallingNode>, headers: HeaderMap) -> Result<Response> {
    let (view, position) = app.copy.read(|feed| (view::view(feed.directory(), node), feed.position()));
    let view = view.ok_or_else(error::unauthorized)?;
    let etag = format!("\"{position}\"");
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|known| known.as_bytes() == etag.as_bytes());
    if known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    Ok(([(header::ETAG, etag), (header::CACHE_CONTROL, "no-cache".to_owned())], Json(view)).into_response())
}

/// One open stream.
#[derive(Debug)]
struct Session {
    app: App,
    node: NodeId,
    /// The position up to which the node knows the mesh.
    since: Option<Position>,
    position: watch::Receiver<Position>,
    superseded: CancellationToken,
    greeted: bool,
    ended: bool,
    opened: Instant,
    /// When the next sign of life is due.
    heartbeat: Instant,
}

impl Session {
    /// The next message, when there is one; `None` ends the stream.
    async fn next(&mut self) -> Option<StreamMessage> {
        if self.ended {
            return None;
        }
        let message = self.wait().await;
        match &message {
            StreamMessage::Snapshot { position, .. } | StreamMessage::Delta { position, .. } | StreamMessage::Heartbeat { position } => {
                self.since = Some(*position);
            }
            StreamMessage::Bye { reason } => {
                tracing::info!(node = %self.node, ?reason, "stream ended");
                self.ended = true;
            }
            StreamMessage::Unknown => {}
        }
        self.greeted = true;
        self.heartbeat = Instant::now() + HEARTBEAT;
        Some(message)
    }

    async fn wait(&mut self) -> StreamMessage {
        let bye = |reason| StreamMessage::Bye { reason };
        loop {
            self.position.borrow_and_update();
            let mut next = self.app.copy.read(|feed| feed.next(self.node, self.since));
            if next == Next::Ahead && self.opened.elapsed() >= AHEAD {
                next = self.app.copy.read(|feed| feed.snapshot(self.node));
            }
            let due = match next {
                Next::Message(message) => return message,
                Next::NotAMember => return bye(ByeReason::Revoked),
                Next::Current if !self.greeted => return self.sign_of_life(),
                Next::Current => self.heartbeat,
                Next::Ahead => self.opened + AHEAD,
            };
            tokio::select! {
                biased;
                () = self.app.stop.cancelled() => return bye(ByeReason::Shutdown),
                () = self.superseded.cancelled() => return bye(ByeReason::Superseded),
                _ = self.position.changed() => {}
                () = sleep_until(due) => if matches!(next, Next::Current) {
                    return self.sign_of_life();
                },
            }
        }
    }

    fn sign_of_life(&self) -> StreamMessage {
        StreamMessage::Heartbeat { position: self.since.unwrap_or_else(|| self.app.copy.position()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.app.streams.close(self.node, &self.superseded);
    }
}

impl Streams {
    /// Whether a node has an open stream with this coordinator.
    pub fn is_open(&self, node: NodeId) -> bool {
        self.lock().contains_key(&node)
    }

    /// Registers a stream and ends the one that the node had before.
    fn open(&self, node: NodeId) -> CancellationToken {
        let superseded = CancellationToken::new();
        if let Some(older) = self.lock().insert(node, superseded.clone()) {
            older.cancel();
        }
        superseded
    }

    fn close(&self, node: NodeId, superseded: &CancellationToken) {
        // A newer stream has cancelled this one and put itself in its place.
        if !superseded.is_cancelled() {
            self.lock().remove(&node);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
