//! What the coordinator is told on its command line and in its environment.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use wattle_mesh::audit::Head;
use wattle_wire::{
    admin::{NewApiToken, Role},
    ids::TokenId,
    key::Bytes32,
};

use crate::authority::parse_fingerprint;

/// The coordinator of a Wattle mesh: it stores sites, keys and subnets, and tells each gateway what it must know.
///
/// Without --database-url it keeps a private Postgres in its data directory: nothing needs to be configured. On the first start it
/// writes an api token for the owner of the mesh to <data-dir>/api-token.
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
    /// Where the api token of the first start and the private database are kept
    #[arg(long, env = "WATTLE_DATA_DIR", default_value = "/var/lib/wattle-server", value_name = "FOLDER", global = true)]
    pub data_dir: PathBuf,
    /// The address to listen on
    #[arg(long, env = "WATTLE_LISTEN", default_value = "127.0.0.1:8443", value_name = "ADDRESS:PORT", global = true)]
    pub listen: SocketAddr,
    /// Serves people and scripts, and the page, at this address and no longer at --listen; for a network that gateways do not reach
    #[arg(long, env = "WATTLE_ADMIN_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    pub admin_listen: Option<SocketAddr>,
    /// Serves metrics at this address, and nowhere else
    #[arg(long, env = "WATTLE_METRICS_LISTEN", value_name = "ADDRESS:PORT", global = true)]
    pub metrics_listen: Option<SocketAddr>,
    /// Where agents reach the coordinator, for join strings and its certificate; several with commas [default: https://<listen>]
    #[arg(long = "url", env = "WATTLE_URL", value_delimiter = ',', value_name = "URL", value_parser = base_url, global = true)]
    pub given_urls: Vec<String>,
    /// A publicly valid certificate with its chain, in PEM; without it the coordinator makes its own authority, which agents know by its
    /// pin. It is read again when it changes
    #[arg(long, env = "WATTLE_TLS_CERT", value_name = "FILE", requires = "tls_key", global = true)]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM
    #[arg(long, env = "WATTLE_TLS_KEY", value_name = "FILE", requires = "tls_cert", global = true)]
    tls_key: Option<PathBuf>,
    /// Speaks HTTP without TLS: tokens and all else can be read on the way. For a loopback address, or behind a proxy that speaks TLS at
    /// each --url
    #[arg(long, env = "WATTLE_INSECURE_HTTP", conflicts_with = "tls_cert", global = true)]
    pub insecure_http: bool,
    /// A Postgres 15 or later to use in place of a private one, postgres://user:password@host:port/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    database_url: Option<String>,
    /// The database URL is that of a pooler that shares connections, such as pgbouncer in transaction mode; changes through other
    /// coordinators then arrive within two seconds instead of at once
    #[arg(long, env = "WATTLE_DATABASE_POOLER", global = true)]
    pub database_pooler: bool,
    /// A prefix to which webhooks may lead although it is this host's own or link-local, such as 127.0.0.1/32 for a relay here; may be given several times
    #[arg(long, env = "WATTLE_WEBHOOK_ALLOW", value_name = "PREFIX", value_delimiter = ',', global = true)]
    pub webhook_allow: Vec<IpNet>,
    /// The prefix of the mesh's tunnel addresses; it is fixed at the first start
    #[arg(long, env = "WATTLE_TUNNEL_PREFIX", default_value = "10.99.0.0/16", value_name = "PREFIX", value_parser = tunnel_prefix, global = true)]
    pub tunnel_prefix: Ipv4Net,
    /// How log lines look; `RUST_LOG` says which are written
    #[arg(long, env = "WATTLE_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: LogFormat,
}

/// How log lines look.
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
    /// Replaces the certificate authority by which agents know the coordinators, also while they run
    ///
    /// First `next` on one coordinator; copy ca.next.pem to the data directories of the others. Wait until every agent has reported, which
    /// takes it a minute, then `switch` on each, and last `forget` the old one. An agent that was away all the time joins again with a new
    /// join string; it keeps its keys and its tunnels.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Checks the audit log, also while the coordinator runs
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Prints the OpenAPI description of the REST interface
    Openapi,
}

/// What to do with api tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes an api token and prints it, this once
    Create {
        /// What the token is for, for people to read
        #[arg(long, value_parser = token_name)]
        name: String,
        /// What it may do: viewer, operator or owner
        #[arg(long, default_value = "owner")]
        role: Role,
        /// Seconds until it expires; it does not when this is absent
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
    /// Lists the fingerprints of the authorities that agents are to trust
    List,
    /// Makes the authority that is to follow, and lets agents know
    Next,
    /// Puts the next authority in the place of the present one, on this coordinator
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
    /// Follows its chain from the first event to the last, and prints the end; fails where an event is missing or altered
    Verify {
        /// The end that an earlier check printed: fails unless it is still in the chain, which nobody can rewrite without it
        #[arg(long, value_name = "NUMBER.HASH")]
        seen: Option<Head>,
    },
}

impl Config {
    /// The database to use; an empty one in the environment counts as none.
    pub fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref().filter(|url| !url.is_empty())
    }

    /// Where agents reach the coordinator that listens on these addresses, on the first of them for agents.
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
                    "--insecure-http on {address} would show every token to the network: listen on a loopback address, or give the \
                     https:// URL of the proxy in front with --url"
                );
            }
        } else {
            ensure!(self.given_urls.iter().all(is_tls), "the coordinator speaks TLS: --url is written https://host:port");
        }
        let scheme = if self.insecure_http { "http" } else { "https" };
        let own = || addresses.iter().take(1).map(|address| format!("{scheme}://{address}")).collect();
        Ok(if self.given_urls.is_empty() { own() } else { self.given_urls.clone() })
    }

    /// Files of a certificate and its key, in place of one by an authority of our own.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

impl std::fmt::Debug for Config {
    /// Without the database's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("data_dir", &self.data_dir).field("listen", &self.listen).finish_non_exhaustive()
    }
}

fn base_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let valid = rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()) && !rest.contains(['?', '#', '@']));
    if valid { Ok(text.trim_end_matches('/').to_owned()) } else { Err("a URL is written https://host:port".to_owned()) }
}

fn tunnel_prefix(text: &str) -> Result<Ipv4Net, String> {
    let subnet: wattle_wire::subnet::Subnet = text.parse().map_err(|error: wattle_wire::subnet::InvalidSubnet| error.to_string())?;
    match subnet.net() {
        IpNet::V4(net) if net.prefix_len() <= 29 => Ok(net),
        IpNet::V4(_) | IpNet::V6(_) => {
            Err("the tunnel prefix is of IPv4 and has room for some gateways, for example 10.99.0.0/16".to_owned())
        }
    }
}

fn token_name(text: &str) -> Result<String, String> {
    match crate::text::check("name", text) {
        Ok(()) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("a name has 1 to 256 characters, none of them invisible".to_owned()),
    }
}
