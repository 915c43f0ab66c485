//! Sites and nodes as the REST interface shows them.

use chrono::Utc;
use wattle_mesh::{
    agent::admission,
    config::{
        directory::{Directory, NodeRecord, SiteRecord},
        view,
        wg_quick::Files,
    },
    health::lan::LanEnd,
};
use wattle_wire::admin::{
    LanState, Node, NodeRotation, RotationPhase, Site, SiteNode, SiteSpec, UnmanagedNode,
};

use super::reports::{Account, Reports};

pub fn site_in(directory: &Directory, record: &SiteRecord) -> Site {
    let nodes = directory.nodes_of(record.id).map(listed);
    shown(record, nodes.collect())
}

/// A node, as its site lists it.
pub fn listed(node: &NodeRecord) -> SiteNode {
    SiteNode {
        id: node.id,
        name: node.name.clone(),
        state: node.state,
    }
}

pub fn shown(record: &SiteRecord, nodes: Vec<SiteNode>) -> Site {
    let SiteSpec {
        name,
        description,
        labels,
        endpoint,
        subnets,
    } = record.spec.clone();
    Site {
        id: record.id,
        name,
        description,
        labels,
        endpoint,
        subnets,
        tunnel_address: record.tunnel_address,
        nodes,
        created_at: record.created_at,
    }
}

pub fn node_in(reports: &Reports, files: &Files<'_>, record: &NodeRecord) -> Option<Node> {
    Some(with_news(
        reports,
        files,
        configured_in(files.directory, record)?,
    ))
}

/// A node with what it reports, and whether its file is what the mesh is now: neither is its own
/// configuration.
pub fn with_news(reports: &Reports, files: &Files<'_>, node: Node) -> Node {
    let file_is_current = files
        .directory
        .nodes
        .get(&node.id)
        .and_then(|record| files.is_current(record))
        .unwrap_or_default();
    let unmanaged = node.unmanaged.map(|unmanaged| UnmanagedNode {
        file_is_current,
        ..unmanaged
    });
    let connection = unmanaged
        .is_none()
        .then(|| reports.connection(node.id, node.enrolled_at));
    let Account {
        held,
        locked,
        problems,
        returned: _,
    } = reports.account(node.id);
    let end = LanEnd {
        node: node.id,
        connection,
        problems: &problems,
    };
    Node {
        connection,
        lan: end.state(),
        problems,
        last_report: reports.last(node.id),
        held,
        locked,
        removed_on: reports.removed_on(node.id, files.directory),
        unmanaged,
        ..node
    }
}

pub fn configured_in(directory: &Directory, record: &NodeRecord) -> Option<Node> {
    Some(configured(record, directory.sites.get(&record.site)?))
}

/// A node as it is configured, for its tag.
pub fn configured(record: &NodeRecord, site: &SiteRecord) -> Node {
    Node {
        id: record.id,
        name: record.name.clone(),
        name_follows_site: record.name_follows_site,
        site: record.site,
        site_name: site.spec.name.clone(),
        state: record.state,
        tunnel_address: record.tunnel_address,
        wireguard_key: record.wireguard_key,
        identity_key: record.identity_key,
        endpoint: view::endpoint(record, site),
        endpoint_verified: record.endpoint_check.is_none(),
        admission: record.admission.clone(),
        admitted: admission::is_admitted(record, site, Utc::now().timestamp()),
        agent_version: record.agent_version.clone(),
        unmanaged: record.unmanaged.as_ref().map(|file| UnmanagedNode {
            file_made_at: file.file_made_at,
            file_is_current: true,
        }),
        enrolled_at: record.enrolled_at,
        connection: None,
        lan: LanState::default(),
        problems: Vec::new(),
        last_report: None,
        held: None,
        locked: false,
        removed_on: None,
        rotation: rotation(record),
    }
}

fn rotation(record: &NodeRecord) -> Option<NodeRotation> {
    let announced = record.announced.as_ref().map(|announced| NodeRotation {
        phase: RotationPhase::Announced,
        since: announced.at,
    });
    announced.or_else(|| {
        record.rotate_since.map(|since| NodeRotation {
            phase: RotationPhase::Requested,
            since,
        })
    })
}
