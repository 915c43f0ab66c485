//! The links of a mesh as they are watched: which of them to judge anew when something was said, or
//! when time has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use chrono::{DateTime, TimeDelta, Utc};
use wattle_wire::{admin::LinkState, event_stream::LinkStatus, ids::NodeId};

use crate::health::link::{Heard, LinkRecord, SILENT_S, end_is_up, link_health, spoken_for};

/// The two ends of a link, the lower id first.
pub type LinkId = (NodeId, NodeId);

/// What is remembered of all links of which an end ever said something.
#[derive(Debug, Default)]
pub struct TrackedLinks {
    links: BTreeMap<LinkId, Watched>,
    /// How many of these are in each state.
    counts: BTreeMap<LinkState, usize>,
    heard: Heard,
    silent: BTreeSet<NodeId>,
    /// Links of which time alone may change the judgement.
    open: BTreeSet<LinkId>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    record: LinkRecord,
    /// As it was judged last.
    state: LinkState,
}

impl TrackedLinks {
    /// Takes in what was written of links, and when nodes were heard of, if that was read anew;
    /// says which links to judge anew.
    ///
    /// Nobody counts as silent who was not listened to: `listening_since` is when that began.
    pub fn take(
        &mut self,
        changed: Vec<(LinkId, LinkRecord)>,
        heard: Option<Heard>,
        listening_since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> BTreeSet<LinkId> {
        if let Some(heard) = heard {
            self.heard = heard;
        }
        self.heard
            .values_mut()
            .for_each(|at| *at = listening_since.max(*at));
        let is_silent = |at: DateTime<Utc>| now - at > TimeDelta::seconds(SILENT_S.cast_signed());
        let silent: BTreeSet<_> = self
            .heard
            .iter()
            .filter(|(_, at)| is_silent(**at))
            .map(|(node, _)| *node)
            .collect();
        let turned: BTreeSet<_> = silent.symmetric_difference(&self.silent).copied().collect();
        let mut anew: BTreeSet<_> = changed
            .iter()
            .map(|(pair, _)| *pair)
            .chain(self.open.iter().copied())
            .collect();
        if !turned.is_empty() {
            anew.extend(
                self.links
                    .keys()
                    .filter(|(a, b)| turned.contains(a) || turned.contains(b)),
            );
        }
        for (pair, record) in changed {
            let new = || {
                let state = LinkState::Never;
                *self.counts.entry(state).or_default() += 1;
                Watched { record, state }
            };
            self.links.entry(pair).or_insert_with(new).record = record;
        }
        self.silent = silent;
        anew
    }

    /// Nodes that are silent.
    pub fn silent(&self) -> &BTreeSet<NodeId> {
        &self.silent
    }

    /// Forgets links that are none any more.
    pub fn retain(&mut self, is_link: impl Fn(&LinkId) -> bool) {
        self.links.retain(|pair, link| {
            let stays = is_link(pair);
            if !stays {
                *self.counts.entry(link.state).or_default() -= 1;
            }
            stays
        });
        self.open.retain(is_link);
    }

    /// What is remembered of a link.
    pub fn record(&self, pair: &LinkId) -> Option<&LinkRecord> {
        self.links.get(pair).map(|link| &link.record)
    }

    /// How many links were judged last to be in each state, of those of which an end ever said
    /// something; of all others nobody did.
    pub fn counts(&self) -> &BTreeMap<LinkState, usize> {
        &self.counts
    }

    /// How a link is now, of whose ends these are unmanaged.
    pub fn judge(&mut self, pair: LinkId, unmanaged: [bool; 2], now: DateTime<Utc>) -> LinkStatus {
        let ends = [pair.0, pair.1];
        let (reports, since) =
            self.record(&pair)
                .copied()
                .unwrap_or_default()
                .reports(ends, &self.heard, now);
        let reports = spoken_for(reports, unmanaged);
        let says_up = reports.map(|report| report.is_some_and(|report| report.state.works()));
        // An end's own word may be younger than the last sign of its node that was noted.
        let lingers = (0..2).any(|end| self.silent.contains(&ends[end]) && end_is_up(reports[end]));
        if says_up[0] != says_up[1] || lingers {
            self.open.insert(pair);
        } else {
            self.open.remove(&pair);
        }
        let (state, fault) = link_health(reports);
        if let Some(link) = self.links.get_mut(&pair) {
            let before = mem::replace(&mut link.state, state);
            *self.counts.entry(before).or_default() -= 1;
            *self.counts.entry(state).or_default() += 1;
        }
        LinkStatus {
            ends,
            state,
            fault,
            since,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wattle_wire::report::EndState;

    use super::*;
    use crate::health::link::EndRecord;

    const NONE: [bool; 2] = [false; 2];

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    fn up_since(seconds: i64) -> LinkRecord {
        let end = Some(EndRecord {
            state: EndState::Up,
            probed: true,
            ever: true,
            since: at(seconds),
        });
        LinkRecord {
            ends: [end, end],
            recorded: None,
        }
    }

    #[test]
    fn only_links_that_may_have_changed_are_judged_anew() {
        let pairs = [(node(1), node(2)), (node(1), node(3)), (node(2), node(3))];
        let mut links = TrackedLinks::default();
        let heard = |one, two, three| {
            Heard::from([(node(1), at(one)), (node(2), at(two)), (node(3), at(three))])
        };
        let all = links.take(
            pairs.map(|pair| (pair, up_since(0))).to_vec(),
            Some(heard(0, 0, 0)),
            at(0),
            at(0),
        );
        assert_eq!(all, pairs.into());
        assert!(
            all.iter()
                .all(|pair| links.judge(*pair, NONE, at(0)).state == LinkState::Up)
        );
        assert_eq!(
            links.take(vec![], Some(heard(50, 50, 50)), at(0), at(60)),
            [].into(),
            "a sign of life changes nothing"
        );
        assert_eq!(links.take(vec![], None, at(0), at(61)), [].into());

        // Node 3 falls silent.
        let anew = links.take(vec![], Some(heard(200, 200, 50)), at(0), at(201));
        assert_eq!(anew, [pairs[1], pairs[2]].into());
        assert!(
            anew.iter()
                .all(|pair| links.judge(*pair, NONE, at(201)).state == LinkState::Degraded)
        );
        let degraded = links.counts()[&LinkState::Degraded];
        assert_eq!((links.counts().values().sum::<usize>(), degraded), (3, 2));
        // Time may still change what is to be thought of links whose ends disagree; here they do
        // not, the one is silent.
        assert_eq!(
            links.take(vec![], Some(heard(250, 250, 250)), at(0), at(251)),
            [pairs[1], pairs[2]].into()
        );
        assert_eq!(links.judge(pairs[1], NONE, at(251)).state, LinkState::Up);
        links.retain(|pair| pair.0 == node(1));
        assert_eq!(links.counts().values().sum::<usize>(), 2);
    }

    #[test]
    fn nobody_is_silent_to_whom_nobody_listened() {
        let pair = (node(1), node(2));
        let mut links = TrackedLinks::default();
        let heard = Heard::from([(node(1), at(0)), (node(2), at(0))]);
        links.take(vec![(pair, up_since(0))], Some(heard), at(1000), at(1000));
        assert_eq!(links.judge(pair, NONE, at(1000)).state, LinkState::Up);
        assert_eq!(
            links.take(vec![], None, at(1000), at(1151)),
            [pair].into(),
            "silence is noticed without a word"
        );
        assert_eq!(links.judge(pair, NONE, at(1151)).state, LinkState::Down);
    }

    #[test]
    fn a_link_with_an_unmanaged_node_is_up_and_settled_by_the_word_of_the_other_end_alone() {
        let pair = (node(1), node(2));
        let mut links = TrackedLinks::default();
        let LinkRecord { ends: [end, _], .. } = up_since(0);
        let record = LinkRecord {
            ends: [end, None],
            recorded: None,
        };
        links.take(
            vec![(pair, record)],
            Some(Heard::from([(node(1), at(0))])),
            at(0),
            at(0),
        );
        assert_eq!(links.judge(pair, [false, true], at(0)).state, LinkState::Up);
        assert_eq!(
            links.take(
                vec![],
                Some(Heard::from([(node(1), at(50))])),
                at(0),
                at(60)
            ),
            [].into(),
            "the ends do not disagree"
        );
        assert_eq!(
            links.take(
                vec![],
                Some(Heard::from([(node(1), at(50))])),
                at(0),
                at(201)
            ),
            [pair].into()
        );
        assert_eq!(
            links.judge(pair, [false, true], at(201)).state,
            LinkState::Down
        );
        assert_eq!(links.silent(), &[node(1)].into());
    }
}
