//! Tells nodes of letters that wait for them.

mod queries;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::state::app::App;

/// How often nodes are told of letters that another coordinator took, or that came before their
/// stream.
const POLL: Duration = Duration::from_secs(2);
/// How often, for some time after there were such letters: two nodes that follow different
/// coordinators agree on a key in four letters.
const POLL_WHILE_BUSY: Duration = Duration::from_millis(100);
/// Longer than another coordinator that is not busy yet takes to see an answer.
const BUSY: Duration = Duration::from_secs(3);

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
        Ok(newest) => app.streams.tell_of_messages(newest),
        Err(error) => {
            tracing::debug!(%error, "cannot ask the database for new messages; tries again");
            false
        }
    }
}
