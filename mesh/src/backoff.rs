//! How long to wait before trying again.

use std::time::Duration;

/// The longest wait before the first new attempt, and between attempts when many have failed.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(20);

/// Full jitter: any time up to a bound that doubles with each failure, so that thousands of agents
/// do not come back at one moment. `random` is what of the bound is waited, as a share of 2³².
pub fn backoff(failures: u32, random: u32) -> Duration {
    let bound = LONGEST.min(SHORTEST.saturating_mul(2u32.saturating_pow(failures)));
    bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Holds back what takes too much time, or comes too often: work of a burst's length may follow at
/// once, then as much as the time that goes by (the generic cell rate algorithm of ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    burst: Duration,
    /// When all that came would be done, one after the other; a time of a clock that only goes
    /// forward.
    done_at: Duration,
}

impl Pace {
    pub fn new(burst: Duration) -> Self {
        Self {
            burst,
            done_at: Duration::ZERO,
        }
    }

    /// How long the next work has to wait at `now`.
    pub fn wait(&self, now: Duration) -> Duration {
        self.done_at.saturating_sub(now + self.burst)
    }

    /// Work of this length comes at `now`.
    pub fn take(&mut self, length: Duration, now: Duration) {
        self.done_at = self.done_at.max(now) + length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_may_come_at_once_and_then_as_much_as_time_goes_by() {
        let second = Duration::from_secs(1);
        let (mut pace, mut now) = (Pace::new(second * 3), second * 100);
        let mut next = |length, now| {
            pace.take(second * length, now);
            pace.wait(now).as_secs()
        };
        for _ in 0..2 {
            assert_eq!([1; 5].map(|length| next(length, now)), [0, 0, 0, 1, 2]);
            now += second * 10;
        }
        // Whoever waits as told goes on at the pace.
        assert_eq!([1; 4].map(|length| next(length, now)), [0, 0, 0, 1]);
        for _ in 0..5 {
            now += second;
            assert_eq!(next(1, now), 1);
        }
        // What takes long is paid for by a long wait.
        now += second * 10;
        assert_eq!(next(20, now), 17);
    }

    #[test]
    fn waits_are_a_random_share_of_a_bound_that_grows_to_its_limit() {
        assert_eq!(backoff(0, u32::MAX), SHORTEST);
        assert_eq!(backoff(3, u32::MAX), SHORTEST * 8);
        assert_eq!(backoff(1000, u32::MAX), LONGEST);
        assert_eq!(
            (backoff(0, 0), backoff(1000, 0)),
            (Duration::ZERO, Duration::ZERO)
        );
        assert!(backoff(5, 1 << 31) < backoff(5, 1 << 30) * 3);
    }
}
