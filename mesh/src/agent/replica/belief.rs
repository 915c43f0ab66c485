//! What a node believes of a peer's record: what the peer signed itself, as the node that it is
//! pinned to be.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    ids::MeshId,
    key::IdentityKey,
    name::Name,
    peer::Peer,
    subnet::{InvalidSubnet, Subnet},
};

use super::KnownPeer;
use crate::keys::enrolment::{InvalidStatement, is_or_was, verify_announcement, verify_statement};

/// Who a node is, from first sight on: nobody else can take its place, nor can an old key of its
/// own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub identity: IdentityKey,
    /// Number of the newest statement seen.
    pub sequence: u64,
    /// Whether no agent runs there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmanaged: bool,
    pub tunnel_address: Ipv4Addr,
}

impl Pin {
    pub(super) fn of(known: &KnownPeer) -> Self {
        let Statement {
            identity,
            sequence,
            unmanaged,
            ..
        } = known.statement;
        Self {
            identity,
            sequence,
            unmanaged,
            tunnel_address: known.peer.tunnel_address,
        }
    }
}

/// A peer whose new record is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub name: Name,
    pub reason: RefusalReason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {} refused: {}", self.name, self.reason)
    }
}

/// Why a peer's new record is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RefusalReason {
    #[error(transparent)]
    Statement(#[from] InvalidStatement),
    #[error("its statement is signed by an identity that the known one has not signed for")]
    Identity,
    #[error("its statement is older than the one known")]
    Older,
    #[error(
        "its statement changes whether the node has an agent, which is never allowed: remove the \
         node and make another"
    )]
    Unmanaged,
    #[error("it announces a key that cannot follow the present one")]
    Announced,
    #[error("it has another tunnel address than before, and that of a node never changes")]
    Moved,
    #[error("it has a prefix that no site can have: {0}")]
    Prefix(#[from] InvalidSubnet),
}

/// A peer's record with what its node has signed, if all of it can be believed. `known` is the
/// record that it follows; a peer without one, that was removed before, is still pinned. What an
/// operator or the peer itself has signed stays, whether it is told again or not.
pub(super) fn believe(
    peer: &Peer,
    mesh: MeshId,
    known: Option<&KnownPeer>,
    pin: Option<Pin>,
) -> Result<KnownPeer, RefusalReason> {
    for prefix in &peer.subnets {
        Subnet::try_from(*prefix)?;
    }
    let pin = known.map(Pin::of).or(pin);
    if pin.is_some_and(|pin| pin.tunnel_address != peer.tunnel_address) {
        return Err(RefusalReason::Moved);
    }
    let statement = match known {
        Some(known) if known.peer.statement == peer.statement => known.statement.clone(),
        Some(_) | None => believe_statement(&peer.statement, mesh, known, pin)?,
    };
    let follows = |next: &Statement| {
        let is_another =
            next.sequence > statement.sequence && next.wireguard_key != statement.wireguard_key;
        is_another && next.identity == statement.identity && !next.unmanaged && !statement.unmanaged
    };
    let before =
        known.and_then(|known| Some((known.peer.announced.as_ref()?, known.announced.as_ref()?)));
    let told = match (&peer.announced, before) {
        (Some(signed), Some((known, next))) if known == signed => Some((signed, next.clone())),
        (Some(signed), _) => Some((signed, verify_announcement(signed, mesh)?)),
        (None, _) => None,
    };
    if told.as_ref().is_some_and(|(_, next)| !follows(next)) {
        return Err(RefusalReason::Announced);
    }
    let kept = before.filter(|(_, next)| {
        let is_newer = |(_, told): &(_, Statement)| next.sequence > told.sequence;
        follows(next) && told.as_ref().is_none_or(is_newer)
    });
    let withdrawn = kept.is_some();
    let newest = kept.map(|(signed, next)| (signed, next.clone())).or(told);
    let (signed, announced) = newest.map(|(signed, next)| (signed.clone(), next)).unzip();
    let admission = peer.admission.as_ref();
    Ok(KnownPeer {
        peer: Peer {
            admission: admission
                .or(known.and_then(|known| known.peer.admission.as_ref()))
                .cloned(),
            announced: signed,
            ..peer.clone()
        },
        statement,
        announced,
        withdrawn,
    })
}

fn believe_statement(
    signed: &SignedStatement,
    mesh: MeshId,
    known: Option<&KnownPeer>,
    pin: Option<Pin>,
) -> Result<Statement, RefusalReason> {
    let statement = verify_statement(signed, mesh)?;
    // Nobody signs two statements of one number; a removed node may come back with its last one.
    let is_old = |sequence| {
        if known.is_some() {
            statement.sequence <= sequence
        } else {
            statement.sequence < sequence
        }
    };
    match pin {
        Some(pin) if !is_or_was(&statement, pin.identity) => Err(RefusalReason::Identity),
        Some(pin) if is_old(pin.sequence) => Err(RefusalReason::Older),
        Some(pin) if statement.unmanaged != pin.unmanaged => Err(RefusalReason::Unmanaged),
        Some(_) | None => Ok(statement),
    }
}
