//! The command line, and the settings of the coordinator that it may stand in for.

mod commands;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::{Args, Parser, builder::BoolishValueParser};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, de::Error};
use wattle_program::{
    log::{LogFilter, LogFormat},
    settings,
};

pub use self::commands::{AuditCommand, CaCommand, Command, ConfigCommand, TokenCommand};

/// The coordinator of a Wattle mesh: it stores sites, keys and subnets, and tells each gateway what
/// it must know.
///
/// Without a command it runs, until it is stopped. Without --database-url it keeps a private
/// Postgres in its data directory: nothing needs to be configured. On the first start it writes an
/// api token for the owner of the mesh to <data-dir>/api-token.
///
/// An option goes before its environment variable, and that before the file of settings.
#[derive(Debug, Parser)]
#[command(name = "wattle-server", version, max_term_width = 100)]
pub struct Arguments {
    /// File with settings of the coordinator: what these options set, such as `listen =
    /// "0.0.0.0:8443"`
    #[arg(
        long,
        env = "WATTLE_CONFIG",
        default_value = CONFIG,
        value_name = "FILE",
        global = true
    )]
    config: PathBuf,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The file of settings unless another is named.
const CONFIG: &str = "/etc/wattle/server.toml";

/// Settings as one place has them: the command line with the environment, or the file.
#[derive(Args, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Folder of the api token of the first start, of the certificate authority (ca.pem), and of
    /// the private database [default: /var/lib/wattle-server]
    #[arg(long, env = "WATTLE_DATA_DIR", value_name = "FOLDER", global = true)]
    data_dir: Option<PathBuf>,
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
    #[arg(
        long,
        env = "WATTLE_DATABASE_POOLER",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        global = true
    )]
    database_pooler: Option<bool>,
    /// Which log lines are written, for example `debug` or `info,sqlx=debug` [default:
    /// info,sqlx=warn]
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", global = true)]
    log: Option<LogFilter>,
    /// Format of log lines [default: text]
    #[arg(
        long,
        env = "WATTLE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        global = true
    )]
    log_format: Option<LogFormat>,
    /// The address to listen on [default: 127.0.0.1:8443]
    #[arg(long, env = "WATTLE_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Serves the API and the web page at this address instead of --listen, to keep them off the
    /// network of the gateways
    #[arg(long, env = "WATTLE_ADMIN_LISTEN", value_name = "ADDRESS:PORT")]
    admin_listen: Option<SocketAddr>,
    /// Serves /metrics at this address instead of --listen
    #[arg(long, env = "WATTLE_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// URL at which agents reach this coordinator; join strings and the certificate contain it.
    /// Separate several by commas [default: https://<listen>]
    #[arg(long, env = "WATTLE_URL", value_delimiter = ',', value_name = "URL", value_parser = base_url)]
    #[serde(deserialize_with = "one_or_more_urls")]
    url: Option<Vec<String>>,
    /// Where gateways find the packages of the agent, as scripts/package makes them: join tokens
    /// then come with the command that installs it
    #[arg(long, env = "WATTLE_PACKAGES", value_name = "URL", value_parser = packages_url)]
    #[serde(deserialize_with = "some_packages_url")]
    packages: Option<String>,
    /// A publicly valid certificate with its chain, in PEM; without it the coordinator makes its
    /// own authority, which agents know by its pin. It is read again when it changes
    #[arg(long, env = "WATTLE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM
    #[arg(long, env = "WATTLE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speaks HTTP without TLS: tokens and all else can be read on the way. For a loopback address,
    /// or behind a proxy that speaks TLS at each --url
    #[arg(
        long,
        env = "WATTLE_INSECURE_HTTP",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new()
    )]
    insecure_http: Option<bool>,
    /// Allows webhooks to addresses that are not public, or a coordinator's, in this prefix, such as
    /// 10.0.5.3/32 for a relay nearby. May be repeated
    #[arg(
        long,
        env = "WATTLE_WEBHOOK_ALLOW",
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    webhook_allow: Option<Vec<IpNet>>,
    /// Prefix of the mesh's tunnel addresses. It cannot be changed after the first start [default:
    /// 10.99.0.0/16]
    #[arg(long, env = "WATTLE_TUNNEL_PREFIX", value_name = "PREFIX", value_parser = tunnel_prefix)]
    #[serde(deserialize_with = "some_tunnel_prefix")]
    tunnel_prefix: Option<Ipv4Net>,
}

impl Settings {
    /// These, and those of another place where these are silent.
    fn or(self, other: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(other.data_dir),
            database_url: self.database_url.or(other.database_url),
            database_pooler: self.database_pooler.or(other.database_pooler),
            log: self.log.or(other.log),
            log_format: self.log_format.or(other.log_format),
            listen: self.listen.or(other.listen),
            admin_listen: self.admin_listen.or(other.admin_listen),
            metrics_listen: self.metrics_listen.or(other.metrics_listen),
            url: self.url.or(other.url),
            packages: self.packages.or(other.packages),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            insecure_http: self.insecure_http.or(other.insecure_http),
            webhook_allow: self.webhook_allow.or(other.webhook_allow),
            tunnel_prefix: self.tunnel_prefix.or(other.tunnel_prefix),
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the database's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

impl Arguments {
    /// The settings of the coordinator, from all the places where it has some.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not valid, or when two settings exclude each other.
    pub fn config(self) -> anyhow::Result<Config> {
        let file = settings::read::<Settings>(&self.config)?;
        Config::new(self.config, self.settings.or(file.unwrap_or_default()))
    }
}

/// The settings of a coordinator.
#[derive(Clone)]
pub struct Config {
    /// The file that may have some of them.
    pub file: PathBuf,
    /// Folder of the api token of the first start, of the certificate authority, and of the private
    /// database.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the API and the page are served instead.
    pub admin_listen: Option<SocketAddr>,
    /// Where metrics are served instead.
    pub metrics_listen: Option<SocketAddr>,
    /// Where agents reach it, as people said; empty when nobody did.
    pub given_urls: Vec<String>,
    /// Where gateways find the packages of the agent.
    pub packages: Option<String>,
    tls_files: Option<(PathBuf, PathBuf)>,
    /// Speaks HTTP without TLS.
    pub insecure_http: bool,
    database_url: Option<String>,
    /// The database's URL is that of a pooler.
    pub database_pooler: bool,
    /// Where webhooks may lead although it is not public.
    pub webhook_allow: Vec<IpNet>,
    /// Prefix of the mesh's tunnel addresses.
    pub tunnel_prefix: Ipv4Net,
    pub log: Option<LogFilter>,
    pub log_format: LogFormat,
}

impl Config {
    fn new(file: PathBuf, settings: Settings) -> anyhow::Result<Self> {
        let tls_files = match (settings.tls_cert, settings.tls_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => anyhow::bail!(
                "`tls_cert` needs `tls_key`: give the certificate's private key, too (--tls-key)"
            ),
            (None, Some(_)) => anyhow::bail!(
                "`tls_key` needs `tls_cert`: give the key's certificate, too (--tls-cert)"
            ),
        };
        let insecure_http = settings.insecure_http.unwrap_or_default();
        ensure!(
            !insecure_http || tls_files.is_none(),
            "`insecure_http` (--insecure-http) and `tls_cert` (--tls-cert) exclude each other"
        );
        let default_dir = || PathBuf::from("/var/lib/wattle-server");
        Ok(Self {
            file,
            data_dir: settings.data_dir.unwrap_or_else(default_dir),
            listen: settings
                .listen
                .map_or_else(|| "127.0.0.1:8443".parse(), Ok)?,
            admin_listen: settings.admin_listen,
            metrics_listen: settings.metrics_listen,
            given_urls: settings.url.unwrap_or_default(),
            packages: settings.packages,
            tls_files,
            insecure_http,
            database_url: settings.database_url,
            database_pooler: settings.database_pooler.unwrap_or_default(),
            webhook_allow: settings.webhook_allow.unwrap_or_default(),
            tunnel_prefix: settings
                .tunnel_prefix
                .map_or_else(|| "10.99.0.0/16".parse(), Ok)?,
            log: settings.log,
            log_format: settings.log_format.unwrap_or_default(),
        })
    }

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

    /// Checks what the types of the settings do not say.
    ///
    /// # Errors
    ///
    /// When the coordinator would not start.
    pub fn check(&self) -> anyhow::Result<()> {
        let listened = [Some(self.listen), self.admin_listen, self.metrics_listen];
        self.urls(&listened.into_iter().flatten().collect::<Vec<_>>())?;
        Ok(())
    }

    /// Files of a certificate and its key, in place of one by an authority of our own.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        let (certificate, key) = self.tls_files.as_ref()?;
        Some((certificate, key))
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

/// The text becomes a part of a command that root runs, between double quotes.
fn packages_url(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/%+,=[]".contains(&byte);
    match text.strip_prefix("https://") {
        Some(rest) if !rest.is_empty() && rest.bytes().all(plain) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(
            "packages come by https://, from a URL of letters, digits and -._~:/%+,=[]".to_owned(),
        ),
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

/// A URL, or a list of them.
fn one_or_more_urls<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Urls {
        One(String),
        More(Vec<String>),
    }
    let urls = match Urls::deserialize(deserializer)? {
        Urls::One(url) => vec![url],
        Urls::More(urls) => urls,
    };
    let urls: Result<_, String> = urls.iter().map(|url| base_url(url)).collect();
    urls.map(Some).map_err(D::Error::custom)
}

fn some_tunnel_prefix<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Ipv4Net>, D::Error> {
    let text = String::deserialize(deserializer)?;
    tunnel_prefix(&text).map(Some).map_err(D::Error::custom)
}

fn some_packages_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    packages_url(&text).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::*;

    fn config(text: &str, arguments: &[&str]) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("server.toml");
        fs::write(&path, text)?;
        let words = ["wattle-server".into(), "--config".into(), path];
        let words = words.into_iter().chain(arguments.iter().map(PathBuf::from));
        Arguments::try_parse_from(words)?.config()
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_what_nobody_says_is_as_usual() {
        Arguments::command().debug_assert();
        let usual = config("", &[]).unwrap();
        assert_eq!(usual.listen, "127.0.0.1:8443".parse().unwrap());
        assert_eq!(usual.data_dir, Path::new("/var/lib/wattle-server"));
        assert_eq!(usual.tunnel_prefix, "10.99.0.0/16".parse().unwrap());
        assert!(!usual.insecure_http && !usual.database_pooler);
        let file = "listen = \"0.0.0.0:8443\"\nurl = \"https://one.example:8443/\"\n\
                    database_pooler = true\nwebhook_allow = [\"10.0.5.3/32\"]\n\
                    tunnel_prefix = \"10.98.0.0/16\"\ndatabase_url = \"postgres://a:b@c/d\"\n";
        let settings = config(
            file,
            &["--listen", "192.0.2.1:9443", "--database-pooler=false"],
        );
        let settings = settings.unwrap();
        assert_eq!(settings.listen, "192.0.2.1:9443".parse().unwrap());
        assert_eq!(settings.given_urls, ["https://one.example:8443"]);
        assert!(!settings.database_pooler);
        assert_eq!(settings.webhook_allow, ["10.0.5.3/32".parse().unwrap()]);
        assert_eq!(settings.tunnel_prefix, "10.98.0.0/16".parse().unwrap());
        assert_eq!(settings.database_url(), Some("postgres://a:b@c/d"));
        assert!(!format!("{settings:?}").contains("postgres://"));
        let two = config(
            "url = [\"https://one.example\", \"https://two.example\"]",
            &[],
        );
        assert_eq!(two.unwrap().given_urls.len(), 2);
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_line_and_without_a_password() {
        for (text, line, words) in [
            ("\nlisten = \"8443\"", 2, "invalid socket address"),
            ("listn = \"0.0.0.0:8443\"", 1, "`listen`"),
            (
                "url = \"coordinator.example\"",
                1,
                "a URL is written https://host:port",
            ),
            ("url = 5", 1, ""),
            ("tunnel_prefix = \"fd00::/64\"", 1, "must be IPv4"),
            ("packages = \"http://p.example\"", 1, "https://"),
            (
                "packages = 'https://p.example/$(reboot)'",
                1,
                "letters, digits",
            ),
            ("# a\ninsecure_http = \"yes\"", 2, "expected a boolean"),
            ("database_url = postgres://wattle:hunter2@db/wattle", 1, ""),
            (
                "database-url = \"postgres://wattle:hunter2@db/wattle\"",
                1,
                "`database_url`",
            ),
        ] {
            let error = format!("{:#}", config(text, &[]).unwrap_err());
            let begin = format!("server.toml, line {line}: ");
            assert!(
                error.contains(&begin) && error.contains(words),
                "{text}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (text, words) in [
            ("tls_cert = \"/a\"", "`tls_cert` needs `tls_key`"),
            ("tls_key = \"/a\"", "`tls_key` needs `tls_cert`"),
            (
                "tls_cert = \"/a\"\ntls_key = \"/b\"\ninsecure_http = true",
                "exclude each other",
            ),
        ] {
            let error = config(text, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let open = config("listen = \"0.0.0.0:8443\"\ninsecure_http = true", &[]).unwrap();
        let error = open.urls(&[open.listen]).unwrap_err().to_string();
        assert!(error.contains("--insecure-http"), "{error}");
    }

    #[test]
    fn a_command_shows_its_own_options_and_those_of_the_place_of_the_data() {
        let mut command = Arguments::command();
        command.build();
        let create = command.find_subcommand("token").unwrap();
        let create = create.find_subcommand("create").unwrap();
        let shown: Vec<_> = create
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .collect();
        let own = ["name", "role", "expires-in-s"];
        let all = [
            "config",
            "data-dir",
            "database-url",
            "database-pooler",
            "log",
            "log-format",
        ];
        for option in own.iter().chain(&all) {
            assert!(shown.contains(option), "{option} of {shown:?}");
        }
        assert!(!shown.contains(&"listen"), "{shown:?}");
    }
}
