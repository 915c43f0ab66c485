//! The commands beside running a coordinator.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use clap_complete::Shell;
use wattle_mesh::audit::Head;
use wattle_wire::{
    admin::{NewApiToken, Role},
    ids::TokenId,
    key::Bytes32,
};

use crate::fingerprint::parse_fingerprint;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    /// Looks at the file of settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Asks the coordinator that runs with these settings on this host whether it is ready. Exits
    /// with 1 if it is not
    Healthcheck,
    /// Prints the OpenAPI description of the REST interface
    Openapi,
    /// Prints what lets a shell complete this program's commands, for example for
    /// ~/.local/share/bash-completion/completions/wattle-server
    Completions { shell: Shell },
    /// Writes man pages and completions to a folder; for packages
    #[command(hide = true)]
    Manual { folder: PathBuf },
}

/// What to do with the file of settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks it. Exits with 1, and names line and fix, if the coordinator would not start with it
    Check,
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
        #[arg(long, default_value = "viewer")]
        role: Role,
        /// Seconds until it expires; without this it never does
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..=NewApiToken::LONGEST_S))]
        expires_in_s: Option<i64>,
    },
    /// Lists api tokens, without their secrets
    List {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
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
    List {
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
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
        /// Prints JSON
        #[arg(long)]
        json: bool,
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

fn token_name(text: &str) -> Result<String, String> {
    match crate::text::check("name", text) {
        Ok(()) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err("a name has 1 to 256 characters, none of them invisible".to_owned()),
    }
}
