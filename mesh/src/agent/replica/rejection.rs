//! Revisions that are not carried out at all.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    ids::{MeshId, Position},
    peer::View,
    stream::StreamMessage,
};

use super::{Draft, Replica};

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
        "the coordinator offers revision {0}, whose epoch is above the number of seconds since \
         1970 by the clock of this host. That is no coordinator's number unless this clock is \
         behind"
    )]
    NotYet(Position),
    #[error(
        "the coordinator names more peers than an agent keeps: {} of them, with {} MiB of text",
        View::MOST_PEERS,
        StreamMessage::LONGEST >> 20
    )]
    TooLarge,
    #[error(
        "the coordinator gives this node another tunnel address, or the mesh another tunnel prefix \
         or port: none of them ever changes. This node keeps what it has"
    )]
    Moved,
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
            Self::NotYet(_) | Self::TooLarge | Self::Moved | Self::Mesh(_) => None,
        }
    }
}

impl Replica {
    /// Whether what never changes would.
    pub(super) fn moves(&self, next: &Draft) -> bool {
        self.known.as_ref().is_some_and(|known| {
            let (mesh, myself) = (&known.mesh, &known.myself);
            let is_same = mesh.tunnel_prefix == next.mesh.tunnel_prefix
                && mesh.listen_port == next.mesh.listen_port
                && myself.node == next.myself.node
                && myself.tunnel_address == next.myself.tunnel_address;
            !is_same
        })
    }

    /// It goes on from where it is.
    pub(super) fn reject(&mut self, rejection: Rejection) -> Rejection {
        self.rejected = Some(rejection.clone());
        rejection
    }

    /// What follows says nothing.
    pub(super) fn reject_until_snapshot(&mut self, rejection: Rejection) -> Rejection {
        self.out_of_step = true;
        self.reject(rejection)
    }

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
