//! What the coordinator says, and where it is kept.

use tokio::time::Instant;
use tracing::{info, warn};
use wattle_mesh::agent::replica::Received;
use wattle_wire::stream::{ByeReason, StreamMessage};

use super::Agent;
use crate::follow::{self, Event};

/// How many refused peers of one message the log names.
const MOST_TOLD: usize = 10;

impl Agent {
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::WhereFrom(answer) => {
                let _ = answer.send(self.replica.resume_from());
            }
            Event::Connected => {
                info!(url = self.coordinator.url(), "connected to the coordinator");
                (self.disconnected, self.is_stranger) = (None, false);
                self.save_connection(None);
                // It may be another coordinator than before, or a new process: it gets the whole
                // account.
                self.reporter.forget();
                self.mailbox.say_again();
            }
            Event::Disconnected {
                reason,
                is_stranger,
            } => {
                // Once for each reason: a coordinator may be away for days.
                if self.disconnected.as_ref() != Some(&reason) {
                    warn!(
                        reason,
                        "not connected to the coordinator; the tunnels stay as they are"
                    );
                    self.save_connection(Some(reason.clone()));
                }
                (self.disconnected, self.is_stranger) = (Some(reason), is_stranger);
            }
            Event::Message(message) => self.receive(message),
        }
    }

    fn receive(&mut self, message: StreamMessage) {
        if let StreamMessage::Snapshot { position, .. } = &message {
            info!(%position, "received a snapshot");
        }
        if message == StreamMessage::MessagesWaiting {
            self.mailbox.messages_are_waiting();
        }
        let before = self.replica.position();
        match self
            .replica
            .receive(message, chrono::Utc::now().timestamp())
        {
            Received::Unchanged => {}
            Received::Changed { refused } => {
                for refusal in refused.iter().take(MOST_TOLD) {
                    warn!("{refusal}");
                }
                if refused.len() > MOST_TOLD {
                    warn!("{} peers were refused in all", refused.len());
                }
                self.last_change = Instant::now();
                self.view_changed = true;
            }
            Received::Gap => {
                self.ask_for_snapshot("a message does not follow the position that this node has")
            }
            Received::Rejected(rejection) => {
                self.view_unsaved = true;
                self.ask_for_snapshot(&format!("rejected the newest revision: {rejection}"));
            }
            Received::Bye(ByeReason::Revoked) => {
                warn!(
                    "the coordinator says that this node was removed from the mesh. `wattle-agent \
                     down` removes what is left here"
                );
                (self.view_changed, self.view_unsaved) = (true, true);
            }
            Received::Bye(reason) => info!(?reason, "the coordinator ended the stream"),
        }
        self.view_unsaved |= self.replica.position() != before;
    }

    /// Keeps the view on disk.
    pub(super) fn save_view(&mut self) {
        if let Some(known) = self.replica.known() {
            self.record.note(known);
        }
        let Some(stored) = self.replica.stored() else {
            return;
        };
        let before = self.save_problem.take();
        if let Err(error) = follow::save_view(&self.store, &stored) {
            let problem = format!(
                "cannot keep what the coordinator told, so that a restart knows less: {error:#}"
            );
            if before.as_ref() != Some(&problem) {
                warn!("{problem}");
            }
            self.save_problem = Some(problem);
        }
    }

    pub(super) fn ask_for_snapshot(&self, reason: &str) {
        warn!(reason, "asking for a snapshot");
        self.reconnect.notify_one();
    }
}
