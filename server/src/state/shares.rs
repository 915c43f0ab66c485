//! What each credential may take of this coordinator at a time, so that whoever has one takes
//! nothing from others.
//!
//! SECURITY.md has the table. A share lives for as long as somebody uses it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use wattle_mesh::backoff::Pace;
use wattle_wire::ids::{NodeId, TokenId};

use crate::error::{self, Result};

/// How long a request waits for its turn among those of its credential.
const PATIENCE: Duration = Duration::from_secs(4);
/// 600 requests of a node may come at once, and then ten in a second. A body of 100 KiB counts as
/// one more: a report of 10,000 links is as good as 16.
const NODE_BURST: Duration = Duration::from_secs(60);
const NODE_REQUEST: Duration = Duration::from_millis(100);
const NODE_KIB: Duration = Duration::from_millis(1);

/// Whose share it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    ApiToken(TokenId),
    Node(NodeId),
    JoinToken(TokenId),
}

/// What a credential may have at a time.
#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    /// Requests whose answer was not read to its end.
    requests: usize,
    /// Of these, those that are carried out: each may use a connection to the database.
    carried_out: usize,
    event_streams: usize,
}

impl Credential {
    fn limits(self) -> Limits {
        match self {
            Self::ApiToken(_) => Limits {
                connections: 64,
                requests: 64,
                carried_out: 3,
                event_streams: 16,
            },
            Self::Node(_) => Limits {
                connections: 16,
                requests: 16,
                carried_out: 2,
                event_streams: 0,
            },
            Self::JoinToken(_) => Limits {
                connections: 16,
                requests: 64,
                carried_out: 2,
                event_streams: 0,
            },
        }
    }
}

/// The shares that are in use, and how much nodes sent lately.
#[derive(Debug)]
pub struct Shares {
    in_use: Arc<Mutex<HashMap<Credential, Weak<Share>>>>,
    paces: Mutex<HashMap<NodeId, Pace>>,
    since: Instant,
}

/// What one credential takes.
#[derive(Debug)]
pub struct Share {
    pub credential: Credential,
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    event_streams: Arc<Semaphore>,
    ended: CancellationToken,
    all: Weak<Mutex<HashMap<Credential, Weak<Self>>>>,
}

/// A place that is given back on drop.
#[derive(Debug)]
pub struct SharePlace(#[expect(dead_code, reason = "is there to be dropped")] OwnedSemaphorePermit);

/// A request that is let in: its place until its answer was read, and its turn until it was
/// carried out.
#[derive(Debug)]
pub struct AdmittedRequest {
    pub place: SharePlace,
    pub turn: SharePlace,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            in_use: Arc::default(),
            paces: Mutex::default(),
            since: Instant::now(),
        }
    }
}

impl Shares {
    pub fn of(&self, credential: Credential) -> Arc<Share> {
        let mut all = lock(&self.in_use);
        if let Some(share) = all.get(&credential).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Share::new(credential, Arc::downgrade(&self.in_use)));
        all.insert(credential, Arc::downgrade(&share));
        share
    }

    /// Whose shares are in use.
    pub fn in_use(&self) -> Vec<Credential> {
        lock(&self.in_use).keys().copied().collect()
    }

    /// A node sends a request whose body has at most so many bytes.
    ///
    /// # Errors
    ///
    /// 429, when it sent too much lately.
    pub fn pace(&self, node: NodeId, bytes: u64) -> Result<()> {
        let (mut paces, now) = (lock(&self.paces), self.since.elapsed());
        let pace = paces.entry(node).or_insert(Pace::new(NODE_BURST));
        if !pace.wait(now).is_zero() {
            return Err(error::too_much("requests in a short time").into());
        }
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        pace.take(NODE_REQUEST + NODE_KIB.saturating_mul(kib), now);
        Ok(())
    }

    /// Forgets nodes that do not take part any more.
    pub fn retain(&self, takes_part: impl Fn(NodeId) -> bool) {
        lock(&self.paces).retain(|node, _| takes_part(*node));
    }

    /// A credential is good for nothing any more: what it has open ends.
    pub fn end(&self, credential: Credential) {
        let share = lock(&self.in_use).get(&credential).and_then(Weak::upgrade);
        if let Some(share) = share {
            share.ended.cancel();
        }
    }
}

impl Share {
    fn new(credential: Credential, all: Weak<Mutex<HashMap<Credential, Weak<Self>>>>) -> Self {
        let limits = credential.limits();
        let places = |most| Arc::new(Semaphore::new(most));
        Self {
            credential,
            connections: places(limits.connections),
            requests: places(limits.requests),
            turns: places(limits.carried_out),
            event_streams: places(limits.event_streams),
            ended: CancellationToken::new(),
            all,
        }
    }

    /// A place for one more connection.
    pub fn connection(&self) -> Option<SharePlace> {
        place(&self.connections)
    }

    /// A place for one more stream of events.
    pub fn event_stream(&self) -> Option<SharePlace> {
        place(&self.event_streams)
    }

    /// Lets a request in when its turn comes.
    ///
    /// # Errors
    ///
    /// 429, when its credential has too many.
    pub async fn admit(&self) -> Result<AdmittedRequest> {
        let too_many = || error::too_much("requests under way");
        let place = place(&self.requests).ok_or_else(too_many)?;
        let turn = timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).map(SharePlace);
        Ok(AdmittedRequest {
            place,
            turn: turn.ok_or_else(too_many)?,
        })
    }

    /// Waits until the credential is good for nothing any more.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            let mut all = lock(&all);
            // There may be another by now.
            if all
                .get(&self.credential)
                .is_some_and(|share| share.strong_count() == 0)
            {
                all.remove(&self.credential);
            }
        }
    }
}

fn place(places: &Arc<Semaphore>) -> Option<SharePlace> {
    Arc::clone(places).try_acquire_owned().ok().map(SharePlace)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const VIEWER: Credential = Credential::ApiToken(TokenId(Uuid::from_u128(1)));
    const OTHER: Credential = Credential::ApiToken(TokenId(Uuid::from_u128(2)));

    #[tokio::test]
    async fn c12_a_credential_has_its_share_and_another_has_its_own() {
        let shares = Shares::default();
        let share = shares.of(VIEWER);
        let mut carried_out = Vec::new();
        for _ in 0..VIEWER.limits().carried_out {
            carried_out.push(share.admit().await.unwrap());
        }
        let waits = timeout(Duration::ZERO, share.admit()).await;
        assert!(waits.is_err(), "for its turn");
        assert!(shares.of(OTHER).admit().await.is_ok());
        carried_out.pop();
        assert!(shares.of(VIEWER).admit().await.is_ok());
        let connections: Vec<_> = std::iter::from_fn(|| share.connection()).collect();
        assert_eq!(connections.len(), VIEWER.limits().connections);
    }

    #[test]
    fn c18_a_node_sends_so_much_at_once_and_another_its_own() {
        let shares = Shares::default();
        let [one, other, third] = [1, 2, 3].map(|id| NodeId(Uuid::from_u128(id)));
        let let_in = |node, bytes| {
            (0..1000)
                .take_while(|_| shares.pace(node, bytes).is_ok())
                .count()
        };
        let (small, large) = (let_in(one, 100), let_in(other, 4 << 20));
        assert!((600..620).contains(&small), "{small}");
        assert!((14..17).contains(&large), "{large}");
        assert_eq!(shares.pace(third, 0).map_err(|_| ()), Ok(()));
        assert_eq!(shares.pace(one, 0).map_err(|_| ()), Err(()));
        shares.retain(|node| node != one);
        assert_eq!(shares.pace(one, 0).map_err(|_| ()), Ok(()));
    }

    #[tokio::test]
    async fn c13_a_share_that_ended_tells_who_uses_it_and_one_that_nobody_uses_is_gone() {
        let shares = Shares::default();
        let share = shares.of(VIEWER);
        shares.end(VIEWER);
        share.ended().await;
        shares.of(VIEWER).ended().await;
        assert_eq!(shares.in_use(), [VIEWER]);
        drop(share);
        assert_eq!(shares.in_use(), []);
    }
}
