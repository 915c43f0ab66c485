//! `GET /agent/stream`: each node follows what concerns it.
//!
//! A stream keeps no queue: it looks at the cache when the position has moved, so a slow reader
//! costs no memory and gets the newest state.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use wattle_mesh::config::{
    feed::{Feed, Next},
    view,
};
use wattle_wire::{
    ids::{NodeId, Position},
    key::IdentityKey,
    stream::{ByeReason, StreamMessage},
};

use crate::{
    error::{self, Result},
    http::{auth::CallingNode, body::Query},
    state::{
        app::App,
        streams::{Open, text::Text},
    },
};

/// How long to wait for this coordinator to catch up with a node that knows more; more than it
/// takes to look at the database.
const AHEAD: Duration = Duration::from_secs(5);
/// How often it is asked for a new epoch before the node is told where this coordinator is all the
/// same: the node says so then, and somebody there can confirm that it follows.
const MOST_ASKED: u8 = 4;

/// From where to follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    /// The position up to which the node knows the mesh; absent means that it knows nothing.
    since: Option<Position>,
}

/// Follows what concerns the calling node.
///
/// Server-sent events; the data of each is one message in JSON: first a snapshot, a delta or a
/// heartbeat, then deltas as they come, a heartbeat every 15 seconds, and `bye` before the
/// coordinator ends the stream.
#[utoipa::path(get, path = "/agent/stream", tag = "agents",
    params(("since" = Option<Position>, Query, description = "position up to which the node knows \
        the mesh; absent: it knows nothing")),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn follow(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Query(query): Query<StreamQuery>,
) -> Response {
    let now = Instant::now();
    app.reports.distrust(node);
    let Open {
        superseded, mail, ..
    } = app.streams.open(node);
    let identity = app.mesh_cache.read(|feed| identity(feed, node));
    let session = Session {
        superseded,
        mail,
        position: app.mesh_cache.subscribe(),
        app,
        node,
        identity,
        since: query.since,
        greeted: false,
        ended: false,
        rest: Text::default(),
        opened: now,
        asked: 0,
        // Until the greeting, which is at once.
        heartbeat: now,
    };
    tracing::info!(%node, since = query.since.map(|since| since.to_string()), "stream opened");
    let pieces = stream::unfold(session, |mut session| async move {
        let piece = session.next().await?;
        Some((Ok::<_, Infallible>(piece), session))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

/// Shows all that the calling node must know. `ETag` is the position.
#[utoipa::path(get, path = "/agent/view", tag = "agents", responses((status = 200, body = Object), (status = 304)))]
pub async fn show(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    headers: HeaderMap,
) -> Result<Response> {
    let (view, position) = app
        .mesh_cache
        .read(|feed| (view::view(feed.directory(), node), feed.position()));
    let view = view.ok_or_else(error::unauthorized)?;
    let etag = format!("\"{position}\"");
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|known| known.as_bytes() == etag.as_bytes());
    if known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    Ok((
        [
            (header::ETAG, etag),
            (header::CACHE_CONTROL, "no-cache".to_owned()),
        ],
        Json(view),
    )
        .into_response())
}

/// One open stream.
#[derive(Debug)]
struct Session {
    app: App,
    node: NodeId,
    /// As which it opened the stream; absent when it was removed meanwhile.
    identity: Option<IdentityKey>,
    /// The position up to which the node knows the mesh.
    since: Option<Position>,
    position: watch::Receiver<Position>,
    superseded: CancellationToken,
    mail: Arc<Notify>,
    greeted: bool,
    ended: bool,
    /// What is left of the message that is on its way.
    rest: Text,
    /// Or when a node that knows more was last given up waiting for.
    opened: Instant,
    /// How often a new epoch was asked for.
    asked: u8,
    /// When the next sign of life is due.
    heartbeat: Instant,
}

impl Session {
    /// The next piece of what is to be said, when there is something; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.rest.next_piece() {
            return Some(piece);
        }
        if self.ended {
            return None;
        }
        self.rest = self.wait().await;
        self.greeted = true;
        self.heartbeat = self.app.streams.heartbeat_after(Instant::now());
        self.rest.next_piece()
    }

    /// Waits until there is something to say.
    async fn wait(&mut self) -> Text {
        loop {
            self.position.borrow_and_update();
            let due = match self.look() {
                Look::Say(position, text) => {
                    self.since = Some(position);
                    return text;
                }
                Look::Wait(until) => until,
                Look::Ahead(seen) => {
                    // On its own heap: it is rare, and would take kilobytes of each stream.
                    if let Err(error) = Box::pin(self.app.mesh_cache.begin_epoch_after(
                        &self.app.db,
                        self.node,
                        seen,
                    ))
                    .await
                    {
                        tracing::debug!(%error, "cannot ask whether the database was restored");
                    }
                    self.opened = Instant::now();
                    self.asked += 1;
                    continue;
                }
                Look::Revoked => return self.bye(ByeReason::Revoked),
                Look::Succeeded => return self.bye(ByeReason::Superseded),
            };
            tokio::select! {
                biased;
                () = self.app.stop.cancelled() => return self.bye(ByeReason::Shutdown),
                () = self.superseded.cancelled() => return self.bye(ByeReason::Superseded),
                _ = self.position.changed() => {}
                () = self.mail.notified() => return Text::of(&StreamMessage::MessagesWaiting),
                () = sleep_until(due) => {}
            }
        }
    }

    fn look(&self) -> Look {
        let texts = &self.app.streams.texts;
        self.app.mesh_cache.read(|feed| {
            let snapshot = || {
                texts
                    .snapshot(feed, self.node)
                    .map_or(Look::Revoked, |text| Look::Say(feed.position(), text))
            };
            let now = Instant::now();
            let known = identity(feed, self.node);
            if known.is_some() && known != self.identity {
                return Look::Succeeded;
            }
            match feed.next(self.node, self.since) {
                Next::Delta(since) => {
                    Look::Say(feed.position(), texts.delta(feed, self.node, since))
                }
                Next::Snapshot => snapshot(),
                Next::Current if !self.greeted || now >= self.heartbeat => {
                    let position = feed.position();
                    Look::Say(position, Text::of(&StreamMessage::Heartbeat { position }))
                }
                Next::Current => Look::Wait(self.heartbeat),
                Next::Ahead(_) if self.asked >= MOST_ASKED => snapshot(),
                Next::Ahead(seen) if now >= self.opened + AHEAD => Look::Ahead(seen),
                Next::Ahead(_) => Look::Wait(self.opened + AHEAD),
                Next::NotAMember => Look::Revoked,
            }
        })
    }

    fn bye(&mut self, reason: ByeReason) -> Text {
        tracing::info!(node = %self.node, ?reason, "stream ended");
        self.ended = true;
        Text::of(&StreamMessage::Bye { reason })
    }
}

/// What a look at the cache gives.
enum Look {
    /// There is this to say, after which the node knows the mesh up to the position.
    Say(Position, Text),
    /// There is nothing to say until then.
    Wait(Instant),
    /// The node has seen this, and the cache has had time to catch up with it.
    Ahead(Position),
    Revoked,
    /// The node has another identity than the one that opened the stream.
    Succeeded,
}

fn identity(feed: &Feed, node: NodeId) -> Option<IdentityKey> {
    feed.directory()
        .nodes
        .get(&node)
        .map(|record| record.identity_key)
}

impl Drop for Session {
    fn drop(&mut self) {
        self.app.streams.close(self.node, &self.superseded);
    }
}
