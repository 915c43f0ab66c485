//! What the loop tells its host: commands that ask, and Prometheus.

use tracing::info;

use super::Agent;
use crate::{
    control::{Asked, Confirmed, Keys, Request, RotatedKey},
    metrics::Seen,
    status::{Facts, Status},
};

impl Agent {
    /// Answers a command of this host.
    pub(super) async fn answer(&mut self, asked: Asked) {
        match asked.request {
            Request::Status => asked.answer(self.status().await),
            Request::Confirm => asked.answer(Ok(self.confirm())),
            Request::Keys => asked.answer(Ok(self.keys())),
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
                asked.answer(Ok(self.keys()));
            }
        }
    }

    async fn status(&self) -> Result<Status, String> {
        let interface = self.host.observe_interface().await;
        let interface = interface.map_err(|error| format!("{error:#}"))?;
        let known = self.replica.known();
        Ok(Status::new(&Facts {
            interface_name: &self.interface,
            membership: &self.membership,
            node_keys: &self.node_keys,
            known,
            locked: self.host.operators().is_some(),
            interface: interface.as_ref(),
            refused: &self.outcome.limits.refused,
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
        let back = self.replica.rolled_back_to();
        let is_back = back.is_some_and(|position| self.replica.follow_back(position));
        if self.replica.confirm(&waiting) || is_back {
            info!("what waited was confirmed on this gateway");
            (self.view_changed, self.view_unsaved) = (true, true);
            if self.replica.resume_from().is_none() {
                self.ask_for_snapshot("what waited was confirmed");
            }
        }
        Confirmed {
            removals,
            rolled_back_to: back,
        }
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
