//! Revisions that are not carried out at all.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::ids::{MeshId, Position};

use super::Replica;

/// Why a whole revision is not carried out.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    #[error(
        "the coordinator offers revision {offered}, but this node has seen {have}: its database \
         was restored, or somebody replays an old state. Unless it begins a new epoch, \
         `wattle-agent confirm` on this gateway follows it"
    )]
    RolledBack { have: Position, offered: Position },
    #[error(
        "the coordinator serves another mesh, {0}. This node keeps what it has; \
         `wattle-agent join --replace` with a join string of that mesh moves it there"
    )]
    Mesh(MeshId),
}

impl Rejection {
    /// Where the coordinator is, if it is behind this node.
    pub fn rolled_back_to(&self) -> Option<Position> {
        match self {
            Self::RolledBack { offered, .. } => Some(*offered),
            Self::Mesh(_) => None,
        }
    }
}

impl Replica {
    /// Where the coordinator is, if it is behind this node and offers no new epoch.
    pub fn rolled_back_to(&self) -> Option<Position> {
        self.rejected.as_ref().and_then(Rejection::rolled_back_to)
    }

    /// Somebody here wants the coordinator to be followed from where it is. Whether it had offered
    /// that position.
    pub fn follow_back(&mut self, offered: Position) -> bool {
        let is_offered = self.rolled_back_to() == Some(offered);
        if let (true, Some(known)) = (is_offered, &mut self.known) {
            known.position = offered;
            (self.out_of_step, self.rejected) = (true, None);
        }
        is_offered
    }
}
