//! What all handlers share.

use std::{ops::Deref, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;
use wattle_mesh::config::{directory::RecordChange, impact};
use wattle_wire::{
    admin::{DryRun, LinkEffects},
    ids::{MeshId, NodeId, SiteId, TokenId},
    key::Bytes32,
};

use super::{
    auth_limiter::AuthLimiter,
    coordinators::Coordinators,
    credentials::{KnownTokens, Verified},
    link_tracker::LinkTracker,
    mesh_cache::MeshCache,
    metrics::Metrics,
    reports::Reports,
    representation,
    shares::{Credential, Shares},
    streams::Streams,
};
use crate::{
    db::{AuditActor, ChangeOutcome, ChangeRecord, Db, PendingChange},
    error::{self, Result},
    mutation::Mutation,
    tls::certificate::Certificate,
};

/// What all handlers share: one pointer, which each request and each stream takes with it.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of a coordinator.
#[derive(Debug)]
pub struct Parts {
    pub db: Db,
    pub mesh_cache: MeshCache,
    pub streams: Streams,
    pub reports: Reports,
    pub link_tracker: LinkTracker,
    pub metrics: Metrics,
    pub verified: Verified,
    pub known: KnownTokens,
    pub shares: Shares,
    pub auth_limiter: AuthLimiter,
    pub settings: Settings,
    pub coordinators: Coordinators,
    /// `None` where a proxy speaks TLS, or nobody does.
    pub certificate: Option<Arc<Certificate>>,
    pub stop: CancellationToken,
}

/// What stays as it is while the coordinator runs.
pub struct Settings {
    pub mesh: MeshId,
    /// What ephemeral keys of enrolment and secrets of webhooks are derived from.
    pub challenge_secret: [u8; 32],
    /// Where agents reach the coordinators, for join strings.
    pub urls: Vec<String>,
    /// Where gateways find the packages of the agent.
    pub packages: Option<String>,
    /// Where webhooks may lead although that is refused by itself.
    pub webhook_allow: Vec<IpNet>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("mesh", &self.mesh)
            .field("urls", &self.urls)
            .finish_non_exhaustive()
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

    /// Carries out a change and waits until this coordinator's cache has it, so that a writer reads
    /// its own writes. If only a dry run was asked for, it is carried out and rolled back.
    pub async fn mutate<T, W>(
        &self,
        actor: &AuditActor,
        work: impl Fn(PendingChange) -> W,
    ) -> Result<Mutation<T>>
    where
        T: Serialize + DeserializeOwned,
        W: Future<Output = Result<ChangeOutcome<T>>>,
    {
        if actor.options.dry_run {
            let record = self.db.dry_run(actor, work).await?;
            return Ok(Mutation::DryRun(Box::new(self.describe_dry_run(record))));
        }
        let committed = self.db.mutate(actor, work).await?;
        if let Some(position) = committed.position {
            self.mesh_cache.wait_for(position).await;
        }
        Ok(Mutation::Done(committed.value))
    }

    fn describe_dry_run(&self, record: Option<ChangeRecord>) -> DryRun {
        let Some(ChangeRecord {
            records,
            action,
            warnings,
            ..
        }) = record
        else {
            return DryRun {
                would: None,
                sites: Vec::new(),
                nodes: Vec::new(),
                links: LinkEffects::default(),
                warnings: Vec::new(),
            };
        };
        let before = self.mesh_cache.read(|feed| feed.directory().clone());
        let (after, links) = impact::effect(&before, &records);
        let sites = records.iter().filter_map(|record| match record {
            RecordChange::Site(site) => Some(representation::site_in(&after, site)),
            RecordChange::Mesh(_)
            | RecordChange::SiteRemoved(_)
            | RecordChange::Node(_)
            | RecordChange::NodeRevoked(_)
            | RecordChange::Admission(..)
            | RecordChange::Removal(..) => None,
        });
        let nodes = records.iter().filter_map(|record| match record {
            RecordChange::Node(node) => Some(representation::listed(node)),
            RecordChange::Mesh(_)
            | RecordChange::Site(_)
            | RecordChange::SiteRemoved(_)
            | RecordChange::NodeRevoked(_)
            | RecordChange::Admission(..)
            | RecordChange::Removal(..) => None,
        });
        DryRun {
            would: Some(action.to_owned()),
            sites: sites.collect(),
            nodes: nodes.collect(),
            links,
            warnings,
        }
    }

    /// The pins by which agents know the coordinators; none when their certificate is publicly
    /// valid.
    pub fn pins(&self) -> Vec<Bytes32> {
        self.certificate
            .as_ref()
            .map_or_else(Vec::new, |certificate| certificate.pins())
    }

    /// An api token or join token is good for nothing any more: what it has open here ends.
    pub fn forget_token(&self, id: TokenId) {
        self.known.forget(id);
        self.shares.end(Credential::ApiToken(id));
        self.shares.end(Credential::JoinToken(id));
    }

    /// A node that changes something.
    pub fn node_actor(&self, node: NodeId, request_id: Option<String>) -> AuditActor {
        self.mesh_cache
            .read(|feed| AuditActor::node(feed.directory(), node, request_id))
    }

    /// The site that a path means by an id or a name.
    pub fn find_site(&self, id_or_name: &str) -> Result<SiteId> {
        let found = self
            .mesh_cache
            .read(|feed| feed.directory().find_site(id_or_name).map(|site| site.id));
        found.ok_or_else(|| error::not_found("site").into())
    }

    /// The node that a path means by an id or a name.
    pub fn find_node(&self, id_or_name: &str) -> Result<NodeId> {
        let found = self
            .mesh_cache
            .read(|feed| feed.directory().find_node(id_or_name).map(|node| node.id));
        found.ok_or_else(|| error::not_found("node").into())
    }
}
