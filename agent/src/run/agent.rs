//! The loop of a node. A message, the clock or a signal comes; the replica takes it in, the host
//! follows, the coordinator is told.

mod answer;
mod inbox;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tracing::{info, warn};
use wattle_mesh::{
    agent::replica::Replica,
    diagnose::lan::Served,
    health::replies::Replies,
    host::{interface::InterfaceName, state::ObservedPeer},
    keys::{
        node_keys::NodeKeys,
        psk::exchange::Exchange,
        rotation::{
            Situation,
            canary::{Watch, keys_in_place},
        },
    },
};
use wattle_wire::{ids::NodeId, report::Report};

use super::Stop;
use crate::{
    config::Paths,
    control::Control,
    coordinator::Coordinator,
    follow::{self, Connection},
    history::Record,
    identity::{Membership, Slot, unix_s},
    interface_lock::InterfaceLock,
    lan::LanWatch,
    metrics::Metrics,
    probe::Prober,
    psk::PskClient,
    reconcile::{Aim, Host, OBSERVE_INTERVAL, Outcome},
    report::Reporter,
    rotation::KeyChange,
    standing::Standing,
    store::Store,
    supervisor::Supervisor,
};

/// The same while tunnels are coming up, so that the coordinator hears of their first handshakes
/// soon, and while a host of a LAN may be about to answer.
const OBSERVE_SOON_INTERVAL: Duration = Duration::from_secs(1);
/// The next observation waits for this many times as long as the last one took: where it takes long
/// to list the rules, that leaves the processor to others.
const REST_FACTOR: u32 = 3;
/// For how long after a change tunnels are expected to come up.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// Why the loop ended.
pub(super) enum Ended {
    Stopped,
    /// `join` said where else the coordinators are, or the node has another identity; the loop
    /// begins anew with that.
    Anew(Box<(NodeKeys, Membership)>),
}

pub(super) struct Agent {
    interface: InterfaceName,
    interface_lock: Arc<InterfaceLock>,
    metrics: Option<Arc<Metrics>>,
    store: Store,
    node_keys: Arc<NodeKeys>,
    membership: Membership,
    coordinator: Arc<Coordinator>,
    host: Host,
    replica: Replica,
    /// The host has yet to follow the view.
    view_changed: bool,
    /// The view on disk is older.
    view_unsaved: bool,
    /// Why the view could not be written; absent means it was.
    save_problem: Option<String>,
    /// What was told of the peers until now.
    record: Record,
    reconnect: Arc<Notify>,
    /// Why there is no stream; absent while there is one.
    disconnected: Option<String>,
    /// The coordinator does not know the node as who it is.
    is_stranger: bool,
    outcome: Outcome,
    /// When the last observation ended, and how long it took.
    last_observation: (Instant, Duration),
    last_change: Instant,
    started: Instant,
    mailbox: PskClient,
    key_change: KeyChange,
    watch: Watch,
    prober: Prober,
    lan_watch: LanWatch,
    /// What hosts of the LANs here send back.
    replies: Replies,
    standing: Standing,
    reporter: Reporter,
    /// How the agent stands with the coordinator; absent before it has tried.
    connection: Option<Connection>,
    /// When each preshared key was agreed on that is to be another since a command asked for that.
    old_psks: BTreeMap<NodeId, u64>,
    /// A command changed what is on disk of the node.
    changed_by_hand: bool,
}

impl Agent {
    pub(super) fn new(
        paths: &Paths,
        store: Store,
        interface_lock: Arc<InterfaceLock>,
        node_keys: NodeKeys,
        membership: Membership,
        metrics: Option<Arc<Metrics>>,
    ) -> anyhow::Result<Self> {
        let (now, reporter) = (Instant::now(), Reporter::new(&store));
        let host = Host::new(paths, &store, &membership.urls)?;
        Ok(Self {
            interface: paths.interface.clone(),
            interface_lock,
            metrics,
            coordinator: Arc::new(Coordinator::new(
                membership.urls.clone(),
                membership.authorities.clone(),
            )?),
            replica: Replica::new(membership.enrolled.mesh, node_keys.wireguard_key())
                .locked_by(host.operators()),
            lan_watch: LanWatch::start(host.clone()),
            host,
            node_keys: Arc::new(node_keys),
            membership,
            mailbox: PskClient::new(store.clone()),
            key_change: KeyChange::new(store.clone()),
            watch: Watch::default(),
            prober: Prober::start(&paths.interface),
            record: Record::open(store.clone()),
            store,
            view_changed: false,
            view_unsaved: false,
            save_problem: None,
            reconnect: Arc::new(Notify::new()),
            disconnected: None,
            is_stranger: false,
            outcome: Outcome::default(),
            last_observation: (now, Duration::ZERO),
            last_change: now,
            started: now,
            replies: Replies::default(),
            standing: Standing::default(),
            reporter,
            connection: None,
            old_psks: BTreeMap::new(),
            changed_by_hand: false,
        })
    }

    /// Carries out the last good view before the first network call, so that tunnels come up with
    /// the coordinator away.
    pub(super) async fn start_from_disk(&mut self) {
        self.host.underlay().look_at_coordinators().await;
        match follow::load_view(&self.store) {
            Ok(Some(stored)) => {
                let position = stored.position;
                match self.replica.restore(stored) {
                    Ok(refused) => {
                        info!(%position, refused = refused.len(), "loaded the view from disk");
                        self.reconcile().await;
                        // Who was there when the lock was turned on is known from now on.
                        self.save_view();
                    }
                    Err(rejection) => warn!("cannot use the view on disk: {rejection}"),
                }
            }
            Ok(None) => {}
            Err(error) => warn!("the view kept on disk is not usable: {error:#}"),
        }
    }

    pub(super) async fn run(
        &mut self,
        control: &mut Control,
        stop: &mut Stop,
        supervisor: &mut Supervisor,
    ) -> Ended {
        let (sender, mut events) = mpsc::channel(follow::MOST_WAITING);
        let follower = follow::follow(
            Arc::clone(&self.coordinator),
            Arc::clone(&self.node_keys),
            self.membership.clone(),
            Arc::clone(&self.reconnect),
            self.host.underlay().clone(),
            sender,
        );
        let follower = tokio::spawn(follower);
        let resolvers = tokio::spawn(self.host.underlay().clone().follow_resolvers());
        let ended = loop {
            supervisor.alive();
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { break Ended::Stopped };
                    self.handle(event);
                    // The host follows the newest view, not each on the way there.
                    while let Ok(event) = events.try_recv() {
                        self.handle(event);
                    }
                }
                () = tokio::time::sleep_until(self.next_observation()) => self.reconcile().await,
                () = sleep(self.watch.interval(self.started.elapsed()).unwrap_or(Duration::MAX)) => self.follow_keys().await,
                () = sleep(self.key_interval().unwrap_or(Duration::MAX)) => {}
                told = self.key_change.told() => self.key_change.take_in(told, self.started.elapsed()),
                told = self.reporter.told() => self.reporter.take_in(told),
                done = self.mailbox.done() => {
                    self.view_changed |= self.mailbox.take_in(done, self.replica.known(), &self.node_keys);
                }
                told = self.standing.told() => self.standing.take_in(told),
                () = self.prober.news() => self.show_metrics(),
                () = self.lan_watch.news() => self.show_metrics(),
                asked = control.asked() => self.answer(asked).await,
                () = stop.asked() => break Ended::Stopped,
            }
            if std::mem::take(&mut self.view_changed) {
                self.reconcile().await;
            }
            // After the host has followed: a view that makes the agent crash is not what it starts
            // from.
            if std::mem::take(&mut self.view_unsaved) {
                self.save_view();
            }
            self.save_pins();
            if (self.disconnected.is_some() || std::mem::take(&mut self.changed_by_hand))
                && let Some(ended) = self.rejoined()
            {
                break ended;
            }
            if let Some(ended) = self.change_identity() {
                break ended;
            }
            if self.disconnected.is_none() && self.interface_lock.is_held() {
                self.mailbox
                    .go(&self.coordinator, &self.node_keys, &self.membership);
                self.change_key().await;
            }
            self.send_report();
        };
        follower.abort();
        resolvers.abort();
        ended
    }

    /// Keeps the pins that the coordinator told, so that a restart knows them.
    fn save_pins(&mut self) {
        let authorities = self.coordinator.authorities();
        if authorities == self.membership.authorities {
            return;
        }
        self.membership.authorities = authorities;
        match Slot::Present.save_membership(&self.store, self.membership.clone()) {
            Ok(()) => info!("the coordinator changed the certificate authorities to trust"),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Whether `join` left a new account of where the coordinators are, or a command raised the
    /// generation of the tokens.
    fn rejoined(&self) -> Option<Ended> {
        match Slot::Present.load(&self.store) {
            Ok(Some((node_keys, Some(membership)))) if membership != self.membership => {
                Some(Ended::Anew(Box::new((node_keys, membership))))
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("{error:#}");
                None
            }
        }
    }

    /// What the host is to be made to, and what the last round gave; nothing before there is a
    /// view.
    fn aim(&mut self) -> Option<Aimed<'_>> {
        let aim = Aim {
            known: self.replica.known()?,
            node_keys: &self.node_keys,
            psks: self.mailbox.exchange(),
            watch: &mut self.watch,
            started: self.started,
        };
        Some(Aimed {
            host: &self.host,
            aim,
            last: &mut self.outcome,
        })
    }

    /// Follows peers that have taken up the keys which they announced.
    async fn follow_keys(&mut self) {
        if let Some(Aimed {
            host,
            mut aim,
            last,
        }) = self.aim()
        {
            host.follow_keys(&mut aim, last).await;
        }
    }

    /// Takes the steps to a new key that can be taken now.
    async fn change_key(&mut self) {
        let now = self.started.elapsed();
        while let Some(situation) = situation(
            &self.replica,
            &self.outcome,
            &self.node_keys,
            self.mailbox.exchange(),
            now,
        ) {
            let Some(node_keys) = self.key_change.go(
                situation,
                &self.coordinator,
                &self.node_keys,
                &self.membership,
            ) else {
                return;
            };
            let is_another = node_keys.wireguard_key() != self.node_keys.wireguard_key();
            self.node_keys = Arc::new(node_keys);
            if is_another {
                self.replica.set_own_key(self.node_keys.wireguard_key());
                self.reconcile().await;
            }
        }
    }

    /// Takes the steps to another identity that can be taken now, with a coordinator that may know
    /// the node by either.
    fn change_identity(&mut self) -> Option<Ended> {
        let now = self.started.elapsed();
        while let Some(node_keys) = self.key_change.rotate_identity(
            self.replica.known(),
            &self.coordinator,
            &self.node_keys,
            &self.membership,
            !self.is_stranger,
            now,
        ) {
            if node_keys.identity_key() != self.node_keys.identity_key() {
                let as_node = (node_keys, self.membership.clone());
                return Some(Ended::Anew(Box::new(as_node)));
            }
            self.node_keys = Arc::new(node_keys);
        }
        None
    }

    /// How soon there may be something to do about this node's key.
    fn key_interval(&self) -> Option<Duration> {
        let psks = self.mailbox.exchange();
        self.key_change.interval(&situation(
            &self.replica,
            &self.outcome,
            &self.node_keys,
            psks,
            self.started.elapsed(),
        )?)
    }

    async fn reconcile(&mut self) {
        let begin = Instant::now();
        // A disk that was full may have room again.
        self.view_unsaved |= self.save_problem.is_some();
        self.round().await;
        // After the device was observed, which tells whose WireGuard key is new: with those no
        // preshared key is changed yet.
        if self.tend_psks() {
            self.round().await;
        }
        if let Some(observed) = &self.outcome.observed {
            self.replies.note(&observed.flows, self.started.elapsed());
        }
        if let Some(known) = self.replica.known() {
            let interface = self.outcome.observed.as_ref();
            let interface = interface.and_then(|observed| observed.interface.as_ref());
            self.prober
                .follow(known, interface.map(|interface| interface.mtu));
            let refused = &self.outcome.limits.refused;
            let served = interface.filter(|interface| interface.up).map(|found| {
                Served::new(known, &self.interface, refused, Some(found), &self.replies)
            });
            self.lan_watch.follow(served);
            if self.disconnected.is_none() {
                let (now, keys) = (self.started.elapsed(), &self.node_keys);
                self.standing
                    .go(known, now, &self.coordinator, keys, &self.membership);
            }
        }
        self.show_metrics();
        self.last_observation = (Instant::now(), begin.elapsed());
    }

    async fn round(&mut self) {
        let held = self.interface_lock.hold();
        let Some(Aimed {
            host,
            mut aim,
            last,
        }) = self.aim()
        else {
            return;
        };
        let outcome = match held {
            Ok(()) => host.reconcile(&mut aim, last).await,
            Err(problem) => Outcome {
                problems: vec![problem],
                ..Outcome::default()
            },
        };
        for problem in outcome
            .problems
            .iter()
            .filter(|problem| !self.outcome.problems.contains(problem))
        {
            warn!("{}", problem.words);
        }
        if outcome.changed && outcome.problems.is_empty() {
            self.last_change = Instant::now();
        }
        self.outcome = outcome;
    }

    /// Lets the preshared keys know the time and the device. Whether the device may have to have
    /// others now.
    fn tend_psks(&mut self) -> bool {
        let Some(known) = self.replica.known() else {
            return false;
        };
        let unsettled = self.watch.unsettled(self.started.elapsed());
        let may_differ = self.mailbox.tick(known, &self.node_keys, unsettled);
        let interface = self
            .outcome
            .observed
            .as_ref()
            .and_then(|observed| observed.interface.as_ref());
        interface.is_some_and(|interface| self.mailbox.observe(known, interface, &self.node_keys))
            || may_differ
    }

    fn next_observation(&self) -> Instant {
        let mut peers = self
            .outcome
            .observed
            .iter()
            .flat_map(|observed| &observed.interface)
            .flat_map(|interface| interface.peers.values());
        let settled = self.last_change.elapsed() > SETTLE_LIMIT || peers.all(ObservedPeer::is_live);
        let interval = if settled && !self.replies.is_open() {
            OBSERVE_INTERVAL
        } else {
            OBSERVE_SOON_INTERVAL
        };
        let (ended, took) = self.last_observation;
        ended + interval.max(took * REST_FACTOR)
    }

    /// Sends the report that is due, if any, without waiting for it.
    fn send_report(&mut self) {
        let (false, Some(known)) = (self.reporter.is_busy(), self.replica.known()) else {
            return;
        };
        let observed = self.outcome.observed.as_ref();
        let (probes, psks) = (self.prober.reports(), self.mailbox.exchange());
        let (problems, held) = (self.problems(known), self.replica.held());
        let mut full = self
            .reporter
            .account(known, observed, &probes, problems, held);
        let returned = self.replica.returned().into_iter();
        full.returned = returned.take(Report::MOST_RETURNED).collect();
        // A coordinator refuses a report of many more links than it has.
        let is_there = |node| !self.replica.is_given_up(node);
        full.links.retain(|link| is_there(link.peer));
        if let Some(interface) = observed.and_then(|observed| observed.interface.as_ref()) {
            full.keys_in_place = keys_in_place(known, &self.node_keys, interface, psks);
            full.keys_in_place.retain(|key| is_there(key.peer));
        }
        self.reporter.go(
            full,
            self.started.elapsed(),
            &self.coordinator,
            &self.node_keys,
            &self.membership,
        );
    }

    fn save_connection(&mut self, error: Option<String>) {
        let connection = Connection {
            connected: error.is_none(),
            url: self.coordinator.url().to_owned(),
            since: chrono::Utc::now().timestamp(),
            error,
        };
        if let Err(error) = follow::save_connection(&self.store, &connection) {
            warn!("{error:#}");
        }
        self.connection = Some(connection);
    }
}

/// The host, what it is to be made to, and what the last round gave.
struct Aimed<'a> {
    host: &'a Host,
    aim: Aim<'a>,
    last: &'a mut Outcome,
}

/// What a change of the node's key depends on; `None` while nothing is known of the mesh or the
/// host.
fn situation<'a>(
    replica: &'a Replica,
    outcome: &'a Outcome,
    node_keys: &'a NodeKeys,
    psks: &'a Exchange,
    now: Duration,
) -> Option<Situation<'a>> {
    let interface = outcome.observed.as_ref()?.interface.as_ref()?;
    Some(Situation {
        known: replica.known()?,
        node_keys,
        interface,
        psks,
        is_asked: false,
        now,
        unix_s: unix_s(),
    })
}
