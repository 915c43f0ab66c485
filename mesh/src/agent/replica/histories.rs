//! Any history of a mesh, with agents that are away, restart, hold and confirm: all end with the
//! coordinator's view, and until then each says what it lacks.

use std::cell::RefCell;

use proptest::{prelude::*, test_runner::TestCaseResult};
use wattle_wire::{
    admin::{NodeState, RemovedNode},
    enrol::{SignedStatement, Statement},
    ids::SiteId,
    lock::SignedAdmission,
    name::Name,
};

use super::*;
use crate::{
    agent::admission::{Candidate, Operator},
    config::{
        directory::{Directory, NodeRecord, RecordChange, SiteRecord},
        feed::Feed,
        view,
    },
    keys::enrolment::sign_statement,
    testing::{Keys, MESH, directory_of, next_message, node_id, respecified, words},
};

const HISTORIES: u32 = 2_048;
/// How many sites there are at most; each has its number's name, tunnel address and, at first, LAN.
const SITES: u64 = 6;
const AT_FIRST: u64 = 4;
const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 24 * HOUR_S;
/// How many messages an agent needs at most to be where the coordinator is.
const SOON: usize = 3;

/// What happens to the mesh, to the coordinator, or to one of the agents.
#[derive(Clone, Debug)]
enum Happening {
    /// A machine joins a site, which is made if there is none; the second there stands by.
    Join(u64),
    DeleteNode(u64),
    DeleteSite(u64),
    /// The site's gateway is deleted, and a new machine joins in its place.
    Replace(u64),
    /// So it is at all sites but this one.
    ReplaceAllBut(u64),
    MoveLan(u64, u64),
    SwapLans(u64, u64),
    /// The coordinator gives one LAN to two sites, which it never should.
    Clash(u64, u64),
    SwapNames(u64, u64),
    MoveEndpoint(u64, u8),
    ChangeKey(u64),
    BackUp,
    /// The newest backup takes the place of the database, and a new epoch begins.
    RestoreBackup,
    /// The coordinator restarts, and remembers only this many of the newest revisions.
    RestartCoordinator(usize),
    Listen(usize),
    AllListen,
    /// The agent starts again from its disk.
    Restart(usize),
    /// The agent starts again from what it had on its disk when it started last.
    Crash(usize),
    Confirm(usize),
    /// Somebody plays the first view of the mesh to the agent.
    Replay(usize),
    /// Somebody tells the agent that it was removed.
    LieOfRemoval(usize),
    /// An operator signs the removals of all nodes that are out of the mesh.
    SignRemovals,
    Wait(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    let site = || 1..=SITES;
    let agent = || 0..8usize;
    prop_oneof![
        3 => site().prop_map(Happening::Join),
        2 => site().prop_map(Happening::DeleteNode),
        1 => site().prop_map(Happening::DeleteSite),
        2 => site().prop_map(Happening::Replace),
        1 => site().prop_map(Happening::ReplaceAllBut),
        2 => (site(), site()).prop_map(|(from, to)| Happening::MoveLan(from, to)),
        1 => (site(), site()).prop_map(|(one, other)| Happening::SwapLans(one, other)),
        1 => (site(), site()).prop_map(|(one, other)| Happening::Clash(one, other)),
        1 => (site(), site()).prop_map(|(one, other)| Happening::SwapNames(one, other)),
        1 => (site(), any::<u8>()).prop_map(|(site, host)| Happening::MoveEndpoint(site, host)),
        1 => site().prop_map(Happening::ChangeKey),
        1 => Just(Happening::BackUp),
        1 => Just(Happening::RestoreBackup),
        1 => (0..4usize).prop_map(Happening::RestartCoordinator),
        5 => agent().prop_map(Happening::Listen),
        1 => Just(Happening::AllListen),
        2 => agent().prop_map(Happening::Restart),
        1 => agent().prop_map(Happening::Crash),
        1 => agent().prop_map(Happening::Confirm),
        1 => agent().prop_map(Happening::Replay),
        1 => agent().prop_map(Happening::LieOfRemoval),
        2 => Just(Happening::SignRemovals),
        1 => (0..30u8).prop_map(Happening::Wait),
    ]
}

/// What is done in the end about what waits: it is confirmed on each gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Confirmed,
    /// Before that, the newest backup takes the place of the database.
    TakenBack,
    /// Before that, an operator signs the removals: on no gateway with the lock anything is left to
    /// confirm.
    Signed,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Confirmed),
        Just(End::TakenBack),
        Just(End::Signed)
    ]
}

/// A gateway's agent, and what is known of its peers beside it.
struct Agent {
    replica: Replica,
    node: NodeId,
    own_key: WireguardKey,
    /// When it had each peer last.
    had: BTreeMap<NodeId, i64>,
    /// Peers that went without a confirmation, and when.
    lost: BTreeMap<NodeId, i64>,
    /// Peers that went because the coordinator removed them, and that nobody let in again.
    gone: BTreeSet<NodeId>,
    disk: Option<Disk>,
}

/// What an agent had when it was kept: its view, and all that is known beside it.
#[derive(Clone)]
struct Disk {
    view: String,
    had: BTreeMap<NodeId, i64>,
    lost: BTreeMap<NodeId, i64>,
    gone: BTreeSet<NodeId>,
}

struct World {
    feed: Feed,
    changes: Vec<(i64, Vec<RecordChange>)>,
    backup: (Directory, i64),
    first: (Directory, Position),
    /// The newest statement of each node that ever was, and the number of its key.
    statements: BTreeMap<NodeId, SignedStatement>,
    sequences: BTreeMap<NodeId, u64>,
    agents: BTreeMap<NodeId, Agent>,
    /// Of nodes and of sites.
    next_number: u64,
    now: i64,
}

thread_local! {
    static SIGNED: RefCell<BTreeMap<(u64, u64), (SignedStatement, WireguardKey)>> =
        RefCell::default();
    static ADMISSIONS: RefCell<BTreeMap<u64, SignedAdmission>> = RefCell::default();
    static REMOVALS: RefCell<BTreeMap<(NodeId, i64), SignedRemoval>> = RefCell::default();
    static RECORDS: RefCell<BTreeMap<u64, (SiteRecord, NodeRecord)>> = RefCell::default();
}

/// The statement of a node with a sequence, which has a key of its own.
fn statement(node: u64, sequence: u64) -> (SignedStatement, WireguardKey) {
    SIGNED.with_borrow_mut(|signed| {
        signed
            .entry((node, sequence))
            .or_insert_with(|| {
                let wireguard_key = Keys::of(node + sequence * 10_000).wireguard_key();
                let keys = Keys::of(node);
                let statement = Statement {
                    mesh: MESH,
                    identity: keys.identity_key(),
                    wireguard_key,
                    sequence,
                    predecessors: vec![],
                    unmanaged: false,
                };
                let signed = sign_statement(&statement, &keys.identity).unwrap();
                (signed, wireguard_key)
            })
            .clone()
    })
}

fn operator() -> Operator {
    Operator::new(&[7; 32]).unwrap()
}

/// The operator's word for a node, which two of three have.
fn admission(node: u64) -> Option<SignedAdmission> {
    let sign = || {
        let (site, record) = node_record(node);
        let prefixes = prefixes(record.tunnel_address, &[]).collect();
        let candidate = Candidate {
            name: record.name,
            site: site.spec.name,
            identity: record.identity_key,
            prefixes,
            before: None,
        };
        operator()
            .sign(MESH, &candidate, 1_700_000_000, None)
            .unwrap()
    };
    let signed = |signed: &mut BTreeMap<_, _>| signed.entry(node).or_insert_with(sign).clone();
    (!node.is_multiple_of(3)).then(|| ADMISSIONS.with_borrow_mut(signed))
}

/// The operator's word that a node is out of the mesh.
fn signed_removal(node: NodeId, signed_at: i64) -> SignedRemoval {
    REMOVALS.with_borrow_mut(|signed| {
        let removed = RemovedNode {
            id: node,
            name: None,
            site_name: None,
            identity_key: node_record(number_of(node)).1.identity_key,
            removed_at: None,
            admission: None,
            removal: None,
        };
        let sign = || {
            let candidates = operator().removal_candidates(MESH, &[removed], &[]);
            let signed = operator().sign_removal(MESH, &candidates[0], signed_at);
            signed.unwrap()
        };
        signed.entry((node, signed_at)).or_insert_with(sign).clone()
    })
}

/// The replica of an agent that knows nothing yet. The host requires the lock where the number of
/// its node is odd.
fn fresh(node: NodeId, own_key: WireguardKey) -> Replica {
    let operators = is_locked(node).then(|| BTreeSet::from([operator().key()]));
    Replica::new(MESH, own_key).locked_by(operators)
}

fn is_locked(node: NodeId) -> bool {
    number_of(node) % 2 == 1
}

/// As of the test's other meshes, made once.
fn node_record(number: u64) -> (SiteRecord, NodeRecord) {
    RECORDS.with_borrow_mut(|records| {
        let record = || crate::testing::node_record(number);
        records.entry(number).or_insert_with(record).clone()
    })
}

fn number_of(node: NodeId) -> u64 {
    u64::try_from(node.0.as_u128()).unwrap()
}

impl World {
    fn new() -> Self {
        let position = Position {
            epoch: 1,
            revision: 10,
        };
        let empty = Directory::new(directory_of(0).mesh);
        let mut world = Self {
            feed: Feed::new(empty.clone(), position, []),
            changes: vec![],
            backup: (empty.clone(), position.revision),
            first: (empty, position),
            statements: BTreeMap::new(),
            sequences: BTreeMap::new(),
            agents: BTreeMap::new(),
            next_number: 100,
            now: 1_800_000_000,
        };
        (1..=AT_FIRST).for_each(|site| world.join(site));
        world.first = (world.feed.directory().clone(), world.feed.position());
        world.back_up();
        world
    }

    fn back_up(&mut self) {
        self.backup = (self.feed.directory().clone(), self.feed.position().revision);
    }

    fn change(&mut self, changes: Vec<RecordChange>) {
        let revision = self.feed.position().revision + 1;
        self.feed.advance(revision, &changes).unwrap();
        self.changes.push((revision, changes));
    }

    /// The site with a number, by its address, whatever its name is.
    fn site(&self, number: u64) -> Option<SiteRecord> {
        let address = node_record(number).0.tunnel_address;
        let mut sites = self.feed.directory().sites.values();
        sites.find(|site| site.tunnel_address == address).cloned()
    }

    fn nodes(&self, number: u64) -> Vec<NodeRecord> {
        let site = self.site(number);
        let nodes = site
            .iter()
            .flat_map(|site| self.feed.directory().nodes_of(site.id));
        nodes.cloned().collect()
    }

    fn active(&self, number: u64) -> Option<NodeRecord> {
        let nodes = self.nodes(number).into_iter();
        nodes
            .into_iter()
            .find(|node| node.state == NodeState::Active)
    }

    fn join(&mut self, number: u64) {
        self.next_number += 1;
        let new = self.next_number;
        let (mut site, mut node) = node_record(number);
        let mut changes = vec![];
        match self.site(number) {
            Some(before) => site = before,
            None => {
                let is_taken = |lan: &_| {
                    let mut sites = self.feed.directory().sites.values();
                    sites.any(|site| site.spec.subnets.contains(lan))
                };
                site.spec.subnets.retain(|lan| !is_taken(lan));
                let names = self
                    .feed
                    .directory()
                    .sites
                    .values()
                    .map(|site| &site.spec.name);
                if names.clone().any(|name| *name == site.spec.name) {
                    site.spec.name = format!("site-{new}").parse().unwrap();
                }
                site.id = SiteId(uuid::Uuid::from_u128(u128::from(new) << 64));
                changes.push(RecordChange::Site(site.clone()));
            }
        }
        let nodes = self.nodes(number);
        if nodes.len() > 1 {
            return;
        }
        if nodes.iter().any(|node| node.state == NodeState::Active) {
            node.state = NodeState::Standby;
        }
        let its_address = |node: &NodeRecord| node.tunnel_address == site.tunnel_address;
        node.tunnel_address = if nodes.iter().any(its_address) {
            node_record(new).1.tunnel_address
        } else {
            site.tunnel_address
        };
        let (statement, own_key) = statement(new, 1);
        let id = node_id(new);
        (node.id, node.site, node.name) = (id, site.id, site.spec.name);
        node.identity_key = node_record(new).1.identity_key;
        (node.statement, node.wireguard_key) = (statement.clone(), own_key);
        self.statements.insert(id, statement);
        self.sequences.insert(id, 1);
        changes.push(RecordChange::Node(node));
        changes.extend(admission(new).map(|signed| RecordChange::Admission(id, signed)));
        self.change(changes);
        let agent = Agent {
            replica: fresh(id, own_key),
            node: id,
            own_key,
            had: BTreeMap::new(),
            lost: BTreeMap::new(),
            gone: BTreeSet::new(),
            disk: None,
        };
        self.agents.insert(id, agent);
    }

    fn delete_node(&mut self, number: u64) {
        let Some(node) = self.active(number) else {
            return;
        };
        let mut changes = vec![RecordChange::NodeRevoked(node.id)];
        let mut others = self.nodes(number).into_iter();
        if let Some(mut standby) = others.find(|other| other.id != node.id) {
            standby.state = NodeState::Active;
            changes.push(RecordChange::Node(standby));
        }
        self.change(changes);
        self.agents.remove(&node.id);
    }

    fn delete_site(&mut self, number: u64) {
        let Some(site) = self.site(number) else {
            return;
        };
        let nodes: Vec<_> = self.nodes(number).iter().map(|node| node.id).collect();
        let revoked = nodes.iter().copied().map(RecordChange::NodeRevoked);
        self.change(
            revoked
                .chain([RecordChange::SiteRemoved(site.id)])
                .collect(),
        );
        nodes.iter().for_each(|node| drop(self.agents.remove(node)));
    }

    /// Changes two sites in one revision.
    fn edit(&mut self, one: u64, other: u64, edit: impl FnOnce(&mut SiteRecord, &mut SiteRecord)) {
        if let (Some(mut one), Some(mut other)) = (self.site(one), self.site(other))
            && one.id != other.id
        {
            edit(&mut one, &mut other);
            self.change(vec![RecordChange::Site(one), RecordChange::Site(other)]);
        }
    }

    fn change_key(&mut self, number: u64) {
        let Some(node) = self.active(number) else {
            return;
        };
        let sequence = self.sequences[&node.id] + 1;
        let (statement, own_key) = statement(number_of(node.id), sequence);
        self.sequences.insert(node.id, sequence);
        self.statements.insert(node.id, statement);
        if let Some(agent) = self.agents.get_mut(&node.id) {
            agent.own_key = own_key;
            agent.replica.set_own_key(own_key);
        }
        self.state_again();
    }

    /// All nodes say again what they have signed last, where the coordinator has something older.
    fn state_again(&mut self) {
        let nodes = self.feed.directory().nodes.values();
        let is_older = |node: &&NodeRecord| self.statements[&node.id] != node.statement;
        let stated: Vec<_> = nodes
            .filter(is_older)
            .map(|node| {
                let (statement, wireguard_key) =
                    statement(number_of(node.id), self.sequences[&node.id]);
                RecordChange::Node(NodeRecord {
                    statement,
                    wireguard_key,
                    ..node.clone()
                })
            })
            .collect();
        if !stated.is_empty() {
            self.change(stated);
        }
    }

    fn restore_backup(&mut self) {
        let (directory, revision) = self.backup.clone();
        let epoch = self.feed.position().epoch + 1;
        self.feed = Feed::new(directory, Position { epoch, revision }, []);
        self.changes.clear();
        self.state_again();
    }

    fn agent(&self, number: usize) -> Option<NodeId> {
        let count = self.agents.len().max(1);
        self.agents.keys().nth(number % count).copied()
    }

    fn listen(&mut self, node: NodeId) -> TestCaseResult {
        let now = self.now;
        let since = self.agents[&node].replica.resume_from();
        let message = match next_message(&self.feed, node, since) {
            Some(message) => message,
            None if since == Some(self.feed.position()) => StreamMessage::Heartbeat {
                position: self.feed.position(),
            },
            None => return Ok(()),
        };
        let agent = self.agents.get_mut(&node).unwrap();
        let received = agent.receive(message, now)?;
        let follows = match &received {
            Received::Changed { refused } => refused.is_empty(),
            Received::Unchanged | Received::Gap => true,
            Received::Rejected(_) | Received::Bye(_) => false,
        };
        prop_assert!(follows, "{received:?}");
        self.names_all(node)
    }

    /// An operator signs the removals of all nodes that are out of the mesh: of those that the
    /// coordinator has removed, and of those that it has lost and an agent holds.
    fn sign_removals(&mut self) {
        let directory = self.feed.directory();
        let agents = self.agents.values().map(|agent| &agent.replica);
        let held = agents.flat_map(Replica::awaiting_confirmation);
        let is_out = |node: &NodeId| {
            let is_signed = directory.revoked.get(node).is_some_and(Option::is_some);
            !is_signed && !directory.nodes.contains_key(node)
        };
        let gone = directory.revoked.keys().copied();
        let gone: BTreeSet<_> = gone.chain(held).filter(is_out).collect();
        let sign = |node| RecordChange::Removal(node, signed_removal(node, self.now));
        let signed: Vec<_> = gone.into_iter().map(sign).collect();
        if !signed.is_empty() {
            self.change(signed);
        }
    }

    fn all_listen(&mut self) -> TestCaseResult {
        for node in self.agents.keys().copied().collect::<Vec<_>>() {
            if !self.feed.directory().nodes.contains_key(&node) {
                continue;
            }
            for _ in 0..SOON {
                self.listen(node)?;
            }
            let replica = &self.agents[&node].replica;
            prop_assert_eq!(replica.position(), Some(self.feed.position()));
            prop_assert!(!replica.out_of_step);
        }
        Ok(())
    }

    /// What an agent that has heard all does not have as the coordinator says, it names.
    fn names_all(&self, node: NodeId) -> TestCaseResult {
        let replica = &self.agents[&node].replica;
        if replica.out_of_step || replica.position() != Some(self.feed.position()) {
            return Ok(());
        }
        let wanted = view::view(self.feed.directory(), node).unwrap();
        let known = replica.stored().unwrap().view;
        let problems = words(replica.problems()).join("\n");
        let awaiting = replica.awaiting_confirmation();
        let is_named = |name: &Name| problems.contains(name.as_str());
        for peer in &wanted.peers {
            let as_wanted = known.peers.contains(peer) && !awaiting.contains(&peer.node);
            prop_assert!(as_wanted || is_named(&peer.name), "{peer:?}: {problems}");
        }
        for peer in &known.peers {
            let is_wanted = wanted.peers.iter().any(|wanted| wanted.node == peer.node);
            let is_told = awaiting.contains(&peer.node) && is_named(&peer.name);
            prop_assert!(is_wanted || is_told, "{peer:?}: {problems}");
        }
        for held in awaiting.iter().filter(|_| is_locked(node)) {
            let tombstone = self.feed.directory().tombstone(*held);
            let removal = tombstone.and_then(|tombstone| tombstone.removal);
            prop_assert_eq!(removal, None, "{} is held", held);
        }
        let own = known.myself == wanted.myself || is_named(&wanted.myself.name);
        prop_assert!(own, "{problems}");
        prop_assert_eq!(known.mesh, wanted.mesh);
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> TestCaseResult {
        match happening {
            Happening::Join(site) => self.join(site),
            Happening::DeleteNode(site) => self.delete_node(site),
            Happening::DeleteSite(site) => self.delete_site(site),
            Happening::Replace(site) => {
                self.delete_node(site);
                self.join(site);
            }
            Happening::ReplaceAllBut(stays) => {
                for site in (1..=SITES).filter(|site| *site != stays) {
                    if self.active(site).is_some() {
                        self.delete_node(site);
                        self.join(site);
                    }
                }
            }
            Happening::MoveLan(from, to) => {
                self.edit(from, to, |from, to| {
                    to.spec.subnets.append(&mut from.spec.subnets)
                });
            }
            Happening::SwapLans(one, other) => {
                self.edit(one, other, |one, other| {
                    std::mem::swap(&mut one.spec.subnets, &mut other.spec.subnets);
                });
            }
            Happening::Clash(one, other) => {
                self.edit(one, other, |one, other| {
                    other.spec.subnets.clone_from(&one.spec.subnets);
                });
            }
            Happening::SwapNames(one, other) => {
                self.edit(one, other, |one, other| {
                    std::mem::swap(&mut one.spec.name, &mut other.spec.name);
                });
            }
            Happening::MoveEndpoint(site, host) => {
                if let Some(mut site) = self.site(site) {
                    site.spec.endpoint = format!("198.51.100.{host}:51820").parse().ok();
                    self.change(vec![RecordChange::Site(site)]);
                }
            }
            Happening::ChangeKey(site) => self.change_key(site),
            Happening::BackUp => self.back_up(),
            Happening::RestoreBackup => self.restore_backup(),
            Happening::RestartCoordinator(remembered) => {
                let from = self.changes.len().saturating_sub(remembered);
                let newest = self.changes[from..].to_vec();
                let directory = self.feed.directory().clone();
                self.feed = Feed::new(directory, self.feed.position(), newest);
            }
            Happening::AllListen => self.all_listen()?,
            Happening::Wait(hours) => self.now += i64::from(hours) * HOUR_S,
            Happening::Listen(agent) => {
                if let Some(node) = self.agent(agent) {
                    self.listen(node)?;
                }
            }
            Happening::Restart(agent) => {
                if let Some(agent) = self.agent_mut(agent) {
                    agent.restart()?;
                }
            }
            Happening::Crash(agent) => {
                if let Some(agent) = self.agent_mut(agent) {
                    agent.crash()?;
                }
            }
            Happening::Confirm(agent) => {
                if let Some(node) = self.agent(agent) {
                    self.agents.get_mut(&node).unwrap().confirm();
                    self.names_all(node)?;
                }
            }
            Happening::Replay(number) => {
                let (directory, position) = self.first.clone();
                let now = self.now;
                if let Some(node) = self.agent(number)
                    && let Some(view) = view::view(&directory, node)
                {
                    let removed = vec![];
                    let message = StreamMessage::Snapshot {
                        position,
                        view,
                        removed,
                    };
                    self.agents.get_mut(&node).unwrap().receive(message, now)?;
                }
            }
            Happening::LieOfRemoval(agent) => {
                let now = self.now;
                if let Some(agent) = self.agent_mut(agent) {
                    let reason = ByeReason::Revoked;
                    agent.receive(StreamMessage::Bye { reason }, now)?;
                }
            }
            Happening::SignRemovals => self.sign_removals(),
        }
        Ok(())
    }

    fn agent_mut(&mut self, number: usize) -> Option<&mut Agent> {
        self.agents.get_mut(&self.agent(number)?)
    }

    /// The coordinator gives each LAN to one site.
    fn put_lans_right(&mut self) {
        let sites = (1..=SITES).filter_map(|number| {
            let subnets = node_record(number).0.spec.subnets;
            let site = self.site(number)?;
            Some(respecified(site, |spec| spec.subnets = subnets))
        });
        let sites: Vec<_> = sites.collect();
        if !sites.is_empty() {
            self.change(sites);
        }
    }
}

impl Agent {
    fn peers(&self) -> BTreeSet<NodeId> {
        let known = self.replica.known();
        let peers = known.into_iter().flat_map(|known| known.peers.keys());
        peers.copied().collect()
    }

    /// The peers that an operator has let in, where the host requires the lock.
    fn let_in(&self) -> BTreeSet<NodeId> {
        let known = self.replica.known();
        let admitted = known.and_then(|known| Some((known, known.admitted.as_ref()?)));
        let admitted = admitted.into_iter().flat_map(|(known, admitted)| {
            let peers = known.peers.values().filter(|peer| admitted.has(peer));
            peers.map(|peer| peer.peer.node)
        });
        admitted.collect()
    }

    fn receive(&mut self, message: StreamMessage, now: i64) -> Result<Received, TestCaseError> {
        let before = self.peers();
        let let_in = self.let_in();
        let removed = removed_in(&message);
        let signed = signed_in(&message).filter(|_| is_locked(self.node));
        let signed: BTreeSet<_> = signed.collect();
        let received = self.replica.receive(message, now);
        let after = self.peers();
        let gone = removed
            .iter()
            .filter(|node| before.contains(node) && !after.contains(node));
        self.gone.extend(gone);
        let back = self.gone.intersection(&after).next();
        prop_assert_eq!(back, None, "it came back, and nobody let it in");
        let lost: Vec<_> = before
            .difference(&after)
            .filter(|node| !signed.contains(node))
            .collect();
        let unsigned = lost.iter().find(|node| let_in.contains(node));
        prop_assert_eq!(unsigned, None, "no operator signed that it goes");
        self.lost.extend(lost.into_iter().map(|node| (*node, now)));
        self.had
            .extend(before.union(&after).map(|node| (*node, now)));
        let is_recent = |at: &i64| now - at < DAY_S;
        self.lost
            .retain(|node, at| is_recent(at) && !after.contains(node));
        self.had.retain(|_, at| is_recent(at));
        let (lost, had) = (self.lost.len(), self.had.len());
        let is_bounded = is_locked(self.node) || lost <= 1 || lost * 2 <= had;
        prop_assert!(is_bounded, "lost {lost} of {had}");
        Ok(received)
    }

    fn confirm(&mut self) {
        let nodes = self.replica.awaiting_confirmation();
        let back = self.replica.returned();
        self.replica.confirm(&nodes.union(&back).copied().collect());
        self.gone.retain(|node| !back.contains(node));
    }

    fn restart(&mut self) -> TestCaseResult {
        let Some(stored) = self.replica.stored() else {
            return Ok(());
        };
        let before = self.replica.clone();
        self.disk = Some(Disk {
            view: as_json(&stored),
            had: self.had.clone(),
            lost: self.lost.clone(),
            gone: self.gone.clone(),
        });
        self.crash()?;
        prop_assert_eq!(self.replica.known(), before.known());
        prop_assert_eq!(self.replica.resume_from(), before.resume_from());
        prop_assert_eq!(
            self.replica.awaiting_confirmation(),
            before.awaiting_confirmation()
        );
        prop_assert_eq!(self.replica.returned(), before.returned());
        let told = |replica: &Replica| words(replica.problems());
        prop_assert_eq!(told(&self.replica), told(&before));
        Ok(())
    }

    fn crash(&mut self) -> TestCaseResult {
        if let Some(disk) = self.disk.clone() {
            self.replica = fresh(self.node, self.own_key);
            let restored = self.replica.restore(from_json(&disk.view));
            prop_assert_eq!(restored, Ok(vec![]));
            (self.had, self.lost, self.gone) = (disk.had, disk.lost, disk.gone);
        }
        Ok(())
    }
}

/// The tombstones that a message brings.
fn tombstones_in(message: &StreamMessage) -> Vec<Tombstone> {
    match message {
        StreamMessage::Snapshot { removed, .. } => removed.clone(),
        StreamMessage::Delta { changes, .. } => {
            let changes = changes.iter().cloned();
            let tombstones = changes.filter_map(|change| match change {
                ViewChange::PeerRemoved(tombstone) => Some(tombstone),
                ViewChange::Peer(_) | ViewChange::Myself(_) | ViewChange::Mesh(_) => None,
            });
            tombstones.collect()
        }
        StreamMessage::Heartbeat { .. }
        | StreamMessage::MessagesWaiting
        | StreamMessage::Bye { .. }
        | StreamMessage::Unknown => vec![],
    }
}

fn removed_in(message: &StreamMessage) -> Vec<NodeId> {
    let tombstones = tombstones_in(message).into_iter();
    tombstones.map(|tombstone| tombstone.node).collect()
}

/// The nodes whose removal a message brings signed.
fn signed_in(message: &StreamMessage) -> impl Iterator<Item = NodeId> + use<> {
    let signed = tombstones_in(message).into_iter();
    signed.filter_map(|tombstone| tombstone.removal.map(|_| tombstone.node))
}

fn as_json(stored: &Stored) -> String {
    serde_json::to_string(stored).unwrap()
}

fn from_json(view: &str) -> Stored {
    serde_json::from_str(view).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(HISTORIES))]

    #[test]
    fn after_any_history_each_agent_has_the_coordinators_view_once_what_it_names_is_confirmed_or_taken_back(
        history in prop::collection::vec(happening(), 0..36),
        end in end(),
    ) {
        live(history, end)?;
    }
}

fn live(history: Vec<Happening>, end: End) -> TestCaseResult {
    let mut world = World::new();
    world.all_listen()?;
    for happening in history {
        world.happen(happening)?;
    }
    if end == End::TakenBack {
        world.restore_backup();
    }
    world.put_lans_right();
    world.all_listen()?;
    if end == End::Signed {
        world.sign_removals();
        world.all_listen()?;
    }
    for (node, agent) in &mut world.agents {
        if !world.feed.directory().nodes.contains_key(node) {
            continue;
        }
        let is_back = !agent.replica.returned().is_empty();
        if end != End::Signed || !is_locked(*node) || is_back {
            agent.confirm();
        }
        let replica = &agent.replica;
        let (wanted, stored) = (view::view(world.feed.directory(), *node), replica.stored());
        prop_assert_eq!(stored.map(|stored| stored.view), wanted);
        prop_assert_eq!(words(replica.problems()), Vec::<String>::new());
        prop_assert!(replica.contested.is_empty() && replica.refused.is_empty());
        prop_assert_eq!(replica.awaiting_confirmation(), BTreeSet::new());
        prop_assert_eq!(replica.returned(), BTreeSet::new());
        let owners = replica.known().map(Ownership::of);
        prop_assert_eq!(owners.as_ref(), Some(&replica.ownership));
    }
    Ok(())
}

/// Each ended badly when something of what it takes was missing.
#[test]
fn histories_that_ended_badly_once_end_well() {
    use Happening::*;

    for (missing, history, end) in [
        (
            "newcomers wait, and not the revision",
            vec![
                Join(1),
                Join(1),
                Replace(1),
                RestartCoordinator(0),
                Listen(0),
            ],
            End::TakenBack,
        ),
        (
            "removals count over 24 hours",
            vec![
                Join(5),
                DeleteNode(1),
                Replace(2),
                DeleteSite(3),
                Listen(4),
                DeleteSite(2),
                Listen(5),
                LieOfRemoval(1),
            ],
            End::Confirmed,
        ),
        (
            "after a lie of its removal an agent asks for a snapshot",
            vec![
                Join(6),
                Clash(1, 6),
                Listen(5),
                SwapNames(1, 2),
                LieOfRemoval(0),
                Listen(5),
            ],
            End::Confirmed,
        ),
        (
            "and so it does when it was played an old view before",
            vec![
                Join(3),
                Join(1),
                Listen(6),
                Replay(6),
                LieOfRemoval(6),
                Confirm(0),
            ],
            End::Confirmed,
        ),
        (
            "all others are replaced while one is away",
            vec![
                ReplaceAllBut(1),
                Listen(0),
                Restart(0),
                Confirm(0),
                Listen(0),
            ],
            End::Confirmed,
        ),
        (
            "a signed removal waits for nothing, and what inherits from it neither",
            vec![ReplaceAllBut(1), SignRemovals],
            End::Signed,
        ),
        (
            "a signature that comes later confirms what is held",
            vec![ReplaceAllBut(1), Listen(0), Restart(0)],
            End::Signed,
        ),
        (
            "so it does of a node that is held as removed and that the database has lost",
            vec![
                Replace(5),
                Listen(7),
                RestoreBackup,
                DeleteNode(1),
                LieOfRemoval(1),
            ],
            End::Signed,
        ),
    ] {
        let lived = live(history, end);
        assert!(lived.is_ok(), "{missing}: {lived:?}");
    }
}
