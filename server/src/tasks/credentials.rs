//! Ends what credentials have open that are good for nothing any more.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::interval;
use wattle_wire::ids::NodeId;

use crate::{
    error::Result,
    http::auth,
    state::{app::App, shares::Credential},
};

/// How often the database is asked which tokens were revoked through other coordinators, were used
/// up or have expired. Of nodes the cache of the mesh tells.
const POLL: Duration = Duration::from_secs(1);

/// Ends what revoked credentials have open, for as long as the coordinator runs.
pub async fn follow(app: &App) {
    tokio::join!(follow_nodes(app), follow_tokens(app));
}

async fn follow_nodes(app: &App) {
    let mut position = app.mesh_cache.subscribe();
    let mut departed = None;
    while position.changed().await.is_ok() {
        let now = app
            .mesh_cache
            .read(|feed| Some((feed.position().epoch, feed.directory().revoked.len())));
        if now != departed {
            departed = now;
            end_nodes(app);
        }
    }
}

async fn follow_tokens(app: &App) {
    let mut ticks = interval(POLL);
    loop {
        ticks.tick().await;
        if let Err(error) = end_tokens(app).await {
            tracing::debug!(%error, "cannot ask which tokens were revoked; asks again");
        }
    }
}

fn end_nodes(app: &App) {
    let nodes: BTreeSet<NodeId> = app
        .mesh_cache
        .read(|feed| feed.directory().nodes.keys().copied().collect());
    for credential in app.shares.in_use() {
        if let Credential::Node(node) = credential
            && !nodes.contains(&node)
        {
            app.shares.end(credential);
        }
    }
}

async fn end_tokens(app: &App) -> Result<()> {
    let tokens = app
        .shares
        .in_use()
        .into_iter()
        .filter_map(|credential| match credential {
            Credential::ApiToken(token) | Credential::JoinToken(token) => Some(token),
            Credential::Node(_) => None,
        });
    let tokens: Vec<_> = tokens.collect();
    if !tokens.is_empty() {
        let ended = auth::ended_tokens(&app.db, &tokens).await?;
        ended.into_iter().for_each(|token| app.forget_token(token));
    }
    Ok(())
}
