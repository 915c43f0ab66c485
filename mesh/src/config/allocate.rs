//! Which tunnel address and which name comes next.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use wattle_wire::{ids::NodeId, name::Name};

use crate::config::directory::NodeRecord;

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
    node_names_from(site, 1)
}

/// The names that nodes get because their site has another name; only those that change.
///
/// `nodes` are all of the site, in the order in which they enrolled; `is_taken` tells of names that
/// are not for this site. The first node takes the site's name, and so does the one that has it
/// now. A further one keeps its number, or gets a lower one that its place in the order allows.
pub fn names_after_rename(
    before: &Name,
    after: &Name,
    nodes: &[NodeRecord],
    is_taken: impl Fn(&Name) -> bool,
) -> Vec<(NodeId, Name)> {
    let own = nodes.iter().filter(|node| !node.name_follows_site);
    let mut given: BTreeSet<Name> = own.map(|node| node.name.clone()).collect();
    let followers = (1u32..)
        .zip(nodes)
        .filter(|(_, node)| node.name_follows_site);
    let mut followers: Vec<_> = followers
        .map(|(place, node)| (number_in(before, &node.name).unwrap_or(place), place, node))
        .collect();
    followers.sort_by_key(|(number, place, _)| (*number, *place));
    let mut renamed = Vec::new();
    for (number, place, node) in followers {
        let free = node_names_from(after, number.min(place))
            .find(|name| !given.contains(name) && !is_taken(name));
        let Some(name) = free else { continue };
        given.insert(name.clone());
        if name != node.name {
            renamed.push((node.id, name));
        }
    }
    renamed
}

fn node_names_from(site: &Name, first: u32) -> impl Iterator<Item = Name> {
    (first..).filter_map(|number| numbered(site, number))
}

/// The name of a site's node of this number.
fn numbered(site: &Name, number: u32) -> Option<Name> {
    if number <= 1 {
        return Some(site.clone());
    }
    let suffix = format!("-{number}");
    let stem: String = site.as_str().chars().take(63 - suffix.len()).collect();
    format!("{stem}{suffix}").parse().ok()
}

/// The number that a name made of the site's has.
fn number_in(site: &Name, name: &Name) -> Option<u32> {
    if name == site {
        return Some(1);
    }
    let number = name.as_str().rsplit_once('-')?.1.parse().ok()?;
    (numbered(site, number).as_ref() == Some(name)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node_id, node_record};

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
    /// What becomes of a site's nodes, in order, when it changes its name from `dublin` to `cork`.
    /// A name with a `!` was given by somebody.
    fn renamed(nodes: &[&str], taken: &[&str]) -> Vec<String> {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let nodes: Vec<_> = (1..)
            .zip(nodes)
            .map(|(number, text)| NodeRecord {
                name: name(text.trim_end_matches('!')),
                name_follows_site: !text.ends_with('!'),
                ..node_record(number).1
            })
            .collect();
        let is_taken = |name: &Name| taken.contains(&name.as_str());
        let after = names_after_rename(&name("dublin"), &name("cork"), &nodes, is_taken);
        let of = |node: &NodeRecord| {
            let renamed = after.iter().find(|(id, _)| *id == node.id);
            renamed.map_or(&node.name, |(_, name)| name).to_string()
        };
        assert!(
            after
                .iter()
                .all(|(id, _)| *id <= node_id(nodes.len() as u64))
        );
        nodes.iter().map(of).collect()
    }

    #[test]
    fn nodes_follow_the_name_of_their_site_unless_somebody_has_named_them() {
        for (before, taken, after) in [
            (&["dublin"][..], &[][..], &["cork"][..]),
            (&["dublin", "dublin-2"], &[], &["cork", "cork-2"]),
            (&["athena!", "dublin-2"], &[], &["athena", "cork-2"]),
            (&["dublin", "athena!"], &[], &["cork", "athena"]),
            // The first one was named when another had the site's name.
            (&["dublin-2"], &[], &["cork"]),
            (&["dublin-2", "dublin-3"], &[], &["cork", "cork-2"]),
            (&["athena!", "dublin"], &[], &["athena", "cork"]),
            (&["dublin-2", "dublin"], &[], &["cork-2", "cork"]),
            // Somebody has what they would get.
            (&["dublin", "dublin-2"], &["cork"], &["cork-2", "cork-3"]),
            (&["dublin", "cork!"], &[], &["cork-2", "cork"]),
            (&["dublin", "dublin-2"], &["cork-2"], &["cork", "cork-3"]),
            // A name of before, or one that is no number.
            (&["paris"], &[], &["cork"]),
            (&["dublin", "dublin-02"], &[], &["cork", "cork-2"]),
        ] {
            assert_eq!(renamed(before, taken), after, "{before:?}");
        }
    }

    #[test]
    fn the_name_of_a_site_that_ends_like_a_number_is_not_mistaken_for_one() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let node = |number, text| NodeRecord {
            name: name(text),
            ..node_record(number).1
        };
        let nodes = [node(1, "dc-2"), node(2, "dc-2-2")];
        let after = names_after_rename(&name("dc-2"), &name("dc-2-2"), &nodes, |_| false);
        assert_eq!(
            after,
            [(node_id(1), name("dc-2-2")), (node_id(2), name("dc-2-2-2"))]
        );
    }
}
