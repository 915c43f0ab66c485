//! Whether a node is where it says it is: where it names its endpoint itself, few send packets
//! there before it was met there.
//!
//! Else one machine with a join token could turn the first packets of a whole mesh on whomever it
//! likes.

use std::ops::Bound;

use chrono::{DateTime, TimeDelta, Utc};
use wattle_wire::{endpoint::Endpoint, ids::NodeId, report::LinkReport};

pub use crate::config::directory::CheckState;
use crate::{
    config::{directory::Directory, view},
    host::state::SESSION_S,
};

/// So many peers try an endpoint, and no more: an entry of WireGuard that has an endpoint keeps it,
/// so each goes on sending 148 bytes now and then.
const MOST: u32 = 3;
/// For how long a peer tries before another does.
const TRY_LIMIT: TimeDelta = TimeDelta::seconds(60);

/// The check that is to follow: by the next of the node's peers, in order of their ids, that was
/// heard of lately.
///
/// `None` while the present one is given time, when enough have tried, or when nobody is there.
pub fn next(
    directory: &Directory,
    node: NodeId,
    check: &CheckState,
    now: DateTime<Utc>,
    is_heard: impl Fn(NodeId) -> bool,
) -> Option<CheckState> {
    let is_due = check.tries < MOST && check.since.is_none_or(|since| now - since >= TRY_LIMIT);
    let last = check.by.unwrap_or(node);
    let later = directory
        .nodes
        .range((Bound::Excluded(last), Bound::Unbounded));
    let mut others = later
        .chain(directory.nodes.range(..last))
        .map(|(other, _)| *other)
        .filter(|_| is_due);
    let by = others.find(|other| view::linked(directory, node, *other) && is_heard(*other))?;
    Some(CheckState {
        by: Some(by),
        since: Some(now),
        tries: check.tries + 1,
    })
}

/// Whether a peer has met a node at its endpoint's address: they have shaken hands, and its packets
/// come from there. The port may be another, of a NAT on their way.
pub fn is_met(endpoint: Endpoint, link: &LinkReport) -> bool {
    let seen = link.endpoint.map(|seen| seen.socket().ip());
    link.handshake_age_s.is_some_and(|age| age <= SESSION_S) && seen == Some(endpoint.socket().ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{directory_of, node_id};

    #[test]
    fn e10_an_endpoint_is_tried_by_one_after_another_and_by_no_more_than_three() {
        let directory = directory_of(9);
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let heard = |node| node != node_id(1) && node != node_id(6);
        let mut check = CheckState::default();
        assert_eq!(
            next(&directory, node_id(8), &check, at(0), |_| false),
            None,
            "nobody is there"
        );
        let mut tried = Vec::new();
        for second in 0..600 {
            if let Some(next) = next(&directory, node_id(8), &check, at(second), heard) {
                tried.push((second, next.by));
                check = next;
            }
        }
        assert_eq!(
            tried,
            [
                (0, Some(node_id(9))),
                (60, Some(node_id(2))),
                (120, Some(node_id(3)))
            ]
        );
    }

    #[test]
    fn e10_who_shakes_hands_from_elsewhere_is_not_met() {
        let endpoint = "203.0.113.10:51820".parse().unwrap();
        let link = |age, seen: Option<&str>| LinkReport {
            peer: node_id(1),
            handshake_age_s: age,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: seen.map(|seen| seen.parse().unwrap()),
            probe: None,
        };
        assert!(is_met(endpoint, &link(Some(1), Some("203.0.113.10:51820"))));
        assert!(
            is_met(endpoint, &link(Some(1), Some("203.0.113.10:40000"))),
            "behind a NAT that changes ports"
        );
        assert!(!is_met(
            endpoint,
            &link(Some(1), Some("198.51.100.66:51820"))
        ));
        assert!(
            !is_met(endpoint, &link(None, Some("203.0.113.10:51820"))),
            "it is only tried"
        );
        assert!(
            !is_met(
                endpoint,
                &link(Some(SESSION_S + 1), Some("203.0.113.10:51820"))
            ),
            "they shook hands elsewhere, long ago"
        );
        assert!(!is_met(endpoint, &link(Some(1), None)));
    }
}
