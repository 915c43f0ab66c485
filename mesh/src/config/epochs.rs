//! When a coordinator begins a new epoch on the word of a node, which may be a lie.

use std::time::Duration;

use wattle_wire::ids::Position;

/// How many epochs a coordinator begins within [`WINDOW`] on the word of nodes.
const MOST: usize = 4;
const WINDOW: Duration = Duration::from_secs(3600);
/// The least time between two of them, in which all nodes say what they have seen.
const APART: Duration = Duration::from_secs(15);

/// What nodes say that they have seen, though the database does not have it.
#[derive(Debug, Default)]
pub struct Claims {
    highest: Option<Position>,
    /// When epochs were begun for it; of [`WINDOW`].
    begun: Vec<Duration>,
}

impl Claims {
    /// A node says that it has seen a position, at a time of a clock that only goes forward, and
    /// at a time in seconds since 1970. The position after which an epoch is to begin now: the
    /// highest that any has named. Nothing that is named is forgotten while that has to wait.
    pub fn hear(&mut self, seen: Position, now: Duration, unix_s: i64) -> Option<Position> {
        if seen.can_have_begun(unix_s) {
            self.highest = self.highest.max(Some(seen));
        }
        self.begun
            .retain(|begun| now.saturating_sub(*begun) < WINDOW);
        let last = self.begun.last();
        let is_due = last.is_none_or(|last| now.saturating_sub(*last) >= APART);
        self.highest.filter(|_| is_due && self.begun.len() < MOST)
    }

    /// The database has what was named, because a new epoch began or by itself.
    pub fn settle(&mut self, began: bool, now: Duration) {
        self.highest = None;
        if began {
            self.begun.push(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn at(epoch: i64) -> Position {
        Position { epoch, revision: 7 }
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn e14_nodes_that_were_driven_to_different_epochs_are_all_answered_with_two() {
        let mut claims = Claims::default();
        assert_eq!(claims.hear(at(100), s(5), NOW_S), Some(at(100)));
        claims.settle(true, s(5));
        for (second, epoch) in [(6, NOW_S), (7, 5_000), (19, 101)] {
            assert_eq!(claims.hear(at(epoch), s(second), NOW_S), None);
        }
        assert_eq!(claims.hear(at(5_000), s(20), NOW_S), Some(at(NOW_S)));
        claims.settle(true, s(20));
        assert_eq!(claims.hear(at(1), s(40), NOW_S), Some(at(1)));
    }

    #[test]
    fn e14_a_liar_gets_four_epochs_an_hour_and_no_number_of_the_future() {
        let mut claims = Claims::default();
        assert_eq!(claims.hear(at(NOW_S + 1), s(0), NOW_S), None);
        assert_eq!(claims.hear(at(i64::MAX), s(0), NOW_S), None);
        let begun = (0..3600).filter(|second| {
            let is_due = claims.hear(at(*second), s(second.unsigned_abs()), NOW_S);
            if is_due.is_some() {
                claims.settle(true, s(second.unsigned_abs()));
            }
            is_due.is_some()
        });
        assert_eq!(begun.count(), MOST);
        assert!(claims.hear(at(9), s(3600), NOW_S).is_some());
    }
}
