//! `/nodes`: enrolled machines.

pub(crate) mod naming;
pub mod queries;

use std::{collections::BTreeSet, slice};

use anyhow::Context;
use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use sqlx::PgConnection;
use wattle_mesh::{
    agent::admission,
    audit::{Edit, Subject},
    config::{
        directory::{NodeRecord, RecordChange, SiteRecord},
        wg_quick::Files,
    },
};
use wattle_wire::{
    admin::{Node, NodePatch, NodeState, Page, Removed},
    ids::NodeId,
    lock::{NewAdmissions, SignedAdmission},
};

use self::queries::Admitted;
use super::removals;
use crate::{
    db::{AuditActor, PendingChange, node_records, site_records},
    error::{self, Error, ErrorCode, Result},
    http::{
        body::{Body, Query},
        page::{self, PageQuery},
        path::Path,
        preconditions::WithEtag,
    },
    mutation::Mutation,
    state::{
        app::App,
        representation::{configured, configured_in, node_in, with_news},
    },
    text,
};

const ADMIT: &str = "node.admit";
/// The largest request of admissions, in bytes.
const LARGEST_ADMISSIONS: usize = 4 * 1024 * 1024;

/// Lists nodes, in the order in which they enrolled.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<Node>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Node>>> {
    let (limit, after) = query.read::<NodeId>()?;
    let page = app.mesh_cache.read(|feed| {
        let directory = feed.directory();
        let files = Files::of(directory);
        let nodes = directory
            .nodes
            .range(page::after(after))
            .filter_map(|(_, record)| node_in(&app.reports, &files, record));
        page::cut(nodes, limit, |node| node.id)
    });
    Ok(Json(page))
}

/// Shows a node.
///
/// Its `ETag` stands for its configuration: what it reports has no part in it.
#[utoipa::path(get, path = "/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "id or name")),
    responses((status = 200, body = Node)))]
pub async fn show(State(app): State<App>, Path(node): Path<String>) -> Result<WithEtag<Node>> {
    let found = app
        .mesh_cache
        .read(|feed| configured_in(feed.directory(), feed.directory().find_node(&node)?));
    let node = WithEtag::new(found.ok_or_else(|| error::not_found("node"))?)?;
    Ok(node.map(|node| with_news_of(&app, node)))
}

fn with_news_of(app: &App, node: Node) -> Node {
    app.mesh_cache
        .read(|feed| with_news(&app.reports, &Files::of(feed.directory()), node))
}

/// Changes a node. Absent fields stay as they are.
///
/// A node that somebody gives a name keeps it whatever becomes of its site's. Only a node of the
/// site itself can have the name of a site, and that one follows it. `"name": null` takes the name
/// away: the node is named after its site again.
#[utoipa::path(patch, path = "/nodes/{node}", tag = "nodes",
    params(("node" = String, Path, description = "id or name")),
    request_body = NodePatch, responses((status = 200, body = Node)))]
pub async fn change(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(node): Path<String>,
    Body(NodePatch { name }): Body<NodePatch>,
) -> Result<Mutation<WithEtag<Node>>> {
    if let Some(Some(name)) = &name {
        text::check_name(name)?;
    }
    let (id, name) = (app.find_node(&node)?, &name);
    let changed = app
        .mutate(&actor, |mut change| async move {
            site_records::lock(&mut change).await?;
            let (before, site) = found(&mut change, id).await?;
            change.check_precondition(&configured(&before, &site))?;
            match name {
                None => {}
                Some(Some(name)) if *name == before.name => {}
                Some(Some(name)) => {
                    naming::give(&mut change, &before, &site.spec.name, name).await?
                }
                Some(None) => naming::take_back(&mut change, &before, &site.spec.name).await?,
            }
            let (after, site) = found(&mut change, id).await?;
            if after == before {
                return Ok(change.unchanged((after, site)));
            }
            let value = (after.clone(), site);
            change
                .changed_node(value, naming::RENAME, &before, after)
                .await
        })
        .await?;
    changed.try_map(|(node, site)| {
        let node = WithEtag::new(configured(&node, &site))?;
        Ok(node.map(|node| with_news_of(&app, node)))
    })
}

/// Revokes a node for good: its stream ends, its peers remove it, its keys never enrol again.
///
/// A further node of its site takes its place. Gateways that require the lock keep a node that an
/// operator let in until an operator signs its removal (`wattle-agent lock sign`), or until somebody
/// confirms it there: the answer is then 200 and names them.
#[utoipa::path(delete, path = "/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "id or name")),
    responses((status = 204), (status = 200, body = Removed)))]
pub async fn revoke(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(node): Path<String>,
) -> Result<Mutation<Response>> {
    let (app, id) = (&app, app.find_node(&node)?);
    let removed = app.mutate(&actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let (node, site) = as_seen(&mut change, id).await?;
        let site = site.spec.name;
        queries::revoke(&mut change, id)
            .await?
            .ok_or_else(|| error::not_found("node"))?;
        let mut records = vec![RecordChange::NodeRevoked(id)];
        let promoted = queries::promote(&mut change, node.site).await?;
        records.extend(promoted.clone().map(RecordChange::Node));
        let removed = removals::kept(app, slice::from_ref(&node));
        let subject = Subject::revoked(&site, &node, &removed);
        let warnings = removals::warnings(&removed);
        let outcome = change.changed(removed, records, "node.revoke", subject);
        let outcome = outcome.with_warnings(warnings);
        let Some(after) = promoted else {
            return Ok(outcome);
        };
        let before = NodeRecord {
            state: NodeState::Standby,
            ..after.clone()
        };
        let edit = Edit::Changed {
            before: &before,
            after: &after,
        };
        let subject = Subject::node(&site, edit);
        outcome.and_event("node.activate", subject, Some(RecordChange::Node(after)))
    });
    Ok(removed.await?.map(removals::answer))
}

/// Compares a node that is about to change with what the caller has seen of it. The caller holds
/// the lock.
pub(crate) async fn as_seen(
    change: &mut PendingChange,
    id: NodeId,
) -> Result<(NodeRecord, SiteRecord)> {
    let (node, site) = found(change, id).await?;
    change.check_precondition(&configured(&node, &site))?;
    Ok((node, site))
}

async fn found(connection: &mut PgConnection, id: NodeId) -> Result<(NodeRecord, SiteRecord)> {
    let node = node_records::find(connection, id)
        .await?
        .ok_or_else(|| error::not_found("node"))?;
    let site = site_records::find(connection, node.site)
        .await?
        .context("a node without its site")?;
    Ok((node, site))
}

/// Stores admissions that an operator signed: which nodes may be in the mesh, and with which
/// prefixes.
///
/// All or none. A signature has to be that of the operator which the admission names; whether that
/// one may say so, each gateway decides by the keys that its own file names. Peers are told at
/// once. `wattle-agent lock sign` makes and sends admissions.
#[utoipa::path(post, path = "/admissions", tag = "nodes", request_body = NewAdmissions, responses((status = 204)))]
pub async fn admit(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(NewAdmissions { admissions }): Body<NewAdmissions, LARGEST_ADMISSIONS>,
) -> Result<Mutation<StatusCode>> {
    if !(1..=NewAdmissions::MOST).contains(&admissions.len()) {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "admissions",
            format!("give 1 to {} admissions", NewAdmissions::MOST),
        )
        .into());
    }
    let invalid = |index: usize, detail: &str| {
        Error::from(error::invalid(
            ErrorCode::InvalidAdmission,
            format!("admissions[{index}]"),
            detail,
        ))
    };
    let mut identities = Vec::with_capacity(admissions.len());
    for (index, signed) in admissions.iter().enumerate() {
        if signed.admission.len() > SignedAdmission::LONGEST {
            return Err(invalid(index, "the admission is too long"));
        }
        let admission = admission::verify_admission(signed, app.settings.mesh)
            .map_err(|error| invalid(index, &error.to_string()))?;
        identities.push(admission.identity);
    }
    if identities.iter().collect::<BTreeSet<_>>().len() < identities.len() {
        return Err(error::invalid(
            ErrorCode::InvalidAdmission,
            "admissions",
            "two admissions are for the same node",
        )
        .into());
    }
    let (admissions, identities) = (&admissions, &identities);
    app.mutate(&actor, |mut change| async move {
        let known = queries::by_identity(&mut change, identities).await?;
        let mut news = Vec::new();
        for (index, (signed, identity)) in admissions.iter().zip(identities).enumerate() {
            let node = known
                .get(identity)
                .ok_or_else(|| invalid(index, "no node has this identity"))?;
            if node.admission.as_ref() != Some(&signed.admission) {
                news.push((node, signed));
            }
        }
        let record = |(node, signed): &(&Admitted, &SignedAdmission)| {
            RecordChange::Admission(node.id, SignedAdmission::clone(signed))
        };
        let subject = |(node, signed): &(&Admitted, &SignedAdmission)| {
            let before = node.admission.as_deref();
            Subject::admission((node.id, &node.name), &node.site, before, signed)
        };
        let Some((first, others)) = news.split_first() else {
            return Ok(change.unchanged(()));
        };
        let signed: Vec<_> = news
            .iter()
            .map(|(node, signed)| (node.id, *signed))
            .collect();
        queries::admit(&mut change, &signed).await?;
        let records = news.iter().map(record).collect();
        let outcome = change.changed((), records, ADMIT, subject(first));
        others.iter().try_fold(outcome, |outcome, news| {
            outcome.and_event(ADMIT, subject(news), Some(record(news)))
        })
    })
    .await
    .map(|done| done.map(|()| StatusCode::NO_CONTENT))
}
