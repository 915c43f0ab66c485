//! `wattle-lab`: the demo, and a way into its hosts.

use std::{io::Write, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use wattle_lab::{demo, enter, exec, ground};

/// Sites in network namespaces, with the two real programs of Wattle in them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a coordinator and three sites, and runs until Ctrl-C.
    Demo,
    /// Runs a command on a host of the demo: `wattle-lab exec dublin wg show`.
    Exec {
        /// The host: a site's name for its gateway, the name with `-host` for the host of its LAN, or `coordinator`.
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    enter::main(inside, || {
        let result = match Arguments::parse().command {
            Command::Demo => demo::outside(),
            Command::Exec { host, command } => exec::exec(&host, &command),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Nobody is left to be told when stderr is closed.
                let _ = writeln!(std::io::stderr(), "wattle-lab: {error:#}");
                ExitCode::FAILURE
            }
        }
    })
}

fn inside(job: &str) -> Result<()> {
    match job {
        demo::JOB => demo::inside(),
        ground::PROBE => ground::probe(),
        other => bail!("the lab knows no job {other}"),
    }
}
