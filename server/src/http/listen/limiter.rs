//! Limits how many connections are open and what those may hold that proved nothing, and evicts
//! some when it is too much.
//!
//! A connection counts as unauthenticated until a request on it carried a valid credential, which
//! takes an agent or a script a moment. When there are too many of these, the network that has most
//! of them loses its oldest: a flood pushes out its own, and locks nobody out. What they hold in
//! memory is counted, too, and when it is too much, whichever holds most goes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::state::origin::Origin;

/// Unauthenticated connections of all listeners together, at a time.
const MOST_UNAUTHENTICATED: usize = 512;
/// Of these, from one address (of IPv6: one /64). Where a proxy may be, they are not counted.
const MOST_NEAR: usize = 128;
/// Of these, from one /48 of IPv6.
const MOST_FAR: usize = 256;
/// A network with no more than so many takes part in a rush, and is not to blame for it.
const FEW: usize = 4;
/// For how long a rush lets a connection be, and those wait that have yet to be accepted. Turns are
/// in the order in which they came: so many get through in that time as there is work done.
const PATIENCE: Duration = Duration::from_secs(1);
/// Evicted connections that may still be there when another is let in.
const MOST_EVICTED: usize = 64;
/// Unauthenticated connections that may wait for their turn when another is let in during a rush:
/// each has several turns until it has shown a credential, and those in the queue are ahead of it.
const MOST_WAITING: usize = 32;
/// What all unauthenticated connections together may hold for their requests, in bytes.
const MOST_HELD: usize = 16 * 1024 * 1024;

/// How many connections, and how many bytes, a listener lets in.
#[derive(Clone, Copy, Debug)]
struct Limits {
    open: usize,
    unauthenticated: usize,
    held: usize,
}

/// Counts connections.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    limits: Limits,
    connections: Mutex<Connections>,
    /// Wakes who waits for room.
    left: Notify,
}

/// A connection that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting(Arc<ConnectionLimiter>);

#[derive(Debug, Default)]
struct Connections {
    open: usize,
    added: u64,
    /// In the order in which they came.
    unauthenticated: BTreeMap<u64, Unauthenticated>,
    by_network: HashMap<IpNet, BTreeSet<u64>>,
    /// What the unauthenticated hold, in bytes.
    held: usize,
    /// How many wait for their turn.
    waiting: usize,
    /// Those that were evicted and hold something still.
    evicted: BTreeSet<u64>,
    /// Turns of others that end when those are gone.
    turns: Vec<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Unauthenticated {
    origin: Origin,
    since: Instant,
    held: usize,
    eviction: CancellationToken,
}

/// The place of a connection among all; it is given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    limiter: Arc<ConnectionLimiter>,
    number: u64,
    eviction: CancellationToken,
}

impl ConnectionLimiter {
    /// Of the connections that may be open, a listener has its share, one of so many.
    pub(super) fn new(open: usize, shares: usize) -> Arc<Self> {
        Arc::new(Self::with(Limits {
            open: (open / shares).max(1),
            unauthenticated: MOST_UNAUTHENTICATED / shares,
            held: MOST_HELD / shares,
        }))
    }

    fn with(limits: Limits) -> Self {
        Self {
            limits,
            connections: Mutex::default(),
            left: Notify::new(),
        }
    }

    /// Waits until one more may be let in. A rush of many that each want little has to wait, so
    /// that those who came first get through; a flood of few has not, for it evicts its own.
    pub(super) async fn room(&self) {
        loop {
            let left = self.left.notified();
            let Some(wait) = self.lock().wait(self.limits, Instant::now()) else {
                return;
            };
            let _ = timeout(wait, left).await;
        }
    }

    /// Lets a connection in; another may be evicted for it.
    pub(super) fn add(self: &Arc<Self>, origin: Origin) -> Place {
        let (number, eviction) = self.lock().add(origin, self.limits, Instant::now());
        Place {
            limiter: Arc::clone(self),
            number,
            eviction,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    fn add(&mut self, origin: Origin, limits: Limits, now: Instant) -> (u64, CancellationToken) {
        self.open += 1;
        self.added += 1;
        let (number, eviction) = (self.added, CancellationToken::new());
        let newest = Unauthenticated {
            origin,
            since: now,
            held: 0,
            eviction: eviction.clone(),
        };
        self.unauthenticated.insert(number, newest);
        for network in counted(origin) {
            self.by_network.entry(network).or_default().insert(number);
        }
        if let Some(number) = self.one_too_many(origin, limits) {
            self.evict(number);
        }
        (number, eviction)
    }

    /// Which has to go for the newest.
    fn one_too_many(&self, origin: Origin, limits: Limits) -> Option<u64> {
        let of_its_networks = counted(origin).find_map(|network| {
            let (from_there, most) = (&self.by_network[&network], most_of(network));
            from_there.first().filter(|_| from_there.len() > most)
        });
        of_its_networks.copied().or_else(|| {
            let is_full =
                self.open > limits.open || self.unauthenticated.len() > limits.unauthenticated;
            is_full.then(|| self.oldest_of_most()).flatten()
        })
    }

    /// The oldest of the network that has most; of all, where none has many.
    fn oldest_of_most(&self) -> Option<u64> {
        self.largest()
            .and_then(BTreeSet::first)
            .or(self.unauthenticated.keys().next())
            .copied()
    }

    /// Those of the network that has most, and many.
    fn largest(&self) -> Option<&BTreeSet<u64>> {
        let many = self
            .by_network
            .values()
            .filter(|from_there| from_there.len() > FEW);
        many.max_by_key(|from_there| from_there.len())
    }

    /// How long the next has to wait; `None` if it need not.
    fn wait(&self, limits: Limits, now: Instant) -> Option<Duration> {
        if self.evicted.len() >= MOST_EVICTED {
            return Some(PATIENCE);
        }
        let has_room =
            self.unauthenticated.len() < limits.unauthenticated && self.waiting < MOST_WAITING;
        if has_room || self.largest().is_some() {
            return None;
        }
        let (_, oldest) = self.unauthenticated.first_key_value()?;
        let wait = (oldest.since + PATIENCE).saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Counts what a connection holds; that which holds most is evicted when it is too much.
    fn hold(&mut self, number: u64, bytes: usize, limits: Limits) {
        let Some(connection) = self.unauthenticated.get_mut(&number) else {
            return;
        };
        connection.held += bytes;
        self.held += bytes;
        while self.held > limits.held {
            let most = self
                .unauthenticated
                .iter()
                .max_by_key(|(_, other)| other.held);
            let Some(number) = most.map(|(number, _)| *number) else {
                return;
            };
            self.evict(number);
        }
    }

    fn release(&mut self, number: u64, bytes: usize) {
        if let Some(connection) = self.unauthenticated.get_mut(&number) {
            connection.held -= bytes;
            self.held -= bytes;
        }
    }

    fn evict(&mut self, number: u64) {
        if let Some(evicted) = self.remove(number) {
            self.evicted.insert(number);
            evicted.eviction.cancel();
        }
    }

    /// Something that was evicted is gone. Returns the turns that end with it.
    #[must_use = "they end when they are dropped"]
    fn gone(&mut self, number: u64) -> Vec<OwnedSemaphorePermit> {
        self.evicted.remove(&number);
        if self.evicted.is_empty() {
            mem::take(&mut self.turns)
        } else {
            Vec::new()
        }
    }

    /// Takes a connection off the list of the unauthenticated.
    fn remove(&mut self, number: u64) -> Option<Unauthenticated> {
        let removed = self.unauthenticated.remove(&number)?;
        self.held -= removed.held;
        for network in counted(removed.origin) {
            if let Some(from_there) = self.by_network.get_mut(&network) {
                from_there.remove(&number);
                if from_there.is_empty() {
                    self.by_network.remove(&network);
                }
            }
        }
        Some(removed)
    }
}

/// In which networks a connection counts.
fn counted(origin: Origin) -> impl Iterator<Item = IpNet> {
    origin.networks().filter(move |_| !origin.may_be_proxy())
}

fn most_of(network: IpNet) -> usize {
    match network.prefix_len() {
        48 => MOST_FAR,
        _ => MOST_NEAR,
    }
}

impl Place {
    /// The connection has proved who it is.
    pub(super) fn set_authenticated(&self) {
        self.limiter.lock().remove(self.number);
        self.limiter.left.notify_one();
    }

    /// The connection holds so much more, if it proved nothing yet. Another, or it, may be evicted.
    pub(super) fn hold(&self, bytes: usize) {
        self.limiter
            .lock()
            .hold(self.number, bytes, self.limiter.limits);
    }

    /// The connection gives back something of what it held.
    pub(super) fn release(&self, bytes: usize) {
        self.limiter.lock().release(self.number, bytes);
    }

    /// Waits until this connection has to end for another; for ever if it need not.
    pub(super) async fn evicted(&self) {
        self.eviction.cancelled().await;
    }

    /// Counts it among those that wait for their turn.
    pub(super) fn waiting(&self) -> Waiting {
        self.limiter.lock().waiting += 1;
        Waiting(Arc::clone(&self.limiter))
    }

    /// Ends a turn: now, or when all that were evicted are gone. Otherwise strangers would take
    /// more while what others gave up is still held.
    pub(super) fn end(&self, turn: OwnedSemaphorePermit) {
        let mut connections = self.limiter.lock();
        if !connections.evicted.is_empty() {
            connections.turns.push(turn);
        }
    }

    /// The connection holds nothing any more.
    pub(super) fn gone(&self) {
        drop(self.limiter.lock().gone(self.number));
        self.limiter.left.notify_one();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut connections = self.0.lock();
        connections.waiting -= 1;
        let is_few = connections.waiting < MOST_WAITING;
        drop(connections);
        if is_few {
            self.0.left.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.limiter.lock();
        connections.remove(self.number);
        connections.open -= 1;
        let turns = connections.gone(self.number);
        drop((connections, turns));
        self.limiter.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tokio::sync::Semaphore;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn limiter(open: usize, unauthenticated: usize) -> Arc<ConnectionLimiter> {
        let held = 1000;
        Arc::new(ConnectionLimiter::with(Limits {
            open,
            unauthenticated,
            held,
        }))
    }

    fn add(limiter: &Arc<ConnectionLimiter>, address: IpAddr) -> Place {
        limiter.add(Origin::of(address))
    }

    fn is_evicted(place: &Place) -> bool {
        place.eviction.is_cancelled()
    }

    fn evicted(places: &[Place]) -> Vec<bool> {
        places.iter().map(is_evicted).collect()
    }

    #[test]
    fn the_oldest_that_proved_nothing_gives_way_and_nobody_else() {
        let limiter = limiter(3, 99);
        let [first, second, third] = [HERE, HERE, THERE].map(|address| add(&limiter, address));
        first.set_authenticated();
        assert!(![&first, &second, &third].into_iter().any(is_evicted));
        let fourth = add(&limiter, HERE);
        assert_eq!(
            [&first, &second, &third, &fourth].map(is_evicted),
            [false, true, false, false]
        );
        drop(second);
        third.set_authenticated();
        fourth.set_authenticated();
        let fifth = add(&limiter, HERE);
        assert!(is_evicted(&fifth), "all others have proved who they are");
        drop((first, third, fourth, fifth));
        let connections = limiter.lock();
        assert_eq!(
            (
                connections.open,
                connections.unauthenticated.len(),
                connections.by_network.len()
            ),
            (0, 0, 0)
        );
    }

    fn crowd(limiter: &Arc<ConnectionLimiter>, number: usize, subnet: u128) -> Vec<Place> {
        let address =
            |number| Ipv6Addr::from_bits((0x2001_0db8 << 96) | (number as u128 * subnet) | 1);
        (0..number)
            .map(|number| add(limiter, address(number).into()))
            .collect()
    }

    #[test]
    fn c11_one_address_and_one_48_push_out_their_own_alone() {
        let limiter = limiter(usize::MAX, usize::MAX);
        let other = add(&limiter, THERE);
        let of_64 = crowd(&limiter, MOST_NEAR + 10, 1);
        assert!(evicted(&of_64[..10]).into_iter().all(|evicted| evicted));
        assert!(!of_64[10..].iter().any(is_evicted));
        drop(of_64);
        let of_48 = crowd(&limiter, MOST_FAR + 10, 1 << 64);
        assert!(evicted(&of_48[..10]).into_iter().all(|evicted| evicted));
        assert!(!of_48[10..].iter().any(is_evicted));
        assert!(!is_evicted(&other));
        let local: Vec<_> = (0..MOST_FAR + 10)
            .map(|_| add(&limiter, "::1".parse().unwrap()))
            .collect();
        assert!(!local.iter().any(is_evicted));
    }

    #[test]
    fn c11_when_there_are_too_many_in_all_the_network_with_most_loses_its_oldest() {
        let limiter = limiter(usize::MAX, 20);
        let other = add(&limiter, THERE);
        let crowd: Vec<_> = (0..30).map(|_| add(&limiter, HERE)).collect();
        assert!(!is_evicted(&other));
        assert!(crowd[..11].iter().all(is_evicted));
        assert!(!crowd[11..].iter().any(is_evicted));
        assert_eq!(limiter.lock().unauthenticated.len(), 20);
    }

    #[test]
    fn c11_a_rush_of_many_waits_for_those_who_came_first_and_a_flood_of_one_does_not() {
        let limiter = limiter(usize::MAX, 20);
        let (limits, now) = (limiter.limits, Instant::now());
        let rush = crowd(&limiter, 20, 1 << 80);
        let wait = |at| limiter.lock().wait(limits, at);
        assert!(wait(now).is_some_and(|wait| wait <= PATIENCE + now.elapsed()));
        assert_eq!(wait(now + 2 * PATIENCE), None, "they had their time");
        rush[7].set_authenticated();
        assert_eq!(wait(now), None);
        let mut queue: Vec<_> = (1..MOST_WAITING).map(|_| rush[0].waiting()).collect();
        assert_eq!(wait(now), None);
        queue.push(rush[0].waiting());
        assert!(wait(now).is_some());
        assert_eq!(wait(now + 2 * PATIENCE), None);
        queue.pop();
        assert_eq!(wait(now), None);
        drop(rush);
        let _flood: Vec<_> = (0..20).map(|_| add(&limiter, HERE)).collect();
        assert_eq!(wait(now), None);
    }

    #[test]
    fn c11_who_holds_most_goes_when_all_hold_too_much_and_who_proved_something_counts_no_more() {
        let limiter = limiter(usize::MAX, 20);
        let [proven, small, large] = [HERE, HERE, THERE].map(|address| add(&limiter, address));
        proven.hold(900);
        proven.set_authenticated();
        proven.hold(9000);
        small.hold(300);
        small.release(100);
        large.hold(700);
        assert!(![&proven, &small, &large].into_iter().any(is_evicted));
        small.hold(200);
        assert_eq!(
            [&proven, &small, &large].map(is_evicted),
            [false, false, true]
        );
        large.release(700);
        assert_eq!(limiter.lock().held, 400);
        drop((small, large));
        assert_eq!(limiter.lock().held, 0);
    }

    #[tokio::test]
    async fn c11_nobody_has_a_turn_while_something_that_was_evicted_holds_what_it_held() {
        let turns = Arc::new(Semaphore::new(1));
        let limiter = limiter(usize::MAX, 20);
        let [first, second, third] = [HERE, HERE, THERE].map(|address| add(&limiter, address));
        let turn = || Arc::clone(&turns).try_acquire_owned();
        third.end(turn().unwrap());
        third.end(turn().unwrap());
        first.hold(1001);
        second.hold(1001);
        third.end(turn().unwrap());
        assert!(is_evicted(&first) && is_evicted(&second) && turn().is_err());
        first.gone();
        assert!(turn().is_err(), "one is still there");
        drop(second);
        assert!(turn().is_ok());
    }

    #[test]
    fn c11_nobody_is_let_in_while_many_that_were_evicted_are_there() {
        let limiter = limiter(usize::MAX, 20);
        let places: Vec<_> = (0..20 + MOST_EVICTED)
            .map(|_| add(&limiter, HERE))
            .collect();
        let wait = || limiter.lock().wait(limiter.limits, Instant::now());
        assert_eq!(wait(), Some(PATIENCE));
        places[0].gone();
        assert_eq!(wait(), None);
    }
}
