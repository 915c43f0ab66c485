//! Why the guard refuses something, and what to do where it should not.

use std::fmt;

use ipnet::IpNet;
use wattle_wire::subnet::InvalidSubnet;

use crate::agent::{admission::Unsigned, underlay::Purpose};

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerReason {
    TooMany { most: usize },
    Unsigned(Unsigned),
}

/// Why a prefix or an address is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NotAdmitted,
    HostNetwork(IpNet),
    Underlay(Purpose),
    NotAllowed,
    NotServed,
    Listed(IpNet),
    NoLan(InvalidSubnet),
    NotInTunnelPrefix(IpNet),
}

/// Where the guard's rules are, and what makes the agent take them over.
const IN_FILE: &str =
    "below [guard] in /etc/wattle/agent.toml, and run `systemctl reload wattle-agent`";

impl PeerReason {
    pub(super) fn remedy(self) -> String {
        match self {
            Self::TooMany { .. } => {
                let raise = "if they belong to the mesh: raise `most_peers`";
                format!("{raise} {IN_FILE}")
            }
            Self::Unsigned(_) => "if they belong to the mesh: an operator signs for them with \
                                  `wattle-agent lock sign`"
                .to_owned(),
        }
    }
}

impl Reason {
    /// What to do about a subnet or a tunnel prefix that should be carried out.
    pub(super) fn remedy(&self, prefix: IpNet) -> String {
        let add = |list: &str| {
            format!("if this host should carry it out: add \"{prefix}\" to `{list}` {IN_FILE}")
        };
        match self {
            Self::NotAdmitted => "if it belongs to that site: an operator signs for it with \
                                  `wattle-agent lock sign`"
                .to_owned(),
            Self::HostNetwork(network) => format!(
                "give the hosts of {network} or those of {prefix} other addresses, or let the site \
                 have a subnet without them"
            ),
            Self::Underlay(_) => {
                format!("let the site have a narrower subnet than {prefix}, without this address")
            }
            Self::NotAllowed => add("allow"),
            Self::NotServed => add("serve"),
            Self::Listed(listed) => format!(
                "if this host should carry it out: take \"{listed}\" out of `refuse` {IN_FILE}"
            ),
            Self::NoLan(_) | Self::NotInTunnelPrefix(_) => {
                "see who changed the mesh (`GET /events`): no coordinator in the right hands asks \
                 for it"
                    .to_owned()
            }
        }
    }
}

impl fmt::Display for PeerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { most } => write!(f, "most_peers is {most}"),
            Self::Unsigned(unsigned) => unsigned.fmt(f),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAdmitted => f.write_str("its admission does not cover it"),
            Self::HostNetwork(network) => write!(
                f,
                "this host has the network {network} on another interface"
            ),
            Self::Underlay(purpose) => write!(
                f,
                "it is {purpose}, which must be reached outside of the tunnel"
            ),
            Self::NotAllowed => f.write_str("it is in no prefix of `allow`"),
            Self::NotServed => f.write_str("it is in no prefix of `serve`"),
            Self::NoLan(invalid) => invalid.fmt(f),
            Self::NotInTunnelPrefix(prefix) => write!(f, "it is not in the tunnel prefix {prefix}"),
            Self::Listed(prefix) => write!(f, "`refuse` names {prefix}"),
        }
    }
}
