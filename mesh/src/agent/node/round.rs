//! How the host is made to follow the view: observe, plan, apply, observe again.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    time::Duration,
};

use ipnet::IpNet;
use wattle_wire::{
    key::WireguardKey,
    report::{LanEffect, Problem, ProblemCode},
};

use super::{
    Failure, Judge, Judgement, Level, LocalNode, Look, Observation, Output, Request, Secrets,
    Unobserved, host::Outcome,
};
use crate::{
    agent::replica::KnownPeer,
    host::{
        plan::{Plan, Step},
        state::{Change, ObservedPeer},
    },
    keys::rotation::canary::PeerKeys,
};

/// How often the host is compared with what it should be: what other tools change is repaired
/// within this time.
pub const OBSERVE_INTERVAL: Duration = Duration::from_secs(5);
/// The same while tunnels are coming up, so that the coordinator hears of their first handshakes
/// soon, and while a host of a LAN may be about to answer.
const OBSERVE_SOON_INTERVAL: Duration = Duration::from_secs(1);
/// The next observation waits for this many times as long as the last round took: where it takes
/// long to list the rules, that leaves the processor to others.
const REST_FACTOR: u32 = 3;
/// For how long after a change tunnels are expected to come up.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// A round, and what the last one gave.
#[derive(Debug, Default)]
pub(super) struct Round {
    stage: Stage,
    /// The host has yet to follow.
    is_due: bool,
    /// It has yet to take up other preshared keys.
    is_due_for_psks: bool,
    /// This round is for that.
    is_for_psks: bool,
    /// There was a round, and nobody was told yet.
    is_untold: bool,
    begun: Duration,
    ended: Duration,
    took: Duration,
    last_change: Duration,
    outcome: Outcome,
    /// What the round that is under way gives.
    next: Outcome,
    /// Steps that are being taken, and those that follow.
    taking: Vec<Step>,
    steps: VecDeque<Vec<Step>>,
    /// The keys of peers that they go by.
    peer_keys: PeerKeys,
    /// Steps that packets wait for, and the same of them.
    pressing: Option<(Vec<Step>, PeerKeys)>,
    is_looking_at_peers: bool,
    looked_at_peers: Duration,
    is_taken: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Observing,
    Applying,
    /// Observing what the steps have made of the host.
    Checking,
}

impl Round {
    /// What the last round gave.
    pub(super) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && !self.is_due && !self.is_due_for_psks
    }

    /// Whether this agent is the one that drives the interface, as far as it knows.
    pub(super) fn may_drive(&self) -> bool {
        !self.is_taken
    }

    /// The host has yet to follow.
    pub(super) fn begin_soon(&mut self) {
        self.is_due = true;
    }

    /// The view changed, and the host has yet to follow.
    pub(super) fn view_changed(&mut self, now: Duration) {
        (self.is_due, self.last_change) = (true, now);
    }

    /// The host has yet to take up other preshared keys.
    pub(super) fn psks_changed(&mut self) {
        self.is_due_for_psks = true;
    }

    /// What the present observation of the peers belongs to.
    fn present(&self) -> &Outcome {
        match self.stage {
            Stage::Checking => &self.next,
            Stage::Idle | Stage::Observing | Stage::Applying => &self.outcome,
        }
    }

    fn present_mut(&mut self) -> &mut Outcome {
        match self.stage {
            Stage::Checking => &mut self.next,
            Stage::Idle | Stage::Observing | Stage::Applying => &mut self.outcome,
        }
    }
}

impl<S: Secrets> LocalNode<S> {
    /// Begins or ends a round, if there is reason to. Whether one is under way.
    pub(super) fn go_on_with_round(&mut self) -> bool {
        if self.round.stage != Stage::Idle {
            return true;
        }
        if self.round.is_due_for_psks {
            self.begin_round();
        } else if mem::take(&mut self.round.is_untold) {
            self.end_round();
            if self.round.is_due {
                self.begin_round();
            }
        } else if self.round.is_due {
            self.begin_round();
        }
        self.round.stage != Stage::Idle
    }

    fn begin_round(&mut self) {
        let is_first = !self.round.is_untold;
        self.round.is_for_psks = mem::take(&mut self.round.is_due_for_psks) && !is_first;
        self.round.is_due = false;
        if self.known().is_none() {
            self.round.ended = self.now.elapsed;
            return;
        }
        if is_first {
            self.round.begun = self.now.elapsed;
            // A disk that was full may have room again.
            self.view_unsaved |= self.save_problem.is_some();
        }
        self.round.stage = Stage::Observing;
        self.outputs.push_back(Output::Observe(Look::Host));
    }

    /// The host was observed: plans what is to be done, or ends the round.
    pub(super) fn observed(&mut self, observed: Result<Observation, Unobserved>) {
        match (self.round.stage, observed) {
            (Stage::Observing, Ok(observation)) => self.judge(observation),
            (Stage::Observing, Err(error)) => {
                self.round.is_taken = matches!(error, Unobserved::Taken(_));
                let problem = match error {
                    Unobserved::Taken(problem) => *problem,
                    Unobserved::Unreadable(words) => Problem::new(ProblemCode::Unreadable, words),
                };
                self.round.next = Outcome {
                    problems: vec![problem],
                    ..Outcome::default()
                };
                self.conclude();
            }
            (Stage::Checking, Ok(observation)) => {
                self.round.next.observed = Some(observation.observed);
                self.round.next.problems.extend(observation.problems);
                self.conclude();
            }
            (Stage::Checking, Err(error)) => {
                let words = match error {
                    Unobserved::Taken(problem) => problem.words,
                    Unobserved::Unreadable(words) => words,
                };
                self.log(Level::Warn, words);
                self.round.next.observed = None;
                self.conclude();
            }
            // Nobody asked.
            (Stage::Idle | Stage::Applying, _) => {}
        }
    }

    /// What this node goes by when it judges its host.
    pub fn judging(&self) -> Judge<'_> {
        Judge {
            interface: &self.interface_name,
            guard: &self.guard,
            node_keys: &self.node_keys,
            psks: self.psks.exchange(),
        }
    }

    fn judge(&mut self, observation: Observation) {
        self.round.is_taken = false;
        // What has changed until now is part of this round.
        self.round.is_due = false;
        let Some(known) = self.replica.known() else {
            self.round.stage = Stage::Idle;
            return;
        };
        let mut watch = mem::take(&mut self.watch);
        let Judgement {
            refused,
            peer_keys,
            plan: Plan { steps },
        } = self
            .judging()
            .judge(known, &observation, &mut watch, self.now.unix_s);
        self.watch = watch;
        let Observation {
            observed,
            surroundings,
            problems,
            ..
        } = observation;
        self.round.next = Outcome {
            observed: Some(observed),
            changed: steps.iter().any(|step| !step.change.is_unnoticed()),
            problems: refused.problems().collect(),
            refused,
            networks: surroundings.networks,
        };
        if steps.is_empty() {
            self.round.next.problems.extend(problems);
            return self.conclude();
        }
        self.round.peer_keys = peer_keys;
        let are_together =
            |one: &Step, next: &Step| [one, next].map(|step| step.change.of_peer().is_some());
        let chunks = steps.chunk_by(|one, next| are_together(one, next) == [true, true]);
        self.round.steps = chunks.map(<[Step]>::to_vec).collect();
        self.round.stage = Stage::Applying;
        self.take_next_steps();
    }

    fn take_next_steps(&mut self) {
        if let Some(steps) = self.round.steps.pop_front() {
            self.round.taking = steps.clone();
            self.outputs.push_back(Output::Apply(steps));
            return;
        }
        let peer_keys = mem::take(&mut self.round.peer_keys);
        self.watch.made(&peer_keys, self.now.elapsed);
        self.round.stage = Stage::Checking;
        self.outputs.push_back(Output::Observe(Look::Host));
    }

    /// Steps were taken, or could not be.
    pub(super) fn applied(&mut self, result: Result<(), Failure>) {
        if let Some((steps, peer_keys)) = self.round.pressing.take() {
            return self.pressing_applied(steps, &peer_keys, result);
        }
        if self.round.stage != Stage::Applying {
            return;
        }
        let steps = mem::take(&mut self.round.taking);
        match result {
            Ok(()) => self.log_steps(&steps),
            // Each by itself, so that the rest is done and the error names its peer.
            Err(_) if steps.len() > 1 => {
                let singles = steps.into_iter().rev().map(|step| vec![step]);
                singles.for_each(|single| self.round.steps.push_front(single));
            }
            Err(failure) => {
                for step in steps {
                    if step.change == Change::CreateInterface {
                        // Nothing that follows can be done without the interface.
                        self.round.steps.clear();
                    }
                    let problem = Problem {
                        subject: step.change.to_string(),
                        lan: Some(LanEffect::Degraded),
                        remedy: failure.remedy.clone(),
                        ..Problem::new(
                            ProblemCode::NotApplied,
                            format!("cannot {}: {}", step.change, failure.words),
                        )
                    };
                    self.round.next.problems.push(problem);
                }
            }
        }
        self.take_next_steps();
    }

    /// The round has come as far as it can.
    fn conclude(&mut self) {
        let next = mem::take(&mut self.round.next);
        let is_new = |problem: &&Problem| !self.round.outcome.problems.contains(problem);
        let new: Vec<_> = next.problems.iter().filter(is_new).cloned().collect();
        for problem in new {
            self.log(Level::Warn, problem.words);
        }
        if next.changed && next.problems.is_empty() {
            self.round.last_change = self.now.elapsed;
        }
        self.round.outcome = next;
        self.round.stage = Stage::Idle;
        // The device tells whose WireGuard key is new: with those no preshared key is changed yet.
        if !mem::take(&mut self.round.is_for_psks) {
            self.psks.look_at_device();
        }
        self.round.is_untold = true;
    }

    /// The host has followed, with its preshared keys.
    fn end_round(&mut self) {
        let now = self.now.elapsed;
        (self.round.ended, self.round.took) = (now, now.saturating_sub(self.round.begun));
        if let Some(observed) = &self.round.outcome.observed {
            self.replies.note(&observed.flows, now);
        }
        self.ask_own_links();
        self.outputs.push_back(Output::Settled);
    }

    /// Asks where peers see this node, if that is due.
    fn ask_own_links(&mut self) {
        let Some(known) = self.replica.known().filter(|_| self.disconnected.is_none()) else {
            return;
        };
        let networks = &self.round.outcome.networks;
        let local = networks.iter().map(IpNet::addr).collect();
        let own = known.myself.endpoint;
        if self.own_endpoint.is_due(own, &local, self.now.elapsed) && !self.asks_own_links {
            self.asks_own_links = true;
            self.outputs.push_back(Output::Send(Request::OwnLinks));
        }
    }

    /// The peers were looked at: follows those that have taken up the keys which they announced.
    pub(super) fn peers_observed(
        &mut self,
        at: Duration,
        peers: Result<Option<BTreeMap<WireguardKey, ObservedPeer>>, String>,
    ) {
        self.round.is_looking_at_peers = false;
        self.round.looked_at_peers = self.now.elapsed;
        let peers = match peers {
            Ok(peers) => peers,
            Err(error) => return self.log(Level::Warn, error),
        };
        if self.round.stage == Stage::Applying {
            return;
        }
        let observed = self.round.present_mut().observed.as_mut();
        let interface = observed.and_then(|observed| observed.interface.as_mut());
        let (Some(interface), Some(peers)) = (interface, peers) else {
            return;
        };
        interface.peers = peers;
        let Some(known) = self.replica.known() else {
            return;
        };
        let peer_keys = self.watch.observe(known, interface, at);
        if !peer_keys.is_pressing() {
            return;
        }
        let outcome = self.round.present();
        let Some(observed) = &outcome.observed else {
            return;
        };
        let plan = self.judging().plan(
            known,
            &outcome.refused,
            &outcome.networks,
            &peer_keys,
            observed,
        );
        let mut steps = plan.steps;
        steps.retain(|step| step.change.of_peer().is_some());
        self.outputs.push_back(Output::Apply(steps.clone()));
        self.round.pressing = Some((steps, peer_keys));
    }

    fn pressing_applied(
        &mut self,
        steps: Vec<Step>,
        peer_keys: &PeerKeys,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            return self.log(Level::Warn, failure.words);
        }
        self.watch.made(peer_keys, self.now.elapsed);
        self.log_steps(&steps);
        let outcome = self.round.present_mut();
        let observed = mem::take(&mut outcome.observed);
        outcome.observed = observed.map(|observed| {
            steps
                .iter()
                .fold(observed, |observed, step| observed.after(&step.change))
        });
    }

    fn log_steps(&mut self, steps: &[Step]) {
        for step in steps {
            let level = if step.change.is_unnoticed() {
                Level::Debug
            } else {
                Level::Info
            };
            self.log(level, step.to_string());
        }
    }

    /// Time has passed.
    pub(super) fn pass_time(&mut self) {
        let is_past = |at: Option<Duration>| at.is_some_and(|at| at <= self.now.elapsed);
        if is_past(self.next_look_at_peers()) {
            self.round.is_looking_at_peers = true;
            self.outputs.push_back(Output::Observe(Look::Peers));
        }
        if is_past(self.next_observation()) {
            self.round.is_due = true;
        }
    }

    /// When the host is to be observed again; absent while it is being observed.
    pub(super) fn next_observation(&self) -> Option<Duration> {
        let round = &self.round;
        if round.stage != Stage::Idle {
            return None;
        }
        let interface = round.outcome.interface();
        let is_live = |peer: &KnownPeer| {
            let entry = interface.and_then(|interface| peer.entry(interface));
            entry.is_some_and(ObservedPeer::is_live)
        };
        let mut peers = self
            .known()
            .into_iter()
            .flat_map(|known| known.peers.values());
        let are_live = peers.all(is_live);
        let since_change = self.now.elapsed.saturating_sub(round.last_change);
        let may_come_up = !are_live && since_change <= SETTLE_LIMIT;
        let interval = if may_come_up || self.replies.is_open() {
            OBSERVE_SOON_INTERVAL
        } else if are_live && !self.psks.exchange().has_candidates() {
            self.paces.observe
        } else {
            OBSERVE_INTERVAL
        };
        Some(round.ended + interval.max(round.took * REST_FACTOR))
    }

    /// When the peers are to be looked at, for one is about to take up the key that it announced.
    pub(super) fn next_look_at_peers(&self) -> Option<Duration> {
        let round = &self.round;
        if round.is_looking_at_peers || round.stage == Stage::Applying || round.pressing.is_some() {
            return None;
        }
        let interval = self.watch.interval(self.now.elapsed)?;
        Some(round.looked_at_peers + interval)
    }
}
