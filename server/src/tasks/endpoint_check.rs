//! Has endpoints tried that nodes name themselves, and takes note of who was met there.

pub mod queries;

use std::time::Duration;

use chrono::Utc;
use tokio::time::interval;
use wattle_mesh::config::endpoint_check::{self, CheckState};
use wattle_wire::{endpoint::Endpoint, ids::NodeId};

use crate::{
    db::{AuditActor, node_records, site_records},
    error::Result,
    state::app::App,
};

/// How often the nodes are looked at of which this is not known.
const LOOK: Duration = Duration::from_secs(1);
/// A peer that reported so lately is there to try.
const HEARD: Duration = Duration::from_secs(120);

/// Looks after all trials, again and again. Each coordinator goes by what it hears of the nodes
/// that turn to it.
pub async fn follow(app: &App) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        for check in under_way(app) {
            if let Err(error) = advance(app, &check).await {
                tracing::debug!(node = %check.node, %error, "cannot continue the checks of endpoints now");
            }
        }
    }
}

/// A check of an endpoint that is under way.
#[derive(Debug)]
struct EndpointCheck {
    node: NodeId,
    endpoint: Endpoint,
    state: CheckState,
}

fn under_way(app: &App) -> Vec<EndpointCheck> {
    app.mesh_cache.read(|feed| {
        let checks = feed.directory().nodes.values().filter_map(|node| {
            Some(EndpointCheck {
                node: node.id,
                endpoint: node.endpoint?,
                state: node.endpoint_check.clone()?,
            })
        });
        checks.collect()
    })
}

async fn advance(app: &App, check: &EndpointCheck) -> Result<()> {
    let EndpointCheck {
        node,
        endpoint,
        state: seen,
    } = check;
    let (node, endpoint) = (*node, *endpoint);
    let is_heard = |peer| app.reports.is_heard(peer, HEARD);
    let next = app
        .mesh_cache
        .read(|feed| endpoint_check::next(feed.directory(), node, seen, Utc::now(), is_heard));
    let (next, action) = match (app.reports.is_met(node, endpoint), &next) {
        (true, _) => (None, "node.endpoint.meet"),
        (false, Some(next)) => (Some(next), "node.endpoint.try"),
        (false, None) => return Ok(()),
    };
    let actor = AuditActor::known_as("coordinator");
    app.mutate(&actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let before = node_records::find(&mut change, node).await?;
        let Some(before) = before.filter(|now| now.endpoint_check.as_ref() == Some(seen)) else {
            // Another coordinator was quicker, or the node is gone.
            return Ok(change.unchanged(()));
        };
        queries::set(&mut change, node, next).await?;
        match node_records::find(&mut change, node).await? {
            Some(after) => change.changed_node((), action, &before, after).await,
            None => Ok(change.unchanged(())),
        }
    })
    .await?
    .done()
}
