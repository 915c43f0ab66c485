//! What the coordinator is told on its command line and in its environment.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use wattle_mesh::audit::Head;
use wattle_wire::{
    admin::{NewApiToken, Role},
    ids::TokenId,
    key::Bytes32,
};

use crate::fingerprint::parse_fingerprint;

/// The coordinator of a Wattle mesh: it stores sites, keys and subnets, and tells each gateway what
/// it must know.
///
/// Without --database-url it keeps a private Postgres in its data directory: nothing needs to be
/// configured. On the first start it writes an api token for the owner of the mesh to
/// <data-dir>/api-token.
#[derive(Debug, Parser)]
#[command(name = "wattle-server", version)]
pub struct Arguments {
    #[command(flatten)]
    pub config: Config,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Settings of the coordinator.
#[derive(Clone, Parser)]
pub struct Config {
    /// Folder of the api token of the first start, of the certificate authority (ca.pem), and of
    /// the private database
    #[arg(
        long,
        env = "WATTLE_DATA_DIR",
        default_value = "/var/lib/wattle-server",
        value_name = "FOLDER",
        global = true
    )]
    pub data_dir: PathBuf,
    /// The address to listen on
    #[arg(
        long,
        env = "WATTLE_LISTEN",
        default_value = "127.0.0.1:8443",
        value_name = "ADDRESS:PORT",
        global = true
    )]
    pub listen: SocketAddr,
    /// Serves the API and the web page at this address instead of --listen, to keep them off the
    /// network of the gateways
    #[arg(
        long,
        env = "WATTLE_ADMIN_LISTEN",
        value_name = "ADDRESS:PORT",
        global = true
    )]
    pub admin_listen: Option<SocketAddr>,
    /// Serves /metrics at this address instead of --listen
    #[arg(
        long,
        env = "WATTLE_METRICS_LISTEN",
        value_name = "ADDRESS:PORT",
        global = true
    )]
    pub metrics_listen: Option<SocketAddr>,
    /// URL at which agents reach this coordinator; join strings and the certificate contain it.
    /// Separate several by commas [default: https://<listen>]
    #[arg(long = "url", env = "WATTLE_URL", value_delimiter = ',', value_name = "URL", value_parser = base_url, global = true)]
    pub given_urls: Vec<String>,
    /// A publicly valid certificate with its chain, in PEM; without it the coordinator makes its
    /// own authority, which agents know by its pin. It is read again when it changes
    #[arg(
        long,
        env = "WATTLE_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key",
        global = true
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM
    #[arg(
        long,
        env = "WATTLE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert",
        global = true
    )]
    tls_key: Option<PathBuf>,
    /// Speaks HTTP without TLS: tokens and all else can be read on the way. For a loopback address,
    /// or behind a proxy that speaks TLS at each --url
    #[arg(
        long,
        env = "WATTLE_INSECURE_HTTP",
        conflicts_with = "tls_cert",
        global = true
    )]
    pub insecure_http: bool,
    /// Uses this Postgres (15 or later) instead of a private one:
    /// postgres://user:password@host:port/database
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        global = true
    )]
    database_url: Option<String>,
    /// The database URL is that of a pooler that shares connections, such as pgbouncer in
    /// transaction mode; changes through other coordinators then arrive within two seconds instead
    /// of at once
    #[arg(long, env = "WATTLE_DATABASE_POOLER", global = true)]
    pub database_pooler: bool,
    /// Allows webhooks to addresses that are not public, or a coordinator's, in this prefix, such as
    /// 10.0.5.3/32 for a relay nearby. May be repeated
    #[arg(
        long,
        env = "WATTLE_WEBHOOK_ALLOW",
        value_name = "PREFIX",
        value_delimiter = ',',
        global = true
    )]
    pub webhook_allow: Vec<IpNet>,
    /// Prefix of the mesh's tunnel addresses. It cannot be changed after the first start
    #[arg(long, env = "WATTLE_TUNNEL_PREFIX", default_value = "10.99.0.0/16", value_name = "PREFIX", value_parser = tunnel_prefix, global = true)]
    pub tunnel_prefix: Ipv4Net,
    /// Format of log lines. `RUST_LOG` sets which are written
    #[arg(
        long,
        env = "WATTLE_LOG_FORMAT",
        default_value = "text",
        value_name = "FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// Format of log lines. `RUST_LOG` sets which are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the coordinator (the default)
    Serve,
    /// Makes, lists and revokes api tokens, also while the coordinator runs
    #[command(subcommand)]
    Token(TokenCommand),
    /// Replaces the certificate authority of the mesh, also while coordinators run
    ///
    /// First `next` on one coordinator; copy ca.next.pem to the data directories of the others.
    /// Wait until every agent has reported, which takes it a minute, then `switch` on each, and
    /// last `forget` the old one. An agent that was away all the time joins again with a new join
    /// string; it keeps its keys and its tunnels.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Checks and prints the audit log, also while the coordinator runs
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Prints the OpenAPI description of the REST interface
    Openapi,
}

/// What to do with api tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes an api token and prints it. It cannot be shown again
    Create {
        /// Name of the token: what it is for
        #[arg(long, value_parser = token_name)]
        name: String,
        /// What it may do: viewer, operator or owner
        #[arg(long, default_value = "owner")]
        role: Role,
        /// Seconds until it expires; without this it never does
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..=NewApiToken::LONGEST_S))]
        expires_in_s: Option<i64>,
    },
    /// Lists api tokens, without their secrets
    List,
    /// Revokes an api token
    Revoke {
        /// Its id, as `list` shows it
        id: TokenId,
    },
}

/// What to do with certificate authorities.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Lists the fingerprints of the authorities that agents trust
    List,
    /// Makes the next authority, and tells the agents
    Next,
    /// Replaces the present authority by the next one, on this coordinator
    Switch,
    /// Ends the trust in an authority
    Forget {
        /// Its fingerprint, as `list` shows it
        #[arg(value_parser = parse_fingerprint)]
        fingerprint: Bytes32,
    },
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Prints what was done, by whom and to what, the newest last
    List {
        /// Only what was done to this: an id or a name
        #[arg(long, value_name = "ID|NAME")]
        object: Option<String>,
        /// Only what this one did: id or name of an api token or node, or "command line"
        #[arg(long, value_name = "ID|NAME")]
        actor: Option<String>,
        /// From this moment on, for example 2026-11-28T09:30:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<DateTime<Utc>>,
        /// Before this moment
        #[arg(long, value_name = "TIME")]
        until: Option<DateTime<Utc>>,
        /// As many of the newest at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: u32,
    },
    /// Checks the chain of hashes from the first event to the last, and prints its end. Fails if an
    /// event is missing or altered
    Verify {
        /// The end that an earlier check printed. Fails if it is no longer in the chain, as after
        /// somebody rewrote the log
        #[arg(long, value_name = "NUMBER.HASH")]
        seen: Option<Head>,
    },
}

impl Config {
    /// The database to use; an empty one in the environment counts as none.
    pub fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref().filter(|url| !url.is_empty())
    }

    /// Where agents reach the coordinator that listens on these addresses, on the first of them for
    /// agents.
    ///
    /// # Errors
    ///
    /// When secrets would cross a network in the clear.
    pub fn urls(&self, addresses: &[SocketAddr]) -> anyhow::Result<Vec<String>> {
        let is_tls = |url: &String| url.starts_with("https://");
        if self.insecure_http {
            let behind_proxy = !self.given_urls.is_empty() && self.given_urls.iter().all(is_tls);
            for address in addresses {
                ensure!(
                    address.ip().is_loopback() || behind_proxy,
                    "--insecure-http on {address} would show every token to the network: listen on \
                     a loopback address, or give the \
                     https:// URL of the proxy in front with --url"
                );
            }
        } else {
            ensure!(
                self.given_urls.iter().all(is_tls),
                "the coordinator serves TLS: write --url as https://host:port"
            );
        }
        let scheme = if self.insecure_http { "http" } else { "https" };
        let own = || {
            addresses
                .iter()
                .take(1)
                .map(|address| format!("{scheme}://{address}"))
                .collect()
        };
        Ok(if self.given_urls.is_empty() {
            own()
        } else {
            self.given_urls.clone()
        })
    }

    /// Files of a certificate and its key, in place of one by an authority of our own.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

impl std::fmt::Debug for Config {
    /// Without the database's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

fn base_url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let valid = rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_graphic())
            && !rest.contains(['?', '#', '@'])
    });
    if valid {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("a URL is written https://host:port".to_owned())
    }
}

fn tunnel_prefix(text: &str) -> Result<Ipv4Net, String> {
    let subnet: wattle_wire::subnet::Subnet = text
        .parse()
        .map_err(|error: wattle_wire::subnet::InvalidSubnet| error.to_string())?;
    match subnet.net() {
        IpNet::V4(net) if net.prefix_len() <= 29 => Ok(net),
        IpNet::V4(_) | IpNet::V6(_) => Err(
            "the tunnel prefix must be IPv4 and large enough for the gateways, for example \
                10.99.0.0/16"
                .to_owned(),
        ),
    }
}

fn token_name(text: &str) -> Result<String, String> {
    match crate::text::check("name", text) {
        Ok(()) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("a name has 1 to 256 characters, none of them invisible".to_owned()),
    }
}
