//! The mesh in memory, and how it follows the database.
//!
//! `NOTIFY` is a hint, a poll every two seconds closes what it misses. Whoever reads can ask how
//! fresh the cache is.

pub mod queries;

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use chrono::Utc;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wattle_mesh::config::{
    epochs::Claims,
    feed::{Feed, Gap},
};
use wattle_wire::ids::{NodeId, Position};

use crate::{db::Db, error::Error};

/// How often the database is asked for news that no notification told of.
const POLL: Duration = Duration::from_secs(2);
/// A cache that was not compared with the database for longer than this says nothing about who may
/// do what.
const STALE: Duration = Duration::from_secs(10);
/// How long a request waits for the cache to have what it wrote, or to be compared with the
/// database.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The mesh as this coordinator knows it.
#[derive(Debug)]
pub struct MeshCache {
    feed: RwLock<Feed>,
    position: watch::Sender<Position>,
    /// When the last comparison with the database began that succeeded.
    confirmed: watch::Sender<Instant>,
    news: Notify,
    /// What nodes have seen that the database does not have.
    claims: Mutex<Claims>,
    started: Instant,
}

impl MeshCache {
    /// Reads the mesh from the database.
    pub async fn load(db: &Db) -> anyhow::Result<Self> {
        let began = Instant::now();
        let feed = queries::load(&mut *db.snapshot().await?)
            .await
            .context("cannot read the mesh from the database")?;
        let (position, _) = watch::channel(feed.position());
        let (confirmed, _) = watch::channel(began);
        Ok(Self {
            feed: RwLock::new(feed),
            position,
            confirmed,
            news: Notify::new(),
            claims: Mutex::default(),
            started: began,
        })
    }

    /// Reads in the cache. The closure must be quick: nothing else moves meanwhile.
    pub fn read<T>(&self, reader: impl FnOnce(&Feed) -> T) -> T {
        reader(&self.feed.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Tells of each new position; whoever is slow sees only the newest.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Whether the cache may be trusted about who may do what.
    pub fn is_fresh(&self) -> bool {
        self.confirmed.borrow().elapsed() < STALE
    }

    /// Waits until the cache has a position, so that a writer reads its own writes. Gives up after
    /// two seconds: it is written all the same.
    pub async fn wait_for(&self, wanted: Position) {
        let mut position = self.subscribe();
        self.news.notify_one();
        let has_it =
            |have: &Position| have.epoch != wanted.epoch || have.revision >= wanted.revision;
        if timeout(CATCH_UP, position.wait_for(has_it)).await.is_err() {
            tracing::warn!(%wanted, "the copy of the mesh in memory is behind the database");
        }
    }

    /// Compares the cache with the database now. Gives up after two seconds.
    pub async fn refresh(&self) {
        let asked = Instant::now();
        let mut confirmed = self.confirmed.subscribe();
        self.news.notify_one();
        let _ = timeout(CATCH_UP, confirmed.wait_for(|began| *began >= asked)).await;
    }

    /// A node has seen a position that the cache does not have. If the database does not have it
    /// either, it was restored while no coordinator that remembers ran, and begins a new epoch: no
    /// node goes back within one.
    ///
    /// What a node says may be a lie, and a new epoch costs each node a snapshot: [`Claims`] says
    /// when one is due. The log names the node.
    pub async fn begin_epoch_after(
        &self,
        db: &Db,
        node: NodeId,
        seen: Position,
    ) -> Result<(), Error> {
        // One at a time: what the next node says is heard when this epoch has begun.
        let mut claims = self.claims.lock().await;
        let (now, unix_s) = (self.started.elapsed(), Utc::now().timestamp());
        let Some(highest) = claims.hear(seen, now, unix_s) else {
            return Ok(());
        };
        let mut transaction = db.begin().await?;
        let began = queries::begin_epoch(&mut transaction, highest).await?;
        transaction.commit().await?;
        claims.settle(began, now);
        if began {
            tracing::warn!(%node, %highest, "nodes have seen revisions that the database does not \
                have, as after a restore: beginning a new epoch");
            self.refresh().await;
        }
        Ok(())
    }

    /// Follows the database until the coordinator stops.
    pub async fn follow(&self, db: &Db, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.listen(db) => {}
            () = self.poll(db) => {}
        }
    }

    async fn listen(&self, db: &Db) {
        loop {
            if let Err(error) = self.listen_once(db).await {
                tracing::debug!(%error, "cannot listen for notifications of the database; asks \
                    every two seconds");
            }
            sleep(POLL).await;
        }
    }

    async fn listen_once(&self, db: &Db) -> Result<(), Error> {
        let Some(mut listener) = db.listen().await? else {
            return std::future::pending().await;
        };
        loop {
            // `None` means that the connection was lost and made anew: something may have been
            // missed.
            listener.try_recv().await?;
            self.news.notify_one();
        }
    }

    async fn poll(&self, db: &Db) {
        let mut away = false;
        loop {
            let began = Instant::now();
            match self.catch_up(db).await {
                Ok(()) => {
                    self.confirmed.send_replace(began);
                    if away {
                        tracing::info!(position = %self.position(), "the database answers again");
                    }
                    away = false;
                }
                Err(error) => {
                    if !away {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "cannot reach the database: streams go on, changes have to wait"
                        );
                    }
                    away = true;
                }
            }
            let _ = timeout(POLL, self.news.notified()).await;
        }
    }

    async fn catch_up(&self, db: &Db) -> Result<(), Error> {
        let have = self.position();
        let mut transaction = db.follow().await?;
        let stored = queries::position(&mut transaction).await?;
        if stored == have {
            return Ok(());
        }
        if stored < have {
            tracing::warn!(%have, %stored, "the database has lost revisions, as after a restore: \
                beginning a new epoch");
            queries::begin_epoch(&mut transaction, have).await?;
            transaction.commit().await?;
            return self.reload(db).await;
        }
        if stored.epoch != have.epoch {
            tracing::warn!(%have, %stored, "another coordinator began a new epoch: reading the \
                whole mesh");
            return self.reload(db).await;
        }
        while self.position().revision < stored.revision {
            let changes =
                queries::changes_since(&mut transaction, self.position().revision).await?;
            let pruned = changes.is_empty();
            let gap = self.advance(changes).err();
            if pruned || gap.is_some() {
                tracing::warn!(%have, %stored, ?gap, "revisions are missing in the database: \
                    reading the whole mesh");
                return self.reload(db).await;
            }
        }
        Ok(())
    }

    fn advance(&self, changes: Vec<queries::Revision>) -> Result<(), Gap> {
        let mut feed = self.feed.write().unwrap_or_else(PoisonError::into_inner);
        let result = changes
            .into_iter()
            .try_for_each(|change| feed.advance(change.revision, &change.changes.0));
        let position = feed.position();
        drop(feed);
        self.position.send_replace(position);
        result
    }

    async fn reload(&self, db: &Db) -> Result<(), Error> {
        let fresh = queries::load(&mut *db.snapshot().await?).await?;
        let position = fresh.position();
        *self.feed.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.position.send_replace(position);
        Ok(())
    }
}
