//! What an agent believes, what its host allows, and what it reports.

pub mod admission;
pub mod guard;
pub mod history;
pub mod known;
mod known_peer;
pub mod node;
pub mod replica;
pub mod reporting;
pub mod underlay;
