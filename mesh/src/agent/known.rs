//! What a node knows of its mesh.

use std::collections::BTreeMap;

use wattle_wire::{
    ids::{NodeId, Position},
    peer::{MeshSettings, Myself},
};

use super::{admission::Admitted, known_peer::KnownPeer};

/// What a node knows of its mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub position: Position,
    pub mesh: MeshSettings,
    pub myself: Myself,
    pub peers: BTreeMap<NodeId, KnownPeer>,
    /// Absent where the host does not require the lock.
    pub admitted: Option<Admitted>,
}

impl Known {
    /// The UDP port at which the node's peers look for it.
    pub fn listen_port(&self) -> u16 {
        let own = self
            .myself
            .endpoint
            .map(|endpoint| endpoint.socket().port());
        own.unwrap_or(self.mesh.listen_port)
    }
}
