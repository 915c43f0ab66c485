//! Credentials that were found good before.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wattle_wire::{
    ids::{NodeId, TokenId},
    key::IdentityKey,
};

use crate::secret::{self, ApiCredential};

/// How often the use of an api token is written down.
const USES: Duration = Duration::from_secs(60);

/// The newest token of each node whose signature was found good, so that it is not verified at each
/// request.
///
/// Whether the node takes part, with which key, and whether the token is in time is asked each time
/// all the same.
#[derive(Debug, Default)]
pub struct Verified(Mutex<HashMap<NodeId, ([u8; 32], IdentityKey)>>);

impl Verified {
    /// Forgets nodes that do not take part any more.
    pub fn retain(&self, takes_part: impl Fn(NodeId) -> bool) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|node, _| takes_part(*node));
    }

    pub fn has(&self, node: NodeId, hash: [u8; 32], key: IdentityKey) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&node)
            == Some(&(hash, key))
    }

    pub fn remember(&self, node: NodeId, hash: [u8; 32], key: IdentityKey) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, (hash, key));
    }
}

/// Api tokens that were good before.
///
/// An id alone makes nobody known: ids are in the audit log, and revoked ones are remembered.
#[derive(Debug, Default)]
pub struct KnownTokens(Mutex<HashMap<TokenId, Known>>);

#[derive(Debug)]
struct Known {
    /// Of the secret.
    hash: Vec<u8>,
    /// When this coordinator last wrote down that it was used.
    written: Option<Instant>,
}

impl KnownTokens {
    /// Those with these hashes of their secrets.
    pub fn of(used: impl IntoIterator<Item = (TokenId, Vec<u8>)>) -> Self {
        let known = used.into_iter().map(|(id, hash)| {
            let written = None;
            (id, Known { hash, written })
        });
        Self(Mutex::new(known.collect()))
    }

    pub fn has(&self, token: &ApiCredential) -> bool {
        self.lock()
            .get(&token.id)
            .is_some_and(|known| secret::matches(token.secret.reveal(), &known.hash))
    }

    /// A token was found good. Whether this use is to be written down.
    pub fn use_is_due(&self, id: TokenId, hash: Vec<u8>, now: Instant) -> bool {
        let mut all = self.lock();
        let written = None;
        let known = all.entry(id).or_insert(Known { hash, written });
        let due = known
            .written
            .is_none_or(|written| now.duration_since(written) >= USES);
        if due {
            known.written = Some(now);
        }
        due
    }

    pub fn forget(&self, id: TokenId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
