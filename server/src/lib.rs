//! Wattle's coordinator: sites, keys and subnets in Postgres, REST for people and scripts, and a
//! stream to each agent.

pub mod api_tokens;
pub mod app;
pub mod config;
pub mod copy;
pub mod db;
pub mod enrolment;
pub mod error;
pub mod events;
pub mod failures;
pub mod first_start;
pub mod health;
pub mod http;
pub mod links;
pub mod live;
pub mod mailbox;
pub mod mesh;
pub mod metrics;
pub mod nodes;
pub mod postgres;
pub mod report;
pub mod rotation;
pub mod router;
pub mod secret;
pub mod server;
pub mod sites;
pub mod stream;
pub mod succession;
mod text;
pub mod tls;
pub mod tokens;
pub mod trials;
pub mod webhooks;
pub mod wg_quick;
