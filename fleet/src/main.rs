//! `wattle-fleet`: many simulated agents against a real coordinator, to measure it. They enrol, follow and acknowledge as real agents do, with
//! the same replica; only the kernel is missing.

mod agent;
mod coordinator;
mod figures;
mod run;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;

/// Measures a coordinator with simulated agents.
///
/// Without --url it starts the wattle-server beside it, with a private Postgres, on loopback, and takes everything away at the end.
/// With --url it makes one site per agent on your coordinator, named fleet-N, and removes them at the end.
#[derive(Debug, Parser)]
#[command(name = "wattle-fleet", version, max_term_width = 100)]
pub(crate) struct Options {
    /// How many agents, each the gateway of a site of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    agents: u32,

    /// How many changes to measure, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    changes: u32,

    /// A running coordinator to measure in place of one of its own.
    #[arg(long, requires = "token_file")]
    url: Option<String>,

    /// File with the certificate of that coordinator's own authority, its ca.crt; without it the certificate has to be publicly valid.
    #[arg(long, requires = "url")]
    ca_file: Option<PathBuf>,

    /// File with an api token of that coordinator.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run::run(&options)));
    match result {
        Ok(table) => {
            let _ = writeln!(std::io::stdout(), "{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            progress(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says how far it is, on standard error.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
