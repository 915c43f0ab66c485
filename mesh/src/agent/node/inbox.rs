//! What the coordinator says, and the copy of it on disk.

use wattle_wire::stream::{ByeReason, StreamMessage};

use super::{Level, LocalNode, Output, Save, Saving, Secrets};
use crate::agent::replica::{Received, Stored};

/// How many refused peers of one message the log names.
const MOST_TOLD: usize = 10;

impl<S: Secrets> LocalNode<S> {
    pub(super) fn restore(&mut self, stored: Stored) {
        let position = stored.position;
        match self.replica.restore(stored) {
            Ok(refused) => {
                let refused = refused.len();
                self.log(
                    Level::Info,
                    format!("loaded the view from disk, of {position}; {refused} peers refused"),
                );
                self.round.begin_soon();
                // Who was there when the lock was turned on is known from now on.
                self.view_unsaved = true;
            }
            Err(rejection) => self.log(
                Level::Warn,
                format!("cannot use the view on disk: {rejection}"),
            ),
        }
    }

    pub(super) fn connected(&mut self) {
        (self.disconnected, self.is_stranger) = (None, false);
        // It may be another coordinator than before, or a new process: it gets the whole account.
        self.reporter.forget();
        self.psks.say_again();
        self.save(Save::Connection(None), Saving::Connection);
    }

    pub(super) fn disconnected(&mut self, reason: String, is_stranger: bool) {
        self.is_stranger = is_stranger;
        // Once for each reason: a coordinator may be away for days.
        if self.disconnected.as_ref() != Some(&reason) {
            self.log(
                Level::Warn,
                format!("not connected to the coordinator; the tunnels stay as they are: {reason}"),
            );
            self.disconnected = Some(reason.clone());
            self.save(Save::Connection(Some(reason)), Saving::Connection);
        }
    }

    pub(super) fn receive(&mut self, message: StreamMessage) {
        if let StreamMessage::Snapshot { position, .. } = &message {
            self.log(Level::Info, format!("received a snapshot of {position}"));
        }
        if message == StreamMessage::MessagesWaiting {
            self.psks.messages_are_waiting();
        }
        let before = self.replica.position();
        match self.replica.receive(message, self.now.unix_s) {
            Received::Unchanged => {}
            Received::Changed { refused } => {
                for refusal in refused.iter().take(MOST_TOLD) {
                    self.log(Level::Warn, refusal.to_string());
                }
                if refused.len() > MOST_TOLD {
                    let all = refused.len();
                    self.log(Level::Warn, format!("{all} peers were refused in all"));
                }
                self.round.view_changed(self.now.elapsed);
            }
            Received::Gap => {
                self.ask_for_snapshot("a message does not follow the position that this node has");
            }
            Received::Rejected(rejection) => {
                self.view_unsaved = true;
                self.ask_for_snapshot(&format!("rejected the newest revision: {rejection}"));
            }
            Received::Bye(ByeReason::Revoked) => {
                self.log(
                    Level::Warn,
                    "the coordinator says that this node was removed from the mesh. `wattle-agent \
                     down` removes what is left here",
                );
                self.round.begin_soon();
                self.view_unsaved = true;
            }
            Received::Bye(reason) => {
                self.log(
                    Level::Info,
                    format!("the coordinator ended the stream: {reason:?}"),
                );
            }
        }
        self.view_unsaved |= self.replica.position() != before;
    }

    /// Carries out what waits for somebody on this host.
    pub(super) fn confirm(&mut self) {
        let returned = self.replica.returned();
        let waiting = self.replica.awaiting_confirmation();
        let waiting = waiting.union(&returned).copied().collect();
        let behind = self.replica.rolled_back_to();
        let follows = behind.is_some_and(|position| self.replica.follow_back(position));
        if !(self.replica.confirm(&waiting) || follows) {
            return;
        }
        self.log(Level::Info, "what waited was confirmed on this gateway");
        self.round.begin_soon();
        self.view_unsaved = true;
        if self.replica.resume_from().is_none() {
            self.ask_for_snapshot("what waited was confirmed");
        }
    }

    fn ask_for_snapshot(&mut self, reason: &str) {
        self.log(Level::Warn, format!("asking for a snapshot: {reason}"));
        self.outputs.push_back(Output::AskForSnapshot);
    }

    /// Saves the view if it has changed. Whether it is being saved.
    pub(super) fn save_view(&mut self) -> bool {
        if !std::mem::take(&mut self.view_unsaved) {
            return false;
        }
        let Some(stored) = self.replica.stored() else {
            return false;
        };
        self.save(Save::View(Box::new(stored)), Saving::View);
        true
    }

    pub(super) fn view_saved(&mut self, result: Result<(), String>) {
        let before = self.save_problem.take();
        if let Err(error) = result {
            let problem = format!(
                "cannot keep what the coordinator told, so that a restart knows less: {error}"
            );
            if before.as_ref() != Some(&problem) {
                self.log(Level::Warn, problem.clone());
            }
            self.save_problem = Some(problem);
        }
    }
}
