//! The command line, and what it says about where things are.

use std::{
    io::{self, IsTerminal},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter, prelude::*};
use wattle_mesh::host::interface::InterfaceName;
use wattle_wire::{endpoint::Endpoint, key::OperatorKey};

/// Makes this Linux gateway a node of a Wattle mesh, and keeps its WireGuard interface as the mesh wants it.
///
/// `join` makes the keys and enrols, `run` follows the mesh and is what the system starts at boot, `status` shows the tunnels. Tunnels stay
/// up when the agent stops; `down` takes them away.
#[derive(Debug, Parser)]
#[command(name = "wattle-agent", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) paths: Paths,

    /// How log lines look.
    #[arg(long, global = true, env = "WATTLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where this agent keeps its state, and which interface it drives.
#[derive(Clone, Debug, Args)]
pub(crate) struct Paths {
    /// Folder of the keys and of the last known view of the mesh.
    #[arg(long, global = true, env = "WATTLE_STATE_DIR", default_value = "/var/lib/wattle")]
    pub(crate) state_dir: PathBuf,

    /// Name of the WireGuard interface.
    #[arg(long, global = true, env = "WATTLE_INTERFACE", default_value = "wattle0")]
    pub(crate) interface: InterfaceName,

    /// What this host lets the mesh do to it: `allow` and `refuse`, lists of prefixes, `most_peers`, `lock` and `operator_keys`. Without the
    /// file, peers still get no default route and nothing that the host itself reaches elsewhere.
    #[arg(long, global = true, env = "WATTLE_GUARD", default_value = "/etc/wattle/guard.toml")]
    pub(crate) guard: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes this machine a node, with the join string that `POST /sites` gave.
    ///
    /// The keys are made here and their private halves never leave. Repeating the command is safe.
    Join {
        /// The word that begins with wattle1.; `-` reads it from standard input.
        #[arg(value_name = "JOIN_STRING", env = "WATTLE_JOIN_STRING", hide_env_values = true)]
        join_string: String,
        /// Where this gateway answers WireGuard packets, if the site does not say so already. One peer tries it before all are told.
        #[arg(long, value_name = "ADDRESS:PORT")]
        endpoint: Option<Endpoint>,
        /// Gives up the present identity of this machine and makes new keys.
        #[arg(long)]
        replace: bool,
        /// Takes only peers that an operator with this public key has admitted, from the first on; may be given several times.
        ///
        /// It is written to the file of --guard, if that is not there yet.
        #[arg(long = "lock", value_name = "PUBLIC_KEY")]
        operator_keys: Vec<OperatorKey>,
    },
    /// Follows the mesh until it is stopped. Waits for `join` if this machine is not a node yet.
    Run {
        /// Serves metrics for Prometheus at http://<address>/metrics; without an address on the loopback one.
        #[arg(long, value_name = "ADDRESS:PORT", env = "WATTLE_METRICS", num_args = 0..=1, default_missing_value = "127.0.0.1:9586")]
        metrics: Option<SocketAddr>,
    },
    /// Shows this node, its interface and its tunnels. Exits with 1 when the node has not joined or the interface is missing.
    Status {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists what this gateway was told of its peers, and when: the identity, the key, the prefixes and the endpoint of each, from first sight on, and every change.
    ///
    /// It is kept here, where no coordinator can take it back: after one was in the wrong hands, it says what was changed. Of each peer the first
    /// sight and the last 32 changes stay.
    History {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows what `run` would change on this host now, and why. Changes nothing.
    Plan {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Pings every tunnel address and an address in every LAN, and checks that the way there is direct. Exits with 1 when something is wrong.
    ///
    /// In a LAN the first and the last address are asked, where its gateway usually is, unless a host in it is named with --host.
    ///
    /// With --throughput it also sends to each peer that answers, one after the other, as fast as the tunnel takes it for two seconds or 1 GiB,
    /// and tells what arrived. That is what this gateway can send; what it can receive is measured at the other one.
    Verify {
        /// A host in a LAN of another site that answers pings; may be given several times.
        #[arg(long = "host", value_name = "ADDRESS")]
        hosts: Vec<IpAddr>,
        /// Pings for each address.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
        count: u16,
        /// Measures how much each tunnel carries. It takes all the tunnel has.
        #[arg(long)]
        throughput: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Looks for what stands in the way of packets, and says what to do about it. Exits with 1 when something is broken.
    ///
    /// It looks at the device, the port, forwarding, reverse path filters, the MTU, firewalls (nftables, iptables, firewalld, ufw, Docker), the clock,
    /// DNS, the coordinator, and each tunnel. It changes nothing.
    Doctor {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Gives this node a new WireGuard key, and waits until it has it. Exits with 1 when nothing comes of it.
    ///
    /// The running agent makes the key, waits until the peers are ready for it, and changes over without losing a packet.
    Rotate {
        /// Another identity instead, for which the present one signs: with it the node signs what it says, and its requests. No tunnel takes note of it,
        /// and an operator's admission holds for it.
        #[arg(long)]
        identity: bool,
        /// New preshared keys with all peers instead, as each day brings them. An unmanaged site gets others with each new file.
        #[arg(long, conflicts_with = "identity")]
        psk: bool,
        /// Although unmanaged sites will be cut off from this gateway until their new files are made and installed.
        #[arg(long, conflicts_with_all = ["identity", "psk"])]
        force: bool,
    },
    /// Removes the peers whose removal waits to be confirmed: the coordinator asked for more than half of all at once, or they were there before
    /// the lock and no operator has admitted them.
    ///
    /// The running agent follows within seconds. If it was a mistake, put the nodes back at the coordinator instead.
    Confirm,
    /// Says with a key that no coordinator has who may be in the mesh, for gateways that require the lock.
    ///
    /// On the machine of an operator, which need not be a gateway. A gateway requires the lock when it joins with --lock, or by `lock = "required"` and
    /// `operator_keys` in its /etc/wattle/guard.toml.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Takes away the interface, its routes and the firewall table, and nothing that the agent did not make. The identity stays.
    Down,
    /// Moves the packets where the kernel has no WireGuard; started by the agent itself.
    #[command(hide = true)]
    Device { interface: InterfaceName },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Makes an operator's key, and says what to write on each gateway. Keep the file where no coordinator is.
    Init {
        /// File of the private key, which must not be there yet.
        #[arg(long, value_name = "FILE", default_value = "wattle-operator.key")]
        key: PathBuf,
    },
    /// Shows which nodes are new or changed since they were last signed, asks, signs them and gives that to the coordinator.
    Sign(SignArguments),
}

#[derive(Args, Debug)]
pub(crate) struct SignArguments {
    /// The coordinator.
    #[arg(long)]
    pub(crate) url: String,
    /// File with an api token of the coordinator, of an operator at least.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// File with the certificate of the coordinator's own authority, its ca.crt; without it the certificate has to be publicly valid.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File of the private key.
    #[arg(long, value_name = "FILE", default_value = "wattle-operator.key")]
    pub(crate) key: PathBuf,
    /// Days for which the signatures are good; without it they do not end.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) days: Option<u16>,
    /// Signs all nodes anew, those that are signed already, too.
    #[arg(long)]
    pub(crate) again: bool,
    /// Does not ask. What is signed is shown all the same.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Prints what is signed as JSON; needs --yes.
    #[arg(long, requires = "yes")]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Logs go to standard error: `RUST_LOG` says which, all from `info` on if it says nothing.
pub(crate) fn start_logging(format: LogFormat) {
    // rtnetlink warns of each attribute that is newer than it is; wireguard-control of each message that it cannot read.
    let quiet = "info,netlink_packet_route=error,netlink_packet_core=error,netlink_proto=error,gotatun=warn";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    let stderr = BoxMakeWriter::new(io::stderr);
    let layer = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(layer).init(),
        LogFormat::Json => registry.with(layer.json()).init(),
    }
}
