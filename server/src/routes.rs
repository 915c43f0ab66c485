//! The resources of the REST interface: each with its handlers, its checks and its SQL.

pub mod api_tokens;
pub mod enrolment;
pub mod event_stream;
pub mod events;
pub mod health;
pub mod identity_rotation;
pub mod links;
pub mod mailbox;
pub mod mesh;
pub mod metrics;
pub mod nodes;
pub mod readmission;
pub mod removals;
pub mod report;
pub mod rotation;
pub mod sites;
pub mod stream;
pub mod tokens;
pub mod webhooks;
pub mod wg_quick;
