//! What a node asks of its host, and what the host answers.

use std::time::Duration;

use ipnet::IpNet;
use wattle_wire::report::Problem;

use crate::{
    agent::{
        guard::{Guard, Refused, Surroundings},
        replica::Known,
    },
    host::{
        desired::{Local, desired},
        interface::InterfaceName,
        plan::{Plan, plan},
        state::{Interface, Observed},
    },
    keys::{
        node_keys::NodeKeys,
        psk::exchange::Exchange,
        rotation::canary::{PeerKeys, Watch},
    },
};

/// How much of the host to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All that [`Observation`] has. To list the rules of a firewall may take seconds: the shell
    /// does that beside what else comes.
    Host,
    /// The peers of the interface alone: packets wait for what they tell.
    Peers,
}

/// The host as it is, and what is around it.
#[derive(Debug, Default)]
pub struct Observation {
    /// When it was looked at, by the clock of [`Now::elapsed`](super::Now::elapsed): not before
    /// that.
    pub at: Duration,
    pub observed: Observed,
    pub surroundings: Surroundings,
    /// What is wrong on the host, whatever the mesh wants.
    pub problems: Vec<Problem>,
}

/// Why the host was not observed.
#[derive(Debug)]
pub enum Unobserved {
    /// Another program drives the interface.
    Taken(Box<Problem>),
    /// In words.
    Unreadable(String),
}

/// Why a step could not be taken.
#[derive(Debug)]
pub struct Failure {
    pub words: String,
    /// A command that makes it possible.
    pub remedy: Option<String>,
}

/// What one round gave.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The host after all steps; absent when it cannot be observed.
    pub(super) observed: Option<Observed>,
    /// Whether anything was to be done that packets may take note of.
    pub(super) changed: bool,
    /// What could not be done or was refused.
    pub(super) problems: Vec<Problem>,
    pub(super) refused: Refused,
    /// Networks of the host's other interfaces.
    pub(super) networks: Vec<IpNet>,
}

impl Outcome {
    pub(super) fn interface(&self) -> Option<&Interface> {
        self.observed.as_ref()?.interface.as_ref()
    }
}

/// What a node goes by when it judges its host.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    pub interface: &'a InterfaceName,
    pub guard: &'a Guard,
    pub node_keys: &'a NodeKeys,
    pub psks: &'a Exchange,
}

/// What is to be done to a host.
#[derive(Debug)]
pub struct Judgement {
    /// What the host does not let the mesh do to it.
    pub refused: Refused,
    /// Which keys of peers the plan goes by.
    pub peer_keys: PeerKeys,
    /// The steps from what is to what should be.
    pub plan: Plan,
}

impl Judge<'_> {
    /// Judges a host as it was observed. `watch` follows peers to their new keys; `unix_s` are the
    /// seconds since 1970, by this host's clock.
    pub fn judge(
        &self,
        known: &Known,
        observation: &Observation,
        watch: &mut Watch,
        unix_s: i64,
    ) -> Judgement {
        let Observation {
            at,
            observed,
            surroundings,
            ..
        } = observation;
        let refused = self.guard.screen(known, surroundings, unix_s);
        let interface = observed.interface.as_ref();
        let peer_keys = interface
            .map(|interface| watch.observe(known, interface, *at))
            .unwrap_or_default();
        let networks = &surroundings.networks;
        let plan = self.plan(known, &refused, networks, &peer_keys, observed);
        Judgement {
            refused,
            peer_keys,
            plan,
        }
    }

    /// The steps from what is to what should be. `networks` are those of the host's other
    /// interfaces.
    pub(super) fn plan(
        &self,
        known: &Known,
        refused: &Refused,
        networks: &[IpNet],
        peer_keys: &PeerKeys,
        observed: &Observed,
    ) -> Plan {
        let local = Local {
            interface: self.interface.clone(),
            node_keys: self.node_keys,
            addresses: networks.to_vec(),
        };
        let desired = desired(known, &local, refused, self.psks, peer_keys);
        plan(&desired, observed)
    }
}
