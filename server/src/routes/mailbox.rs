//! `/agent/mailbox`: letters with which nodes agree on preshared keys, and keys that the
//! coordinator gave for tunnels with unmanaged nodes. It can read none of them.

pub mod queries;

use std::{collections::BTreeMap, time::Duration};

use axum::{Extension, Json, extract::State};
use tokio::time::{Instant, sleep};
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

/// How often nodes are told of letters that another coordinator took, or that came before their
/// stream.
const POLL: Duration = Duration::from_secs(2);
/// How often, for some time after there were such letters: two nodes that follow different
/// coordinators agree on a key in four letters.
const POLL_WHILE_BUSY: Duration = Duration::from_millis(100);
/// Longer than another coordinator that is not busy yet takes to see an answer.
const BUSY: Duration = Duration::from_secs(3);

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
        .copy
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

/// Tells nodes of their letters for as long as the coordinator runs.
pub async fn follow(app: &App) {
    let mut busy_until = Instant::now();
    loop {
        if tell(app).await {
            busy_until = Instant::now() + BUSY;
        }
        sleep(if Instant::now() < busy_until {
            POLL_WHILE_BUSY
        } else {
            POLL
        })
        .await;
    }
}

/// Tells each node that follows this coordinator of what waits for it, and whether there was
/// anybody to tell.
pub(crate) async fn tell(app: &App) -> bool {
    let newest = async { queries::newest(&mut *app.db.follow().await?).await };
    match newest.await {
        Ok(newest) => app.streams.tell_of_mail(newest),
        Err(error) => {
            tracing::debug!(%error, "cannot ask the database for new messages; tries again");
            false
        }
    }
}
