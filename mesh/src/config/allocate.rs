//! Which tunnel address and which name comes next.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use wattle_wire::name::Name;

/// The addresses of the prefix that nobody has, the lowest first; never its network or broadcast
/// address.
pub fn free_addresses(
    prefix: Ipv4Net,
    taken: &BTreeSet<Ipv4Addr>,
) -> impl Iterator<Item = Ipv4Addr> {
    prefix.hosts().filter(move |address| {
        *address != prefix.network() && *address != prefix.broadcast() && !taken.contains(address)
    })
}

/// Names for the nodes of a site: the site's own for the first, then `site-2`, `site-3`. A long
/// site name is cut so that it fits.
pub fn node_names(site: &Name) -> impl Iterator<Item = Name> {
    let further = (2u32..).filter_map(|number| {
        let suffix = format!("-{number}");
        let stem: String = site.as_str().chars().take(63 - suffix.len()).collect();
        format!("{stem}{suffix}").parse().ok()
    });
    std::iter::once(site.clone()).chain(further)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_order_and_gaps_are_filled_first() {
        let prefix: Ipv4Net = "10.99.0.0/30".parse().unwrap();
        let [one, two] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
        let free = |taken: &[Ipv4Addr]| {
            free_addresses(prefix, &taken.iter().copied().collect()).collect::<Vec<_>>()
        };
        assert_eq!(free(&[]), [one, two]);
        assert_eq!(free(&[one]), [two]);
        assert_eq!(free(&[two]), [one]);
        assert_eq!(free(&[one, two]), [Ipv4Addr::LOCALHOST; 0]);
    }

    #[test]
    fn further_nodes_of_a_site_are_numbered() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let first = |site: &Name| node_names(site).take(3).collect::<Vec<_>>();
        assert_eq!(
            first(&name("dublin")),
            [name("dublin"), name("dublin-2"), name("dublin-3")]
        );
        let long = name(&"x".repeat(63));
        assert_eq!(first(&long)[1], name(&format!("{}-2", "x".repeat(61))));
    }
}
