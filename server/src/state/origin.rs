//! Where a connection comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// The networks in which a connection counts: of IPv4 its address, of IPv6 its /64 and its /48,
/// which is what one customer of a provider may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub near: IpNet,
    /// Of IPv6 alone.
    pub far: Option<IpNet>,
}

impl Origin {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self {
                near: network(address, 64),
                far: Some(network(address, 48)),
            },
            address @ IpAddr::V4(_) => Self {
                near: address.into(),
                far: None,
            },
        }
    }

    /// All that it counts in.
    pub fn networks(self) -> impl Iterator<Item = IpNet> {
        [Some(self.near), self.far].into_iter().flatten()
    }

    /// The largest network that one stranger may have.
    pub fn widest(self) -> IpNet {
        self.far.unwrap_or(self.near)
    }

    pub fn is_loopback(self) -> bool {
        self.near.addr().is_loopback() || self.near == Self::of(Ipv6Addr::LOCALHOST.into()).near
    }

    /// Whether a proxy that speaks for everybody may be there.
    pub fn may_be_proxy(self) -> bool {
        self.is_loopback()
            && (self.far.is_some() || self.near.addr() == IpAddr::from(Ipv4Addr::LOCALHOST))
    }
}

fn network(address: Ipv6Addr, length: u8) -> IpNet {
    // Both lengths are possible.
    Ipv6Net::new(address, length).map_or(IpAddr::from(address).into(), |net| net.trunc().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    #[test]
    fn an_address_of_ipv6_counts_in_its_64_and_in_its_48() {
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        let (here, there) = (of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(here.near, there.near);
        assert_eq!(here.widest(), there.widest());
        assert_ne!(here.widest(), of("2001:db8:1::1").widest());
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!(of("192.0.2.1").networks().count(), 1);
    }

    #[test]
    fn loopback_is_known_in_every_spelling_and_a_proxy_has_one_address_there() {
        for (address, proxy) in [
            ("::1", true),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.9", false),
        ] {
            let found = (of(address).is_loopback(), of(address).may_be_proxy());
            assert_eq!(found, (true, proxy), "{address}");
        }
        assert!(!of("192.0.2.1").is_loopback());
    }
}
