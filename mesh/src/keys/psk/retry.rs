//! When to say something again that nobody has answered.

/// Seconds after which a message is sent again that nobody has answered; they double up to an hour.
/// The mailbox keeps messages, so this is for those that it lost. The first wait is longer than two
/// nodes take that follow different coordinators.
pub(super) const SHORTEST_RETRY_S: u64 = 4;
pub(super) const LONGEST_RETRY_S: u64 = 3600;

/// When to say something again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub(super) said: u64,
    pub(super) wait: u64,
}

impl Default for Retry {
    /// Due at once.
    fn default() -> Self {
        Self {
            said: 0,
            wait: SHORTEST_RETRY_S,
        }
    }
}

impl Retry {
    pub(super) fn new(now: u64) -> Self {
        Self {
            said: now,
            wait: SHORTEST_RETRY_S,
        }
    }

    pub(super) fn is_due(self, now: u64) -> bool {
        now.abs_diff(self.said) >= self.wait
    }

    pub(super) fn again(&mut self, now: u64) {
        *self = Self {
            said: now,
            wait: LONGEST_RETRY_S.min(self.wait * 2),
        };
    }
}
