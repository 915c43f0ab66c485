//! Whether the clock of a host is right, by the coordinator's.

use wattle_wire::report::{Problem, ProblemCode};

/// Seconds by which a clock may be off; the coordinator takes the agent's tokens up to a minute
/// off.
const MOST_OFF_S: u64 = 30;

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
