//! What the coordinator does by itself, beside answering requests.

pub mod endpoint_check;
pub mod history;
pub mod mailbox;
pub mod webhook_outbox;
