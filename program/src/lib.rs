//! What Wattle's programs have in common: a file of settings, log lines, man pages and completions, and
//! as whom they work.

pub mod log;
pub mod manual;
pub mod owner;
pub mod settings;
