//! What the coordinator does by itself, beside answering requests.

pub mod coordinator_addresses;
pub mod credentials;
pub mod endpoint_check;
pub mod history;
pub mod link_tracker;
pub mod mailbox;
pub mod memory;
pub mod webhook_outbox;
