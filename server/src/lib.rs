//! Wattle's coordinator: sites, keys and subnets in Postgres, REST for people and scripts, and a stream to each agent.

pub mod app;
pub mod auth;
pub mod authority;
pub mod body;
pub mod certificate;
pub mod config;
pub mod copy;
pub mod db;
pub mod enrolment;
pub mod error;
pub mod first_start;
pub mod health;
pub mod links;
pub mod listen;
pub mod mailbox;
pub mod mesh;
pub mod nodes;
pub mod page;
pub mod postgres;
pub mod report;
pub mod router;
pub mod secret;
pub mod server;
pub mod sites;
pub mod stream;
mod text;
pub mod tokens;
