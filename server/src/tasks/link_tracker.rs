//! Looks at the links of the mesh, shows how they are, and hands over to the history what has
//! settled.
//!
//! The coordinator always remembers those links of which an end ever said something.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use wattle_mesh::{
    config::{directory::Directory, view, wg_quick::Files},
    health::{
        link::{Heard, LinkRecord},
        tracker::{LinkId, TrackedLinks},
        watch_cache::{Snapshot, WatchCache},
    },
};
use wattle_wire::{
    event_stream::LinkStatus,
    ids::{NodeId, Position},
};

use super::history::Settled;
use crate::{
    error::Result,
    state::{
        app::App,
        link_tracker::queries::{self, ChangedLinks},
        reports::Signs,
        representation,
    },
};

/// Time between two readings of what the ends of links say.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// What was written within this time before the last reading is read again: it may have been
/// committed after it.
const REREAD_WINDOW: TimeDelta = TimeDelta::seconds(30);
/// How often it is read when nodes were heard of: nobody is silent before 150 seconds.
const HEARD_INTERVAL: Duration = Duration::from_secs(5);
/// How long a link is as it is before its history says so: its ends do not notice at the same
/// moment.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Time without a reading after which nothing is known of who was silent meanwhile.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// Reads what the ends of links say.
#[derive(Debug, Default)]
struct Reader {
    /// Up to when links were read, by the clock of their rows.
    read: Option<DateTime<Utc>>,
    /// When it was read who was heard of.
    heard: Option<Instant>,
    /// Since when links are read without a break.
    listening: Option<(DateTime<Utc>, Instant)>,
}

/// What was read.
struct News {
    changed: Vec<(LinkId, LinkRecord)>,
    /// When nodes were heard of, if that was read anew.
    heard: Option<Heard>,
    listening_since: DateTime<Utc>,
    at: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Tracked {
    links: TrackedLinks,
    /// How many nodes had left, and in which epoch, when links were last forgotten.
    departed: (i64, usize),
    /// Links whose history does not say yet how they are, with when that was first seen.
    unrecorded: BTreeMap<LinkId, (LinkStatus, Instant)>,
    /// It was looked up who is silent, and nobody was told yet.
    silence_is_new: bool,
}

/// What there is of the mesh besides links.
struct Configured {
    /// Links to judge anew, and which of their ends are unmanaged.
    links: Vec<(LinkId, [bool; 2])>,
    /// For those who watch.
    snapshot: Option<Snapshot>,
}

/// Looks at links until the coordinator stops. Whoever watches hears of a change of the
/// configuration at once, however long the database takes.
pub async fn follow(app: &App, history: mpsc::Sender<Settled>) {
    let (mut reader, mut tracked) = (Reader::default(), Tracked::default());
    let mut position = app.mesh_cache.subscribe();
    loop {
        let reading = async {
            sleep(READ_INTERVAL).await;
            reader.read(app).await
        };
        tokio::pin!(reading);
        let read = loop {
            let is_watched = app.link_tracker.is_watched();
            tokio::select! {
                read = &mut reading => break read,
                () = app.link_tracker.began() => {}
                _ = position.changed(), if is_watched => {}
            }
            tracked.look(app, BTreeSet::new());
        };
        let anew = read
            .map(|news| tracked.take(app, news))
            .unwrap_or_else(|error| {
                // Links are shown as they were; configuration is in memory.
                tracing::debug!(%error, "cannot read the health of links");
                BTreeSet::new()
            });
        tracked.look(app, anew);
        tracked.hand_over(&history);
    }
}

impl Reader {
    /// Reads what is new of links.
    async fn read(&mut self, app: &App) -> Result<News> {
        let at = Utc::now();
        let mut transaction = app.db.follow().await?;
        let since = self.read.map(|read| read - REREAD_WINDOW);
        let ChangedLinks {
            links: changed,
            newest,
        } = queries::changed_since(&mut transaction, since).await?;
        let signs = match self.heard.is_some_and(|at| at.elapsed() < HEARD_INTERVAL) {
            true => None,
            false => Some(queries::all_heard(&mut transaction).await?),
        };
        // The clock of the rows is the database's; the newest row is as far as it is known to have
        // come.
        self.read = self.read.max(newest);
        let unbroken = self
            .listening
            .filter(|(_, last)| last.elapsed() < LONGEST_GAP)
            .map_or(at, |(since, _)| since);
        self.listening = Some((unbroken, Instant::now()));
        let heard = signs.map(|of| {
            self.heard = Some(Instant::now());
            let heard = of.iter().map(|(node, (sign, _))| (*node, sign.at));
            let heard = heard.collect();
            let listening_since = Some(unbroken);
            app.reports.note_signs(Signs {
                of,
                listening_since,
            });
            heard
        });
        Ok(News {
            changed,
            heard,
            listening_since: unbroken,
            at,
        })
    }
}

impl Tracked {
    /// Takes in what was read; says which links to judge anew.
    fn take(&mut self, app: &App, mut news: News) -> BTreeSet<LinkId> {
        // Rows of links that the cache does not have yet are read again until it has.
        app.mesh_cache.read(|feed| {
            let is_link = |(a, b): LinkId| view::linked(feed.directory(), a, b);
            news.changed.retain(|(pair, _)| is_link(*pair));
        });
        self.silence_is_new |= news.heard.is_some();
        self.links
            .take(news.changed, news.heard, news.listening_since, news.at)
    }

    /// Judges links, and shows them with what is configured now.
    fn look(&mut self, app: &App, anew: BTreeSet<LinkId>) {
        let now = Utc::now();
        let Configured { links, snapshot } = self.configured(app, anew);
        let links = links.into_iter();
        let links = links.map(|(pair, unmanaged)| self.links.judge(pair, unmanaged, now));
        let links: Vec<_> = links.collect();
        links.iter().for_each(|link| self.note(link));
        let snapshot = snapshot.map(|snapshot| Snapshot { links, ..snapshot });
        app.link_tracker.show(self.links.counts(), snapshot);
    }

    /// What the configuration makes of it. Links that are none any more are forgotten.
    fn configured(&mut self, app: &App, mut anew: BTreeSet<LinkId>) -> Configured {
        // In this order: what follows the mesh does not wait for those who watch.
        let read = |cache: Option<&WatchCache>| {
            app.mesh_cache.read(|feed| {
                let directory = feed.directory();
                let is_link = |(a, b): &LinkId| view::linked(directory, *a, *b);
                let departed = (feed.position().epoch, directory.revoked.len());
                if departed != self.departed {
                    self.departed = departed;
                    self.links.retain(is_link);
                    self.unrecorded.retain(|pair, _| is_link(pair));
                }
                anew.retain(is_link);
                let new = cache.map(|cache| links_of_new_nodes(directory, cache));
                anew.extend(new.into_iter().flatten());
                let unmanaged = |pair: LinkId| (pair, directory.unmanaged([pair.0, pair.1]));
                Configured {
                    links: anew.into_iter().map(unmanaged).collect(),
                    snapshot: cache.map(|_| seen(app, directory, feed.position())),
                }
            })
        };
        app.link_tracker.read_cache(read)
    }

    /// Notes that the history of a link does not say how it is, or that it does.
    fn note(&mut self, link: &LinkStatus) {
        let (pair, now) = ((link.ends[0], link.ends[1]), (link.state, link.fault));
        let Some(record) = self.links.record(&pair) else {
            return;
        };
        if record.recorded == Some(now) {
            self.unrecorded.remove(&pair);
        } else if self
            .unrecorded
            .get(&pair)
            .is_none_or(|(before, _)| (before.state, before.fault) != now)
        {
            self.unrecorded.insert(pair, (*link, Instant::now()));
        }
    }

    /// Hands over how links are that have been so for a moment, and who is silent. What the history
    /// has no room for now comes with a later look.
    fn hand_over(&mut self, history: &mpsc::Sender<Settled>) {
        let Ok(place) = history.try_reserve() else {
            return;
        };
        let settled = self
            .unrecorded
            .extract_if(.., |_, (_, since)| since.elapsed() >= SETTLE_TIME);
        let links: Vec<_> = settled.map(|(_, (link, _))| link).collect();
        let silent = mem::take(&mut self.silence_is_new).then(|| self.links.silent().clone());
        if !links.is_empty() || silent.is_some() {
            place.send(Settled { links, silent });
        }
    }
}

/// The mesh without its links.
fn seen(app: &App, directory: &Directory, position: Position) -> Snapshot {
    let files = Files::of(directory);
    let sites = directory.sites.values();
    let nodes = directory.nodes.values();
    Snapshot {
        position,
        sites: sites
            .map(|site| representation::site_in(directory, site))
            .collect(),
        nodes: nodes
            .filter_map(|node| representation::node_in(&app.reports, &files, node))
            .collect(),
        links: Vec::new(),
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
