//! One node changes its key while messages are lost, repeated and late, programs die and the
//! coordinator is away: in the end all go by one key, and the tunnels are up. A stranger and a
//! hostile peer send all that any peer ever saw, to every route that takes it. The coordinator lies
//! about who is ready, and takes back what was announced.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use wattle_wire::{
    enrol::{SignedStatement, Statement},
    ids::{NodeId, Position},
    key::{Signature, WireguardKey},
    peer::{MeshSettings, View},
    psk::PskPolicy,
    report::DeviceKind,
    rotation::{ReadyPeer, RotationAnswer, RotationStep, SignedAnnouncement},
    stream::StreamMessage,
};

use super::{
    ASK_INTERVAL, READY_LIMIT, Rotation, RotationAction, RotationReply, Situation,
    canary::{Watch, keys_in_place},
    kept_for_unmanaged, outrun,
};
use crate::{
    agent::{guard::Refused, replica::Replica},
    config::{
        directory::{Announced, Directory, NodeRecord, RecordChange},
        view,
    },
    host::{
        desired::{Local, desired},
        plan::plan,
        state::{Interface, Observed},
    },
    keys::{
        enrolment::{check_announced, prove_announced, verify_announcement, verify_statement},
        node_keys::{NodeKeys, StoredNodeKeys},
        psk::exchange::Exchange,
        succession,
    },
    testing::{
        CHALLENGE_SECRET, Keys, MESH, challenge_of, directory_of, node_id, node_keys_of, snapshot,
        unmanaged_record,
    },
};

/// The node that changes its key; the others are its peers.
const ROTATING: u64 = 1;
const NODES: u64 = 3;

/// A gateway: what outlives its agent, and what does not.
struct Gateway {
    id: NodeId,
    disk: StoredNodeKeys,
    host: Observed,
    node_keys: NodeKeys,
    replica: Replica,
    rotation: Rotation,
    watch: Watch,
}

impl Gateway {
    fn new(number: u64) -> Self {
        let node_keys = node_keys_of(number);
        let replica = Replica::new(MESH, node_keys.wireguard_key());
        let host = Observed {
            interface: Some(Interface::new(DeviceKind::Kernel)),
            ..Observed::default()
        };
        let disk = node_keys.kept().unwrap();
        Self {
            id: node_id(number),
            disk,
            host,
            node_keys,
            replica,
            rotation: Rotation::default(),
            watch: Watch::default(),
        }
    }

    /// The agent dies and comes back, with the view that it has kept.
    fn restart(&mut self) {
        let stored = self.replica.stored();
        self.node_keys = NodeKeys::restore(&self.disk).unwrap();
        self.replica = Replica::new(MESH, self.node_keys.wireguard_key());
        if let Some(stored) = stored {
            self.replica.restore(stored).unwrap();
        }
        (self.rotation, self.watch) = (Rotation::default(), Watch::default());
    }

    fn interface(&self) -> &Interface {
        self.host.interface.as_ref().unwrap()
    }

    /// Looks at the host and makes it what it should be, or dies after so many steps.
    fn reconcile(&mut self, now: Duration, steps: usize) {
        let Some(known) = self.replica.known() else {
            return;
        };
        let peer_keys = self
            .watch
            .observe(known, self.host.interface.as_ref().unwrap(), now);
        let local = Local {
            interface: "wattle0".parse().unwrap(),
            node_keys: &self.node_keys,
            addresses: vec![],
        };
        let wanted = desired(
            known,
            &local,
            &Refused::default(),
            &Exchange::default(),
            &peer_keys,
        );
        let plan = plan(&wanted, &self.host);
        let all = plan.steps.len() <= steps;
        for step in plan.steps.iter().take(steps) {
            self.host = std::mem::take(&mut self.host).after(&step.change);
        }
        if all {
            self.watch.made(&peer_keys, now);
        } else {
            self.restart();
        }
    }
}

struct World {
    directory: Directory,
    revision: i64,
    /// What peers said to be ready for, by the peer and the number.
    keys_in_place: BTreeMap<(NodeId, u64), Signature>,
    gateways: Vec<Gateway>,
    /// All that the peers have seen of what the rotating node signed.
    statements: Vec<SignedStatement>,
    announcements: Vec<SignedAnnouncement>,
    /// The keys that the rotating node has or had as its own.
    owned: BTreeSet<WireguardKey>,
    now: Duration,
    /// The coordinator says of all peers that they are ready.
    lies: bool,
}

/// Who sends what it has seen.
#[derive(Clone, Copy, Debug)]
enum Attacker {
    /// Without a token.
    Stranger,
    /// With the token of a node.
    Peer,
}

/// What happens; a gateway is named by its place.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The coordinator's newest word arrives.
    Hear(usize),
    /// What a gateway is ready for arrives.
    Report(usize),
    /// The rotating node does what is next; the coordinator does not answer, or its answer is lost,
    /// or neither.
    Rotate {
        asked: bool,
        answered: bool,
    },
    Reconcile(usize),
    /// The agent dies after so many steps.
    DieIn(usize, usize),
    Die(usize),
    /// One gateway calls another.
    Call(usize, usize),
    Time(u64),
    /// Another is first.
    Busy,
    /// From now on the coordinator says of all peers that they are ready, or no longer does.
    Lie(bool),
    /// The coordinator tells a gateway that nothing is announced.
    Withhold(usize),
    /// Something that was seen is sent again.
    Replay(Attacker, prop::sample::Index),
}

fn happens() -> impl Strategy<Value = Happens> {
    let gateway = || 0..usize::try_from(NODES).unwrap();
    prop_oneof![
        3 => gateway().prop_map(Happens::Hear),
        3 => gateway().prop_map(Happens::Report),
        6 => (any::<bool>(), any::<bool>()).prop_map(|(asked, answered)| Happens::Rotate { asked: asked || answered, answered }),
        4 => gateway().prop_map(Happens::Reconcile),
        1 => (gateway(), 0..4usize).prop_map(|(gateway, steps)| Happens::DieIn(gateway, steps)),
        1 => gateway().prop_map(Happens::Die),
        6 => (gateway(), gateway()).prop_map(|(from, to)| Happens::Call(from, to)),
        3 => (1..2_000u64).prop_map(Happens::Time),
        1 => Just(Happens::Busy),
        1 => any::<bool>().prop_map(Happens::Lie),
        2 => gateway().prop_map(Happens::Withhold),
        6 => (prop_oneof![Just(Attacker::Stranger), Just(Attacker::Peer)], any::<prop::sample::Index>())
            .prop_map(|(by, what)| Happens::Replay(by, what)),
    ]
}

impl World {
    fn new() -> Self {
        let mut directory = directory_of(NODES);
        directory.mesh.psk = PskPolicy::Prefer;
        let gateways = (1..=NODES).map(Gateway::new).collect();
        let mut world = Self {
            directory,
            revision: 1,
            keys_in_place: BTreeMap::new(),
            gateways,
            statements: vec![],
            announcements: vec![],
            owned: BTreeSet::new(),
            now: Duration::ZERO,
            lies: false,
        };
        world.settle();
        world.change(|node| node.rotate_since = Some(chrono::DateTime::UNIX_EPOCH));
        world
    }

    fn change(&mut self, change: impl FnOnce(&mut NodeRecord)) {
        let mut node = self.directory.nodes[&node_id(ROTATING)].clone();
        change(&mut node);
        self.statements.push(node.statement.clone());
        let announced = node.announced.as_ref();
        self.announcements
            .extend(announced.map(|announced| announced.announcement.clone()));
        self.directory.apply(&RecordChange::Node(node));
        self.revision += 1;
    }

    fn hear(&mut self, gateway: usize) {
        let view = view::view(&self.directory, self.gateways[gateway].id).unwrap();
        self.tell(gateway, view);
    }

    /// Tells a gateway that nothing is announced.
    fn withhold(&mut self, gateway: usize) {
        let mut view = view::view(&self.directory, self.gateways[gateway].id).unwrap();
        for peer in &mut view.peers {
            peer.announced = None;
        }
        self.tell(gateway, view);
    }

    fn tell(&mut self, gateway: usize, view: View) {
        let position = Position {
            epoch: 1,
            revision: self.revision,
        };
        let received = self.gateways[gateway].replica.receive(
            StreamMessage::Snapshot {
                position,
                view,
                removed: vec![],
            },
            0,
        );
        assert!(
            matches!(received, crate::agent::replica::Received::Changed { refused } if refused.is_empty())
        );
    }

    fn report(&mut self, gateway: usize) {
        let gateway = &self.gateways[gateway];
        if let Some(known) = gateway.replica.known() {
            let (keys, psks) = (&gateway.node_keys, Exchange::default());
            let ready = keys_in_place(known, keys, gateway.interface(), &psks).into_iter();
            let said = ready.map(|key| ((gateway.id, key.sequence), key.signature));
            self.keys_in_place.extend(said);
        }
    }

    /// Whether anything was done.
    fn rotate(&mut self, asked: bool, answered: bool, busy: bool) -> bool {
        let gateway = &mut self.gateways[0];
        let Some(known) = gateway.replica.known() else {
            return false;
        };
        let situation = Situation {
            known,
            node_keys: &gateway.node_keys,
            interface: gateway.host.interface.as_ref().unwrap(),
            psks: &Exchange::default(),
            is_asked: false,
            now: self.now,
            unix_s: self.now.as_secs(),
        };
        let Some(act) = gateway.rotation.next(&situation) else {
            return false;
        };
        let node_keys = match act {
            RotationAction::MakeKey => {
                let mut secret = [77; 32];
                secret[..8].copy_from_slice(&self.revision.to_be_bytes());
                secret[8..24].copy_from_slice(&self.now.as_nanos().to_be_bytes());
                let highest = known.myself.keys.unwrap().highest;
                let node_keys = gateway.node_keys.numbering_above(highest).unwrap();
                node_keys.preparing(&secret).unwrap()
            }
            RotationAction::TakeUp => {
                // The one moment of which packets depend: nobody in touch is unprepared, as far as
                // it was heard of.
                gateway.node_keys.switched(self.now.as_secs()).unwrap()
            }
            RotationAction::GiveUp => gateway.node_keys.staying().unwrap(),
            RotationAction::Tell(step) => {
                let told = if !asked {
                    RotationReply::Unreachable
                } else if busy {
                    RotationReply::Busy
                } else {
                    let reply = self.coordinator(ROTATING, &step);
                    if answered {
                        reply
                    } else {
                        RotationReply::Unreachable
                    }
                };
                self.gateways[0].rotation.told(&step, told, self.now);
                return true;
            }
        };
        gateway.disk = node_keys.kept().unwrap();
        gateway.replica.set_own_key(node_keys.wireguard_key());
        gateway.node_keys = node_keys;
        true
    }

    /// What the coordinator does with a step of a node.
    fn coordinator(&mut self, caller: u64, step: &RotationStep) -> RotationReply {
        let record = self.directory.nodes[&node_id(caller)].clone();
        let refused = |why: String| RotationReply::Refused(why);
        match step {
            RotationStep::Prepare {} => RotationReply::Taken(RotationAnswer {
                challenge: Some(challenge_of(self.now.as_secs())),
                ..RotationAnswer::default()
            }),
            RotationStep::Announce(claim) => {
                let announcement = &claim.announcement;
                let statement = match verify_announcement(announcement, MESH) {
                    Ok(statement) => statement,
                    Err(why) => return refused(why.to_string()),
                };
                if !succession::stands(&record, announcement) {
                    let (key, now) = (statement.wireguard_key, self.now.as_secs());
                    if let Err(why) = check_announced(claim, key, &CHALLENGE_SECRET, now) {
                        return refused(why.to_string());
                    }
                    if let Err(why) = succession::may_announce(&record, &statement) {
                        return refused(why.to_string());
                    }
                    let announced = Announced {
                        announcement: announcement.clone(),
                        at: chrono::DateTime::UNIX_EPOCH,
                    };
                    assert_eq!(caller, ROTATING, "no other node announces anything");
                    self.change(|node| {
                        node.announced = Some(announced);
                        node.highest_sequence = statement.sequence;
                    });
                }
                RotationReply::Taken(RotationAnswer {
                    ready: self.said_to_be_ready(statement.sequence),
                    challenge: None,
                })
            }
            RotationStep::Done(signed) => {
                let statement = match verify_statement(signed, MESH) {
                    Ok(statement) => statement,
                    Err(why) => return refused(why.to_string()),
                };
                if record.statement != *signed {
                    if succession::may_take_up(&record, &statement).is_err() {
                        return RotationReply::Unannounced;
                    }
                    assert_eq!(caller, ROTATING, "no other node takes up anything");
                    self.take(signed, &statement);
                    self.change(|node| node.rotate_since = None);
                }
                RotationReply::Taken(RotationAnswer::default())
            }
            RotationStep::Withdraw {} => {
                if caller == ROTATING {
                    self.change(|node| node.announced = None);
                }
                RotationReply::Taken(RotationAnswer::default())
            }
        }
    }

    /// A coordinator that lies names those who said nothing, with what others have signed.
    fn said_to_be_ready(&self, sequence: u64) -> Vec<ReadyPeer> {
        let peers = (2..=NODES).map(node_id);
        let word = |node| {
            let said = self.keys_in_place.get(&(node, sequence)).copied();
            let any = self.keys_in_place.values().next_back().copied();
            let signature = said.or(any.filter(|_| self.lies))?;
            Some(ReadyPeer { node, signature })
        };
        peers.filter_map(word).collect()
    }

    fn take(&mut self, signed: &SignedStatement, statement: &Statement) {
        self.change(|node| {
            (node.statement, node.announced) = (signed.clone(), None);
            node.wireguard_key = statement.wireguard_key;
            node.identity_key = statement.identity;
            node.highest_sequence = node.highest_sequence.max(statement.sequence);
        });
    }

    /// What the coordinator does with another identity, whoever sends it.
    fn identity(&mut self, node: u64, signed: &SignedStatement) {
        let record = &self.directory.nodes[&node_id(node)];
        let Ok(statement) = verify_statement(signed, MESH) else {
            return;
        };
        if record.statement != *signed && succession::may_succeed(record, &statement).is_ok() {
            self.take(signed, &statement);
        }
    }

    /// Sends something that was seen, as a statement and as an announcement, for each node.
    fn replay(&mut self, by: Attacker, what: prop::sample::Index) {
        let all = self.statements.len() + self.announcements.len();
        if all > 0 {
            self.replay_the(by, what.index(all));
        }
    }

    fn replay_the(&mut self, by: Attacker, what: usize) {
        let seen = self
            .announcements
            .iter()
            .map(|seen| (&seen.announcement, seen.signature));
        let stated = self
            .statements
            .iter()
            .map(|seen| (&seen.statement, seen.signature));
        let (text, signature) = seen.chain(stated).nth(what).unwrap();
        let statement = SignedStatement {
            statement: text.clone(),
            signature,
        };
        let announcement = SignedAnnouncement {
            announcement: text.clone(),
            signature,
        };
        match by {
            Attacker::Stranger => {
                (1..=NODES).for_each(|node| self.identity(node, &statement));
            }
            Attacker::Peer => {
                // It proves a key of its own, for it has no other.
                let challenge = challenge_of(self.now.as_secs());
                let claim = prove_announced(&challenge, announcement, &Keys::of(2).wireguard);
                self.coordinator(2, &RotationStep::Announce(claim));
                self.coordinator(2, &RotationStep::Done(statement));
            }
        }
    }

    /// The coordinator's database is of a time before the rotation.
    fn restore(&mut self) {
        let before = directory_of(NODES).nodes[&node_id(ROTATING)].clone();
        self.change(|node| {
            *node = NodeRecord {
                rotate_since: node.rotate_since,
                ..before
            };
        });
        self.keys_in_place.clear();
    }

    /// A first handshake message, and its answer if there is one, as WireGuard does it.
    fn call(&mut self, from: usize, to: usize) {
        let caller = self.gateways[from].interface().public_key;
        let callee = self.gateways[to].interface().public_key;
        let (Some(caller), Some(callee)) = (caller, callee) else {
            return;
        };
        let calls = self.gateways[from]
            .interface()
            .peers
            .get(&callee)
            .is_some_and(|entry| !entry.allowed_ips.is_empty());
        let Some(entry) = self.gateways[to]
            .host
            .interface
            .as_mut()
            .unwrap()
            .peers
            .get_mut(&caller)
            .filter(|_| calls)
        else {
            return;
        };
        entry.received_bytes += 148;
        // The entry that waits for an announced key has a preshared key of its own; no other has
        // one here.
        if entry.psk.is_none() {
            entry.handshake_age_s = Some(0);
            let entry = self.gateways[from]
                .host
                .interface
                .as_mut()
                .unwrap()
                .peers
                .get_mut(&callee)
                .unwrap();
            (entry.handshake_age_s, entry.received_bytes) = (Some(0), entry.received_bytes + 92);
        }
    }

    fn pass(&mut self, time: Duration) {
        let before = self.now.as_secs();
        self.now += time;
        let passed = self.now.as_secs() - before;
        for gateway in &mut self.gateways {
            for entry in gateway.host.interface.as_mut().unwrap().peers.values_mut() {
                entry.handshake_age_s = entry.handshake_age_s.map(|age| age + passed);
            }
        }
    }

    fn happen(&mut self, event: Happens) {
        match event {
            Happens::Hear(gateway) => self.hear(gateway),
            Happens::Report(gateway) => self.report(gateway),
            Happens::Rotate { asked, answered } => drop(self.rotate(asked, answered, false)),
            Happens::Busy => drop(self.rotate(true, true, true)),
            Happens::Reconcile(gateway) => self.gateways[gateway].reconcile(self.now, usize::MAX),
            Happens::DieIn(gateway, steps) => self.gateways[gateway].reconcile(self.now, steps),
            Happens::Die(gateway) => self.gateways[gateway].restart(),
            Happens::Call(from, to) => self.call(from, to),
            Happens::Time(ms) => self.pass(Duration::from_millis(ms)),
            Happens::Lie(lies) => self.lies = lies,
            Happens::Withhold(gateway) => self.withhold(gateway),
            Happens::Replay(by, what) => self.replay(by, what),
        }
        self.the_mesh_goes_by_a_key_that_the_node_has();
        self.nobody_loses_what_is_his();
    }

    /// The private half of the key by which peers go is the node's, and was in use: nobody but the
    /// node has it taken up.
    fn the_mesh_goes_by_a_key_that_the_node_has(&mut self) {
        let node_keys = &self.gateways[0].node_keys;
        self.owned.insert(node_keys.wireguard_key());
        let record = &self.directory.nodes[&node_id(ROTATING)];
        assert!(self.owned.contains(&record.wireguard_key));
        assert_eq!(record.identity_key, node_keys.identity_key());
        let stated = verify_statement(&record.statement, MESH).unwrap();
        assert!(stated.sequence <= node_keys.sequence());
    }

    /// A prefix has one holder at most, and each gateway that had an entry for another still has
    /// one.
    fn nobody_loses_what_is_his(&self) {
        for gateway in &self.gateways {
            let held: Vec<_> = gateway
                .interface()
                .peers
                .values()
                .flat_map(|entry| &entry.allowed_ips)
                .collect();
            assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len());
        }
    }

    /// Everything works from now on.
    fn settle(&mut self) {
        self.lies = false;
        for _ in 0..40 {
            let gateways = 0..self.gateways.len();
            while self.rotate(true, true, false) {
                if self.gateways[0].rotation.silent_until > self.now {
                    break;
                }
            }
            for gateway in gateways.clone() {
                self.hear(gateway);
                self.gateways[gateway].reconcile(self.now, usize::MAX);
                self.report(gateway);
                gateways.clone().for_each(|other| self.call(gateway, other));
            }
            self.pass(Duration::from_secs(1));
        }
    }

    /// All go by the rotating node's key, and all tunnels are up.
    fn agrees(&self) -> Result<(), TestCaseError> {
        let key = self.gateways[0].node_keys.wireguard_key();
        prop_assert_eq!(self.gateways[0].interface().public_key, Some(key));
        prop_assert_eq!(self.directory.nodes[&node_id(ROTATING)].wireguard_key, key);
        for gateway in &self.gateways {
            prop_assert_eq!(
                gateway.interface().peers.len(),
                2,
                "{:?}",
                gateway.interface().peers
            );
            for entry in gateway.interface().peers.values() {
                prop_assert!(
                    entry.is_live() && entry.psk.is_none() && !entry.allowed_ips.is_empty(),
                    "{:?}",
                    entry
                );
            }
        }
        Ok(())
    }
}

#[test]
fn a_key_that_somebody_asked_for_is_taken_up_once() {
    let mut world = World::new();
    let before = world.gateways[0].node_keys.wireguard_key();
    world.agrees().unwrap();
    world.settle();
    world.agrees().unwrap();
    let after = world.gateways[0].node_keys.wireguard_key();
    assert_ne!(before, after);
    assert_eq!(world.directory.nodes[&node_id(ROTATING)].rotate_since, None);
    world.settle();
    assert_eq!(world.gateways[0].node_keys.wireguard_key(), after);
}

#[test]
fn a22_a_node_says_when_the_mesh_has_a_newer_statement_than_it_has_made_and_a_new_key_mends_it() {
    let mut world = World::new();
    let disk = world.gateways[0].node_keys.kept().unwrap();
    world.settle();
    world.agrees().unwrap();
    let problem = |world: &World| {
        let gateway = &world.gateways[0];
        outrun(gateway.replica.known().unwrap(), &gateway.node_keys)
    };
    assert_eq!(problem(&world), None);

    world.gateways[0].disk = disk;
    world.gateways[0].restart();
    world.settle();
    assert!(world.agrees().is_err());
    let said = problem(&world).unwrap();
    assert!(said.starts_with("the mesh goes by statement 2 of this node"));
    assert!(
        said.contains("the newest that this gateway has is 1"),
        "{said}"
    );

    world.change(|node| node.rotate_since = Some(chrono::DateTime::UNIX_EPOCH));
    world.pass(Duration::from_secs(300));
    world.settle();
    world.agrees().unwrap();
    assert_eq!(problem(&world), None);
}

#[test]
fn a_coordinator_whose_database_is_of_an_earlier_time_takes_the_present_key_after_it_is_announced()
{
    let mut world = World::new();
    world.settle();
    let key = world.gateways[0].node_keys.wireguard_key();
    world.restore();
    assert_ne!(world.directory.nodes[&node_id(ROTATING)].wireguard_key, key);
    // Its own word is refused by peers, who know a newer one; the node hears how far it is.
    let view = view::view(&world.directory, node_id(ROTATING)).unwrap();
    let position = Position {
        epoch: 2,
        revision: 1,
    };
    let told = StreamMessage::Snapshot {
        position,
        view,
        removed: vec![],
    };
    world.gateways[0].replica.receive(told, 0);
    for _ in 0..4 {
        world.rotate(true, true, false);
    }
    assert_eq!(world.directory.nodes[&node_id(ROTATING)].wireguard_key, key);
}

#[test]
fn e21_nobody_goes_back_to_the_former_key_of_a_peer_whose_announcement_is_taken_back() {
    let mut world = World::new();
    until_taken_up(&mut world);
    world.gateways[0].reconcile(world.now, usize::MAX);
    let key = world.gateways[0].node_keys.wireguard_key();
    for peer in [1, 2] {
        world.withhold(peer);
        world.call(0, peer);
        for restarts in [false, true] {
            if restarts {
                world.gateways[peer].restart();
                world.withhold(peer);
            }
            world.gateways[peer].reconcile(world.now, usize::MAX);
            world.call(peer, 0);
            let entry = &world.gateways[peer].interface().peers[&key];
            assert!(entry.is_live() && entry.allowed_ips.len() == 2, "{entry:?}");
        }
    }
    world.settle();
    world.agrees().unwrap();
}

#[test]
fn e21_a_peer_is_ready_when_it_says_so_itself_and_not_on_the_coordinators_word() {
    let mut world = World::new();
    world.lies = true;
    // The second peer signs, and the third has not even heard of the key.
    let before = world.gateways[0].node_keys.wireguard_key();
    let mut asked = 0;
    let end = world.now + READY_LIMIT / 2;
    while world.now < end {
        for gateway in [0, 1] {
            world.hear(gateway);
            world.gateways[gateway].reconcile(world.now, usize::MAX);
            world.report(gateway);
        }
        asked += usize::from(world.rotate(true, true, false));
        world.pass(ASK_INTERVAL);
    }
    assert!(asked > 20, "{asked}");
    assert_eq!(world.gateways[0].node_keys.wireguard_key(), before);
    world.settle();
    world.agrees().unwrap();
    assert_ne!(world.gateways[0].node_keys.wireguard_key(), before);
}

/// Goes on until the key is taken up, and is not on the device yet.
fn until_taken_up(world: &mut World) {
    let before = world.gateways[0].node_keys.wireguard_key();
    while world.gateways[0].node_keys.wireguard_key() == before {
        for gateway in 0..world.gateways.len() {
            world.hear(gateway);
            world.gateways[gateway].reconcile(world.now, usize::MAX);
            world.report(gateway);
        }
        world.rotate(true, true, false);
        world.pass(Duration::from_millis(100));
        assert!(world.now < Duration::from_secs(100), "it is never taken up");
    }
}

#[test]
fn without_the_coordinator_the_peers_follow_at_the_first_call_even_of_a_node_that_has_died_in_between()
 {
    for dies in [false, true] {
        let mut world = World::new();
        until_taken_up(&mut world);
        if dies {
            world.gateways[0].restart();
        }
        world.gateways[0].reconcile(world.now, usize::MAX);
        let key = world.gateways[0].node_keys.wireguard_key();
        for peer in [1, 2] {
            world.call(0, peer);
            world.gateways[peer].reconcile(world.now, usize::MAX);
            world.call(peer, 0);
            let entry = &world.gateways[peer].interface().peers[&key];
            assert!(
                entry.psk.is_none()
                    && entry.allowed_ips.len() == 2
                    && entry.handshake_age_s == Some(0),
                "{entry:?}"
            );
            assert_eq!(
                world.gateways[peer].interface().peers.len(),
                2,
                "the former key is forgotten"
            );
        }
        world.settle();
        world.agrees().unwrap();
    }
}

#[test]
fn a_peer_that_missed_it_all_follows_once_the_coordinator_tells_it_and_calls_anew_until_it_is_heard()
 {
    let mut world = World::new();
    until_taken_up(&mut world);
    world.gateways[0].reconcile(world.now, usize::MAX);
    while world.directory.nodes[&node_id(ROTATING)]
        .announced
        .is_some()
    {
        world.rotate(true, true, false);
        world.pass(Duration::from_millis(100));
    }
    world.hear(1);
    let (key, peer) = (
        world.gateways[0].node_keys.wireguard_key(),
        &mut world.gateways[1],
    );
    let mut without = peer.interface().clone();
    without.peers.remove(&key);
    peer.reconcile(world.now, usize::MAX);
    assert_eq!(peer.interface().peers[&key].allowed_ips.len(), 2);
    assert_eq!(
        calls(peer, peer.watch.clone(), world.now, 0),
        [300, 900, 2_100, 4_500, 9_300, 14_300, 19_300]
    );
    // A handshake has the whole time from when the entry is there.
    assert_eq!(
        calls(peer, peer.watch.clone(), world.now, 200),
        [300, 1_100, 2_500, 5_100, 10_100, 15_300]
    );
    // So has that of an entry which was missing: it is made, and only then made anew.
    let (mut watch, made) = (Watch::default(), world.now + Duration::from_millis(500));
    let known = peer.replica.known().unwrap();
    let peer_keys = watch.observe(known, &without, world.now);
    assert!(!peer_keys.is_pressing());
    watch.made(&peer_keys, made);
    assert_eq!(calls(peer, watch, made, 0)[..4], [300, 900, 2_100, 4_500]);
    let (known, late) = (
        peer.replica.known().unwrap(),
        world.now + Duration::from_secs(70),
    );
    let interface = peer.host.interface.as_ref().unwrap();
    peer.watch.observe(known, interface, late);
    assert_eq!(
        peer.watch.interval(late),
        None,
        "WireGuard goes on by itself"
    );
}

/// When a peer whose calls nobody answers makes its entry anew, in milliseconds of 20 s. To make it
/// takes so many.
fn calls(peer: &Gateway, mut watch: Watch, began: Duration, takes: u64) -> Vec<u64> {
    let (known, interface) = (peer.replica.known().unwrap(), peer.interface());
    let (mut calls, mut ms) = (vec![], 0);
    while ms < 20_000 {
        let at = |ms| began + Duration::from_millis(ms);
        let peer_keys = watch.observe(known, interface, at(ms));
        if peer_keys.is_pressing() {
            calls.push(ms);
            ms += takes;
            watch.made(&peer_keys, at(ms));
        }
        assert!(watch.interval(at(ms)).is_some());
        ms += 50;
    }
    calls
}

#[test]
fn nothing_is_taken_up_while_somebody_in_touch_is_not_ready_and_the_old_key_stays() {
    let mut world = World::new();
    let before = world.gateways[0].node_keys.wireguard_key();
    for _ in 0..120 {
        world.hear(0);
        world.hear(1);
        world.gateways[1].reconcile(world.now, usize::MAX);
        world.report(1);
        world.rotate(true, true, false);
        assert_eq!(world.gateways[0].node_keys.wireguard_key(), before);
        world.pass(Duration::from_millis(500));
    }
    assert_eq!(world.gateways[0].node_keys.next_key(), None);
    assert!(
        world.directory.nodes[&node_id(ROTATING)]
            .announced
            .is_none(),
        "it is withdrawn"
    );
    let problem = world.gateways[0].rotation.problem().unwrap();
    assert!(
        problem.contains("site-3") && !problem.contains("site-2"),
        "{problem}"
    );
}

/// The first node, whose key is as old as a key may become, and a peer without an agent.
fn due_beside_an_unmanaged_peer() -> (Gateway, Interface) {
    let mut directory = directory_of(2);
    let mesh = MeshSettings {
        rotate_days: 30,
        ..directory.mesh.clone()
    };
    directory.apply(&RecordChange::Mesh(mesh));
    directory.apply(&RecordChange::Node(unmanaged_record(2)));
    let mut gateway = Gateway::new(ROTATING);
    let view = view::view(&directory, gateway.id).unwrap();
    gateway.replica.receive(snapshot(view), 0);
    gateway.reconcile(Duration::ZERO, usize::MAX);
    let mut interface = gateway.interface().clone();
    interface
        .peers
        .entry(node_keys_of(2).wireguard_key())
        .or_default()
        .handshake_age_s = Some(0);
    (gateway, interface)
}

#[test]
fn no_schedule_changes_the_key_that_the_file_of_an_unmanaged_peer_names_and_whoever_asks_does_not_wait_for_it()
 {
    let (gateway, interface) = due_beside_an_unmanaged_peer();
    let Gateway {
        node_keys,
        replica,
        mut rotation,
        ..
    } = gateway;
    let (known, psks) = (replica.known().unwrap(), Exchange::default());
    let unix_s = 31 * 24 * 3600;
    let situation = Situation {
        known,
        node_keys: &node_keys,
        interface: &interface,
        psks: &psks,
        is_asked: false,
        now: Duration::from_secs(1),
        unix_s,
    };
    assert_eq!(rotation.next(&situation), None);
    assert!(
        kept_for_unmanaged(known, &node_keys, unix_s).is_some_and(|why| why.contains("site-2"))
    );
    assert_eq!(kept_for_unmanaged(known, &node_keys, 0), None);

    assert_eq!(
        rotation.next(&Situation {
            is_asked: true,
            ..situation
        }),
        Some(RotationAction::MakeKey)
    );
    let node_keys = node_keys.preparing(&[66; 32]).unwrap();
    let situation = Situation {
        node_keys: &node_keys,
        ..situation
    };
    let Some(RotationAction::Tell(prepare @ RotationStep::Prepare {})) = rotation.next(&situation)
    else {
        panic!("no challenge is asked for")
    };
    let answer = RotationAnswer {
        ready: vec![],
        challenge: Some(challenge_of(1)),
    };
    rotation.told(&prepare, RotationReply::Taken(answer), situation.now);
    let Some(RotationAction::Tell(announce @ RotationStep::Announce(_))) =
        rotation.next(&situation)
    else {
        panic!("nothing is announced")
    };
    rotation.told(
        &announce,
        RotationReply::Taken(RotationAnswer::default()),
        situation.now,
    );
    assert_eq!(rotation.next(&situation), Some(RotationAction::TakeUp));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_all_end_up_with_one_key_and_every_tunnel_up(events in prop::collection::vec(happens(), 0..120)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        // What was put off is tried again after ten minutes, and sessions do not last that long on
        // their own.
        world.settle();
        world.agrees()?;
    }

    #[test]
    fn a21_whatever_strangers_and_peers_send_again_the_mesh_goes_by_a_key_that_its_node_has(events in prop::collection::vec(happens(), 0..120)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        // All at once, and again when everything works.
        for _ in 0..2 {
            for what in 0..world.statements.len() + world.announcements.len() {
                for by in [Attacker::Stranger, Attacker::Peer] {
                    world.replay_the(by, what);
                    world.the_mesh_goes_by_a_key_that_the_node_has();
                }
            }
            world.settle();
        }
        world.agrees()?;
    }

    #[test]
    fn a_key_is_taken_up_only_when_all_in_touch_stand_ready(events in prop::collection::vec(happens(), 0..120)) {
        let mut world = World::new();
        for event in events {
            let before = world.gateways[0].node_keys.wireguard_key();
            world.happen(event);
            let after = world.gateways[0].node_keys.wireguard_key();
            if before != after {
                for peer in &world.gateways[1..] {
                    let live = world.gateways[0].interface().peers.get(&peer.node_keys.wireguard_key()).is_some_and(|entry| entry.is_live());
                    prop_assert!(!live || peer.interface().peers.contains_key(&after), "{:?} is not \
                        ready", peer.id);
                }
            }
        }
    }
}
