//! The coordinator's clock, and how this host's differs from it.

use std::sync::{Mutex, PoisonError};

use nix::time::{ClockId, clock_gettime};
use wattle_mesh::health::clock;

/// The coordinator's clock as its last answer told it. A clock that nobody sets carries it on, so
/// that a jump of this host's is seen at once.
#[derive(Debug, Default)]
pub(crate) struct CoordinatorClock(Mutex<Option<ToldTime>>);

/// What time it was there, in seconds since 1970, and how long this host had been on, suspended or
/// not.
#[derive(Clone, Copy, Debug)]
struct ToldTime {
    unix_s: i64,
    since_boot_s: i64,
}

impl CoordinatorClock {
    /// Takes note of what time it is there.
    pub(crate) fn learn(&self, unix_s: i64) {
        let since_boot_s = since_boot_s();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ToldTime {
            unix_s,
            since_boot_s,
        });
    }

    /// Seconds since 1970 at which a token is made: by the coordinator's clock, as far as that is
    /// believed; by this host's before an answer told it.
    pub(crate) fn for_tokens_s(&self) -> i64 {
        self.there_s()
            .map_or_else(own_s, |there| clock::for_tokens(own_s(), there))
    }

    /// Milliseconds since 1970 at which a report is made.
    pub(crate) fn for_reports_ms(&self) -> i64 {
        clock::for_reports(chrono::Utc::now().timestamp_millis(), self.for_tokens_s())
    }

    /// Seconds by which this host's clock is ahead; `None` before an answer told it.
    pub(crate) fn ahead_s(&self) -> Option<i64> {
        self.there_s().map(|there| own_s().saturating_sub(there))
    }

    /// Why the coordinator refuses this node, if that is because of the clock.
    pub(crate) fn keeps_out(&self) -> Option<String> {
        clock::keeps_out(own_s(), self.ahead_s()?)
    }

    /// Seconds since 1970 by the coordinator's clock; `None` before an answer told it.
    fn there_s(&self) -> Option<i64> {
        let told = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.map(|told| {
            let passed = since_boot_s().saturating_sub(told.since_boot_s);
            told.unix_s.saturating_add(passed)
        })
    }
}

fn own_s() -> i64 {
    chrono::Utc::now().timestamp()
}

fn since_boot_s() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinators_time_goes_on_from_what_it_told() {
        let clock = CoordinatorClock::default();
        assert_eq!(clock.ahead_s(), None);
        assert!(clock.for_tokens_s().abs_diff(own_s()) <= 1);
        clock.learn(own_s() - 3600);
        let ahead = clock.ahead_s().unwrap();
        assert!((3599..=3601).contains(&ahead), "{ahead}");
        assert!(clock.for_tokens_s().abs_diff(own_s() - 3600) <= 1);
    }
}
