//! Preshared keys: what of them is kept on disk, and the requests to the coordinator's mailbox on
//! which nodes agree on them.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc, time::Duration};

use hyper::StatusCode;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use wattle_client::kem::SystemKem;
use wattle_mesh::{
    agent::replica::Known,
    host::state::Interface,
    keys::{
        node_keys::NodeKeys,
        psk::{
            Ignored,
            exchange::Exchange,
            mailbox::{MailboxReply, Means, Progress, PskMailbox},
        },
    },
};
use wattle_wire::{
    ids::NodeId,
    psk::{MailboxRequest, PskPolicy},
    report::{Problem, ProblemCode},
};

use crate::{
    coordinator::{Coordinator, RequestError},
    identity::{Membership, unix_s},
    store::Store,
};

const PSKS: &str = "psk.json";
/// How long to wait after a request that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The keys that are kept.
pub(crate) fn load(store: &Store) -> anyhow::Result<Exchange> {
    let Some((exchange, lost)) = store.read_with(PSKS, Exchange::read)? else {
        return Ok(Exchange::default());
    };
    if lost > 0 {
        tracing::warn!(
            "{lost} keys of {PSKS} cannot be read, as a newer agent writes them: others \
            are agreed on"
        );
    }
    Ok(exchange)
}

/// Forgets all keys: they were agreed on with another identity.
pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
    store.remove(PSKS)
}

/// The keys of this node's tunnels, kept on disk, and the requests about them to the coordinator's
/// mailbox.
#[derive(Debug)]
pub(crate) struct PskClient {
    store: Store,
    mailbox: PskMailbox,
    request: Option<oneshot::Receiver<Done>>,
    /// What is on disk.
    saved: Exchange,
    /// Why first keys with new peers are in memory alone; absent means all is on disk.
    unsaved: Option<String>,
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct Done {
    request: MailboxRequest,
    reply: MailboxReply,
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
            saved: exchange.clone(),
            mailbox: PskMailbox::new(exchange, problem),
            request: None,
            unsaved: None,
        }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        self.mailbox.exchange()
    }

    /// What stands in the way of new keys.
    pub(crate) fn problems(
        &self,
        known: &Known,
        policy: PskPolicy,
    ) -> impl Iterator<Item = Problem> {
        let told = self.mailbox.problem().into_iter();
        let told = told.map(|words| Problem::new(ProblemCode::PresharedKey, words));
        let unsaved = self.unsaved.iter().map(|words| Problem {
            subject: PSKS.to_owned(),
            ..Problem::new(ProblemCode::State, words)
        });
        told.chain(unsaved)
            .chain(self.exchange().problems(known, policy))
    }

    /// Wants another key with each peer.
    pub(crate) fn want_others(&mut self) {
        self.mailbox.want_others();
    }

    pub(crate) fn messages_are_waiting(&mut self) {
        self.mailbox.messages_are_waiting();
    }

    /// The coordinator may be another one than before, without the messages of that one.
    pub(crate) fn say_again(&mut self) {
        self.mailbox.say_again();
    }

    /// Does what is due by now; with `unsettled` peers no key is changed. Whether a key may be
    /// another one now.
    pub(crate) fn tick(
        &mut self,
        known: &Known,
        node_keys: &NodeKeys,
        unsettled: BTreeSet<NodeId>,
    ) -> bool {
        if self.unsaved.is_some() && self.store.write(PSKS, &self.exchange().kept()).is_ok() {
            (self.saved, self.unsaved) = (self.exchange().kept(), None);
        }
        self.advance(node_keys, |mailbox, means| {
            mailbox.tick(known, means, unsettled)
        })
    }

    /// Takes note of the handshakes. Whether a key may be another one now.
    pub(crate) fn observe(
        &mut self,
        known: &Known,
        interface: &Interface,
        node_keys: &NodeKeys,
    ) -> bool {
        self.advance(node_keys, |mailbox, means| Progress {
            may_differ: mailbox.observe(known, interface, means),
            ..Progress::default()
        })
    }

    /// Sends a request to the mailbox if there is reason to, without waiting for it. One is under
    /// way at a time.
    pub(crate) fn go(
        &mut self,
        coordinator: &Arc<Coordinator>,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) {
        if self.request.is_some() {
            return;
        }
        let Some(request) = self.mailbox.next_request() else {
            return;
        };
        let (sender, receiver) = oneshot::channel();
        self.request = Some(receiver);
        let (coordinator, node_keys, membership) = (
            Arc::clone(coordinator),
            Arc::clone(node_keys),
            membership.clone(),
        );
        tokio::spawn(async move {
            let reply = match coordinator.mailbox(&node_keys, &membership, &request).await {
                Ok(response) => MailboxReply::Response(response),
                Err(error) => {
                    debug!("a request to the mailbox failed: {error:#}");
                    let reply = failure(&error);
                    if !matches!(reply, MailboxReply::Refused(Some(_))) {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    reply
                }
            };
            let _ = sender.send(Done { request, reply });
        });
    }

    /// Waits until the request that is under way is over; for ever when none is.
    pub(crate) async fn done(&mut self) -> Option<Done> {
        match &mut self.request {
            Some(receiver) => receiver.await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Reads what a request has brought. Whether a key may be another one now.
    pub(crate) fn take_in(
        &mut self,
        done: Option<Done>,
        known: Option<&Known>,
        node_keys: &NodeKeys,
    ) -> bool {
        self.request = None;
        let Some(Done { request, reply }) = done else {
            return false;
        };
        self.advance(node_keys, |mailbox, means| {
            mailbox.take_in(&request, reply, known, means)
        })
    }

    fn advance(
        &mut self,
        node_keys: &NodeKeys,
        step: impl FnOnce(&mut PskMailbox, &Means<'_, SystemKem>) -> Progress,
    ) -> bool {
        let before = self.mailbox.problem().map(str::to_owned);
        let kept = RefCell::new((&mut self.saved, &mut self.unsaved));
        let keep = |exchange: &Exchange| {
            let (saved, unsaved) = &mut *kept.borrow_mut();
            match self.store.write(PSKS, exchange) {
                Ok(()) => {
                    (**saved, **unsaved) = (exchange.clone(), None);
                    Ok(())
                }
                // A new peer is worth a key that a restart forgets. A key that is in use is not
                // given up for one that may be forgotten.
                Err(error) if exchange.only_adds_to(saved) => {
                    **unsaved = Some(format!(
                        "preshared keys with new peers are in memory alone: {error:#}"
                    ));
                    Ok(())
                }
                Err(error) => Err(format!("cannot change preshared keys: {error:#}")),
            }
        };
        let Progress {
            may_differ,
            ignored,
        } = step(
            &mut self.mailbox,
            &Means {
                node_keys,
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
        match self.mailbox.problem() {
            Some(problem) if before.as_deref() != Some(problem) => warn!("{problem}"),
            Some(_) | None => {}
        }
        may_differ
    }
}

/// What a request that failed means for its messages.
fn failure(error: &RequestError) -> MailboxReply {
    match error {
        RequestError::Refused { status, problem }
            if status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS =>
        {
            let field = problem.field.as_deref();
            let index = field.and_then(|field| field.strip_prefix("leave[")?.split(']').next());
            MailboxReply::Refused(index.and_then(|index| index.parse().ok()))
        }
        RequestError::Refused { .. }
        | RequestError::Unreachable { .. }
        | RequestError::NotAMember
        | RequestError::NotWattle { .. }
        | RequestError::Other(_) => MailboxReply::Failed,
    }
}
