//! What is counted as it happens, for `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    core::Collector, process_collector::ProcessCollector,
};
use tokio_util::sync::CancellationToken;
use wattle_wire::ids::Position;

use super::mesh_cache::MeshCache;

/// Revisions of which it is remembered when this coordinator saw them first.
const REMEMBERED: usize = 1000;
/// Seconds; from one machine to another on a LAN, up to an agent that was away for a while.
const PROPAGATION_S: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// What is counted as it happens. What can be looked up is looked up when somebody asks.
#[derive(Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub requests: IntCounterVec,
    pub durations: HistogramVec,
    propagation: Histogram,
    /// Revision → when this coordinator saw it.
    seen: Mutex<BTreeMap<i64, Instant>>,
}

impl Metrics {
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("wattle_requests_total", "Requests that were answered."),
            &["method", "route", "status"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "wattle_request_duration_seconds",
                "Time until the answer to a request began. Streams last longer.",
            ),
            &["route"],
        )?;
        let propagation = Histogram::with_opts(
            HistogramOpts::new(
                "wattle_propagation_seconds",
                "Time from when this coordinator saw a revision until an agent reported that its \
                 host applied it.",
            )
            .buckets(PROPAGATION_S.to_vec()),
        )?;
        let build_info = IntGaugeVec::new(
            Opts::new(
                "wattle_build_info",
                "The version of this program; always 1.",
            ),
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let collectors: [Box<dyn Collector>; 5] = [
            Box::new(build_info),
            Box::new(requests.clone()),
            Box::new(durations.clone()),
            Box::new(propagation.clone()),
            Box::new(ProcessCollector::for_self()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        Ok(Self {
            registry,
            requests,
            durations,
            propagation,
            seen: Mutex::default(),
        })
    }

    /// This coordinator's cache has come to a position.
    pub fn saw(&self, position: Position) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(position.revision).or_insert_with(Instant::now);
        while seen.len() > REMEMBERED {
            seen.pop_first();
        }
    }

    /// A node says that its host follows a position; before it said another, or nothing yet.
    pub fn applied(&self, before: Option<Position>, now: Position) {
        let Some(before) = before else { return };
        if now.epoch != before.epoch || now.revision <= before.revision {
            return;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Revisions that came at once were seen as the last of them.
        if let Some((_, at)) = seen.range(now.revision..).next() {
            self.propagation.observe(at.elapsed().as_secs_f64());
        }
    }

    /// Notes each new position, until the coordinator stops.
    pub async fn follow(&self, mesh_cache: &MeshCache, stop: &CancellationToken) {
        let mut position = mesh_cache.subscribe();
        loop {
            let now = *position.borrow_and_update();
            self.saw(now);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = position.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(revision: i64) -> Position {
        Position { epoch: 1, revision }
    }

    #[test]
    fn propagation_counts_each_step_forward_of_an_agent_once() {
        let metrics = Metrics::new().unwrap();
        metrics.saw(position(5));
        metrics.saw(position(9));
        let counted = |before, now| {
            let had = metrics.propagation.get_sample_count();
            metrics.applied(before, now);
            metrics.propagation.get_sample_count() - had
        };
        assert_eq!(
            counted(None, position(9)),
            0,
            "who comes back after a restart was not slow"
        );
        assert_eq!(counted(Some(position(5)), position(7)), 1);
        assert_eq!(counted(Some(position(9)), position(9)), 0);
        assert_eq!(counted(Some(position(9)), position(8)), 0);
        assert_eq!(
            counted(Some(position(9)), position(10)),
            0,
            "nobody saw that one yet"
        );
    }
}
