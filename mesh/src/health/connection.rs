//! Whether a gateway's agent is there, and up to date.

use chrono::{DateTime, TimeDelta, Utc};
use wattle_wire::admin::{ConnectionState, NodeConnection};

use crate::health::link::SILENT_S;

/// Seconds for which a node may go without what a revision changed: it says in each summary what
/// it has.
const BEHIND_S: u64 = SILENT_S;

/// The last sign of a node that any coordinator had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    pub at: DateTime<Utc>,
    /// When the first revision was made of those that its host does not have; absent when it has
    /// all.
    pub missed_since: Option<DateTime<Utc>>,
}

/// How a node with an agent is.
///
/// One that was never heard of has the time since it enrolled. Nobody is silent who was not
/// listened to: `listening_since` is when that began.
pub fn connection(
    enrolled_at: DateTime<Utc>,
    sign: Option<Sign>,
    listening_since: DateTime<Utc>,
    now: DateTime<Utc>,
) -> NodeConnection {
    let is_over = |since: DateTime<Utc>, seconds: u64| {
        now - since > TimeDelta::seconds(seconds.cast_signed())
    };
    let last = sign.map_or(enrolled_at, |sign| sign.at);
    let missed = sign.and_then(|sign| sign.missed_since);
    let behind = missed.filter(|since| is_over(*since, BEHIND_S));
    let (state, since) = match behind {
        _ if is_over(last.max(listening_since), SILENT_S) => (ConnectionState::Silent, Some(last)),
        Some(since) => (ConnectionState::Behind, Some(since)),
        None => (ConnectionState::Connected, None),
    };
    NodeConnection { state, since }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds.cast_signed())
    }

    #[test]
    fn a_node_is_silent_or_behind_after_two_summaries_and_a_half_and_says_since_when() {
        let connected = (ConnectionState::Connected, None);
        let silent = |since| (ConnectionState::Silent, Some(at(since)));
        let behind = |since| (ConnectionState::Behind, Some(at(since)));
        let sign = |heard, missed: Option<u64>| {
            Some(Sign {
                at: at(heard),
                missed_since: missed.map(at),
            })
        };
        let limit = SILENT_S;
        for (enrolled, sign, listening, now, expected) in [
            (0, None, 0, limit, connected),
            (0, None, 0, limit + 1, silent(0)),
            (0, sign(500, None), 0, 500 + limit, connected),
            (0, sign(500, None), 0, 501 + limit, silent(500)),
            // The coordinator was away until 700.
            (0, sign(500, None), 700, 700 + limit, connected),
            (0, sign(500, None), 700, 701 + limit, silent(500)),
            (0, sign(1000, Some(900)), 0, 1000, connected),
            (0, sign(1000, Some(900)), 0, 901 + limit, behind(900)),
            (0, sign(500, Some(400)), 0, 501 + limit, silent(500)),
        ] {
            let found = connection(at(enrolled), sign, at(listening), at(now));
            assert_eq!((found.state, found.since), expected, "{sign:?} at {now}");
        }
    }
}
