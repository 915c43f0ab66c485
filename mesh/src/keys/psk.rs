//! How two nodes agree on the preshared key of their tunnel, so that only they know it: the rounds
//! of one pair.
//!
//! ```text
//!   initiator (higher id)                                responder (lower id)
//!   makes an ML-KEM key    ──── request(kem key) ────▶   makes a secret under it, keeps the key as offered
//!   keeps the key as next  ◀─── offer(ciphertext) ───
//!                          ──── confirm(proof) ──────▶   checks the proof, uses the key from now on
//!   uses the key           ◀─── commit ──────────────
//! ```
//!
//! Each message is signed by its node's identity, and what a node answers it has kept on disk
//! before. From `confirm` on the responder may use the new key while the initiator still uses the
//! old one. That takes nothing from a live session, which knows nothing of the preshared key until
//! it is renewed. Should `commit` not arrive in time, the initiator tries both in turn whenever
//! handshakes fail.
//!
//! The ML-KEM key lives for one round and in memory only, so whoever gets hold of a node's disk
//! later learns no earlier key.

mod candidate;
mod ends;
pub mod exchange;
mod files;
pub mod given;
pub(crate) mod kem;
pub mod mailbox;
#[cfg(test)]
mod model;
mod retry;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wattle_wire::{
    key::{Bytes32, IdentityKey, KemCiphertext, KemKey, WireguardKey},
    psk::{PskMessage, PskPolicy, PskStep, SignedPskMessage},
};

use self::{
    candidate::Candidate,
    kem::{Derived, derive},
    retry::{Retry, SHORTEST_RETRY_S},
};
pub use self::{
    ends::{Ends, Ignored},
    kem::{Kem, KemSecret},
};
pub use crate::keys::preshared_key::Psk;
use crate::keys::preshared_key::on_disk;

/// Seconds for which a key is used: a day, less up to two hours that differ from round to round, so
/// that a mesh does not renew all at once.
const LIFETIME_S: u64 = 24 * 3600;
const JITTER_S: u32 = 2 * 3600;
/// Seconds for which a key is not replaced because its peer asks for that: somebody may have kept
/// the message to send it again and again.
const LEAST_USE_S: u64 = 30;
/// A peer whose message is said again after more than so many seconds does not answer.
const UNANSWERED_WAIT_S: u64 = 4 * SHORTEST_RETRY_S;

/// The round of a `renew` that is about none: the responder has a key, and wants another.
const NO_ROUND: u64 = 0;

pub(crate) const PURPOSE: &[u8] = b"wattle psk v1\0";

/// What one node knows of the preshared key of one tunnel. As it is kept on disk, it is
/// [`Pair::kept`] first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pair {
    /// Number of the newest round that was begun or joined.
    round: u64,
    current: Option<Agreed>,
    phase: Phase,
    /// Somebody wants another key than the one that there is.
    #[serde(skip)]
    wanted: Option<Retry>,
}

/// A key that both ends have.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Agreed {
    #[serde(with = "on_disk")]
    psk: Psk,
    /// The initiator's and the responder's WireGuard key for which it was made.
    keys: [WireguardKey; 2],
    /// Seconds since 1970.
    since: u64,
    /// Seconds since 1970 at which it is to be replaced.
    due: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    #[default]
    Idle,
    /// Initiator: asked. Lost in a restart, which begins a new round.
    #[serde(skip)]
    Requested {
        secret: KemSecret,
        keys: [WireguardKey; 2],
        /// Who asked whom. The key depends on the signatures, so another identity of either is
        /// another round.
        identities: [IdentityKey; 2],
        message: SignedPskMessage,
        retry: Retry,
    },
    /// Initiator: has the key, and the responder may use it already.
    Confirmed {
        next: Derived,
        keys: [WireguardKey; 2],
        message: SignedPskMessage,
        #[serde(skip)]
        retry: Retry,
        #[serde(rename = "trial")]
        candidate: Candidate,
    },
    /// Responder: has the key, and the initiator may have it.
    Offered {
        next: Derived,
        keys: [WireguardKey; 2],
        message: SignedPskMessage,
    },
    /// Responder: waits for a request since it knows the peer.
    #[serde(skip)]
    Waiting { retry: Retry },
}

impl Pair {
    /// The key to use now. Under `require` a first key is used as soon as it is there, for there is
    /// nothing to lose.
    pub fn key(&self, policy: PskPolicy) -> Option<&Psk> {
        let current = self.current.as_ref().map(|agreed| &agreed.psk);
        match &self.phase {
            Phase::Confirmed {
                next, candidate, ..
            } if candidate.next => Some(&next.psk),
            Phase::Confirmed { next, .. } | Phase::Offered { next, .. }
                if policy == PskPolicy::Require =>
            {
                current.or(Some(&next.psk))
            }
            Phase::Confirmed { .. }
            | Phase::Offered { .. }
            | Phase::Idle
            | Phase::Requested { .. }
            | Phase::Waiting { .. } => current,
        }
    }

    /// When the key to use was agreed on, in seconds since 1970.
    pub fn since(&self) -> Option<u64> {
        self.current.as_ref().map(|agreed| agreed.since)
    }

    /// Wants another key than the one that there is. It is forgotten in a restart.
    pub fn want_another(&mut self) {
        // The initiator does not listen within the first seconds of a key. It has the key later than
        // this end where this message took the place of the commit, for which it asks again then.
        // So the second time is when both are over.
        self.wanted = self.current.is_some().then_some(Retry {
            said: 0,
            wait: LEAST_USE_S / 2 + SHORTEST_RETRY_S,
        });
    }

    /// Whether an end that goes by this may be started again from what is on disk: that has all the
    /// keys of this round, and finds out which of them the peer uses.
    fn survives_with(&self, disk: &Self) -> bool {
        let kept: Vec<_> = disk.keys().collect();
        self.round == disk.round && self.keys().all(|key| kept.contains(&key))
    }

    /// The key that is agreed on, and the one that is to take its place.
    fn keys(&self) -> impl Iterator<Item = &Psk> {
        let next = match &self.phase {
            Phase::Confirmed { next, .. } | Phase::Offered { next, .. } => Some(&next.psk),
            Phase::Idle | Phase::Requested { .. } | Phase::Waiting { .. } => None,
        };
        let current = self.current.as_ref().map(|agreed| &agreed.psk);
        current.into_iter().chain(next)
    }

    /// Whether the peer leaves unanswered what is said about a first key.
    pub fn is_unanswered(&self) -> bool {
        match &self.phase {
            Phase::Requested { retry, .. } | Phase::Waiting { retry } => {
                self.current.is_none() && retry.wait > UNANSWERED_WAIT_S
            }
            Phase::Idle | Phase::Confirmed { .. } | Phase::Offered { .. } => false,
        }
    }

    /// Whether this end begins the rounds and is in the middle of one. When neither end is, both
    /// have the same key, or none: the initiator is the first to know of a round and the last to
    /// use its key.
    fn is_changing(&self) -> bool {
        matches!(
            self.phase,
            Phase::Requested { .. } | Phase::Confirmed { .. }
        )
    }

    /// Whether the next thing that this end has to say would begin a round.
    fn would_begin(&self, ends: &Ends<'_>) -> bool {
        ends.is_initiator() && matches!(self.phase, Phase::Idle)
    }

    /// Whether this end has asked for a secret and may still expect an answer.
    fn is_asking(&self) -> bool {
        matches!(&self.phase, Phase::Requested { retry, .. } if retry.wait <= UNANSWERED_WAIT_S)
    }

    /// Whether this end waits for an answer.
    fn waits(&self) -> bool {
        matches!(
            self.phase,
            Phase::Requested { .. } | Phase::Confirmed { .. } | Phase::Waiting { .. }
        )
    }

    /// Says at once what nobody has answered.
    fn say_again(&mut self) {
        match &mut self.phase {
            Phase::Requested { retry, .. }
            | Phase::Confirmed { retry, .. }
            | Phase::Waiting { retry } => *retry = Retry::default(),
            Phase::Idle | Phase::Offered { .. } => {}
        }
    }

    /// Whether all of it outlives a restart.
    fn is_kept(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Confirmed { .. } | Phase::Offered { .. } => true,
            Phase::Requested { .. } | Phase::Waiting { .. } => false,
        }
    }

    /// What of it outlives a restart.
    pub fn kept(&self) -> Self {
        let phase = if self.is_kept() {
            self.phase.clone()
        } else {
            Phase::Idle
        };
        Self {
            phase,
            ..self.clone()
        }
    }

    /// Whether [`Pair::tick`] has anything to do.
    pub fn is_due(&self, ends: &Ends<'_>, now: u64) -> bool {
        match &self.phase {
            // A first key is not waited for: there is no tunnel yet, or one without.
            Phase::Idle | Phase::Offered { .. } if ends.is_turning && self.current.is_some() => {
                false
            }
            Phase::Idle if ends.is_initiator() => {
                self.wanted.is_some() || self.is_used_up(ends, now)
            }
            Phase::Idle => {
                self.current.is_none() || self.wanted.is_some_and(|retry| retry.is_due(now))
            }
            Phase::Requested {
                keys,
                identities,
                retry,
                ..
            } => retry.is_due(now) || *keys != ends.keys() || *identities != ends.identities(),
            Phase::Confirmed { retry, .. } | Phase::Waiting { retry } => retry.is_due(now),
            // The initiator may know nothing of the offer, or have forgotten it.
            Phase::Offered { .. } => self.wanted.is_some_and(|retry| retry.is_due(now)),
        }
    }

    /// What to say because time has passed. `now` is in seconds since 1970.
    pub fn tick(&mut self, ends: &Ends<'_>, now: u64, kem: &impl Kem) -> Option<SignedPskMessage> {
        if !self.is_due(ends, now) {
            return None;
        }
        let keys_now = ends.keys();
        match &mut self.phase {
            // The number of the round is when it was begun. What nobody answers for a day is wiped.
            Phase::Requested {
                keys,
                identities,
                message,
                retry,
                ..
            } if *keys == keys_now
                && *identities == ends.identities()
                && now < self.round.saturating_add(LIFETIME_S) =>
            {
                retry.again(now);
                Some(message.clone())
            }
            Phase::Idle | Phase::Requested { .. } if ends.is_initiator() => {
                self.begin(ends, now, kem)
            }
            Phase::Confirmed { message, retry, .. } => {
                retry.again(now);
                Some(ends.signed(Arc::clone(&message.message)))
            }
            Phase::Waiting { retry } => {
                retry.again(now);
                ends.sign(self.round, PskStep::Renew { newest: None })
            }
            Phase::Idle | Phase::Offered { .. } if self.current.is_some() => {
                self.wanted.iter_mut().for_each(|retry| retry.again(now));
                ends.sign(NO_ROUND, PskStep::Renew { newest: None })
            }
            Phase::Idle | Phase::Requested { .. } | Phase::Offered { .. } => {
                self.phase = Phase::Waiting {
                    retry: Retry::new(now),
                };
                None
            }
        }
    }

    /// Takes in a message of the peer. What it answers may be sent once this is kept on disk.
    ///
    /// # Errors
    ///
    /// [`Ignored`]; everything is as it was.
    pub fn receive(
        &mut self,
        ends: &Ends<'_>,
        signed: &SignedPskMessage,
        now: u64,
        kem: &impl Kem,
    ) -> Result<Option<SignedPskMessage>, Ignored> {
        let PskMessage { round, step, .. } = ends.open(signed)?;
        match (step, ends.is_initiator()) {
            (
                PskStep::Request {
                    initiator_key,
                    responder_key,
                    kem_key,
                },
                false,
            ) => self.requested(
                ends,
                signed,
                round,
                [initiator_key, responder_key],
                &kem_key,
                kem,
            ),
            (PskStep::Offer { ciphertext }, true) => {
                self.offered(ends, signed, round, &ciphertext, now)
            }
            (PskStep::Confirm { proof }, false) => self.confirmed(ends, round, proof, now),
            (PskStep::Commit {}, true) => self.committed(round, now),
            (PskStep::Renew { newest }, true) => self.renew(ends, round, newest, now, kem),
            _ => Err(Ignored::Unexpected),
        }
    }

    /// Whether [`Pair::observe`] has anything to take note of.
    pub fn has_candidates(&self) -> bool {
        matches!(self.phase, Phase::Confirmed { .. })
    }

    /// Takes note of the tunnel's newest handshake, at each observation of the device. Whether the
    /// key to use is another one now.
    pub fn observe(&mut self, handshake_age_s: Option<u64>, now: u64) -> bool {
        let Phase::Confirmed { candidate, .. } = &mut self.phase else {
            return false;
        };
        candidate.observe(handshake_age_s, self.current.is_some(), now)
    }

    fn is_used_up(&self, ends: &Ends<'_>, now: u64) -> bool {
        // A clock that went back by more than a day does not keep a key for longer.
        self.current.as_ref().is_none_or(|agreed| {
            agreed.keys != ends.keys() || now >= agreed.due || now + LIFETIME_S < agreed.since
        })
    }

    fn begin(&mut self, ends: &Ends<'_>, now: u64, kem: &impl Kem) -> Option<SignedPskMessage> {
        let (secret, kem_key) = kem.generate()?;
        self.wanted = None;
        // The time makes it grow even when what was kept on disk is lost.
        self.round = now.max(self.round.saturating_add(1));
        let keys = ends.keys();
        let [initiator_key, responder_key] = keys;
        let message = ends.sign(
            self.round,
            PskStep::Request {
                initiator_key,
                responder_key,
                kem_key,
            },
        )?;
        self.phase = Phase::Requested {
            secret,
            keys,
            identities: ends.identities(),
            message: message.clone(),
            retry: Retry::new(now),
        };
        Some(message)
    }

    fn requested(
        &mut self,
        ends: &Ends<'_>,
        request: &SignedPskMessage,
        round: u64,
        keys: [WireguardKey; 2],
        kem_key: &KemKey,
        kem: &impl Kem,
    ) -> Result<Option<SignedPskMessage>, Ignored> {
        if let Phase::Offered { message, .. } = &self.phase
            && round == self.round
        {
            return Ok(Some(message.clone()));
        }
        if round <= self.round {
            return Ok(self.old(ends, round));
        }
        if keys != ends.keys() {
            return Err(Ignored::Keys);
        }
        let (ciphertext, secret) = kem.encapsulate(kem_key).ok_or(Ignored::Kem)?;
        let message = ends
            .sign(round, PskStep::Offer { ciphertext })
            .ok_or(Ignored::Unreadable)?;
        let next = derive(&secret, keys, request, &message).ok_or(Ignored::Kem)?;
        self.round = round;
        self.phase = Phase::Offered {
            next,
            keys,
            message: message.clone(),
        };
        Ok(Some(message))
    }

    fn offered(
        &mut self,
        ends: &Ends<'_>,
        offer: &SignedPskMessage,
        round: u64,
        ciphertext: &KemCiphertext,
        now: u64,
    ) -> Result<Option<SignedPskMessage>, Ignored> {
        match &self.phase {
            Phase::Requested {
                secret,
                keys,
                message: request,
                ..
            } if round == self.round => {
                let keys = *keys;
                let secret = secret.decapsulate(ciphertext).ok_or(Ignored::Kem)?;
                let next = derive(&secret, keys, request, offer).ok_or(Ignored::Kem)?;
                let message = ends
                    .sign(round, PskStep::Confirm { proof: next.proof })
                    .ok_or(Ignored::Unreadable)?;
                let candidate = Candidate::before(now);
                self.phase = Phase::Confirmed {
                    next,
                    keys,
                    message: message.clone(),
                    retry: Retry::new(now),
                    candidate,
                };
                Ok(Some(message))
            }
            Phase::Confirmed { message, .. } if round == self.round => {
                Ok(Some(ends.signed(Arc::clone(&message.message))))
            }
            Phase::Idle
            | Phase::Requested { .. }
            | Phase::Confirmed { .. }
            | Phase::Offered { .. }
            | Phase::Waiting { .. } => Err(Ignored::Unexpected),
        }
    }

    fn confirmed(
        &mut self,
        ends: &Ends<'_>,
        round: u64,
        proof: Bytes32,
        now: u64,
    ) -> Result<Option<SignedPskMessage>, Ignored> {
        if round < self.round {
            return Ok(self.old(ends, round));
        }
        match &self.phase {
            Phase::Offered { next, .. } if round == self.round && next.proof == proof => {
                self.use_next(now);
                Ok(ends.sign(round, PskStep::Commit {}))
            }
            Phase::Idle if round == self.round && self.current.is_some() => {
                Ok(ends.sign(round, PskStep::Commit {}))
            }
            Phase::Idle
            | Phase::Requested { .. }
            | Phase::Confirmed { .. }
            | Phase::Offered { .. }
            | Phase::Waiting { .. } => Ok(ends.sign(round, PskStep::Renew { newest: None })),
        }
    }

    /// The answer to what is of an earlier round. Somebody may have kept it to send it again; or the
    /// initiator has an earlier disk, or its clock went back.
    fn old(&self, ends: &Ends<'_>, round: u64) -> Option<SignedPskMessage> {
        let newest = Some(self.round);
        ends.sign(round, PskStep::Renew { newest })
    }

    fn committed(&mut self, round: u64, now: u64) -> Result<Option<SignedPskMessage>, Ignored> {
        if round != self.round || !matches!(self.phase, Phase::Confirmed { .. }) {
            return Err(Ignored::Unexpected);
        }
        self.use_next(now);
        Ok(None)
    }

    /// The responder has no key of this round, so that the next one is not to be waited for; or none
    /// at all.
    fn renew(
        &mut self,
        ends: &Ends<'_>,
        round: u64,
        newest: Option<u64>,
        now: u64,
        kem: &impl Kem,
    ) -> Result<Option<SignedPskMessage>, Ignored> {
        let is_behind = match &self.phase {
            // A key that both ends may use is dropped only for a round that came after it: this end
            // began that and does not remember it.
            Phase::Confirmed { .. } => newest.is_none_or(|newest| newest > round),
            Phase::Requested { .. } => {
                newest.is_some_and(|newest| (round..u64::MAX).contains(&newest))
            }
            Phase::Idle | Phase::Offered { .. } | Phase::Waiting { .. } => false,
        };
        if round == self.round && is_behind {
            self.round = newest.unwrap_or(round);
            return Ok(self.begin(ends, now, kem));
        }
        match &self.phase {
            Phase::Requested { message, .. } => Ok(Some(message.clone())),
            Phase::Idle if self.may_begin_again(ends, now) => Ok(self.begin(ends, now, kem)),
            Phase::Idle
            | Phase::Confirmed { .. }
            | Phase::Offered { .. }
            | Phase::Waiting { .. } => Err(Ignored::Unexpected),
        }
    }

    fn may_begin_again(&self, ends: &Ends<'_>, now: u64) -> bool {
        self.current
            .as_ref()
            .is_none_or(|agreed| !ends.is_turning && now.abs_diff(agreed.since) >= LEAST_USE_S)
    }

    /// Both ends have the next key: there is no way back.
    fn use_next(&mut self, now: u64) {
        if let Phase::Confirmed { next, keys, .. } | Phase::Offered { next, keys, .. } =
            std::mem::take(&mut self.phase)
        {
            let [a, b, c, d, ..] = *next.proof.as_bytes();
            self.wanted = None;
            let jitter = u64::from(u32::from_be_bytes([a, b, c, d]) % JITTER_S);
            self.current = Some(Agreed {
                psk: next.psk,
                keys,
                since: now,
                due: now.saturating_add(LIFETIME_S - jitter),
            });
        }
    }
}
