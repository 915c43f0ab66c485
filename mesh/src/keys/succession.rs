//! What may follow a node's present statement: the rules by which a coordinator takes new keys and
//! identities.

use thiserror::Error;
use wattle_wire::{enrol::Statement, rotation::SignedAnnouncement};

use crate::{
    config::directory::NodeRecord,
    keys::enrolment::{announced, has_number, is_or_was},
};

/// Why a statement does not follow.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SuccessionRefused {
    #[error("the statement is not signed by the node's identity")]
    Stranger,
    #[error("the statement says `unmanaged`, but this node has an agent")]
    Unmanaged,
    #[error("its number must be above {0}")]
    Number(u64),
    #[error(
        "the node has announced no key, or another one: a key is announced before it is taken up"
    )]
    Unannounced,
    #[error("the node has this identity already")]
    SameIdentity,
    #[error(
        "another identity has to keep the WireGuard key that the coordinator knows. Take up the \
         new WireGuard key first; if the coordinator's database was restored from before that, \
         remove the node and join again"
    )]
    OtherKey,
}

/// Whether the node has announced just this, and neither taken it up nor withdrawn it.
pub fn stands(record: &NodeRecord, announcement: &SignedAnnouncement) -> bool {
    let present = record.announced.as_ref();
    present.is_some_and(|present| present.announcement == *announcement)
}

/// Checks what a node announces.
///
/// # Errors
///
/// [`SuccessionRefused`] when it is of another identity, or of a number that was used.
pub fn may_announce(record: &NodeRecord, statement: &Statement) -> Result<(), SuccessionRefused> {
    if statement.identity != record.identity_key {
        return Err(SuccessionRefused::Stranger);
    }
    may_follow(record, statement)
}

/// Checks the statement of a key that a node has taken up.
///
/// # Errors
///
/// [`SuccessionRefused::Unannounced`] when it is not what the announcement that stands says.
pub fn may_take_up(record: &NodeRecord, statement: &Statement) -> Result<(), SuccessionRefused> {
    let present = record.announced.as_ref();
    let present = present.and_then(|present| announced(&present.announcement));
    if present.as_ref() == Some(statement) {
        Ok(())
    } else {
        Err(SuccessionRefused::Unannounced)
    }
}

/// Checks the statement of another identity of a node. Whoever sends it need not be the node, so
/// it changes the identity and nothing else.
///
/// # Errors
///
/// [`SuccessionRefused`] when the present identity did not sign for it, or it changes more.
pub fn may_succeed(record: &NodeRecord, statement: &Statement) -> Result<(), SuccessionRefused> {
    if !is_or_was(statement, record.identity_key) {
        return Err(SuccessionRefused::Stranger);
    }
    if statement.identity == record.identity_key {
        return Err(SuccessionRefused::SameIdentity);
    }
    if statement.wireguard_key != record.wireguard_key {
        return Err(SuccessionRefused::OtherKey);
    }
    may_follow(record, statement)
}

/// What a node withdrew is not taken up later: no number is used twice.
fn may_follow(record: &NodeRecord, statement: &Statement) -> Result<(), SuccessionRefused> {
    if statement.unmanaged {
        return Err(SuccessionRefused::Unmanaged);
    }
    if statement.sequence <= record.highest_sequence || !has_number(statement) {
        return Err(SuccessionRefused::Number(record.highest_sequence));
    }
    Ok(())
}
