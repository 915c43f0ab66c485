//! Whether links are up: who is asked, what the answers mean, and who is told.

pub mod alert;
pub mod clock;
pub mod connection;
pub mod lan;
pub mod link;
pub mod own_endpoint;
pub mod probe;
pub mod receiver;
pub mod replies;
pub mod tracker;
pub mod watch_cache;
