//! The coordinator as its users meet it: over TCP, on a real Postgres, a database for each test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod agents;
mod audit;
mod auth;
mod browser;
mod cases;
mod connections;
mod coordinators;
mod database;
mod enrolment;
mod event_stream;
mod events;
mod flood;
mod harness;
mod hostile;
mod http;
mod join_tokens;
mod links;

mod identity_rotation;
mod input;
mod mailbox;
mod metrics;
mod names;
mod nodes;
mod page;
mod preconditions;
mod private_postgres;
mod program;
mod removals;
mod replicas;
mod reports;
mod rotation;
mod shares;
mod sites;
mod stream;
mod tls;
mod two_pages;
mod webhooks;
mod wg_quick;
mod without_company;
