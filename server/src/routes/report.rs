//! `POST /agent/report`: what nodes say of themselves and their links.

use std::collections::BTreeMap;

use axum::{
    Extension,
    extract::{FromRequest, Request, State},
    http::StatusCode,
};
use wattle_mesh::config::view;
use wattle_wire::{
    enrol::SignedStatement,
    ids::NodeId,
    report::{Held, HeldPeer, Problem, Report},
    rotation::KeyInPlace,
};

use crate::{
    error::{self, ErrorCode, Result},
    http::{auth::CallingNode, body::Body},
    state::app::App,
    text,
};

/// The largest report, in bytes: 10,000 links of about 160 bytes each, and as much again.
const LARGEST_REPORT: usize = 4 * 1024 * 1024;
/// Reports may hold entries of peers that were removed a moment ago; so many more than there are
/// peers.
const SPARE_ENTRIES: usize = 16;

/// Takes a node's report of itself and its links.
///
/// It is answered once it is in memory; what of it is new is written to the database a moment
/// later. 429 when reports come faster than that.
#[utoipa::path(post, path = "/agent/report", tag = "agents", request_body = Report, responses((status = 204)))]
pub async fn receive(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    request: Request,
) -> Result<StatusCode> {
    let _turn = app.reports.turn().await?;
    let Body(report) = Body::<Report, LARGEST_REPORT>::from_request(request, &app).await?;
    // The last entry of a peer counts; those of strangers, and of the node itself, do not.
    let known = app.mesh_cache.read(|feed| {
        check(&report, feed.directory().nodes.len().saturating_sub(1))?;
        let linked = report
            .links
            .iter()
            .filter(|link| view::linked(feed.directory(), node, link.peer));
        Ok::<BTreeMap<_, _>, error::Error>(linked.map(|link| (link.peer, *link)).collect())
    })?;
    let mut report = report;
    app.mesh_cache.read(|feed| {
        let counts = |key: &KeyInPlace| view::is_awaited(feed.directory(), node, *key);
        report.keys_in_place.retain(counts);
        let others = |other: &NodeId| view::linked(feed.directory(), node, *other);
        report.returned.retain(others);
    });
    let (before, applied) = (
        app.reports.last(node).map(|before| before.applied),
        report.applied,
    );
    app.reports.keep(node, report, known)?;
    app.metrics.applied(before, applied);
    Ok(StatusCode::NO_CONTENT)
}

fn check(report: &Report, peers: usize) -> Result<()> {
    let most = peers + SPARE_ENTRIES;
    if report.links.len() > most {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "links",
            format!("a report of this mesh has at most {most} links"),
        )
        .into());
    }
    if report.keys_in_place.len() > most {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "armed",
            format!("a report of this mesh has at most {most} announced keys"),
        )
        .into());
    }
    if report.problems.len() > Report::MOST_PROBLEMS {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "problems",
            format!("a report has at most {} problems", Report::MOST_PROBLEMS),
        )
        .into());
    }
    if report.returned.len() > Report::MOST_RETURNED {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "returned",
            format!(
                "a report names at most {} nodes that are back",
                Report::MOST_RETURNED
            ),
        )
        .into());
    }
    if let Some(held) = &report.held
        && held.peers.len() > Held::MOST_PEERS
    {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "held.peers",
            format!("a report names at most {} held peers", Held::MOST_PEERS),
        )
        .into());
    }
    let held = report.held.iter().flat_map(|held| &held.peers).enumerate();
    for (index, peer) in held {
        check_lost(index, peer)?;
    }
    let mut problems = report.problems.iter().enumerate();
    problems.try_for_each(|(index, problem)| check_problem(index, problem))
}

fn check_lost(index: usize, peer: &HeldPeer) -> Result<()> {
    match &peer.lost {
        Some(lost) if lost.statement.statement.len() > SignedStatement::LONGEST => {
            let field = format!("held.peers[{index}].lost.statement.statement");
            let detail = format!("at most {} bytes", SignedStatement::LONGEST);
            Err(error::invalid(ErrorCode::InvalidText, field, detail).into())
        }
        Some(_) | None => Ok(()),
    }
}

fn check_problem(index: usize, problem: &Problem) -> Result<()> {
    let remedy = problem.remedy.as_deref().unwrap_or_default();
    for (field, text, longest) in [
        ("subject", &*problem.subject, Problem::LONGEST_SUBJECT),
        ("words", &*problem.words, Problem::LONGEST_WORDS),
        ("remedy", remedy, Problem::LONGEST_REMEDY),
    ] {
        text::check_within(&format!("problems[{index}].{field}"), text, longest)?;
    }
    Ok(())
}
