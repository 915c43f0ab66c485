//! Makes the host what it should be: observe, plan, apply, observe.

use std::{collections::BTreeSet, fs, io, mem, net::IpAddr, path::Path, time::Duration};

use anyhow::Context;
use ipnet::IpNet;
use tracing::{info, warn};
use wattle_mesh::{
    desired::{Local, desired},
    guard::{Guard, Lock, Refused, Surroundings},
    interface::InterfaceName,
    machine::Machine,
    plan::{Plan, Step, plan},
    psk::exchange::Exchange,
    replica::Known,
    rotation::canary::{Turns, Watch},
    state::{Change, Desired, Observed},
};
use wattle_wire::key::OperatorKey;

use crate::{config::Place, kernel::Kernel, store::Store};

/// The host, and what it lets the mesh do to it.
#[derive(Debug)]
pub(crate) struct Host {
    kernel: Kernel,
    interface: InterfaceName,
    guard: Guard,
    coordinators: Vec<IpAddr>,
}

/// What one look at the host gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The host after all steps; absent when it cannot be observed.
    pub(crate) observed: Option<Observed>,
    /// Whether anything was to be done.
    pub(crate) changed: bool,
    /// What could not be done or was refused, in words.
    pub(crate) problems: Vec<String>,
    limits: Limits,
}

/// What a host lets the mesh do to it, and what of it that depends on.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) refused: Refused,
    addresses: Vec<IpNet>,
}

impl Host {
    /// The host of a node whose coordinators have these URLs.
    pub(crate) fn new(place: &Place, store: &Store, coordinators: &[String]) -> anyhow::Result<Self> {
        let coordinators =
            coordinators.iter().filter_map(|url| reqwest::Url::parse(url).ok()?.host_str()?.trim_matches(['[', ']']).parse().ok());
        Ok(Self {
            kernel: Kernel::new(place.interface.clone(), store)?,
            interface: place.interface.clone(),
            guard: load_guard(&place.guard)?,
            coordinators: coordinators.collect(),
        })
    }

    /// Whom this host believes about who may be in the mesh, if it asks for that.
    pub(crate) fn operators(&self) -> Option<BTreeSet<OperatorKey>> {
        self.guard.operators()
    }

    pub(crate) async fn observe(&self) -> anyhow::Result<Observed> {
        self.kernel.observe().await.context("cannot read the state of this host")
    }

    /// What the host lets the mesh do to it now.
    pub(crate) async fn limits(&self, known: &Known) -> anyhow::Result<Limits> {
        let addresses = self.kernel.host_addresses().await.context("cannot read the addresses of this host")?;
        let surroundings = Surroundings { networks: addresses.clone(), coordinators: self.coordinators.clone() };
        let refused = self.guard.screen(known, &surroundings, chrono::Utc::now().timestamp());
        Ok(Limits { refused, addresses })
    }

    /// What the host should be within its limits.
    pub(crate) fn desired(&self, known: &Known, machine: &Machine, psks: &Exchange, turns: &Turns, limits: &Limits) -> Desired {
        let local = Local { interface: self.interface.clone(), machine, addresses: limits.addresses.clone() };
        desired(known, &local, &limits.refused, psks, turns)
    }

    /// Takes away what the agent made. Returns it in words.
    pub(crate) async fn down(&self) -> anyhow::Result<Vec<String>> {
        self.kernel.down().await
    }

    /// One round. Whatever fails is told and the rest goes on; the next round tries again. `now` is of a clock that only goes forward.
    pub(crate) async fn reconcile(&self, known: &Known, machine: &Machine, psks: &Exchange, watch: &mut Watch, now: Duration) -> Outcome {
        let looked = async { anyhow::Ok((self.observe().await?, self.limits(known).await?)) };
        let (observed, limits) = match looked.await {
            Ok(looked) => looked,
            Err(error) => return Outcome { problems: vec![format!("{error:#}")], ..Outcome::default() },
        };
        let turns = observed.link.as_ref().map(|link| watch.look(known, link, now)).unwrap_or_default();
        let plan = plan(&self.desired(known, machine, psks, &turns, &limits), &observed);
        let mut outcome = if plan.steps.is_empty() {
            Outcome { observed: Some(observed), ..Outcome::default() }
        } else {
            self.apply(plan, machine).await
        };
        watch.called(&turns, now);
        outcome.problems.extend(limits.refused.problems());
        outcome.limits = limits;
        outcome
    }

    /// Looks at the peers alone, and follows those that have taken up the keys which they announced: packets wait for that, so nothing else is
    /// looked at meanwhile.
    pub(crate) async fn follow_keys(
        &self,
        known: &Known,
        machine: &Machine,
        psks: &Exchange,
        watch: &mut Watch,
        outcome: &mut Outcome,
        now: Duration,
    ) -> anyhow::Result<()> {
        let Outcome { observed: Some(observed), limits, .. } = outcome else { return Ok(()) };
        let (Some(link), Some(peers)) = (&mut observed.link, self.kernel.observe_peers().await?) else { return Ok(()) };
        link.peers = peers;
        let turns = watch.look(known, link, now);
        if !turns.is_pressing() {
            return Ok(());
        }
        let mut steps = plan(&self.desired(known, machine, psks, &turns, limits), observed).steps;
        steps.retain(|step| step.change.of_peer().is_some());
        let changes: Vec<_> = steps.iter().map(|step| &step.change).collect();
        self.kernel.apply_to_peers(&changes).await?;
        watch.called(&turns, now);
        for Step { change, reason } in &steps {
            info!(reason, "{change}");
            *observed = mem::take(observed).after(change);
        }
        Ok(())
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

/// The guard's rules: those that need no file, when there is none. A file that cannot be read is an error; what it forbids is not known.
pub(crate) fn load_guard(path: &Path) -> anyhow::Result<Guard> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let guard: Guard = toml::from_str(&text).with_context(|| format!("the guard's rules in {} are not valid", path.display()))?;
            let locks_all_out = guard.lock == Lock::Required && guard.operator_keys.is_empty();
            anyhow::ensure!(!locks_all_out, "{} requires the lock and names no `operator_keys`: nobody could be admitted", path.display());
            Ok(guard)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Guard::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read the guard's rules in {}", path.display())),
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
        fs::write(&path, "allow = [\"10.0.0.0/8\"]\nrefuse = [\"10.9.0.0/16\"]\n").unwrap();
        let [allow, refuse] = ["10.0.0.0/8", "10.9.0.0/16"].map(|text| vec![text.parse().unwrap()]);
        assert_eq!(load_guard(&path).unwrap(), Guard { allow: Some(allow), refuse, ..Guard::default() });
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        fs::write(&path, format!("lock = \"required\"\noperator_keys = [\"{key}\"]\n")).unwrap();
        assert_eq!(load_guard(&path).unwrap().operators(), Some([key.parse().unwrap()].into()));
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
