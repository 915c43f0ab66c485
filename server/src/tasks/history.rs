//! Keeps the history of links.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    error::Error,
    state::{
        app::App,
        link_tracker::{REFRESH_INTERVAL, queries},
    },
};

/// How often what is too old is dropped from the history of links.
const PRUNE: Duration = Duration::from_secs(3600);

/// Looks at links, and keeps their history, until the coordinator stops.
pub async fn follow(app: &App) {
    let mut pruned: Option<Instant> = None;
    loop {
        sleep(REFRESH_INTERVAL).await;
        let kept = async {
            app.link_tracker.record(app.sources()).await?;
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
                let mut transaction = app.db.report().await?;
                queries::prune_history(&mut transaction).await?;
                transaction.commit().await?;
                pruned = Some(Instant::now());
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = kept.await {
            tracing::debug!(%error, "cannot write the history of links");
        }
    }
}
