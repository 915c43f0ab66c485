//! `/agent/mailbox`: messages with which nodes agree on preshared keys, and keys that the
//! coordinator gave for tunnels with unmanaged nodes. It can read none of them.

pub mod queries;

use std::collections::BTreeMap;

use axum::{Extension, Json, extract::State};
use wattle_mesh::config::view;
use wattle_wire::{
    ids::NodeId,
    problem::ProblemDetails,
    psk::{MailboxRequest, MailboxResponse, OutgoingMessage, SignedPskMessage},
};

use crate::{
    error::{self, ErrorCode, Result},
    http::{auth::CallingNode, body::Body},
    state::app::App,
};

/// Leaves messages for other nodes, deletes those that were handled, and returns what is waiting,
/// in one transaction.
///
/// A node has one message at a time in the mailbox of another; a new one takes the place of the
/// old. Nobody but the recipient sees it.
#[utoipa::path(post, path = "/agent/mailbox", tag = "agents", request_body = MailboxRequest, responses((status = 200, body = MailboxResponse)))]
pub async fn exchange(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Body(request): Body<MailboxRequest>,
) -> Result<Json<MailboxResponse>> {
    for (field, count) in [
        ("leave", request.leave.len()),
        ("taken", request.taken.len()),
    ] {
        if count > MailboxRequest::MOST_MESSAGES {
            return Err(error::invalid(
                ErrorCode::TooMany,
                field,
                format!(
                    "at most {} messages at a time",
                    MailboxRequest::MOST_MESSAGES
                ),
            )
            .into());
        }
    }
    request
        .leave
        .iter()
        .enumerate()
        .try_for_each(|(index, message)| check(&app, node, message, index))?;
    // Every request takes hold of messages in one order, by recipient and then by sender: of two
    // nodes that answer each other at the same moment, neither waits for the other.
    let mut before: BTreeMap<NodeId, SignedPskMessage> = request
        .leave
        .into_iter()
        .map(|message| (message.to, message.message))
        .collect();
    let after = before.split_off(&node);
    let mut transaction = app.db.begin().await?;
    let mut left = queries::leave(&mut transaction, node, &before).await?;
    if !request.taken.is_empty() {
        queries::take(&mut transaction, node, &request.taken).await?;
    }
    left.extend(queries::leave(&mut transaction, node, &after).await?);
    let response = queries::waiting(&mut transaction, node).await?;
    transaction.commit().await?;
    app.streams.tell_of_messages(left);
    Ok(Json(response))
}

fn check(app: &App, node: NodeId, message: &OutgoingMessage, index: usize) -> Result<()> {
    let problem = if message.message.message.len() > SignedPskMessage::LONGEST {
        error::too_large(SignedPskMessage::LONGEST)
    } else if app
        .mesh_cache
        .read(|feed| !view::linked(feed.directory(), node, message.to))
    {
        error::not_found("peer")
    } else {
        return Ok(());
    };
    Err(ProblemDetails {
        field: Some(format!("leave[{index}]")),
        ..problem
    }
    .into())
}
