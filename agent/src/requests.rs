//! What the node asks and tells its coordinator, beside the loop.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper::StatusCode;
use tokio::time::timeout;
use tracing::{debug, warn};
use wattle_client::{
    error::RequestError,
    node::{NodeClient, Signer},
};
use wattle_mesh::{
    agent::{
        node::{Reply, Request},
        reporting::next_number,
    },
    keys::{
        identity_rotation::IdentityReply, node_keys::NodeKeys, psk::mailbox::MailboxReply,
        rotation::RotationReply,
    },
};
use wattle_wire::{
    enrol::NewIdentity,
    problem::{ErrorCode, ProblemDetails},
    report::Report,
    verdict::OwnLinks,
};

use crate::identity::Membership;

/// How long a command waits for the coordinator's word.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The requests that are under way.
#[derive(Debug)]
pub(crate) struct Requests {
    coordinator: Arc<NodeClient>,
    under_way: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// The number of the report that is under way.
    number: Option<i64>,
    /// The number of the last report, if it was taken: after one that was not, the time alone
    /// counts, for the number may have been too high.
    last_number: Option<i64>,
}

impl Requests {
    pub(crate) fn new(coordinator: Arc<NodeClient>) -> Self {
        Self {
            coordinator,
            under_way: FuturesUnordered::new(),
            number: None,
            last_number: None,
        }
    }

    /// Sends a request without waiting for the answer.
    pub(crate) fn send(
        &mut self,
        mut request: Request,
        node_keys: &Arc<NodeKeys>,
        membership: &Membership,
    ) {
        if let Request::Report(report) = &mut request {
            let number = next_number(self.last_number, self.coordinator.report_ms());
            (report.number, self.number) = (Some(number), Some(number));
        }
        let unanswered = request.unanswered();
        let sender = Sender {
            coordinator: Arc::clone(&self.coordinator),
            node_keys: Arc::clone(node_keys),
            membership: membership.clone(),
        };
        let answered = tokio::spawn(async move { sender.send(request).await });
        self.under_way.push(Box::pin(
            async move { answered.await.unwrap_or(unanswered) },
        ));
    }

    /// Waits for the next answer; for ever when nothing is under way.
    pub(crate) async fn answer(&mut self) -> Reply {
        let Some(reply) = self.under_way.next().await else {
            return pending().await;
        };
        if let Reply::Report(is_taken) = &reply {
            self.last_number = self.number.take().filter(|_| *is_taken);
        }
        reply
    }
}

/// Sends one request.
struct Sender {
    coordinator: Arc<NodeClient>,
    node_keys: Arc<NodeKeys>,
    membership: Membership,
}

impl Sender {
    async fn send(self, request: Request) -> Reply {
        let Self {
            coordinator,
            node_keys,
            membership,
        } = &self;
        let signer = membership.signer(node_keys);
        match request {
            Request::Report(report) => Reply::Report(self.report(&report).await),
            Request::Mailbox(request) => {
                let answer = coordinator.mailbox(signer, &request).await;
                Reply::Mailbox(answer.map_or_else(mailbox_failed, MailboxReply::Response))
            }
            Request::Rotation(step) => {
                let answer = coordinator.rotation(signer, &step).await;
                Reply::Rotation(answer.map_or_else(rotation_failed, RotationReply::Taken))
            }
            Request::Identity(statement) => {
                let node = membership.enrolled.node;
                let identity = NewIdentity { node, statement };
                let answer = coordinator.rotate_identity(&identity).await;
                Reply::Identity(answer.map_or_else(identity_failed, |()| IdentityReply::Taken))
            }
            Request::OwnLinks => {
                let links = own_links(coordinator, signer).await;
                Reply::SeenAt(links.map(|links| links.seen_at))
            }
        }
    }

    async fn report(&self, report: &Report) -> bool {
        let signer = self.membership.signer(&self.node_keys);
        match self.coordinator.report(signer, report).await {
            Ok(()) => true,
            Err(error @ RequestError::Unreachable { .. }) => {
                debug!("the report did not arrive: {error:#}");
                false
            }
            Err(error) => {
                warn!("the report was not taken: {error:#}");
                false
            }
        }
    }
}

/// What the coordinator makes of the links of this node; `None` when it does not say so soon.
pub(crate) async fn own_links(coordinator: &NodeClient, signer: Signer<'_>) -> Option<OwnLinks> {
    let asked = coordinator.own_links(signer);
    match timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(links)) => Some(links),
        Ok(Err(error)) => {
            debug!("the coordinator does not tell how the links are: {error:#}");
            None
        }
        Err(_) => None,
    }
}

/// What a request to the mailbox that failed means for its messages.
fn mailbox_failed(error: RequestError) -> MailboxReply {
    debug!("a request to the mailbox failed: {error:#}");
    match refusal(&error) {
        Some((status, problem)) if is_final(status) => {
            let field = problem.field.as_deref();
            let index = field.and_then(|field| field.strip_prefix("leave[")?.split(']').next());
            MailboxReply::Refused(index.and_then(|index| index.parse().ok()))
        }
        Some(_) | None => MailboxReply::Failed,
    }
}

fn rotation_failed(error: RequestError) -> RotationReply {
    match refusal(&error) {
        Some((StatusCode::CONFLICT, problem)) if problem.is(ErrorCode::RotationUnderWay) => {
            RotationReply::Busy
        }
        Some((StatusCode::CONFLICT, problem)) if problem.is(ErrorCode::NotAnnounced) => {
            RotationReply::Unannounced
        }
        // Who has changed its key too often waits longer than the next try.
        Some((status, problem)) if is_final(status) || problem.is(ErrorCode::TooManyKeys) => {
            RotationReply::Refused(format!("{error:#}"))
        }
        Some(_) | None => {
            debug!("the coordinator was not told of the WireGuard key: {error:#}");
            RotationReply::Unreachable
        }
    }
}

fn identity_failed(error: RequestError) -> IdentityReply {
    match refusal(&error) {
        Some((status, _)) if is_final(status) => IdentityReply::Refused(format!("{error:#}")),
        Some(_) | None => {
            debug!("the coordinator was not told of the identity: {error:#}");
            IdentityReply::Unreachable
        }
    }
}

fn refusal(error: &RequestError) -> Option<(StatusCode, &ProblemDetails)> {
    match error {
        RequestError::Refused { status, problem } => Some((*status, problem)),
        RequestError::Unreachable { .. }
        | RequestError::NotAMember
        | RequestError::NotWattle { .. }
        | RequestError::Other(_) => None,
    }
}

/// Whether the same request would be refused again.
fn is_final(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS
}
