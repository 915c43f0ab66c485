//! Tracks the links of the mesh, for those who watch and for the history of links.
//!
//! The coordinator always remembers those links of which an end ever said something. The cache,
//! which it has while somebody watches, has all pairs, which are many.

pub mod queries;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use uuid::Uuid;
use wattle_mesh::{
    config::{directory::Directory, view, wg_quick::Files},
    health::{
        alert::LinkMove,
        link::SILENT_S,
        tracker::{LinkId, TrackedLinks},
        watch_cache::{Snapshot, WatchCache},
    },
};
use wattle_wire::{
    admin::LinkState,
    event_stream::{LinkStatus, MeshUpdate},
    ids::{NodeId, Position},
};

use self::queries::ChangedLinks;
use super::{
    mesh_cache::MeshCache,
    reports::{Reports, Signs},
    representation,
};
use crate::{
    db::{Db, webhook_news},
    error::Result,
};

/// Least time between two looks at the links; configuration is looked at when it changes.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// What was written within this time before the last look is read again: it may have been committed
/// after it.
const REREAD_WINDOW: TimeDelta = TimeDelta::seconds(30);
/// How often it is read when nodes were heard of: nobody is silent before 150 seconds.
const HEARD_INTERVAL: Duration = Duration::from_secs(5);
/// For how long the cache is kept for those who come back.
const CACHE_LIFETIME: Duration = Duration::from_secs(60);
/// How long a link is as it is before its history says so: its ends do not notice at the same
/// moment.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Time without a look after which nothing is known of who was silent meanwhile.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// Streams at a time.
const MOST_STREAMS: usize = 256;

/// Tracks sites, nodes and links, for those who watch and for the history of links.
#[derive(Debug)]
pub struct LinkTracker {
    tracked: Mutex<Tracked>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Tracked {
    links: TrackedLinks,
    /// Up to when links were read, by the clock of their rows.
    read: Option<DateTime<Utc>>,
    /// When it was read who was heard of.
    heard: Option<Instant>,
    /// Up to which reading it was noted who is silent.
    noted: Option<Instant>,
    looked: Option<(Instant, Position)>,
    /// Since when links are looked at without a break.
    listening: Option<(DateTime<Utc>, Instant)>,
    /// How many nodes had left, and in which epoch, when links were last forgotten.
    departed: (i64, usize),
    /// Links whose history does not say yet how they are, with when that was first seen.
    unrecorded: BTreeMap<LinkId, (LinkStatus, Instant)>,
    /// For those who watch; absent while nobody does.
    watched: Option<WatchedCache>,
}

#[derive(Debug)]
struct WatchedCache {
    /// Tells caches apart: versions of one mean nothing to another.
    id: Uuid,
    cache: WatchCache,
    /// When somebody last asked for it.
    asked: Instant,
}

/// A version of a cache, as the id of an event names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    cache: Uuid,
    version: u64,
}

impl EventId {
    pub fn id(self) -> String {
        format!("{}.{}", self.cache.simple(), self.version)
    }

    pub fn parse(id: &str) -> Option<Self> {
        let (cache, version) = id.split_once('.')?;
        Some(Self {
            cache: Uuid::try_parse(cache).ok()?,
            version: version.parse().ok()?,
        })
    }
}

impl Default for LinkTracker {
    fn default() -> Self {
        Self {
            tracked: Mutex::default(),
            places: Arc::new(Semaphore::new(MOST_STREAMS)),
        }
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub db: &'a Db,
    pub mesh_cache: &'a MeshCache,
    pub reports: &'a Reports,
}

impl LinkTracker {
    /// A place for one more stream; `None` when there are too many.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// What is new since a version, and the version that it leads up to.
    pub async fn changes_since(
        &self,
        sources: Sources<'_>,
        since: Option<EventId>,
    ) -> Option<(EventId, MeshUpdate)> {
        let mut tracked = self.tracked.lock().await;
        if tracked.watched.is_none() {
            tracked.watched = Some(WatchedCache {
                id: Uuid::now_v7(),
                cache: WatchCache::new(),
                asked: Instant::now(),
            });
            // It holds nothing yet.
            tracked.looked = None;
        }
        tracked.refresh(sources).await;
        let watched = tracked.watched.as_mut()?;
        watched.asked = Instant::now();
        let since = since
            .filter(|event| event.cache == watched.id)
            .map(|event| event.version);
        Some((
            EventId {
                cache: watched.id,
                version: watched.cache.version(),
            },
            watched.cache.changes_since(since)?,
        ))
    }

    /// The state of each link of which an end ever said something.
    pub async fn link_states(&self, sources: Sources<'_>) -> Vec<LinkState> {
        let mut tracked = self.tracked.lock().await;
        tracked.refresh(sources).await;
        tracked.links.states().collect()
    }
}

impl LinkTracker {
    /// Writes down what links are like that have been so for a moment, and who is silent.
    pub async fn record(&self, sources: Sources<'_>) -> Result<()> {
        let mut tracked = self.tracked.lock().await;
        tracked.watched = tracked
            .watched
            .take()
            .filter(|watched| watched.asked.elapsed() < CACHE_LIFETIME);
        tracked.refresh(sources).await;
        let heard = tracked.heard;
        let silent: Option<Vec<_>> = (heard != tracked.noted)
            .then(|| tracked.links.silent().iter().map(|node| node.0).collect());
        let settled: Vec<_> = tracked
            .unrecorded
            .values()
            .filter(|(_, since)| since.elapsed() >= SETTLE_TIME)
            .map(|(link, _)| *link)
            .collect();
        drop(tracked);
        if let Some(silent) = silent {
            let mut transaction = sources.db.report().await?;
            webhook_news::note_silence(&mut transaction, &silent, SILENT_S.cast_signed()).await?;
            transaction.commit().await?;
            self.tracked.lock().await.noted = heard;
        }
        for links in settled.chunks(queries::MOST_ROWS) {
            let mut transaction = sources.db.report().await?;
            let news = queries::record(&mut transaction, links).await?;
            // How a link is when it is first heard of is no change.
            let moves = news.into_iter().filter_map(|recorded| {
                Some(LinkMove {
                    ends: recorded.link.ends,
                    before: recorded.before?,
                    after: recorded.link.state,
                })
            });
            let moves: Vec<_> = moves.filter(|link| link.before != link.after).collect();
            if !moves.is_empty() {
                webhook_news::note(&mut transaction, &moves).await?;
            }
            transaction.commit().await?;
        }
        let mut tracked = self.tracked.lock().await;
        for link in settled {
            let pair = (link.ends[0], link.ends[1]);
            if tracked
                .unrecorded
                .get(&pair)
                .is_some_and(|(now, _)| (now.state, now.fault) == (link.state, link.fault))
            {
                tracked.unrecorded.remove(&pair);
            }
        }
        Ok(())
    }
}

impl Tracked {
    /// Looks at the mesh, unless that was done a moment ago and no revision came since.
    async fn refresh(&mut self, sources: Sources<'_>) {
        let recent = |(at, position): (Instant, Position)| {
            at.elapsed() < REFRESH_INTERVAL && position == sources.mesh_cache.position()
        };
        if self.looked.is_some_and(recent) {
            return;
        }
        let now = Utc::now();
        let anew = match self.read(sources, now).await {
            Ok(anew) => anew,
            Err(error) => {
                // Links are shown as they were; configuration is in memory.
                tracing::debug!(%error, "cannot read the health of links");
                BTreeSet::new()
            }
        };
        let cache = self.watched.as_ref().map(|watched| &watched.cache);
        let (position, anew, seen) = sources.mesh_cache.read(|feed| {
            let directory = feed.directory();
            let is_link = |(a, b): &LinkId| view::linked(directory, *a, *b);
            let departed = (feed.position().epoch, directory.revoked.len());
            if departed != self.departed {
                self.departed = departed;
                self.links.retain(is_link);
                self.unrecorded.retain(|pair, _| is_link(pair));
            }
            let mut anew: BTreeSet<_> = anew.into_iter().filter(is_link).collect();
            let seen = cache.map(|cache| {
                anew.extend(links_of_new_nodes(directory, cache));
                let sites: Vec<_> = directory
                    .sites
                    .values()
                    .map(|site| representation::site_in(directory, site))
                    .collect();
                let files = Files::of(directory);
                let nodes: Vec<_> = directory
                    .nodes
                    .values()
                    .filter_map(|node| representation::node_in(sources.reports, &files, node))
                    .collect();
                (sites, nodes)
            });
            let anew: Vec<_> = anew
                .into_iter()
                .map(|pair| (pair, directory.unmanaged([pair.0, pair.1])))
                .collect();
            (feed.position(), anew, seen)
        });
        let links: Vec<_> = anew
            .into_iter()
            .map(|(pair, unmanaged)| self.links.judge(pair, unmanaged, now))
            .collect();
        links
            .iter()
            .for_each(|link| note(&mut self.unrecorded, &self.links, link));
        self.looked = Some((Instant::now(), position));
        if let Some((watched, (sites, nodes))) = self.watched.as_mut().zip(seen) {
            watched.cache.update(Snapshot {
                position,
                sites,
                nodes,
                links,
            });
        }
    }

    /// Reads what is new of links; those to be judged anew.
    async fn read(&mut self, sources: Sources<'_>, now: DateTime<Utc>) -> Result<BTreeSet<LinkId>> {
        let mut transaction = sources.db.follow().await?;
        let ChangedLinks {
            links: mut changed,
            newest,
        } = queries::changed_since(&mut transaction, self.read.map(|read| read - REREAD_WINDOW))
            .await?;
        let heard = match self.heard.is_some_and(|at| at.elapsed() < HEARD_INTERVAL) {
            true => None,
            false => Some(queries::all_heard(&mut transaction).await?),
        };
        // The clock of the rows is the database's; the newest row is as far as it is known to have
        // come.
        self.read = self.read.max(newest);
        if heard.is_some() {
            self.heard = Some(Instant::now());
        }
        let signs = heard;
        let unbroken = self
            .listening
            .filter(|(_, last)| last.elapsed() < LONGEST_GAP)
            .map_or(now, |(since, _)| since);
        self.listening = Some((unbroken, Instant::now()));
        let heard = signs.map(|of| {
            let heard = of
                .iter()
                .map(|(node, (sign, _))| (*node, sign.at))
                .collect();
            let listening_since = Some(unbroken);
            sources.reports.note_signs(Signs {
                of,
                listening_since,
            });
            heard
        });
        // Rows of links that the cache does not have yet are read again until it has.
        sources
            .mesh_cache
            .read(|feed| changed.retain(|((a, b), _)| view::linked(feed.directory(), *a, *b)));
        Ok(self.links.take(changed, heard, unbroken, now))
    }
}

/// The links of nodes that the cache does not know yet.
fn links_of_new_nodes(directory: &Directory, cache: &WatchCache) -> impl Iterator<Item = LinkId> {
    let new = directory.nodes.keys().filter(|node| !cache.knows(**node));
    let with_all = |node: NodeId| {
        directory
            .nodes
            .keys()
            .map(move |other| (node.min(*other), node.max(*other)))
    };
    new.copied()
        .flat_map(with_all)
        .filter(|(a, b)| view::linked(directory, *a, *b))
}

/// Notes that the history of a link does not say how it is, or that it does.
fn note(
    unrecorded: &mut BTreeMap<LinkId, (LinkStatus, Instant)>,
    links: &TrackedLinks,
    link: &LinkStatus,
) {
    let (pair, now) = ((link.ends[0], link.ends[1]), (link.state, link.fault));
    let Some(record) = links.record(&pair) else {
        return;
    };
    if record.recorded == Some(now) {
        unrecorded.remove(&pair);
    } else if unrecorded
        .get(&pair)
        .is_none_or(|(before, _)| (before.state, before.fault) != now)
    {
        unrecorded.insert(pair, (*link, Instant::now()));
    }
}
