//! `wattle-lab`: the demo, and a way into its hosts.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use wattle_lab::{
    bench::{self, Bench},
    demo, enter, exec, ground,
    kernel::{Debian, Ended, Machines},
};

/// How long a command of a machine may take.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

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
        /// The host: a site's name for its gateway, the name with `-host` for the host of its LAN,
        /// or `coordinator`.
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Measures how fast the userspace device is, beside wireguard-go. `scripts/bench` makes both.
    Bench(Bench),
    /// A machine of User-Mode Linux, with the kernel's own WireGuard.
    Kernel {
        #[command(subcommand)]
        command: KernelCommand,
    },
    /// The same below a Debian with its own systemd, as root.
    Systemd {
        #[command(subcommand)]
        command: KernelCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
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
            Command::Bench(bench) => bench::outside(&bench),
            Command::Kernel { command } => kernel(command),
            Command::Systemd { command } => systemd(command),
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

/// The commands of `wattle-lab kernel`.
fn kernel(command: KernelCommand) -> Result<()> {
    let machines = Machines::prepare([])?;
    match command {
        KernelCommand::Shell => machines.shell(),
        KernelCommand::Run { line } => tell(&machines.run("run", &line, PATIENCE)?),
    }
}

/// The commands of `wattle-lab systemd`.
fn systemd(command: KernelCommand) -> Result<()> {
    let debian = Debian::prepare()?;
    match command {
        KernelCommand::Shell => debian.shell(),
        KernelCommand::Run { line } => tell(&debian.run("run", &line, PATIENCE)?),
    }
}

/// Prints what a machine's command printed; it has to have succeeded.
fn tell(ended: &Ended) -> Result<()> {
    write!(std::io::stdout(), "{}", ended.output)?;
    if ended.success {
        Ok(())
    } else {
        bail!("the command failed")
    }
}

fn inside(job: &str) -> Result<()> {
    match job {
        job if job.starts_with(bench::JOB) => bench::inside(&job[bench::JOB.len()..]),
        demo::JOB => demo::inside(),
        ground::PROBE => ground::probe(),
        other => bail!("the lab knows no job {other}"),
    }
}
