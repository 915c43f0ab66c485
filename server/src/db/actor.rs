//! Who changes something, and on which terms.

use std::sync::Arc;

use super::idempotency::Ticket;

/// Who changes something, for the audit log, and on which terms.
#[derive(Clone, Debug)]
pub struct Actor {
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>` or `command line`.
    pub name: String,
    pub request_id: Option<String>,
    pub terms: Terms,
}

impl Actor {
    /// Somebody who makes no terms.
    pub fn new(name: impl Into<String>, request_id: Option<String>) -> Self {
        Self {
            name: name.into(),
            request_id,
            terms: Terms::default(),
        }
    }
}

/// On which terms a change is asked for.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Whether it is not to be made, but to be told what it would do.
    pub dry_run: bool,
    /// Whether it is to be made in spite of what it does to others.
    pub force: bool,
    /// The tags of which the object has to have one.
    pub if_match: Option<String>,
    /// By what it is known should it be sent again.
    pub ticket: Option<Arc<Ticket>>,
}
