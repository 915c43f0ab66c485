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

/// How often what is too old or too much is dropped from the history of links.
const PRUNE: Duration = Duration::from_secs(600);

/// Looks at links, and keeps their history, until the coordinator stops.
pub async fn follow(app: &App) {
    let mut pruned: Option<Instant> = None;
    loop {
        sleep(REFRESH_INTERVAL).await;
        let kept = async {
            app.link_tracker.record(app.sources()).await?;
            if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
                let mut transaction = app.db.report().await?;
                let most = queries::MOST_ENTRIES_IN_ALL;
                let is_more = queries::prune_history(&mut transaction, most).await?;
                transaction.commit().await?;
                pruned = (!is_more).then(Instant::now);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = kept.await {
            tracing::debug!(%error, "cannot write the history of links");
        }
    }
}
