//! What all requests share: the mesh in memory, what nodes said, and who may call.

pub mod app;
pub mod auth_limiter;
pub mod coordinators;
pub mod credentials;
pub mod link_tracker;
pub mod mesh_cache;
pub mod metrics;
pub mod origin;
pub mod reports;
pub mod representation;
pub mod shares;
pub mod streams;
