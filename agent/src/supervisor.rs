//! What systemd is told where it starts the agent: that it has started, and that its loop goes on.

use std::time::Duration;

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tokio::time::Instant;
use tracing::debug;

/// Who started the agent, if anybody wants to hear of it.
#[derive(Debug)]
pub(crate) struct Supervisor {
    /// How often to tell that the loop goes on; absent means never.
    interval: Option<Duration>,
    /// When that was last told; absent before the agent is ready.
    told: Option<Instant>,
}

impl Supervisor {
    pub(crate) fn new() -> Self {
        // What is left of the limit is for one pass of the loop.
        Self {
            interval: watchdog_enabled().map(|limit| limit / 10),
            told: None,
        }
    }

    /// To be called at each pass of the loop: tells that it goes on, if it is time to, and the
    /// first time that the agent is ready.
    pub(crate) fn alive(&mut self) {
        let Some(told) = self.told else {
            tell(NotifyState::Ready);
            if self.interval.is_some() {
                tell(NotifyState::Watchdog);
            }
            self.told = Some(Instant::now());
            return;
        };
        if self
            .interval
            .is_some_and(|interval| told.elapsed() >= interval)
        {
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
