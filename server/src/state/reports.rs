//! What nodes say of themselves and their links, in memory and on its way to the database.

mod numbers;
mod queries;
mod returned;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout},
};
use wattle_mesh::{
    audit::{Edit, Subject},
    config::{directory::NodeRecord, endpoint_check},
    health::{
        connection::{self, Sign},
        lan::LanEnd,
    },
};
use wattle_wire::{
    admin::{NodeConnection, NodeProblem, NodeReport},
    endpoint::Endpoint,
    ids::{NodeId, Position},
    report::{Held, HeldPeer, LinkReport, Problem, Report, Start},
};

use self::{
    numbers::Numbers,
    queries::{EndSaid, Heard, News, StoredNews},
    returned::Returned,
};
use crate::{
    db::{AuditActor, Db, audit_log, node_records, site_records},
    error::{self, Error, Result},
};

/// The event of a node that reports from two machines.
const COPIED: &str = "node.copied";
/// An age over ten years is as good as ten years, and keeps every calculation within its range.
const LONGEST_AGE_S: u64 = 10 * 365 * 24 * 3600;
/// Reports that are taken in at a time; each may hold its largest size of memory.
const AT_A_TIME: usize = 256;
/// How long a report waits for its turn before it is sent away.
const TURN: Duration = Duration::from_secs(1);
/// How often what nodes said is written to the database.
const WRITE: Duration = Duration::from_millis(250);
/// Link ends that wait to be written, about 100 bytes each. A report that would bring more is sent
/// away.
const MOST_WAITING: usize = 500_000;
/// How often it is read what nodes hold that report to other coordinators.
const READ: Duration = Duration::from_secs(5);
/// How often a node is noted as heard of.
const HEARD: Duration = Duration::from_secs(50);
/// For how long this coordinator believes that the database still has what it wrote of a node's
/// links: another coordinator may have written since then.
const TRUST: Duration = Duration::from_secs(15 * 60);

/// What nodes last said, in the memory of this coordinator, and what of it is yet to be written to
/// the database.
#[derive(Debug)]
pub struct Reports {
    said: Mutex<HashMap<NodeId, Said>>,
    waiting: Mutex<News>,
    /// Held while it is written, so that what was said first is written first.
    writing: tokio::sync::Mutex<()>,
    turns: Semaphore,
    /// Nodes whose keys two machines have.
    copied: Mutex<BTreeSet<NodeId>>,
    /// What all coordinators tell of nodes: as nodes said here, and otherwise as the database has
    /// it. Those of whom there is nothing to tell are left out.
    accounts: Mutex<BTreeMap<NodeId, Account>>,
    returned: Mutex<Returned>,
    numbers: Numbers,
    signs: Mutex<Signs>,
}

/// What all coordinators tell of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Peers that its host has only until somebody confirms that they go.
    pub held: Option<Held>,
    /// Whether its host requires the lock.
    pub locked: bool,
    /// Nodes that it knows as removed, and that take part.
    pub returned: BTreeSet<NodeId>,
    pub problems: Vec<NodeProblem>,
}

/// The last signs of nodes that any coordinator had.
#[derive(Debug, Default)]
pub struct Signs {
    /// With the position that each host had then.
    pub of: BTreeMap<NodeId, (Sign, Position)>,
    /// Since when nodes can be heard here; absent before anything was read.
    pub listening_since: Option<DateTime<Utc>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            waiting: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            turns: Semaphore::new(AT_A_TIME),
            copied: Mutex::default(),
            accounts: Mutex::default(),
            returned: Mutex::default(),
            numbers: Numbers::default(),
            signs: Mutex::default(),
        }
    }
}

#[derive(Debug)]
struct Said {
    report: NodeReport,
    links: BTreeMap<NodeId, LinkDetail>,
    /// When it was last noted as heard of.
    heard: Option<Instant>,
    start: Option<Start>,
    /// Since when what it says of its links is compared with what it said before; absent means that
    /// all of it is news.
    trusted: Option<Instant>,
}

/// What one end of a link last said of it.
#[derive(Clone, Copy, Debug)]
pub struct LinkDetail {
    pub at: DateTime<Utc>,
    pub last_handshake_at: Option<DateTime<Utc>>,
    pub said: LinkReport,
}

impl Reports {
    /// Takes a turn to take a report in.
    ///
    /// # Errors
    ///
    /// 429 when none comes within a second.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>> {
        let turn = timeout(TURN, self.turns.acquire()).await;
        turn.ok()
            .and_then(std::result::Result::ok)
            .ok_or_else(|| error::busy().into())
    }

    /// What a node last said of itself.
    pub fn last(&self, node: NodeId) -> Option<NodeReport> {
        self.lock().get(&node).map(|said| said.report.clone())
    }

    /// What a node last said of its link with another.
    pub fn link(&self, node: NodeId, peer: NodeId) -> Option<LinkDetail> {
        self.lock().get(&node)?.links.get(&peer).copied()
    }

    /// What all coordinators tell of a node.
    pub fn account(&self, node: NodeId) -> Account {
        self.accounts().get(&node).cloned().unwrap_or_default()
    }

    /// The nodes whose hosts require the lock, and whom they hold.
    pub fn locked(&self) -> BTreeMap<NodeId, Option<Held>> {
        let accounts = self.accounts();
        let locked = accounts.iter().filter(|(_, account)| account.locked);
        let held = |(node, account): (&NodeId, &Account)| (*node, account.held.clone());
        locked.map(held).collect()
    }

    /// All peers that hosts hold.
    pub fn held(&self) -> Vec<HeldPeer> {
        let accounts = self.accounts();
        let held = accounts
            .values()
            .filter_map(|account| account.held.as_ref());
        held.flat_map(|held| held.peers.iter().cloned()).collect()
    }

    /// How many nodes hold something.
    pub fn count_holding(&self) -> usize {
        let accounts = self.accounts();
        let holding = accounts.values().filter(|account| account.held.is_some());
        holding.count()
    }

    /// Whether a node was heard of here within such a time.
    pub fn is_heard(&self, node: NodeId, within: Duration) -> bool {
        let age = |said: &Said| (Utc::now() - said.report.at).to_std().unwrap_or_default();
        self.lock()
            .get(&node)
            .is_some_and(|said| age(said) <= within)
    }

    /// Whether a peer says that it has met a node at this endpoint.
    pub fn is_met(&self, node: NodeId, endpoint: Endpoint) -> bool {
        self.lock()
            .values()
            .filter_map(|said| said.links.get(&node))
            .any(|link| endpoint_check::is_met(endpoint, &link.said))
    }

    /// Takes in which signs of nodes all coordinators had.
    pub fn note_signs(&self, signs: Signs) {
        *self.signs() = signs;
    }

    /// Whether a node with an agent is there, by the signs that all coordinators had.
    pub fn connection(&self, node: NodeId, enrolled_at: DateTime<Utc>) -> NodeConnection {
        let now = Utc::now();
        // What it said here may be newer than what the database has of it.
        let applied = self.lock().get(&node).map(|said| said.report.applied);
        let signs = self.signs();
        let sign = signs.of.get(&node).map(|(sign, known)| Sign {
            missed_since: sign
                .missed_since
                .filter(|_| applied.is_none_or(|own| own <= *known)),
            ..*sign
        });
        connection::connection(enrolled_at, sign, signs.listening_since.unwrap_or(now), now)
    }

    /// A node as an end of links, for how the LANs behind it are.
    pub fn lan_end<'a>(&self, record: &NodeRecord, account: &'a Account) -> LanEnd<'a> {
        let has_agent = record.unmanaged.is_none();
        LanEnd {
            node: record.id,
            connection: has_agent.then(|| self.connection(record.id, record.enrolled_at)),
            problems: &account.problems,
        }
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets nodes that do not take part any more.
    pub fn retain(&self, takes_part: impl Fn(NodeId) -> bool) {
        self.copied().retain(|node| takes_part(*node));
        self.numbers.retain(&takes_part);
        let mut accounts = self.accounts();
        accounts.retain(|node, _| takes_part(*node));
        for account in accounts.values_mut() {
            account.returned.retain(|node| takes_part(*node));
        }
        self.note_all_returned(&accounts);
        drop(accounts);
        let mut said = self.lock();
        said.retain(|node, _| takes_part(*node));
        said.values_mut()
            .for_each(|said| said.links.retain(|peer, _| takes_part(*peer)));
    }

    /// The node comes from elsewhere, where it may have said other things: its next account is
    /// written whatever it said here before.
    pub fn distrust(&self, node: NodeId) {
        if let Some(said) = self.lock().get_mut(&node) {
            (said.heard, said.trusted) = (None, None);
        }
    }

    /// Writes what nodes say, again and again, and reads what they said elsewhere. What is lost when
    /// the coordinator dies is said again: each node gives its whole account to the coordinator that
    /// it turns to.
    pub async fn write_on(&self, db: &Db) {
        let (mut away, mut read) = (false, None::<Instant>);
        loop {
            sleep(WRITE).await;
            let exchanged = async {
                self.write(db).await?;
                if read.is_none_or(|read| read.elapsed() >= READ) {
                    self.read_accounts(db).await?;
                    read = Some(Instant::now());
                }
                Ok::<_, Error>(())
            };
            match exchanged.await {
                Ok(()) => away = false,
                Err(error) => {
                    if !mem::replace(&mut away, true) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "cannot exchange reports with the database; trying again"
                        );
                    }
                }
            }
        }
    }

    /// Writes what waits. What cannot be written goes on waiting, unless it was overtaken.
    pub async fn write(&self, db: &Db) -> Result<()> {
        let _alone = self.writing.lock().await;
        let news = mem::take(&mut *self.waiting());
        let written = async {
            let mut transaction = db.report().await?;
            let stored = queries::store(&mut transaction, &news).await?;
            transaction.commit().await?;
            Ok(stored)
        };
        match written.await {
            Ok(StoredNews { copied, late }) => {
                self.take_back(db, &late).await?;
                for node in copied {
                    self.tell_copied(db, node).await?;
                }
                self.tell_returned(db).await
            }
            Err(error) => {
                let mut waiting = self.waiting();
                let overtaken = mem::replace(&mut *waiting, news);
                waiting.extend(overtaken);
                Err(error)
            }
        }
    }

    /// Reads what nodes say of themselves, whichever coordinator they said it to.
    pub async fn read_accounts(&self, db: &Db) -> Result<()> {
        // Nothing is being written meanwhile: what does not wait is in the database.
        let _alone = self.writing.lock().await;
        let read = queries::accounts(&mut *db.follow().await?).await?;
        let waiting = self.waiting();
        let is_told = |node: &NodeId| waiting.heard.contains_key(node);
        let mut accounts = self.accounts();
        accounts.retain(|node, _| is_told(node));
        accounts.extend(read.into_iter().filter(|(node, _)| !is_told(node)));
        self.note_all_returned(&accounts);
        Ok(())
    }

    /// Two machines have the keys of a node: says so in the audit log once, and in the metrics
    /// until it is revoked.
    async fn tell_copied(&self, db: &Db, node: NodeId) -> Result<()> {
        if self.copied().contains(&node) {
            return Ok(());
        }
        let actor = AuditActor::known_as("coordinator");
        let told = db.mutate(&actor, |mut change| async move {
            let record = node_records::find(&mut change, node).await?;
            let is_told = audit_log::is_told(&mut change, COPIED, &node.to_string()).await?;
            let Some(record) = record.filter(|_| !is_told) else {
                return Ok(change.unchanged(()));
            };
            let site = site_records::name(&mut change, record.site).await?;
            let subject = Subject::node(&site, Edit::Same(&record));
            Ok(change.changed((), Vec::new(), COPIED, subject))
        });
        told.await?;
        tracing::warn!(%node, "two machines have the keys of this node, or an older state \
            directory was restored. Revoke the node and join it again");
        self.copied().insert(node);
        Ok(())
    }

    /// How many nodes are known to have their keys on two machines.
    pub fn count_copied(&self) -> usize {
        self.copied().len()
    }

    /// Keeps what a node said; what of it is new waits to be written.
    ///
    /// # Errors
    ///
    /// 409 when a newer report is known, 429 when too much waits already.
    pub fn keep(
        &self,
        node: NodeId,
        report: Report,
        links: BTreeMap<NodeId, LinkReport>,
    ) -> Result<()> {
        let Report {
            applied,
            device,
            mtu,
            links: _,
            problems,
            held,
            returned,
            locked,
            keys_in_place: armed,
            start,
            number,
        } = report;
        let (at, now) = (Utc::now(), Instant::now());
        let report = NodeReport {
            at,
            applied,
            device,
            mtu,
        };
        let told = self.account(node);
        let account = Account {
            held,
            locked,
            returned,
            problems: since(problems, &told.problems, at),
        };
        let mut all = self.lock();
        self.numbers.check(node, number)?;
        let before = all.get(&node);
        let trusted = before
            .and_then(|said| said.trusted)
            .filter(|trusted| now - *trusted < TRUST);
        let is_known = |said: &&Said| said.start == start && told == account;
        let heard = before
            .filter(is_known)
            .and_then(|said| said.heard)
            .filter(|heard| now - *heard < HEARD);
        let known = |peer| {
            before
                .filter(|_| trusted.is_some())?
                .links
                .get(&peer)
                .map(|detail| EndSaid::of(&detail.said))
        };
        let news = links
            .values()
            .map(EndSaid::of)
            .filter(|state| known(state.peer) != Some(*state));
        let news: Vec<_> = news.map(|state| ((node, state.peer), state)).collect();
        let mut waiting = self.waiting();
        if waiting.ends.len() + news.len() > MOST_WAITING {
            return Err(error::busy().into());
        }
        if !(news.is_empty() && armed.is_empty() && heard.is_some()) {
            waiting.numbers.insert(node, number);
        }
        waiting.ends.extend(news);
        let armed = armed.into_iter();
        let armed = armed.map(|key| ((node, key.peer, key.sequence), key.signature));
        waiting.armed.extend(armed);
        if heard.is_none() {
            let heard = Heard {
                start,
                applied: report.applied,
                account: account.clone(),
            };
            waiting.heard.insert(node, heard);
        }
        self.note_account(node, account);
        drop(waiting);
        if let Some(number) = number {
            self.numbers.note(node, number);
        }
        let said = all.entry(node).or_insert_with(|| Said {
            report: report.clone(),
            links: BTreeMap::new(),
            heard,
            start,
            trusted,
        });
        (said.report, said.heard, said.start, said.trusted) =
            (report, heard.or(Some(now)), start, trusted.or(Some(now)));
        said.links.extend(links.into_iter().map(|(peer, said)| {
            let age = said
                .handshake_age_s
                .map(|age| TimeDelta::seconds(age.min(LONGEST_AGE_S).cast_signed()));
            (
                peer,
                LinkDetail {
                    at,
                    last_handshake_at: age.map(|age| at - age),
                    said,
                },
            )
        }));
        Ok(())
    }

    /// Keeps what is told of a node from now on.
    fn note_account(&self, node: NodeId, account: Account) {
        let mut accounts = self.accounts();
        let before = accounts.remove(&node).unwrap_or_default();
        self.note_returned(node, &before.returned, &account.returned);
        if account != Account::default() {
            accounts.insert(node, account);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copied(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<NodeId, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, News> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Since when a node has each of its problems, which it had `before` or has since `now`. Of two that
/// are the same the first counts.
fn since(problems: Vec<Problem>, before: &[NodeProblem], now: DateTime<Utc>) -> Vec<NodeProblem> {
    let is_same = |one: &Problem, other: &Problem| {
        (one.code, &one.subject, one.peer) == (other.code, &other.subject, other.peer)
    };
    let mut known: Vec<NodeProblem> = Vec::with_capacity(problems.len());
    for problem in problems {
        if known.iter().any(|known| is_same(&known.problem, &problem)) {
            continue;
        }
        let had = before.iter().find(|had| is_same(&had.problem, &problem));
        let since = had.map_or(now, |had| had.since);
        known.push(NodeProblem { problem, since });
    }
    known
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wattle_wire::report::DeviceKind;

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId(Uuid::from_u128(u128::from(number)))
    }

    #[test]
    fn c7_more_than_can_be_written_is_sent_away_and_what_is_no_news_is_not() {
        let reports = Reports::default();
        let keep = |from: u64, peers: u64| {
            let link = |peer| LinkReport {
                peer,
                handshake_age_s: Some(1),
                received_bytes: 0,
                sent_bytes: 0,
                endpoint: None,
                probe: None,
            };
            let links = (1..=peers)
                .map(|peer| (node(peer), link(node(peer))))
                .collect();
            let applied = "1.1".parse().unwrap();
            let report = Report {
                applied,
                device: Some(DeviceKind::Kernel),
                mtu: None,
                links: vec![],
                problems: vec![],
                held: None,
                returned: BTreeSet::new(),
                locked: false,
                keys_in_place: vec![],
                start: None,
                number: None,
            };
            reports.keep(node(from), report, links)
        };
        for from in 0..500 {
            keep(from, 1_000).unwrap();
        }
        assert_eq!(reports.waiting().ends.len(), MOST_WAITING);
        assert!(keep(500, 1).is_err());
        assert!(
            reports.last(node(500)).is_none(),
            "what is sent away leaves nothing"
        );
        keep(7, 1_000).unwrap();
        keep(501, 0).unwrap();
    }
}
