//! `wattle-fleet`: many simulated agents against a real coordinator, to measure it. They enrol,
//! follow, acknowledge and agree on preshared keys as real agents do, with the same replica and the
//! same letters; only the kernel is missing.

mod agent;
mod coordinator;
mod figures;
mod run;
mod site;
mod table;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Measures a coordinator with simulated agents.
///
/// Without --url it starts the wattle-server beside it, with a private Postgres, on loopback, and
/// takes everything away at the end. With --url it makes one site per agent and one more on your
/// coordinator, named fleet-N, and removes them at the end, also after a failure or Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "wattle-fleet", version, max_term_width = 100)]
pub(crate) struct Options {
    /// How many agents, each the gateway of a site of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=20_000))]
    agents: u32,

    /// How many agents begin with nothing and get a snapshot, and hold the whole view. The others
    /// begin as agents that were away for a moment; each whole view of 10,000 peers would take the
    /// fleet some megabytes of memory and half a second to verify.
    #[arg(long, default_value_t = 200)]
    whole: u32,

    /// How many changes to measure, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    changes: u32,

    /// How many coordinators of its own to start, on one Postgres; the agents are spread over them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5), conflicts_with = "url")]
    replicas: u32,

    /// Let the coordinators of its own speak plain HTTP, as behind a proxy, and the agents share
    /// connections for their reports.
    #[arg(long, conflicts_with = "url")]
    insecure_http: bool,

    /// A running coordinator to measure in place of one of its own; several with commas, all of one
    /// mesh.
    #[arg(long, requires = "token_file", value_delimiter = ',')]
    url: Vec<String>,

    /// File with the certificate of that coordinator's own authority, its ca.crt; without it the
    /// certificate has to be publicly valid.
    #[arg(long, requires = "url")]
    ca_file: Option<PathBuf>,

    /// File with an api token of that coordinator.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = allow_open_files().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(run::run(&options))
    });
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

/// Each agent is a connection: raises the limit of open files, which the coordinators inherit, as
/// far as it may.
fn allow_open_files() -> anyhow::Result<()> {
    let (_, most) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}

/// Says how far it is, on standard error.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
