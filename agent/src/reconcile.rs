//! Makes the host what it should be: observe, plan, apply, observe.

use std::{collections::BTreeSet, fs, io, mem, path::Path, pin::pin, time::Duration};

use anyhow::Context;
use ipnet::IpNet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};
use wattle_mesh::{
    agent::{
        guard::{Guard, Lock, Refused, Surroundings},
        replica::Known,
    },
    diagnose::{
        doctor::Taken,
        lan::{self, Facts, Served},
    },
    host::{
        desired::{Local, desired},
        interface::InterfaceName,
        plan::{Plan, Step, plan},
        state::{Change, Desired, Interface, Observed, ObservedRuleset},
    },
    keys::{
        node_keys::NodeKeys,
        psk::exchange::Exchange,
        rotation::canary::{PeerKeys, Watch},
    },
};
use wattle_wire::{
    key::OperatorKey,
    report::{LanEffect, Problem, ProblemCode},
};

use crate::{
    config::Paths,
    kernel::{Kernel, RouteTaken, symptoms},
    store::Store,
    underlay::UnderlayStore,
};

/// How often the host is compared with what it should be: what other tools change is repaired
/// within this time.
pub(crate) const OBSERVE_INTERVAL: Duration = Duration::from_secs(5);

const UNREADABLE: &str = "cannot read the state of this host";

/// The host, and what it lets the mesh do to it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    kernel: Kernel,
    interface: InterfaceName,
    guard: Guard,
    underlay: UnderlayStore,
}

/// What the host is to be made to, and which peers are on the way to new keys.
pub(crate) struct Aim<'a> {
    pub(crate) known: &'a Known,
    pub(crate) node_keys: &'a NodeKeys,
    pub(crate) psks: &'a Exchange,
    pub(crate) watch: &'a mut Watch,
    /// Where the clock of `watch` begins.
    pub(crate) started: Instant,
}

impl Aim<'_> {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What one observation of the host gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The host after all steps; absent when it cannot be observed.
    pub(crate) observed: Option<Observed>,
    /// Whether anything was to be done that packets may take note of.
    pub(crate) changed: bool,
    /// What could not be done or was refused.
    pub(crate) problems: Vec<Problem>,
    pub(crate) limits: Limits,
}

/// What a host lets the mesh do to it, and what of it that depends on.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) refused: Refused,
    addresses: Vec<IpNet>,
}

impl Host {
    /// The host of a node whose coordinators have these URLs.
    pub(crate) fn new(
        paths: &Paths,
        store: &Store,
        coordinators: &[String],
    ) -> anyhow::Result<Self> {
        let kernel = Kernel::new(paths.interface.clone(), store)?;
        Ok(Self {
            underlay: UnderlayStore::open(&kernel, store, coordinators),
            kernel,
            interface: paths.interface.clone(),
            guard: load_guard(&paths.guard)?,
        })
    }

    /// The interface of the tunnels.
    pub(crate) fn interface(&self) -> &InterfaceName {
        &self.interface
    }

    /// What this host reaches outside of the tunnel.
    pub(crate) fn underlay(&self) -> &UnderlayStore {
        &self.underlay
    }

    /// Whom this host believes about who may be in the mesh, if it asks for that.
    pub(crate) fn operators(&self) -> Option<BTreeSet<OperatorKey>> {
        self.guard.operators()
    }

    pub(crate) async fn observe(&self) -> anyhow::Result<Observed> {
        self.kernel.observe().await.context(UNREADABLE)
    }

    /// What other programs have under the agent's names.
    pub(crate) async fn taken(&self, observed: &Observed) -> Taken {
        Taken {
            interface: self.kernel.taken_by().await.unwrap_or_default(),
            table: observed.ruleset == ObservedRuleset::Foreign,
        }
    }

    /// The agent's interface alone, as it is now.
    pub(crate) async fn observe_interface(&self) -> anyhow::Result<Option<Interface>> {
        self.kernel.observe_interface().await.context(UNREADABLE)
    }

    /// What the host lets the mesh do to it now.
    pub(crate) async fn limits(&self, known: &Known) -> anyhow::Result<Limits> {
        let addresses = self
            .kernel
            .host_addresses()
            .await
            .context("cannot read the addresses of this host")?;
        let routes = self.kernel.foreign_routes().await?;
        let surroundings = Surroundings {
            networks: addresses.clone(),
            underlay: self.underlay.addresses(&routes).collect(),
            routes,
        };
        let refused = self
            .guard
            .screen(known, &surroundings, chrono::Utc::now().timestamp());
        Ok(Limits { refused, addresses })
    }

    /// What is between the LANs here and elsewhere on this host.
    pub(crate) async fn between_lans(&self, served: &Served) -> anyhow::Result<Facts> {
        let mut lans = symptoms::lans(&served.own);
        let routes = self.kernel.foreign_routes().await?;
        lans.extend(lan::routed(&served.own, &lans, &routes));
        let outside = self.underlay.addresses(&routes).map(|(address, _)| address);
        let questions = lan::questions(served, &lans, &routes, &outside.collect());
        let interfaces = lans.iter().map(|lan| lan.interface.as_str());
        let came = served.came.iter().map(|(interface, _)| interface.as_str());
        let tunnel = [served.interface.as_str()];
        let interfaces: BTreeSet<_> = interfaces.chain(came).chain(tunnel).collect();
        let (ruleset, legacy_unread) = symptoms::ruleset().await;
        Ok(Facts {
            stopped: symptoms::stopped(interfaces.into_iter()),
            forwards_v6: symptoms::forwards_v6(),
            ruleset,
            legacy_unread,
            led: self.kernel.led(questions).await?,
            rules: self.kernel.routing_rules().await?,
            neighbours: self.kernel.neighbours(&served.silent).await?,
            routes,
            lans,
        })
    }

    /// What the host should be within its limits.
    pub(crate) fn desired(
        &self,
        known: &Known,
        node_keys: &NodeKeys,
        psks: &Exchange,
        peer_keys: &PeerKeys,
        limits: &Limits,
    ) -> Desired {
        let local = Local {
            interface: self.interface.clone(),
            node_keys,
            addresses: limits.addresses.clone(),
        };
        desired(known, &local, &limits.refused, psks, peer_keys)
    }

    /// Takes away what the agent made. Returns it in words.
    pub(crate) async fn down(&self) -> anyhow::Result<Vec<String>> {
        self.kernel.down().await
    }

    /// One round. Whatever fails is told and the rest goes on; the next round tries again. `last`
    /// is what the round before gave.
    pub(crate) async fn reconcile(&self, aim: &mut Aim<'_>, last: &mut Outcome) -> Outcome {
        let observing = async {
            anyhow::Ok((
                self.observe_and_follow(aim, last).await?,
                self.limits(aim.known).await?,
            ))
        };
        let (observed, limits) = match observing.await {
            Ok(observed) => observed,
            Err(error) => {
                return Outcome {
                    problems: vec![Problem::new(ProblemCode::Unreadable, format!("{error:#}"))],
                    ..Outcome::default()
                };
            }
        };
        let now = aim.now();
        let peer_keys = observed
            .interface
            .as_ref()
            .map(|interface| aim.watch.observe(aim.known, interface, now))
            .unwrap_or_default();
        let plan = plan(
            &self.desired(aim.known, aim.node_keys, aim.psks, &peer_keys, &limits),
            &observed,
        );
        let changed = plan.steps.iter().any(|step| !step.change.is_unnoticed());
        let mut outcome = Outcome {
            observed: Some(observed),
            changed,
            problems: limits.refused.problems().collect(),
            limits,
        };
        if !plan.steps.is_empty() {
            outcome
                .problems
                .extend(self.apply(plan, aim.node_keys).await);
            aim.watch.probed(&peer_keys, now);
            let observed = self.observe_and_follow(aim, &mut outcome).await;
            outcome.observed = observed.inspect_err(|error| warn!("{error:#}")).ok();
        }
        outcome.problems.extend(self.kernel.problems());
        outcome
    }

    /// The host as it is. Meanwhile peers are followed to their new keys: to list the rules of a
    /// firewall may take longer than packets wait.
    async fn observe_and_follow(
        &self,
        aim: &mut Aim<'_>,
        last: &mut Outcome,
    ) -> anyhow::Result<Observed> {
        let mut policy = pin!(self.kernel.observe_policy());
        let policy = loop {
            tokio::select! {
                policy = &mut policy => break policy,
                () = sleep(aim.watch.interval(aim.now()).unwrap_or(Duration::MAX)) => self.follow_keys(aim, last).await,
            }
        };
        let observed = async { self.kernel.observe_with(policy?).await };
        observed.await.context(UNREADABLE)
    }

    /// Looks at the peers alone, and follows those that have taken up the keys which they
    /// announced: packets wait for that, so nothing else is observed meanwhile.
    pub(crate) async fn follow_keys(&self, aim: &mut Aim<'_>, last: &mut Outcome) {
        if let Err(error) = self.try_follow_keys(aim, last).await {
            warn!("{error:#}");
        }
    }

    async fn try_follow_keys(&self, aim: &mut Aim<'_>, last: &mut Outcome) -> anyhow::Result<()> {
        let Outcome {
            observed: Some(observed),
            limits,
            ..
        } = last
        else {
            return Ok(());
        };
        let (Some(interface), Some(peers)) =
            (&mut observed.interface, self.kernel.observe_peers().await?)
        else {
            return Ok(());
        };
        interface.peers = peers;
        let now = aim.now();
        let peer_keys = aim.watch.observe(aim.known, interface, now);
        if !peer_keys.is_pressing() {
            return Ok(());
        }
        let mut steps = plan(
            &self.desired(aim.known, aim.node_keys, aim.psks, &peer_keys, limits),
            observed,
        )
        .steps;
        steps.retain(|step| step.change.of_peer().is_some());
        let changes: Vec<_> = steps.iter().map(|step| &step.change).collect();
        self.kernel.apply_to_peers(&changes).await?;
        aim.watch.probed(&peer_keys, now);
        for Step { change, reason } in &steps {
            info!(reason, "{change}");
            *observed = mem::take(observed).after(change);
        }
        Ok(())
    }

    /// What could not be done.
    async fn apply(&self, plan: Plan, node_keys: &NodeKeys) -> Vec<Problem> {
        let private_key = node_keys.wireguard_private_key();
        let mut problems = Vec::new();
        'plan: for steps in plan
            .steps
            .chunk_by(|one, next| one.change.of_peer().is_some() && next.change.of_peer().is_some())
        {
            let at_once = self.apply_at_once(steps).await;
            for step in steps {
                let applied = if at_once {
                    Ok(())
                } else {
                    self.kernel.apply(&step.change, &private_key).await
                };
                match applied {
                    Ok(()) if step.change.is_unnoticed() => {
                        debug!(reason = step.reason, "{}", step.change)
                    }
                    Ok(()) => info!(reason = step.reason, "{}", step.change),
                    Err(error) => {
                        problems.push(Problem {
                            subject: step.change.to_string(),
                            lan: Some(LanEffect::Degraded),
                            remedy: error.downcast_ref().map(RouteTaken::remedy),
                            ..Problem::new(
                                ProblemCode::NotApplied,
                                format!("cannot {}: {error:#}", step.change),
                            )
                        });
                        if step.change == Change::CreateInterface {
                            // Nothing that follows can be done without the interface.
                            break 'plan;
                        }
                    }
                }
            }
        }
        problems
    }

    /// Takes several steps of peers at once, which for a thousand of them takes a fiftieth of the
    /// time. If one is refused, each is to be taken by itself, so that the rest is done and the
    /// error names its peer.
    async fn apply_at_once(&self, steps: &[Step]) -> bool {
        let changes: Vec<&Change> = steps.iter().map(|step| &step.change).collect();
        changes.len() > 1 && self.kernel.apply_to_peers(&changes).await.is_ok()
    }
}

/// The guard's rules: those that need no file, when there is none. A file that cannot be read is an
/// error; what it forbids is not known.
pub(crate) fn load_guard(path: &Path) -> anyhow::Result<Guard> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let guard: Guard = toml::from_str(&text).with_context(|| {
                format!("the guard's rules in {} are not valid", path.display())
            })?;
            let locks_all_out = guard.lock == Lock::Required && guard.operator_keys.is_empty();
            anyhow::ensure!(
                !locks_all_out,
                "{} requires the lock and names no `operator_keys`: nobody could be admitted",
                path.display()
            );
            Ok(guard)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Guard::default()),
        Err(error) => Err(error)
            .with_context(|| format!("cannot read the guard's rules in {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_has_rules_without_a_file_and_none_with_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard.toml");
        assert_eq!(load_guard(&path).unwrap(), Guard::default());
        fs::write(
            &path,
            "allow = [\"10.0.0.0/8\"]\nrefuse = [\"10.9.0.0/16\"]\n",
        )
        .unwrap();
        let [allow, refuse] = ["10.0.0.0/8", "10.9.0.0/16"].map(|text| vec![text.parse().unwrap()]);
        assert_eq!(
            load_guard(&path).unwrap(),
            Guard {
                allow: Some(allow),
                refuse,
                ..Guard::default()
            }
        );
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        fs::write(
            &path,
            format!("lock = \"required\"\noperator_keys = [\"{key}\"]\n"),
        )
        .unwrap();
        assert_eq!(
            load_guard(&path).unwrap().operators(),
            Some([key.parse().unwrap()].into())
        );
        // A lock that is misspelt, or that nobody could open, is an error and not an open door.
        for bad in [
            "lock = \"required\"",
            "lock = \"Required\"",
            "lock = true",
            "operator_keys = [\"key\"]",
            "alow = []",
            "allow = [\"10.0.0.0/33\"]",
            "most_peers = -1",
        ] {
            fs::write(&path, bad).unwrap();
            assert!(load_guard(&path).is_err(), "{bad}");
        }
    }
}
