//! Where a coordinator may send messages.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv6Net};

/// Global unicast addresses; all of IPv6 that is public is within (RFC 4291).
const GLOBAL_UNICAST: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is not public of IPv4 and within [`GLOBAL_UNICAST`], by IANA's registries of special-purpose
/// addresses (RFC 6890), and a public address where a cloud's hosts find services of their own.
const REFUSED: [&str; 19] = [
    // This host, private networks, those of carriers, and the link with the metadata services.
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    // Assigned to protocols, documentation and benchmarks.
    "192.0.0.0/24",
    "192.0.2.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001:db8::/32",
    "3fff::/20",
    // All hosts, and what is reserved.
    "224.0.0.0/3",
    // Relays of 6to4, and what they would send on; Teredo and others of its kind.
    "192.88.99.0/24",
    "2001::/23",
    "2002::/16",
    // Azure.
    "168.63.129.16/32",
];

static REFUSED_NETS: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| REFUSED.iter().filter_map(|net| net.parse().ok()).collect());

/// Whether messages may be sent to an address: it is public, and none of the coordinators' `own`.
pub fn may_send_to(address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    let reached = reached(address);
    let is_refused = REFUSED_NETS.iter().any(|net| net.contains(&reached));
    is_unicast(reached) && !is_refused && !own.contains(&reached) && !own.contains(&address)
}

fn is_unicast(address: IpAddr) -> bool {
    let (net, length) = GLOBAL_UNICAST;
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => Ipv6Net::new(net, length).is_ok_and(|net| net.contains(&v6)),
    }
}

/// Which address packets get to: an IPv6 one may be the IPv4 one that it holds, mapped or by the
/// well-known prefix of NAT64 (RFC 6052).
fn reached(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let nat64 = (v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0])
        .then(|| Ipv4Addr::from(u128::from(v6) as u32));
    v6.to_ipv4_mapped().or(nat64).map_or(address, IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(address: &str) -> bool {
        let own = ["9.9.9.1", "2a00::1"];
        let own = own.iter().map(|own| own.parse().unwrap()).collect();
        may_send_to(address.parse().unwrap(), &own)
    }

    #[test]
    fn d10_nobody_makes_the_coordinator_speak_to_what_is_not_public_or_to_itself() {
        for good in [
            "9.9.9.9",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "2a00::2",
            "2620:fe::fe",
            "::ffff:9.9.9.9",
            "64:ff9b::9.9.9.9",
        ] {
            assert!(may(good), "{good}");
        }
        for bad in [
            // The coordinator's own, in each form.
            "9.9.9.1",
            "2a00::1",
            "::ffff:9.9.9.1",
            "64:ff9b::9.9.9.1",
            // Private networks, and those of carriers.
            "10.0.0.5",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.2",
            "100.64.0.1",
            "fd00::1",
            "::ffff:10.0.0.5",
            "64:ff9b::10.0.0.5",
            // This host.
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            // Whoever is near.
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            // Metadata services.
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::ffff:168.63.129.16",
            "64:ff9b::100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:42::42",
            "fd00:c1::a9fe:a9fe",
            // What hides an address: NAT64 of a site, 6to4, Teredo, IPv4-compatible.
            "64:ff9b:1::1",
            "64:ff9b:1:7f00:0:100::",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:7f00:1::1",
            "192.88.99.1",
            "::10.0.0.5",
            // Nobody's.
            "100::1",
            "5f00::1",
            "4000::1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "2001:db8::2",
            "3fff::1",
        ] {
            assert!(!may(bad), "{bad}");
        }
    }

    #[test]
    fn each_refused_prefix_is_one() {
        assert_eq!(REFUSED_NETS.len(), REFUSED.len());
    }
}
