//! When a node reports, and what: changes at once, everything in a summary from time to time, never
//! all links at each observation of the host.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use thiserror::Error;
use wattle_wire::{
    endpoint::Endpoint,
    ids::NodeId,
    report::{EndState, LinkReport, Problem, Report, SUMMARY_S, Start},
};

use crate::health::link::end_state;

/// What the coordinator was told, and when.
#[derive(Clone, Debug, Default)]
pub struct Reporting {
    told: Option<Told>,
}

#[derive(Clone, Debug)]
struct Told {
    summary_at: Duration,
    /// The last report, without its links and its number.
    host: Report,
    links: BTreeMap<NodeId, ReportedLink>,
}

/// What of a link is worth telling at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReportedLink {
    state: EndState,
    had_handshake: bool,
    is_probed: bool,
    endpoint: Option<Endpoint>,
}

impl Reporting {
    /// Forgets what the coordinator was told, because it may have forgotten: the next report is a
    /// summary.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// The report that is due at `now`, if any. `full` is the state of the node with all its links;
    /// `now` is of a clock that only goes forward.
    pub fn due(&self, full: Report, now: Duration) -> Option<Report> {
        let Some(told) = &self.told else {
            return Some(full);
        };
        if now.saturating_sub(told.summary_at) >= Duration::from_secs(SUMMARY_S) {
            return Some(full);
        }
        let changed: Vec<_> = full
            .links
            .iter()
            .filter(|link| told.links.get(&link.peer) != Some(&ReportedLink::of(link)))
            .copied()
            .collect();
        let report = Report {
            links: changed,
            ..full
        };
        let host = Report {
            links: Vec::new(),
            number: None,
            ..report.clone()
        };
        (!report.links.is_empty() || host != told.host).then_some(report)
    }

    /// Takes note that a report which was due at `now` has arrived. `links` is how many links the
    /// node has.
    pub fn told(&mut self, report: &Report, links: usize, now: Duration) {
        let is_summary = report.links.len() == links;
        let before = self.told.take();
        let mut known = before
            .as_ref()
            .map(|told| told.links.clone())
            .unwrap_or_default();
        known.extend(
            report
                .links
                .iter()
                .map(|link| (link.peer, ReportedLink::of(link))),
        );
        let summary_at = before
            .filter(|_| !is_summary)
            .map_or(now, |told| told.summary_at);
        self.told = Some(Told {
            summary_at,
            host: Report {
                links: Vec::new(),
                number: None,
                ..report.clone()
            },
            links: known,
        });
    }
}

/// Milliseconds by which a report may be ahead of a coordinator's clock; tokens may be as well.
const MOST_AHEAD_MS: i64 = 60_000;

/// The number of a report at `now_ms`, by the coordinator's clock, after that of the last one.
pub fn next_number(last: Option<i64>, now_ms: i64) -> i64 {
    last.map_or(now_ms, |last| now_ms.max(last.saturating_add(1)))
}

/// Why a report is not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReportRefused {
    #[error("a newer report of this node is known")]
    Late,
    #[error("the number of a report is the time at which it was made, and this one is to come")]
    Future,
}

/// The highest number that counts at `now_ms`. What is higher was noted by a clock that has been
/// set back since, and would silence its node.
pub fn highest_number(now_ms: i64) -> i64 {
    now_ms.saturating_add(MOST_AHEAD_MS)
}

/// Whether a report with this number counts, after the newest that is known of its node.
///
/// # Errors
///
/// [`ReportRefused`] when it does not.
pub fn check_number(
    number: Option<i64>,
    newest: Option<i64>,
    now_ms: i64,
) -> Result<(), ReportRefused> {
    let highest = highest_number(now_ms);
    let newest = newest.filter(|newest| *newest <= highest);
    match (number, newest) {
        (Some(number), _) if number > highest => Err(ReportRefused::Future),
        (Some(number), Some(newest)) if number <= newest => Err(ReportRefused::Late),
        (None, Some(_)) => Err(ReportRefused::Late),
        (Some(_), _) | (None, None) => Ok(()),
    }
}

/// Whether a start that a node reports shows that two machines have its keys: the node was started
/// since then, or another start has its number.
pub fn is_of_a_copy(known: Start, said: Start) -> bool {
    said.number < known.number || said.number == known.number && said.drawn != known.drawn
}

/// Makes problems fit to be reported: they may hold the words of other programs, of any length and
/// form. Those that keep LANs from others come first.
pub fn fit_problems(problems: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let plain = |character: char| {
        if character.is_ascii_graphic() {
            character
        } else {
            ' '
        }
    };
    let fit = |text: &str, longest| text.chars().take(longest).map(plain).collect::<String>();
    let mut problems: Vec<_> = problems
        .map(|problem| Problem {
            subject: fit(&problem.subject, Problem::LONGEST_SUBJECT),
            words: fit(&problem.words, Problem::LONGEST_WORDS),
            // A part of a command would do something else.
            remedy: problem
                .remedy
                .filter(|remedy| remedy.chars().count() <= Problem::LONGEST_REMEDY)
                .map(|remedy| fit(&remedy, Problem::LONGEST_REMEDY)),
            ..problem
        })
        .collect();
    problems.sort_by_key(|problem| Reverse(problem.lan));
    problems.truncate(Report::MOST_PROBLEMS);
    problems
}

impl ReportedLink {
    fn of(link: &LinkReport) -> Self {
        Self {
            state: end_state(link),
            had_handshake: link.handshake_age_s.is_some(),
            is_probed: link.probe.is_some(),
            endpoint: link.endpoint,
        }
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::{
        ids::Position,
        report::{DeviceKind, LanEffect, ProblemCode},
    };

    use super::*;
    use crate::testing::node_id;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn full(ages: &[Option<u64>]) -> Report {
        let link = |(number, age): (u64, &Option<u64>)| LinkReport {
            peer: node_id(number),
            handshake_age_s: *age,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: None,
            probe: None,
        };
        Report {
            applied: Position {
                epoch: 1,
                revision: 1,
            },
            device: Some(DeviceKind::Kernel),
            mtu: None,
            links: (1..).zip(ages).map(link).collect(),
            problems: vec![],
            held: None,
            returned: [].into(),
            locked: false,
            keys_in_place: vec![],
            start: None,
            number: None,
        }
    }

    #[test]
    fn b19_a_report_counts_once_and_only_after_those_before_it() {
        const NOW: i64 = 1_800_000_000_000;
        let check = |number, newest| check_number(number, newest, NOW);
        for (number, newest, counts) in [
            (None, None, Ok(())),
            (Some(NOW), None, Ok(())),
            (Some(NOW), Some(NOW - 1), Ok(())),
            (Some(NOW + MOST_AHEAD_MS), Some(NOW), Ok(())),
            (Some(NOW), Some(NOW), Err(ReportRefused::Late)),
            (Some(NOW - 1), Some(NOW), Err(ReportRefused::Late)),
            (Some(i64::MIN), Some(i64::MIN), Err(ReportRefused::Late)),
            (None, Some(NOW), Err(ReportRefused::Late)),
            (Some(i64::MAX), None, Err(ReportRefused::Future)),
            (
                Some(NOW + MOST_AHEAD_MS + 1),
                Some(NOW),
                Err(ReportRefused::Future),
            ),
            // The coordinator's clock was set back: nobody is silenced by that.
            (Some(NOW), Some(NOW + MOST_AHEAD_MS + 1), Ok(())),
        ] {
            assert_eq!(check(number, newest), counts, "{number:?} {newest:?}");
        }
        // Numbers grow whatever the clock does.
        let mut last = None;
        for now in [NOW, NOW, NOW - 5_000, NOW + 1, NOW + 7] {
            let next = next_number(last, now);
            assert!(last.is_none_or(|last| next > last) && next >= now);
            last = Some(next);
        }
    }

    #[test]
    fn changes_are_told_at_once_and_everything_each_minute() {
        let mut reporting = Reporting::default();
        let mut tell = |report: Report, now: u64| {
            let due = reporting.due(report.clone(), at(now));
            if let Some(due) = &due {
                reporting.told(due, report.links.len(), at(now));
            }
            due
        };
        let first = full(&[Some(1), None]);
        assert_eq!(tell(first.clone(), 0), Some(first));
        assert_eq!(
            tell(full(&[Some(6), None]), 5),
            None,
            "an older handshake that still lives is no news"
        );
        let news = tell(full(&[Some(11), Some(0)]), 10).unwrap();
        assert_eq!(
            news.links.iter().map(|link| link.peer).collect::<Vec<_>>(),
            [node_id(2)]
        );
        let moved = Report {
            applied: Position {
                epoch: 1,
                revision: 2,
            },
            ..full(&[Some(16), Some(5)])
        };
        assert_eq!(
            tell(moved.clone(), 15),
            Some(Report {
                links: vec![],
                ..moved.clone()
            })
        );
        assert_eq!(tell(moved.clone(), 59), None);
        assert_eq!(tell(moved.clone(), 60), Some(moved));
    }

    #[test]
    fn a18_a_start_that_comes_again_after_a_later_one_or_beside_its_like_is_of_a_copy() {
        let start = |number, drawn| Start { number, drawn };
        for (known, said, is_copy) in [
            (start(5, 1), start(5, 1), false),
            (start(5, 1), start(6, 2), false),
            (start(5, 1), start(9, 1), false),
            (start(6, 2), start(5, 1), true),
            (start(5, 1), start(5, 2), true),
        ] {
            assert_eq!(is_of_a_copy(known, said), is_copy, "{known:?} {said:?}");
        }
    }

    #[test]
    fn the_words_of_other_programs_are_made_to_fit() {
        let long = "x".repeat(1000);
        let hostile = Problem {
            subject: long.clone(),
            remedy: Some(long.repeat(2)),
            ..Problem::new(
                ProblemCode::NotApplied,
                format!("nft:\n\terror\u{202e}{long}"),
            )
        };
        let severe = Problem {
            lan: Some(LanEffect::Degraded),
            ..Problem::new(ProblemCode::Route, "astray")
        };
        let all = std::iter::repeat_n(hostile, 100).chain([severe.clone()]);
        let problems = fit_problems(all);
        assert_eq!(problems.len(), Report::MOST_PROBLEMS);
        assert_eq!(
            problems[0], severe,
            "what counts most is told whatever else is"
        );
        assert!(problems[1..].iter().all(|problem| {
            problem.words.starts_with("nft:  error x")
                && problem.words.chars().count() == Problem::LONGEST_WORDS
                && problem.subject.chars().count() == Problem::LONGEST_SUBJECT
                && problem.remedy.is_none()
        }));
    }

    #[test]
    fn a_coordinator_that_may_have_forgotten_is_told_everything() {
        let mut reporting = Reporting::default();
        let report = full(&[Some(1)]);
        reporting.told(&report, 1, at(0));
        assert_eq!(reporting.due(report.clone(), at(1)), None);
        reporting.forget();
        assert_eq!(reporting.due(report.clone(), at(1)), Some(report));
    }
}
