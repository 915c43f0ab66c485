//! The underlay: the addresses that a host reaches outside of the tunnel, and must go on reaching
//! there, whatever prefixes the mesh has.
//!
//! Only what was reached outside is one of them. A coordinator or a resolver in the LAN of a site
//! that this host came to know through the tunnel stays in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use wattle_wire::name::Name;

use crate::host::way::{self, ForeignRoute};

/// How many addresses of coordinators are remembered beside those that their URLs name.
const MOST_COORDINATORS: usize = 8;

/// Services that a cloud has for its hosts at addresses that are not link-local.
///
/// * Alibaba Cloud: metadata, and two resolvers:
///   <https://www.alibabacloud.com/help/en/ecs/user-guide/ecs-private-domain-resolution>,
///   <https://cloudinit.readthedocs.io/en/latest/reference/datasources/aliyun.html>
/// * Azure: resolver, DHCP and health:
///   <https://learn.microsoft.com/en-us/azure/virtual-network/what-is-ip-address-168-63-129-16>
/// * AWS: time, resolver and metadata over IPv6:
///   <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
const CLOUDS: [(&str, &[&str]); 3] = [
    (
        "Alibaba Cloud",
        &["100.100.100.200", "100.100.2.136", "100.100.2.138"],
    ),
    ("Azure", &["168.63.129.16"]),
    ("AWS", &["fd00:ec2::123", "fd00:ec2::253", "fd00:ec2::254"]),
];

/// What a host reaches an address for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A coordinator, or the proxy on the way there.
    Coordinator,
    Resolver,
    /// A service that a cloud has for its hosts.
    Cloud(&'static str),
    /// The peer's end of the tunnel's own packets.
    Endpoint(Name),
}

/// Who answers at an address that the agent or its host dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    Coordinator,
    Resolver,
}

/// What was reached until now, as it is kept on disk: a restart without DNS knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    reached: BTreeMap<IpAddr, Reached>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    service: Service,
    /// Whether it was ever reached outside of the tunnel.
    outside: bool,
    /// When it was last, in seconds since 1970.
    at: i64,
}

impl Underlay {
    /// Takes note of a service that was reached, and whether outside of the tunnel.
    ///
    /// What was outside once stays so: where it is reached through the tunnel later, only the mesh
    /// can have done that.
    pub fn note(&mut self, address: IpAddr, service: Service, outside: bool, at: i64) {
        let before = self.reached.get(&address);
        let outside = outside || before.is_some_and(|before| before.outside);
        let was_coordinator = before.is_some_and(|before| before.service == Service::Coordinator);
        let service = if was_coordinator {
            Service::Coordinator
        } else {
            service
        };
        let reached = Reached {
            service,
            outside,
            at,
        };
        self.reached.insert(address, reached);
    }

    pub fn knows(&self, address: IpAddr) -> bool {
        self.reached.contains_key(&address)
    }

    /// Forgets resolvers that the host has no more, and the coordinators' addresses of long ago.
    /// `named` are those in the coordinators' URLs.
    pub fn trim(&mut self, named: &[IpAddr], resolvers: &BTreeSet<IpAddr>) {
        // Whoever writes the list of resolvers anew empties it first.
        if !resolvers.is_empty() {
            self.reached.retain(|address, reached| {
                reached.service != Service::Resolver || resolvers.contains(address)
            });
        }
        let mut coordinators: Vec<_> = self
            .reached
            .iter()
            .filter(|(address, reached)| {
                reached.service == Service::Coordinator && !named.contains(address)
            })
            .map(|(address, reached)| (reached.at, *address))
            .collect();
        coordinators.sort();
        let most = coordinators.len().saturating_sub(MOST_COORDINATORS);
        for (_, address) in &coordinators[..most] {
            self.reached.remove(address);
        }
    }

    /// What the host must go on reaching outside of the tunnel.
    ///
    /// An address that a coordinator's URL names counts before it was ever reached. A cloud's
    /// services count where the host has one of them for a resolver, or a route to one that is not
    /// its default route.
    pub fn addresses(
        &self,
        named: &[IpAddr],
        routes: &[ForeignRoute],
    ) -> BTreeMap<IpAddr, Purpose> {
        let outside = self.reached.iter().filter(|(_, reached)| reached.outside);
        let of = |service: Service| match service {
            Service::Coordinator => Purpose::Coordinator,
            Service::Resolver => Purpose::Resolver,
        };
        let reached = outside.map(|(address, reached)| (*address, of(reached.service)));
        let named = named.iter().filter(|address| !self.knows(**address));
        let named = named.map(|address| (*address, Purpose::Coordinator));
        let clouds = CLOUDS.into_iter().flat_map(|(cloud, services)| {
            let services: Vec<IpAddr> = services
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
            let used = services
                .iter()
                .any(|address| self.is_outside(*address) || is_led_to(*address, routes));
            let services = services.into_iter().filter(move |_| used);
            services.map(move |address| (address, Purpose::Cloud(cloud)))
        });
        clouds.chain(named).chain(reached).collect()
    }

    fn is_outside(&self, address: IpAddr) -> bool {
        self.reached
            .get(&address)
            .is_some_and(|reached| reached.outside)
    }
}

/// Whether the host has a way to the address that is not its default route.
fn is_led_to(address: IpAddr, routes: &[ForeignRoute]) -> bool {
    way::best(address, routes)
        .is_some_and(|route| route.prefix.prefix_len() > 0 && route.way.is_some())
}

/// The resolvers that a `resolv.conf` names and that a prefix of the mesh could hold.
pub fn resolvers(resolv_conf: &str) -> impl Iterator<Item = IpAddr> {
    let named = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(words.next()?.parse::<IpAddr>().ok()?)
    });
    named.filter(|address| !address.is_loopback() && !address.is_unspecified())
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("where this gateway reaches its coordinator"),
            Self::Resolver => f.write_str("a resolver of this host"),
            Self::Cloud(cloud) => write!(f, "where {cloud} serves this host"),
            Self::Endpoint(peer) => write!(f, "the endpoint of peer {peer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::way::Way;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(prefix: &str) -> ForeignRoute {
        ForeignRoute {
            prefix: prefix.parse().unwrap(),
            metric: 0,
            way: Some(Way {
                device: "eth0".to_owned(),
                gateway: Some(ip("10.0.0.1")),
                source: None,
            }),
        }
    }

    fn texts(underlay: &Underlay, named: &[IpAddr], routes: &[ForeignRoute]) -> Vec<String> {
        underlay
            .addresses(named, routes)
            .keys()
            .map(IpAddr::to_string)
            .collect()
    }

    #[test]
    fn what_was_first_reached_through_the_tunnel_is_not_guarded_and_what_was_outside_once_is() {
        let mut underlay = Underlay::default();
        let (hq, dns, outside) = (ip("10.10.0.5"), ip("10.10.0.53"), ip("198.18.0.2"));
        underlay.note(hq, Service::Coordinator, false, 1);
        underlay.note(dns, Service::Resolver, false, 1);
        underlay.note(outside, Service::Coordinator, true, 1);
        underlay.note(outside, Service::Coordinator, false, 2);
        // It is named by the URL too, and the tunnel is where it is all the same.
        assert_eq!(texts(&underlay, &[hq], &[]), ["198.18.0.2"]);
        let named = ip("192.0.2.9");
        assert_eq!(
            texts(&underlay, &[hq, named], &[]),
            ["192.0.2.9", "198.18.0.2"]
        );
        let text = serde_json::to_string(&underlay).unwrap();
        assert_eq!(serde_json::from_str::<Underlay>(&text).unwrap(), underlay);
    }

    #[test]
    fn the_newest_addresses_of_coordinators_and_the_resolvers_of_now_are_remembered() {
        let mut underlay = Underlay::default();
        let address = |number: u8| IpAddr::from([192, 0, 2, number]);
        for number in 1..=12 {
            underlay.note(
                address(number),
                Service::Coordinator,
                true,
                i64::from(number),
            );
        }
        let (dns, before) = (ip("198.51.100.53"), ip("198.51.100.54"));
        underlay.note(dns, Service::Resolver, true, 1);
        underlay.note(before, Service::Resolver, true, 1);
        underlay.trim(&[address(1)], &BTreeSet::new());
        assert!(underlay.knows(before), "the list is being written");
        underlay.trim(&[address(1)], &[dns].into());
        let mut expected: Vec<_> = [1, 5, 6, 7, 8, 9, 10, 11, 12].map(address).to_vec();
        expected.push(dns);
        let kept: Vec<_> = underlay.addresses(&[], &[]).into_keys().collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn a_clouds_services_count_where_the_host_uses_one_of_them() {
        let alibaba = ["100.100.2.136", "100.100.2.138", "100.100.100.200"];
        let mut underlay = Underlay::default();
        assert_eq!(texts(&underlay, &[], &[route("0.0.0.0/0")]), [""; 0]);
        assert_eq!(texts(&underlay, &[], &[route("100.64.0.0/10")]), alibaba);
        underlay.note(ip("100.100.2.136"), Service::Resolver, true, 1);
        assert_eq!(texts(&underlay, &[], &[route("0.0.0.0/0")]), alibaba);
        assert_eq!(
            texts(&Underlay::default(), &[], &[route("168.63.129.16/32")]),
            ["168.63.129.16"]
        );
    }

    #[test]
    fn resolvers_are_those_that_a_prefix_of_the_mesh_could_hold() {
        let file = "# comment\nsearch example.com\nnameserver 127.0.0.53\n\
                    nameserver   10.0.0.2 # the cloud's\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::53\nnameserver none\nnameserver\noptions edns0\n";
        let found: Vec<_> = resolvers(file).collect();
        assert_eq!(found, [ip("10.0.0.2"), ip("2001:db8::53")]);
    }
}
