//! Keeps the history of links, and what webhooks are to be told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use wattle_mesh::health::{alert::LinkMove, link::SILENT_S};
use wattle_wire::{event_stream::LinkStatus, ids::NodeId};

use crate::{
    db::webhook_news,
    error::Result,
    state::{app::App, link_tracker::queries},
};

/// How often what is too old or too much is dropped from the history of links.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);
/// When what could not be written is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What the tracker of links hands over.
#[derive(Debug)]
pub struct Settled {
    /// How links are that have been so for a moment.
    pub links: Vec<LinkStatus>,
    /// Which nodes are silent, if that was looked up anew.
    pub silent: Option<BTreeSet<NodeId>>,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Unwritten {
    /// Each link as it is by the last word.
    links: BTreeMap<[NodeId; 2], LinkStatus>,
    silent: Option<BTreeSet<NodeId>>,
}

/// Writes what settles, until the coordinator stops.
pub async fn follow(app: &App, mut settled: mpsc::Receiver<Settled>) {
    let mut unwritten = Unwritten::default();
    let mut pruned: Option<Instant> = None;
    let mut wait = PRUNE_INTERVAL;
    loop {
        match timeout(wait, settled.recv()).await {
            Ok(Some(settled)) => unwritten.take(settled),
            Ok(None) => return,
            Err(_) => {}
        }
        wait = match write(app, &mut unwritten, &mut pruned).await {
            Ok(()) => PRUNE_INTERVAL,
            Err(error) => {
                tracing::debug!(%error, "cannot write the history of links");
                RETRY_INTERVAL
            }
        };
    }
}

impl Unwritten {
    fn take(&mut self, Settled { links, silent }: Settled) {
        self.links
            .extend(links.into_iter().map(|link| (link.ends, link)));
        self.silent = silent.or(self.silent.take());
    }
}

async fn write(app: &App, unwritten: &mut Unwritten, pruned: &mut Option<Instant>) -> Result<()> {
    if let Some(silent) = &unwritten.silent {
        let silent: Vec<_> = silent.iter().map(|node| node.0).collect();
        let mut transaction = app.db.report().await?;
        webhook_news::note_silence(&mut transaction, &silent, SILENT_S.cast_signed()).await?;
        transaction.commit().await?;
        unwritten.silent = None;
    }
    while !unwritten.links.is_empty() {
        let links = unwritten.links.values().take(queries::MOST_ROWS);
        let links: Vec<_> = links.copied().collect();
        record(app, &links).await?;
        for link in links {
            unwritten.links.remove(&link.ends);
        }
    }
    if pruned.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL) {
        // It takes long, and touches nothing that nodes report.
        let mut transaction = app.db.begin().await?;
        let most = queries::MOST_ENTRIES_IN_ALL;
        let is_more = queries::prune_history(&mut transaction, most).await?;
        transaction.commit().await?;
        *pruned = (!is_more).then(Instant::now);
    }
    Ok(())
}

/// Enters links in the history, and tells webhooks of those that have changed. Of several
/// coordinators the first does.
async fn record(app: &App, links: &[LinkStatus]) -> Result<()> {
    let mut transaction = app.db.report().await?;
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
    Ok(transaction.commit().await?)
}
