//! Every decision of Wattle, as pure functions: no runtime, clock, SQL, sockets, files or randomness; time and random numbers are arguments.
//!
//! The coordinator keeps a [`directory::Directory`], cuts a [`view`] out of it for each node and tells each node what changed ([`feed`]).
//! The agent follows with a [`replica`], derives what its host should be ([`state::Desired`]) and plans the steps there ([`plan`]).

pub mod access;
pub mod admit;
pub mod alert;
pub mod allocate;
pub mod audit;
pub mod backoff;
pub mod board;
pub mod desired;
pub mod directory;
pub mod doctor;
pub mod effect;
pub mod feed;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod guard;
pub mod health;
pub mod history;
pub mod interface;
pub mod lock;
pub mod machine;
pub mod pin;
pub mod plan;
pub mod probe;
pub mod psk;
pub mod replica;
pub mod reporting;
pub mod rotation;
pub mod ruleset;
pub mod state;
pub mod succession;
pub mod trial;
pub mod verify;
pub mod view;
pub mod watch;
pub mod wg_quick;

#[cfg(any(test, fuzzing))]
mod testing;
