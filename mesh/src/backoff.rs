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

/// Holds back what comes too often: so many may follow each other at once, then one in each
/// interval (the generic cell rate algorithm of ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    burst: u32,
    /// When the next one is due if none was early; a time of a clock that only goes forward.
    due: Duration,
}

impl Pace {
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval,
            burst,
            due: Duration::ZERO,
        }
    }

    /// One came at `now`; how long the next one has to wait.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.due = self.due.max(now) + self.interval;
        self.due.saturating_sub(now + self.interval * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_come_at_once_and_then_one_in_each_interval() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second, 3);
        let mut now = second * 100;
        for _ in 0..2 {
            let waits: Vec<_> = (0..5).map(|_| pace.wait(now).as_secs()).collect();
            assert_eq!(waits, [0, 0, 0, 1, 2]);
            now += second * 10;
        }
        // Whoever waits as told goes on at the pace.
        assert!((0..3).all(|_| pace.wait(now).is_zero()));
        for _ in 0..5 {
            let wait = pace.wait(now);
            assert_eq!(wait, second);
            now += wait;
        }
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
