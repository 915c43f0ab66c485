//! `GET /agent/links`: what the coordinator makes of a node's links, from what both their ends say.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::{LanState, LinkFault, LinkState},
    endpoint::Endpoint,
    ids::NodeId,
};

/// A node's links as the coordinator finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnLinks {
    pub links: Vec<LinkVerdict>,
    /// Where peers that reported to this coordinator, and whose link with the node works, send its
    /// packets to; at most [`OwnLinks::MOST_SEEN`].
    pub seen_at: Vec<Endpoint>,
}

impl OwnLinks {
    pub const MOST_SEEN: usize = 8;
}

/// What the coordinator makes of the link with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkVerdict {
    pub peer: NodeId,
    pub state: LinkState,
    /// What is wrong with a degraded link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<LinkFault>,
    /// Whether the LANs at its two ends get each other's packets.
    pub lan: LanState,
}

impl LinkVerdict {
    /// As a person is told: `up`, `degraded (lossy)`, `up, LAN degraded`.
    pub fn in_words(&self) -> String {
        let mut words = self.state.name().to_owned();
        if let Some(fault) = self.fault {
            words += &format!(" ({})", fault.name());
        }
        match self.lan {
            LanState::Ok => {}
            LanState::Unknown | LanState::Unproven | LanState::Degraded => {
                words += &format!(", LAN {}", self.lan.name());
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_verdict_names_what_is_not_as_it_should_be() {
        let verdict = |state, fault, lan| LinkVerdict {
            peer: NodeId(Uuid::nil()),
            state,
            fault,
            lan,
        };
        for (verdict, words) in [
            (verdict(LinkState::Up, None, LanState::Ok), "up"),
            (
                verdict(LinkState::Degraded, Some(LinkFault::Lossy), LanState::Ok),
                "degraded (lossy)",
            ),
            (
                verdict(LinkState::Up, None, LanState::Degraded),
                "up, LAN degraded",
            ),
        ] {
            assert_eq!(verdict.in_words(), words);
        }
    }
}
