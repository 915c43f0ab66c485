//! Taking up a new WireGuard key or another identity: what of it is kept on disk, what is said to
//! the coordinator, and `wattle-agent rotate`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::bail;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};
use wattle_mesh::{
    agent::replica::Known,
    keys::{
        identity_rotation::{IdentityAction, IdentityReply, IdentityRotation},
        node_keys::NodeKeys,
        rotation::{
            Rotation, RotationAction, RotationReply, Situation, kept_for_unmanaged, unmanaged,
        },
    },
};
use wattle_wire::{enrol::NewIdentity, rotation::RotationStep};

use crate::{
    config::Paths,
    coordinator::{Coordinator, RequestError},
    identity::{Membership, Slot, unix_s},
    output, psk, random, status,
    store::Store,
};

/// Somebody asks the running agent for a new key.
const ASKED: &str = "rotate.json";
/// How long `wattle-agent rotate --psk` waits for peers that do not answer: a key that was just
/// agreed on is replaced at the second time of asking.
const ROTATION_LIMIT: Duration = Duration::from_secs(90);
/// How often `wattle-agent rotate` looks whether it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A request of `wattle-agent rotate`, and what stands in its way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Asked {
    #[serde(default)]
    what: What,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Which key is to be another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    #[default]
    WireguardKey,
    Identity,
    PresharedKeys,
}

/// The changes of this node's WireGuard key and of its identity.
#[derive(Debug)]
pub(crate) struct KeyChange {
    store: Store,
    rotation: Rotation,
    identity_rotation: IdentityRotation,
    asked: Option<What>,
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
            telling: None,
        }
    }

    /// What stands in the way of new keys, in words.
    pub(crate) fn problems(
        &self,
        known: &Known,
        node_keys: &NodeKeys,
    ) -> impl Iterator<Item = String> {
        let own = self
            .rotation
            .problem()
            .into_iter()
            .chain(self.identity_rotation.problem())
            .map(str::to_owned);
        own.chain(kept_for_unmanaged(known, node_keys, unix_s()))
    }

    /// Looks whether somebody on this host asks for a new key.
    pub(crate) fn read_requests(&mut self) {
        match self.store.read::<Asked>(ASKED) {
            Ok(asked) => {
                let asked = asked
                    .filter(|asked| asked.problem.is_none())
                    .map(|asked| asked.what);
                if asked == Some(What::Identity) && self.asked != asked {
                    self.identity_rotation.hurry();
                }
                self.asked = asked;
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Whether somebody on this host has asked for new preshared keys since the last call.
    pub(crate) fn psks_are_asked_for(&mut self) -> bool {
        let asked = self.asked == Some(What::PresharedKeys);
        if asked {
            self.done();
        }
        asked
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
            is_asked: self.asked == Some(What::WireguardKey),
            ..situation
        };
        let changed = match self.rotation.next(&situation)? {
            RotationAction::Tell(step) => {
                self.tell(step, coordinator, node_keys, membership);
                return None;
            }
            RotationAction::MakeKey => {
                random::bytes().and_then(|secret| Ok(node_keys.preparing(&secret)?))
            }
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
                self.answer(What::WireguardKey);
                None
            }
        }
    }

    /// Does what is to be done next for another identity, without waiting for the coordinator. The
    /// machine, when it is another now.
    pub(crate) fn rotate_identity(
        &mut self,
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
        let changed = match self.identity_rotation.next(
            node_keys,
            mesh,
            self.asked == Some(What::Identity),
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
            IdentityAction::MakeIdentity => {
                random::bytes().and_then(|seed| Ok(node_keys.preparing_identity(&seed)?))
            }
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
                    self.done();
                }
                Some(changed)
            }
            Err(error) => {
                self.identity_rotation.failed(&format!("{error:#}"), now);
                self.answer(What::Identity);
                None
            }
        }
    }

    fn note(&mut self, before: &NodeKeys, after: &NodeKeys) {
        if after.wireguard_key() != before.wireguard_key() {
            info!(key = %after.wireguard_key(), "uses a new WireGuard key");
            self.done();
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
            self.answer(What::WireguardKey);
        }
    }

    /// What was asked for is done.
    fn done(&mut self) {
        self.asked = None;
        if let Err(error) = self.store.remove(ASKED) {
            warn!("{error:#}");
        }
    }

    /// Tells `wattle-agent rotate` that nothing came of it.
    fn answer(&mut self, what: What) {
        if self.asked != Some(what) {
            return;
        }
        self.asked = None;
        let problem = match what {
            What::WireguardKey => self.rotation.problem(),
            What::Identity => self.identity_rotation.problem(),
            What::PresharedKeys => None,
        };
        if let Err(error) = self.store.write(
            ASKED,
            &Asked {
                what,
                problem: Some(problem.unwrap_or_default().to_owned()),
            },
        ) {
            warn!("{error:#}");
        }
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
                Err(error @ RequestError::Refused { status, .. }) if is_final(status) => {
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
                    self.answer(What::Identity);
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
    let (host, before) = (&found.host, found.node_keys.wireguard_key());
    ask(&found.store, What::WireguardKey)?;
    output::line(
        "asked the running agent for a new WireGuard key; its peers get ready for it first",
    );
    loop {
        if let Some(after) = host.wireguard_key().await?.filter(|after| *after != before) {
            output::line(format!("the WireGuard key is {after} now; it was {before}"));
            return Ok(());
        }
        look_again(&found.store).await?;
    }
}

/// `wattle-agent rotate --identity`.
pub(crate) async fn rotate_identity(paths: &Paths) -> anyhow::Result<()> {
    let found = status::find(paths)?;
    let before = found.node_keys.identity_key();
    ask(&found.store, What::Identity)?;
    output::line(
        "asked the running agent for another identity; the coordinator is told of it first",
    );
    loop {
        let after = Slot::Present
            .load(&found.store)?
            .map(|(node_keys, _)| node_keys.identity_key());
        if let Some(after) = after.filter(|after| *after != before) {
            output::line(format!("the identity is {after} now; it was {before}"));
            return Ok(());
        }
        look_again(&found.store).await?;
    }
}

/// `wattle-agent rotate --psk`.
pub(crate) async fn renew_psks(paths: &Paths) -> anyhow::Result<()> {
    let found = status::find(paths)?;
    let before = psk::load(&found.store)?;
    let peers = found
        .known
        .as_ref()
        .into_iter()
        .flat_map(|known| known.peers.values())
        .map(|known| &known.peer);
    let peers: Vec<_> = peers
        .filter(|peer| before.since(peer.node).is_some())
        .collect();
    ask(&found.store, What::PresharedKeys)?;
    output::line(format!(
        "asked the running agent for new preshared keys with {} peers",
        peers.len()
    ));
    let asked = Instant::now();
    loop {
        let now = psk::load(&found.store)?;
        let old = peers
            .iter()
            .filter(|peer| now.since(peer.node) == before.since(peer.node));
        let old: Vec<_> = old.map(|peer| peer.name.to_string()).collect();
        if old.is_empty() {
            output::line("all preshared keys are new");
            return Ok(());
        }
        if asked.elapsed() > ROTATION_LIMIT {
            let (old, all) = (old.join(", "), peers.len());
            bail!(
                "of {all} peers, these have not answered: {old}. Their tunnels keep their present \
                 keys, and the running agent keeps asking until it is restarted"
            );
        }
        look_again(&found.store).await?;
    }
}

fn ask(store: &Store, what: What) -> anyhow::Result<()> {
    if !store.is_locked()? {
        bail!("no agent runs here to change the key: start `wattle-agent run`");
    }
    store.write(
        ASKED,
        &Asked {
            what,
            problem: None,
        },
    )
}

/// Waits a moment.
///
/// # Errors
///
/// What the agent says when nothing comes of it.
async fn look_again(store: &Store) -> anyhow::Result<()> {
    if let Some(problem) = store.read::<Asked>(ASKED)?.and_then(|asked| asked.problem) {
        store.remove(ASKED)?;
        bail!(problem);
    }
    tokio::time::sleep(POLL_INTERVAL).await;
    Ok(())
}
