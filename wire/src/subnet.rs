//! Prefixes that a site may own.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use utoipa::ToSchema;

use crate::name::serde_as_text;

/// The shortest IPv4 prefix that a site may own.
pub const SHORTEST_V4: u8 = 8;
/// The shortest IPv6 prefix that a site may own.
pub const SHORTEST_V6: u8 = 32;

/// A LAN prefix of a site, in canonical text: `10.10.0.0/24`, never `10.10.0.1/24`.
///
/// Ranges that can never be somebody's LAN (loopback, link-local, multicast, mapped and translated
/// addresses) do not parse.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, example = "10.10.0.0/24")]
pub struct Subnet(IpNet);

/// Why a text is not a [`Subnet`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidSubnet {
    #[error("a prefix is written address/length, for example 10.10.0.0/24")]
    Syntax,
    #[error("{address}/{length} has host bits set; the prefix is {canonical}")]
    HostBits {
        address: IpAddr,
        length: u8,
        canonical: IpNet,
    },
    #[error("a prefix is written in its canonical form, {0}")]
    NotCanonical(IpNet),
    #[error(
        "{0} is too wide for a site: at least /{SHORTEST_V4} for IPv4 and /{SHORTEST_V6} for IPv6"
    )]
    TooWide(IpNet),
    #[error("{0} lies in {1}, which cannot be a LAN")]
    Reserved(IpNet, &'static str),
}

impl Subnet {
    /// How many a site has at most.
    pub const MOST: usize = 256;

    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether the two prefixes share an address.
    pub fn overlaps(self, other: IpNet) -> bool {
        overlap(self.0, other)
    }
}

/// Whether two prefixes share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: IpNet = text.parse().map_err(|_| InvalidSubnet::Syntax)?;
        let canonical = net.trunc();
        if net != canonical {
            return Err(InvalidSubnet::HostBits {
                address: net.addr(),
                length: net.prefix_len(),
                canonical,
            });
        }
        if canonical.to_string() != text {
            return Err(InvalidSubnet::NotCanonical(canonical));
        }
        Self::try_from(canonical)
    }
}

impl TryFrom<IpNet> for Subnet {
    type Error = InvalidSubnet;

    fn try_from(net: IpNet) -> Result<Self, Self::Error> {
        let canonical = net.trunc();
        if net != canonical {
            return Err(InvalidSubnet::HostBits {
                address: net.addr(),
                length: net.prefix_len(),
                canonical,
            });
        }
        let shortest = if net.addr().is_ipv4() {
            SHORTEST_V4
        } else {
            SHORTEST_V6
        };
        if net.prefix_len() < shortest {
            return Err(InvalidSubnet::TooWide(net));
        }
        match reserved_ranges()
            .into_iter()
            .find(|(range, _)| overlap(*range, net))
        {
            Some((_, what)) => Err(InvalidSubnet::Reserved(net, what)),
            None => Ok(Self(net)),
        }
    }
}

/// The special ranges of RFC 6890 and its successors that no site can own.
fn reserved_ranges() -> [(IpNet, &'static str); 12] {
    let v4 = |a, b, c, d, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length));
    let v6 = |head: u16, second: u16, length| {
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(head, second, 0, 0, 0, 0, 0, 0),
            length,
        ))
    };
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    [
        (v4(0, 0, 0, 0, 8), "0.0.0.0/8 (this network)"),
        (v4(127, 0, 0, 0, 8), "127.0.0.0/8 (loopback)"),
        (v4(169, 254, 0, 0, 16), "169.254.0.0/16 (link-local)"),
        (v4(224, 0, 0, 0, 4), "224.0.0.0/4 (multicast)"),
        (v4(240, 0, 0, 0, 4), "240.0.0.0/4 (reserved)"),
        (
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 95)),
            "::/95 (unspecified, loopback, IPv4-compatible)",
        ),
        (
            IpNet::V6(Ipv6Net::new_assert(mapped, 96)),
            "::ffff:0:0/96 (mapped IPv4)",
        ),
        (v6(0x64, 0xff9b, 96), "64:ff9b::/96 (translated IPv4)"),
        (v6(0x2001, 0, 32), "2001::/32 (Teredo)"),
        (v6(0x2002, 0, 16), "2002::/16 (6to4)"),
        (v6(0xfe80, 0, 10), "fe80::/10 (link-local)"),
        (v6(0xff00, 0, 8), "ff00::/8 (multicast)"),
    ]
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_text!(Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b4_b5_b6_only_canonical_text_of_a_possible_lan_parses() {
        for good in [
            "10.10.0.0/24",
            "10.0.0.0/8",
            "192.168.1.1/32",
            "100.64.0.0/10",
            "fd00:1::/64",
            "2a00:1450::/32",
        ] {
            assert_eq!(
                good.parse::<Subnet>().map(|s| s.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "010.0.0.0/8",
            "0x0a.0.0.0/8",
            "10.0.0.0/8 ",
            "fe80::1%eth0/64",
            "10.1.2.3/16",
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::ffff:10.0.0.0/104",
            "64:ff9b::/96",
            "2002::/16",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "fe80::/64",
            "224.0.0.0/8",
            "ff00::/32",
            "0.0.0.0/8",
            "240.0.0.0/8",
            "FD00::/64",
            "fd00:0::/64",
            "::1/128",
            "::/128",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_bits_are_named_with_the_fix() {
        let error = "10.1.2.3/16".parse::<Subnet>().unwrap_err().to_string();
        assert_eq!(
            error,
            "10.1.2.3/16 has host bits set; the prefix is 10.1.0.0/16"
        );
    }
}
