//! Whether the clock of a host is right, by the coordinator's.

use wattle_wire::{
    ids::EARLIEST_S,
    report::{Problem, ProblemCode},
};

/// Seconds by which a clock may be off; the coordinator takes the agent's tokens up to a minute
/// off.
const MOST_OFF_S: u64 = 30;

/// Milliseconds by which two clocks can seem to differ because their times are told in seconds.
const ROUNDED_MS: u64 = 3_000;

/// Seconds by which the coordinator's word moves the time at which a token is made. By as much a
/// clock may be behind for the coordinator's certificate to be good.
const MOST_MOVED_S: i64 = 2 * 86_400;

/// The time at which a node's tokens are made: that of the coordinator, so that a clock which is a
/// little off keeps nobody out.
///
/// Who has the coordinator could ask for tokens of years to come in that way. So it is never far
/// from the own clock, unless that one is wrong by its own account.
pub fn for_tokens(own_s: i64, coordinator_s: i64) -> i64 {
    if own_s < EARLIEST_S {
        return coordinator_s;
    }
    coordinator_s.clamp(
        own_s.saturating_sub(MOST_MOVED_S),
        own_s.saturating_add(MOST_MOVED_S),
    )
}

/// The time at which a report is made, in milliseconds since 1970: by the own clock, unless that is
/// further from `token_s` than seconds tell. So what is made after a restart is later.
pub fn for_reports(own_ms: i64, token_s: i64) -> i64 {
    let token_ms = token_s.saturating_mul(1000);
    if own_ms.abs_diff(token_ms) <= ROUNDED_MS {
        own_ms
    } else {
        token_ms
    }
}

/// Why the coordinator takes no token of a host whose clock is ahead by so many seconds; nothing if
/// that is no reason.
pub fn keeps_out(own_s: i64, ahead_s: i64) -> Option<String> {
    let is_far = own_s >= EARLIEST_S && ahead_s.unsigned_abs() > MOST_MOVED_S.unsigned_abs();
    let words = problem(ahead_s).filter(|_| is_far)?.words;
    Some(format!(
        "{words}, and this node signs nothing for a time that is so far from its own: {SET_CLOCK}"
    ))
}

/// How a clock is set right.
pub(crate) const SET_CLOCK: &str = "synchronise it: `timedatectl set-ntp true`";

/// What is wrong with a clock that is ahead of the coordinator's by so many seconds.
pub fn problem(ahead_s: i64) -> Option<Problem> {
    let seconds = ahead_s.unsigned_abs();
    if seconds <= MOST_OFF_S {
        return None;
    }
    let side = if ahead_s > 0 { "ahead of" } else { "behind" };
    let words = format!(
        "the clock of this host is about {} {side} the coordinator's",
        about(seconds)
    );
    let remedy = format!(
        "{SET_CLOCK}. If the clock jumps back, tunnels can stay down until it has caught up"
    );
    Some(Problem {
        remedy: Some(remedy),
        ..Problem::new(ProblemCode::Clock, words)
    })
}

/// A time in its largest unit, so that the words do not change with each second.
fn about(seconds: u64) -> String {
    let (number, unit) = match seconds {
        ..120 => return "a minute".to_owned(),
        120..7_200 => (seconds / 60, "minutes"),
        7_200..172_800 => (seconds / 3_600, "hours"),
        172_800.. => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e16_no_token_is_made_for_a_time_far_from_the_own_clock_unless_that_shows_1970() {
        let (now, far) = (EARLIEST_S + 1_000_000, 4 * 365 * 86_400);
        assert_eq!(for_tokens(now, now + 3_600), now + 3_600);
        assert_eq!(for_tokens(now, now - 3_600), now - 3_600);
        assert_eq!(for_tokens(now, now + far), now + MOST_MOVED_S);
        assert_eq!(for_tokens(now, now - far), now - MOST_MOVED_S);
        assert_eq!(for_tokens(now, i64::MAX), now + MOST_MOVED_S);
        assert_eq!(for_tokens(60, now), now);
        assert_eq!(keeps_out(now, MOST_MOVED_S), None);
        assert_eq!(keeps_out(60, -now), None);
        let words = keeps_out(now, far).unwrap();
        assert!(
            words.contains("about 1460 days ahead of the coordinator's"),
            "{words}"
        );
    }

    #[test]
    fn b19_reports_are_made_at_the_coordinators_time_and_later_ones_later() {
        assert_eq!(for_reports(10_400, 10), 10_400);
        assert_eq!(for_reports(10_400, 8), 10_400, "seconds that were cut off");
        assert_eq!(for_reports(10_400, 3_600), 3_600_000);
        assert_eq!(for_reports(3_600_400, 10), 10_000);
        assert_eq!(for_reports(0, i64::MAX), i64::MAX);
    }

    #[test]
    fn a_clock_is_wrong_from_half_a_minute_on_either_side() {
        for fine in [0, 30, -30] {
            assert_eq!(problem(fine), None);
        }
        for (ahead_s, words) in [
            (31, "about a minute ahead of"),
            (-3_600, "about 60 minutes behind"),
            (3 * 86_400 + 5, "about 3 days ahead of"),
            (i64::MIN, "days behind"),
        ] {
            let problem = problem(ahead_s).unwrap();
            assert!(problem.words.contains(words), "{}", problem.words);
            assert_eq!(problem.lan, None);
        }
    }
}
