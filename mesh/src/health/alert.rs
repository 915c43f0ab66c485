//! What to tell of links and nodes that changed: a site that loses its uplink is one alert, not one
//! for each of its links.

use std::collections::BTreeMap;

use wattle_wire::{
    admin::LinkState,
    ids::NodeId,
    name::Name,
    webhook::{Alert, AlertNode, NodeChange},
};

/// Links of a node that make it worth an alert of its own.
const LEAST_LINKS: usize = 2;
/// Nodes that one alert names.
const MOST_NAMED: usize = 100;

/// A link that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkMove {
    pub ends: [NodeId; 2],
    pub before: LinkState,
    pub after: LinkState,
}

/// A node that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMove {
    pub node: NodeId,
    pub name: Name,
    pub change: NodeChange,
}

/// The alerts of changes of nodes, in the order in which they came: one for all of which the same
/// became. A node that was silent for a moment only is left out.
pub fn group_nodes(moves: &[NodeMove]) -> Vec<Alert> {
    let mut net: BTreeMap<NodeId, (NodeChange, &NodeMove)> = BTreeMap::new();
    for change in moves {
        net.entry(change.node)
            .and_modify(|(_, last)| *last = change)
            .or_insert((change.change, change));
    }
    let is_nothing = |first, last| {
        matches!(
            (first, last),
            (NodeChange::Silent, NodeChange::Back)
                | (NodeChange::Back, NodeChange::Silent)
                | (NodeChange::LanDegraded, NodeChange::LanOk)
                | (NodeChange::LanOk, NodeChange::LanDegraded)
        )
    };
    net.retain(|_, (first, last)| !is_nothing(*first, last.change));
    let of = |change| {
        let changed = || net.values().filter(move |(_, last)| last.change == change);
        let nodes = changed().take(MOST_NAMED).map(|(_, last)| AlertNode {
            node: last.node,
            name: last.name.clone(),
        });
        Alert::Nodes {
            change,
            nodes: nodes.collect(),
            count: changed().count(),
        }
    };
    let concerns_any = |alert: &Alert| matches!(alert, Alert::Nodes { count, .. } if *count > 0);
    NodeChange::ALL
        .into_iter()
        .map(of)
        .filter(concerns_any)
        .collect()
}

/// The alerts of moves that belong together, in the order in which they came. `about` gives a
/// node's name and the number of its links; what is about nodes that are gone is left out.
pub fn group(moves: &[LinkMove], about: impl Fn(NodeId) -> Option<(Name, usize)>) -> Vec<Alert> {
    // Of several moves of one link the first says how it was, and the last how it is.
    let mut net: BTreeMap<[NodeId; 2], (LinkState, LinkState)> = BTreeMap::new();
    for change in moves {
        net.entry(change.ends)
            .and_modify(|(_, after)| *after = change.after)
            .or_insert((change.before, change.after));
    }
    net.retain(|_, (before, after)| before != after);
    let mut alerts = Vec::new();
    for state in [
        LinkState::Down,
        LinkState::Degraded,
        LinkState::Never,
        LinkState::Up,
    ] {
        let mut links: BTreeMap<_, _> = net
            .iter()
            .filter(|(_, (_, after))| *after == state)
            .map(|(ends, (before, _))| (*ends, *before))
            .collect();
        while let Some(concerned) = most_concerned(&links, &about) {
            links.retain(|ends, _| !ends.contains(&concerned.node));
            alerts.push(Alert::Node {
                node: concerned.node,
                name: concerned.name,
                state,
                links: concerned.links,
                of: concerned.of,
            });
        }
        alerts.extend(links.into_iter().filter_map(|(ends, before)| {
            let names = [about(ends[0])?.0, about(ends[1])?.0];
            Some(Alert::Link {
                ends,
                names,
                before,
                state,
            })
        }));
    }
    alerts
}

/// A node with how many of its links changed, of how many.
struct Concerned {
    node: NodeId,
    name: Name,
    links: usize,
    of: usize,
}

/// The node that has the most of these links, if they are most of its own.
fn most_concerned(
    links: &BTreeMap<[NodeId; 2], LinkState>,
    about: &impl Fn(NodeId) -> Option<(Name, usize)>,
) -> Option<Concerned> {
    let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
    links
        .keys()
        .flatten()
        .for_each(|node| *counts.entry(*node).or_default() += 1);
    let (node, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    let (name, of) = about(node)?;
    (count >= LEAST_LINKS && count * 2 > of).then_some(Concerned {
        node,
        name,
        links: count,
        of,
    })
}

/// Alerts in a sentence.
pub fn summary(alerts: &[Alert]) -> String {
    let one = |alert: &Alert| match alert {
        Alert::Nodes {
            change,
            nodes,
            count,
        } => {
            let who = match (nodes.first(), count.saturating_sub(1)) {
                (None, _) => "nobody".to_owned(),
                (Some(node), 0) => node.name.to_string(),
                (Some(node), more) => format!("{} and {more} more", node.name),
            };
            match change {
                NodeChange::Joined => format!("joined: {who}"),
                NodeChange::Revoked => format!("revoked: {who}"),
                NodeChange::Silent => format!("{who} stopped reporting"),
                NodeChange::Back => format!("{who} reports again"),
                NodeChange::LanDegraded => {
                    format!("LANs are kept from others by a problem of {who}")
                }
                NodeChange::LanOk => format!("LANs reach others again: {who}"),
            }
        }
        Alert::Node {
            name,
            state,
            links,
            of,
            ..
        } => format!("{links} of {of} links of {name} are {}", state.name()),
        Alert::Link {
            names: [a, b],
            before,
            state,
            ..
        } => format!(
            "the link {a} – {b} is {}, it was {}",
            state.name(),
            before.name()
        ),
    };
    match alerts {
        [] => "this is a test: nothing changed".to_owned(),
        [alert] => one(alert),
        [alert, more @ ..] => format!("{}, and {} more", one(alert), more.len()),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    fn of_mesh(nodes: usize) -> impl Fn(NodeId) -> Option<(Name, usize)> {
        move |node| {
            Some((
                format!("site-{}", node.0.as_u128()).parse().ok()?,
                nodes - 1,
            ))
        }
    }

    fn goes(a: u128, b: u128, before: LinkState, after: LinkState) -> LinkMove {
        LinkMove {
            ends: [node(a.min(b)), node(a.max(b))],
            before,
            after,
        }
    }

    #[test]
    fn a_site_of_a_thousand_that_loses_its_uplink_is_one_alert() {
        let others = (0..1_000).filter(|other| *other != 500);
        let moves: Vec<_> = others
            .map(|other| goes(500, other, LinkState::Up, LinkState::Down))
            .collect();
        let [
            Alert::Node {
                node: lost,
                links: 999,
                of: 999,
                state: LinkState::Down,
                ..
            },
        ] = &group(&moves, of_mesh(1_000))[..]
        else {
            panic!("not one alert")
        };
        assert_eq!(*lost, node(500));
        assert_eq!(
            summary(&group(&moves, of_mesh(1_000))),
            "999 of 999 links of site-500 are down"
        );
        // Two at once, of which a third site's link went down by itself, and one came back.
        let mut moves = moves;
        moves.extend(
            (0..1_000)
                .filter(|other| ![500, 7].contains(other))
                .map(|other| goes(7, other, LinkState::Up, LinkState::Down)),
        );
        moves.extend([
            goes(1, 2, LinkState::Up, LinkState::Degraded),
            goes(3, 4, LinkState::Down, LinkState::Up),
        ]);
        assert_eq!(group(&moves, of_mesh(1_000)).len(), 4);
    }

    #[test]
    fn what_is_as_it_was_is_not_told() {
        let moves = [
            goes(1, 2, LinkState::Up, LinkState::Down),
            goes(1, 2, LinkState::Down, LinkState::Up),
        ];
        assert_eq!(group(&moves, of_mesh(3)), []);
        let moves = [
            goes(1, 2, LinkState::Up, LinkState::Degraded),
            goes(1, 2, LinkState::Degraded, LinkState::Down),
        ];
        let alerts = group(&moves, of_mesh(3));
        assert!(
            matches!(
                &alerts[..],
                [Alert::Link {
                    before: LinkState::Up,
                    state: LinkState::Down,
                    ..
                }]
            ),
            "{alerts:?}"
        );
    }

    #[test]
    fn both_links_of_one_of_three_sites_are_one_alert_and_links_of_nodes_that_are_gone_none() {
        let moves = [
            goes(1, 2, LinkState::Up, LinkState::Down),
            goes(1, 3, LinkState::Up, LinkState::Down),
        ];
        assert!(matches!(
            &group(&moves, of_mesh(3))[..],
            [Alert::Node {
                links: 2,
                of: 2,
                ..
            }]
        ));
        assert_eq!(group(&moves, |_| None), []);
    }

    #[test]
    fn nodes_of_which_the_same_became_are_one_alert_and_one_that_was_silent_for_a_moment_none() {
        use NodeChange::{Back, Joined, Revoked, Silent};
        let change = |number: u128, change| NodeMove {
            node: node(number),
            name: format!("site-{number}").parse().unwrap(),
            change,
        };
        let moves: Vec<_> = (0..1_000).map(|number| change(number, Silent)).collect();
        let alerts = group_nodes(&moves);
        let [
            Alert::Nodes {
                change: Silent,
                nodes,
                count: 1_000,
            },
        ] = &alerts[..]
        else {
            panic!("{alerts:?}")
        };
        assert_eq!(nodes.len(), MOST_NAMED);
        assert_eq!(summary(&alerts), "site-0 and 999 more stopped reporting");
        assert_eq!(group_nodes(&[change(1, Silent), change(1, Back)]), []);
        assert_eq!(group_nodes(&[change(1, Back), change(1, Silent)]), []);
        let flapping = [NodeChange::LanDegraded, NodeChange::LanOk];
        assert_eq!(group_nodes(&flapping.map(|became| change(1, became))), []);
        let alerts = group_nodes(&[
            change(3, Silent),
            change(1, Joined),
            change(2, Joined),
            change(1, Revoked),
            change(3, Back),
            change(3, Silent),
        ]);
        let told: Vec<_> = alerts
            .iter()
            .map(|alert| summary(std::slice::from_ref(alert)))
            .collect();
        assert_eq!(
            told,
            [
                "joined: site-2",
                "revoked: site-1",
                "site-3 stopped reporting"
            ]
        );
    }
}
