//! A whole mesh in one process: the nodes as agents run them, on disks, devices, a network and a
//! coordinator that are models. Time and chance come from a seed, which is printed and replays.
//!
//! Idle time is skipped: a world goes from one event to the next.

mod coordinator;
mod dice;
mod gateway;
mod laws;
mod network;
mod recorded;
mod run;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wattle_wire::stream::StreamMessage;

use self::{coordinator::Coordinator, dice::Dice, gateway::Gateway, laws::Laws, network::Tunnels};
use super::{Now, Paces, Reply, Request};

/// Seconds since 1970 at which a world begins.
const BEGINNING_S: i64 = 1_800_000_000;
/// How long a message is under way.
const LATENCY: Duration = Duration::from_millis(20);
/// When a request is given up that nobody answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Nodes, and all between them.
struct World {
    /// What it replays from.
    seed: u64,
    now: Duration,
    dice: Dice,
    paces: Paces,
    coordinator: Coordinator,
    gateways: Vec<Gateway>,
    tunnels: Tunnels,
    laws: Laws,
    /// What is to come, in its order.
    events: BTreeMap<(Duration, u64), Event>,
    ever: u64,
    /// Gateways that do not reach the coordinator.
    cut_off: BTreeSet<usize>,
    /// Of so many messages to and from the coordinator, one is lost.
    lossy: Option<u64>,
}

/// Something to come. What is for an agent is for the one that was there when it was sent.
#[derive(Debug)]
enum Event {
    /// The agent's clock.
    Wake(usize, u64),
    /// The agent is started.
    Start(usize),
    /// It opens its stream.
    Connect(usize, u64),
    Stream(usize, u64, StreamMessage),
    Request(usize, u64, Box<Request>),
    Reply(usize, u64, Box<Reply>),
    /// A handshake of one gateway with another.
    Handshake(usize, usize),
    /// The network is whole again between two gateways.
    Heal(usize, usize),
    /// A gateway reaches the coordinator again.
    Reach(usize),
    /// A disk has room again.
    Room(usize),
    /// The coordinator is back.
    Return,
}

impl World {
    /// A mesh of so many nodes, all of which are up.
    fn new(seed: u64, nodes: u64, paces: Paces) -> Self {
        let gateways: Vec<_> = (1..=nodes).map(Gateway::new).collect();
        let mut world = Self {
            seed,
            now: Duration::ZERO,
            dice: Dice::new(seed),
            paces,
            coordinator: Coordinator::new(nodes),
            tunnels: Tunnels::default(),
            laws: Laws::default(),
            gateways,
            events: BTreeMap::new(),
            ever: 0,
            cut_off: BTreeSet::new(),
            lossy: None,
        };
        for gateway in 0..world.gateways.len() {
            world.after(LATENCY, Event::Start(gateway));
        }
        world
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.ever += 1;
        self.events.insert((self.now + wait, self.ever), event);
    }

    /// Goes on until a time.
    fn run_until(&mut self, end: Duration) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= end
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(event);
            self.check();
        }
        self.now = self.now.max(end);
        self.check();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(gateway, agent) => {
                if self.is_running(gateway, agent) {
                    self.tell(gateway, super::Input::Timer);
                }
            }
            Event::Start(gateway) => self.start(gateway),
            Event::Connect(gateway, agent) => self.connect(gateway, agent),
            Event::Stream(gateway, agent, message) => {
                if self.is_running(gateway, agent) {
                    self.tell(gateway, super::Input::Message(message));
                }
            }
            Event::Request(gateway, agent, request) => self.request(gateway, agent, &request),
            Event::Reply(gateway, agent, reply) => {
                if self.is_running(gateway, agent) {
                    self.tell(gateway, super::Input::Reply(*reply));
                }
            }
            Event::Handshake(from, to) => self.handshake(from, to),
            Event::Heal(a, b) => self.heal(a, b),
            Event::Reach(gateway) => {
                self.cut_off.remove(&gateway);
            }
            Event::Room(gateway) => self.gateways[gateway].disk.is_full = false,
            Event::Return => self.coordinator.is_away = false,
        }
    }

    /// Whether the agent is still the one that it was.
    fn is_running(&self, gateway: usize, agent: u64) -> bool {
        let gateway = &self.gateways[gateway];
        gateway.node.is_some() && gateway.agent == agent
    }

    fn clock(&self) -> Now {
        let seconds = i64::try_from(self.now.as_secs()).unwrap();
        Now {
            elapsed: self.now,
            unix_s: BEGINNING_S + seconds,
            clock_ahead_s: None,
        }
    }
}
