//! The keys of a node: preshared ones, its WireGuard key and its identity. What is new is on disk
//! before anybody hears of it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use wattle_wire::{
    ids::NodeId,
    name::Name,
    psk::{MailboxRequest, PskPolicy},
    report::{Problem, ProblemCode},
    rotation::RotationStep,
};
use zeroize::Zeroizing;

use super::{Level, LocalNode, Output, Request, Save, Saving};
use crate::{
    agent::replica::Known,
    keys::{
        identity_rotation::{IdentityAction, IdentityReply, IdentityRotation},
        node_keys::{InvalidNodeKeys, NodeKeys},
        psk::{
            Ignored, Kem,
            exchange::Exchange,
            mailbox::{MailboxReply, Means, PassedOver, PskMailbox},
        },
        rotation::{
            Rotation, RotationAction, RotationReply, Situation, kept_for_unmanaged, outrun,
        },
    },
};

/// How long to wait after a request to the mailbox that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Where a node gets what nobody should guess.
pub trait Secrets: Kem {
    /// Random bytes; absent when there are none.
    fn secret(&self) -> Option<Zeroizing<[u8; 32]>>;
}

/// Which key is to be another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotatedKey {
    Wireguard,
    Identity,
    Preshared,
}

/// How far a change of keys has come that somebody on this host asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysAsked {
    /// Why nothing came of what was asked for last.
    pub problem: Option<String>,
    /// Peers whose preshared key is still the one of before it was asked for.
    pub preshared_with: Vec<Name>,
}

/// The preshared keys, and what of them is on disk.
#[derive(Debug)]
pub(super) struct PskKeeper {
    mailbox: PskMailbox,
    on_disk: Exchange,
    /// Why what was agreed on last is in memory alone; absent means all is on disk.
    unsaved: Option<String>,
    /// What was asked of the coordinator's mailbox.
    request: Option<MailboxRequest>,
    /// Nothing is asked before.
    silent_until: Option<Duration>,
    steps: VecDeque<PskStep>,
    /// When each key was agreed on that is to be another since somebody asked for that.
    old: BTreeMap<NodeId, u64>,
}

/// What there is to do about preshared keys after a round.
#[derive(Clone, Copy, Debug)]
enum PskStep {
    /// The disk that had no room may have some now.
    SaveAgain,
    Tick,
    LookAtDevice,
}

impl PskKeeper {
    pub(super) fn new(kept: Result<Exchange, String>) -> Self {
        // The keys on the device stay, and new ones are agreed on.
        let problem = kept
            .as_ref()
            .err()
            .map(|error| format!("cannot read the preshared keys, and makes new ones: {error}"));
        let exchange = kept.unwrap_or_default();
        Self {
            on_disk: exchange.clone(),
            mailbox: PskMailbox::new(exchange, problem),
            unsaved: None,
            request: None,
            silent_until: None,
            steps: VecDeque::new(),
            old: BTreeMap::new(),
        }
    }

    pub(super) fn exchange(&self) -> &Exchange {
        self.mailbox.exchange()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.mailbox.problem().map(str::to_owned)
    }

    /// What stands in the way of new keys.
    pub(super) fn problems(
        &self,
        known: &Known,
        policy: PskPolicy,
    ) -> impl Iterator<Item = Problem> {
        let told = self.mailbox.problem().into_iter();
        let told = told.map(|words| Problem::new(ProblemCode::PresharedKey, words));
        let unsaved = self.unsaved.iter().map(|words| Problem {
            subject: "psk.json".to_owned(),
            ..Problem::new(ProblemCode::State, words)
        });
        told.chain(unsaved)
            .chain(self.exchange().problems(known, policy))
    }

    pub(super) fn messages_are_waiting(&mut self) {
        self.mailbox.messages_are_waiting();
    }

    /// The coordinator may be another one than before, without the messages of that one.
    pub(super) fn say_again(&mut self) {
        self.mailbox.say_again();
        self.silent_until = None;
    }

    /// There was a round: time has passed, and the device may show something new.
    pub(super) fn look_at_device(&mut self) {
        self.steps = [PskStep::SaveAgain, PskStep::Tick, PskStep::LookAtDevice].into();
    }

    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.silent_until.filter(|_| self.request.is_none())
    }

    fn want_others(&mut self, known: Option<&Known>) {
        self.mailbox.want_others();
        let peers = known.into_iter().flat_map(|known| known.peers.keys());
        let old = peers.filter_map(|peer| Some((*peer, self.exchange().since(*peer)?)));
        self.old = old.collect();
    }
}

impl<S: Secrets> LocalNode<S> {
    /// Takes the next step of [`PskKeeper::look_at_device`]. Whether there was one.
    pub(super) fn go_on_with_psks(&mut self) -> bool {
        let Some(step) = self.psks.steps.pop_front() else {
            return false;
        };
        let Some(known) = self.replica.known() else {
            return true;
        };
        let unix_s = self.now.unix_s.unsigned_abs();
        match step {
            PskStep::SaveAgain if self.psks.unsaved.is_some() => {
                let kept = Box::new(self.psks.exchange().kept());
                self.save(Save::Psks(kept.clone()), Saving::Psks(kept));
            }
            PskStep::SaveAgain => {}
            PskStep::Tick => {
                let unsettled = self.watch.unsettled(self.now.elapsed);
                let means = Means {
                    node_keys: &self.node_keys,
                    now: unix_s,
                    kem: &self.secrets,
                };
                let passed_over = self.psks.mailbox.tick(known, &means, unsettled);
                self.keep_psks(passed_over);
            }
            PskStep::LookAtDevice => {
                if let Some(interface) = self.round.outcome().interface()
                    && self.psks.mailbox.observe(known, interface, unix_s)
                {
                    self.round.psks_changed();
                }
                self.keep_psks(PassedOver::new());
            }
        }
        true
    }

    /// Saves what a step of the mailbox wants to be kept.
    fn keep_psks(&mut self, passed_over: PassedOver) {
        for (name, reason) in passed_over {
            let (level, verb) = match reason {
                Ignored::Signature
                | Ignored::Address
                | Ignored::Unreadable
                | Ignored::Kem
                | Ignored::Managed
                | Ignored::Sealed => (Level::Warn, "refused"),
                Ignored::Old | Ignored::Unexpected | Ignored::Keys => (Level::Info, "ignored"),
            };
            self.log(
                level,
                format!("{verb} a message of {name} about the preshared key: {reason}"),
            );
        }
        if let Some(kept) = self.psks.mailbox.to_keep().map(Box::new) {
            self.save(Save::Psks(kept.clone()), Saving::Psks(kept));
        }
    }

    pub(super) fn psks_saved(&mut self, kept: &Exchange, result: Result<(), String>) {
        let before = self.psks.problem();
        let result = match result {
            Ok(()) => {
                (self.psks.on_disk, self.psks.unsaved) = (kept.clone(), None);
                Ok(())
            }
            // A new peer is worth a key that a restart forgets. With the others, a key that is in
            // use is given up only for one that the disk has: the peer may use that already.
            Err(error) if kept.survives_with(&self.psks.on_disk) => {
                self.psks.unsaved = Some(format!("preshared keys are in memory alone: {error}"));
                Ok(())
            }
            Err(error) => Err(format!("cannot change preshared keys: {error}")),
        };
        if self.psks.mailbox.kept(result) {
            self.round.psks_changed();
        }
        if let Some(problem) = self.psks.problem()
            && before.as_ref() != Some(&problem)
        {
            self.log(Level::Warn, problem);
        }
    }

    /// Asks the coordinator's mailbox if there is reason to.
    pub(super) fn ask_mailbox(&mut self) {
        let now = self.now.elapsed;
        self.psks.silent_until = self.psks.silent_until.filter(|until| now < *until);
        if self.psks.request.is_some() || self.psks.silent_until.is_some() {
            return;
        }
        if let Some(request) = self.psks.mailbox.next_request() {
            self.psks.request = Some(request.clone());
            self.outputs
                .push_back(Output::Send(Request::Mailbox(request)));
        }
    }

    pub(super) fn mailbox_replied(&mut self, reply: MailboxReply) {
        let Some(request) = self.psks.request.take() else {
            return;
        };
        if matches!(reply, MailboxReply::Failed | MailboxReply::Refused(None)) {
            self.psks.silent_until = Some(self.now.elapsed + RETRY_INTERVAL);
        }
        let means = Means {
            node_keys: &self.node_keys,
            now: self.now.unix_s.unsigned_abs(),
            kem: &self.secrets,
        };
        let known = self.replica.known();
        let passed_over = self.psks.mailbox.take_in(&request, reply, known, &means);
        self.keep_psks(passed_over);
    }
}

/// The changes of this node's WireGuard key and of its identity.
#[derive(Debug, Default)]
pub(super) struct KeyChange {
    rotation: Rotation,
    identity_rotation: IdentityRotation,
    /// The key that somebody on this host asks for.
    asked: Option<RotatedKey>,
    /// Why nothing came of what was asked for last.
    answer: Option<String>,
    telling: Option<Telling>,
}

/// What the coordinator is being told.
#[derive(Debug)]
enum Telling {
    Rotation(RotationStep),
    Identity,
}

impl KeyChange {
    /// Nothing came of what was asked for.
    fn give_up(&mut self, key: RotatedKey) {
        if self.asked != Some(key) {
            return;
        }
        self.asked = None;
        let problem = match key {
            RotatedKey::Wireguard => self.rotation.problem(),
            RotatedKey::Identity => self.identity_rotation.problem(),
            RotatedKey::Preshared => None,
        };
        self.answer = Some(problem.unwrap_or("the key stays as it is").to_owned());
    }
}

impl<S: Secrets> LocalNode<S> {
    /// Somebody on this host asks for another key.
    pub(super) fn rotate(&mut self, key: RotatedKey) {
        match key {
            RotatedKey::Preshared => return self.psks.want_others(self.replica.known()),
            RotatedKey::Identity => self.key_change.identity_rotation.hurry(),
            RotatedKey::Wireguard => {}
        }
        (self.key_change.asked, self.key_change.answer) = (Some(key), None);
    }

    /// How far it has come.
    pub fn keys_asked(&self) -> KeysAsked {
        let (old, psks) = (&self.psks.old, self.psks.exchange());
        let is_old = |node: &NodeId| {
            old.get(node)
                .is_some_and(|at| psks.since(*node) == Some(*at))
        };
        let peers = self.known().into_iter().flat_map(|known| &known.peers);
        let old = peers.filter(|(node, _)| is_old(node));
        KeysAsked {
            problem: self.key_change.answer.clone(),
            preshared_with: old.map(|(_, known)| known.peer.name.clone()).collect(),
        }
    }

    /// What stands in the way of another WireGuard key or identity.
    pub(super) fn key_problems(&self, known: &Known) -> impl Iterator<Item = Problem> {
        let key = self.key_change.rotation.problem().map(str::to_owned);
        let identity = self.key_change.identity_rotation.problem();
        let unix_s = self.now.unix_s.unsigned_abs();
        [
            ("statement", outrun(known, &self.node_keys)),
            ("key", key),
            ("identity", identity.map(str::to_owned)),
            (
                "unmanaged",
                kept_for_unmanaged(known, &self.node_keys, unix_s),
            ),
        ]
        .into_iter()
        .filter_map(|(subject, words)| {
            Some(Problem {
                subject: subject.to_owned(),
                ..Problem::new(ProblemCode::KeyRotation, words?)
            })
        })
    }

    /// What a change of the WireGuard key depends on; absent while nothing is known of the mesh or
    /// the host.
    fn situation(&self) -> Option<Situation<'_>> {
        Some(Situation {
            known: self.replica.known()?,
            node_keys: &self.node_keys,
            interface: self.round.outcome().interface()?,
            psks: self.psks.exchange(),
            is_asked: self.key_change.asked == Some(RotatedKey::Wireguard),
            now: self.now.elapsed,
            unix_s: self.now.unix_s.unsigned_abs(),
        })
    }

    /// When there may be something to do about the WireGuard key.
    pub(super) fn next_key_step(&self) -> Option<Duration> {
        if self.key_change.telling.is_some() {
            return None;
        }
        let interval = self.key_change.rotation.interval(&self.situation()?)?;
        Some(self.now.elapsed + interval)
    }

    /// Takes the next step to another WireGuard key, if one can be taken. Whether keys are being
    /// saved.
    pub(super) fn change_key(&mut self) -> bool {
        if self.key_change.telling.is_some() {
            return false;
        }
        let mut rotation = std::mem::take(&mut self.key_change.rotation);
        let action = self
            .situation()
            .and_then(|situation| rotation.next(&situation));
        self.key_change.rotation = rotation;
        let changed = match action {
            None => return false,
            Some(RotationAction::Tell(step)) => {
                self.key_change.telling = Some(Telling::Rotation(step.clone()));
                self.outputs
                    .push_back(Output::Send(Request::Rotation(step)));
                return false;
            }
            Some(RotationAction::MakeKey) => self.prepare(NodeKeys::preparing),
            Some(RotationAction::TakeUp) => {
                let unix_s = self.now.unix_s.unsigned_abs();
                self.node_keys.switched(unix_s).map_err(in_words)
            }
            Some(RotationAction::GiveUp) => self.node_keys.staying().map_err(in_words),
        };
        self.keep_keys(RotatedKey::Wireguard, changed)
    }

    /// The node's keys with another one that a secret is for, above all numbers that it ever used.
    fn prepare(
        &self,
        prepare: impl FnOnce(&NodeKeys, &[u8; 32]) -> Result<NodeKeys, InvalidNodeKeys>,
    ) -> Result<NodeKeys, String> {
        let secret = self.secrets.secret().ok_or(NO_SECRETS)?;
        let own = self.known().and_then(|known| known.myself.keys);
        let highest = own.map_or(0, |keys| keys.highest);
        let numbered = self.node_keys.numbering_above(highest);
        numbered
            .and_then(|keys| prepare(&keys, &secret))
            .map_err(in_words)
    }

    /// Takes the next step to another identity, if one can be taken, with a coordinator that may
    /// know the node by either. Whether keys are being saved.
    pub(super) fn change_identity(&mut self) -> bool {
        if self.key_change.telling.is_some() {
            return false;
        }
        let mesh = self.replica.mesh();
        let own = self.known().and_then(|known| known.myself.keys);
        // Another identity speaks of the WireGuard key that the coordinator has.
        let is_free = own.is_none_or(|own| own.sequence >= self.node_keys.sequence());
        let is_asked = is_free && self.key_change.asked == Some(RotatedKey::Identity);
        let now = self.now.elapsed;
        let is_known = !self.is_stranger;
        let action =
            self.key_change
                .identity_rotation
                .next(&self.node_keys, mesh, is_asked, is_known, now);
        let changed = match action {
            None => return false,
            Some(IdentityAction::Tell(statement)) => {
                self.key_change.telling = Some(Telling::Identity);
                self.outputs
                    .push_back(Output::Send(Request::Identity(statement)));
                return false;
            }
            Some(IdentityAction::MakeIdentity) => self.prepare(NodeKeys::preparing_identity),
            Some(IdentityAction::TakeUp) => {
                self.node_keys.identity_switched(mesh).map_err(in_words)
            }
        };
        self.keep_keys(RotatedKey::Identity, changed)
    }

    /// Saves other keys, if they could be made. Whether they are being saved.
    fn keep_keys(&mut self, which: RotatedKey, changed: Result<NodeKeys, String>) -> bool {
        match changed {
            Ok(keys) => {
                let keys = Arc::new(keys);
                self.save(Save::Keys(Arc::clone(&keys)), Saving::Keys(which, keys));
                true
            }
            Err(error) => {
                self.keys_failed(which, &error);
                false
            }
        }
    }

    fn keys_failed(&mut self, which: RotatedKey, error: &str) {
        let now = self.now.elapsed;
        if which == RotatedKey::Identity {
            self.key_change.identity_rotation.failed(error, now);
        } else {
            self.key_change.rotation.failed(error, now);
        }
        self.key_change.give_up(which);
    }

    pub(super) fn keys_saved(
        &mut self,
        which: RotatedKey,
        keys: Arc<NodeKeys>,
        result: Result<(), String>,
    ) {
        if let Err(error) = result {
            return self.keys_failed(which, &error);
        }
        let before = std::mem::replace(&mut self.node_keys, keys);
        let after = Arc::clone(&self.node_keys);
        if after.identity_key() != before.identity_key() {
            let identity = after.identity_key();
            self.log(Level::Info, format!("uses a new identity: {identity}"));
            self.is_over = true;
            self.outputs.push_back(Output::BeginAnew);
        } else if after.wireguard_key() != before.wireguard_key() {
            let key = after.wireguard_key();
            self.log(Level::Info, format!("uses a new WireGuard key: {key}"));
            self.key_change.asked = None;
            self.replica.set_own_key(key);
            self.round.begin_soon();
        } else if which == RotatedKey::Identity {
            // Another one is made, and is to be told.
        } else if let Some(next) = after.next_key() {
            self.log(
                Level::Info,
                format!(
                    "made a new WireGuard key; waiting until the peers are ready for it: {next}"
                ),
            );
        } else {
            let problem = self.key_change.rotation.problem();
            let words = problem
                .unwrap_or("the WireGuard key stays as it is")
                .to_owned();
            self.log(Level::Warn, words);
            self.key_change.give_up(RotatedKey::Wireguard);
        }
    }

    pub(super) fn rotation_replied(&mut self, reply: RotationReply) {
        if let Some(Telling::Rotation(step)) = self.key_change.telling.take() {
            let now = self.now.elapsed;
            self.key_change.rotation.told(&step, reply, now);
        }
    }

    pub(super) fn identity_replied(&mut self, reply: IdentityReply) {
        self.key_change.telling = None;
        let is_refused = matches!(reply, IdentityReply::Refused(_));
        let now = self.now.elapsed;
        self.key_change.identity_rotation.told(reply, now);
        if is_refused {
            let problem = self.key_change.identity_rotation.problem();
            let words = problem.unwrap_or_default().to_owned();
            self.log(Level::Warn, words);
            self.key_change.give_up(RotatedKey::Identity);
        }
    }
}

const NO_SECRETS: &str = "the system has no random numbers";

fn in_words(error: impl ToString) -> String {
    error.to_string()
}
