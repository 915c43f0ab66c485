//! `wattle-lab`: the demo, and a way into its hosts.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use wattle_lab::{demo, enter, exec, ground, kernel};

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
    /// A virtual machine with Debian's kernel, for the kernel's own WireGuard.
    Kernel {
        #[command(subcommand)]
        command: KernelCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    /// Runs the end-to-end tests in it.
    Test {
        /// Only tests with this word in their names.
        filter: Option<String>,
        /// Minutes after which it is switched off, whatever it does.
        #[arg(long, default_value_t = 30)]
        limit: u64,
    },
    /// Runs one line of a shell in it.
    Run { line: String },
    /// Gives a shell in it.
    Shell,
}

fn main() -> ExitCode {
    enter::main(inside, || {
        let result = match Arguments::parse().command {
            Command::Demo => demo::outside(),
            Command::Exec { host, command } => exec::exec(&host, &command),
            Command::Kernel { command: KernelCommand::Test { filter, limit } } => {
                kernel::test(filter.as_deref(), Duration::from_secs(limit * 60))
            }
            Command::Kernel { command: KernelCommand::Run { line } } => kernel::run(&line, Duration::from_secs(15 * 60)),
            Command::Kernel { command: KernelCommand::Shell } => kernel::shell(),
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
