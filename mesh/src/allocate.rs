//! Which tunnel address and which name comes next.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use wattle_wire::name::Name;

/// The lowest address of the prefix that nobody has, never its network or broadcast address; `None` when all are taken.
pub fn lowest_free(prefix: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    prefix.hosts().find(|address| *address != prefix.network() && *address != prefix.broadcast() && !taken.contains(address))
}

/// The name of a site's next node: the site's own for the first, then `site-2`, `site-3`. A long site name is cut so that it fits.
pub fn node_name(site: &Name, taken: &BTreeSet<Name>) -> Name {
    if !taken.contains(site) {
        return site.clone();
    }
    (2u32..)
        .filter_map(|number| {
            let suffix = format!("-{number}");
            let stem: String = site.as_str().chars().take(63 - suffix.len()).collect();
            format!("{stem}{suffix}").parse().ok()
        })
        .find(|name| !taken.contains(name))
        .unwrap_or_else(|| site.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_in_order_and_gaps_are_filled_first() {
        let prefix: Ipv4Net = "10.99.0.0/30".parse().unwrap();
        let [one, two] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
        assert_eq!(lowest_free(prefix, &BTreeSet::new()), Some(one));
        assert_eq!(lowest_free(prefix, &[one].into()), Some(two));
        assert_eq!(lowest_free(prefix, &[two].into()), Some(one));
        assert_eq!(lowest_free(prefix, &[one, two].into()), None);
    }

    #[test]
    fn further_nodes_of_a_site_are_numbered() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(node_name(&name("dublin"), &BTreeSet::new()), name("dublin"));
        assert_eq!(node_name(&name("dublin"), &[name("dublin"), name("dublin-2")].into()), name("dublin-3"));
        let long = name(&"x".repeat(63));
        assert_eq!(node_name(&long, &[long.clone()].into()), name(&format!("{}-2", "x".repeat(61))));
    }
}
