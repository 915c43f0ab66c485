//! Limits how many connections are open, and evicts some when there are too many.
//!
//! A connection counts as unauthenticated until a request on it carried a valid credential, which
//! takes an agent or a script a moment. So when there are too many, the oldest unauthenticated one
//! is evicted: a flood of silent connections pushes out its own, and locks nobody out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// Unauthenticated connections from one address (of IPv6: one /64) at a time. Loopback is not
/// counted.
const MOST_UNAUTHENTICATED: usize = 256;

/// Counts connections.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    most: usize,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    open: usize,
    added: u64,
    /// In the order in which they came.
    unauthenticated: BTreeMap<u64, (Option<IpAddr>, CancellationToken)>,
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    limiter: Arc<ConnectionLimiter>,
    number: u64,
    network: Option<IpAddr>,
    authenticated: AtomicBool,
    eviction: CancellationToken,
}

impl ConnectionLimiter {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            connections: Mutex::default(),
        })
    }

    /// Lets a connection in; another may be evicted for it.
    pub(super) fn add(self: &Arc<Self>, address: IpAddr) -> Arc<Connection> {
        let network = network(address);
        let eviction = CancellationToken::new();
        let mut connections = self.lock();
        connections.open += 1;
        connections.added += 1;
        let number = connections.added;
        connections
            .unauthenticated
            .insert(number, (network, eviction.clone()));
        let oldest_there = network.and_then(|network| {
            let from_there = connections.by_network.entry(network).or_default();
            from_there.insert(number);
            from_there
                .first()
                .copied()
                .filter(|_| from_there.len() > MOST_UNAUTHENTICATED)
        });
        let oldest = connections
            .unauthenticated
            .keys()
            .next()
            .copied()
            .filter(|_| connections.open > self.most);
        if let Some(eviction) = oldest_there
            .or(oldest)
            .and_then(|number| connections.remove(number))
        {
            eviction.cancel();
        }
        Arc::new(Connection {
            limiter: Arc::clone(self),
            number,
            network,
            authenticated: AtomicBool::new(false),
            eviction,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Takes a connection off the list of the unauthenticated.
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (network, eviction) = self.unauthenticated.remove(&number)?;
        if let Some(network) = network
            && let Some(from_there) = self.by_network.get_mut(&network)
        {
            from_there.remove(&number);
            if from_there.is_empty() {
                self.by_network.remove(&network);
            }
        }
        Some(eviction)
    }
}

impl Connection {
    /// A request on this connection carried a valid credential.
    pub fn set_authenticated(&self) {
        if !self.authenticated.swap(true, Ordering::Relaxed) {
            self.limiter.lock().remove(self.number);
        }
    }

    /// Where it comes from: its address, of IPv6 its /64; `None` for loopback, where a proxy may
    /// stand for everybody.
    pub fn network(&self) -> Option<IpAddr> {
        self.network
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Waits until this connection has to end for another; for ever if it need not.
    pub(super) async fn evicted(&self) {
        self.eviction.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut connections = self.limiter.lock();
        connections.remove(self.number);
        connections.open -= 1;
    }
}

/// See [`Connection::network`].
fn network(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn is_evicted(connection: &Connection) -> bool {
        connection.eviction.is_cancelled()
    }

    #[test]
    fn the_oldest_that_proved_nothing_gives_way_and_nobody_else() {
        let limiter = ConnectionLimiter::new(3);
        let [first, second, third] = [HERE, HERE, THERE].map(|address| limiter.add(address));
        first.set_authenticated();
        assert!(
            ![&first, &second, &third]
                .into_iter()
                .any(|connection| is_evicted(connection))
        );
        let fourth = limiter.add(HERE);
        assert_eq!(
            [&first, &second, &third, &fourth].map(|connection| is_evicted(connection)),
            [false, true, false, false]
        );
        drop(second);
        third.set_authenticated();
        fourth.set_authenticated();
        let fifth = limiter.add(HERE);
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

    #[test]
    fn one_address_pushes_out_its_own_alone() {
        let limiter = ConnectionLimiter::new(usize::MAX);
        let other = limiter.add(THERE);
        let crowd: Vec<_> = (0..MOST_UNAUTHENTICATED + 10)
            .map(|_| limiter.add(HERE))
            .collect();
        assert!(!is_evicted(&other));
        assert_eq!(
            crowd
                .iter()
                .filter(|connection| is_evicted(connection))
                .count(),
            10
        );
        assert!(crowd[..10].iter().all(|connection| is_evicted(connection)));
        let local: Vec<_> = (0..MOST_UNAUTHENTICATED + 10)
            .map(|_| limiter.add("::1".parse().unwrap()))
            .collect();
        assert!(!local.iter().any(|connection| is_evicted(connection)));
        assert_eq!(
            network("2001:db8::1".parse().unwrap()),
            network("2001:db8::2".parse().unwrap())
        );
        assert_ne!(
            network("2001:db8::1".parse().unwrap()),
            network("2001:db8:0:1::1".parse().unwrap())
        );
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), Some(HERE));
        assert!(
            ["::1", "127.0.0.9", "::ffff:127.0.0.1"]
                .iter()
                .all(|local| network(local.parse().unwrap()).is_none())
        );
    }
}
