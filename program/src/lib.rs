//! What Wattle's programs have in common: a file of settings, log lines, man pages and completions.

pub mod log;
pub mod manual;
pub mod settings;
