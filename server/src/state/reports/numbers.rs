//! The numbers of reports: one that is late, or sent again, changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::Utc;
use wattle_mesh::agent::reporting::{self, ReportRefused};
use wattle_wire::ids::NodeId;

use super::{Reports, queries};
use crate::{
    db::Db,
    error::{self, ErrorCode, Result},
};

/// The highest number of each node's reports, as far as this coordinator knows. What a node told
/// another one is found out when its report is written.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<HashMap<NodeId, i64>>);

impl Numbers {
    /// # Errors
    ///
    /// When a report with this number is not to be taken.
    pub(super) fn check(&self, node: NodeId, number: Option<i64>) -> Result<()> {
        let newest = self.lock().get(&node).copied();
        let now_ms = Utc::now().timestamp_millis();
        reporting::check_number(number, newest, now_ms).map_err(|why| match why {
            ReportRefused::Late => error::late_report().into(),
            ReportRefused::Future => {
                error::invalid(ErrorCode::InvalidField, "number", why.to_string()).into()
            }
        })
    }

    pub(super) fn note(&self, node: NodeId, number: i64) {
        self.lock().insert(node, number);
    }

    pub(super) fn retain(&self, takes_part: impl Fn(NodeId) -> bool) {
        self.lock().retain(|node, _| takes_part(*node));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reports {
    /// Takes back what nodes said in reports that turned out to be late, with the numbers that the
    /// database has of them. What they said to other coordinators counts.
    pub(super) async fn take_back(&self, db: &Db, late: &BTreeMap<NodeId, i64>) -> Result<()> {
        if late.is_empty() {
            return Ok(());
        }
        // One that has said more in the meantime is judged by that.
        let waits = |node: &NodeId| self.waiting().numbers.contains_key(node);
        let late: BTreeMap<_, _> = late.iter().filter(|(node, _)| !waits(node)).collect();
        for (node, number) in &late {
            tracing::debug!(%node, number, "a report came late, or was sent again");
            self.numbers.note(**node, **number);
        }
        self.lock().retain(|node, _| !late.contains_key(node));
        let mut accounts = queries::accounts(&mut *db.follow().await?).await?;
        for node in late.into_keys() {
            let account = accounts.remove(node).unwrap_or_default();
            self.note_account(*node, account);
        }
        Ok(())
    }
}
