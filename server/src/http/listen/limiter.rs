//! Who is connected, and who has to give way when too many are.
//!
//! A connection counts as unproven until a request on it carried a valid credential, which takes an
//! agent or a script a moment. So when there are too many, the oldest unproven one gives way: a
//! flood of silent connections pushes out its own, and locks nobody out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// Unproven connections from one address (of IPv6: one /64) at a time. Loopback is not counted.
const MOST_UNPROVEN: usize = 256;

/// Counts connections.
#[derive(Debug)]
pub(super) struct Doors {
    most: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    open: usize,
    entered: u64,
    /// In the order in which they came.
    unproven: BTreeMap<u64, (Option<IpAddr>, CancellationToken)>,
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
}

/// An open connection.
#[derive(Debug)]
pub struct Guest {
    doors: Arc<Doors>,
    number: u64,
    network: Option<IpAddr>,
    proven: AtomicBool,
    gives_way: CancellationToken,
}

impl Doors {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            inside: Mutex::default(),
        })
    }

    /// Lets a connection in; others may have to give way for it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Arc<Guest> {
        let network = network(address);
        let gives_way = CancellationToken::new();
        let mut inside = self.lock();
        inside.open += 1;
        inside.entered += 1;
        let number = inside.entered;
        inside.unproven.insert(number, (network, gives_way.clone()));
        let oldest_there = network.and_then(|network| {
            let from_there = inside.by_network.entry(network).or_default();
            from_there.insert(number);
            from_there
                .first()
                .copied()
                .filter(|_| from_there.len() > MOST_UNPROVEN)
        });
        let oldest = inside
            .unproven
            .keys()
            .next()
            .copied()
            .filter(|_| inside.open > self.most);
        if let Some(gives_way) = oldest_there
            .or(oldest)
            .and_then(|number| inside.remove(number))
        {
            gives_way.cancel();
        }
        Arc::new(Guest {
            doors: Arc::clone(self),
            number,
            network,
            proven: AtomicBool::new(false),
            gives_way,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Takes a connection off the list of the unproven.
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (network, gives_way) = self.unproven.remove(&number)?;
        if let Some(network) = network
            && let Some(from_there) = self.by_network.get_mut(&network)
        {
            from_there.remove(&number);
            if from_there.is_empty() {
                self.by_network.remove(&network);
            }
        }
        Some(gives_way)
    }
}

impl Guest {
    /// A request on this connection carried a valid credential.
    pub fn prove(&self) {
        if !self.proven.swap(true, Ordering::Relaxed) {
            self.doors.lock().remove(self.number);
        }
    }

    /// Where it comes from: its address, of IPv6 its /64; `None` for loopback, where a proxy may
    /// stand for everybody.
    pub fn network(&self) -> Option<IpAddr> {
        self.network
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Waits until this connection has to end for another; for ever if it need not.
    pub(super) async fn gave_way(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.doors.lock();
        inside.remove(self.number);
        inside.open -= 1;
    }
}

/// See [`Guest::network`].
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

    fn gave_way(guest: &Guest) -> bool {
        guest.gives_way.is_cancelled()
    }

    #[test]
    fn the_oldest_that_proved_nothing_gives_way_and_nobody_else() {
        let doors = Doors::new(3);
        let [first, second, third] = [HERE, HERE, THERE].map(|address| doors.enter(address));
        first.prove();
        assert!(
            ![&first, &second, &third]
                .into_iter()
                .any(|guest| gave_way(guest))
        );
        let fourth = doors.enter(HERE);
        assert_eq!(
            [&first, &second, &third, &fourth].map(|guest| gave_way(guest)),
            [false, true, false, false]
        );
        drop(second);
        third.prove();
        fourth.prove();
        let fifth = doors.enter(HERE);
        assert!(gave_way(&fifth), "all others have proved who they are");
        drop((first, third, fourth, fifth));
        let inside = doors.lock();
        assert_eq!(
            (inside.open, inside.unproven.len(), inside.by_network.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn one_address_pushes_out_its_own_alone() {
        let doors = Doors::new(usize::MAX);
        let other = doors.enter(THERE);
        let crowd: Vec<_> = (0..MOST_UNPROVEN + 10).map(|_| doors.enter(HERE)).collect();
        assert!(!gave_way(&other));
        assert_eq!(crowd.iter().filter(|guest| gave_way(guest)).count(), 10);
        assert!(crowd[..10].iter().all(|guest| gave_way(guest)));
        let local: Vec<_> = (0..MOST_UNPROVEN + 10)
            .map(|_| doors.enter("::1".parse().unwrap()))
            .collect();
        assert!(!local.iter().any(|guest| gave_way(guest)));
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
