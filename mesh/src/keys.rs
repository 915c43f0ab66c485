//! A node's keys: how it makes, proves, agrees on and changes them.

pub mod authorities;
pub mod enrolment;
pub mod identity_rotation;
pub mod node_keys;
pub mod node_token;
pub mod preshared_key;
pub mod psk;
pub mod rotation;
pub mod succession;
