//! `wattle-agent`: makes a Linux gateway a node of the mesh, and keeps its WireGuard interface as
//! the mesh wants it.

mod config;
mod control;
mod device;
mod doctor;
mod follow;
mod history;
mod host;
mod identity;
mod interface_lock;
mod join;
mod kernel;
mod lan;
mod lock;
mod memory;
mod metrics;
mod output;
mod owner;
mod probe;
mod psk;
mod random;
mod requests;
mod rotation;
mod run;
mod starts;
mod status;
mod store;
mod supervisor;
mod underlay;
mod verify;

use std::{io, process::ExitCode, time::Duration};

use anyhow::anyhow;
use clap::{CommandFactory, Parser};
use tokio::time::timeout;
use wattle_mesh::host::offload;
use wattle_program::{log, manual, settings};

use crate::{
    config::{Cli, Command, ConfigCommand, LockCommand, Needs, Settings},
    device::starter::Starter,
    kernel::symptoms,
};

/// Which log lines are written if nobody says which. rtnetlink warns of each attribute that is newer
/// than it is; wireguard-control of each message that it cannot read.
const USUAL_LOG: &str = "info,netlink_packet_route=error,netlink_packet_core=error,\
                         netlink_proto=error";

fn main() -> ExitCode {
    match command(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Threads that work beside the first: the loop that follows the mesh is on the first, and calls
/// into the kernel are beside it. Each has a heap of its own, which a small gateway pays for.
const THREADS: usize = 1;

fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli {
        options,
        mut command,
    } = cli;
    let needs = command.needs();
    let settings = match needs {
        Needs::Nothing => Settings::without_file(&options)?,
        Needs::Settings | Needs::Node => Settings::load(&options)?,
    };
    log::start(settings.log_format, settings.log.as_ref(), USUAL_LOG);
    // The files outside of the state folder, which its owner may not read or write.
    if let Command::Join {
        join_string,
        operator_keys,
        ..
    } = &mut command
    {
        *join_string = join::read(join_string)?;
        lock::require(&settings, operator_keys)?;
    }
    if let Command::Doctor {
        join_string: Some(join_string),
        ..
    } = &mut command
    {
        *join_string = join::read(join_string)?;
    }
    let is_device = matches!(command, Command::Device { .. });
    memory::keep_little(!is_device);
    if needs == Needs::Node {
        owner::become_owner(&settings.state_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let limit = limit(&command);
    let work = async {
        match command {
            Command::Join {
                join_string,
                endpoint,
                replace,
                ..
            } => join::join(&settings, &join_string, endpoint, replace).await,
            Command::Run { metrics } => run::run(settings, &options, metrics).await,
            Command::Status { json } => return status::status(&settings, json).await,
            Command::Verify {
                hosts,
                tcp,
                count,
                throughput,
                json,
            } => {
                let asked = control::Asked { hosts, tcp };
                return verify::verify(&settings, asked, count, throughput, json).await;
            }
            Command::Doctor { join_string, json } => {
                return doctor::doctor(&settings, join_string.as_deref(), json).await;
            }
            Command::History { json } => history::show(&settings, json),
            Command::Plan { json } => status::plan_command(&settings, json).await,
            Command::Rotate { identity: true, .. } => rotation::rotate_identity(&settings).await,
            Command::Rotate { psk: true, .. } => rotation::renew_psks(&settings).await,
            Command::Rotate { tokens: true, .. } => rotation::renew_tokens(&settings).await,
            Command::Rotate { force, .. } => rotation::rotate(&settings, force).await,
            Command::Confirm => follow::confirm(&settings).await,
            Command::Lock(LockCommand::Init { key }) => lock::init(&key),
            Command::Lock(LockCommand::Sign(arguments)) => lock::sign(&arguments).await,
            Command::Down => run::down(&settings).await,
            // It was read without an error.
            Command::Config(ConfigCommand::Check) => {
                settings::valid(&settings.config).map(output::line)
            }
            Command::Completions { shell } => {
                manual::completions(Cli::command(), shell, &mut io::stdout())
            }
            Command::Manual { folder } => manual::write(Cli::command(), &folder),
            Command::Device {
                wanted: Some(interface),
                starter,
                no_offload,
            } => {
                let starter = starter.then(Starter::at_standard_input).transpose()?;
                let no_offload = no_offload.into_iter().collect();
                let offloads = offload::used(&no_offload, &symptoms::release());
                device::run(&interface, offloads, starter).await
            }
            Command::Device { wanted: None, .. } => device::starter::become_device(),
        }?;
        Ok(ExitCode::SUCCESS)
    };
    runtime.block_on(async {
        match limit {
            None => work.await,
            Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
                let seconds = limit.as_secs();
                Err(anyhow!("not done after {seconds} s: given up"))
            }),
        }
    })
}

/// How long a command may take at the most, whatever the host or the network keeps from it; `None`
/// for those that run until they are stopped or wait for a person.
fn limit(command: &Command) -> Option<Duration> {
    let minutes = match command {
        Command::Run { .. }
        | Command::Device { .. }
        | Command::Lock(_)
        | Command::Config(_)
        | Command::Completions { .. }
        | Command::Manual { .. } => return None,
        Command::Verify { .. } => 60,
        Command::Rotate { .. } => 6,
        Command::Join { .. }
        | Command::Status { .. }
        | Command::History { .. }
        | Command::Plan { .. }
        | Command::Doctor { .. }
        | Command::Confirm
        | Command::Down => 2,
    };
    Some(Duration::from_secs(60 * minutes))
}
