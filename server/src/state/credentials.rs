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

/// Api tokens that were good before, and when this coordinator last wrote that down.
#[derive(Debug, Default)]
pub struct KnownTokens(Mutex<HashMap<TokenId, Option<Instant>>>);

impl KnownTokens {
    /// Those that were used before the coordinator started: a start during an attack locks nobody
    /// out.
    pub fn of(used: impl IntoIterator<Item = TokenId>) -> Self {
        Self(Mutex::new(used.into_iter().map(|id| (id, None)).collect()))
    }

    pub fn has(&self, id: TokenId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Whether this use is to be written down.
    pub fn use_is_due(&self, id: TokenId, now: Instant) -> bool {
        let mut known = self.lock();
        let due = known
            .get(&id)
            .copied()
            .flatten()
            .is_none_or(|written| now.duration_since(written) >= USES);
        if due {
            known.insert(id, Some(now));
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
