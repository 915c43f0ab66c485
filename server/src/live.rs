//! `GET /events/stream`: people and scripts follow what is new in the mesh.
//!
//! Like an agent's stream it keeps no queue: it looks at the board, which the coordinator keeps while somebody watches, and a slow reader
//! gets the newest state. The id of an event names the board and the look at it, so that who comes back hears of what is new only.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep},
};
use uuid::Uuid;
use wattle_mesh::{
    access::Action,
    board::{Board, Sight},
    health, view,
};
use wattle_wire::{
    admin::LinkState,
    ids::{NodeId, Position},
    news::{LinkNews, MeshNews},
    stream::HEARTBEAT_S,
};

use crate::{
    app::App,
    auth,
    db::Db,
    error::{Error, Result},
    links::{
        self,
        queries::{Heard, LinkRow},
    },
    nodes, sites,
};

/// Least time between two looks at the links; configuration is looked at when it changes.
const PACE: Duration = Duration::from_secs(1);
/// What was written within this time before the last look is read again: it may have been committed after it.
const OVERLAP: TimeDelta = TimeDelta::seconds(30);
/// How often a stream shows a sign of life, and proves again that its credential is valid.
const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_S);
/// Streams at a time.
const MOST: usize = 256;

/// What is shown to those who watch.
#[derive(Debug)]
pub struct Live {
    /// Tells boards apart: numbers of looks mean nothing to another.
    id: Uuid,
    shown: Mutex<Shown>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Shown {
    board: Board,
    links: BTreeMap<(NodeId, NodeId), LinkRow>,
    heard: Heard,
    /// When links were read, by the clock of their rows.
    read: Option<DateTime<Utc>>,
    looked: Option<(Instant, Position)>,
}

impl Default for Live {
    fn default() -> Self {
        Self { id: Uuid::now_v7(), shown: Mutex::default(), places: Arc::new(Semaphore::new(MOST)) }
    }
}

/// Follows the mesh: sites, nodes and the state of links.
///
/// Server-sent events. The first, `snapshot`, holds everything; each `change` what is new since the event before. With the `Last-Event-ID` of
/// an event that it has received, a client is told only what is new since then, if this coordinator still knows.
#[utoipa::path(get, path = "/events/stream", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "id of the last event received; absent: tell everything")),
    responses((status = 200, content_type = "text/event-stream", body = MeshNews)))]
pub async fn follow(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    let Ok(place) = Arc::clone(&app.live.places).try_acquire_owned() else {
        return Err(Error::Unavailable("too many streams of events"));
    };
    let told = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| app.live.look_of(id));
    let session = Session { position: app.copy.subscribe(), app, headers, told, proven: Instant::now(), _place: place };
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
    /// The look up to which it was told.
    told: Option<u64>,
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
            if let Some((look, news)) = self.app.live.news(&self.app, self.told).await {
                let id = self.app.live.id_of(look);
                self.told = Some(look);
                let kind = if news.complete { "snapshot" } else { "change" };
                return Event::default().event(kind).id(id).json_data(&news).ok();
            }
            tokio::select! {
                () = self.app.stop.cancelled() => return None,
                _ = self.position.changed() => {}
                () = sleep(PACE) => {}
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

impl Live {
    /// What is new since a look, and the look that it leads up to.
    async fn news(&self, app: &App, since: Option<u64>) -> Option<(u64, MeshNews)> {
        let mut shown = self.shown.lock().await;
        shown.refresh(app).await;
        Some((shown.board.look(), shown.board.news(since)?))
    }

    /// The state of each link.
    pub async fn link_states(&self, app: &App) -> Vec<LinkState> {
        let mut shown = self.shown.lock().await;
        shown.refresh(app).await;
        shown.board.links().map(|link| link.state).collect()
    }

    fn id_of(&self, look: u64) -> String {
        format!("{}.{look}", self.id.simple())
    }

    fn look_of(&self, id: &str) -> Option<u64> {
        let (board, look) = id.split_once('.')?;
        let ours = Uuid::try_parse(board) == Ok(self.id);
        look.parse().ok().filter(|_| ours)
    }
}

impl Shown {
    /// Looks at the mesh, unless that was done a moment ago and no revision came since.
    async fn refresh(&mut self, app: &App) {
        let recent = |(at, position): (Instant, Position)| at.elapsed() < PACE && position == app.copy.position();
        if self.looked.is_some_and(recent) {
            return;
        }
        if let Err(error) = self.read(&app.db).await {
            // Links are shown as they were; configuration is in memory.
            tracing::debug!(%error, "cannot read the health of links");
        }
        let now = Utc::now();
        let sight = app.copy.read(|feed| {
            let directory = feed.directory();
            self.links.retain(|(a, b), _| view::linked(directory, *a, *b));
            let links = links::pairs(directory, None).map(|(a, b)| {
                let (reports, since) = links::reports((a, b), self.links.get(&(a, b)), &self.heard, now);
                LinkNews { ends: [a, b], state: health::link_state(reports), since }
            });
            Sight {
                position: feed.position(),
                sites: directory.sites.values().map(|site| sites::site_in(directory, site)).collect(),
                nodes: directory.nodes.values().filter_map(|node| nodes::node_in(app, directory, node)).collect(),
                links: links.collect(),
            }
        });
        self.looked = Some((Instant::now(), sight.position));
        self.board.see(sight);
    }

    async fn read(&mut self, db: &Db) -> Result<()> {
        let mut transaction = db.begin().await?;
        let changed = links::queries::changed_since(&mut transaction, self.read.map(|read| read - OVERLAP)).await?;
        self.heard = links::queries::all_heard(&mut transaction).await?;
        // The clock of the rows is the database's; the newest row is as far as it is known to have come.
        let newest = changed.iter().flat_map(|(_, row)| [row.a, row.b]).flatten().map(|end| end.since).max();
        self.read = self.read.max(newest);
        self.links.extend(changed);
        Ok(())
    }
}
