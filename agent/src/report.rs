//! Reports to the coordinator: how this node, its host and its links are. One is on its way at a
//! time.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep};
use tracing::warn;
use wattle_mesh::{
    agent::{
        replica::{Known, KnownPeer},
        reporting::{Reporting, fit_problems, next_number},
    },
    host::state::{Observed, ObservedPeer},
    keys::node_keys::NodeKeys,
};
use wattle_wire::{
    endpoint::Endpoint,
    ids::NodeId,
    report::{Held, LinkReport, ProbeReport, Problem, Report, Start},
};

use crate::{
    coordinator::{Coordinator, RequestError},
    identity::Membership,
    random,
    reconcile::OBSERVE_INTERVAL,
    store::Store,
};

/// How often an agent was started on the state directory.
const STARTS: &str = "starts.json";

/// What the coordinator was told, and what it is being told.
#[derive(Debug)]
pub(crate) struct Reporter {
    start: Option<Start>,
    reporting: Reporting,
    on_its_way: Option<oneshot::Receiver<Option<ToldReport>>>,
    /// The number of the last report, if it was taken.
    last_number: Option<i64>,
}

/// A report that arrived.
#[derive(Debug)]
pub(crate) struct ToldReport {
    report: Report,
    links: usize,
    due_at: Duration,
}

impl Reporter {
    /// Of an agent that has just been started, which is noted in the state directory.
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            start: noted_start(store),
            reporting: Reporting::default(),
            on_its_way: None,
            last_number: None,
        }
    }

    /// The coordinator may have forgotten what it was told: the next report is of all.
    pub(crate) fn forget(&mut self) {
        self.reporting.forget();
    }

    /// Whether a report is on its way.
    pub(crate) fn is_busy(&self) -> bool {
        self.on_its_way.is_some()
    }

    /// The whole account of this node. Without an interface all its links are down; where the host
    /// cannot be observed, nothing is said of them.
    pub(crate) fn account(
        &self,
        known: &Known,
        observed: Option<&Observed>,
        probes: &BTreeMap<NodeId, ProbeReport>,
        problems: impl Iterator<Item = Problem>,
        held: Option<Held>,
    ) -> Report {
        let interface = observed.and_then(|observed| observed.interface.as_ref());
        let peers = observed.map(|_| known.peers.values());
        let none = ObservedPeer::default();
        let links = peers.into_iter().flatten().map(|known| {
            let KnownPeer { peer, .. } = known;
            let found = interface
                .and_then(|interface| known.entry(interface))
                .unwrap_or(&none);
            LinkReport {
                peer: peer.node,
                handshake_age_s: found.handshake_age_s,
                received_bytes: found.received_bytes,
                sent_bytes: found.sent_bytes,
                endpoint: found
                    .endpoint
                    .and_then(|endpoint| Endpoint::try_from(endpoint).ok()),
                probe: probes.get(&peer.node).copied(),
            }
        });
        Report {
            applied: known.position,
            device: interface.map(|interface| interface.device),
            mtu: interface.map(|interface| interface.mtu),
            links: links.collect(),
            problems: fit_problems(problems),
            held,
            returned: BTreeSet::new(),
            locked: known.admitted.is_some(),
            keys_in_place: Vec::new(),
            start: self.start,
            number: None,
        }
    }

    /// Sends what of an account is due at `now`, if anything, without waiting for it. `now` is of a
    /// clock that only goes forward.
    pub(crate) fn go(
        &mut self,
        full: Report,
        now: Duration,
        coordinator: &Arc<Coordinator>,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) {
        let links = full.links.len();
        let Some(mut report) = self.reporting.due(full, now) else {
            return;
        };
        report.number = Some(next_number(self.last_number, coordinator.report_ms()));
        let (sender, receiver) = oneshot::channel();
        self.on_its_way = Some(receiver);
        let (coordinator, node_keys, membership) = (
            Arc::clone(coordinator),
            Arc::clone(node_keys),
            membership.clone(),
        );
        tokio::spawn(async move {
            let told = match coordinator.report(&node_keys, &membership, &report).await {
                Ok(()) => Some(ToldReport {
                    report,
                    links,
                    due_at: now,
                }),
                Err(error @ RequestError::Unreachable { .. }) => {
                    tracing::debug!("the report did not arrive: {error:#}");
                    None
                }
                Err(error) => {
                    warn!("the report was not taken: {error:#}");
                    None
                }
            };
            if told.is_none() {
                // The next one is due at once; a coordinator in trouble is not asked more often
                // than the host is observed.
                sleep(OBSERVE_INTERVAL).await;
            }
            let _ = sender.send(told);
        });
    }

    /// Waits for the report that is on its way; for ever when none is.
    pub(crate) async fn told(&mut self) -> Option<ToldReport> {
        match &mut self.on_its_way {
            Some(receiver) => receiver.await.ok().flatten(),
            None => pending().await,
        }
    }

    /// Takes note of what [`Reporter::told`] waited for.
    pub(crate) fn take_in(&mut self, told: Option<ToldReport>) {
        self.on_its_way = None;
        // After one that was not taken, the time alone counts: the number may have been too high.
        self.last_number = told.as_ref().and_then(|told| told.report.number);
        if let Some(ToldReport {
            report,
            links,
            due_at,
        }) = told
        {
            self.reporting.told(&report, links, due_at);
        }
    }
}

/// Counts this start in the state directory. Without a count the agent runs all the same: only a
/// copy of the directory would go unnoticed.
fn noted_start(store: &Store) -> Option<Start> {
    let noted = || {
        let number = store.read::<i64>(STARTS)?.unwrap_or(0).saturating_add(1);
        store.write(STARTS, &number)?;
        anyhow::Ok(Start {
            number,
            drawn: i64::from_be_bytes(*random::bytes()?),
        })
    };
    noted()
        .inspect_err(|error| warn!("cannot count the starts of the agent: {error:#}"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a18_each_start_has_the_next_number_and_draws_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let starts: Vec<_> = (0..3).map(|_| noted_start(&store).unwrap()).collect();
        assert_eq!(
            starts.iter().map(|start| start.number).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(starts[0].drawn != starts[1].drawn && starts[1].drawn != starts[2].drawn);
    }
}
