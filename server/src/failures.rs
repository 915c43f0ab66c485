//! Failed credentials, counted by where they come from, so that guessing them is slow and costs the database nothing.
//!
//! Only failures count, and only those that would have to be looked up; whoever has shown a good credential before is not asked. Loopback is
//! not counted: a proxy may stand there for everybody.

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
/// Addresses that are counted at a time; beyond, all are forgotten and counted anew.
const MOST_ADDRESSES: usize = 65_536;

/// When each address will have all its failures free again.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<IpAddr, Instant>>);

impl Failures {
    /// Whether a credential from this address may be looked up now.
    pub fn allow(&self, network: IpAddr, now: Instant) -> bool {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(&network).is_none_or(|free_at| free_at.saturating_duration_since(now) <= RECOVERY * (BURST - 1))
    }

    pub fn count(&self, network: IpAddr, now: Instant) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.len() >= MOST_ADDRESSES {
            counted.retain(|_, free_at| *free_at > now);
        }
        if counted.len() >= MOST_ADDRESSES {
            counted.clear();
        }
        let free_at = counted.entry(network).or_insert(now);
        *free_at = (*free_at).max(now) + RECOVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_some_failures_free_and_then_one_each_second_and_others_are_not_touched() {
        let failures = Failures::default();
        let [here, there] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let start = Instant::now();
        let mut allowed = 0;
        while failures.allow(here, start) {
            failures.count(here, start);
            allowed += 1;
        }
        assert_eq!(allowed, BURST);
        assert!(failures.allow(there, start));
        let later = start + RECOVERY;
        assert!(failures.allow(here, later));
        failures.count(here, later);
        assert!(!failures.allow(here, later));
        let rested = start + RECOVERY * (BURST + 2);
        (0..BURST).for_each(|_| {
            assert!(failures.allow(here, rested));
            failures.count(here, rested);
        });
        assert!(!failures.allow(here, rested));
    }
}
