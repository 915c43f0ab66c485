//! A gateway: what outlives its agent, the agent, and how it does what the node says.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use wattle_wire::{ids::NodeId, key::WireguardKey};

use super::{ANSWER_LIMIT, Event, LATENCY, Now, Paces, World, network::pair, words};
use crate::{
    agent::{
        guard::{Guard, Surroundings},
        node::{Failure, Input, LocalNode, Look, NodeSettings, Observation, Output, Save},
        replica::Stored,
        underlay::Purpose,
    },
    backoff::backoff,
    host::{
        plan::Step,
        state::{Change, Interface, Observed},
        way::{ForeignRoute, Way},
    },
    keys::{
        node_keys::{NodeKeys, StoredNodeKeys},
        psk::{exchange::Exchange, kem::seeded::SeededKem},
    },
    testing::{MESH, node_id, node_keys_of},
};

/// Where the coordinator is.
const COORDINATOR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// How long a stopped agent stays away.
const RESTARTED_AFTER: Duration = Duration::from_secs(1);
/// How long an agent without a stream waits before it opens another.
const RECONNECTED_AFTER: Duration = Duration::from_secs(2);

pub(super) struct Gateway {
    pub(super) id: NodeId,
    number: u64,
    pub(super) disk: Disk,
    pub(super) device: Device,
    /// Absent while no agent runs.
    pub(super) node: Option<LocalNode<SeededKem>>,
    /// Which agent it is, of those that ever ran.
    pub(super) agent: u64,
    /// The agent dies after so many further outputs.
    pub(super) dies_after: Option<u64>,
    /// How often it opened no stream in a row.
    failures: u32,
    /// Its next wake-up.
    wakes_at: Option<Duration>,
    /// When the agent, or none, began to be as it is.
    pub(super) since: Duration,
    /// What it hears and says, if that is recorded.
    pub(super) record: Option<Vec<String>>,
}

/// What outlives a restart.
pub(super) struct Disk {
    view: Option<Vec<u8>>,
    psks: Exchange,
    pub(super) keys: StoredNodeKeys,
    pub(super) is_full: bool,
}

impl Disk {
    fn save(&mut self, save: Save) {
        match save {
            Save::View(stored) => self.view = Some(serde_json::to_vec(&*stored).unwrap()),
            Save::Psks(psks) => {
                // As it is written and read.
                let text = serde_json::to_vec(&*psks).unwrap();
                self.psks = serde_json::from_slice(&text).unwrap();
            }
            Save::Keys(keys) => self.keys = keys.kept().unwrap(),
            Save::Connection(_) => {}
        }
    }
}

/// The WireGuard device and what is around it, as the kernel does it.
#[derive(Default)]
pub(super) struct Device {
    host: Observed,
    /// When each entry's last handshake was.
    handshakes: BTreeMap<WireguardKey, Duration>,
    /// Which of all entries ever each is: one that is made anew has no session.
    ages: BTreeMap<WireguardKey, u64>,
    ever: u64,
}

impl Device {
    pub(super) fn interface(&self) -> Option<&Interface> {
        self.host.interface.as_ref()
    }

    /// Whether packets to an address, other than those of the host's own networks, go into the
    /// tunnel.
    pub(super) fn leads_into_tunnel(&self, address: IpAddr) -> bool {
        let interface = self.host.interface.as_ref();
        let mut routes = interface.into_iter().flat_map(|it| it.routes.keys());
        routes.any(|prefix| prefix.contains(&address)) && !self.host.underlay.contains_key(&address)
    }

    /// Which of all entries ever this one is.
    pub(super) fn age_of(&self, key: WireguardKey) -> u64 {
        self.ages.get(&key).copied().unwrap_or_default()
    }

    pub(super) fn received(&mut self, from: WireguardKey) {
        let interface = self.host.interface.as_mut();
        if let Some(entry) = interface.and_then(|interface| interface.peers.get_mut(&from)) {
            entry.received_bytes += 148;
        }
    }

    pub(super) fn shook_hands(&mut self, with: WireguardKey, at: Duration) {
        let is_there = |interface: &Interface| interface.peers.contains_key(&with);
        if self.interface().is_some_and(is_there) {
            let last = self.handshakes.entry(with).or_insert(at);
            *last = at.max(*last);
            self.received(with);
        }
    }

    fn apply(&mut self, change: &Change) {
        self.host = std::mem::take(&mut self.host).after(change);
        if let Change::SetPrivateKey(_) = change {
            // The kernel ends all sessions.
            let keys: Vec<_> = self.ages.keys().copied().collect();
            for key in keys {
                self.ever += 1;
                self.ages.insert(key, self.ever);
            }
        }
        let interface = self.host.interface.as_ref();
        let entries = interface.map(|interface| &interface.peers);
        let is_there =
            |key: &WireguardKey| entries.is_some_and(|entries| entries.contains_key(key));
        self.ages.retain(|key, _| is_there(key));
        self.handshakes.retain(|key, _| is_there(key));
        let new = entries.into_iter().flat_map(BTreeMap::keys);
        for key in new {
            if !self.ages.contains_key(key) {
                self.ever += 1;
                self.ages.insert(*key, self.ever);
            }
        }
    }

    /// The device as the kernel shows it.
    fn shown(&self, now: Duration) -> Observed {
        let mut host = self.host.clone();
        for (key, entry) in host
            .interface
            .iter_mut()
            .flat_map(|interface| &mut interface.peers)
        {
            let at = self.handshakes.get(key);
            entry.handshake_age_s = at.map(|at| now.saturating_sub(*at).as_secs());
        }
        host
    }
}

impl Gateway {
    pub(super) fn new(number: u64) -> Self {
        Self {
            id: node_id(number),
            number,
            disk: Disk {
                view: None,
                psks: Exchange::default(),
                keys: node_keys_of(number).kept().unwrap(),
                is_full: false,
            },
            device: Device::default(),
            node: None,
            agent: 0,
            dies_after: None,
            failures: 0,
            wakes_at: None,
            since: Duration::ZERO,
            record: None,
        }
    }

    /// The host is started again: nothing is left of the device.
    pub(super) fn lose_device(&mut self) {
        self.device = Device::default();
    }

    fn handle(&mut self, now: Now, input: Input) {
        if let Some(record) = &mut self.record {
            record.push(format!("> {}", words::of_input(&input)));
        }
        if let Some(node) = &mut self.node {
            node.handle(now, input);
        }
    }

    pub(super) fn tunnel_address(&self) -> IpAddr {
        let [high, low] = u16::try_from(self.number).unwrap().to_be_bytes();
        Ipv4Addr::new(10, 99, high, low).into()
    }

    /// The network of its uplink, which has nothing to do with the mesh.
    fn uplink(&self) -> Ipv4Net {
        let [_, low] = u16::try_from(self.number).unwrap().to_be_bytes();
        Ipv4Net::new_assert([172, 31, low, 0].into(), 24)
    }

    /// What it reaches past the tunnel, whatever the coordinator says: its router, its coordinator
    /// and the gateways of others.
    pub(super) fn outside(&self) -> Vec<IpAddr> {
        let mut outside = vec![self.router().into(), COORDINATOR.into()];
        let interface = self.device.interface();
        let peers = interface.into_iter().flat_map(|it| it.peers.values());
        outside.extend(peers.filter_map(|peer| Some(peer.endpoint?.ip())));
        outside
    }

    fn router(&self) -> Ipv4Addr {
        self.uplink().hosts().next().unwrap()
    }

    fn surroundings(&self) -> Surroundings {
        let way = Way {
            device: "uplink".to_owned(),
            gateway: Some(self.router().into()),
            source: None,
        };
        Surroundings {
            networks: vec![self.uplink().into()],
            underlay: BTreeMap::from([(COORDINATOR.into(), Purpose::Coordinator)]),
            routes: vec![ForeignRoute {
                prefix: Ipv4Net::default().into(),
                metric: 0,
                way: Some(way),
            }],
        }
    }

    fn settings(&self, paces: Paces) -> NodeSettings {
        NodeSettings {
            mesh: MESH,
            node_keys: Arc::new(NodeKeys::restore(&self.disk.keys).unwrap()),
            interface: "wattle0".parse().unwrap(),
            guard: Guard::default(),
            psks: Ok(self.disk.psks.clone()),
            start: None,
            paces,
        }
    }
}

impl World {
    pub(super) fn start(&mut self, gateway: usize) {
        let (now, paces) = (self.now, self.paces);
        let it = &mut self.gateways[gateway];
        it.agent += 1;
        it.since = now;
        it.dies_after = None;
        it.wakes_at = None;
        it.node = Some(LocalNode::new(it.settings(paces), SeededKem));
        let stored = it
            .disk
            .view
            .as_ref()
            .map(|text| Stored::read(text).unwrap().0);
        let agent = it.agent;
        self.after(LATENCY, Event::Connect(gateway, agent));
        match stored {
            Some(stored) => self.tell(gateway, Input::Restored(Box::new(stored))),
            None => self.tell(gateway, Input::Timer),
        }
    }

    /// The agent dies, and is started again.
    pub(super) fn kill(&mut self, gateway: usize) {
        let now = self.now;
        let it = &mut self.gateways[gateway];
        if it.node.take().is_some() {
            it.since = now;
            self.coordinator.hang_up(it.id);
            self.after(RESTARTED_AFTER, Event::Start(gateway));
        }
    }

    /// Tells an agent what happens, and lets it do all that it says then.
    pub(super) fn tell(&mut self, gateway: usize, input: Input) {
        let clock = self.clock();
        if self.gateways[gateway].node.is_none() {
            return;
        }
        self.gateways[gateway].handle(clock, input);
        while let Some(output) = self.next_output(gateway) {
            self.carry_out(gateway, output);
        }
        self.wake_later(gateway);
    }

    fn next_output(&mut self, gateway: usize) -> Option<Output> {
        let it = &mut self.gateways[gateway];
        let output = it.node.as_mut()?.poll_output()?;
        if let Some(record) = &mut it.record {
            record.push(format!("< {}", words::of_output(&output)));
        }
        Some(output)
    }

    fn carry_out(&mut self, gateway: usize, output: Output) {
        let (now, clock) = (self.now, self.clock());
        let answer = match output {
            Output::Observe(Look::Host) => {
                self.renew(gateway);
                let observation = Observation {
                    at: now,
                    observed: self.gateways[gateway].device.shown(now),
                    surroundings: self.gateways[gateway].surroundings(),
                    ..Observation::default()
                };
                Some(Input::Observed(Ok(Box::new(observation))))
            }
            Output::Observe(Look::Peers) => {
                self.renew(gateway);
                let interface = self.gateways[gateway].device.shown(now).interface;
                let peers = interface.map(|interface| interface.peers);
                Some(Input::PeersObserved {
                    at: now,
                    peers: Ok(peers),
                })
            }
            Output::Apply(steps) => Some(Input::Applied(self.apply(gateway, &steps))),
            Output::Save(_) if self.gateways[gateway].disk.is_full => {
                Some(Input::Saved(Err("no space left on device".to_owned())))
            }
            Output::Save(save) => {
                self.gateways[gateway].disk.save(save);
                Some(Input::Saved(Ok(())))
            }
            Output::Send(request) => {
                let agent = self.gateways[gateway].agent;
                self.send(gateway, agent, request);
                None
            }
            Output::AskForSnapshot => {
                let (id, agent) = (self.gateways[gateway].id, self.gateways[gateway].agent);
                self.coordinator.hang_up(id);
                self.after(RECONNECTED_AFTER, Event::Connect(gateway, agent));
                None
            }
            Output::BeginAnew => {
                self.kill(gateway);
                None
            }
            Output::Settled | Output::Log(..) => None,
        };
        // It may die after anything that it does, before it hears what came of it.
        let it = &mut self.gateways[gateway];
        it.dies_after = it.dies_after.and_then(|left| left.checked_sub(1));
        if it.dies_after == Some(0) {
            it.dies_after = None;
            return self.kill(gateway);
        }
        if let Some(answer) = answer {
            it.handle(clock, answer);
        }
    }

    fn apply(&mut self, gateway: usize, steps: &[Step]) -> Result<(), Failure> {
        let others: Vec<_> = (0..self.gateways.len())
            .filter(|other| *other != gateway)
            .map(|other| pair(gateway, other))
            .collect();
        others.iter().for_each(|pair| self.freeze(*pair));
        for step in steps {
            self.laws
                .judge_step(gateway, &self.gateways[gateway], &step.change);
            self.gateways[gateway].device.apply(&step.change);
            self.laws.judge_host(gateway, &self.gateways[gateway]);
        }
        others.iter().for_each(|pair| self.thaw(*pair));
        Ok(())
    }

    fn wake_later(&mut self, gateway: usize) {
        let now = self.now;
        let it = &mut self.gateways[gateway];
        let Some(at) = it.node.as_ref().and_then(LocalNode::poll_timeout) else {
            return;
        };
        let at = at.max(now);
        // One that comes earlier finds nothing to do, and looks again.
        if it
            .wakes_at
            .is_some_and(|wakes_at| wakes_at > now && wakes_at <= at)
        {
            return;
        }
        it.wakes_at = Some(at);
        let agent = it.agent;
        self.after(at - now, Event::Wake(gateway, agent));
    }

    fn send(&mut self, gateway: usize, agent: u64, request: super::Request) {
        if self.is_lost(gateway) {
            let reply = Box::new(request.unanswered());
            self.after(ANSWER_LIMIT, Event::Reply(gateway, agent, reply));
        } else {
            self.after(LATENCY, Event::Request(gateway, agent, Box::new(request)));
        }
    }

    /// Whether a message between a gateway and the coordinator does not arrive.
    pub(super) fn is_lost(&mut self, gateway: usize) -> bool {
        let is_away = self.cut_off.contains(&gateway) || self.coordinator.is_away;
        is_away || self.lossy.is_some_and(|of| self.dice.one_in(of))
    }

    /// The agent opens its stream, if it can.
    pub(super) fn connect(&mut self, gateway: usize, agent: u64) {
        if !self.is_running(gateway, agent) {
            return;
        }
        if self.is_lost(gateway) {
            let reason = "no answer".to_owned();
            self.tell(
                gateway,
                Input::Disconnected {
                    reason,
                    is_stranger: false,
                },
            );
            let it = &mut self.gateways[gateway];
            it.failures += 1;
            let wait = backoff(it.failures, u32::MAX);
            return self.after(wait, Event::Connect(gateway, agent));
        }
        let it = &mut self.gateways[gateway];
        it.failures = 0;
        let node = it.node.as_ref().unwrap();
        let (id, since) = (it.id, node.replica().resume_from());
        self.coordinator.open(id, since);
        self.tell(gateway, Input::Connected);
        self.stream();
        self.say_that_messages_wait(id);
    }

    /// A stream has ended: the agent hears of it, and opens another.
    pub(super) fn disconnect(&mut self, gateway: usize) {
        let it = &self.gateways[gateway];
        let (id, agent) = (it.id, it.agent);
        if self.coordinator.hang_up(id) && it.node.is_some() {
            let reason = "the stream ended".to_owned();
            self.tell(
                gateway,
                Input::Disconnected {
                    reason,
                    is_stranger: false,
                },
            );
            self.after(RECONNECTED_AFTER, Event::Connect(gateway, agent));
        }
    }
}
