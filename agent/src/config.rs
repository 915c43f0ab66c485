//! The command line, and what it says about where things are.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use wattle_mesh::host::interface::InterfaceName;
use wattle_wire::{endpoint::Endpoint, key::OperatorKey};

/// Makes this Linux gateway a node of a Wattle mesh, and keeps its WireGuard interface as the mesh
/// wants it.
///
/// `join` makes the keys and enrols, `run` follows the mesh and is what the system starts at boot,
/// `status` shows the tunnels. Tunnels stay up when the agent stops; `down` takes them away.
#[derive(Debug, Parser)]
#[command(name = "wattle-agent", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) paths: Paths,

    /// Format of log lines. `RUST_LOG` sets which are written.
    #[arg(long, global = true, env = "WATTLE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where this agent keeps its state, and which interface it drives.
#[derive(Clone, Debug, Args)]
pub(crate) struct Paths {
    /// Folder of the keys and of the last view of the mesh.
    #[arg(
        long,
        global = true,
        env = "WATTLE_STATE_DIR",
        default_value = STATE_DIR
    )]
    pub(crate) state_dir: PathBuf,

    /// Name of the WireGuard interface.
    #[arg(
        long,
        global = true,
        env = "WATTLE_INTERFACE",
        default_value = "wattle0"
    )]
    pub(crate) interface: InterfaceName,

    /// What this host lets the mesh do to it: `allow` and `refuse`, lists of prefixes,
    /// `most_peers`, `lock` and `operator_keys`. Without the file, peers still get no default route
    /// and nothing that the host itself reaches elsewhere.
    #[arg(
        long,
        global = true,
        env = "WATTLE_GUARD",
        default_value = "/etc/wattle/guard.toml"
    )]
    pub(crate) guard: PathBuf,
}

/// Where an agent keeps its state unless it is told otherwise.
const STATE_DIR: &str = "/var/lib/wattle";
/// Where that agent answers the commands of its host.
const SOCKET: &str = "/run/wattle/agent.sock";

impl Paths {
    /// Where the agent answers the commands of its host. An agent with a state folder of its own
    /// does so in there.
    pub(crate) fn socket(&self) -> PathBuf {
        if self.state_dir == Path::new(STATE_DIR) {
            PathBuf::from(SOCKET)
        } else {
            self.state_dir.join("agent.sock")
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes this machine a node, with the join string that `POST /sites` gave.
    ///
    /// The keys are made here and their private halves never leave. Repeating the command is safe.
    Join {
        /// A file that holds the join string, or `-` to read it from standard input. The string
        /// itself, which begins with `wattle1.`, is taken too, and others on this host can see it.
        #[arg(
            value_name = "FILE",
            env = "WATTLE_JOIN_STRING",
            hide_env_values = true
        )]
        join_string: String,
        /// Address and port at which this gateway receives WireGuard packets, if the site has no
        /// endpoint. One peer checks it before all are told.
        #[arg(long, value_name = "ADDRESS:PORT")]
        endpoint: Option<Endpoint>,
        /// Gives up the present identity of this machine and makes new keys.
        #[arg(long)]
        replace: bool,
        /// Accepts only peers that the operator with this public key has admitted, from the first
        /// peer on. May be repeated.
        ///
        /// Writes the key to the file of --guard, if that file does not exist.
        #[arg(long = "lock", value_name = "PUBLIC_KEY")]
        operator_keys: Vec<OperatorKey>,
    },
    /// Follows the mesh until it is stopped. Waits for `join` if this machine is not a node yet.
    Run {
        /// Serves metrics for Prometheus at http://<address>/metrics; without an address, on
        /// 127.0.0.1:9586.
        #[arg(long, value_name = "ADDRESS:PORT", env = "WATTLE_METRICS", num_args = 0..=1, default_missing_value = "127.0.0.1:9586")]
        metrics: Option<SocketAddr>,
    },
    /// Shows this node, its interface and its tunnels. Exits with 1 when the node has not joined or
    /// the interface is missing.
    Status {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists what this gateway was told of each peer, and when: identity, key, prefixes and
    /// endpoint, from first sight on.
    ///
    /// It is kept here, where no coordinator can take it back: after one was in the wrong hands, it
    /// says what was changed. Of each peer the first sight and the last 32 changes stay.
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
    /// Pings every tunnel address and an address in every LAN, and checks that the path is direct.
    /// Exits with 1 if something is wrong.
    ///
    /// In each LAN it pings the first and the last address, where the LAN's gateway usually is. Name
    /// another host with --host, and a service with --tcp.
    ///
    /// Packets of this site's LAN take another way through this host than its own pings. For that
    /// way it looks at the firewall, the routes and forwarding here. What may drop them counts as
    /// wrong.
    ///
    /// With --throughput it also sends to each peer that answers, one after the other, as fast as
    /// the tunnel takes it for two seconds or 1 GiB, and tells what arrived. That is what this
    /// gateway can send; what it can receive is measured at the other one.
    Verify {
        /// A host in a LAN of another site that answers pings; may be given several times.
        #[arg(long = "host", value_name = "ADDRESS")]
        hosts: Vec<IpAddr>,
        /// A TCP service in a LAN of another site, such as 10.20.0.5:443; may be given several
        /// times.
        #[arg(long, value_name = "ADDRESS:PORT")]
        tcp: Vec<SocketAddr>,
        /// Pings for each address, and connections to each service.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
        count: u16,
        /// Measures how much each tunnel carries. This uses the whole tunnel.
        #[arg(long)]
        throughput: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Finds what stops packets, and says how to fix it. Exits with 1 if something is broken.
    ///
    /// It looks at the device, the port, forwarding, reverse path filters, the MTU, firewalls
    /// (nftables, iptables, firewalld, ufw, Docker), the clock, DNS, the coordinator, and each
    /// tunnel. It changes nothing.
    ///
    /// Before the machine is a node it looks at what there is: rights, WireGuard, nft, firewalls
    /// and, with a join string, the coordinator and the clock.
    Doctor {
        /// A file that holds the join string, or `-` to read it from standard input; for a machine
        /// that is not a node yet.
        #[arg(value_name = "FILE")]
        join_string: Option<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Gives this node a new WireGuard key, and waits until it is in use. Exits with 1 if that
    /// fails.
    ///
    /// The running agent makes the key, waits until the peers are ready for it, and changes over
    /// without losing a packet.
    Rotate {
        /// Another identity instead, for which the present one signs: with it the node signs what
        /// it says, and its requests. No tunnel takes note of it, and an operator's admission holds
        /// for it.
        #[arg(long)]
        identity: bool,
        /// Replaces the preshared keys with all peers instead, as happens daily anyway. A site
        /// without an agent gets new ones with each new file.
        #[arg(long, conflicts_with = "identity")]
        psk: bool,
        /// Ends the tokens instead that this node has signed for its coordinator, also those for
        /// times to come. For when somebody else had the coordinator, after that is over.
        #[arg(long, conflicts_with_all = ["identity", "psk"])]
        tokens: bool,
        /// Rotates even if that cuts off sites without an agent, until their new files are
        /// installed.
        #[arg(long, conflicts_with_all = ["identity", "psk", "tokens"])]
        force: bool,
    },
    /// Removes the peers whose removal waits to be confirmed: the coordinator removed more than
    /// half of those of the last 24 hours (with the lock: any that no operator has signed), or does
    /// not know them any more, or they were there before the lock and no operator has admitted
    /// them. Takes up the peers that had been removed and that the coordinator has again.
    ///
    /// The running agent removes them within seconds, and takes up what waits for that. If the
    /// removal was a mistake, restore the nodes at the coordinator instead. Where the coordinator
    /// is behind what this gateway has seen, the gateway follows it from there.
    Confirm,
    /// Decides who may be in the mesh, with a key that is on no coordinator; for gateways that
    /// require the lock.
    ///
    /// On the machine of an operator, which need not be a gateway. A gateway requires the lock when
    /// it joins with --lock, or by `lock = "required"` and `operator_keys` in its
    /// /etc/wattle/guard.toml.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Removes the interface, its routes and the firewall table, and nothing that the agent did not
    /// make. The identity stays.
    Down,
    /// Moves the packets where the kernel has no WireGuard; started by the agent itself, or by
    /// systemd when the agent asks it to.
    #[command(hide = true)]
    Device {
        /// The interface; absent where standard input is a connection of the agent, which names it
        /// there. It has another name here than the option for all commands, which has a default.
        #[arg(value_name = "INTERFACE")]
        wanted: Option<InterfaceName>,
        /// Standard input is a connection of the agent, which is told how the start goes.
        #[arg(long)]
        starter: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Makes an operator's key, and prints what to write on each gateway. Do not keep the file on a
    /// coordinator.
    Init {
        /// File for the new private key. It must not exist.
        #[arg(long, value_name = "FILE", default_value = "wattle-operator.key")]
        key: PathBuf,
    },
    /// Shows the nodes that are new, changed or removed since the last signing, asks, signs them,
    /// and sends the signatures to the coordinator.
    ///
    /// Gateways with the lock carry out a removal that is signed without a `wattle-agent confirm`.
    Sign(SignArguments),
}

#[derive(Args, Debug)]
pub(crate) struct SignArguments {
    /// The coordinator.
    #[arg(long)]
    pub(crate) url: String,
    /// File with an api token that has the role operator or owner.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// File with the certificate of the mesh's authority (ca.crt). Without it the coordinator's
    /// certificate has to be publicly valid.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File of the private key.
    #[arg(long, value_name = "FILE", default_value = "wattle-operator.key")]
    pub(crate) key: PathBuf,
    /// Days for which the signatures of nodes in the mesh are valid; without this they never expire.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) days: Option<u16>,
    /// Signs all nodes of the mesh again, also those that are signed already.
    #[arg(long)]
    pub(crate) again: bool,
    /// Does not ask. Still shows what it signs.
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
