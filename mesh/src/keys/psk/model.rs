//! One pair under every kind of misfortune: both ends, a mailbox that loses and repeats messages,
//! disks, and the tunnel between.

use proptest::prelude::*;
use wattle_wire::{
    ids::{MeshId, NodeId},
    key::WireguardKey,
    psk::{PskMessage, PskPolicy, PskStep, SignedPskMessage},
};

use super::{kem::seeded::SeededKem, retry::LONGEST_RETRY_S, *};
use crate::{
    keys::node_keys::NodeKeys,
    testing::{MESH, node_id},
};

const INITIATOR: usize = 0;
const RESPONDER: usize = 1;
/// Seconds after which WireGuard renews a session, between its attempts, and after which a session
/// ends.
const REKEY_S: u64 = 120;
const ATTEMPT_S: u64 = 5;
const SESSION_S: u64 = 180;
/// What it takes until both ends have the same key, once all is well: one wait of whoever may speak
/// first, and two rounds.
const MOST_S: u64 = 5;
/// When whoever wants another key says so for the second time.
const SECOND_TIME_S: u64 = LEAST_USE_S + 2 * SHORTEST_RETRY_S;
const MOST_MESSAGES: usize = 8;
/// Seconds between two observations of its device by an agent.
const OBSERVE_INTERVAL_S: u64 = 5;

struct End {
    node_keys: NodeKeys,
    id: NodeId,
    pair: Pair,
    disk: Pair,
    /// Seconds that its clock is behind.
    behind_s: u64,
}

impl End {
    fn new(number: u8) -> Self {
        let node_keys = NodeKeys::new(&[number; 32], &[number; 32], 0).unwrap();
        Self {
            node_keys,
            id: node_id(u64::from(number)),
            pair: Pair::default(),
            disk: Pair::default(),
            behind_s: 0,
        }
    }

    fn keep(&mut self) {
        // As a file would hold it.
        self.disk =
            serde_json::from_str(&serde_json::to_string(&self.pair.kept()).unwrap()).unwrap();
    }
}

struct World {
    policy: PskPolicy,
    now: u64,
    ends: [End; 2],
    /// The message that waits for each end, and all that ever did.
    mailbox: [Option<SignedPskMessage>; 2],
    ever: [Vec<SignedPskMessage>; 2],
    /// When the session in use was made, and the newest handshake as each end's device tells it.
    session: Option<u64>,
    handshakes: [Option<u64>; 2],
    /// Which end begins handshakes.
    caller: usize,
    /// Whether a device takes its answer to a call for a handshake, whatever the caller makes of
    /// it, as gotatun does.
    gullible: bool,
    /// Whether each end ever had a key to use.
    keyed: [bool; 2],
    /// One end is about to take up another WireGuard key.
    is_turning: bool,
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    /// The end takes its message.
    Deliver(usize),
    /// It takes it and another takes the same again.
    DeliverTwice(usize),
    /// It is killed before it has kept what the message made of it.
    DieBeforeKeeping(usize),
    /// It is killed after that, and before it has answered.
    DieBeforeAnswering(usize),
    /// It gets something that was for it long ago.
    Replay(usize, usize),
    /// The mailbox forgets its message.
    Lose(usize),
    Restart(usize),
    Tick(usize),
    /// Somebody at the end wants another key.
    Want(usize),
    /// The end takes up another identity, which the other learns of at once.
    RotateIdentity(usize),
    /// Time passes, with the tunnel up.
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let end = || 0..2usize;
    prop_oneof![
        6 => end().prop_map(Happening::Deliver),
        1 => end().prop_map(Happening::DeliverTwice),
        1 => end().prop_map(Happening::DieBeforeKeeping),
        1 => end().prop_map(Happening::DieBeforeAnswering),
        1 => (end(), any::<usize>()).prop_map(|(end, which)| Happening::Replay(end, which)),
        1 => end().prop_map(Happening::Lose),
        1 => end().prop_map(Happening::Restart),
        4 => end().prop_map(Happening::Tick),
        1 => end().prop_map(Happening::Want),
        1 => end().prop_map(Happening::RotateIdentity),
        2 => prop_oneof![1..60u64, Just(200), Just(25 * 3600)].prop_map(Happening::Pass),
    ]
}

impl World {
    fn new(policy: PskPolicy) -> Self {
        Self {
            policy,
            now: 1_800_000_000,
            ends: [End::new(2), End::new(1)],
            mailbox: [None, None],
            ever: [Vec::new(), Vec::new()],
            session: None,
            handshakes: [None, None],
            caller: INITIATOR,
            gullible: false,
            keyed: [false; 2],
            is_turning: false,
        }
    }

    /// A world whose ends have agreed once, with a fresh session.
    fn agreed(policy: PskPolicy) -> Self {
        let mut world = Self::new(policy);
        world.settle();
        world
    }

    /// Lets an end do something to its pair, keeps it and gives what it says.
    fn act<T>(&mut self, end: usize, work: impl FnOnce(&mut Pair, &Ends<'_>, u64) -> T) -> T {
        let now = self.now - self.ends[end].behind_s;
        let mut pair = std::mem::take(&mut self.ends[end].pair);
        let (me, peer) = (&self.ends[end], &self.ends[1 - end]);
        let ends = Ends {
            mesh: MESH,
            node_keys: &me.node_keys,
            me: me.id,
            peer: peer.id,
            peer_identity: peer.node_keys.identity_key(),
            peer_key: peer.node_keys.wireguard_key(),
            is_turning: self.is_turning,
        };
        let result = work(&mut pair, &ends, now);
        self.ends[end].pair = pair;
        result
    }

    fn post(&mut self, to: usize, message: Option<SignedPskMessage>) {
        let Some(message) = message else { return };
        assert!(
            message.message.len() <= SignedPskMessage::LONGEST,
            "{} bytes",
            message.message.len()
        );
        self.ever[to].push(message.clone());
        self.mailbox[to] = Some(message);
    }

    fn receive(&mut self, end: usize, message: &SignedPskMessage) -> Option<SignedPskMessage> {
        self.act(end, |pair, ends, now| {
            pair.receive(ends, message, now, &SeededKem)
        })
        .unwrap_or(None)
    }

    fn deliver(&mut self, end: usize) {
        if let Some(message) = self.mailbox[end].take() {
            let answer = self.receive(end, &message);
            self.ends[end].keep();
            self.post(1 - end, answer);
        }
    }

    fn tick(&mut self, end: usize) {
        let said = self.act(end, |pair, ends, now| pair.tick(ends, now, &SeededKem));
        self.ends[end].keep();
        self.post(1 - end, said);
    }

    fn restart(&mut self, end: usize) {
        self.ends[end].pair = self.ends[end].disk.clone();
    }

    fn rotate_identity(&mut self, end: usize) {
        let node_keys = &mut self.ends[end].node_keys;
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&node_keys.sequence().to_be_bytes());
        *node_keys = node_keys
            .preparing_identity(&seed)
            .unwrap()
            .identity_switched(MESH)
            .unwrap();
    }

    /// The end takes up another WireGuard key, of which the other learns at once.
    fn rotate_wireguard(&mut self, end: usize) {
        let mut secret = [9; 32];
        secret[..8].copy_from_slice(&self.now.to_be_bytes());
        let prepared = self.ends[end].node_keys.preparing(&secret).unwrap();
        self.ends[end].node_keys = prepared.switched(self.now).unwrap();
    }

    fn key(&self, end: usize) -> Option<&Psk> {
        self.ends[end].pair.key(self.policy)
    }

    /// Whether the two would understand each other in a handshake now.
    fn tunnel_works(&self) -> bool {
        let keys = [self.key(INITIATOR), self.key(RESPONDER)];
        keys[0] == keys[1] && (keys[0].is_some() || self.policy == PskPolicy::Prefer)
    }

    /// Seconds pass: WireGuard renews its session, both agents observe their device. Returns the
    /// greatest age of a session.
    fn pass(&mut self, seconds: u64) -> u64 {
        let mut oldest = 0;
        for _ in 0..seconds {
            self.now += 1;
            let age = self.session.map(|at| self.now - at);
            oldest = oldest.max(age.unwrap_or(0));
            if age.is_none_or(|age| age >= REKEY_S) && self.now.is_multiple_of(ATTEMPT_S) {
                self.call();
            }
            if self.now % OBSERVE_INTERVAL_S == 2 {
                for end in [INITIATOR, RESPONDER] {
                    let age = self.handshakes[end].map(|at| self.now - at);
                    if self.act(end, |pair, _, now| pair.observe(age, now)) {
                        self.ends[end].keep();
                    }
                }
            }
        }
        oldest
    }

    /// An attempt of a handshake.
    fn call(&mut self) {
        if self.tunnel_works() {
            self.fresh_session();
        } else if self.gullible && self.key(1 - self.caller).is_some() {
            self.handshakes[1 - self.caller] = Some(self.now);
        }
    }

    fn fresh_session(&mut self) {
        self.session = Some(self.now);
        self.handshakes = [self.session; 2];
    }

    /// Nothing goes wrong any more.
    fn settle(&mut self) {
        for _ in 0..60 {
            for end in [INITIATOR, RESPONDER] {
                self.tick(end);
                self.deliver(end);
            }
            self.pass(OBSERVE_INTERVAL_S);
        }
    }

    /// Lets both ends say what they have to, until nothing is left to say.
    fn deliver_all(&mut self) {
        for end in [INITIATOR, RESPONDER] {
            self.tick(end);
        }
        while let Some(end) = self.mailbox.iter().position(Option::is_some) {
            self.deliver(end);
        }
    }

    fn has_one_key(&self) -> bool {
        self.key(INITIATOR).is_some() && self.key(INITIATOR) == self.key(RESPONDER)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Deliver(end) => self.deliver(end),
            Happening::DeliverTwice(end) => {
                let message = self.mailbox[end].clone();
                self.deliver(end);
                self.mailbox[end] = message;
                self.deliver(end);
            }
            Happening::DieBeforeKeeping(end) => {
                if let Some(message) = self.mailbox[end].clone() {
                    self.receive(end, &message);
                    self.restart(end);
                }
            }
            Happening::DieBeforeAnswering(end) => {
                if let Some(message) = self.mailbox[end].clone() {
                    self.receive(end, &message);
                    self.ends[end].keep();
                    self.restart(end);
                }
            }
            Happening::Replay(end, which) => {
                if let Some(message) = self.ever[end]
                    .get(which % self.ever[end].len().max(1))
                    .cloned()
                {
                    let answer = self.receive(end, &message);
                    self.ends[end].keep();
                    self.post(1 - end, answer);
                }
            }
            Happening::Lose(end) => self.mailbox[end] = None,
            Happening::Restart(end) => self.restart(end),
            Happening::Tick(end) => self.tick(end),
            Happening::Want(end) => self.ends[end].pair.want_another(),
            Happening::RotateIdentity(end) => self.rotate_identity(end),
            Happening::Pass(seconds) => drop(self.pass(seconds)),
        }
    }

    /// What holds at any moment.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for end in [INITIATOR, RESPONDER] {
            prop_assert!(
                self.key(end).is_some() || !self.keyed[end],
                "a pair that had a key has none"
            );
            self.keyed[end] |= self.key(end).is_some();
        }
        if let Some(agreed) = &self.ends[RESPONDER].pair.current {
            let initiator = &self.ends[INITIATOR].disk;
            let next = if let Phase::Confirmed { next, .. } = &initiator.phase {
                Some(&next.psk)
            } else {
                None
            };
            let has_it = next == Some(&agreed.psk)
                || initiator
                    .current
                    .as_ref()
                    .is_some_and(|current| current.psk == agreed.psk);
            prop_assert!(
                has_it,
                "the responder uses a key that the initiator could lose"
            );
        }
        Ok(())
    }
}

fn policy() -> impl Strategy<Value = PskPolicy> {
    prop_oneof![Just(PskPolicy::Require), Just(PskPolicy::Prefer)]
}

proptest! {
    #[test]
    fn h2_whatever_happened_both_ends_come_to_the_same_key(policy in policy(), history in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new(policy);
        for happening in history {
            world.happen(happening);
            world.check()?;
        }
        // A message that the mailbox lost is sent again after an hour at most.
        world.pass(LONGEST_RETRY_S);
        world.settle();
        world.check()?;
        prop_assert!(world.key(INITIATOR).is_some());
        prop_assert_eq!(world.key(INITIATOR), world.key(RESPONDER));
        // A responder may be left with an offer to an initiator that died and knows nothing of it;
        // the next round takes its place.
        prop_assert!(matches!(world.ends[INITIATOR].pair.phase, Phase::Idle));
        world.pass(LIFETIME_S);
        world.settle();
        prop_assert_eq!(world.key(INITIATOR), world.key(RESPONDER));
        prop_assert!(world.ends.iter().all(|end| matches!(end.pair.phase, Phase::Idle)));
    }

    #[test]
    fn once_both_hear_the_coordinator_they_have_the_same_key_within_seconds_and_few_messages(
        policy in policy(),
        history in prop::collection::vec(happening(), 0..60),
    ) {
        let mut world = World::new(policy);
        history.into_iter().for_each(|happening| world.happen(happening));
        let before = world.ever.iter().map(Vec::len).sum::<usize>();
        let begin = world.now;
        world.ends.iter_mut().for_each(|end| end.pair.say_again());
        world.deliver_all();
        while !world.has_one_key() {
            world.pass(1);
            world.deliver_all();
            prop_assert!(world.now <= begin + MOST_S, "they do not agree");
        }
        let messages = world.ever.iter().map(Vec::len).sum::<usize>() - before;
        prop_assert!(messages <= MOST_MESSAGES, "{} messages", messages);
    }

    #[test]
    fn an_end_that_is_set_back_to_an_earlier_disk_agrees_within_seconds_once_it_takes_a_new_wireguard_key_or_finds_no_session(
        (end, clock_is_set_back, takes_new_key) in (0..2usize, any::<bool>(), any::<bool>()),
        policy in policy(),
        before in prop::collection::vec(happening(), 0..30),
        after in prop::collection::vec(happening(), 0..30),
    ) {
        let mut world = World::agreed(policy);
        before.into_iter().for_each(|happening| world.happen(happening));
        let (disk, then) = (world.ends[end].disk.clone(), world.now);
        after.into_iter().for_each(|happening| world.happen(happening));
        world.ends[end].disk = disk;
        if clock_is_set_back {
            world.ends[end].behind_s = world.now - then;
        }
        world.restart(end);
        if takes_new_key {
            world.rotate_wireguard(end);
        } else {
            world.ends[end].pair.want_another();
        }
        let begin = world.now;
        world.deliver_all();
        while !world.has_one_key() {
            world.pass(1);
            world.deliver_all();
            prop_assert!(world.now <= begin + SECOND_TIME_S + MOST_S, "they do not agree");
        }
    }

    #[test]
    fn before_a_new_wireguard_key_both_ends_have_one_preshared_key_once_the_initiator_is_through(
        before in prop::collection::vec(happening(), 0..30),
        after in prop::collection::vec(happening(), 1..30),
    ) {
        let mut world = World::agreed(PskPolicy::Require);
        world.pass(LIFETIME_S);
        before.into_iter().for_each(|happening| world.happen(happening));
        world.is_turning = true;
        let mut is_through = false;
        for happening in after {
            is_through |= !world.ends[INITIATOR].pair.is_changing();
            if is_through {
                prop_assert!(!world.ends[INITIATOR].pair.is_changing(), "it begins another round");
                prop_assert_eq!(world.key(INITIATOR), world.key(RESPONDER));
            }
            world.happen(happening);
        }
    }

    #[test]
    fn without_the_coordinator_no_session_ends_whatever_had_happened(
        (caller, gullible) in (0..2usize, any::<bool>()),
        history in prop::collection::vec(happening(), 0..60),
    ) {
        let mut world = World { caller, gullible, ..World::agreed(PskPolicy::Require) };
        world.pass(LIFETIME_S);
        for happening in history {
            world.happen(happening);
            world.check()?;
        }
        world.fresh_session();
        let oldest = world.pass(900);
        prop_assert!(oldest < SESSION_S, "the session was {} s old", oldest);
    }
}

#[test]
fn the_end_that_missed_the_commit_finds_the_key_before_the_session_ends() {
    for (caller, gullible) in [
        (INITIATOR, false),
        (RESPONDER, false),
        (INITIATOR, true),
        (RESPONDER, true),
    ] {
        let mut world = World {
            caller,
            gullible,
            ..World::agreed(PskPolicy::Require)
        };
        world.pass(LIFETIME_S);
        world.tick(INITIATOR);
        [RESPONDER, INITIATOR, RESPONDER]
            .into_iter()
            .for_each(|end| world.deliver(end));
        assert!(
            !world.tunnel_works(),
            "the responder has changed to the new key, the initiator has not"
        );
        world.fresh_session();
        let oldest = world.pass(3 * SESSION_S);
        assert!(
            oldest < SESSION_S && world.tunnel_works(),
            "the session was {oldest} s old"
        );
        // The coordinator is back.
        world.settle();
        assert!(
            world
                .ends
                .iter()
                .all(|end| matches!(end.pair.phase, Phase::Idle))
        );
    }
}

#[test]
fn an_end_that_lost_its_disk_gets_a_new_key() {
    for end in [INITIATOR, RESPONDER] {
        let mut world = World::agreed(PskPolicy::Require);
        let before = world.key(INITIATOR).cloned();
        world.pass(60);
        (world.ends[end].pair, world.ends[end].disk) = Default::default();
        world.settle();
        assert!(
            world.tunnel_works() && world.key(INITIATOR) != before.as_ref(),
            "end {end}"
        );
    }
}

#[test]
fn an_end_that_lost_its_disk_in_the_middle_of_a_round_gets_a_new_key() {
    for end in [INITIATOR, RESPONDER] {
        for messages in 0..4 {
            let mut world = World::agreed(PskPolicy::Require);
            world.pass(LIFETIME_S);
            world.tick(INITIATOR);
            for message in 0..messages {
                world.deliver([RESPONDER, INITIATOR][message % 2]);
            }
            (world.ends[end].pair, world.ends[end].disk) = Default::default();
            world.pass(LONGEST_RETRY_S);
            world.settle();
            assert!(world.tunnel_works(), "end {end} after {messages} messages");
        }
    }
}

#[test]
fn a_peer_that_never_answers_is_told_of_and_one_that_does_is_not() {
    /// How often something is said in vain before that is told.
    const SAID: usize = 3;
    let mut world = World::new(PskPolicy::Require);
    for end in [INITIATOR, RESPONDER] {
        for _ in 0..SAID {
            world.tick(end);
            assert!(!world.ends[end].pair.is_unanswered());
            world.pass(UNANSWERED_WAIT_S);
        }
        world.tick(end);
        assert!(world.ends[end].pair.is_unanswered());
    }
    world.settle();
    assert!(world.ends.iter().all(|end| !end.pair.is_unanswered()));
}

#[test]
fn the_ml_kem_key_of_a_request_that_nobody_answers_lives_for_a_day_and_an_hour_at_most() {
    let mut world = World::new(PskPolicy::Require);
    world.tick(INITIATOR);
    let first = world.mailbox[RESPONDER].take().unwrap();
    for minute in 1..26 * 60 {
        world.now += 60;
        world.tick(INITIATOR);
        if world.mailbox[RESPONDER]
            .take()
            .is_some_and(|message| message != first)
        {
            assert!(
                (24 * 60..=25 * 60).contains(&minute),
                "after {minute} minutes"
            );
            world.settle();
            return assert!(world.tunnel_works());
        }
    }
    panic!("it asks with the first key still");
}

#[test]
fn either_end_gets_another_key_when_somebody_wants_one_and_one_for_each_time() {
    for end in [INITIATOR, RESPONDER] {
        let mut world = World::agreed(PskPolicy::Require);
        let before = world.key(INITIATOR).cloned();
        world.ends[end].pair.want_another();
        world.settle();
        let after = world.key(INITIATOR).cloned();
        assert!(world.tunnel_works() && after != before, "end {end}");
        world.settle();
        assert_eq!(world.key(INITIATOR), after.as_ref(), "end {end}");
    }
}

#[test]
fn a_responder_that_wants_another_key_before_its_peer_heard_of_the_first_one_gets_it_the_second_time()
 {
    let mut world = World::new(PskPolicy::Require);
    world.tick(INITIATOR);
    for end in [RESPONDER, INITIATOR, RESPONDER] {
        world.deliver(end);
    }
    let first = world.key(RESPONDER).cloned();
    assert!(first.is_some());
    // What it says takes the place of the commit.
    world.ends[RESPONDER].pair.want_another();
    let begin = world.now;
    while !world.has_one_key() || world.key(RESPONDER) == first.as_ref() {
        world.deliver_all();
        world.pass(1);
        assert!(world.now <= begin + SECOND_TIME_S + MOST_S, "no other key");
    }
}

#[test]
fn a_key_is_replaced_within_a_day_and_not_all_at_once() {
    let mut world = World::agreed(PskPolicy::Require);
    let mut dues = Vec::new();
    for _ in 0..8 {
        let before = world.key(INITIATOR).cloned();
        let agreed = world.ends[INITIATOR].pair.current.clone().unwrap();
        dues.push(agreed.due - agreed.since);
        world.now = agreed.due;
        world.settle();
        assert!(world.tunnel_works() && world.key(RESPONDER) != before.as_ref());
    }
    assert!(
        dues.iter()
            .all(|lived| (LIFETIME_S - u64::from(JITTER_S)..=LIFETIME_S).contains(lived)),
        "{dues:?}"
    );
    assert!(dues.iter().any(|lived| *lived != dues[0]));
}

#[test]
fn a_new_wireguard_key_of_either_end_brings_a_new_round() {
    for end in [INITIATOR, RESPONDER] {
        let mut world = World::agreed(PskPolicy::Require);
        let before = world.key(INITIATOR).cloned();
        let number = [2, 1][end];
        world.ends[end].node_keys = NodeKeys::new(&[number; 32], &[number + 40; 32], 0).unwrap();
        world.settle();
        assert!(
            world.tunnel_works() && world.key(INITIATOR) != before.as_ref(),
            "end {end}"
        );
    }
}

#[test]
fn a_new_identity_of_either_end_costs_no_key_whatever_was_on_its_way() {
    for (end, messages) in [INITIATOR, RESPONDER]
        .into_iter()
        .flat_map(|end| (0..5).map(move |messages| (end, messages)))
    {
        let mut world = World::agreed(PskPolicy::Require);
        let before = world.key(INITIATOR).cloned();
        world.pass(LIFETIME_S);
        world.tick(INITIATOR);
        for message in 0..messages {
            world.deliver([RESPONDER, INITIATOR][message % 2]);
        }
        world.rotate_identity(end);
        world.check().unwrap();
        world.pass(SHORTEST_RETRY_S);
        world.settle();
        assert!(
            world.tunnel_works() && world.key(INITIATOR) != before.as_ref(),
            "end {end} after {messages} messages"
        );
        assert!(
            world
                .ends
                .iter()
                .all(|end| matches!(end.pair.phase, Phase::Idle)),
            "end {end} after {messages} messages"
        );
    }
}

#[test]
fn a_clock_that_goes_back_stops_nothing() {
    let mut world = World::agreed(PskPolicy::Require);
    let before = world.key(INITIATOR).cloned();
    world.now -= 400 * 24 * 3600;
    world.fresh_session();
    world.settle();
    assert!(world.tunnel_works() && world.key(INITIATOR) != before.as_ref());
}

#[test]
fn what_the_peer_did_not_sign_for_this_node_and_mesh_is_ignored() {
    let mut world = World::new(PskPolicy::Require);
    world.tick(INITIATOR);
    let request = world.mailbox[RESPONDER].clone().unwrap();
    let content: PskMessage = serde_json::from_str(&request.message).unwrap();
    let signed_by = |node_keys: &NodeKeys, content: &PskMessage| {
        let message = serde_json::to_string(content).unwrap();
        SignedPskMessage {
            signature: node_keys.sign(&[PURPOSE, message.as_bytes()].concat()),
            message: message.into(),
        }
    };
    let mut take = |message: SignedPskMessage| {
        world
            .act(RESPONDER, |pair, ends, now| {
                pair.receive(ends, &message, now, &SeededKem)
            })
            .map(drop)
    };

    let initiator = End::new(2).node_keys;
    let stranger = End::new(3).node_keys;
    assert_eq!(
        take(signed_by(&stranger, &content)),
        Err(Ignored::Signature)
    );
    let mut altered = request.clone();
    altered.message = altered.message.replace("\"round\":1", "\"round\":2").into();
    assert_eq!(take(altered), Err(Ignored::Signature));
    for other in [
        PskMessage {
            to: node_id(9),
            ..content.clone()
        },
        PskMessage {
            from: node_id(9),
            ..content.clone()
        },
        PskMessage {
            mesh: MeshId(uuid::Uuid::from_u128(7)),
            ..content.clone()
        },
    ] {
        assert_eq!(take(signed_by(&initiator, &other)), Err(Ignored::Address));
    }
    let PskStep::Request {
        initiator_key,
        kem_key,
        ..
    } = content.step.clone()
    else {
        panic!("{content:?}")
    };
    let other_key: WireguardKey = stranger.wireguard_key();
    let step = PskStep::Request {
        initiator_key,
        responder_key: other_key,
        kem_key,
    };
    assert_eq!(
        take(signed_by(&initiator, &PskMessage { step, ..content })),
        Err(Ignored::Keys)
    );
    for step in [PskStep::Commit {}, PskStep::Renew { newest: None }] {
        assert_eq!(
            take(signed_by(&initiator, &PskMessage { step, ..content })),
            Err(Ignored::Unexpected)
        );
    }
    assert_eq!(
        take(SignedPskMessage {
            message: "{}".into(),
            ..request
        }),
        Err(Ignored::Unreadable)
    );
    assert_eq!(take(request), Ok(()));
}

#[test]
fn nothing_that_is_said_or_shown_holds_the_key() {
    let mut world = World::new(PskPolicy::Require);
    world.deliver_all();
    let psk = *world.key(INITIATOR).unwrap().reveal();
    let text = Bytes32::from(psk).to_string();
    let said: Vec<_> = world.ever.iter().flatten().collect();
    assert_eq!(said.len(), 4);
    assert!(said.iter().all(|message| !message.message.contains(&text)));
    let shown = format!(
        "{:?} {:?}",
        world.ends[INITIATOR].pair,
        world.key(INITIATOR)
    );
    assert!(!shown.contains(&text) && !shown.contains(&format!("{psk:?}")));
    assert_eq!(
        serde_json::to_string(world.key(INITIATOR).unwrap()).unwrap(),
        "\"hidden\""
    );
    assert!(
        serde_json::to_string(&world.ends[INITIATOR].disk)
            .unwrap()
            .contains(&text),
        "the disk does hold it"
    );
}
