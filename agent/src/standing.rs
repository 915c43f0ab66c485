//! How this node stands: what the coordinator makes of its links, and whether its endpoint leads
//! to it.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::timeout};
use tracing::debug;
use wattle_mesh::{
    agent::replica::Known, health::own_endpoint::OwnEndpoint, keys::node_keys::NodeKeys,
};
use wattle_wire::{report::Problem, verdict::OwnLinks};

use crate::{coordinator::Coordinator, identity::Membership, kernel::symptoms};

/// How long a command waits for the coordinator's word.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// What the coordinator makes of the links of this node; `None` when it does not say so soon.
pub(crate) async fn own_links(
    coordinator: &Coordinator,
    node_keys: &NodeKeys,
    membership: &Membership,
) -> Option<OwnLinks> {
    let asked = coordinator.own_links(node_keys, membership);
    match timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(links)) => Some(links),
        Ok(Err(error)) => {
            debug!("the coordinator does not tell how the links are: {error:#}");
            None
        }
        Err(_) => None,
    }
}

/// Finds out whether the node's own endpoint leads to it.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    own_endpoint: OwnEndpoint,
    asked: Option<oneshot::Receiver<Option<OwnLinks>>>,
}

impl Standing {
    /// Asks the coordinator if that is due at `now`, without waiting for the answer. `now` is of a
    /// clock that only goes forward.
    pub(crate) fn go(
        &mut self,
        known: &Known,
        now: Duration,
        coordinator: &Arc<Coordinator>,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) {
        let local = symptoms::addresses().map(|found| found.address.addr());
        let is_due = self
            .own_endpoint
            .is_due(known.myself.endpoint, &local.collect(), now);
        if !is_due || self.asked.is_some() {
            return;
        }
        let (sender, receiver) = oneshot::channel();
        self.asked = Some(receiver);
        let (coordinator, node_keys) = (Arc::clone(coordinator), Arc::clone(node_keys));
        let membership = membership.clone();
        tokio::spawn(async move {
            let _ = sender.send(own_links(&coordinator, &node_keys, &membership).await);
        });
    }

    /// Waits for the answer; for ever when nothing was asked.
    pub(crate) async fn told(&mut self) -> Option<OwnLinks> {
        match &mut self.asked {
            Some(asked) => asked.await.ok().flatten(),
            None => pending().await,
        }
    }

    /// Takes note of what [`Standing::told`] waited for.
    pub(crate) fn take_in(&mut self, told: Option<OwnLinks>) {
        self.asked = None;
        if let Some(told) = told {
            self.own_endpoint.seen(told.seen_at);
        }
    }

    pub(crate) fn problem(&self, known: &Known) -> Option<Problem> {
        self.own_endpoint.problem(&known.myself.site_name)
    }
}
