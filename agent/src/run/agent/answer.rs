//! What the loop tells its host: commands that ask, and Prometheus.

use std::sync::Arc;

use anyhow::Context;
use tracing::info;
use wattle_mesh::{agent::replica::Known, diagnose::size, health::clock};
use wattle_wire::{
    report::{Problem, ProblemCode},
    verdict::OwnLinks,
};

use super::Agent;
use crate::{
    control::{Asked, Call, Confirmed, Keys, Request, RotatedKey},
    doctor::{self, Node},
    identity::Slot,
    metrics::Seen,
    standing,
    status::{self, Facts, Planned, Status},
    verify,
};

impl Agent {
    /// Answers a command of this host.
    pub(super) async fn answer(&mut self, call: Call) {
        match call.request.clone() {
            Request::Status => self.tell_status(call).await,
            Request::Plan => call.answer(in_words(self.plan().await)),
            Request::Doctor => self.examine(call),
            Request::Verify(asked) => self.verify(call, asked),
            Request::Confirm => call.answer(Ok(self.confirm())),
            Request::RenewTokens => call.answer(in_words(self.renew_tokens())),
            Request::Keys => call.answer(Ok(self.keys())),
            Request::Rotate(key) => {
                if key == RotatedKey::Preshared {
                    self.mailbox.want_others();
                    let psks = self.mailbox.exchange();
                    let known = self.replica.known().into_iter();
                    self.old_psks = known
                        .flat_map(|known| known.peers.keys())
                        .filter_map(|peer| Some((*peer, psks.since(*peer)?)))
                        .collect();
                } else {
                    self.key_change.ask(key);
                }
                call.answer(Ok(self.keys()));
            }
        }
    }

    async fn plan(&self) -> anyhow::Result<Planned> {
        let known = self.replica.known().context(status::NO_VIEW)?;
        let watch = (self.watch.clone(), self.started.elapsed());
        let psks = self.mailbox.exchange();
        status::planned(&self.host, known, &self.node_keys, psks, watch).await
    }

    /// Looks at the host beside the loop: names that nobody resolves take seconds.
    fn examine(&self, call: Call) {
        let (host, membership) = (self.host.clone(), self.membership.clone());
        let (known, probes) = (self.replica.known().cloned(), self.prober.reports());
        let problems = known
            .as_ref()
            .map(|known| self.host_problems(known).collect())
            .unwrap_or_default();
        let (replies, own_links) = (self.replies.clone(), self.own_links());
        let sizes = self.prober.sizes();
        tokio::spawn(async move {
            let node = Node {
                membership: &membership,
                known: known.as_ref(),
                probes: &probes,
                sizes: &sizes,
                replies: &replies,
                problems,
                own_links: own_links.await,
            };
            let examined = doctor::examine(&host, Some(node), None, true).await;
            call.answer(in_words(examined.map(Some)));
        });
    }

    /// What the coordinator makes of the links of this node.
    fn own_links(&self) -> impl Future<Output = Option<OwnLinks>> + use<> {
        let coordinator = self
            .disconnected
            .is_none()
            .then(|| Arc::clone(&self.coordinator));
        let (node_keys, membership) = (Arc::clone(&self.node_keys), self.membership.clone());
        async move { standing::own_links(&*coordinator?, &node_keys, &membership).await }
    }

    /// Looks beside the loop at what is between the LANs.
    fn verify(&self, call: Call, asked: Asked) {
        let Some(known) = self.replica.known().cloned() else {
            return call.answer(Err::<(), _>(status::NO_VIEW.to_owned()));
        };
        let (host, replies) = (self.host.clone(), self.replies.clone());
        tokio::spawn(async move {
            let trial = verify::trial(&host, &known, &replies, &asked).await;
            call.answer(in_words(trial));
        });
    }

    /// What keeps this host from what the mesh wants, or its LANs from others.
    pub(super) fn problems(&self, known: &Known) -> impl Iterator<Item = Problem> {
        let clock = self
            .coordinator
            .known_clock_ahead()
            .and_then(clock::problem);
        self.host_problems(known)
            .chain(clock)
            .chain(self.lan_watch.problems())
            .chain(self.large_packets(known))
    }

    /// What keeps this host from what the mesh wants.
    fn host_problems(&self, known: &Known) -> impl Iterator<Item = Problem> {
        let unsaved = self.save_problem.iter().map(|words| Problem {
            subject: "the view".to_owned(),
            ..Problem::new(ProblemCode::State, words)
        });
        let policy = self.outcome.limits.refused.psk_policy(known.mesh.psk);
        self.replica
            .problems()
            .chain(self.outcome.problems.iter().cloned())
            .chain(unsaved)
            .chain(self.mailbox.problems(known, policy))
            .chain(self.key_change.problems(known, &self.node_keys))
            .chain(self.standing.problem(known))
    }

    /// Tells how the node is, beside the loop: the coordinator may take long to say its part.
    async fn tell_status(&self, call: Call) {
        let status = self.status().await;
        let own_links = self.own_links();
        tokio::spawn(async move {
            let own_links = own_links.await;
            call.answer(status.map(|status| status.with_verdicts(own_links)));
        });
    }

    /// Peers that large packets do not get to.
    fn large_packets(&self, known: &Known) -> Vec<Problem> {
        let observed = self.outcome.observed.as_ref();
        let interface = observed.and_then(|observed| observed.interface.as_ref());
        interface
            .map(|found| {
                let refused = &self.outcome.limits.refused;
                let sizes = self.prober.sizes();
                size::problems(known, refused, &self.interface, found, &sizes)
            })
            .unwrap_or_default()
    }

    async fn status(&self) -> Result<Status, String> {
        let interface = self.host.observe_interface().await;
        let interface = in_words(interface)?;
        let known = self.replica.known();
        Ok(Status::new(&Facts {
            interface_name: &self.interface,
            membership: &self.membership,
            node_keys: &self.node_keys,
            known,
            locked: self.host.operators().is_some(),
            interface: interface.as_ref(),
            refused: &self.outcome.limits.refused,
            probes: &self.prober.reports(),
            problems: known
                .map(|known| self.problems(known).collect())
                .unwrap_or_default(),
            as_of: None,
            agent_running: true,
            coordinator: self.connection.clone(),
        }))
    }

    /// Carries out what waits for somebody on this host.
    fn confirm(&mut self) -> Confirmed {
        let waiting = self.replica.awaiting_confirmation();
        let removals = self.replica.known().into_iter().flat_map(|known| {
            let peers = waiting.iter().filter_map(|node| known.peers.get(node));
            peers.map(|known| known.peer.name.clone())
        });
        let removals = removals.collect();
        let back = self.replica.returned();
        let returned = back.iter().filter_map(|node| self.replica.name_of(*node));
        let returned = returned.cloned().collect();
        let waiting = waiting.union(&back).copied().collect();
        let behind = self.replica.rolled_back_to();
        let follows = behind.is_some_and(|position| self.replica.follow_back(position));
        if self.replica.confirm(&waiting) || follows {
            info!("what waited was confirmed on this gateway");
            (self.view_changed, self.view_unsaved) = (true, true);
            if self.replica.resume_from().is_none() {
                self.ask_for_snapshot("what waited was confirmed");
            }
        }
        Confirmed {
            removals,
            returned,
            rolled_back_to: behind,
        }
    }

    /// Ends what this node signed until now. The loop begins anew with the next generation, which
    /// is on disk first.
    fn renew_tokens(&mut self) -> anyhow::Result<i32> {
        let generation = Slot::Present.raise_generation(&self.store)?;
        info!(
            generation,
            "the coordinator refuses earlier tokens of this node from now on"
        );
        self.changed_by_hand = true;
        Ok(generation)
    }

    fn keys(&self) -> Keys {
        let psks = self.mailbox.exchange();
        let peers = self.replica.known().into_iter();
        let old = peers
            .flat_map(|known| known.peers.values())
            .filter(|known| {
                let node = &known.peer.node;
                self.old_psks
                    .get(node)
                    .copied()
                    .is_some_and(|at| psks.since(*node) == Some(at))
            });
        Keys {
            wireguard: self.node_keys.wireguard_key(),
            identity: self.node_keys.identity_key(),
            problem: self.key_change.answer().map(str::to_owned),
            preshared_with: old.map(|known| known.peer.name.to_string()).collect(),
        }
    }

    pub(super) fn show_metrics(&self) {
        let (Some(metrics), Some(known), Some(observed)) =
            (&self.metrics, self.replica.known(), &self.outcome.observed)
        else {
            return;
        };
        metrics.show(&Seen {
            interface: &self.interface,
            known,
            observed,
            probes: &self.prober.reports(),
            connected: self.disconnected.is_none(),
            problems: self.problems(known).count(),
            now: chrono::Utc::now().timestamp(),
        });
    }
}

fn in_words<T>(result: anyhow::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}
