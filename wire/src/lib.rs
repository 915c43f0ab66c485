//! What Wattle's coordinator, agents and users say to each other: identifiers, keys, prefixes and
//! message bodies, and nothing else.
//!
//! Every type here parses strictly: a value that exists is valid, so nothing behind the edge checks
//! it again.

pub mod admin;
mod bounded;
pub mod endpoint;
pub mod enrol;
pub mod event_stream;
pub mod ids;
pub mod join;
pub mod key;
pub mod lock;
pub mod name;
pub mod peer;
pub mod probe;
pub mod problem;
pub mod psk;
pub mod report;
pub mod rotation;
pub mod secret;
pub mod stream;
pub mod strict;
pub mod subnet;
pub mod text;
pub mod verdict;
pub mod webhook;

/// Version of the protocol between agent and coordinator, sent by the agent in the header
/// [`PROTOCOL_HEADER`].
///
/// A coordinator ignores what it does not know of an agent with a higher one, so it goes up with each
/// release whose agents say something new.
///
/// | version | date | what changed |
/// |---|---|---|
/// | 1 | 2026-11 | enrolment in two steps, snapshot and delta stream, report, mailbox for preshared keys |
pub const PROTOCOL_VERSION: u32 = 1;

/// Header in which an agent states the [`PROTOCOL_VERSION`] it speaks; absent means version 1.
pub const PROTOCOL_HEADER: &str = "wattle-protocol";

/// Header of answers to a node: the pins of the certificate authorities to trust from now on.
///
/// In base64 with commas; absent means that nothing changes. An agent heeds it only from a
/// coordinator that it knows by a pin.
pub const PINS_HEADER: &str = "wattle-pins";
