//! Which of two keys the initiator has in use while it cannot know which one the responder has.

use serde::{Deserialize, Serialize};

/// Age of a handshake in seconds from which on its renewal seems to fail. WireGuard renews after
/// 120 s (`REKEY_AFTER_TIME` of its paper, section 6.1) with the next packet that is sent, and the
/// session ends after 180.
const STALE_S: u64 = 130;
/// Seconds for which each of two keys is tried in turn: at least two of WireGuard's attempts, which
/// are 5 s apart (`REKEY_TIMEOUT`).
const CANDIDATE_S: u64 = 15;
/// Seconds within which no second handshake follows one that succeeded, and after which one that
/// none has followed did.
const REPEATED_S: u64 = 60;
const HELD_S: u64 = 12;

/// Which of the two keys is in use, and what the handshakes said of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    pub(super) next: bool,
    since: u64,
    /// When the newest handshake was, in seconds since 1970; 0 if none was seen.
    handshake: u64,
    /// It followed another too soon for that to have succeeded.
    doubtful: bool,
}

impl Candidate {
    /// The key of before.
    pub(super) fn before(now: u64) -> Self {
        Self {
            next: false,
            since: now,
            handshake: 0,
            doubtful: false,
        }
    }

    /// Takes note of the newest handshake. Whether the other key is the one in use now; `has_before`
    /// says whether there is a key of before.
    ///
    /// A device may take it for a handshake when it answers one that the other end then cannot read
    /// (gotatun does). So a handshake counts that is not followed by another at once: it proves
    /// nothing, but gives reason to try no other key.
    pub(super) fn observe(
        &mut self,
        handshake_age_s: Option<u64>,
        has_before: bool,
        now: u64,
    ) -> bool {
        let at = handshake_age_s.map(|age| now.saturating_sub(age));
        if let Some(at) = at.filter(|at| *at > self.handshake + 1) {
            self.doubtful = at < self.handshake + REPEATED_S;
            self.handshake = at;
        } else if now >= self.handshake + HELD_S {
            self.doubtful = false;
        }
        let is_stale = self.doubtful || handshake_age_s.is_none_or(|age| age > STALE_S);
        // Without a key of before there is nothing to go back to.
        let may_turn = !self.next || has_before;
        let turns = is_stale && may_turn && now.abs_diff(self.since) >= CANDIDATE_S;
        if turns {
            (self.next, self.since) = (!self.next, now);
        }
        turns
    }
}
