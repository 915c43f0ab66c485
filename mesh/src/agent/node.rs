//! A node without IO: what the agent decides, and in which order.
//!
//! The shell around it gives an [`Input`] for each thing that happens, then takes every [`Output`]
//! with [`LocalNode::poll_output`] and carries it out, one after the other. It wakes the node with
//! [`Input::Timer`] at [`LocalNode::poll_timeout`] at the latest. Time comes with each input; random
//! numbers come from [`Secrets`].
//!
//! After each input the node does what there is to do in this order:
//!
//! 1. What is to be on disk before anything else is saved.
//! 2. The host follows the view: observe, plan, apply, observe again.
//! 3. The view is saved, after the host has followed it: a view that makes the agent crash is not
//!    what it starts from.
//! 4. The coordinator is asked and told: another identity, preshared keys, another WireGuard key.
//! 5. A report is sent. It never says that the host has what it does not have yet.

mod host;
mod inbox;
mod keys;
mod problems;
mod report;
mod round;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use wattle_wire::{
    endpoint::Endpoint,
    enrol::SignedStatement,
    ids::{MeshId, NodeId},
    key::WireguardKey,
    psk::MailboxRequest,
    report::{ProbeReport, Problem, Report, Start},
    rotation::RotationStep,
    stream::StreamMessage,
};

pub use self::{
    host::{Failure, Judge, Judgement, Look, Observation, Unobserved},
    keys::{KeysAsked, RotatedKey, Secrets},
    round::OBSERVE_INTERVAL,
};
use self::{
    keys::{KeyChange, PskKeeper},
    report::Reporter,
    round::Round,
};
use crate::{
    agent::{
        guard::{Guard, Refused},
        replica::{Known, Replica, Stored},
    },
    diagnose::lan::Served,
    health::{own_endpoint::OwnEndpoint, replies::Replies},
    host::{
        interface::InterfaceName,
        plan::Step,
        state::{Observed, ObservedPeer},
    },
    keys::{
        identity_rotation::IdentityReply,
        node_keys::NodeKeys,
        psk::{exchange::Exchange, mailbox::MailboxReply},
        rotation::{RotationReply, canary::Watch},
    },
};

/// When something happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since the node was started, by a clock that only goes forward.
    pub elapsed: Duration,
    /// Seconds since 1970, by this host's clock.
    pub unix_s: i64,
    /// Seconds by which that one is ahead of the coordinator's; absent before it told its time.
    pub clock_ahead_s: Option<i64>,
}

/// Who a node is, and what its host allows and has on disk.
#[derive(Debug)]
pub struct NodeSettings {
    pub mesh: MeshId,
    pub node_keys: Arc<NodeKeys>,
    pub interface: InterfaceName,
    pub guard: Guard,
    /// The preshared keys on disk, or why they cannot be read.
    pub psks: Result<Exchange, String>,
    /// Which start of the agent this is, if it could be counted.
    pub start: Option<Start>,
    pub paces: Paces,
}

/// How often a node does what it does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paces {
    /// How often the host is compared with what it should be while all tunnels are up and no key
    /// is changing.
    pub observe: Duration,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            observe: OBSERVE_INTERVAL,
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// What the disk has of the view. Tunnels come up before the coordinator is asked.
    Restored(Box<Stored>),
    /// A stream is open.
    Connected,
    Disconnected {
        reason: String,
        /// Whether the coordinator does not know the node as who it says it is.
        is_stranger: bool,
    },
    Message(StreamMessage),
    /// After [`Output::Observe`] of [`Look::Host`].
    Observed(Result<Box<Observation>, Unobserved>),
    /// After [`Output::Observe`] of [`Look::Peers`].
    PeersObserved {
        /// When they were looked at, by the clock of [`Now::elapsed`]: not before that.
        at: Duration,
        /// Absent without an interface.
        peers: Result<Option<BTreeMap<WireguardKey, ObservedPeer>>, String>,
    },
    /// After [`Output::Apply`]; all of its steps were taken, or perhaps only some.
    Applied(Result<(), Failure>),
    /// After [`Output::Save`].
    Saved(Result<(), String>),
    /// After [`Output::Send`].
    Reply(Reply),
    /// What probes of the peers found: how each answers, and the bytes of the largest packet that
    /// gets to it.
    Probed(BTreeMap<NodeId, ProbeReport>, BTreeMap<NodeId, u16>),
    /// What keeps the LANs here from others.
    LansObserved(Vec<Problem>),
    /// Somebody on this host asks for another key.
    Rotate(RotatedKey),
    /// Somebody on this host confirms what waits for that.
    Confirm,
    /// Time has passed.
    Timer,
}

/// What came of a request.
#[derive(Debug)]
pub enum Reply {
    /// Whether the report was taken.
    Report(bool),
    Mailbox(MailboxReply),
    Rotation(RotationReply),
    Identity(IdentityReply),
    /// Where peers see this node; absent when the coordinator does not say.
    SeenAt(Option<Vec<Endpoint>>),
}

/// What the shell is to do.
#[derive(Debug)]
pub enum Output {
    /// Look at the host.
    Observe(Look),
    /// Take steps: one, or several of peers, which are taken at once or not at all.
    Apply(Vec<Step>),
    /// Keep on disk. Nothing else happens before the node is told whether that was possible.
    Save(Save),
    /// Ask or tell the coordinator, without waiting for the answer.
    Send(Request),
    /// Leave the stream and come back: what follows is understood after a snapshot only.
    AskForSnapshot,
    /// The host follows the view as far as it can: what works from [`LocalNode::known`] and
    /// [`LocalNode::served`] may look at them.
    Settled,
    /// The node has another identity, and is to begin anew with [`LocalNode::node_keys`].
    BeginAnew,
    Log(Level, String),
}

/// What is kept on disk.
#[derive(Debug)]
pub enum Save {
    View(Box<Stored>),
    Psks(Box<Exchange>),
    Keys(Arc<NodeKeys>),
    /// How the node stands with the coordinator: why it is not connected, if it is not.
    Connection(Option<String>),
}

/// What is asked of the coordinator. One request of each kind is under way at a time.
#[derive(Debug)]
pub enum Request {
    /// Its number is the shell's part: the time at which it is sent.
    Report(Box<Report>),
    Mailbox(MailboxRequest),
    Rotation(RotationStep),
    Identity(SignedStatement),
    OwnLinks,
}

impl Request {
    /// What it has brought when it ends without an answer.
    pub fn unanswered(&self) -> Reply {
        match self {
            Self::Report(_) => Reply::Report(false),
            Self::Mailbox(_) => Reply::Mailbox(MailboxReply::Failed),
            Self::Rotation(_) => Reply::Rotation(RotationReply::Unreachable),
            Self::Identity(_) => Reply::Identity(IdentityReply::Unreachable),
            Self::OwnLinks => Reply::SeenAt(None),
        }
    }
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Of keys that change every day, for who looks closer.
    Debug,
    Info,
    Warn,
}

/// Why a node that was just started has no stream.
const NOT_YET: &str = "the coordinator was not asked yet";

/// A node of the mesh.
#[derive(Debug)]
pub struct LocalNode<S> {
    secrets: S,
    interface_name: InterfaceName,
    guard: Guard,
    paces: Paces,
    node_keys: Arc<NodeKeys>,
    replica: Replica,
    now: Now,
    outputs: VecDeque<Output>,
    /// What is being saved: nothing else happens meanwhile.
    saving: Option<Saving>,
    /// What happened meanwhile.
    waiting: VecDeque<Input>,
    is_over: bool,

    round: Round,
    watch: Watch,
    /// What hosts of the LANs here send back.
    replies: Replies,
    probes: BTreeMap<NodeId, ProbeReport>,
    sizes: BTreeMap<NodeId, u16>,
    lan_problems: Vec<Problem>,

    /// The view on disk is older.
    view_unsaved: bool,
    /// Why the view could not be saved; absent means it was.
    save_problem: Option<String>,
    /// Why there is no stream; absent while there is one.
    disconnected: Option<String>,
    /// The coordinator does not know the node as who it is.
    is_stranger: bool,

    psks: PskKeeper,
    key_change: KeyChange,
    own_endpoint: OwnEndpoint,
    asks_own_links: bool,
    reporter: Reporter,
}

/// What goes on once it is on disk.
#[derive(Debug)]
enum Saving {
    View,
    Psks(Box<Exchange>),
    Keys(RotatedKey, Arc<NodeKeys>),
    Connection,
}

impl<S: Secrets> LocalNode<S> {
    pub fn new(settings: NodeSettings, secrets: S) -> Self {
        let NodeSettings {
            mesh,
            node_keys,
            interface,
            guard,
            psks,
            start,
            paces,
        } = settings;
        let replica = Replica::new(mesh, node_keys.wireguard_key()).locked_by(guard.operators());
        let mut node = Self {
            secrets,
            interface_name: interface,
            guard,
            paces,
            node_keys,
            replica,
            now: Now::default(),
            outputs: VecDeque::new(),
            saving: None,
            waiting: VecDeque::new(),
            is_over: false,
            round: Round::default(),
            watch: Watch::default(),
            replies: Replies::default(),
            probes: BTreeMap::new(),
            sizes: BTreeMap::new(),
            lan_problems: Vec::new(),
            view_unsaved: false,
            save_problem: None,
            disconnected: Some(NOT_YET.to_owned()),
            is_stranger: false,
            psks: PskKeeper::new(psks),
            key_change: KeyChange::default(),
            own_endpoint: OwnEndpoint::default(),
            asks_own_links: false,
            reporter: Reporter::new(start),
        };
        if let Some(problem) = node.psks.problem() {
            node.log(Level::Warn, problem);
        }
        node
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        if self.is_over {
            return;
        }
        if let Input::Saved(result) = input {
            self.saved(result);
        } else if self.saving.is_some() {
            return self.waiting.push_back(input);
        } else {
            self.take_in(input);
        }
        self.go_on();
        while self.saving.is_none()
            && let Some(input) = self.waiting.pop_front()
        {
            self.take_in(input);
            self.go_on();
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timer`] is due, on the clock of [`Now::elapsed`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.is_over || self.saving.is_some() {
            return None;
        }
        let now = self.now.elapsed;
        // What is past and was not done waits for something else.
        let retries = [self.psks.retry_at(), self.reporter.retry_at()];
        let retries = retries.into_iter().flatten().filter(|at| *at > now);
        let times = [
            self.next_observation(),
            self.next_look_at_peers(),
            self.next_key_step(),
        ];
        times.into_iter().flatten().chain(retries).min()
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Restored(stored) => self.restore(*stored),
            Input::Connected => self.connected(),
            Input::Disconnected {
                reason,
                is_stranger,
            } => self.disconnected(reason, is_stranger),
            Input::Message(message) => self.receive(message),
            Input::Observed(observed) => self.observed(observed.map(|observed| *observed)),
            Input::PeersObserved { at, peers } => self.peers_observed(at, peers),
            Input::Applied(result) => self.applied(result),
            // Only [`LocalNode::handle`] has it.
            Input::Saved(_) => {}
            Input::Reply(reply) => self.replied(reply),
            Input::Probed(probes, sizes) => (self.probes, self.sizes) = (probes, sizes),
            Input::LansObserved(problems) => self.lan_problems = problems,
            Input::Rotate(key) => self.rotate(key),
            Input::Confirm => self.confirm(),
            Input::Timer => self.pass_time(),
        }
    }

    /// Does what there is to do, in the order that this module's text says.
    fn go_on(&mut self) {
        while self.saving.is_none() && !self.is_over {
            if self.go_on_with_psks() {
                continue;
            }
            if self.go_on_with_round() {
                return;
            }
            if self.save_view() || self.change_identity() {
                continue;
            }
            if self.is_connected() && self.round.may_drive() {
                self.ask_mailbox();
                if self.change_key() {
                    continue;
                }
            }
            self.report();
            return;
        }
    }

    fn replied(&mut self, reply: Reply) {
        match reply {
            Reply::Report(is_taken) => self.reporter.replied(is_taken, self.now.elapsed),
            Reply::Mailbox(reply) => self.mailbox_replied(reply),
            Reply::Rotation(reply) => self.rotation_replied(reply),
            Reply::Identity(reply) => self.identity_replied(reply),
            Reply::SeenAt(seen_at) => {
                self.asks_own_links = false;
                if let Some(seen_at) = seen_at {
                    self.own_endpoint.seen(seen_at);
                }
            }
        }
    }

    fn save(&mut self, save: Save, saving: Saving) {
        self.saving = Some(saving);
        self.outputs.push_back(Output::Save(save));
    }

    fn saved(&mut self, result: Result<(), String>) {
        match self.saving.take() {
            Some(Saving::View) => self.view_saved(result),
            Some(Saving::Psks(kept)) => self.psks_saved(&kept, result),
            Some(Saving::Keys(which, keys)) => self.keys_saved(which, keys, result),
            Some(Saving::Connection) => {
                if let Err(error) = result {
                    self.log(Level::Warn, error);
                }
            }
            None => {}
        }
    }

    fn log(&mut self, level: Level, words: impl Into<String>) {
        self.outputs.push_back(Output::Log(level, words.into()));
    }

    /// What is known of the mesh.
    pub fn known(&self) -> Option<&Known> {
        self.replica.known()
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn node_keys(&self) -> &Arc<NodeKeys> {
        &self.node_keys
    }

    pub fn psks(&self) -> &Exchange {
        self.psks.exchange()
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    pub fn replies(&self) -> &Replies {
        &self.replies
    }

    /// The host as it was last observed; absent when it cannot be.
    pub fn host(&self) -> Option<&Observed> {
        self.round.outcome().observed.as_ref()
    }

    /// What of the view the host does not let the mesh do to it.
    pub fn refused(&self) -> &Refused {
        &self.round.outcome().refused
    }

    pub fn is_connected(&self) -> bool {
        self.disconnected.is_none()
    }

    /// Whether nothing is under way on this host.
    pub fn is_settled(&self) -> bool {
        self.saving.is_none() && self.round.is_idle()
    }

    /// What the host carries out between LANs; absent while it carries out nothing.
    pub fn served(&self) -> Option<Served> {
        let outcome = self.round.outcome();
        let interface = outcome.observed.as_ref()?.interface.as_ref()?;
        let known = self.known().filter(|_| interface.up)?;
        Some(Served::new(
            known,
            &self.interface_name,
            &outcome.refused,
            Some(interface),
            &self.replies,
        ))
    }
}

#[cfg(test)]
mod world;
