//! The loop of a node: tells it what happens, and does what it says.

mod answer;

use std::{mem, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};
use wattle_client::{node::NodeClient, secrets::SystemSecrets};
use wattle_mesh::{
    agent::node::{
        Input, Level, LocalNode, Look, NodeSettings, Now, Output, Paces, Save, Unobserved,
    },
    keys::node_keys::NodeKeys,
};

use super::{Asked, Signals};
use crate::{
    config::Settings,
    control::Control,
    follow::{self, Connection, Event},
    history::Record,
    host::Host,
    identity::{Membership, Slot},
    interface_lock::InterfaceLock,
    kernel::Policy,
    lan::LanWatch,
    metrics::Metrics,
    probe::Prober,
    psk,
    requests::Requests,
    starts,
    store::Store,
    supervisor::Supervisor,
};

/// Why the loop ended.
pub(super) enum Ended {
    Stopped,
    /// `join` said where else the coordinators are, the node has another identity, or the settings
    /// are to be read again; the loop begins anew with that.
    Anew(Arc<NodeKeys>, Box<Membership>),
}

pub(super) struct Agent {
    node: LocalNode<SystemSecrets>,
    started: Instant,
    interface_lock: Arc<InterfaceLock>,
    metrics: Option<Arc<Metrics>>,
    store: Store,
    membership: Membership,
    coordinator: Arc<NodeClient>,
    requests: Requests,
    host: Host,
    /// A look at what the host lets pass, while it is under way.
    policy: Option<Pin<Box<dyn Future<Output = anyhow::Result<Policy>> + Send>>>,
    /// What was told of the peers until now.
    record: Record,
    reconnect: Arc<Notify>,
    prober: Prober,
    lan_watch: LanWatch,
    /// How the agent stands with the coordinator; absent before it has tried.
    connection: Option<Connection>,
    /// A command changed what is on disk of the node.
    changed_by_hand: bool,
    begins_anew: bool,
}

impl Agent {
    pub(super) fn new(
        settings: &Settings,
        store: Store,
        interface_lock: Arc<InterfaceLock>,
        node_keys: Arc<NodeKeys>,
        membership: Membership,
        metrics: Option<Arc<Metrics>>,
    ) -> anyhow::Result<Self> {
        let host = Host::new(settings, &store, &membership.urls)?;
        let coordinator = Arc::new(NodeClient::new(
            membership.urls.clone(),
            membership.authorities.clone(),
        )?);
        let node_settings = NodeSettings {
            mesh: membership.enrolled.mesh,
            node_keys,
            interface: settings.interface.clone(),
            guard: host.guard().clone(),
            psks: psk::load(&store).map_err(|error| format!("{error:#}")),
            start: starts::count(&store),
            paces: Paces::default(),
        };
        Ok(Self {
            node: LocalNode::new(node_settings, SystemSecrets),
            started: Instant::now(),
            interface_lock,
            metrics,
            requests: Requests::new(Arc::clone(&coordinator)),
            coordinator,
            lan_watch: LanWatch::start(host.clone()),
            host,
            policy: None,
            membership,
            prober: Prober::start(&settings.interface),
            record: Record::open(store.clone()),
            store,
            reconnect: Arc::new(Notify::new()),
            connection: None,
            changed_by_hand: false,
            begins_anew: false,
        })
    }

    /// Carries out the last good view before the first network call, so that tunnels come up with
    /// the coordinator away.
    pub(super) async fn start_from_disk(&mut self) {
        self.host.underlay().look_at_coordinators().await;
        match follow::load_view(&self.store) {
            Ok(Some(stored)) => self.handle(Input::Restored(Box::new(stored))).await,
            Ok(None) => {}
            Err(error) => warn!("the view kept on disk is not usable: {error:#}"),
        }
        while !self.node.is_settled() {
            let policy = policy(&mut self.policy).await;
            self.looked(policy).await;
        }
    }

    pub(super) async fn run(
        &mut self,
        control: &mut Control,
        signals: &mut Signals,
        supervisor: &mut Supervisor,
    ) -> Ended {
        let (sender, mut events) = mpsc::channel(follow::MOST_WAITING);
        let follower = follow::follow(
            Arc::clone(&self.coordinator),
            Arc::clone(self.node.node_keys()),
            self.membership.clone(),
            Arc::clone(&self.reconnect),
            self.host.underlay().clone(),
            sender,
        );
        let follower = tokio::spawn(follower);
        let resolvers = tokio::spawn(self.host.underlay().clone().follow_resolvers());
        let ended = loop {
            supervisor.alive();
            let timeout = self.node.poll_timeout().unwrap_or(Duration::MAX);
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { break Ended::Stopped };
                    self.hear(event);
                    // The host follows the newest view, not each on the way there.
                    while let Ok(event) = events.try_recv() {
                        self.hear(event);
                    }
                    self.carry_out().await;
                }
                policy = policy(&mut self.policy) => self.looked(policy).await,
                () = until(self.started, timeout) => self.handle(Input::Timer).await,
                reply = self.requests.answer() => self.handle(Input::Reply(reply)).await,
                () = self.prober.news() => {
                    self.note_probes();
                    self.carry_out().await;
                    self.show_metrics();
                }
                () = self.lan_watch.news() => {
                    self.handle(Input::LansObserved(self.lan_watch.problems())).await;
                    self.show_metrics();
                }
                asked = control.asked() => self.answer(asked).await,
                asked = signals.next() => match asked {
                    Asked::Stop => break Ended::Stopped,
                    Asked::Reload => self.begins_anew = true,
                },
            }
            self.save_pins();
            if self.begins_anew {
                let keys = Arc::clone(self.node.node_keys());
                break Ended::Anew(keys, Box::new(self.membership.clone()));
            }
            if (!self.node.is_connected() || mem::take(&mut self.changed_by_hand))
                && let Some(ended) = self.rejoined()
            {
                break ended;
            }
        };
        follower.abort();
        resolvers.abort();
        ended
    }

    fn now(&self) -> Now {
        Now {
            elapsed: self.started.elapsed(),
            unix_s: chrono::Utc::now().timestamp(),
            clock_ahead_s: self.coordinator.known_clock_ahead(),
        }
    }

    fn tell(&mut self, input: Input) {
        self.node.handle(self.now(), input);
    }

    async fn handle(&mut self, input: Input) {
        self.tell(input);
        self.carry_out().await;
    }

    /// Takes in what the follower tells.
    fn hear(&mut self, event: Event) {
        match event {
            Event::WhereFrom(answer) => {
                let _ = answer.send(self.node.replica().resume_from());
            }
            Event::Connected => {
                info!(url = self.coordinator.url(), "connected to the coordinator");
                self.tell(Input::Connected);
            }
            Event::Disconnected {
                reason,
                is_stranger,
            } => self.tell(Input::Disconnected {
                reason,
                is_stranger,
            }),
            Event::Message(message) => self.tell(Input::Message(message)),
        }
    }

    /// Does what the node says, until it has nothing more to say.
    async fn carry_out(&mut self) {
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Observe(Look::Host) => match self.interface_lock.hold() {
                    Ok(()) => self.policy = Some(Box::pin(self.host.clone().policy())),
                    Err(problem) => {
                        let taken = Unobserved::Taken(Box::new(problem));
                        self.tell(Input::Observed(Err(taken)));
                    }
                },
                Output::Observe(Look::Peers) => {
                    let at = self.started.elapsed();
                    let peers = in_words(self.host.peers().await);
                    self.tell(Input::PeersObserved { at, peers });
                }
                Output::Apply(steps) => {
                    let applied = self.host.apply(&steps, self.node.node_keys()).await;
                    self.tell(Input::Applied(applied));
                }
                Output::Save(save) => {
                    let saved = self.save(save);
                    self.tell(Input::Saved(in_words(saved)));
                }
                Output::Send(request) => {
                    let keys = self.node.node_keys();
                    self.requests.send(request, keys, &self.membership);
                }
                Output::AskForSnapshot => self.reconnect.notify_one(),
                Output::Settled => self.follow_beside(),
                Output::BeginAnew => self.begins_anew = true,
                Output::Log(Level::Debug, words) => debug!("{words}"),
                Output::Log(Level::Info, words) => info!("{words}"),
                Output::Log(Level::Warn, words) => warn!("{words}"),
            }
        }
    }

    /// What the host lets pass is known: the rest is read at once, for it may change meanwhile.
    async fn looked(&mut self, policy: anyhow::Result<Policy>) {
        let looked = match policy {
            Ok(policy) => self.host.look(policy, self.started.elapsed()).await,
            Err(error) => Err(error),
        };
        self.note_probes();
        let observed = looked
            .map(Box::new)
            .map_err(|error| Unobserved::Unreadable(format!("{error:#}")));
        self.handle(Input::Observed(observed)).await;
    }

    fn note_probes(&mut self) {
        self.tell(Input::Probed(self.prober.reports(), self.prober.sizes()));
    }

    /// Lets those follow the view that work beside the loop.
    fn follow_beside(&self) {
        if let Some(known) = self.node.known() {
            let interface = self.node.host().and_then(|host| host.interface.as_ref());
            self.prober
                .follow(known, interface.map(|interface| interface.mtu));
            self.lan_watch.follow(self.node.served());
        }
        self.show_metrics();
    }

    fn save(&mut self, save: Save) -> anyhow::Result<()> {
        match save {
            Save::View(stored) => {
                if let Some(known) = self.node.known() {
                    self.record.note(known);
                }
                follow::save_view(&self.store, &stored)
            }
            Save::Psks(psks) => psk::save(&self.store, &psks),
            Save::Keys(keys) => Slot::Present.save_keys(&self.store, &keys),
            Save::Connection(error) => {
                let connection = Connection {
                    connected: error.is_none(),
                    url: self.coordinator.url().to_owned(),
                    since: chrono::Utc::now().timestamp(),
                    error,
                };
                let saved = follow::save_connection(&self.store, &connection);
                self.connection = Some(connection);
                saved
            }
        }
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
                Some(Ended::Anew(Arc::new(node_keys), Box::new(membership)))
            }
            Ok(_) => None,
            Err(error) => {
                debug!("{error:#}");
                None
            }
        }
    }
}

/// Waits for the look at what the host lets pass; for ever when none is under way.
async fn policy(
    under_way: &mut Option<Pin<Box<dyn Future<Output = anyhow::Result<Policy>> + Send>>>,
) -> anyhow::Result<Policy> {
    let Some(look) = under_way else {
        return std::future::pending().await;
    };
    let policy = look.await;
    *under_way = None;
    policy
}

async fn until(started: Instant, elapsed: Duration) {
    match started.checked_add(elapsed) {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn in_words<T>(result: anyhow::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}
