//! The audit log.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::key::Bytes32;

/// An event of the audit log: who did what to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// From 1, without gaps.
    pub number: i64,
    pub at: DateTime<Utc>,
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>` or `command line`.
    pub actor: String,
    /// For example `site.change`.
    pub action: String,
    /// The id of what was changed.
    pub object: String,
    /// The revision that the change took; null for what is not configuration, a token for example.
    pub revision: Option<i64>,
    /// `X-Request-Id` of the request.
    pub request_id: Option<String>,
    /// SHA-256 of the object as the event found it; null when it was not there, or is not known.
    pub before: Option<Bytes32>,
    /// SHA-256 of the object as the event left it; null when it is gone.
    pub after: Option<Bytes32>,
    /// Binds this event to all before it.
    pub hash: Bytes32,
}
