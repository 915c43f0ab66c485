//! What one node must know, cut out of the directory.

use wattle_wire::{
    admin::NodeState,
    endpoint::Endpoint,
    ids::NodeId,
    peer::{EndpointTrial, Myself, Peer, View},
    rotation::OwnKeys,
    subnet::Subnet,
};

use crate::{
    admit,
    directory::{Directory, NodeRecord, SiteRecord},
};

/// The view of a node; `None` if it does not take part.
pub fn view(directory: &Directory, node: NodeId) -> Option<View> {
    let peers = directory.nodes.keys().filter_map(|other| peer(directory, node, *other)).collect();
    Some(View { mesh: directory.mesh.clone(), myself: myself(directory, node)?, peers })
}

/// What a node is told about itself; `None` if it does not take part.
pub fn myself(directory: &Directory, node: NodeId) -> Option<Myself> {
    let node = directory.nodes.get(&node)?;
    let site = directory.sites.get(&node.site)?;
    Some(Myself {
        node: node.id,
        name: node.name.clone(),
        site: site.id,
        site_name: site.name.clone(),
        tunnel_address: node.tunnel_address,
        subnets: subnets(node, site),
        endpoint: endpoint(node, site),
        keys: own_keys(node),
    })
}

fn own_keys(node: &NodeRecord) -> Option<OwnKeys> {
    let announced = node.announced.as_ref().and_then(|announced| admit::sequence(&announced.statement));
    Some(OwnKeys { sequence: admit::sequence(&node.statement)?, announced, rotate: node.rotate_since.is_some() })
}

/// What a node is told about another; `None` if the two have no link: nodes of one site reach each other over their LAN.
pub fn peer(directory: &Directory, node: NodeId, other: NodeId) -> Option<Peer> {
    if linked(directory, node, other) { as_peer(directory, other) } else { None }
}

/// What all that have a link with a node are told about it, the same each; `None` if it does not take part.
pub fn as_peer(directory: &Directory, node: NodeId) -> Option<Peer> {
    let node = directory.nodes.get(&node)?;
    let site = directory.sites.get(&node.site)?;
    Some(Peer {
        node: node.id,
        name: node.name.clone(),
        site_name: site.name.clone(),
        statement: node.statement.clone(),
        announced: node.announced.as_ref().map(|announced| announced.statement.clone()),
        tunnel_address: node.tunnel_address,
        subnets: subnets(node, site).iter().map(|subnet| subnet.net()).collect(),
        endpoint: known_endpoint(node, site),
        trial: node.endpoint.zip(node.trial.as_ref()).and_then(|(endpoint, trial)| Some(EndpointTrial { endpoint, by: trial.by? })),
        admission: node.admission.clone(),
    })
}

/// Whether two nodes should have a tunnel: all do that are of different sites.
pub fn linked(directory: &Directory, a: NodeId, b: NodeId) -> bool {
    match (directory.nodes.get(&a), directory.nodes.get(&b)) {
        (Some(a), Some(b)) => a.site != b.site,
        _ => false,
    }
}

/// How many pairs of nodes are [`linked`].
pub fn count_links(directory: &Directory) -> usize {
    let pairs = |nodes: usize| nodes * nodes.saturating_sub(1) / 2;
    let within_sites: usize = directory.sites.keys().map(|site| pairs(directory.nodes_of(*site).count())).sum();
    pairs(directory.nodes.len()) - within_sites
}

fn subnets(node: &NodeRecord, site: &SiteRecord) -> Vec<Subnet> {
    match node.state {
        NodeState::Active => site.subnets.clone(),
        NodeState::Standby => Vec::new(),
    }
}

/// Where all peers look for the node: not where nobody has met it.
fn known_endpoint(node: &NodeRecord, site: &SiteRecord) -> Option<Endpoint> {
    match (&node.trial, node.state) {
        (None, _) => endpoint(node, site),
        (Some(_), NodeState::Active) => site.endpoint,
        (Some(_), NodeState::Standby) => None,
    }
}

/// What the node says of itself wins; the site's hint is for its active gateway.
pub fn endpoint(node: &NodeRecord, site: &SiteRecord) -> Option<Endpoint> {
    match node.state {
        NodeState::Active => node.endpoint.or(site.endpoint),
        NodeState::Standby => node.endpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::RecordChange,
        testing::{directory_of, node_record},
    };

    #[test]
    fn links_are_counted_as_if_each_pair_was_looked_at() {
        let mut directory = directory_of(4);
        let (_, standby) = node_record(9);
        let site = directory.nodes.values().next().unwrap().site;
        directory.apply(&RecordChange::Node(NodeRecord { site, state: NodeState::Standby, ..standby }));
        let nodes: Vec<_> = directory.nodes.keys().copied().collect();
        let pairs = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
        let links = pairs.filter(|(a, b)| linked(&directory, *a, *b)).count();
        assert_eq!((links, count_links(&directory)), (9, 9));
    }
}
