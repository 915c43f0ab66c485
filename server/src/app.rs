//! What all handlers share.

use std::{ops::Deref, sync::Arc};

use tokio_util::sync::CancellationToken;
use wattle_wire::{
    ids::{MeshId, NodeId, SiteId},
    key::Bytes32,
};

use crate::{
    auth::{KnownTokens, Verified},
    certificate::Certificate,
    copy::Copy,
    db::{Actor, Change, Db, Outcome},
    error::{self, Result},
    failures::Failures,
    live::Live,
    metrics::Metrics,
    report::Reports,
    stream::Streams,
};

/// What all handlers share: one pointer, which each request and each stream takes with it.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of a coordinator.
#[derive(Debug)]
pub struct Parts {
    pub db: Db,
    pub copy: Copy,
    pub streams: Streams,
    pub reports: Reports,
    pub live: Live,
    pub metrics: Metrics,
    pub verified: Verified,
    pub known: KnownTokens,
    pub failures: Failures,
    pub settings: Settings,
    /// `None` where a proxy speaks TLS, or nobody does.
    pub certificate: Option<Arc<Certificate>>,
    pub stop: CancellationToken,
}

/// What stays as it is while the coordinator runs.
pub struct Settings {
    pub mesh: MeshId,
    /// What ephemeral keys of enrolment are derived from.
    pub challenge_secret: [u8; 32],
    /// Where agents reach the coordinators, for join strings.
    pub urls: Vec<String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("mesh", &self.mesh).field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Carries out a change and waits until this coordinator's copy has it, so that who wrote reads what he wrote.
    pub async fn mutate<T, W>(&self, actor: &Actor, work: impl Fn(Change) -> W) -> Result<T>
    where
        W: Future<Output = Result<Outcome<T>>>,
    {
        let committed = self.db.mutate(actor, work).await?;
        if let Some(position) = committed.position {
            self.copy.wait_for(position).await;
        }
        Ok(committed.value)
    }

    /// The pins by which agents know the coordinators; none when their certificate is publicly valid.
    pub fn pins(&self) -> Vec<Bytes32> {
        self.certificate.as_ref().map_or_else(Vec::new, |certificate| certificate.pins())
    }

    /// The site that a path means by an id or a name.
    pub fn find_site(&self, id_or_name: &str) -> Result<SiteId> {
        let found = self.copy.read(|feed| feed.directory().find_site(id_or_name).map(|site| site.id));
        found.ok_or_else(|| error::not_found("site").into())
    }

    /// The node that a path means by an id or a name.
    pub fn find_node(&self, id_or_name: &str) -> Result<NodeId> {
        let found = self.copy.read(|feed| feed.directory().find_node(id_or_name).map(|node| node.id));
        found.ok_or_else(|| error::not_found("node").into())
    }
}
