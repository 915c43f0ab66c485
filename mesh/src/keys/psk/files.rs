//! Which preshared key to use with an unmanaged node: nobody there says which of its files it has.
//!
//! ```text
//!   one file:    its key
//!   a newer one: both in turn, so that the node gets through with either ...
//!                ... but the key of the running session while that is due to be renewed, so that it is
//!                until packets arrive that only the newer key explains: the older one is forgotten
//! ```
//!
//! Writing a preshared key takes nothing from a live session, and a session outlives the failure of
//! its renewal by a minute.

#[cfg(test)]
mod model;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Ignored, Psk};
use crate::host::state::{ObservedPeer, SESSION_S};

/// How many files the node may have. A session that a keepalive renews, 25 s late, outlives 35 s in
/// which that fails: two turns of others.
const MOST: usize = 3;
/// Seconds of a turn: at least one of WireGuard's attempts, which are 5 s apart (`REKEY_TIMEOUT`).
const TURN_S: u64 = 10;
/// Ages of a session in seconds at which it is due to be renewed: WireGuard does so with the first
/// packet that is sent after 120 s (`REKEY_AFTER_TIME` of its paper, section 6.1), a keepalive
/// comes within another 25, and a second attempt 5 s later. Fifteen come before, because the device
/// is observed every five.
const RENEWAL_S: RangeInclusive<u64> = 105..=150;

/// The keys of the files that the node may have, as kept on disk; and which of them has its turn.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Files {
    /// The oldest first.
    keys: Vec<FileKey>,
    #[serde(skip)]
    candidate: Candidate,
}

/// The key of one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FileKey {
    #[serde(with = "crate::keys::preshared_key::on_disk")]
    psk: Psk,
    /// When the file was made, in milliseconds since 1970.
    made_ms: u64,
}

/// What the device has shown of the keys, which are numbered as they stand. Seconds are since 1970.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    /// The key that is in use, and since when.
    in_use: usize,
    since: u64,
    /// When the newest handshake was.
    handshake: u64,
    /// The key of that handshake, as far as that is known.
    session: Option<usize>,
    /// When the first handshake was of those that were all of that key.
    first: u64,
    /// What had been received when it was observed last.
    received_bytes: u64,
}

/// What an observation of the device made of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moved {
    #[default]
    No,
    /// Another key is to be used, and nothing has to be on disk for that.
    InMemory,
    /// What has changed has to outlive a restart.
    OnDisk,
}

impl Files {
    /// The key to use now.
    pub(super) fn key(&self) -> Option<&Psk> {
        self.keys.get(self.candidate.in_use).map(|key| &key.psk)
    }

    /// Lets the key that the device has go on with its turn. To be said before anything is
    /// observed.
    pub(super) fn resume(&mut self, seen: &ObservedPeer) {
        let on_device = self
            .keys
            .iter()
            .position(|key| Some(&key.psk) == seen.psk.as_ref());
        self.candidate.in_use = on_device.unwrap_or(self.candidate.in_use);
    }

    /// Takes the key of a file. Of several the newest files count.
    ///
    /// # Errors
    ///
    /// [`Ignored::Old`] when the file is no newer than one that is known.
    pub(super) fn take(&mut self, psk: Psk, made_ms: u64, now: u64) -> Result<(), Ignored> {
        match self.keys.as_slice() {
            [.., newest] if made_ms <= newest.made_ms => return Err(Ignored::Old),
            // Whatever session there is is of the one key that there was.
            [_] => {
                self.candidate = Candidate {
                    since: now,
                    handshake: now,
                    session: Some(0),
                    ..Candidate::default()
                }
            }
            keys if keys.len() == MOST => {
                self.forget(usize::from(self.candidate.session.unwrap_or(0) == 0))
            }
            _ => {}
        }
        self.keys.push(FileKey { psk, made_ms });
        Ok(())
    }

    /// Whether [`Files::observe`] has anything to take note of.
    pub(super) fn has_candidates(&self) -> bool {
        self.keys.len() > 1
    }

    /// Takes note of the tunnel, at each observation of the device. `now` is in seconds since 1970.
    pub(super) fn observe(&mut self, seen: &ObservedPeer, now: u64) -> Moved {
        if !self.has_candidates() {
            return Moved::No;
        }
        if self.candidate.since == 0 {
            // It is not known what was before a restart.
            self.candidate.since = now;
        }
        if let Some(shown) = self.note(seen, now).filter(|shown| *shown > 0) {
            (0..shown).for_each(|_| self.forget(0));
            return Moved::OnDisk;
        }
        let Candidate {
            in_use: turn,
            since,
            session,
            ..
        } = self.candidate;
        let is_due = seen
            .handshake_age_s
            .is_some_and(|age| RENEWAL_S.contains(&age));
        let turns_to = match session.filter(|_| is_due) {
            Some(session) => session,
            None if now.abs_diff(since) >= TURN_S => (turn + 1) % self.keys.len(),
            None => turn,
        };
        if turns_to == turn {
            return Moved::No;
        }
        (self.candidate.in_use, self.candidate.since) = (turns_to, now);
        Moved::InMemory
    }

    /// The key that only a node which has its file can have made the device receive packets with,
    /// if there is one now.
    ///
    /// A device may take it for a handshake when it answers one that the other end then cannot read
    /// (gotatun does), and it may count what it receives of one that fails (the kernel does). So
    /// that counts which arrives without another handshake, in a session, when all sessions of
    /// other keys are over.
    fn note(&mut self, seen: &ObservedPeer, now: u64) -> Option<usize> {
        let candidate = &mut self.candidate;
        let received_before = std::mem::replace(&mut candidate.received_bytes, seen.received_bytes);
        let at = now.checked_sub(seen.handshake_age_s?)?;
        if at > candidate.handshake + 1 {
            // In the second in which the key was changed it may have been of either.
            let is_on_device =
                self.keys.get(candidate.in_use).map(|key| &key.psk) == seen.psk.as_ref();
            let key = Some(candidate.in_use).filter(|_| is_on_device && at > candidate.since + 1);
            if candidate.session != key {
                (candidate.session, candidate.first) = (key, at);
            }
            candidate.handshake = at;
            return None;
        }
        let is_over = now > candidate.first + SESSION_S + 1 && at + SESSION_S >= now;
        candidate
            .session
            .filter(|_| is_over && seen.received_bytes > received_before)
    }

    /// Forgets a key, by its number.
    fn forget(&mut self, key: usize) {
        self.keys.remove(key);
        let candidate = &mut self.candidate;
        candidate.in_use -=
            usize::from(candidate.in_use > key || candidate.in_use == self.keys.len());
        candidate.session = candidate
            .session
            .filter(|session| *session != key)
            .map(|session| session - usize::from(session > key));
    }
}
