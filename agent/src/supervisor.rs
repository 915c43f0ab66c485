//! What systemd is told where it starts the agent: that it has started, and that its loop goes on.

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::Instant;
use tracing::debug;

/// Who started the agent, if he wants to hear of it.
#[derive(Debug)]
pub(crate) struct Supervisor {
    /// How often he wants to hear; absent means never.
    pace: Option<Duration>,
    told: Option<Instant>,
}

impl Supervisor {
    /// Tells that the agent has started.
    pub(crate) fn ready() -> Self {
        tell(NotifyState::Ready);
        // What is left of the limit is for one pass of the loop.
        Self { pace: watchdog_enabled().map(|limit| limit / 10), told: None }
    }

    /// Tells that the loop goes on, if it is time to. To be called at each of its passes.
    pub(crate) fn alive(&mut self) {
        let Some(pace) = self.pace else { return };
        if self.told.is_none_or(|told| told.elapsed() >= pace) {
            tell(NotifyState::Watchdog);
            self.told = Some(Instant::now());
        }
    }
}

/// Does nothing where nobody listens.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = notify(&[state]) {
        debug!("cannot tell systemd: {error}");
    }
}
