//! How the links of the mesh are, for those who watch and for metrics. A task looks at them and
//! shows here what it saw, so that nobody who asks waits for the database.

pub mod queries;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use uuid::Uuid;
use wattle_mesh::health::watch_cache::{Snapshot, WatchCache};
use wattle_wire::{admin::LinkState, event_stream::MeshUpdate};

/// For how long the cache is kept for those who come back.
const CACHE_LIFETIME: Duration = Duration::from_secs(60);
/// Streams at a time.
const MOST_STREAMS: usize = 256;

/// What was seen of the links last.
#[derive(Debug)]
pub struct LinkTracker {
    shown: Mutex<Shown>,
    /// Tells of each look.
    looks: watch::Sender<()>,
    /// Somebody began to watch, and there is nothing to show yet.
    began: Notify,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Shown {
    /// How many links are in each state, of those of which an end ever said something.
    states: BTreeMap<LinkState, usize>,
    /// For those who watch; absent while nobody does. It has all pairs, which are many.
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
            shown: Mutex::default(),
            looks: watch::Sender::new(()),
            began: Notify::new(),
            places: Arc::new(Semaphore::new(MOST_STREAMS)),
        }
    }
}

impl LinkTracker {
    /// A place for one more stream; `None` when there are too many.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Tells of each look from now on, also of one at which nothing was new.
    pub fn looks(&self) -> watch::Receiver<()> {
        self.looks.subscribe()
    }

    /// What is new since a version, and the version that it leads up to. `None` when nothing is, and
    /// for the first who watches until the next look.
    pub fn changes_since(&self, since: Option<EventId>) -> Option<(EventId, MeshUpdate)> {
        let mut shown = self.shown();
        let Some(watched) = &mut shown.watched else {
            shown.watched = Some(WatchedCache {
                id: Uuid::now_v7(),
                cache: WatchCache::new(),
                asked: Instant::now(),
            });
            self.began.notify_one();
            return None;
        };
        watched.asked = Instant::now();
        let version = watched.cache.version();
        if version == 0 {
            // It holds nothing yet.
            return None;
        }
        let since = since.filter(|event| event.cache == watched.id);
        let event = EventId {
            cache: watched.id,
            version,
        };
        let changes = watched
            .cache
            .changes_since(since.map(|event| event.version));
        Some((event, changes?))
    }

    /// How many links are in each state, of those of which an end ever said something.
    pub fn count(&self, state: LinkState) -> usize {
        self.shown().states.get(&state).copied().unwrap_or_default()
    }
}

/// For the task that looks.
impl LinkTracker {
    /// Waits until somebody begins to watch.
    pub async fn began(&self) {
        self.began.notified().await;
    }

    /// Whether somebody watches. The cache goes when nobody has for a while.
    pub fn is_watched(&self) -> bool {
        let watched = &mut self.shown().watched;
        watched.take_if(|watched| watched.asked.elapsed() >= CACHE_LIFETIME);
        watched.is_some()
    }

    /// Reads the cache, which is absent while nobody watches.
    pub fn read_cache<T>(&self, read: impl FnOnce(Option<&WatchCache>) -> T) -> T {
        read(self.shown().watched.as_ref().map(|watched| &watched.cache))
    }

    /// Shows what was seen: the states of links, and, if somebody watches, the whole mesh.
    pub fn show(&self, states: &BTreeMap<LinkState, usize>, snapshot: Option<Snapshot>) {
        let mut shown = self.shown();
        shown.states.clone_from(states);
        if let Some((watched, snapshot)) = shown.watched.as_mut().zip(snapshot) {
            watched.cache.update(snapshot);
        }
        drop(shown);
        self.looks.send_replace(());
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
