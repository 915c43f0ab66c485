//! Preshared keys: what of them is kept on disk, and the errands to the coordinator's mailbox on
//! which nodes agree on them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use wattle_client::kem::SystemKem;
use wattle_mesh::{
    agent::replica::Known,
    host::state::Interface,
    keys::{
        node_keys::Machine,
        psk::{
            Ignored,
            correspondence::{Brought, Correspondence, Means, Progress},
            exchange::Exchange,
        },
    },
};
use wattle_wire::{ids::NodeId, psk::Errand};

use crate::{
    coordinator::{Coordinator, RequestError},
    identity::{Membership, unix_s},
    store::Store,
};

const PSKS: &str = "psk.json";
/// How long to wait after an errand that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The keys that are kept.
pub(crate) fn load(store: &Store) -> anyhow::Result<Exchange> {
    Ok(store.read(PSKS)?.unwrap_or_default())
}

/// Forgets all keys: they were agreed on with another identity.
pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
    store.remove(PSKS)
}

/// The keys of this node's tunnels, kept on disk, and the errands about them to the coordinator's
/// mailbox.
#[derive(Debug)]
pub(crate) struct PskClient {
    store: Store,
    correspondence: Correspondence,
    errand: Option<oneshot::Receiver<Done>>,
}

/// An errand that is over.
#[derive(Debug)]
pub(crate) struct Done {
    errand: Errand,
    brought: Brought,
}

impl PskClient {
    pub(crate) fn new(store: Store) -> Self {
        let (exchange, problem) = match load(&store) {
            Ok(exchange) => (exchange, None),
            // The keys on the device stay, and new ones are agreed on.
            Err(error) => (
                Exchange::default(),
                Some(format!(
                    "cannot read the preshared keys, and makes new ones: {error:#}"
                )),
            ),
        };
        if let Some(problem) = &problem {
            warn!("{problem}");
        }
        Self {
            store,
            correspondence: Correspondence::new(exchange, problem),
            errand: None,
        }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        self.correspondence.exchange()
    }

    /// What stands in the way of new keys, in words.
    pub(crate) fn problems(&self, known: &Known) -> impl Iterator<Item = String> {
        self.correspondence
            .problem()
            .map(str::to_owned)
            .into_iter()
            .chain(self.exchange().problems(known))
    }

    /// Wants another key with each peer.
    pub(crate) fn want_others(&mut self) {
        self.correspondence.want_others();
    }

    pub(crate) fn mail_is_waiting(&mut self) {
        self.correspondence.mail_is_waiting();
    }

    /// Does what is due by now; with `unsettled` peers no key is changed. Whether a key may be
    /// another one now.
    pub(crate) fn tick(
        &mut self,
        known: &Known,
        machine: &Machine,
        unsettled: BTreeSet<NodeId>,
    ) -> bool {
        self.go_on(machine, |correspondence, means| {
            correspondence.tick(known, means, unsettled)
        })
    }

    /// Takes note of the handshakes. Whether a key may be another one now.
    pub(crate) fn observe(
        &mut self,
        known: &Known,
        interface: &Interface,
        machine: &Machine,
    ) -> bool {
        self.go_on(machine, |correspondence, means| Progress {
            may_differ: correspondence.observe(known, interface, means),
            ..Progress::default()
        })
    }

    /// Goes on an errand to the mailbox if there is reason to, without waiting for it. One is under
    /// way at a time.
    pub(crate) fn go(
        &mut self,
        coordinator: &Arc<Coordinator>,
        machine: &Arc<Machine>,
        membership: &Membership,
    ) {
        if self.errand.is_some() {
            return;
        }
        let Some(errand) = self.correspondence.next_errand() else {
            return;
        };
        let (sender, receiver) = oneshot::channel();
        self.errand = Some(receiver);
        let (coordinator, machine, membership) = (
            Arc::clone(coordinator),
            Arc::clone(machine),
            membership.clone(),
        );
        tokio::spawn(async move {
            let brought = match coordinator.mailbox(&machine, &membership, &errand).await {
                Ok(mail) => Brought::Mail(mail),
                Err(error) => {
                    debug!("a request to the mailbox failed: {error:#}");
                    tokio::time::sleep(PAUSE).await;
                    let is_refused = matches!(error, RequestError::Refused { status, .. } if status.is_client_error());
                    if is_refused {
                        Brought::Refused
                    } else {
                        Brought::Nothing
                    }
                }
            };
            let _ = sender.send(Done { errand, brought });
        });
    }

    /// Waits until the errand that is under way is over; for ever when none is.
    pub(crate) async fn done(&mut self) -> Option<Done> {
        match &mut self.errand {
            Some(receiver) => receiver.await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Reads what an errand has brought. Whether a key may be another one now.
    pub(crate) fn take_in(
        &mut self,
        done: Option<Done>,
        known: Option<&Known>,
        machine: &Machine,
    ) -> bool {
        self.errand = None;
        let Some(Done { errand, brought }) = done else {
            return false;
        };
        self.go_on(machine, |correspondence, means| {
            correspondence.take_in(&errand, brought, known, means)
        })
    }

    fn go_on(
        &mut self,
        machine: &Machine,
        step: impl FnOnce(&mut Correspondence, &Means<'_, SystemKem>) -> Progress,
    ) -> bool {
        let before = self.correspondence.problem().map(str::to_owned);
        let keep = |exchange: &Exchange| {
            self.store
                .write(PSKS, exchange)
                .map_err(|error| format!("cannot change preshared keys: {error:#}"))
        };
        let Progress {
            may_differ,
            ignored,
        } = step(
            &mut self.correspondence,
            &Means {
                machine,
                now: unix_s(),
                kem: &SystemKem,
                keep: &keep,
            },
        );
        for (name, reason) in ignored {
            match reason {
                Ignored::Signature
                | Ignored::Address
                | Ignored::Unreadable
                | Ignored::Kem
                | Ignored::Managed
                | Ignored::Sealed => {
                    warn!(%name, "refused a message about the preshared key: {reason}");
                }
                Ignored::Old | Ignored::Unexpected | Ignored::Keys => {
                    info!(%name, "ignored a message about the preshared key: {reason}");
                }
            }
        }
        match self.correspondence.problem() {
            Some(problem) if before.as_deref() != Some(problem) => warn!("{problem}"),
            Some(_) | None => {}
        }
        may_differ
    }
}
