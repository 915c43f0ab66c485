//! The audit log.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::key::Bytes32;

/// An event of the audit log: who did what to what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// From 1, without gaps.
    pub number: i64,
    pub at: DateTime<Utc>,
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>`, `command line` or `coordinator`.
    pub actor: String,
    /// As people knew the actor then: what the api token is for, the name of the node.
    pub actor_name: String,
    /// The site of a node or join token; null for other actors.
    pub actor_site: Option<String>,
    /// For example `site.change`.
    pub action: String,
    /// The id of what was changed.
    pub object: String,
    /// Its name then. Of a webhook, scheme and host; of a join token, its site.
    pub object_name: String,
    /// The site that it is or belongs to, by its name then; null for what belongs to none.
    pub object_site: Option<String>,
    /// What was done, for people; `changes` has the same for programs.
    pub sentence: String,
    /// Field by field, what the object was and what it is. At most 4 KiB: of longer lists what
    /// stays is left out and counted, and what is cut says so. No secret is in it.
    pub changes: Vec<FieldChange>,
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

/// What a field was, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    pub field: String,
    /// Null where there was nothing.
    #[schema(value_type = Value)]
    pub before: Value,
    /// Null where there is nothing any more.
    #[schema(value_type = Value)]
    pub after: Value,
}
