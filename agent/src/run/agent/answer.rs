//! What the loop tells its host: commands that ask, and Prometheus.

use std::sync::Arc;

use anyhow::Context;
use tracing::info;
use wattle_mesh::agent::node::Input;
use wattle_wire::verdict::OwnLinks;

use super::{Agent, in_words};
use crate::{
    control::{Asked, Call, Confirmed, Keys, Request},
    doctor::{self, Node},
    identity::Slot,
    metrics::Seen,
    requests,
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
            Request::Confirm => {
                let confirmed = self.to_confirm();
                self.handle(Input::Confirm).await;
                call.answer(Ok(confirmed));
            }
            Request::RenewTokens => call.answer(in_words(self.renew_tokens())),
            Request::Keys => call.answer(Ok(self.keys())),
            Request::Rotate(key) => {
                self.handle(Input::Rotate(key)).await;
                call.answer(Ok(self.keys()));
            }
        }
    }

    async fn plan(&self) -> anyhow::Result<Planned> {
        let known = self.node.known().context(status::NO_VIEW)?;
        let (judge, watch) = (self.node.judging(), self.node.watch().clone());
        status::planned(&self.host, known, judge, watch, self.started.elapsed()).await
    }

    /// Looks at the host beside the loop: names that nobody resolves take seconds.
    fn examine(&self, call: Call) {
        let (host, membership) = (self.host.clone(), self.membership.clone());
        let (known, probes) = (self.node.known().cloned(), self.prober.reports());
        let problems = known
            .as_ref()
            .map(|known| self.node.host_problems(known).collect())
            .unwrap_or_default();
        let (replies, own_links) = (self.node.replies().clone(), self.own_links());
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
            .node
            .is_connected()
            .then(|| Arc::clone(&self.coordinator));
        let node_keys = Arc::clone(self.node.node_keys());
        let membership = self.membership.clone();
        async move { requests::own_links(&*coordinator?, membership.signer(&node_keys)).await }
    }

    /// Looks beside the loop at what is between the LANs.
    fn verify(&self, call: Call, asked: Asked) {
        let Some(known) = self.node.known().cloned() else {
            return call.answer(Err::<(), _>(status::NO_VIEW.to_owned()));
        };
        let (host, replies) = (self.host.clone(), self.node.replies().clone());
        tokio::spawn(async move {
            let trial = verify::trial(&host, &known, &replies, &asked).await;
            call.answer(in_words(trial));
        });
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

    async fn status(&self) -> Result<Status, String> {
        let interface = self.host.observe_interface().await;
        let interface = in_words(interface)?;
        let known = self.node.known();
        Ok(Status::new(&Facts {
            interface_name: self.host.interface(),
            membership: &self.membership,
            node_keys: self.node.node_keys(),
            known,
            locked: self.host.operators().is_some(),
            interface: interface.as_ref(),
            refused: self.node.refused(),
            probes: &self.prober.reports(),
            problems: known
                .map(|known| self.node.problems(known).collect())
                .unwrap_or_default(),
            as_of: None,
            agent_running: true,
            coordinator: self.connection.clone(),
        }))
    }

    /// What waits for somebody on this host.
    fn to_confirm(&self) -> Confirmed {
        let replica = self.node.replica();
        let waiting = replica.awaiting_confirmation();
        let peers = self.node.known().into_iter().flat_map(|known| &known.peers);
        let removals = peers.filter(|(node, _)| waiting.contains(node));
        let removals = removals.map(|(_, known)| known.peer.name.clone()).collect();
        let returned = replica.returned().into_iter();
        Confirmed {
            removals,
            returned: returned
                .filter_map(|node| replica.name_of(node).cloned())
                .collect(),
            rolled_back_to: replica.rolled_back_to(),
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
        let (keys, asked) = (self.node.node_keys(), self.node.keys_asked());
        let old = asked.preshared_with.iter();
        Keys {
            wireguard: keys.wireguard_key(),
            identity: keys.identity_key(),
            problem: asked.problem,
            preshared_with: old.map(ToString::to_string).collect(),
        }
    }

    pub(super) fn show_metrics(&self) {
        let (Some(metrics), Some(known), Some(observed)) =
            (&self.metrics, self.node.known(), self.node.host())
        else {
            return;
        };
        metrics.show(&Seen {
            interface: self.host.interface(),
            known,
            observed,
            probes: &self.prober.reports(),
            connected: self.node.is_connected(),
            problems: self.node.problems(known).count(),
            now: chrono::Utc::now().timestamp(),
        });
    }
}
