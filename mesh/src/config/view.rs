//! What one node must know, cut out of the directory.

use wattle_wire::{
    admin::NodeState,
    endpoint::Endpoint,
    enrol::Statement,
    ids::NodeId,
    peer::{EndpointCheck, Myself, Peer, View},
    rotation::{KeyInPlace, OwnKeys},
    subnet::Subnet,
};

use crate::{
    config::directory::{Directory, NodeRecord, SiteRecord},
    keys::enrolment,
};

/// The view of a node; `None` if it does not take part.
pub fn view(directory: &Directory, node: NodeId) -> Option<View> {
    let peers = directory
        .nodes
        .keys()
        .filter_map(|other| peer(directory, node, *other))
        .collect();
    Some(View {
        mesh: directory.mesh.clone(),
        myself: myself(directory, node)?,
        peers,
    })
}

/// What a node is told about itself; `None` if it does not take part.
pub fn myself(directory: &Directory, node: NodeId) -> Option<Myself> {
    let node = directory.nodes.get(&node)?;
    let site = directory.sites.get(&node.site)?;
    Some(Myself {
        node: node.id,
        name: node.name.clone(),
        site: site.id,
        site_name: site.spec.name.clone(),
        tunnel_address: node.tunnel_address,
        subnets: subnets(node, site),
        endpoint: endpoint(node, site),
        keys: own_keys(node),
    })
}

fn own_keys(node: &NodeRecord) -> Option<OwnKeys> {
    Some(OwnKeys {
        sequence: enrolment::sequence(&node.statement)?,
        highest: node.highest_sequence,
        announced: announced(node).map(|announced| announced.sequence),
        rotate: node.rotate_since.is_some(),
    })
}

/// What a node is going to state.
fn announced(node: &NodeRecord) -> Option<Statement> {
    let announced = node.announced.as_ref()?;
    enrolment::announced(&announced.announcement)
}

/// Whether a node that says it is ready for a peer's key speaks of the one that the peer announces.
pub fn is_awaited(directory: &Directory, node: NodeId, key: KeyInPlace) -> bool {
    let announced = directory.nodes.get(&key.peer).and_then(announced);
    linked(directory, node, key.peer)
        && announced.is_some_and(|announced| announced.sequence == key.sequence)
}

/// What a node is told about another; `None` if the two have no link: nodes of one site reach each
/// other over their LAN.
pub fn peer(directory: &Directory, node: NodeId, other: NodeId) -> Option<Peer> {
    if linked(directory, node, other) {
        as_peer(directory, other)
    } else {
        None
    }
}

/// What all that have a link with a node are told about it, the same each; `None` if it does not
/// take part.
pub fn as_peer(directory: &Directory, node: NodeId) -> Option<Peer> {
    let node = directory.nodes.get(&node)?;
    let site = directory.sites.get(&node.site)?;
    Some(Peer {
        node: node.id,
        name: node.name.clone(),
        site_name: site.spec.name.clone(),
        statement: node.statement.clone(),
        announced: node
            .announced
            .as_ref()
            .map(|announced| announced.announcement.clone()),
        tunnel_address: node.tunnel_address,
        subnets: subnets(node, site)
            .iter()
            .map(|subnet| subnet.net())
            .collect(),
        endpoint: known_endpoint(node, site),
        endpoint_check: node.endpoint.zip(node.endpoint_check.as_ref()).and_then(
            |(endpoint, check)| {
                Some(EndpointCheck {
                    endpoint,
                    by: check.by?,
                })
            },
        ),
        admission: node.admission.clone(),
    })
}

/// Whether two nodes should have a tunnel: see [`should_have_tunnel`].
pub fn linked(directory: &Directory, a: NodeId, b: NodeId) -> bool {
    directory
        .nodes
        .get(&a)
        .zip(directory.nodes.get(&b))
        .is_some_and(|(a, b)| should_have_tunnel(a, b))
}

/// All nodes should have a tunnel that are of different sites, but for two that are unmanaged:
/// nobody there could learn the preshared key.
pub fn should_have_tunnel(a: &NodeRecord, b: &NodeRecord) -> bool {
    a.site != b.site && (a.unmanaged.is_none() || b.unmanaged.is_none())
}

/// How many pairs of nodes are [`linked`]. No site has two unmanaged nodes.
pub fn count_links(directory: &Directory) -> usize {
    let pairs = |nodes: usize| nodes * nodes.saturating_sub(1) / 2;
    let within_sites: usize = directory
        .sites
        .keys()
        .map(|site| pairs(directory.nodes_of(*site).count()))
        .sum();
    let unmanaged = directory
        .nodes
        .values()
        .filter(|node| node.unmanaged.is_some())
        .count();
    pairs(directory.nodes.len()) - within_sites - pairs(unmanaged)
}

fn subnets(node: &NodeRecord, site: &SiteRecord) -> Vec<Subnet> {
    match node.state {
        NodeState::Active => site.spec.subnets.clone(),
        NodeState::Standby => Vec::new(),
    }
}

/// Where all peers look for the node: not where nobody has met it.
fn known_endpoint(node: &NodeRecord, site: &SiteRecord) -> Option<Endpoint> {
    match (&node.endpoint_check, node.state) {
        (None, _) => endpoint(node, site),
        (Some(_), NodeState::Active) => site.spec.endpoint,
        (Some(_), NodeState::Standby) => None,
    }
}

/// What the node says of itself wins; the site's hint is for its active gateway.
pub fn endpoint(node: &NodeRecord, site: &SiteRecord) -> Option<Endpoint> {
    match node.state {
        NodeState::Active => node.endpoint.or(site.spec.endpoint),
        NodeState::Standby => node.endpoint,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        config::directory::{RecordChange, Unmanaged},
        testing::{directory_of, node_record},
    };

    #[test]
    fn links_are_counted_as_if_each_pair_was_looked_at() {
        let mut directory = directory_of(7);
        for number in [5, 6, 7] {
            let made = Unmanaged {
                file_made_at: DateTime::UNIX_EPOCH,
                file_digest: [0; 32].into(),
            };
            directory.apply(&RecordChange::Node(NodeRecord {
                unmanaged: Some(made),
                ..node_record(number).1
            }));
        }
        let (_, standby) = node_record(9);
        let site = directory.nodes.values().next().unwrap().site;
        directory.apply(&RecordChange::Node(NodeRecord {
            site,
            state: NodeState::Standby,
            ..standby
        }));
        let nodes: Vec<_> = directory.nodes.keys().copied().collect();
        let pairs = nodes
            .iter()
            .flat_map(|a| nodes.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| a < b);
        let links = pairs.filter(|(a, b)| linked(&directory, *a, *b)).count();
        assert_eq!((links, count_links(&directory)), (9 + 5 * 3, 9 + 5 * 3));
    }
}
