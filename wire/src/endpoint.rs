//! Where a gateway answers WireGuard packets.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use thiserror::Error;
use utoipa::ToSchema;

use crate::name::serde_as_text;

/// A unicast address and a port, `203.0.113.10:51820` or `[2001:db8::1]:51820`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, example = "203.0.113.10:51820")]
pub struct Endpoint(SocketAddr);

/// Why a text is not an [`Endpoint`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidEndpoint {
    #[error(
        "an endpoint is written address:port, for example 203.0.113.10:51820 or \
         [2001:db8::1]:51820; host names are not resolved"
    )]
    Syntax,
    #[error("port 0 is not allowed; WireGuard's usual port is 51820")]
    PortZero,
    #[error("{0} is {1} and cannot be reached from another site")]
    NotUnicast(IpAddr, &'static str),
}

impl Endpoint {
    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let socket: SocketAddr = text.parse().map_err(|_| InvalidEndpoint::Syntax)?;
        Self::try_from(socket)
    }
}

impl TryFrom<SocketAddr> for Endpoint {
    type Error = InvalidEndpoint;

    fn try_from(socket: SocketAddr) -> Result<Self, Self::Error> {
        let address = socket.ip().to_canonical();
        let reason = match address {
            _ if address.is_unspecified() => Some("the unspecified address"),
            _ if address.is_loopback() => Some("a loopback address"),
            _ if address.is_multicast() => Some("a multicast address"),
            IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] >= 240 => {
                Some("a broadcast or reserved address")
            }
            IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of this network"),
            IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        match reason {
            Some(reason) => Err(InvalidEndpoint::NotUnicast(address, reason)),
            None if socket.port() == 0 => Err(InvalidEndpoint::PortZero),
            None => Ok(Self(SocketAddr::new(address, socket.port()))),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_text!(Endpoint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b9_only_a_reachable_unicast_address_with_a_port_parses() {
        for good in ["203.0.113.10:51820", "[2001:db8::1]:51820", "10.0.0.1:1"] {
            assert_eq!(
                good.parse::<Endpoint>().map(|e| e.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "203.0.113.10",
            "203.0.113.10:0",
            "203.0.113.10:65536",
            "127.0.0.1:51820",
            "0.0.0.0:51820",
            "[::]:51820",
            "[::1]:51820",
            "224.0.0.1:51820",
            "255.255.255.255:51820",
            "[ff02::1]:51820",
            "[fe80::1]:51820",
            "169.254.0.1:1",
            "[::ffff:127.0.0.1]:1",
            "host:1; rm -rf /",
            "gateway.example:51820",
            " 203.0.113.10:51820",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
