//! Taking up a new WireGuard key: what of it is kept on disk, what is said to the coordinator, and `wattle-agent rotate`.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};
use wattle_mesh::{
    machine::Machine,
    rotation::{Act, Rotation, Situation, Told},
};
use wattle_wire::rotation::RotationStep;

use crate::{
    config::Place,
    coordinator::{Coordinator, RequestError},
    identity::{Membership, Slot, unix_s},
    output, random, status,
    store::Store,
};

/// Somebody asks the running agent for a new key.
const ASKED: &str = "rotate.json";
/// How often `wattle-agent rotate` looks whether it is done.
const LOOK: Duration = Duration::from_millis(250);

/// A request of `wattle-agent rotate`, and what stands in its way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Asked {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// The change of this node's WireGuard key.
#[derive(Debug)]
pub(crate) struct KeyChange {
    store: Store,
    rotation: Rotation,
    is_asked: bool,
    telling: Option<oneshot::Receiver<(RotationStep, Told)>>,
}

impl KeyChange {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, rotation: Rotation::default(), is_asked: false, telling: None }
    }

    /// What stands in the way of a new key, in words.
    pub(crate) fn problem(&self) -> Option<String> {
        self.rotation.problem().map(str::to_owned)
    }

    /// Looks whether somebody on this host asks for a new key.
    pub(crate) fn look(&mut self) {
        match self.store.read::<Asked>(ASKED) {
            Ok(asked) => self.is_asked = asked.is_some_and(|asked| asked.problem.is_none()),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// How soon there may be something to do.
    pub(crate) fn pace(&self, situation: &Situation<'_>) -> Option<Duration> {
        if self.telling.is_some() { None } else { self.rotation.pace(situation) }
    }

    /// Does what is to be done next, without waiting for the coordinator. The machine, when its keys are others now.
    pub(crate) fn go(
        &mut self,
        situation: Situation<'_>,
        coordinator: &Arc<Coordinator>,
        machine: &Arc<Machine>,
        membership: &Membership,
    ) -> Option<Machine> {
        if self.telling.is_some() {
            return None;
        }
        let situation = Situation { is_asked: self.is_asked, ..situation };
        let changed = match self.rotation.next(&situation)? {
            Act::Tell(step) => {
                self.tell(step, coordinator, machine, membership);
                return None;
            }
            Act::MakeKey => random::bytes().and_then(|secret| Ok(machine.preparing(&secret)?)),
            Act::TakeUp => machine.switched(unix_s()).map_err(Into::into),
            Act::GiveUp => machine.staying().map_err(Into::into),
        };
        let kept = changed.and_then(|changed| Slot::Present.save_keys(&self.store, &changed).map(|()| changed));
        match kept {
            Ok(changed) => {
                self.note(machine, &changed);
                Some(changed)
            }
            Err(error) => {
                self.rotation.failed(&format!("{error:#}"), situation.now);
                self.answer();
                None
            }
        }
    }

    fn note(&mut self, before: &Machine, after: &Machine) {
        if after.wireguard_key() != before.wireguard_key() {
            info!(key = %after.wireguard_key(), "took up a new WireGuard key");
            self.is_asked = false;
            if let Err(error) = self.store.remove(ASKED) {
                warn!("{error:#}");
            }
        } else if let Some(next) = after.next_key() {
            info!(key = %next, "made a new WireGuard key; the peers are to get ready for it");
        } else {
            warn!("{}", self.rotation.problem().unwrap_or("the WireGuard key is not changed"));
            self.answer();
        }
    }

    /// Tells `wattle-agent rotate` that nothing came of it.
    fn answer(&mut self) {
        if std::mem::take(&mut self.is_asked)
            && let Err(error) = self.store.write(ASKED, &Asked { problem: Some(self.problem().unwrap_or_default()) })
        {
            warn!("{error:#}");
        }
    }

    fn tell(&mut self, step: RotationStep, coordinator: &Arc<Coordinator>, machine: &Arc<Machine>, membership: &Membership) {
        let (sender, receiver) = oneshot::channel();
        self.telling = Some(receiver);
        let (coordinator, machine, membership) = (Arc::clone(coordinator), Arc::clone(machine), membership.clone());
        tokio::spawn(async move {
            let told = match coordinator.rotation(&machine, &membership, &step).await {
                Ok(answer) => Told::Taken(answer),
                Err(RequestError::Refused { status: StatusCode::CONFLICT, problem }) if problem.code == "rotation_under_way" => Told::Busy,
                Err(error @ RequestError::Refused { status, .. }) if is_final(status) => Told::Refused(format!("{error:#}")),
                Err(error) => {
                    tracing::debug!("the coordinator was not told of the WireGuard key: {error:#}");
                    Told::Unreachable
                }
            };
            let _ = sender.send((step, told));
        });
    }

    /// Waits until the coordinator was told; for ever when nothing is on its way.
    pub(crate) async fn told(&mut self) -> Option<(RotationStep, Told)> {
        match &mut self.telling {
            Some(receiver) => receiver.await.ok(),
            None => std::future::pending().await,
        }
    }

    pub(crate) fn take_in(&mut self, told: Option<(RotationStep, Told)>, now: Duration) {
        self.telling = None;
        if let Some((step, told)) = told {
            self.rotation.told(&step, told, now);
        }
    }
}

/// Whether the same request would be refused again.
fn is_final(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS
}

/// `wattle-agent rotate`.
pub(crate) async fn rotate(place: &Place) -> anyhow::Result<()> {
    let found = status::find(place)?;
    let (host, store, before) = (&found.host, &found.store, found.machine.wireguard_key());
    if !store.is_locked()? {
        bail!("no agent runs here, which would change the key: start `wattle-agent run`");
    }
    store.write(ASKED, &Asked::default())?;
    output::line("asked the running agent for a new WireGuard key; its peers get ready for it first");
    loop {
        let key = host.observe().await?.link.and_then(|link| link.public_key);
        if let Some(after) = key.filter(|after| *after != before) {
            output::line(format!("the WireGuard key is {after} now; it was {before}"));
            return Ok(());
        }
        if let Some(problem) = store.read::<Asked>(ASKED)?.and_then(|asked| asked.problem) {
            store.remove(ASKED)?;
            bail!(problem);
        }
        tokio::time::sleep(LOOK).await;
    }
}
