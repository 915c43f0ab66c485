//! `POST /agent/report`: what nodes say of themselves and their links.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::{Extension, extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use wattle_mesh::{health, view};
use wattle_wire::{
    admin::NodeReport,
    ids::NodeId,
    report::{LinkReport, Report},
};

use crate::{
    app::App,
    auth::CallingNode,
    body::Body,
    error::{self, Result},
    links::queries,
    text,
};

/// Reports may hold entries of peers that were removed a moment ago; so many more than there are peers.
const SPARE_ENTRIES: usize = 16;
/// An age over ten years is as good as ten years, and keeps every calculation within its range.
const LONGEST_AGE_S: u64 = 10 * 365 * 24 * 3600;

/// What nodes last said, in the memory of this coordinator.
#[derive(Debug, Default)]
pub struct Reports(Mutex<HashMap<NodeId, Said>>);

#[derive(Debug)]
struct Said {
    report: NodeReport,
    links: BTreeMap<NodeId, LinkDetail>,
}

/// What one end of a link last said of it.
#[derive(Clone, Copy, Debug)]
pub struct LinkDetail {
    pub at: DateTime<Utc>,
    pub last_handshake_at: Option<DateTime<Utc>>,
    pub said: LinkReport,
}

/// Takes a node's report of itself and its links.
#[utoipa::path(post, path = "/agent/report", tag = "agents", request_body = Report, responses((status = 204)))]
pub async fn receive(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Body(report): Body<Report>,
) -> Result<StatusCode> {
    let peers = app.copy.read(|feed| feed.directory().nodes.len().saturating_sub(1));
    check(&report, peers)?;
    // The last entry of a peer counts; those of strangers, and of the node itself, do not.
    let known: BTreeMap<_, _> = app.copy.read(|feed| {
        let linked = report.links.iter().filter(|link| view::linked(feed.directory(), node, link.peer));
        linked.map(|link| (link.peer, *link)).collect()
    });
    let states: Vec<_> = known
        .values()
        .map(|link| queries::EndState { peer: link.peer, up: health::is_fresh(link.handshake_age_s), ever: link.handshake_age_s.is_some() })
        .collect();
    queries::store(app.db.requests(), node, &states).await?;
    app.reports.keep(node, report, known, Utc::now());
    Ok(StatusCode::NO_CONTENT)
}

fn check(report: &Report, peers: usize) -> Result<()> {
    let most = peers + SPARE_ENTRIES;
    if report.links.len() > most {
        return Err(error::invalid("too_many", "links", format!("a report of this mesh has at most {most} links")).into());
    }
    if report.problems.len() > Report::MOST_PROBLEMS {
        return Err(error::invalid("too_many", "problems", format!("a report has at most {} problems", Report::MOST_PROBLEMS)).into());
    }
    report.problems.iter().enumerate().try_for_each(|(index, problem)| text::check(&format!("problems[{index}]"), problem))
}

impl Reports {
    /// What a node last said of itself.
    pub fn last(&self, node: NodeId) -> Option<NodeReport> {
        self.lock().get(&node).map(|said| said.report.clone())
    }

    /// What a node last said of its link with another.
    pub fn link(&self, node: NodeId, peer: NodeId) -> Option<LinkDetail> {
        self.lock().get(&node)?.links.get(&peer).copied()
    }

    /// Forgets nodes that do not take part any more.
    pub fn retain(&self, takes_part: impl Fn(NodeId) -> bool) {
        let mut said = self.lock();
        said.retain(|node, _| takes_part(*node));
        said.values_mut().for_each(|said| said.links.retain(|peer, _| takes_part(*peer)));
    }

    fn keep(&self, node: NodeId, report: Report, links: BTreeMap<NodeId, LinkReport>, at: DateTime<Utc>) {
        let Report { applied, device, links: _, problems } = report;
        let report = NodeReport { at, applied, device, problems };
        let details = links.into_iter().map(|(peer, said)| {
            let age = said.handshake_age_s.map(|age| TimeDelta::seconds(age.min(LONGEST_AGE_S).cast_signed()));
            (peer, LinkDetail { at, last_handshake_at: age.map(|age| at - age), said })
        });
        let mut said = self.lock();
        let entry = said.entry(node).or_insert_with(|| Said { report: report.clone(), links: BTreeMap::new() });
        entry.report = report;
        entry.links.extend(details);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
