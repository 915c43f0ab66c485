//! What a change of the configuration would do to the links of the mesh.

use std::collections::BTreeSet;

use wattle_wire::{
    admin::{LinkEffects, SomeLinks},
    ids::NodeId,
    name::Name,
};

use crate::config::{
    directory::{Directory, NodeRecord, RecordChange},
    view,
};

/// A node before and after the change.
struct End<'a> {
    name: &'a Name,
    /// `None` while it does not take part.
    before: Option<&'a NodeRecord>,
    after: Option<&'a NodeRecord>,
    /// Whether its peers are told something else of it, or all of the mesh.
    told: bool,
}

/// The directory after the changes, and what they do to its links: a link is changed when either
/// end is told something else of the other, or both of the mesh.
pub fn effect(before: &Directory, changes: &[RecordChange]) -> (Directory, LinkEffects) {
    let mut after = before.clone();
    changes.iter().for_each(|change| after.apply(change));
    let nodes: BTreeSet<NodeId> = before
        .nodes
        .keys()
        .chain(after.nodes.keys())
        .copied()
        .collect();
    let ends: Vec<_> = nodes
        .into_iter()
        .filter_map(|node| end(before, &after, node))
        .collect();
    let mut links = LinkEffects::default();
    for (position, a) in ends.iter().enumerate() {
        for b in &ends[position + 1..] {
            let linked = |a: Option<&NodeRecord>, b| {
                a.zip(b)
                    .is_some_and(|(a, b)| view::should_have_tunnel(a, b))
            };
            let effect = match (linked(a.before, b.before), linked(a.after, b.after)) {
                (false, true) => &mut links.added,
                (true, false) => &mut links.removed,
                (true, true) if a.told || b.told => &mut links.changed,
                (true, true) | (false, false) => continue,
            };
            add(effect, a.name, b.name);
        }
    }
    (after, links)
}

fn end<'a>(before: &'a Directory, after: &'a Directory, node: NodeId) -> Option<End<'a>> {
    let (was, is) = (before.nodes.get(&node), after.nodes.get(&node));
    Some(End {
        name: &is.or(was)?.name,
        before: was,
        after: is,
        told: before.mesh != after.mesh
            || view::as_peer(before, node) != view::as_peer(after, node),
    })
}

fn add(links: &mut SomeLinks, a: &Name, b: &Name) {
    links.count += 1;
    if links.nodes.len() < SomeLinks::MOST {
        links.nodes.push([a.clone(), b.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::{peer::MeshSettings, psk::PskPolicy};

    use super::*;
    use crate::testing::{directory_of, node_id, node_record};

    /// Links that are added, removed and changed, each written `site-1 site-2`.
    fn effects(before: &Directory, changes: &[RecordChange]) -> [Vec<String>; 3] {
        let (
            after,
            LinkEffects {
                added,
                removed,
                changed,
            },
        ) = effect(before, changes);
        let mut applied = before.clone();
        changes.iter().for_each(|change| applied.apply(change));
        assert_eq!(after, applied);
        [added, removed, changed].map(|links| {
            assert_eq!(links.count, links.nodes.len());
            links
                .nodes
                .iter()
                .map(|[a, b]| format!("{a} {b}"))
                .collect()
        })
    }

    #[test]
    fn links_come_with_a_node_go_with_it_and_change_with_what_its_peers_are_told() {
        let none: [Vec<String>; 3] = [const { Vec::new() }; 3];
        let three = directory_of(3);
        let (mut site, mut node) = node_record(4);
        let added = ["site-1 site-4", "site-2 site-4", "site-3 site-4"]
            .map(str::to_owned)
            .to_vec();
        let joined = [
            RecordChange::Site(site.clone()),
            RecordChange::Node(node.clone()),
        ];
        assert_eq!(effects(&three, &joined), [added.clone(), vec![], vec![]]);
        assert_eq!(
            effects(&three, &joined[..1]),
            none,
            "a site without a gateway has no links"
        );

        let four = directory_of(4);
        let gone = [
            RecordChange::NodeRevoked(node_id(4)),
            RecordChange::SiteRemoved(site.id),
        ];
        assert_eq!(effects(&four, &gone), [vec![], added.clone(), vec![]]);
        site.spec.description = "what no peer is told".to_owned();
        assert_eq!(effects(&four, &[RecordChange::Site(site.clone())]), none);
        site.spec.subnets.clear();
        assert_eq!(
            effects(&four, &[RecordChange::Site(site)]),
            [vec![], vec![], added]
        );

        node.site = node_record(1).0.id;
        let moved = effects(&four, &[RecordChange::Node(node)]);
        assert_eq!(
            moved,
            [
                vec![],
                vec!["site-1 site-4".to_owned()],
                vec!["site-2 site-4".to_owned(), "site-3 site-4".to_owned()]
            ]
        );
        let mesh = MeshSettings {
            psk: PskPolicy::Prefer,
            ..three.mesh
        };
        let all = ["site-1 site-2", "site-1 site-3", "site-2 site-3"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(
            effects(&three, &[RecordChange::Mesh(mesh)]),
            [vec![], vec![], all]
        );
    }

    #[test]
    fn of_very_many_links_all_are_counted_and_some_are_named() {
        let (before, nodes) = (directory_of(60), 60);
        let mesh = MeshSettings {
            keepalive_s: 5,
            ..before.mesh
        };
        let (_, links) = effect(&before, &[RecordChange::Mesh(mesh)]);
        assert_eq!(
            (links.changed.count, links.changed.nodes.len()),
            (nodes * (nodes - 1) / 2, SomeLinks::MOST)
        );
    }
}
