//! The directory: all of the mesh's configuration, as the coordinator stores it, and the changes
//! that lead from one revision to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wattle_wire::{
    admin::{NodeState, SiteSpec},
    endpoint::Endpoint,
    enrol::SignedStatement,
    ids::{NodeId, SiteId},
    key::{Bytes32, IdentityKey, WireguardKey},
    lock::{SignedAdmission, SignedRemoval},
    name::Name,
    peer::MeshSettings,
    rotation::SignedAnnouncement,
    stream::Tombstone,
};

/// How far an endpoint is known at which nobody has met its node yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckState {
    /// Who tries it; absent means that nobody was there to do so.
    pub by: Option<NodeId>,
    /// Since when; absent with `by`.
    pub since: Option<DateTime<Utc>>,
    /// How many have tried it.
    pub tries: u32,
}

/// A site as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    pub id: SiteId,
    /// As somebody asked for it, its subnets in order.
    #[serde(flatten)]
    pub spec: SiteSpec,
    /// The tunnel address kept for the site's first gateway.
    pub tunnel_address: Ipv4Addr,
    pub created_at: DateTime<Utc>,
}

/// A node as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    pub site: SiteId,
    pub name: Name,
    /// Whether the name is made of the site's and changes with it.
    pub name_follows_site: bool,
    pub state: NodeState,
    pub tunnel_address: Ipv4Addr,
    pub identity_key: IdentityKey,
    pub wireguard_key: WireguardKey,
    pub statement: SignedStatement,
    /// The highest number that the node ever stated or announced.
    pub highest_sequence: u64,
    /// The key that the node is going to take up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<Announced>,
    /// When somebody asked for a new key; absent once the node has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_since: Option<DateTime<Utc>>,
    /// An operator's word that it may be in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<SignedAdmission>,
    /// What the node said at enrolment; absent means: as the site says.
    pub endpoint: Option<Endpoint>,
    /// Nobody has met the node at its endpoint yet; absent means that somebody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "trial")]
    pub endpoint_check: Option<CheckState>,
    /// Absent for an unmanaged node, and for no other.
    pub agent_version: Option<String>,
    /// The file of an unmanaged node; absent for one with an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmanaged: Option<Unmanaged>,
    pub generation: i32,
    pub enrolled_at: DateTime<Utc>,
}

/// What is kept of the last file that was made for a node without an agent: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmanaged {
    /// To the millisecond, and later than that of every file before.
    pub file_made_at: DateTime<Utc>,
    /// See [`crate::config::wg_quick::WgQuick::digest`].
    pub file_digest: Bytes32,
}

/// What a node is going to state in the place of its present statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    pub announcement: SignedAnnouncement,
    pub at: DateTime<Utc>,
}

/// One record after a change of configuration, or its end. A revision consists of one or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordChange {
    Mesh(MeshSettings),
    Site(SiteRecord),
    /// The site is gone; its nodes were revoked before or in the same revision.
    SiteRemoved(SiteId),
    Node(NodeRecord),
    /// An operator has admitted the node.
    Admission(NodeId, SignedAdmission),
    /// The node is gone for good; its id never comes back.
    NodeRevoked(NodeId),
    /// An operator has signed that the node is gone. It was revoked before, or a restored database
    /// does not have it.
    Removal(NodeId, SignedRemoval),
}

/// All of the mesh's configuration at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub mesh: MeshSettings,
    pub sites: BTreeMap<SiteId, SiteRecord>,
    /// Nodes that take part.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Nodes that once took part, with an operator's word that they are gone.
    pub revoked: BTreeMap<NodeId, Option<SignedRemoval>>,
    /// The nodes that take part, by their sites.
    by_site: BTreeSet<(SiteId, NodeId)>,
}

impl Directory {
    pub fn new(mesh: MeshSettings) -> Self {
        Self {
            mesh,
            sites: BTreeMap::new(),
            nodes: BTreeMap::new(),
            revoked: BTreeMap::new(),
            by_site: BTreeSet::new(),
        }
    }

    pub fn apply(&mut self, change: &RecordChange) {
        match change {
            RecordChange::Mesh(mesh) => self.mesh = mesh.clone(),
            RecordChange::Site(site) => {
                self.sites.insert(site.id, site.clone());
            }
            RecordChange::SiteRemoved(site) => {
                self.sites.remove(site);
            }
            RecordChange::Node(node) => {
                if let Some(before) = self.nodes.insert(node.id, node.clone()) {
                    self.by_site.remove(&(before.site, before.id));
                }
                self.by_site.insert((node.site, node.id));
            }
            RecordChange::Admission(node, admission) => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.admission = Some(admission.clone());
                }
            }
            RecordChange::NodeRevoked(node) => {
                if let Some(before) = self.nodes.remove(node) {
                    self.by_site.remove(&(before.site, before.id));
                }
                self.revoked.entry(*node).or_default();
            }
            RecordChange::Removal(node, removal) => {
                if !self.nodes.contains_key(node) {
                    self.revoked.insert(*node, Some(removal.clone()));
                }
            }
        }
    }

    /// What nodes are told of one that once took part; `None` if it never did, or still does.
    pub fn tombstone(&self, node: NodeId) -> Option<Tombstone> {
        let removal = self.revoked.get(&node)?.clone();
        Some(Tombstone { node, removal })
    }

    /// What nodes are told of all that once took part.
    pub fn tombstones(&self) -> impl Iterator<Item = Tombstone> {
        let revoked = self.revoked.keys();
        revoked.filter_map(|node| self.tombstone(*node))
    }

    pub fn nodes_of(&self, site: SiteId) -> impl Iterator<Item = &NodeRecord> {
        let ids = self
            .by_site
            .range((site, NodeId(Uuid::nil()))..=(site, NodeId(Uuid::max())));
        ids.filter_map(|(_, node)| self.nodes.get(node))
    }

    /// Which of these nodes are unmanaged.
    pub fn unmanaged(&self, nodes: [NodeId; 2]) -> [bool; 2] {
        nodes.map(|node| {
            self.nodes
                .get(&node)
                .is_some_and(|node| node.unmanaged.is_some())
        })
    }

    /// The site with this id or name.
    pub fn find_site(&self, id_or_name: &str) -> Option<&SiteRecord> {
        match id_or_name.parse() {
            Ok(id) => self.sites.get(&id),
            Err(_) => self
                .sites
                .values()
                .find(|site| site.spec.name.as_str() == id_or_name),
        }
    }

    /// The node with this id or name.
    pub fn find_node(&self, id_or_name: &str) -> Option<&NodeRecord> {
        match id_or_name.parse() {
            Ok(id) => self.nodes.get(&id),
            Err(_) => self
                .nodes
                .values()
                .find(|node| node.name.as_str() == id_or_name),
        }
    }
}
