//! `GET /events/stream`: what is new in the mesh, for pages and scripts.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::{LinkFault, LinkState, Node, Site},
    ids::{NodeId, Position, SiteId},
};

/// The data of one event: what is new since the event before. Lists without items are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeshUpdate {
    /// How far the configuration is told.
    pub position: Position,
    /// Whether this is a full snapshot: what is not in it does not exist any more.
    pub complete: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<Site>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// Links whose state is new. A link ends with either of its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_sites: Vec<SiteId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_nodes: Vec<NodeId>,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    /// Its two nodes, in order of their ids.
    pub ends: [NodeId; 2],
    pub state: LinkState,
    /// What is wrong with a degraded link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<LinkFault>,
    /// Since when it is in this state; absent for a link that was never reported.
    pub since: Option<DateTime<Utc>>,
}
