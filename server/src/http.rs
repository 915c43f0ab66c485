//! HTTP, whatever it is about: connections, credentials, bodies, pages and conditional requests.

pub mod audience;
pub mod auth;
pub mod body;
pub mod listen;
pub mod page;
pub mod path;
pub mod preconditions;
pub mod ui;
