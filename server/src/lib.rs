//! Wattle's coordinator: sites, keys and subnets in Postgres, REST for people and scripts, and a
//! stream to each agent.

pub mod bootstrap;
pub mod config;
pub mod data_dir;
pub mod db;
pub mod error;
pub mod fingerprint;
pub mod http;
pub mod postgres;
pub mod router;
pub mod routes;
pub mod secret;
pub mod server;
pub mod state;
pub mod tasks;
mod text;
pub mod tls;
