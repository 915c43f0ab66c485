//! Bodies of the REST interface for people and scripts, by resource.

mod dry_run;
mod event;
mod link;
mod mesh;
mod node;
mod site;
mod token;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use self::{
    dry_run::{DryRun, LinkEffects, SomeLinks},
    event::{Event, FieldChange},
    link::{
        EndpointSource, Link, LinkChange, LinkEnd, LinkFault, LinkProblem, LinkState, PskMaker,
    },
    mesh::{Mesh, MeshPatch, Readiness, Version},
    node::{
        ConnectionState, CreatedWgQuick, LanState, NewReadmissions, NewWgQuick, Node,
        NodeConnection, NodePatch, NodeProblem, NodeReport, NodeRotation, NodeState, Readmission,
        Removed, RemovedNode, RotationPhase, SomeNodes, UnmanagedNode,
    },
    site::{
        ChangedSite, CreatedSite, Import, Imported, Site, SiteNode, SitePatch, SiteSpec, Warning,
    },
    token::{
        ApiToken, CreatedApiToken, CreatedJoinToken, InstallCommands, InvalidRole, JoinToken,
        NewApiToken, NewJoinToken, Role,
    },
};

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give this as `cursor` to get the next page; absent on the last.
    pub next_cursor: Option<String>,
}

/// Tells `null` from absent: a field that is there gives `Some`, whatever it holds, and `null` only
/// where that means something.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
