//! Follows what the hosts of the coordinators' URLs resolve to.

use std::time::Duration;

use tokio::time::sleep;

use crate::state::app::App;

/// How often the names are resolved.
const PACE: Duration = Duration::from_secs(60);

/// Resolves the names for as long as the coordinator runs. They were resolved at its start.
pub async fn follow(app: &App) {
    let mut told = 0;
    loop {
        told = warn_of_held(app, told);
        sleep(PACE).await;
        refresh(app).await;
    }
}

/// Resolves the names now, and tells the other coordinators.
pub async fn refresh(app: &App) {
    app.coordinators.resolve().await;
    if let Err(error) = app.coordinators.tell(&app.db).await {
        tracing::debug!(%error, "cannot write down now where the coordinator is");
    }
}

/// Warns when more prefixes of the mesh hold a coordinator than before, because its name leads
/// somewhere else now or somebody forced it. Returns how many do.
fn warn_of_held(app: &App, before: usize) -> usize {
    let held = app
        .mesh_cache
        .read(|feed| app.coordinators.held(feed.directory()));
    if held.len() > before {
        for (site, prefix, at) in &held {
            tracing::warn!(
                site,
                %prefix,
                address = %at.address,
                host = at.host,
                "a prefix of the mesh holds an address at which agents look for the coordinator: \
                 gateways of other sites may lose it"
            );
        }
    }
    held.len()
}
