//! Who changes something, and with which options.

use std::sync::Arc;

use super::idempotency::IdempotencyKey;

/// Who changes something, for the audit log, and with which options.
#[derive(Clone, Debug)]
pub struct AuditActor {
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>` or `command line`.
    pub name: String,
    pub request_id: Option<String>,
    pub options: ChangeOptions,
}

impl AuditActor {
    /// Somebody who asks for no options.
    pub fn new(name: impl Into<String>, request_id: Option<String>) -> Self {
        Self {
            name: name.into(),
            request_id,
            options: ChangeOptions::default(),
        }
    }
}

/// How a change is asked for.
#[derive(Clone, Debug, Default)]
pub struct ChangeOptions {
    /// Whether it is not to be made, but to be told what it would do.
    pub dry_run: bool,
    /// Whether it is to be made in spite of what it does to others.
    pub force: bool,
    /// The tags of which the object has to have one.
    pub if_match: Option<String>,
    /// By what it is known should it be sent again.
    pub idempotency_key: Option<Arc<IdempotencyKey>>,
}
