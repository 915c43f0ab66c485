//! Whether a link is up, from what its two ends say.

use std::{collections::BTreeMap, net::SocketAddr};

use chrono::{DateTime, TimeDelta, Utc};
use wattle_wire::{
    admin::{EndpointSource, LinkFault, LinkState},
    endpoint::Endpoint,
    ids::NodeId,
    report::{EndState, LinkReport, ProbeReport, SUMMARY_S},
};

use crate::host::state::SESSION_S;

/// Seconds after which an end that has not reported counts as silent: two summaries and a half.
pub const SILENT_S: u64 = SUMMARY_S * 5 / 2;
/// Milliseconds that an end may take to notice what the other one noticed.
const NOTICE_MS: u64 = 10_000;

/// Whether a handshake of this age makes one end of a link up.
pub fn is_fresh(handshake_age_s: Option<u64>) -> bool {
    handshake_age_s.is_some_and(|age| age <= SESSION_S)
}

/// How a node knows the endpoint that it uses for another, of which the mesh says that it is
/// `configured`.
pub fn endpoint_source(used: SocketAddr, configured: Option<Endpoint>) -> EndpointSource {
    match configured {
        Some(configured) if configured.socket() == used => EndpointSource::Configured,
        _ => EndpointSource::Learned,
    }
}

/// A link as one end of it says: by probes where it has them, else by its last handshake.
pub fn end_state(said: &LinkReport) -> EndState {
    found_state(said.probe, said.handshake_age_s)
}

/// The same of a peer, as its gateway finds it itself.
pub fn found_state(probe: Option<ProbeReport>, handshake_age_s: Option<u64>) -> EndState {
    match probe {
        Some(probe) => probe.state,
        None if is_fresh(handshake_age_s) => EndState::Up,
        None => EndState::Down,
    }
}

/// What one end of a link said last that was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndRecord {
    pub state: EndState,
    /// Whether it knows that from probes.
    pub probed: bool,
    /// Whether it ever had a handshake.
    pub ever: bool,
    /// Since when it says so.
    pub since: DateTime<Utc>,
}

/// A link as it is remembered, the end with the lower id first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkRecord {
    pub ends: [Option<EndRecord>; 2],
    /// What its history says last.
    pub recorded: Option<(LinkState, Option<LinkFault>)>,
}

/// When nodes were last heard of.
pub type Heard = BTreeMap<NodeId, DateTime<Utc>>;

impl LinkRecord {
    /// What the two ends say at a moment, and since when that is so.
    pub fn reports(
        &self,
        nodes: [NodeId; 2],
        heard: &Heard,
        now: DateTime<Utc>,
    ) -> ([Option<EndReport>; 2], Option<DateTime<Utc>>) {
        let [a, b] = self.ends;
        let reports = [
            a.map(|end| end.report(heard.get(&nodes[0]), now)),
            b.map(|end| end.report(heard.get(&nodes[1]), now)),
        ];
        let since = self
            .ends
            .iter()
            .zip(&reports)
            .filter_map(|(record, report)| {
                let (record, report) = (record.as_ref()?, report.as_ref()?);
                Some(silent_since_s(report).map_or(record.since, |ago| {
                    now - TimeDelta::seconds(ago.cast_signed())
                }))
            });
        (reports, since.max())
    }
}

impl EndRecord {
    fn report(&self, heard: Option<&DateTime<Utc>>, now: DateTime<Utc>) -> EndReport {
        let last = heard.map_or(self.since, |heard| self.since.max(*heard));
        let ago = |at: DateTime<Utc>| (now - at).num_milliseconds().max(0).unsigned_abs();
        EndReport {
            state: self.state,
            probed: self.probed,
            ever: self.ever,
            changed_ms: ago(self.since),
            age_s: ago(last) / 1000,
        }
    }
}

/// What one end of a link last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndReport {
    pub state: EndState,
    /// Whether it knows that from probes, which go there and back.
    pub probed: bool,
    /// Whether it ever had a handshake.
    pub ever: bool,
    /// Milliseconds since it began to say so.
    pub changed_ms: u64,
    /// Seconds since it said so, or since the node was heard of for the last time, whichever is
    /// later.
    pub age_s: u64,
}

impl EndReport {
    fn is_silent(&self) -> bool {
        self.age_s > SILENT_S
    }

    fn works(&self) -> bool {
        self.state.works() && !self.is_silent()
    }

    /// Whether the node was not heard of since the other end noticed that something changed, or
    /// only just.
    fn precedes(&self, other: &Self) -> bool {
        self.age_s * 1000 + NOTICE_MS >= other.changed_ms
    }
}

/// Whether an end is up now: it said so, and it is not silent.
pub fn end_is_up(end: Option<EndReport>) -> bool {
    end.is_some_and(|end| end.works())
}

/// Seconds since an end that had said "up" counts as silent; `None` when it is not silent, or was
/// not up.
pub fn silent_since_s(end: &EndReport) -> Option<u64> {
    end.age_s
        .checked_sub(SILENT_S)
        .filter(|ago| end.state.works() && *ago > 0)
}

/// What the two ends say, of which an unmanaged one never says anything: there the other's word is
/// all there is, and stands for both.
pub fn spoken_for(ends: [Option<EndReport>; 2], unmanaged: [bool; 2]) -> [Option<EndReport>; 2] {
    match unmanaged {
        [true, _] => [ends[1]; 2],
        [_, true] => [ends[0]; 2],
        [false, false] => ends,
    }
}

/// How a link is, from both ends together: see [`spoken_for`].
///
/// "Up" needs both. Where they disagree, a probe that is newer than what the other end says speaks
/// for it: it went there and back, and the other end, if it still can, will say the same.
pub fn link_health(ends: [Option<EndReport>; 2]) -> (LinkState, Option<LinkFault>) {
    let works = ends.map(end_is_up);
    let asymmetric = (LinkState::Degraded, Some(LinkFault::Asymmetric));
    let one_way = ends
        .iter()
        .flatten()
        .any(|end| end.state == EndState::OneWay && !end.is_silent());
    let not_up = || match ends.iter().flatten().any(|end| end.ever) {
        _ if one_way => asymmetric,
        true => (LinkState::Down, None),
        false => (LinkState::Never, None),
    };
    match (works, ends) {
        ([true, true], _) => quality(ends.iter().flatten()),
        ([false, false], _) => not_up(),
        ([_, _], [Some(a), Some(b)]) => {
            let (newer, older) = if a.changed_ms <= b.changed_ms {
                (a, b)
            } else {
                (b, a)
            };
            match newer.probed && !newer.is_silent() && older.precedes(&newer) {
                true if newer.works() => quality([&newer].into_iter()),
                true => not_up(),
                false if a.is_silent() || b.is_silent() => {
                    (LinkState::Degraded, Some(LinkFault::Silent))
                }
                false => asymmetric,
            }
        }
        ([_, _], [Some(end), None] | [None, Some(end)]) if end.probed => {
            quality([&end].into_iter())
        }
        ([_, _], _) => asymmetric,
    }
}

/// How well a link works that does; the worse end counts.
fn quality<'a>(
    ends: impl Iterator<Item = &'a EndReport> + Clone,
) -> (LinkState, Option<LinkFault>) {
    let says = |state| ends.clone().any(|end| end.state == state);
    if says(EndState::Lossy) {
        (LinkState::Degraded, Some(LinkFault::Lossy))
    } else if says(EndState::Slow) {
        (LinkState::Degraded, Some(LinkFault::Slow))
    } else {
        (LinkState::Up, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Option<EndReport> = Some(EndReport {
        state: EndState::Up,
        probed: false,
        ever: true,
        changed_ms: 0,
        age_s: 0,
    });
    const DOWN: Option<EndReport> = said(EndState::Down);
    const NEVER: Option<EndReport> = Some(EndReport {
        state: EndState::Down,
        probed: false,
        ever: false,
        changed_ms: 0,
        age_s: 0,
    });
    const SILENT: Option<EndReport> = Some(EndReport {
        state: EndState::Up,
        probed: false,
        ever: true,
        changed_ms: 0,
        age_s: SILENT_S + 1,
    });
    const ASYMMETRIC: (LinkState, Option<LinkFault>) =
        (LinkState::Degraded, Some(LinkFault::Asymmetric));

    const fn said(state: EndState) -> Option<EndReport> {
        Some(EndReport {
            state,
            probed: false,
            ever: true,
            changed_ms: 0,
            age_s: 0,
        })
    }

    const fn probed(state: EndState, changed_s: u64, age_s: u64) -> Option<EndReport> {
        Some(EndReport {
            state,
            probed: true,
            ever: true,
            changed_ms: changed_s * 1000,
            age_s,
        })
    }

    #[test]
    fn up_needs_both_ends() {
        assert_eq!(link_health([UP, UP]), (LinkState::Up, None));
        let silent = (LinkState::Degraded, Some(LinkFault::Silent));
        for (other, expected) in [
            (DOWN, ASYMMETRIC),
            (NEVER, ASYMMETRIC),
            (SILENT, silent),
            (None, ASYMMETRIC),
        ] {
            assert_eq!(link_health([UP, other]), expected);
            assert_eq!(link_health([other, UP]), expected);
        }
        assert_eq!(link_health([DOWN, SILENT]), (LinkState::Down, None));
        assert_eq!(link_health([SILENT, None]), (LinkState::Down, None));
        assert_eq!(link_health([NEVER, None]), (LinkState::Never, None));
    }

    #[test]
    fn the_worse_end_counts_of_a_link_that_works() {
        let of = |a, b| link_health([said(a), said(b)]);
        assert_eq!(
            of(EndState::Up, EndState::Slow),
            (LinkState::Degraded, Some(LinkFault::Slow))
        );
        assert_eq!(
            of(EndState::Lossy, EndState::Slow),
            (LinkState::Degraded, Some(LinkFault::Lossy))
        );
        assert_eq!(of(EndState::OneWay, EndState::Down), ASYMMETRIC);
    }

    #[test]
    fn a_probe_speaks_for_the_other_end_until_that_has_had_its_say() {
        let up_for_an_hour = |heard_s| probed(EndState::Up, 3600, heard_s);
        let (down, up) = ((LinkState::Down, None), (LinkState::Up, None));
        // The other gateway lost its power: nobody hears of it any more.
        assert_eq!(
            link_health([probed(EndState::Down, 0, 0), up_for_an_hour(40)]),
            down
        );
        assert_eq!(
            link_health([probed(EndState::Down, 100, 5), up_for_an_hour(140)]),
            down
        );
        // It had just reported, and will notice in a moment.
        assert_eq!(
            link_health([probed(EndState::Down, 1, 1), up_for_an_hour(0)]),
            down
        );
        // It goes on saying that it is answered: somebody drops the probes of the one end only.
        assert_eq!(
            link_health([probed(EndState::Down, 100, 5), up_for_an_hour(30)]),
            ASYMMETRIC
        );
        // The tunnel is back, and one end has noticed.
        assert_eq!(
            link_health([probed(EndState::Up, 0, 0), probed(EndState::Down, 60, 60)]),
            up
        );
        // They just joined, and the other one has not said anything yet.
        let just_joined = probed(EndState::Up, 0, 0);
        assert_eq!(link_health([just_joined, None]), up);
        assert_eq!(link_health([None, just_joined]), up);
        // A handshake says nothing of the other direction.
        assert_eq!(
            link_health([UP, probed(EndState::Down, 60, 60)]),
            ASYMMETRIC
        );
    }

    #[test]
    fn of_a_link_with_an_unmanaged_node_the_other_end_says_how_it_is() {
        let asymmetric = said(EndState::OneWay);
        for (end, expected) in [
            (UP, (LinkState::Up, None)),
            (
                said(EndState::Lossy),
                (LinkState::Degraded, Some(LinkFault::Lossy)),
            ),
            (DOWN, (LinkState::Down, None)),
            (SILENT, (LinkState::Down, None)),
            (NEVER, (LinkState::Never, None)),
            (asymmetric, ASYMMETRIC),
            (None, (LinkState::Never, None)),
        ] {
            assert_eq!(
                link_health(spoken_for([end, None], [false, true])),
                expected,
                "{end:?}"
            );
            assert_eq!(
                link_health(spoken_for([None, end], [true, false])),
                expected,
                "{end:?}"
            );
        }
        assert_eq!(spoken_for([UP, None], [false, false]), [UP, None]);
    }

    #[test]
    fn a_silent_end_is_down_since_its_silence_began_to_count() {
        assert_eq!(SILENT.and_then(|end| silent_since_s(&end)), Some(1));
        assert_eq!(
            [UP, DOWN, NEVER].map(|end| end.and_then(|end| silent_since_s(&end))),
            [None; 3]
        );
    }

    #[test]
    fn a_handshake_is_fresh_for_as_long_as_its_session_lives() {
        assert!(is_fresh(Some(180)));
        assert!(!is_fresh(Some(181)));
        assert!(!is_fresh(None));
    }
}
