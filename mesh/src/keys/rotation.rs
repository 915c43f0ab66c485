//! How a node takes up a new WireGuard key without losing a packet.
//!
//! ```text
//!   the rotating node                          coordinator        each peer
//!   makes a key, keeps it on disk
//!   proves the key; announces it ────────────▶ tells ───────────▶ makes a second entry for the key: it has no prefixes, and a preshared
//!                                                                 key that nobody else knows, so that it shows a handshake and completes none
//!   has the word of all peers in touch ◀────── forwards ◀──────── signs that it is ready
//!   keeps the key as its own on disk,
//!   gives it to the device, calls all peers ────────────────────▶ sees the entry receive something,
//!                                           ◀──────────────────── makes it anew with the prefixes and the true preshared key, and calls
//!   done(statement) ─────────────────────────▶ tells ───────────▶ forgets the former key
//! ```
//!
//! While no handshake is complete, both ends keep their packets waiting; what the peers still send
//! under the former key is received. That is why none is lost, and why the switch itself needs
//! nobody but the two ends. A peer that was away learns of the key when it is back. An unmanaged
//! peer learns of it by a new file alone, so no schedule begins a rotation while there is one.
//!
//! The part of the peers is [`canary`].

pub mod canary;
#[cfg(test)]
mod model;
mod readiness;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wattle_wire::{
    enrol::KeyChallenge,
    ids::NodeId,
    key::Signature,
    name::Name,
    rotation::{RotationAnswer, RotationStep, SignedAnnouncement},
};

use crate::{
    agent::replica::{Known, KnownPeer},
    host::state::{Interface, ObservedPeer},
    keys::{node_keys::NodeKeys, psk::exchange::Exchange},
};

/// How often the coordinator is asked who is ready.
const ASK_INTERVAL: Duration = Duration::from_millis(300);
/// For how long what it said about that holds.
const ANSWER_LIFETIME: Duration = Duration::from_secs(2);
/// How long the peers have to get ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// When another node is at it, when the coordinator cannot be reached, and after something was
/// said, until the view shows it.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// When a rotation is tried again that had to be given up.
const RETRY_LATER_INTERVAL: Duration = Duration::from_secs(600);
/// The part of a key's lifetime by which the lifetimes of keys differ, so that a mesh does not
/// renew all at once.
const JITTER_PART: u64 = 8;
const DAY_S: u64 = 24 * 3600;

/// A change of the node's own WireGuard key, as far as it has come. What has to outlive a restart
/// is part of the [`NodeKeys`].
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// The coordinator knows of the next key.
    announced: Option<Announced>,
    /// With which the next key is proved.
    challenge: Option<KeyChallenge>,
    /// Nothing is said before.
    silent_until: Duration,
    /// The coordinator does not want the next key.
    is_refused: bool,
    /// The coordinator does not know that the present key was announced: its database is of an
    /// earlier time.
    is_unknown: bool,
    /// Nothing is begun before, unless somebody on this host asks.
    put_off_until: Duration,
    problem: Option<String>,
}

#[derive(Clone, Debug)]
struct Announced {
    since: Duration,
    heard: Duration,
    /// Who says to be ready, not yet judged.
    said: BTreeMap<NodeId, Signature>,
    /// Peers that have signed that they are ready.
    ready: BTreeSet<NodeId>,
}

impl Announced {
    /// Counts those as ready whose word it is.
    fn judge(&mut self, known: &Known, announcement: &SignedAnnouncement) {
        for (node, signature) in std::mem::take(&mut self.said) {
            let peer = known
                .peers
                .get(&node)
                .filter(|_| !self.ready.contains(&node));
            let is_its = |peer: &KnownPeer| {
                readiness::is_signed(announcement, node, peer.statement.identity, &signature)
            };
            if peer.is_some_and(is_its) {
                self.ready.insert(node);
            }
        }
    }
}

/// What a rotation depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub known: &'a Known,
    pub node_keys: &'a NodeKeys,
    pub interface: &'a Interface,
    pub psks: &'a Exchange,
    /// Somebody on this host asks for a new key.
    pub is_asked: bool,
    /// Of a clock that only goes forward.
    pub now: Duration,
    /// Seconds since 1970.
    pub unix_s: u64,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationAction {
    /// Make a key and keep it on disk: [`NodeKeys::preparing`].
    MakeKey,
    Tell(RotationStep),
    /// Keep the next key as the present one on disk, and give it to the device:
    /// [`NodeKeys::switched`].
    TakeUp,
    /// Forget the next key: [`NodeKeys::staying`].
    GiveUp,
}

/// What came of telling the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationReply {
    Taken(RotationAnswer),
    /// Another node is changing its key.
    Busy,
    /// The coordinator knows of no announcement of the key that was taken up.
    Unannounced,
    Unreachable,
    /// In words.
    Refused(String),
}

impl Rotation {
    /// What is to be done next, if anything.
    pub fn next(&mut self, situation: &Situation<'_>) -> Option<RotationAction> {
        let Situation {
            known,
            node_keys,
            now,
            ..
        } = *situation;
        let own = known.myself.keys?;
        if now < self.silent_until {
            return None;
        }
        let announce = |challenge: Option<&KeyChallenge>| {
            let Some(challenge) = challenge else {
                return Some(RotationAction::Tell(RotationStep::Prepare {}));
            };
            node_keys
                .announcement(known.mesh.id, challenge)
                .ok()
                .map(|claim| RotationAction::Tell(RotationStep::Announce(claim)))
        };
        if node_keys.sequence() > own.sequence {
            if self.is_unknown {
                return announce(self.challenge.as_ref());
            }
            return node_keys
                .statement(known.mesh.id)
                .ok()
                .map(|statement| RotationAction::Tell(RotationStep::Done(statement)));
        }
        self.is_unknown = false;
        if node_keys.next_key().is_none() {
            (self.announced, self.is_refused, self.challenge) = (None, false, None);
            if own.announced.is_some() {
                return Some(RotationAction::Tell(RotationStep::Withdraw {}));
            }
            let is_due = own.rotate
                || (is_used_up(known, node_keys, situation.unix_s)
                    && unmanaged(known).next().is_none());
            let is_due = is_due && now >= self.put_off_until;
            // A next identity speaks of the present key. Whoever asks on this host waits for an
            // answer.
            let is_free = node_keys.successor().is_none();
            return (is_free && (situation.is_asked || is_due)).then_some(RotationAction::MakeKey);
        }
        let Some(announced) = &mut self.announced else {
            return if self.is_refused {
                Some(RotationAction::GiveUp)
            } else {
                announce(self.challenge.as_ref())
            };
        };
        if !announced.said.is_empty() {
            announced.judge(known, &node_keys.unproved_announcement(known.mesh.id).ok()?);
        }
        let Announced {
            since,
            heard,
            ready,
            ..
        } = &*announced;
        let in_touch = |peer: &KnownPeer| {
            peer.entry(situation.interface)
                .is_some_and(ObservedPeer::is_live)
        };
        let missing = known.peers.values().filter(|peer| {
            !ready.contains(&peer.peer.node) && !peer.statement.unmanaged && in_touch(peer)
        });
        let missing: Vec<_> = missing.map(|peer| peer.peer.name.to_string()).collect();
        let is_fresh = now.saturating_sub(*heard) < ANSWER_LIFETIME;
        let changing = || {
            known
                .peers
                .values()
                .find(|peer| situation.psks.is_changing(peer.peer.node) && in_touch(peer))
        };
        // Later, the peers look less often whether the key is in use.
        let is_late = now.saturating_sub(*since) > READY_LIMIT;
        if !is_late && missing.is_empty() && is_fresh && changing().is_none() {
            return Some(RotationAction::TakeUp);
        }
        if is_late {
            let why = match changing() {
                _ if !missing.is_empty() => {
                    format!(
                        "the agents of {} are not ready for it: do they run, and do they reach the \
                         coordinator?",
                        missing.join(", ")
                    )
                }
                Some(peer) => format!(
                    "the agent of {} does not finish its change of the preshared key",
                    peer.peer.name
                ),
                None => "the coordinator could not be reached for long enough".to_owned(),
            };
            self.put_off(now, &why);
            return Some(RotationAction::GiveUp);
        }
        if now.saturating_sub(*heard) >= ASK_INTERVAL {
            announce(self.challenge.as_ref())
        } else {
            None
        }
    }

    /// Takes note of what came of [`RotationAction::Tell`].
    pub fn told(&mut self, step: &RotationStep, told: RotationReply, now: Duration) {
        match (step, told) {
            (RotationStep::Prepare {}, RotationReply::Taken(answer)) => {
                self.challenge = answer.challenge;
                if self.challenge.is_none() {
                    self.silent_until = now + RETRY_INTERVAL;
                }
            }
            (RotationStep::Announce(_), RotationReply::Taken(_)) if self.is_unknown => {
                (self.is_unknown, self.challenge, self.problem) = (false, None, None);
            }
            (RotationStep::Announce(_), RotationReply::Taken(answer)) => {
                let announced = self.announced.get_or_insert_with(|| Announced {
                    since: now,
                    heard: now,
                    said: BTreeMap::new(),
                    ready: BTreeSet::new(),
                });
                announced.heard = now;
                let said = answer.ready.into_iter();
                announced.said = said.map(|peer| (peer.node, peer.signature)).collect();
                self.problem = None;
            }
            (RotationStep::Prepare {} | RotationStep::Announce(_), RotationReply::Refused(why))
                if self.is_unknown =>
            {
                (self.is_unknown, self.challenge) = (false, None);
                self.not_taken(&why, now);
            }
            (RotationStep::Prepare {} | RotationStep::Announce(_), RotationReply::Refused(why)) => {
                (self.announced, self.challenge, self.is_refused) = (None, None, true);
                self.put_off(now, &why);
            }
            (RotationStep::Announce(_), RotationReply::Busy) => {
                (self.announced, self.challenge) = (None, None);
                self.silent_until = now + RETRY_INTERVAL;
            }
            (RotationStep::Done(_) | RotationStep::Withdraw {}, RotationReply::Refused(why)) => {
                self.not_taken(&why, now);
            }
            (RotationStep::Done(_), RotationReply::Unannounced) => {
                (self.is_unknown, self.challenge) = (true, None);
            }
            // By the time that somebody answers, the challenge may have expired.
            (RotationStep::Announce(_), RotationReply::Unreachable) => {
                self.challenge = None;
                self.silent_until = now + RETRY_INTERVAL;
            }
            (
                RotationStep::Done(_) | RotationStep::Withdraw {},
                RotationReply::Taken(_) | RotationReply::Busy | RotationReply::Unreachable,
            )
            | (
                RotationStep::Prepare {},
                RotationReply::Busy | RotationReply::Unreachable | RotationReply::Unannounced,
            )
            | (RotationStep::Announce(_) | RotationStep::Withdraw {}, RotationReply::Unannounced) =>
            {
                self.silent_until = now + RETRY_INTERVAL;
            }
        }
    }

    /// How soon [`Rotation::next`] may have something to do; absent means: not before something
    /// else happens.
    pub fn interval(&self, situation: &Situation<'_>) -> Option<Duration> {
        let own = situation.known.myself.keys?;
        let is_under_way = situation.node_keys.next_key().is_some()
            || situation.node_keys.sequence() > own.sequence
            || own.announced.is_some();
        is_under_way.then(|| {
            self.silent_until
                .saturating_sub(situation.now)
                .max(ASK_INTERVAL)
        })
    }

    /// A step could not be carried out on this host.
    pub fn failed(&mut self, why: &str, now: Duration) {
        self.announced = None;
        self.silent_until = now + RETRY_INTERVAL;
        self.put_off(now, why);
    }

    /// What stands in the way, in words.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn not_taken(&mut self, why: &str, now: Duration) {
        self.problem = Some(format!(
            "the coordinator does not take this node's WireGuard key: {why}"
        ));
        self.silent_until = now + RETRY_LATER_INTERVAL;
    }

    fn put_off(&mut self, now: Duration, why: &str) {
        self.problem = Some(format!("the WireGuard key was not changed: {why}"));
        self.put_off_until = now + RETRY_LATER_INTERVAL;
    }
}

/// Why the key is kept although it is older than the mesh lets keys become, in words: the files of
/// unmanaged peers name it.
pub fn kept_for_unmanaged(known: &Known, node_keys: &NodeKeys, unix_s: u64) -> Option<String> {
    let names: Vec<_> = unmanaged(known).map(|name| name.to_string()).collect();
    (!names.is_empty() && is_used_up(known, node_keys, unix_s)).then(|| {
        format!(
            "the WireGuard key is due to be changed and stays, for the files of {} name it: change \
             it by `wattle-agent rotate --force`, then make and \
             install new files",
            names.join(", ")
        )
    })
}

/// Why nobody can go by the present key, in words: the peers go by a statement that this machine has
/// not made.
pub fn outrun(known: &Known, node_keys: &NodeKeys) -> Option<String> {
    let theirs = known.myself.keys?.sequence;
    // The statement of another identity is the coordinator's before it is the node's own.
    let is_own = node_keys.successor().is_some() && theirs == node_keys.issued();
    let own = node_keys.sequence();
    (theirs > own && !is_own).then(|| {
        format!(
            "the mesh goes by statement {theirs} of this node, and the newest that this gateway \
             has is {own}: its disk is of an earlier time, or somebody else has its keys. If the \
             disk was restored, run `wattle-agent rotate` for a new key. Otherwise remove the node \
             and join again with new keys"
        )
    })
}

/// The peers that would lose their tunnel with this node if it changed its WireGuard key, until
/// they have new files.
pub fn unmanaged(known: &Known) -> impl Iterator<Item = &Name> {
    known
        .peers
        .values()
        .filter(|peer| peer.statement.unmanaged)
        .map(|peer| &peer.peer.name)
}

/// Whether the key is older than the mesh lets keys become. Each key has a lifetime of its own, up
/// to an eighth shorter.
fn is_used_up(known: &Known, node_keys: &NodeKeys, unix_s: u64) -> bool {
    let lifetime_s = u64::from(known.mesh.rotate_days) * DAY_S;
    if lifetime_s == 0 {
        return false;
    }
    let [a, b, c, d, ..] = *node_keys.wireguard_key().as_bytes();
    let jitter_s = lifetime_s / JITTER_PART * u64::from(u32::from_be_bytes([a, b, c, d]))
        / u64::from(u32::MAX);
    unix_s.saturating_sub(node_keys.since()) >= lifetime_s - jitter_s
}
