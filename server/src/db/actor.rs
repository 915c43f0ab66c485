//! Who changes something, and with which options.

use std::sync::Arc;

use wattle_mesh::config::directory::Directory;
use wattle_wire::ids::{NodeId, TokenId};

use super::idempotency::IdempotencyKey;

/// Who changes something, for the audit log, and with which options.
#[derive(Clone, Debug)]
pub struct AuditActor {
    /// `api-token:<id>`, `node:<id>`, `join-token:<id>`, `command line` or `coordinator`.
    pub id: String,
    /// As people know it.
    pub name: String,
    /// The site of a node.
    pub site: Option<String>,
    pub request_id: Option<String>,
    pub options: ChangeOptions,
}

impl AuditActor {
    /// Who has no id but its name.
    pub fn known_as(name: &str) -> Self {
        Self::new(name.to_owned(), name, None)
    }

    pub fn api_token(id: TokenId, name: &str, request_id: Option<String>) -> Self {
        Self::new(format!("api-token:{id}"), name, request_id)
    }

    /// Of which site it is, the transaction finds out: see [`super::ChangeOutcome::by_site`].
    pub fn join_token(id: TokenId, request_id: Option<String>) -> Self {
        Self::new(format!("join-token:{id}"), "join token", request_id)
    }

    pub fn node(directory: &Directory, id: NodeId, request_id: Option<String>) -> Self {
        let node = directory.nodes.get(&id);
        let name = node.map_or_else(|| id.to_string(), |node| node.name.to_string());
        let site = node.and_then(|node| directory.sites.get(&node.site));
        Self {
            site: site.map(|site| site.spec.name.to_string()),
            ..Self::new(format!("node:{id}"), &name, request_id)
        }
    }

    pub(super) fn is_node(&self) -> bool {
        self.id.starts_with("node:")
    }

    fn new(id: String, name: &str, request_id: Option<String>) -> Self {
        Self {
            id,
            name: name.to_owned(),
            site: None,
            request_id,
            options: ChangeOptions::default(),
        }
    }
}

/// How a change is asked for.
#[derive(Clone, Debug, Default)]
pub struct ChangeOptions {
    /// Whether it is not to be made, but to be told what it would do.
    pub dry_run: bool,
    /// Whether it is to be made in spite of what it does to others.
    pub force: bool,
    /// The tags of which the object has to have one.
    pub if_match: Option<String>,
    /// By what it is known should it be sent again.
    pub idempotency_key: Option<Arc<IdempotencyKey>>,
}
