//! Reports to the coordinator: how this node, its host and its links are.

use std::{collections::BTreeSet, time::Duration};

use wattle_wire::{
    endpoint::Endpoint,
    report::{LinkReport, Report, Start},
};

use super::{LocalNode, OBSERVE_INTERVAL, Output, Request, Secrets};
use crate::{
    agent::{
        replica::{Known, KnownPeer},
        reporting::{Reporting, fit_problems},
    },
    host::state::ObservedPeer,
    keys::rotation::canary::keys_in_place,
};

/// What the coordinator was told, and what it is being told.
#[derive(Debug)]
pub(super) struct Reporter {
    start: Option<Start>,
    reporting: Reporting,
    on_its_way: Option<OnItsWay>,
    /// Nothing is told before: the last report did not arrive.
    silent_until: Option<Duration>,
}

#[derive(Debug)]
struct OnItsWay {
    report: Box<Report>,
    links: usize,
    since: Duration,
    /// The coordinator may be another one by now, which has not heard of it.
    is_forgotten: bool,
}

impl Reporter {
    pub(super) fn new(start: Option<Start>) -> Self {
        Self {
            start,
            reporting: Reporting::default(),
            on_its_way: None,
            silent_until: None,
        }
    }

    /// The coordinator may have forgotten what it was told: the next report is of all, and due.
    pub(super) fn forget(&mut self) {
        self.reporting.forget();
        self.silent_until = None;
        if let Some(on_its_way) = &mut self.on_its_way {
            on_its_way.is_forgotten = true;
        }
    }

    pub(super) fn replied(&mut self, is_taken: bool, now: Duration) {
        let Some(told) = self.on_its_way.take() else {
            return;
        };
        if is_taken && !told.is_forgotten {
            self.reporting.told(&told.report, told.links, told.since);
        } else if !is_taken {
            // The next one is due at once; a coordinator in trouble is not asked more often than
            // the host is observed.
            self.silent_until = Some(now + OBSERVE_INTERVAL);
        }
    }

    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.silent_until.filter(|_| self.on_its_way.is_none())
    }

    fn is_silent(&mut self, now: Duration) -> bool {
        self.silent_until = self.silent_until.filter(|until| now < *until);
        self.on_its_way.is_some() || self.silent_until.is_some()
    }
}

impl<S: Secrets> LocalNode<S> {
    /// Sends the report that is due, if any.
    pub(super) fn report(&mut self) {
        let now = self.now.elapsed;
        if self.reporter.is_silent(now) {
            return;
        }
        let Some(known) = self.replica.known() else {
            return;
        };
        let full = self.account(known);
        let links = full.links.len();
        let Some(report) = self.reporter.reporting.due(full, now) else {
            return;
        };
        let report = Box::new(report);
        self.reporter.on_its_way = Some(OnItsWay {
            report: report.clone(),
            links,
            since: now,
            is_forgotten: false,
        });
        self.outputs
            .push_back(Output::Send(Request::Report(report)));
    }

    /// The whole account of this node. Without an interface all its links are down; where the host
    /// cannot be observed, nothing is said of them.
    fn account(&self, known: &Known) -> Report {
        let observed = self.host();
        let interface = observed.and_then(|observed| observed.interface.as_ref());
        // A coordinator refuses a report of many more links than it has.
        let is_there = |peer: &&KnownPeer| !self.replica.is_given_up(peer.peer.node);
        let peers = observed.map(|_| known.peers.values().filter(is_there));
        let none = ObservedPeer::default();
        let links = peers.into_iter().flatten().map(|peer| {
            let node = peer.peer.node;
            let found = interface
                .and_then(|interface| peer.entry(interface))
                .unwrap_or(&none);
            let endpoint = found.endpoint;
            LinkReport {
                peer: node,
                handshake_age_s: found.handshake_age_s,
                received_bytes: found.received_bytes,
                sent_bytes: found.sent_bytes,
                endpoint: endpoint.and_then(|endpoint| Endpoint::try_from(endpoint).ok()),
                probe: self.probes.get(&node).copied(),
            }
        });
        let mut keys_in_place = interface
            .map(|found| keys_in_place(known, &self.node_keys, found, self.psks.exchange()))
            .unwrap_or_default();
        keys_in_place.retain(|key| !self.replica.is_given_up(key.peer));
        let returned: BTreeSet<_> = self.replica.returned();
        Report {
            applied: known.position,
            device: interface.map(|interface| interface.device),
            mtu: interface.map(|interface| interface.mtu),
            links: links.collect(),
            problems: fit_problems(self.problems(known)),
            held: self.replica.held(),
            returned: returned.into_iter().take(Report::MOST_RETURNED).collect(),
            locked: known.admitted.is_some(),
            keys_in_place,
            start: self.reporter.start,
            number: None,
        }
    }
}
