//! Failed credentials, counted by where they come from, so that guessing them is slow and costs the
//! database nothing.
//!
//! Only failures count, and only those that would have to be looked up; whoever has shown a good
//! credential before is not asked. Loopback is not counted: a proxy may stand there for everybody.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures that are free, for each address (of IPv6: each /64).
const BURST: u32 = 20;
/// After which time one more is.
const RECOVERY: Duration = Duration::from_secs(1);
/// Failures that are free for all addresses together, however many there are.
const BURST_OF_ALL: u32 = 2_000;
/// After which time one more is: what the database looks up without anybody noticing.
const RECOVERY_OF_ALL: Duration = Duration::from_millis(5);
/// Addresses that are counted at a time; beyond, all are forgotten and counted anew.
const MOST_ADDRESSES: usize = 65_536;

/// When each address, and all together, will have all their failures free again.
#[derive(Debug, Default)]
pub struct AuthLimiter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    addresses: HashMap<IpAddr, Instant>,
    all: Option<Instant>,
}

impl AuthLimiter {
    /// Whether a credential from this address may be looked up now.
    pub fn allow(&self, network: IpAddr, now: Instant) -> bool {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |free_at: Option<&Instant>, recovery: Duration, burst: u32| {
            free_at.is_none_or(|free_at| {
                free_at.saturating_duration_since(now) <= recovery * (burst - 1)
            })
        };
        has_room(counted.addresses.get(&network), RECOVERY, BURST)
            && has_room(counted.all.as_ref(), RECOVERY_OF_ALL, BURST_OF_ALL)
    }

    pub fn count_failure(&self, network: IpAddr, now: Instant) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = &mut counted.addresses;
        if addresses.len() >= MOST_ADDRESSES {
            addresses.retain(|_, free_at| *free_at > now);
        }
        if addresses.len() >= MOST_ADDRESSES {
            addresses.clear();
        }
        let free_at = addresses.entry(network).or_insert(now);
        *free_at = (*free_at).max(now) + RECOVERY;
        counted.all = Some(counted.all.map_or(now, |free_at| free_at.max(now)) + RECOVERY_OF_ALL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_some_failures_free_and_then_one_each_second_and_others_are_not_touched() {
        let limiter = AuthLimiter::default();
        let [here, there] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let start = Instant::now();
        let mut allowed = 0;
        while limiter.allow(here, start) {
            limiter.count_failure(here, start);
            allowed += 1;
        }
        assert_eq!(allowed, BURST);
        assert!(limiter.allow(there, start));
        let later = start + RECOVERY;
        assert!(limiter.allow(here, later));
        limiter.count_failure(here, later);
        assert!(!limiter.allow(here, later));
        let rested = start + RECOVERY * (BURST + 2);
        (0..BURST).for_each(|_| {
            assert!(limiter.allow(here, rested));
            limiter.count_failure(here, rested);
        });
        assert!(!limiter.allow(here, rested));
    }
    #[test]
    fn c6_many_addresses_together_have_some_failures_free_and_then_two_hundred_each_second() {
        let limiter = AuthLimiter::default();
        let start = Instant::now();
        let guess = |number: u32, now: Instant| {
            let network = IpAddr::from(number.to_be_bytes());
            let allowed = limiter.allow(network, now);
            if allowed {
                limiter.count_failure(network, now);
            }
            allowed
        };
        assert_eq!(
            (0..10_000).filter(|number| guess(*number, start)).count(),
            BURST_OF_ALL as usize
        );
        let later = start + Duration::from_secs(1);
        assert_eq!(
            (10_000..20_000)
                .filter(|number| guess(*number, later))
                .count(),
            200
        );
    }
}
