//! Nodes that gateways know as removed: a restored database has brought them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{MutexGuard, PoisonError},
};

use wattle_mesh::{
    audit::{Edit, Subject},
    config::directory::Directory,
};
use wattle_wire::{admin::SomeNodes, ids::NodeId};

use super::{Account, Reports};
use crate::{
    db::{AuditActor, Db, audit_log, node_records, site_records},
    error::Result,
};

/// The event of a node that is back.
const RETURNED: &str = "node.returned";

/// Nodes that are back, by what gateways say.
#[derive(Debug, Default)]
pub(super) struct Returned {
    said_by: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Those of which the audit log has it.
    told: BTreeSet<NodeId>,
}

impl Reports {
    /// The gateways that know a node as removed; `None` if there are none.
    pub fn removed_on(&self, node: NodeId, directory: &Directory) -> Option<SomeNodes> {
        let returned = self.returned();
        let said_by = returned.said_by.get(&node)?.iter();
        let names = said_by.filter_map(|by| Some(directory.nodes.get(by)?.name.clone()));
        Some(SomeNodes::of(names.collect())).filter(|nodes| nodes.count > 0)
    }

    /// A node says that others are back than it said before.
    pub(super) fn note_returned(
        &self,
        by: NodeId,
        before: &BTreeSet<NodeId>,
        now: &BTreeSet<NodeId>,
    ) {
        if before == now {
            return;
        }
        let mut returned = self.returned();
        for node in before.difference(now) {
            if let Some(said_by) = returned.said_by.get_mut(node) {
                said_by.remove(&by);
            }
        }
        for node in now.difference(before) {
            returned.said_by.entry(*node).or_default().insert(by);
        }
        returned.said_by.retain(|_, said_by| !said_by.is_empty());
    }

    /// As [`Reports::note_returned`], of all that is known.
    pub(super) fn note_all_returned(&self, accounts: &BTreeMap<NodeId, Account>) {
        let mut said_by: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (by, account) in accounts {
            for node in &account.returned {
                said_by.entry(*node).or_default().insert(*by);
            }
        }
        self.returned().said_by = said_by;
    }

    /// Says once in the audit log which nodes are back.
    pub(super) async fn tell_returned(&self, db: &Db) -> Result<()> {
        let news: Vec<_> = {
            let returned = self.returned();
            let nodes = returned.said_by.iter();
            let is_new = |node: &NodeId| !returned.told.contains(node);
            let news = nodes.filter(|(node, _)| is_new(node));
            news.filter_map(|(node, by)| Some((*node, *by.first()?)))
                .collect()
        };
        let actor = AuditActor::known_as("coordinator");
        for (node, by) in news {
            let told = db.mutate(&actor, |mut change| async move {
                let record = node_records::find(&mut change, node).await?;
                let object = node.to_string();
                let is_told = audit_log::is_told(&mut change, RETURNED, &object).await?;
                let Some(record) = record.filter(|_| !is_told) else {
                    return Ok(change.unchanged(()));
                };
                let site = site_records::name(&mut change, record.site).await?;
                let subject = Subject::node(&site, Edit::Same(&record));
                Ok(change.changed((), Vec::new(), RETURNED, subject))
            });
            told.await?;
            tracing::warn!(%node, %by, "a gateway knows this node as removed: the database has it \
                again, as after a restored backup. Revoke it again unless it is to be back");
            self.returned().told.insert(node);
        }
        Ok(())
    }

    fn returned(&self) -> MutexGuard<'_, Returned> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
