//! What is wrong, and with what: the comparisons and findings behind `verify` and `doctor`.

pub mod doctor;
pub mod firewall;
pub mod lan;
mod remedy;
pub mod size;
pub mod verify;
