//! The host: how it is looked at and changed, within what its guard allows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context;
use wattle_mesh::{
    agent::{
        guard::{Guard, Refused, Surroundings},
        node::{Failure, Observation},
        replica::Known,
    },
    diagnose::{
        doctor::Taken,
        lan::{self, Facts, Served},
    },
    host::{
        interface::InterfaceName,
        offload::Offload,
        plan::Step,
        state::{Interface, Observed, ObservedPeer, ObservedRuleset},
    },
    keys::node_keys::NodeKeys,
};
use wattle_wire::key::{OperatorKey, WireguardKey};

use crate::{
    config::Settings,
    kernel::{Kernel, Policy, RouteTaken, symptoms},
    store::Store,
    underlay::UnderlayStore,
};

const UNREADABLE: &str = "cannot read the state of this host";

/// The host, and what it lets the mesh do to it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    kernel: Kernel,
    interface: InterfaceName,
    guard: Guard,
    underlay: UnderlayStore,
}

impl Host {
    /// The host of a node whose coordinators have these URLs.
    pub(crate) fn new(
        settings: &Settings,
        store: &Store,
        coordinators: &[String],
    ) -> anyhow::Result<Self> {
        let kernel = Kernel::new(settings.interface.clone(), store)?.without(&settings.no_offload);
        Ok(Self {
            underlay: UnderlayStore::open(&kernel, store, coordinators),
            kernel,
            interface: settings.interface.clone(),
            guard: settings.guard.clone(),
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

    /// What a userspace device does without.
    pub(crate) fn no_offload(&self) -> &BTreeSet<Offload> {
        self.kernel.no_offload()
    }

    /// What the host lets the mesh do to it.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
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

    /// What the host does not let the mesh do to it now.
    pub(crate) async fn refused(&self, known: &Known) -> anyhow::Result<Refused> {
        let surroundings = self.surroundings().await?;
        let now = chrono::Utc::now().timestamp();
        Ok(self.guard.screen(known, &surroundings, now))
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

    /// Takes away what the agent made. Returns it in words.
    pub(crate) async fn down(&self) -> anyhow::Result<Vec<String>> {
        self.kernel.down().await
    }

    /// What the host lets pass: the part of [`Host::look`] that may take long.
    pub(crate) async fn policy(self) -> anyhow::Result<Policy> {
        self.kernel.observe_policy().await.context(UNREADABLE)
    }

    /// The host as it is, with what it lets pass, and what is around it. `at` is the time.
    pub(crate) async fn look(&self, policy: Policy, at: Duration) -> anyhow::Result<Observation> {
        let observed = self.kernel.observe_with(policy).await;
        Ok(Observation {
            at,
            observed: observed.context(UNREADABLE)?,
            surroundings: self.surroundings().await?,
            problems: self.kernel.problems().collect(),
        })
    }

    /// The peers of the interface alone, as they are; `None` without an interface.
    pub(crate) async fn peers(
        &self,
    ) -> anyhow::Result<Option<BTreeMap<WireguardKey, ObservedPeer>>> {
        self.kernel.observe_peers().await
    }

    /// Takes steps: one, or several of peers, which for a thousand of them takes a fiftieth of the
    /// time.
    pub(crate) async fn apply(&self, steps: &[Step], node_keys: &NodeKeys) -> Result<(), Failure> {
        let applied = match steps {
            [step] => {
                let private_key = node_keys.wireguard_private_key();
                self.kernel.apply(&step.change, &private_key).await
            }
            steps => {
                let changes: Vec<_> = steps.iter().map(|step| &step.change).collect();
                self.kernel.apply_to_peers(&changes).await
            }
        };
        applied.map_err(|error| Failure {
            words: format!("{error:#}"),
            remedy: error.downcast_ref().map(RouteTaken::remedy),
        })
    }

    /// What the host must go on reaching outside of the tunnel.
    async fn surroundings(&self) -> anyhow::Result<Surroundings> {
        let networks = self
            .kernel
            .host_addresses()
            .await
            .context("cannot read the addresses of this host")?;
        let routes = self.kernel.foreign_routes().await?;
        Ok(Surroundings {
            networks,
            underlay: self.underlay.addresses(&routes).collect(),
            routes,
        })
    }
}
