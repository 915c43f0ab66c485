//! The command line, and the settings of this host that it may stand in for.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use serde::Deserialize;
use wattle_mesh::{
    agent::guard::{Guard, Lock},
    host::{interface::InterfaceName, offload::Offload},
};
use wattle_program::{
    log::{LogFilter, LogFormat},
    settings,
};
use wattle_wire::{endpoint::Endpoint, key::OperatorKey};

/// Makes this Linux gateway a node of a Wattle mesh, and keeps its WireGuard interface as the mesh
/// wants it.
///
/// `join` makes the keys and enrols, `run` follows the mesh and is what the system starts at boot,
/// `status` shows the tunnels. Tunnels stay up when the agent stops; `down` takes them away.
///
/// Settings of this host are in a file of its own. An option goes before its environment variable,
/// and that before the file.
#[derive(Debug, Parser)]
#[command(name = "wattle-agent", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options of all commands.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// File with the settings of this host: what these options set, and `[guard]`, what the host
    /// lets the mesh do to it. Without the file, peers still get no default route and nothing that
    /// the host itself reaches elsewhere.
    // It was --guard when it was for that alone.
    #[arg(
        long,
        alias = "guard",
        global = true,
        env = "WATTLE_CONFIG",
        value_name = "FILE",
        default_value = CONFIG
    )]
    config: PathBuf,

    /// Folder of the keys and of the last view of the mesh [default: /var/lib/wattle].
    #[arg(long, global = true, env = "WATTLE_STATE_DIR", value_name = "FOLDER")]
    state_dir: Option<PathBuf>,

    /// Name of the WireGuard interface [default: wattle0].
    #[arg(long, global = true, env = "WATTLE_INTERFACE", value_name = "NAME")]
    interface: Option<InterfaceName>,

    /// Which log lines are written, for example `debug` or `info,hyper=debug` [default: info].
    #[arg(long, global = true, env = "RUST_LOG", value_name = "FILTER")]
    log: Option<LogFilter>,

    /// Format of log lines [default: text].
    #[arg(long, global = true, env = "WATTLE_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsFile {
    state_dir: Option<PathBuf>,
    interface: Option<InterfaceName>,
    metrics: Option<SocketAddr>,
    log: Option<LogFilter>,
    log_format: Option<LogFormat>,
    no_offload: BTreeSet<Offload>,
    guard: Guard,
}

/// The settings of this host, from all the places where it has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The file.
    pub(crate) config: PathBuf,
    /// Folder of the keys and of the last view of the mesh.
    pub(crate) state_dir: PathBuf,
    /// Name of the WireGuard interface.
    pub(crate) interface: InterfaceName,
    /// Where `run` serves metrics, if it is not told.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) log: Option<LogFilter>,
    pub(crate) log_format: LogFormat,
    /// What a userspace device does without.
    pub(crate) no_offload: BTreeSet<Offload>,
    /// What this host lets the mesh do to it.
    pub(crate) guard: Guard,
}

/// The file of settings unless another is named.
pub(crate) const CONFIG: &str = "/etc/wattle/agent.toml";
/// Where an agent keeps its state unless it is told otherwise.
const STATE_DIR: &str = "/var/lib/wattle";
/// Where that agent answers the commands of its host.
const SOCKET: &str = "/run/wattle/agent.sock";

impl Settings {
    /// Those of a command line and of its file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not valid: what it forbids is not known then.
    pub(crate) fn load(options: &Options) -> anyhow::Result<Self> {
        let file: SettingsFile = settings::read(&options.config)?.unwrap_or_default();
        let settings = Self::merge(options, file)?;
        let locks_all_out =
            settings.guard.lock == Lock::Required && settings.guard.operator_keys.is_empty();
        ensure!(
            !locks_all_out,
            "{} requires the lock and names no `operator_keys`: nobody could be admitted",
            options.config.display()
        );
        Ok(settings)
    }

    /// Those of a command line alone, for a process that reads no file.
    pub(crate) fn without_file(options: &Options) -> anyhow::Result<Self> {
        Self::merge(options, SettingsFile::default())
    }

    fn merge(options: &Options, file: SettingsFile) -> anyhow::Result<Self> {
        let options = options.clone();
        let interface = options.interface.or(file.interface);
        let state_dir = options.state_dir.or(file.state_dir);
        Ok(Self {
            config: options.config,
            state_dir: state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            interface: interface.map_or_else(|| "wattle0".parse(), Ok)?,
            metrics: file.metrics,
            log: options.log.or(file.log),
            log_format: options.log_format.or(file.log_format).unwrap_or_default(),
            no_offload: file.no_offload,
            guard: file.guard,
        })
    }

    /// Takes over what others say that a running agent can. Names what it cannot.
    pub(crate) fn take_over(&mut self, read: Self) -> Option<&'static str> {
        self.guard = read.guard;
        self.metrics = read.metrics;
        let changed = [
            ("`state_dir`", self.state_dir != read.state_dir),
            ("`interface`", self.interface != read.interface),
            ("`log`", self.log != read.log),
            ("`log_format`", self.log_format != read.log_format),
            ("`no_offload`", self.no_offload != read.no_offload),
        ];
        changed
            .iter()
            .find(|(_, changed)| *changed)
            .map(|(name, _)| *name)
    }

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

/// What a command needs of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: its own words say all.
    Nothing,
    /// The file of settings.
    Settings,
    /// The settings, and the files of the node.
    Node,
}

impl Command {
    pub(crate) fn needs(&self) -> Needs {
        match self {
            Self::Device { .. } | Self::Completions { .. } | Self::Manual { .. } => Needs::Nothing,
            Self::Lock(_) | Self::Config(_) => Needs::Settings,
            Self::Join { .. }
            | Self::Run { .. }
            | Self::Status { .. }
            | Self::Verify { .. }
            | Self::Doctor { .. }
            | Self::History { .. }
            | Self::Plan { .. }
            | Self::Rotate { .. }
            | Self::Confirm
            | Self::Down => Needs::Node,
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
        /// Writes the key below `[guard]` in the file of --config, if that says nothing of a lock.
        #[arg(long = "lock", value_name = "PUBLIC_KEY")]
        operator_keys: Vec<OperatorKey>,
    },
    /// Follows the mesh until it is stopped. Waits for `join` if this machine is not a node yet.
    ///
    /// SIGHUP has it read the file of settings again; tunnels are not touched. A file that is not
    /// valid changes nothing. What sets the state folder, the interface and the log lines takes a
    /// restart, which does not touch tunnels either.
    Run {
        /// Serves metrics for Prometheus at http://<address>/metrics; without an address, on
        /// 127.0.0.1:9586.
        #[arg(
            long,
            value_name = "ADDRESS:PORT",
            env = "WATTLE_METRICS",
            num_args = 0..=1,
            default_missing_value = "127.0.0.1:9586"
        )]
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
    /// it joins with --lock, or by `lock = "required"` and `operator_keys` below `[guard]` in its
    /// /etc/wattle/agent.toml.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Removes the interface, its routes and the firewall table, and nothing that the agent did not
    /// make. The identity stays.
    Down,
    /// Looks at the file with the settings of this host.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints what lets a shell complete this program's commands, for example for
    /// ~/.local/share/bash-completion/completions/wattle-agent.
    Completions { shell: Shell },
    /// Writes man pages and completions to a folder; for packages.
    #[command(hide = true)]
    Manual { folder: PathBuf },
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
        /// What to do without, of what Linux does for many packets at once: `interface`, `send`,
        /// `receive`, or all. It is for kernels and network cards that spoil packets.
        #[arg(
            long,
            value_name = "WHICH",
            num_args = 0..=1,
            require_equals = true,
            value_delimiter = ',',
            default_missing_values = ["interface", "send", "receive"]
        )]
        no_offload: Vec<Offload>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks the file. Exits with 1, and names line and fix, if the agent would not start with it.
    Check,
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

#[cfg(test)]
impl Settings {
    /// Those of an agent with this state folder and no file.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self::in_folder_with(folder, &folder.join("agent.toml"))
    }

    /// Those of an agent with this state folder and file.
    pub(crate) fn in_folder_with(folder: &Path, config: &Path) -> Self {
        let words = ["wattle-agent".as_ref(), "status".as_ref()];
        let options = [
            "--state-dir".as_ref(),
            folder.as_os_str(),
            "--config".as_ref(),
        ];
        let words = words.into_iter().chain(options).chain([config.as_os_str()]);
        Self::load(&Cli::parse_from(words).options).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::*;

    fn load(text: &str, arguments: &[&str]) -> anyhow::Result<Settings> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("agent.toml");
        fs::write(&path, text)?;
        let words = ["wattle-agent".into(), "--config".into(), path];
        let arguments = arguments.iter().chain(&["status"]).map(PathBuf::from);
        let words = words.into_iter().chain(arguments);
        Settings::load(&Cli::parse_from(words).options)
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_what_nobody_says_is_as_usual() {
        Cli::command().debug_assert();
        let usual = load("", &[]).unwrap();
        assert_eq!(usual.state_dir, Path::new(STATE_DIR));
        assert_eq!(usual.socket(), Path::new(SOCKET));
        assert_eq!(usual.interface.as_str(), "wattle0");
        assert_eq!(usual.guard, Guard::default());
        let file = "state_dir = \"/srv/wattle\"\ninterface = \"mesh0\"\n\
                    metrics = \"127.0.0.1:9586\"\nlog_format = \"json\"\n\
                    [guard]\nallow = [\"10.0.0.0/8\"]\nrefuse = [\"10.9.0.0/16\"]\n";
        let settings = load(file, &["--interface", "wattle7"]).unwrap();
        assert_eq!(settings.interface.as_str(), "wattle7");
        assert_eq!(settings.socket(), Path::new("/srv/wattle/agent.sock"));
        assert_eq!(settings.metrics, Some("127.0.0.1:9586".parse().unwrap()));
        assert_eq!(settings.log_format, LogFormat::Json);
        let [allow, refuse] = ["10.0.0.0/8", "10.9.0.0/16"].map(|text| vec![text.parse().unwrap()]);
        let guard = Guard {
            allow: Some(allow),
            refuse,
            ..Guard::default()
        };
        assert_eq!(settings.guard, guard);
    }

    /// A lock that is misspelt, or that nobody could open, is an error and not an open door.
    #[test]
    fn what_is_no_setting_is_refused_with_its_line() {
        for (text, line) in [
            ("[guard]\nlock = \"Required\"", 2),
            ("[guard]\nlock = true", 2),
            ("[guard]\n\noperator_keys = [\"key\"]", 3),
            ("[guard]\nalow = []", 2),
            ("[guard]\nallow = [\"10.0.0.0/33\"]", 2),
            ("[guard]\nmost_peers = -1", 2),
            ("[guards]\n", 1),
            ("# guard.toml\nallow = []", 2),
            ("interface = \"a/b\"", 1),
            ("\nmetrics = \"127.0.0.1\"", 2),
            ("log = \"info,hyper=loud\"", 1),
            ("log_format = \"xml\"", 1),
        ] {
            let error = format!("{:#}", load(text, &[]).unwrap_err());
            assert!(
                error.contains(&format!("agent.toml, line {line}: ")),
                "{text}: {error}"
            );
        }
        let error = load("[guard]\nlock = \"required\"", &[]).unwrap_err();
        assert!(error.to_string().contains("operator_keys"), "{error}");
    }
}
