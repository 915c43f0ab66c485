//! Wrong credentials, counted by where they come from, so that guessing them is slow and costs the
//! database nothing.
//!
//! Only those count that have to be looked up, and each counts until it was found good: many at the
//! same time are no more than one after the other. Whoever has shown a good credential before is
//! not asked. Loopback is not counted: a proxy may stand there for everybody.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::origin::Origin;

/// How many wrong credentials are free, and after which time one more is.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: u32,
    recovery: Duration,
}

/// Of each address (of IPv6: each /64).
const NEAR: Allowance = Allowance {
    burst: 20,
    recovery: Duration::from_secs(1),
};
/// Of each /48 of IPv6.
const FAR: Allowance = Allowance {
    burst: 80,
    recovery: Duration::from_millis(250),
};
/// Of all together, however many there are: what the database looks up without anybody noticing.
const ALL: Allowance = Allowance {
    burst: 2_000,
    recovery: Duration::from_millis(5),
};
/// Networks that are counted at a time; beyond, all are forgotten and counted anew.
const MOST_NETWORKS: usize = 65_536;

/// When each network, and all together, will have all of their allowance again.
#[derive(Debug, Default)]
pub struct AuthLimiter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    networks: HashMap<IpNet, Instant>,
    all: Option<Instant>,
}

impl AuthLimiter {
    /// Counts a credential from there as wrong. `false` if it may not be looked up now, and does
    /// not count.
    pub fn take(&self, origin: Origin, now: Instant) -> bool {
        let mut counted = self.lock();
        let has_room = |network: IpNet| {
            let allowance = Allowance::of(network);
            allowance.has_room(counted.networks.get(&network).copied(), now)
        };
        if !ALL.has_room(counted.all, now) || !origin.networks().all(has_room) {
            return false;
        }
        counted.make_room(now);
        for network in origin.networks() {
            let free_at = counted.networks.entry(network).or_insert(now);
            *free_at = (*free_at).max(now) + Allowance::of(network).recovery;
        }
        counted.all = Some(counted.all.map_or(now, |free_at| free_at.max(now)) + ALL.recovery);
        true
    }

    /// What was counted was not wrong.
    pub fn give_back(&self, origin: Origin) {
        let mut counted = self.lock();
        for network in origin.networks() {
            if let Some(free_at) = counted.networks.get_mut(&network) {
                *free_at -= Allowance::of(network).recovery;
            }
        }
        counted.all = counted.all.map(|free_at| free_at - ALL.recovery);
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn make_room(&mut self, now: Instant) {
        if self.networks.len() >= MOST_NETWORKS {
            self.networks.retain(|_, free_at| *free_at > now);
        }
        if self.networks.len() >= MOST_NETWORKS {
            self.networks.clear();
        }
    }
}

impl Allowance {
    fn of(network: IpNet) -> Self {
        match network.prefix_len() {
            48 => FAR,
            _ => NEAR,
        }
    }

    fn has_room(self, free_at: Option<Instant>, now: Instant) -> bool {
        free_at.is_none_or(|free_at| {
            free_at.saturating_duration_since(now) <= self.recovery * (self.burst - 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    fn taken(limiter: &AuthLimiter, origin: Origin, now: Instant) -> u32 {
        (0..)
            .take_while(|_| limiter.take(origin, now))
            .last()
            .map_or(0, |last| last + 1)
    }

    #[test]
    fn an_address_has_some_failures_free_and_then_one_each_second_and_others_are_not_touched() {
        let limiter = AuthLimiter::default();
        let [here, there] = ["192.0.2.1", "192.0.2.2"].map(origin);
        let start = Instant::now();
        assert_eq!(taken(&limiter, here, start), NEAR.burst);
        assert!(limiter.take(there, start));
        assert_eq!(taken(&limiter, here, start + NEAR.recovery), 1);
        let rested = start + NEAR.recovery * (NEAR.burst + 2);
        assert_eq!(taken(&limiter, here, rested), NEAR.burst);
    }

    #[test]
    fn c14_what_is_looked_up_at_the_same_time_counts_until_it_is_found_good() {
        let (limiter, now) = (AuthLimiter::default(), Instant::now());
        let here = origin("192.0.2.1");
        assert_eq!(taken(&limiter, here, now), NEAR.burst);
        limiter.give_back(here);
        assert_eq!(taken(&limiter, here, now), 1);
    }

    #[test]
    fn c14_the_networks_of_one_48_have_an_allowance_together() {
        let (limiter, now) = (AuthLimiter::default(), Instant::now());
        let allowed: u32 = (0..100)
            .map(|number| taken(&limiter, origin(&format!("2001:db8:0:{number}::1")), now))
            .sum();
        assert_eq!(allowed, FAR.burst);
        assert!(limiter.take(origin("2001:db8:1::1"), now));
    }

    #[test]
    fn c6_many_addresses_together_have_some_failures_free_and_then_two_hundred_each_second() {
        let limiter = AuthLimiter::default();
        let start = Instant::now();
        let guesses = |numbers: std::ops::Range<u32>, now: Instant| {
            let origin = |number: u32| Origin::of(number.to_be_bytes().into());
            numbers
                .filter(|number| limiter.take(origin(*number), now))
                .count()
        };
        assert_eq!(guesses(0..10_000, start), ALL.burst as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(guesses(10_000..20_000, later), 200);
    }
}
