//! An open connection: what is known of who is there, and what is under way on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{Request, header};
use tokio::{
    sync::{OwnedSemaphorePermit, SetOnce},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::limiter::{Place, Waiting};
use crate::state::{
    origin::Origin,
    shares::{Credential, Share, SharePlace},
};

/// How long a connection may idle between requests: longer than an agent's between two reports.
pub(super) const IDLE: Duration = Duration::from_secs(75);
/// How long the other side may leave alone what it was sent of an answer.
const UNREAD: Duration = Duration::from_secs(40);
/// How often answers are looked at.
const CHECK: Duration = Duration::from_secs(15);
/// What a request costs besides its headers and its body, in bytes. Until the connection has proved
/// something or ends it is not given back: an answer that nobody reads costs as much.
const REQUEST: usize = 24 * 1024;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    origin: Origin,
    place: Place,
    /// Whose credential it showed first, and the place that it takes among that one's connections.
    owner: SetOnce<Owner>,
    /// Other credentials were good on it, too: it is a proxy's.
    shared: CancellationToken,
    answers: Mutex<Answers>,
}

#[derive(Debug)]
struct Owner {
    share: Arc<Share>,
    _place: SharePlace,
}

/// The answers that are under way.
#[derive(Debug)]
struct Answers {
    begun: u64,
    /// With when something was handed to the other side that it has not taken yet; `None` while
    /// it waits for us.
    open: BTreeMap<u64, Option<Instant>>,
    /// When the last one ended.
    ended: Instant,
}

impl Connection {
    pub(super) fn new(origin: Origin, place: Place) -> Self {
        Self {
            origin,
            place,
            owner: SetOnce::new(),
            shared: CancellationToken::new(),
            answers: Mutex::new(Answers {
                begun: 0,
                open: BTreeMap::new(),
                ended: Instant::now(),
            }),
        }
    }

    /// Where it comes from; `None` for loopback, where a proxy may stand for everybody.
    pub fn stranger(&self) -> Option<Origin> {
        Some(self.origin).filter(|origin| !origin.is_loopback())
    }

    /// A request on this connection carried a valid credential. `false` if its owner has too many
    /// connections already.
    pub fn set_authenticated(&self, share: &Arc<Share>) -> bool {
        if let Some(owner) = self.owner.get() {
            if !Arc::ptr_eq(&owner.share, share) {
                self.shared.cancel();
            }
            return true;
        }
        let Some(place) = share.connection() else {
            return false;
        };
        let owner = Owner {
            share: Arc::clone(share),
            _place: place,
        };
        if self.owner.set(owner).is_ok() {
            self.place.set_authenticated();
        }
        true
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.owner.initialized()
    }

    /// Whether it showed a join token.
    pub(super) fn joins(&self) -> bool {
        let owner = self.owner.get();
        owner.is_some_and(|owner| matches!(owner.share.credential, Credential::JoinToken(_)))
    }

    /// Waits until this connection has to end for another; for ever if it need not.
    pub(super) async fn evicted(&self) {
        self.place.evicted().await;
    }

    /// Counts it among those that wait for their turn.
    pub(super) fn waiting(&self) -> Waiting {
        self.place.waiting()
    }

    /// Ends a turn of its work.
    pub(super) fn end_turn(&self, turn: OwnedSemaphorePermit) {
        self.place.end(turn);
    }

    /// All of its work has ended.
    pub(super) fn gone(&self) {
        self.place.gone();
    }

    /// Waits until the credential that it showed has ended; for ever if others use it, too.
    pub(super) async fn disowned(&self) {
        let owner = self.owner.wait().await;
        tokio::select! {
            biased;
            () = self.shared.cancelled() => std::future::pending().await,
            () = owner.share.ended() => {}
        }
    }

    /// Waits until nothing was asked for a while.
    pub(super) async fn idle(&self) {
        loop {
            let until = {
                let answers = self.lock();
                let since = match answers.open.is_empty() {
                    true => answers.ended,
                    false => Instant::now(),
                };
                since + IDLE
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Waits until an answer lies unread for too long.
    pub(super) async fn unread(&self) {
        loop {
            sleep(CHECK).await;
            let lies = |since: &Option<Instant>| since.is_some_and(|at| at.elapsed() >= UNREAD);
            if self.lock().open.values().any(lies) {
                return;
            }
        }
    }

    /// A request has come, with its headers.
    pub(super) fn begin<B>(&self, request: &Request<B>) -> u64 {
        if !self.is_authenticated() {
            self.place.hold(REQUEST + size(request));
        }
        let mut answers = self.lock();
        answers.begun += 1;
        let number = answers.begun;
        answers.open.insert(number, None);
        number
    }

    /// Something was handed to the other side; or it has taken all, and waits.
    pub(super) fn handed(&self, number: u64, something: bool) {
        if let Some(since) = self.lock().open.get_mut(&number) {
            *since = something.then(Instant::now);
        }
    }

    pub(super) fn end(&self, number: u64) {
        let mut answers = self.lock();
        answers.open.remove(&number);
        answers.ended = Instant::now();
    }

    /// The body of a request holds so much more.
    pub(super) fn hold(&self, bytes: usize) {
        self.place.hold(bytes);
    }

    pub(super) fn release(&self, bytes: usize) {
        self.place.release(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the head of a request takes, in bytes.
fn size<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + 64);
    request.uri().path().len() + headers.sum::<usize>()
}

/// Whether a client waits for leave before it sends the body.
pub(super) fn asks_for_leave<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(header::EXPECT)
}
