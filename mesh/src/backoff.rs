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

#[cfg(test)]
mod tests {
    use super::*;

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
