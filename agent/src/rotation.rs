//! Taking up a new WireGuard key or another identity: what of it is kept on disk, what is said to
//! the coordinator, and `wattle-agent rotate`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hyper::StatusCode;
use tokio::sync::oneshot;
use tracing::{info, warn};
use wattle_mesh::{
    agent::replica::Known,
    keys::{
        identity_rotation::{IdentityAction, IdentityReply, IdentityRotation},
        node_keys::NodeKeys,
        rotation::{
            Rotation, RotationAction, RotationReply, Situation, kept_for_unmanaged, outrun,
            unmanaged,
        },
    },
};
use wattle_wire::{
    enrol::NewIdentity,
    report::{Problem, ProblemCode},
    rotation::RotationStep,
};

use crate::{
    config::Paths,
    control::{self, Keys, Request, RotatedKey},
    coordinator::{Coordinator, RequestError},
    identity::{Membership, Slot, unix_s},
    output, random, status,
    store::Store,
};

/// How long `wattle-agent rotate` waits for peers that get ready.
const ROTATION_LIMIT: Duration = Duration::from_secs(300);
/// How long `wattle-agent rotate --psk` waits for peers that do not answer: a key that was just
/// agreed on is replaced at the second time of asking.
const PSK_LIMIT: Duration = Duration::from_secs(90);
/// How often `wattle-agent rotate` looks whether it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The changes of this node's WireGuard key and of its identity.
#[derive(Debug)]
pub(crate) struct KeyChange {
    store: Store,
    rotation: Rotation,
    identity_rotation: IdentityRotation,
    /// The key that a command on this host asks for.
    asked: Option<RotatedKey>,
    /// Why nothing came of what was asked for last.
    answer: Option<String>,
    telling: Option<oneshot::Receiver<Heard>>,
}

/// What came of telling the coordinator.
#[derive(Debug)]
pub(crate) enum Heard {
    OfKey(RotationStep, RotationReply),
    OfIdentity(IdentityReply),
}

impl KeyChange {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            rotation: Rotation::default(),
            identity_rotation: IdentityRotation::default(),
            asked: None,
            answer: None,
            telling: None,
        }
    }

    /// What stands in the way of new keys.
    pub(crate) fn problems(
        &self,
        known: &Known,
        node_keys: &NodeKeys,
    ) -> impl Iterator<Item = Problem> {
        let key = self.rotation.problem().map(str::to_owned);
        let identity = self.identity_rotation.problem().map(str::to_owned);
        let kept = kept_for_unmanaged(known, node_keys, unix_s());
        let outrun = outrun(known, node_keys);
        [
            ("statement", outrun),
            ("key", key),
            ("identity", identity),
            ("unmanaged", kept),
        ]
        .into_iter()
        .filter_map(|(subject, words)| {
            Some(Problem {
                subject: subject.to_owned(),
                ..Problem::new(ProblemCode::KeyRotation, words?)
            })
        })
    }

    /// A command on this host asks for another key of this node.
    pub(crate) fn ask(&mut self, key: RotatedKey) {
        if key == RotatedKey::Identity {
            self.identity_rotation.hurry();
        }
        (self.asked, self.answer) = (Some(key), None);
    }

    /// Why nothing came of what was asked for last.
    pub(crate) fn answer(&self) -> Option<&str> {
        self.answer.as_deref()
    }

    /// How soon there may be something to do.
    pub(crate) fn interval(&self, situation: &Situation<'_>) -> Option<Duration> {
        if self.telling.is_some() {
            None
        } else {
            self.rotation.interval(situation)
        }
    }

    /// Does what is to be done next, without waiting for the coordinator. The machine, when its
    /// keys are others now.
    pub(crate) fn go(
        &mut self,
        situation: Situation<'_>,
        coordinator: &Arc<Coordinator>,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) -> Option<NodeKeys> {
        if self.telling.is_some() {
            return None;
        }
        let situation = Situation {
            is_asked: self.asked == Some(RotatedKey::Wireguard),
            ..situation
        };
        let changed = match self.rotation.next(&situation)? {
            RotationAction::Tell(step) => {
                self.tell(step, coordinator, node_keys, membership);
                return None;
            }
            RotationAction::MakeKey => random::bytes().and_then(|secret| {
                let highest = situation.known.myself.keys.map_or(0, |keys| keys.highest);
                Ok(node_keys.numbering_above(highest)?.preparing(&secret)?)
            }),
            RotationAction::TakeUp => node_keys.switched(unix_s()).map_err(Into::into),
            RotationAction::GiveUp => node_keys.staying().map_err(Into::into),
        };
        let kept = changed.and_then(|changed| {
            Slot::Present
                .save_keys(&self.store, &changed)
                .map(|()| changed)
        });
        match kept {
            Ok(changed) => {
                self.note(node_keys, &changed);
                Some(changed)
            }
            Err(error) => {
                self.rotation.failed(&format!("{error:#}"), situation.now);
                self.give_up(RotatedKey::Wireguard);
                None
            }
        }
    }

    /// Does what is to be done next for another identity, without waiting for the coordinator. The
    /// machine, when it is another now.
    pub(crate) fn rotate_identity(
        &mut self,
        known: Option<&Known>,
        coordinator: &Arc<Coordinator>,
        node_keys: &NodeKeys,
        membership: &Membership,
        is_known: bool,
        now: Duration,
    ) -> Option<NodeKeys> {
        if self.telling.is_some() {
            return None;
        }
        let mesh = membership.enrolled.mesh;
        let own = known.and_then(|known| known.myself.keys);
        // Another identity speaks of the WireGuard key that the coordinator has.
        let is_free = own.is_none_or(|own| own.sequence >= node_keys.sequence());
        let changed = match self.identity_rotation.next(
            node_keys,
            mesh,
            is_free && self.asked == Some(RotatedKey::Identity),
            is_known,
            now,
        )? {
            IdentityAction::Tell(statement) => {
                self.tell_identity(
                    NewIdentity {
                        node: membership.enrolled.node,
                        statement,
                    },
                    coordinator,
                );
                return None;
            }
            IdentityAction::MakeIdentity => random::bytes().and_then(|seed| {
                let highest = own.map_or(0, |keys| keys.highest);
                Ok(node_keys
                    .numbering_above(highest)?
                    .preparing_identity(&seed)?)
            }),
            IdentityAction::TakeUp => node_keys.identity_switched(mesh).map_err(Into::into),
        };
        match changed.and_then(|changed| {
            Slot::Present
                .save_keys(&self.store, &changed)
                .map(|()| changed)
        }) {
            Ok(changed) => {
                if changed.identity_key() != node_keys.identity_key() {
                    info!(identity = %changed.identity_key(), "uses a new identity");
                    self.asked = None;
                }
                Some(changed)
            }
            Err(error) => {
                self.identity_rotation.failed(&format!("{error:#}"), now);
                self.give_up(RotatedKey::Identity);
                None
            }
        }
    }

    fn note(&mut self, before: &NodeKeys, after: &NodeKeys) {
        if after.wireguard_key() != before.wireguard_key() {
            info!(key = %after.wireguard_key(), "uses a new WireGuard key");
            self.asked = None;
        } else if let Some(next) = after.next_key() {
            info!(key = %next, "made a new WireGuard key; waiting until the peers are ready for \
                it");
        } else {
            warn!(
                "{}",
                self.rotation
                    .problem()
                    .unwrap_or("the WireGuard key stays as it is")
            );
            self.give_up(RotatedKey::Wireguard);
        }
    }

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

    fn tell(
        &mut self,
        step: RotationStep,
        coordinator: &Arc<Coordinator>,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) {
        let (sender, receiver) = oneshot::channel();
        self.telling = Some(receiver);
        let (coordinator, node_keys, membership) = (
            Arc::clone(coordinator),
            Arc::clone(node_keys),
            membership.clone(),
        );
        tokio::spawn(async move {
            let told = match coordinator.rotation(&node_keys, &membership, &step).await {
                Ok(answer) => RotationReply::Taken(answer),
                Err(RequestError::Refused {
                    status: StatusCode::CONFLICT,
                    problem,
                }) if problem.code == "rotation_under_way" => RotationReply::Busy,
                Err(RequestError::Refused {
                    status: StatusCode::CONFLICT,
                    problem,
                }) if problem.code == "not_announced" => RotationReply::Unannounced,
                // Who has changed its key too often waits longer than the next try.
                Err(
                    ref error @ RequestError::Refused {
                        status,
                        ref problem,
                    },
                ) if is_final(status) || problem.code == "too_many_keys" => {
                    RotationReply::Refused(format!("{error:#}"))
                }
                Err(error) => {
                    tracing::debug!("the coordinator was not told of the WireGuard key: {error:#}");
                    RotationReply::Unreachable
                }
            };
            let _ = sender.send(Heard::OfKey(step, told));
        });
    }

    fn tell_identity(&mut self, identity: NewIdentity, coordinator: &Arc<Coordinator>) {
        let (sender, receiver) = oneshot::channel();
        self.telling = Some(receiver);
        let coordinator = Arc::clone(coordinator);
        tokio::spawn(async move {
            let told = match coordinator.rotate_identity(&identity).await {
                Ok(()) => IdentityReply::Taken,
                Err(error @ RequestError::Refused { status, .. }) if is_final(status) => {
                    IdentityReply::Refused(format!("{error:#}"))
                }
                Err(error) => {
                    tracing::debug!("the coordinator was not told of the identity: {error:#}");
                    IdentityReply::Unreachable
                }
            };
            let _ = sender.send(Heard::OfIdentity(told));
        });
    }

    /// Waits until the coordinator was told; for ever when nothing is on its way.
    pub(crate) async fn told(&mut self) -> Option<Heard> {
        match &mut self.telling {
            Some(receiver) => receiver.await.ok(),
            None => std::future::pending().await,
        }
    }

    pub(crate) fn take_in(&mut self, heard: Option<Heard>, now: Duration) {
        self.telling = None;
        match heard {
            Some(Heard::OfKey(step, told)) => self.rotation.told(&step, told, now),
            Some(Heard::OfIdentity(told)) => {
                let is_refused = matches!(told, IdentityReply::Refused(_));
                self.identity_rotation.told(told, now);
                if is_refused {
                    warn!("{}", self.identity_rotation.problem().unwrap_or_default());
                    self.give_up(RotatedKey::Identity);
                }
            }
            None => {}
        }
    }
}

/// Whether the same request would be refused again.
fn is_final(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS
}

/// `wattle-agent rotate`.
pub(crate) async fn rotate(paths: &Paths, force: bool) -> anyhow::Result<()> {
    let found = status::find(paths)?;
    let cut_off: Vec<_> = found
        .known
        .iter()
        .flat_map(unmanaged)
        .map(ToString::to_string)
        .collect();
    if !cut_off.is_empty() && !force {
        let cut_off = cut_off.join(", ");
        bail!(
            "no agent at {cut_off} would follow: a new key cuts this gateway off from there until \
             new files are made and installed; to do so all the \
             same, add --force"
        );
    }
    let before = begin(paths, RotatedKey::Wireguard).await?.wireguard;
    output::line(
        "asked the running agent for a new WireGuard key; its peers get ready for it first",
    );
    let after = until(paths, ROTATION_LIMIT, |keys| keys.wireguard != before)
        .await?
        .wireguard;
    output::line(format!("the WireGuard key is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --identity`.
pub(crate) async fn rotate_identity(paths: &Paths) -> anyhow::Result<()> {
    let before = begin(paths, RotatedKey::Identity).await?.identity;
    output::line(
        "asked the running agent for another identity; the coordinator is told of it first",
    );
    let after = until(paths, ROTATION_LIMIT, |keys| keys.identity != before)
        .await?
        .identity;
    output::line(format!("the identity is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --psk`.
pub(crate) async fn renew_psks(paths: &Paths) -> anyhow::Result<()> {
    let all = begin(paths, RotatedKey::Preshared)
        .await?
        .preshared_with
        .len();
    output::line(format!(
        "asked the running agent for new preshared keys with {all} peers"
    ));
    match until(paths, PSK_LIMIT, |keys| keys.preshared_with.is_empty()).await {
        Ok(_) => output::line("all preshared keys are new"),
        Err(error) => {
            let old = keys(paths).await?.preshared_with.join(", ");
            return Err(error).context(format!(
                "of {all} peers, these have not answered: {old}. Their tunnels keep their present \
                 keys, and the running agent keeps asking until it is restarted"
            ));
        }
    }
    Ok(())
}

/// `wattle-agent rotate --tokens`.
pub(crate) async fn renew_tokens(paths: &Paths) -> anyhow::Result<()> {
    let generation: i32 = control::ask_running(paths, Request::RenewTokens).await?;
    output::line(format!(
        "this node signs tokens of generation {generation} now: its coordinator refuses all \
         earlier ones as soon as it has heard of one, within seconds if it is connected"
    ));
    Ok(())
}

/// Asks for a key, and gives the present ones.
async fn begin(paths: &Paths, key: RotatedKey) -> anyhow::Result<Keys> {
    control::ask_running(paths, Request::Rotate(key)).await
}

async fn keys(paths: &Paths) -> anyhow::Result<Keys> {
    control::ask_running(paths, Request::Keys).await
}

/// Waits until the keys are as wanted.
///
/// # Errors
///
/// What the agent says when nothing comes of it, or that it takes too long.
async fn until(
    paths: &Paths,
    limit: Duration,
    is_done: impl Fn(&Keys) -> bool,
) -> anyhow::Result<Keys> {
    let asked = Instant::now();
    loop {
        let keys = keys(paths).await?;
        if is_done(&keys) {
            return Ok(keys);
        }
        if let Some(problem) = keys.problem {
            bail!(problem);
        }
        if asked.elapsed() > limit {
            bail!(
                "it is not done after {} s. The running agent goes on: see `wattle-agent status`",
                limit.as_secs()
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
