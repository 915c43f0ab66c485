//! Ways past the tunnel: where the host's own routes lead.

use std::{cmp::Reverse, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::Serialize;

/// A route of the main table that the agent did not make, and that is not over its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    pub prefix: IpNet,
    /// Of routes to the same prefix the one with the lowest is used.
    pub metric: u32,
    /// Absent means that the host lets nothing go there.
    pub way: Option<Way>,
}

/// A routing rule, as far as it concerns packets that no question to the kernel tells apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Of several the one with the lowest comes first.
    pub priority: u32,
    pub is_v4: bool,
    /// Where the packets come from, and where they go; absent means from and to anywhere.
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    /// The interface by which they come; absent means any.
    pub by: Option<String>,
    pub kind: RoutingRuleKind,
}

/// What a routing rule does with which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoutingRuleKind {
    /// It leads packets with a mark elsewhere.
    ByMark,
    /// It leads packets of some protocol, port or class of service elsewhere.
    ByTraffic,
    /// It leads all packets by the main table.
    Main,
}

/// How packets leave the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Way {
    /// The name of an interface.
    pub device: String,
    /// Absent means that whoever is addressed is on the link.
    pub gateway: Option<IpAddr>,
    /// The address that the host uses as source; absent means that the kernel chooses.
    pub source: Option<IpAddr>,
}

/// How an address is reached past a tunnel that has a prefix with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// A route of the host's own is narrower than the prefix: no other is needed.
    Already,
    By(Way),
    /// The host has no route to it.
    Nowhere,
}

/// How an address in a prefix of the mesh is reached past the tunnel: as the host would reach it
/// without the mesh.
///
/// A route of the host's own to the very same prefix is not enough. Which of the two is used depends
/// on their metrics, and the mesh's often wins.
pub(crate) fn past(address: IpAddr, prefix: IpNet, routes: &[ForeignRoute]) -> Past {
    match best(address, routes) {
        Some(route) if route.prefix.prefix_len() > prefix.prefix_len() => Past::Already,
        Some(ForeignRoute { way: Some(way), .. }) => Past::By(way.clone()),
        Some(ForeignRoute { way: None, .. }) | None => Past::Nowhere,
    }
}

/// The route that the kernel takes: the longest prefix, and of those the lowest metric.
pub(crate) fn best(address: IpAddr, routes: &[ForeignRoute]) -> Option<&ForeignRoute> {
    let holds = routes
        .iter()
        .filter(|route| route.prefix.contains(&address));
    holds.min_by_key(|route| (Reverse(route.prefix.prefix_len()), route.metric))
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(f, "dev {}", self.device)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(device: &str, gateway: Option<&str>) -> Way {
        Way {
            device: device.to_owned(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
        }
    }

    fn route(prefix: &str, metric: u32, way: Option<Way>) -> ForeignRoute {
        ForeignRoute {
            prefix: prefix.parse().unwrap(),
            metric,
            way,
        }
    }

    #[test]
    fn the_way_past_is_that_of_the_longest_prefix_and_of_those_of_the_lowest_metric() {
        let (dsl, lte) = (
            way("eth0", Some("203.0.113.1")),
            way("wwan0", Some("100.64.0.1")),
        );
        let (on_link, v6) = (way("eth1", None), way("eth0", Some("fe80::1")));
        let routes = [
            route("0.0.0.0/0", 200, Some(lte)),
            route("0.0.0.0/0", 100, Some(dsl.clone())),
            route("198.18.0.0/15", 0, Some(on_link.clone())),
            route("198.51.100.0/24", 0, None),
            route("::/0", 1024, Some(v6.clone())),
        ];
        let past = |address: &str, prefix: &str, routes: &[ForeignRoute]| {
            past(address.parse().unwrap(), prefix.parse().unwrap(), routes)
        };
        let with_all = |address, prefix| past(address, prefix, &routes);
        assert_eq!(with_all("192.0.2.7", "192.0.2.0/24"), Past::By(dsl));
        assert_eq!(with_all("2001:db8::7", "2001:db8::/32"), Past::By(v6));
        // A wider prefix of the mesh's takes nothing from a route; one as wide does.
        assert_eq!(with_all("198.18.0.2", "198.16.0.0/12"), Past::Already);
        for prefix in ["198.18.0.0/15", "198.18.0.0/24"] {
            assert_eq!(with_all("198.18.0.2", prefix), Past::By(on_link.clone()));
        }
        // What the host itself lets nobody reach is left so.
        assert_eq!(with_all("198.51.100.7", "198.51.96.0/20"), Past::Already);
        assert_eq!(with_all("198.51.100.7", "198.51.100.0/25"), Past::Nowhere);
        assert_eq!(past("192.0.2.7", "192.0.2.0/24", &[]), Past::Nowhere);
    }
}
