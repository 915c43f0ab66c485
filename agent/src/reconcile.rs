//! Makes the host what it should be: observe, plan, apply, observe.

use anyhow::Context;
use tracing::{info, warn};
use wattle_mesh::{
    desired::{Local, desired},
    interface::InterfaceName,
    machine::Machine,
    plan::{Plan, Step, plan},
    replica::Known,
    state::{Change, Desired, Observed},
};

use crate::{kernel::Kernel, store::Store};

/// The host and the key that its interface is to hold.
#[derive(Debug)]
pub(crate) struct Host {
    kernel: Kernel,
    interface: InterfaceName,
}

/// What one look at the host gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The host after all steps; absent when it cannot be observed.
    pub(crate) observed: Option<Observed>,
    /// Whether anything was to be done.
    pub(crate) changed: bool,
    /// What could not be done, in words.
    pub(crate) problems: Vec<String>,
}

impl Host {
    pub(crate) fn new(interface: InterfaceName, store: &Store) -> anyhow::Result<Self> {
        Ok(Self { kernel: Kernel::new(interface.clone(), store)?, interface })
    }

    pub(crate) async fn observe(&self) -> anyhow::Result<Observed> {
        self.kernel.observe().await.context("cannot read the state of this host")
    }

    pub(crate) async fn desired(&self, known: &Known, machine: &Machine) -> anyhow::Result<Desired> {
        let addresses = self.kernel.host_addresses().await.context("cannot read the addresses of this host")?;
        Ok(desired(known, &Local { interface: self.interface.clone(), public_key: machine.wireguard_key(), addresses }))
    }

    /// Takes away what the agent made. Returns it in words.
    pub(crate) async fn down(&self) -> anyhow::Result<Vec<String>> {
        self.kernel.down().await
    }

    /// One round. Whatever fails is told and the rest goes on; the next round tries again.
    pub(crate) async fn reconcile(&self, known: &Known, machine: &Machine) -> Outcome {
        match self.plan(known, machine).await {
            Ok((observed, plan)) if plan.steps.is_empty() => Outcome { observed: Some(observed), ..Outcome::default() },
            Ok((_, plan)) => self.apply(plan, machine).await,
            Err(error) => Outcome { problems: vec![format!("{error:#}")], ..Outcome::default() },
        }
    }

    async fn plan(&self, known: &Known, machine: &Machine) -> anyhow::Result<(Observed, Plan)> {
        let desired = self.desired(known, machine).await?;
        let observed = self.observe().await?;
        let plan = plan(&desired, &observed);
        Ok((observed, plan))
    }

    async fn apply(&self, plan: Plan, machine: &Machine) -> Outcome {
        let private_key = machine.wireguard_private_key();
        let mut outcome = Outcome { changed: true, ..Outcome::default() };
        'plan: for steps in plan.steps.chunk_by(|one, next| one.change.of_peer().is_some() && next.change.of_peer().is_some()) {
            let at_once = self.apply_at_once(steps).await;
            for step in steps {
                let applied = if at_once { Ok(()) } else { self.kernel.apply(&step.change, &private_key).await };
                match applied {
                    Ok(()) => info!(reason = step.reason, "{}", step.change),
                    Err(error) => {
                        outcome.problems.push(format!("cannot {}: {error:#}", step.change));
                        if step.change == Change::CreateLink {
                            // Nothing that follows can be done without the interface.
                            break 'plan;
                        }
                    }
                }
            }
        }
        match self.observe().await {
            Ok(observed) => outcome.observed = Some(observed),
            Err(error) => warn!("{error:#}"),
        }
        outcome
    }

    /// Takes several steps of peers at once, which for a thousand of them takes a fiftieth of the time. If one is refused, each is to be
    /// taken by itself, so that the rest is done and the error names its peer.
    async fn apply_at_once(&self, steps: &[Step]) -> bool {
        let changes: Vec<&Change> = steps.iter().map(|step| &step.change).collect();
        changes.len() > 1 && self.kernel.apply_to_peers(&changes).await.is_ok()
    }
}
