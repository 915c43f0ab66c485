//! What a host should be, what it is, and the steps between.

pub mod desired;
pub mod interface;
pub mod offload;
pub mod plan;
pub mod ruleset;
pub mod state;
pub mod way;
