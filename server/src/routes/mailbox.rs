//! `/agent/mailbox`: letters with which nodes agree on preshared keys, and keys that the
//! coordinator gave for tunnels with unmanaged nodes. It can read none of them.

pub mod queries;

use std::collections::BTreeMap;

use axum::{Extension, Json, extract::State};
use wattle_mesh::config::view;
use wattle_wire::{
    ids::NodeId,
    problem::Problem,
    psk::{Errand, Mail, OutgoingLetter, SignedPskMessage},
};

use crate::{
    error::{self, Result},
    http::{auth::CallingNode, body::Body},
    state::app::App,
};

/// Leaves messages for other nodes, deletes those that were handled, and returns what is waiting,
/// in one transaction.
///
/// A node has one letter at a time in the mailbox of another; a new one takes the place of the old.
/// Nobody but the recipient sees it.
#[utoipa::path(post, path = "/agent/mailbox", tag = "agents", request_body = Errand, responses((status = 200, body = Mail)))]
pub async fn exchange(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Body(errand): Body<Errand>,
) -> Result<Json<Mail>> {
    for (field, count) in [("leave", errand.leave.len()), ("taken", errand.taken.len())] {
        if count > Errand::MOST_LETTERS {
            return Err(error::invalid(
                "too_many",
                field,
                format!("at most {} messages at a time", Errand::MOST_LETTERS),
            )
            .into());
        }
    }
    errand
        .leave
        .iter()
        .enumerate()
        .try_for_each(|(index, letter)| check(&app, node, letter, index))?;
    // Each recipient once, and in order, so that two who write to each other's neighbours do not
    // wait for one another.
    let letters: BTreeMap<NodeId, SignedPskMessage> = errand
        .leave
        .into_iter()
        .map(|letter| (letter.to, letter.message))
        .collect();
    let mut transaction = app.db.begin().await?;
    if !errand.taken.is_empty() {
        queries::take(&mut transaction, node, &errand.taken).await?;
    }
    let left = if letters.is_empty() {
        Vec::new()
    } else {
        queries::leave(&mut transaction, node, &letters).await?
    };
    let mail = queries::waiting(&mut transaction, node).await?;
    transaction.commit().await?;
    app.streams.tell_of_mail(left);
    Ok(Json(mail))
}

fn check(app: &App, node: NodeId, letter: &OutgoingLetter, index: usize) -> Result<()> {
    let problem = if letter.message.message.len() > SignedPskMessage::LONGEST {
        error::too_large(SignedPskMessage::LONGEST)
    } else if app
        .mesh_cache
        .read(|feed| !view::linked(feed.directory(), node, letter.to))
    {
        error::not_found("peer")
    } else {
        return Ok(());
    };
    Err(Problem {
        field: Some(format!("leave[{index}]")),
        ..problem
    }
    .into())
}
