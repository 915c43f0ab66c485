//! `GET /events/stream`: people and scripts follow what is new in the mesh.
//!
//! Like an agent's stream it keeps no queue: it looks at the board, which the coordinator keeps while somebody watches, and a slow reader
//! gets the newest state. The id of an event names the board and the look at it, so that who comes back hears of what is new only.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

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
    alert::LinkMove,
    board::{Board, SeenLinks, Sight},
    health::SILENT_S,
    view,
    watch::{LinkWatch, Pair},
};
use wattle_wire::{
    admin::LinkState,
    ids::Position,
    news::{LinkNews, MeshNews},
    stream::HEARTBEAT_S,
};

use crate::{
    app::App,
    auth,
    db::Db,
    error::{Error, Result},
    links, nodes, sites, webhooks,
};

/// Least time between two looks at the links; configuration is looked at when it changes.
const PACE: Duration = Duration::from_secs(1);
/// What was written within this time before the last look is read again: it may have been committed after it.
const OVERLAP: TimeDelta = TimeDelta::seconds(30);
/// How long a link is as it is before its history says so: its ends do not notice at the same moment.
const SETTLE: Duration = Duration::from_secs(2);
/// Time without a look after which nothing is known of who was silent meanwhile.
const BREAK: Duration = Duration::from_secs(10);
/// How often what is too old is dropped from the history of links.
const PRUNE: Duration = Duration::from_secs(3600);
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
    links: LinkWatch,
    /// Up to when links were read, by the clock of their rows.
    read: Option<DateTime<Utc>>,
    looked: Option<(Instant, Position)>,
    /// Since when links are looked at without a break.
    listening: Option<(DateTime<Utc>, Instant)>,
    /// Links whose history does not say yet how they are, with when that was first seen.
    unrecorded: BTreeMap<Pair, (LinkNews, Instant)>,
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

/// Looks at links, and keeps their history, until the coordinator stops.
pub async fn keep_history(app: &App) {
    let mut pruned: Option<Instant> = None;
    loop {
        sleep(PACE).await;
        let kept = async {
            app.live.record(app).await?;
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
                let mut transaction = app.db.report().await?;
                links::queries::prune_history(&mut transaction).await?;
                transaction.commit().await?;
                pruned = Some(Instant::now());
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = kept.await {
            tracing::debug!(%error, "the history of links is not written now");
        }
    }
}

impl Live {
    /// Writes down what links are like that have been so for a moment, and who is silent.
    async fn record(&self, app: &App) -> Result<()> {
        let mut shown = self.shown.lock().await;
        shown.refresh(app).await;
        let silent: Vec<_> = shown.links.silent().iter().map(|node| node.0).collect();
        let settled: Vec<_> = shown.unrecorded.values().filter(|(_, seen)| seen.elapsed() >= SETTLE).map(|(link, _)| *link).collect();
        drop(shown);
        let mut transaction = app.db.report().await?;
        webhooks::queries::note_silence(&mut transaction, &silent, SILENT_S.cast_signed()).await?;
        transaction.commit().await?;
        for links in settled.chunks(links::queries::MOST_ROWS) {
            let mut transaction = app.db.report().await?;
            let news = links::queries::record(&mut transaction, links).await?;
            // How a link is when it is first heard of is no change.
            let moves =
                news.into_iter().filter_map(|(link, before)| Some(LinkMove { ends: link.ends, before: before?.0, after: link.state }));
            let moves: Vec<_> = moves.filter(|link| link.before != link.after).collect();
            if !moves.is_empty() {
                webhooks::queries::note(&mut transaction, &moves).await?;
            }
            transaction.commit().await?;
        }
        let mut shown = self.shown.lock().await;
        for link in settled {
            let pair = (link.ends[0], link.ends[1]);
            if shown.unrecorded.get(&pair).is_some_and(|(now, _)| (now.state, now.fault) == (link.state, link.fault)) {
                shown.unrecorded.remove(&pair);
            }
        }
        Ok(())
    }
}

impl Shown {
    /// Looks at the mesh, unless that was done a moment ago and no revision came since.
    async fn refresh(&mut self, app: &App) {
        let recent = |(at, position): (Instant, Position)| at.elapsed() < PACE && position == app.copy.position();
        if self.looked.is_some_and(recent) {
            return;
        }
        let now = Utc::now();
        let changed = match self.read(&app.db, now).await {
            Ok(changed) => changed,
            Err(error) => {
                // Links are shown as they were; configuration is in memory.
                tracing::debug!(%error, "cannot read the health of links");
                BTreeSet::new()
            }
        };
        let known = self.looked.map(|(_, position)| position);
        let sight = app.copy.read(|feed| {
            let directory = feed.directory();
            let is_link = |(a, b): &Pair| view::linked(directory, *a, *b);
            let links = if known == Some(feed.position()) {
                SeenLinks::Some(changed.into_iter().filter(is_link).map(|pair| self.links.judge(pair, now)).collect())
            } else {
                self.links.retain(is_link);
                self.unrecorded.retain(|pair, _| is_link(pair));
                SeenLinks::All(links::pairs(directory, None).map(|pair| self.links.judge(pair, now)).collect())
            };
            Sight {
                position: feed.position(),
                sites: directory.sites.values().map(|site| sites::site_in(directory, site)).collect(),
                nodes: directory.nodes.values().filter_map(|node| nodes::node_in(app, directory, node)).collect(),
                links,
            }
        });
        let (SeenLinks::All(links) | SeenLinks::Some(links)) = &sight.links;
        links.iter().for_each(|link| note(&mut self.unrecorded, &self.links, link));
        self.looked = Some((Instant::now(), sight.position));
        self.board.see(sight);
    }

    /// Reads what is new of links; those to be judged anew.
    async fn read(&mut self, db: &Db, now: DateTime<Utc>) -> Result<BTreeSet<Pair>> {
        let mut transaction = db.follow().await?;
        let (changed, newest) = links::queries::changed_since(&mut transaction, self.read.map(|read| read - OVERLAP)).await?;
        let heard = links::queries::all_heard(&mut transaction).await?;
        // The clock of the rows is the database's; the newest row is as far as it is known to have come.
        self.read = self.read.max(newest);
        let unbroken = self.listening.filter(|(_, last)| last.elapsed() < BREAK).map_or(now, |(since, _)| since);
        self.listening = Some((unbroken, Instant::now()));
        Ok(self.links.take(changed, heard, unbroken, now))
    }
}

/// Notes that the history of a link does not say how it is, or that it does.
fn note(unrecorded: &mut BTreeMap<Pair, (LinkNews, Instant)>, links: &LinkWatch, link: &LinkNews) {
    let (pair, now) = ((link.ends[0], link.ends[1]), (link.state, link.fault));
    let Some(record) = links.record(&pair) else { return };
    if record.recorded == Some(now) {
        unrecorded.remove(&pair);
    } else if unrecorded.get(&pair).is_none_or(|(before, _)| (before.state, before.fault) != now) {
        unrecorded.insert(pair, (*link, Instant::now()));
    }
}
