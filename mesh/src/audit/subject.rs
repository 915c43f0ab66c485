//! What an event is about: its id, its name, its site, and what became of it.
//!
//! Which fields get into the audit log is said here, one by one: nothing that is not named here is
//! written, so no secret is. Of a site it is all that the API takes and shows.

use serde_json::{Value, json};
use wattle_wire::{
    admin::{ApiToken, FieldChange, JoinToken, Removed},
    ids::NodeId,
    lock::{Admission, Removal, SignedAdmission},
    name::Name,
    peer::MeshSettings,
};

use super::difference::difference;
use crate::config::directory::{NodeRecord, SiteRecord};

/// What was changed, as people know it, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub id: String,
    pub name: String,
    /// The site that it belongs to, by the name that it has now.
    pub site: Option<String>,
    pub changes: Vec<FieldChange>,
}

/// What became of an object.
#[derive(Clone, Copy, Debug)]
pub enum Edit<'e, T> {
    Made(&'e T),
    Changed {
        before: &'e T,
        after: &'e T,
    },
    Gone(&'e T),
    /// Something happened, but the object is as it was.
    Same(&'e T),
}

impl<T> Edit<'_, T> {
    /// As it is, or as it was when it went.
    fn last(&self) -> &T {
        match self {
            Self::Made(object) | Self::Gone(object) | Self::Same(object) => object,
            Self::Changed { after, .. } => after,
        }
    }

    fn difference(&self, fields: impl Fn(&T) -> Value) -> Vec<FieldChange> {
        match self {
            Self::Made(after) => difference(&Value::Null, &fields(after)),
            Self::Changed { before, after } => difference(&fields(before), &fields(after)),
            Self::Gone(before) => difference(&fields(before), &Value::Null),
            Self::Same(_) => Vec::new(),
        }
    }
}

impl Subject {
    /// Something that has no fields.
    pub fn new(id: impl ToString, name: impl ToString) -> Self {
        Self {
            id: id.to_string(),
            name: name.to_string(),
            site: None,
            changes: Vec::new(),
        }
    }

    pub fn in_site(self, site: &Name) -> Self {
        Self {
            site: Some(site.to_string()),
            ..self
        }
    }

    pub fn mesh(before: &MeshSettings, after: &MeshSettings) -> Self {
        let fields = |mesh: &MeshSettings| {
            json!({
                "psk": mesh.psk,
                "rotate_days": mesh.rotate_days,
                "probes": mesh.health.probes,
                "lossy_percent": mesh.health.lossy_percent,
                "slow_ms": mesh.health.slow_ms,
            })
        };
        Self {
            changes: Edit::Changed { before, after }.difference(fields),
            ..Self::new("mesh", "mesh")
        }
    }

    pub fn site(edit: Edit<'_, SiteRecord>) -> Self {
        let site = edit.last();
        Self {
            changes: edit.difference(|site| {
                let mut fields = json!(site.spec);
                fields["tunnel_address"] = json!(site.tunnel_address);
                fields
            }),
            site: Some(site.spec.name.to_string()),
            ..Self::new(site.id, &site.spec.name)
        }
    }

    pub fn node(site: &Name, edit: Edit<'_, NodeRecord>) -> Self {
        let node = edit.last();
        Self {
            changes: edit.difference(|node| {
                let check = node.endpoint_check.as_ref();
                json!({
                    "name": node.name,
                    "name_follows_site": node.name_follows_site,
                    "state": node.state,
                    "tunnel_address": node.tunnel_address,
                    "endpoint": node.endpoint,
                    "endpoint_met": node.endpoint.map(|_| check.is_none()),
                    "endpoint_tried_by": check.and_then(|check| check.by),
                    "identity_key": node.identity_key,
                    "wireguard_key": node.wireguard_key,
                    "next_key_announced_at": node.announced.as_ref().map(|next| next.at),
                    "new_key_asked_for_at": node.rotate_since,
                    "agent_version": node.agent_version,
                    "file_made_at": node.unmanaged.as_ref().map(|file| file.file_made_at),
                })
            }),
            site: Some(site.to_string()),
            ..Self::new(node.id, &node.name)
        }
    }

    /// A node that is removed, and the gateways that keep it until an operator signs that.
    pub fn revoked(site: &Name, node: &NodeRecord, removed: &Removed) -> Self {
        let mut subject = Self::node(site, Edit::Gone(node));
        let waits = &removed.waits_for_signature;
        if waits.count > 0 {
            subject.changes.push(FieldChange {
                field: "stays_until_signed_on".to_owned(),
                before: json!(waits.to_string()),
                after: Value::Null,
            });
        }
        subject
    }

    /// A node of which an operator confirms that it is gone, and what that operator, or another,
    /// signed of it before.
    pub fn removal(node: NodeId, name: &Name, before: Option<&str>, after: &Removal) -> Self {
        let fields = |removal: &Removal| {
            json!({
                "operator": removal.operator,
                "signed_at": removal.signed_at,
            })
        };
        let before = before.and_then(|text| serde_json::from_str(text).ok());
        let before = before.as_ref().map_or(Value::Null, fields);
        Self {
            changes: difference(&before, &fields(after)),
            ..Self::new(node, name)
        }
    }

    /// A node that an operator admits, and the admission that it had before.
    pub fn admission(
        node: (impl ToString, &Name),
        site: &Name,
        before: Option<&str>,
        after: &SignedAdmission,
    ) -> Self {
        // Not all of it: the mesh is this one, and the identity is the node's.
        let fields = |text: &str| match serde_json::from_str::<Admission>(text) {
            Ok(admission) => json!({
                "operator": admission.operator,
                "prefixes": admission.prefixes,
                "signed_at": admission.signed_at,
                "ends_at": admission.ends_at,
            }),
            Err(_) => Value::Null,
        };
        let before = before.map_or(Value::Null, fields);
        Self {
            changes: difference(&before, &fields(&after.admission)),
            site: Some(site.to_string()),
            ..Self::new(node.0, node.1)
        }
    }

    pub fn api_token(edit: Edit<'_, ApiToken>) -> Self {
        let token = edit.last();
        Self {
            changes: edit.difference(|token| {
                json!({"name": token.name, "role": token.role, "expires_at": token.expires_at})
            }),
            ..Self::new(token.id, &token.name)
        }
    }

    pub fn join_token(site: &Name, edit: Edit<'_, JoinToken>) -> Self {
        let token = edit.last();
        Self {
            changes: edit.difference(
                |token| json!({"uses_left": token.uses_left, "expires_at": token.expires_at}),
            ),
            site: Some(site.to_string()),
            ..Self::new(token.id, site)
        }
    }

    /// A webhook, of which only scheme, host and port are told: the rest of its URL may be all that
    /// it takes to post there.
    pub fn webhook(id: impl ToString, origin: &str, is_made: bool) -> Self {
        let fields = json!({"url": format!("{origin}/…")});
        let (before, after) = match is_made {
            true => (Value::Null, fields),
            false => (fields, Value::Null),
        };
        Self {
            changes: difference(&before, &after),
            ..Self::new(id, origin)
        }
    }
}
