//! Whether a link is up, from what its two ends say.

use wattle_wire::{admin::LinkState, report::SUMMARY_S};

use crate::state::SESSION_S;

/// Seconds after which an end that has not reported counts as silent: two summaries and a half.
const SILENT_S: u64 = SUMMARY_S * 5 / 2;

/// Whether a handshake of this age makes one end of a link up.
pub fn is_fresh(handshake_age_s: Option<u64>) -> bool {
    handshake_age_s.is_some_and(|age| age <= SESSION_S)
}

/// What one end of a link last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndReport {
    /// Whether it had a fresh handshake then.
    pub up: bool,
    /// Whether it ever had one.
    pub ever: bool,
    /// Seconds since it said so, or since the node was heard of for the last time, whichever is later.
    pub age_s: u64,
}

/// Whether an end is up now: it said so, and it is not silent.
pub fn end_is_up(end: Option<EndReport>) -> bool {
    end.is_some_and(|end| end.up && end.age_s <= SILENT_S)
}

/// Seconds since an end that had said "up" counts as silent; `None` when it is not silent, or was not up.
pub fn silent_since_s(end: &EndReport) -> Option<u64> {
    end.age_s.checked_sub(SILENT_S).filter(|ago| end.up && *ago > 0)
}

/// The state of a link from both ends together. "Up" needs both.
pub fn link_state(ends: [Option<EndReport>; 2]) -> LinkState {
    match ends.map(end_is_up) {
        [true, true] => LinkState::Up,
        [false, false] if ends.iter().flatten().any(|end| end.ever) => LinkState::Down,
        [false, false] => LinkState::Never,
        [true, false] | [false, true] => LinkState::Degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Option<EndReport> = Some(EndReport { up: true, ever: true, age_s: 0 });
    const DOWN: Option<EndReport> = Some(EndReport { up: false, ever: true, age_s: 0 });
    const NEVER: Option<EndReport> = Some(EndReport { up: false, ever: false, age_s: 0 });
    const SILENT: Option<EndReport> = Some(EndReport { up: true, ever: true, age_s: SILENT_S + 1 });

    #[test]
    fn up_needs_both_ends() {
        assert_eq!(link_state([UP, UP]), LinkState::Up);
        for other in [DOWN, NEVER, SILENT, None] {
            assert_eq!(link_state([UP, other]), LinkState::Degraded);
            assert_eq!(link_state([other, UP]), LinkState::Degraded);
        }
        assert_eq!(link_state([DOWN, SILENT]), LinkState::Down);
        assert_eq!(link_state([SILENT, None]), LinkState::Down);
        assert_eq!(link_state([NEVER, None]), LinkState::Never);
    }

    #[test]
    fn a_silent_end_is_down_since_its_silence_began_to_count() {
        assert_eq!(SILENT.and_then(|end| silent_since_s(&end)), Some(1));
        assert_eq!([UP, DOWN, NEVER].map(|end| end.and_then(|end| silent_since_s(&end))), [None; 3]);
    }

    #[test]
    fn a_handshake_is_fresh_for_as_long_as_its_session_lives() {
        assert!(is_fresh(Some(180)));
        assert!(!is_fresh(Some(181)));
        assert!(!is_fresh(None));
    }
}
