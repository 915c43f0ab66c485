//! Every decision of Wattle, as pure functions: no runtime, clock, SQL, sockets, files or
//! randomness. Time and random numbers are arguments.
//!
//! The coordinator keeps a [`config::directory::Directory`], cuts a [`config::view`] out of it for
//! each node, and tells each node what changed ([`config::feed`]). The agent follows with a
//! [`agent::replica`], derives what its host should be ([`host::state::Desired`]) and plans the
//! steps to it ([`host::plan`]).

pub mod access;
pub mod agent;
pub mod audit;
pub mod backoff;
pub mod config;
pub mod diagnose;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod health;
pub mod host;
pub mod keys;
pub mod segments;
pub mod state_file;

#[cfg(any(test, fuzzing))]
mod testing;
