//! `/removals`: nodes that are out of the mesh, and what operators signed of that.

pub mod queries;

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use wattle_mesh::{
    agent::admission,
    audit::Subject,
    config::{
        directory::{NodeRecord, RecordChange},
        view,
    },
};
use wattle_wire::{
    admin::{Page, Removed, RemovedNode, SomeNodes, Warning},
    ids::NodeId,
    lock::{NewRemovals, Removal, SignedRemoval},
    report::Held,
};

use crate::{
    db::AuditActor,
    error::{self, Error, ErrorCode, Result},
    http::{
        body::{Body, Query},
        page::{self, PageQuery},
    },
    mutation::Mutation,
    state::app::App,
};

/// The event of a removal that was signed.
const CONFIRM: &str = "node.confirm_removal";
/// The largest request of removals, in bytes.
const LARGEST_REMOVALS: usize = 4 * 1024 * 1024;

/// Lists nodes that are out of the mesh, in the order in which they enrolled.
#[utoipa::path(get, path = "/removals", tag = "nodes", params(PageQuery),
    responses((status = 200, body = Page<RemovedNode>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<RemovedNode>>> {
    let (limit, after) = query.read::<NodeId>()?;
    let removed = queries::list(&mut *app.db.begin().await?, after, limit + 1).await?;
    Ok(Json(page::cut(removed.into_iter(), limit, |node| node.id)))
}

/// Stores removals that an operator signed: which nodes are out of the mesh.
///
/// All or none. Each is of a node that was removed, or that a restored database has lost and a
/// gateway still has. A signature has to be that of the operator which the removal names; whether
/// that one may say so, each gateway decides by the keys that its own file names. One that requires
/// the lock carries out such a removal at once, without a confirmation. `wattle-agent lock sign`
/// makes and sends removals.
#[utoipa::path(post, path = "/removals", tag = "nodes", request_body = NewRemovals,
    responses((status = 204)))]
pub async fn confirm(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(NewRemovals { removals }): Body<NewRemovals, LARGEST_REMOVALS>,
) -> Result<Mutation<StatusCode>> {
    if !(1..=NewRemovals::MOST).contains(&removals.len()) {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "removals",
            format!("give 1 to {} removals", NewRemovals::MOST),
        )
        .into());
    }
    let mut words = Vec::with_capacity(removals.len());
    for (index, signed) in removals.iter().enumerate() {
        if signed.removal.len() > SignedRemoval::LONGEST {
            return Err(invalid(index, "the removal is too long"));
        }
        let removal = admission::verify_removal(signed, app.settings.mesh)
            .map_err(|error| invalid(index, &error.to_string()))?;
        words.push(removal);
    }
    let nodes: BTreeSet<_> = words.iter().map(|removal| removal.node).collect();
    if nodes.len() < words.len() {
        return Err(error::invalid(
            ErrorCode::InvalidRemoval,
            "removals",
            "two removals are for the same node",
        )
        .into());
    }
    let (removals, words, nodes) = (&removals, &words, &Vec::from_iter(nodes));
    app.mutate(&actor, |mut change| async move {
        let known = queries::find(&mut change, nodes).await?;
        let stored = queries::stored(&mut change, nodes).await?;
        let mut news = Vec::new();
        let mut subjects = Vec::new();
        for (index, (signed, removal)) in removals.iter().zip(words).enumerate() {
            let node = check(index, removal, &known)?;
            let before = stored.get(&removal.node).map(String::as_str);
            if before != Some(signed.removal.as_str()) {
                news.push((removal.node, signed));
                subjects.push(Subject::removal(removal.node, &node.name, before, removal));
            }
        }
        let mut subjects = subjects.into_iter();
        let Some(first) = subjects.next() else {
            return Ok(change.unchanged(()));
        };
        queries::store(&mut change, &news).await?;
        let record =
            |(node, signed): (NodeId, &SignedRemoval)| RecordChange::Removal(node, signed.clone());
        let records = news.iter().copied().map(record).collect();
        let outcome = change.changed((), records, CONFIRM, first);
        let mut others = subjects.zip(&news[1..]);
        others.try_fold(outcome, |outcome, (subject, news)| {
            outcome.and_event(CONFIRM, subject, Some(record(*news)))
        })
    })
    .await
    .map(|done| done.map(|()| StatusCode::NO_CONTENT))
}

/// Which gateways keep nodes that are about to go until an operator signs that, as far as they have
/// said that they require the lock.
pub(super) fn kept(app: &App, going: &[NodeRecord]) -> Removed {
    let locked = app.reports.locked();
    let names = app.mesh_cache.read(|feed| {
        let directory = feed.directory();
        let keeps = |(node, held): &(&NodeId, &Option<Held>)| {
            let goes = going.iter().any(|gone| gone.id == **node);
            let kept = |gone: &NodeRecord| {
                view::linked(directory, **node, gone.id) && admission::is_kept(gone, held.as_ref())
            };
            !goes && going.iter().any(kept)
        };
        let keepers = locked.iter().filter(keeps);
        let names = keepers.filter_map(|(node, _)| Some(directory.nodes.get(node)?.name.clone()));
        names.collect::<Vec<_>>()
    });
    Removed {
        waits_for_signature: SomeNodes::of(names),
    }
}

/// What a dry run says of a removal.
pub(super) fn warnings(removed: &Removed) -> Vec<Warning> {
    let waits = &removed.waits_for_signature;
    let warning = || Warning {
        code: "removal_waits_for_signature".to_owned(),
        detail: format!(
            "gateways that require the lock keep it until an operator signs the removal with \
             `wattle-agent lock sign`: {waits}"
        ),
    };
    (waits.count > 0).then(warning).into_iter().collect()
}

/// 204, or 200 with the gateways that wait.
pub(super) fn answer(removed: Removed) -> Response {
    match removed.waits_for_signature.count {
        0 => StatusCode::NO_CONTENT.into_response(),
        _ => Json(removed).into_response(),
    }
}

/// Whether a removal is of a node that is out of the mesh.
fn check<'k>(
    index: usize,
    removal: &Removal,
    known: &'k BTreeMap<NodeId, queries::GoneNode>,
) -> Result<&'k queries::GoneNode> {
    match known.get(&removal.node) {
        Some(known) if known.takes_part => Err(invalid(
            index,
            "the node takes part: remove it first, `DELETE /nodes/{node}`",
        )),
        Some(known) if known.identities.contains(&removal.identity) => Ok(known),
        Some(_) | None => Err(invalid(
            index,
            "no node that was removed, and none that a gateway holds, has this id and identity",
        )),
    }
}

fn invalid(index: usize, detail: &str) -> Error {
    error::invalid(
        ErrorCode::InvalidRemoval,
        format!("removals[{index}]"),
        detail,
    )
    .into()
}
