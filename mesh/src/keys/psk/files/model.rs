//! An unmanaged node that has any of its files, the agent at the other end, and the tunnel between
//! them, second by second.

use proptest::prelude::*;

use super::*;

/// Seconds after which WireGuard renews a session: at the earliest, and with the next keepalive
/// where nothing else is sent.
const EARLIEST_S: u64 = 120;
const LATEST_S: u64 = EARLIEST_S + 25;
const ATTEMPT_S: u64 = 5;
/// Seconds between two observations of its device by an agent.
const OBSERVE_INTERVAL_S: u64 = 5;
/// Seconds within which whoever restarts gets through: the rest of a renewal of the session that
/// was, a turn of each other key, and an attempt.
const FOUND_S: u64 = (*RENEWAL_S.end() - *RENEWAL_S.start())
    + (MOST as u64 - 1) * (TURN_S + OBSERVE_INTERVAL_S)
    + OBSERVE_INTERVAL_S
    + 2 * ATTEMPT_S;

/// Numbers of bytes that a device counts.
const MESSAGE: u64 = 148;
const DATA: u64 = 32;

struct World {
    now: u64,
    /// The agent's keys, and what a restart finds of them.
    files: Files,
    disk: Files,
    /// How many files were made; the numbers of those that the agent was given, and that are on
    /// their way to it, in any order.
    made: u8,
    on_the_way: Vec<u8>,
    /// The file that the node has; and when the session began that it has with the agent's device,
    /// if any.
    installed: u8,
    session: Option<u64>,
    /// Whether packets of the node arrive.
    is_there: bool,
    device: ObservedPeer,
    handshake: Option<u64>,
    /// Who begins handshakes, and at which age of a session.
    agent_calls: bool,
    renewal_s: u64,
    /// Whether the device takes its answer to a call for a handshake, as gotatun does.
    gullible: bool,
    /// The newest file with which a handshake has succeeded.
    newest_used: u8,
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    /// Somebody makes another file.
    Make,
    /// The agent takes one of the keys that are on their way, which may stay there.
    Take {
        which: usize,
        again: bool,
    },
    /// It is killed before it has kept it.
    DieBeforeKeeping(usize),
    RestartAgent,
    /// The node restarts with one of the files that its agent was given.
    RestartNode(usize),
    /// It is off for a while.
    Off(u64),
    /// No packet arrives for a while.
    Cut(u64),
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => Just(Happening::Make),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, again)| Happening::Take { which, again }),
        1 => any::<usize>().prop_map(Happening::DieBeforeKeeping),
        1 => Just(Happening::RestartAgent),
        2 => any::<usize>().prop_map(Happening::RestartNode),
        1 => (1..300u64).prop_map(Happening::Off),
        1 => (1..60u64).prop_map(Happening::Cut),
        3 => (1..400u64).prop_map(Happening::Pass),
    ]
}

fn psk(file: u8) -> Psk {
    Psk::new([file; 32])
}

impl World {
    /// A node with its first file, and a session.
    fn new(agent_calls: bool, renewal_s: u64, gullible: bool) -> Self {
        let mut world = Self {
            now: 1_800_000_000,
            files: Files::default(),
            disk: Files::default(),
            made: 1,
            on_the_way: vec![],
            installed: 1,
            session: None,
            is_there: true,
            device: ObservedPeer::default(),
            handshake: None,
            agent_calls,
            renewal_s,
            gullible,
            newest_used: 1,
        };
        world.take(1).unwrap();
        world.pass(OBSERVE_INTERVAL_S + ATTEMPT_S);
        assert!(world.session.is_some());
        world
    }

    fn take(&mut self, file: u8) -> Result<(), Ignored> {
        self.files.take(psk(file), file.into(), self.now)?;
        self.keep();
        self.write();
        Ok(())
    }

    fn keep(&mut self) {
        // As a file would hold it.
        self.disk = serde_json::from_str(&serde_json::to_string(&self.files).unwrap()).unwrap();
    }

    fn write(&mut self) {
        self.device.psk = self.files.key().cloned();
    }

    fn make(&mut self) -> u8 {
        self.made += 1;
        self.on_the_way.push(self.made);
        self.made
    }

    fn known(&self) -> Vec<u8> {
        self.files
            .keys
            .iter()
            .map(|key| key.psk.reveal()[0])
            .collect()
    }

    /// The files with which the node gets through. Once a newer one has worked, nobody is promised
    /// that an older one will again.
    fn promised(&self) -> Vec<u8> {
        self.known()
            .into_iter()
            .filter(|file| *file >= self.newest_used)
            .collect()
    }

    fn restart_node(&mut self, file: u8) {
        (self.installed, self.session, self.is_there) = (file, None, true);
    }

    /// Seconds pass. The greatest age of a session, and for how long there was none.
    fn pass(&mut self, seconds: u64) -> (u64, u64) {
        let (mut oldest, mut without) = (0, 0);
        for _ in 0..seconds {
            self.now += 1;
            self.session = self.session.filter(|at| self.now - at <= SESSION_S);
            let age = self.session.map(|at| self.now - at);
            oldest = oldest.max(age.unwrap_or(0));
            if self.is_there
                && age.is_none_or(|age| age >= self.renewal_s)
                && self.now.is_multiple_of(ATTEMPT_S)
            {
                self.call();
            } else if self.is_there && self.session.is_some() && self.now.is_multiple_of(7) {
                self.device.received_bytes += DATA;
            }
            without += u64::from(self.session.is_none());
            if self.now % OBSERVE_INTERVAL_S == 3 {
                self.observe_device();
            }
        }
        (oldest, without)
    }

    /// An attempt of a handshake. Who has lost its session calls, whoever began the last one.
    fn call(&mut self) {
        self.device.received_bytes += MESSAGE;
        if self.device.psk == Some(psk(self.installed)) {
            (self.session, self.handshake) = (Some(self.now), Some(self.now));
            self.newest_used = self.newest_used.max(self.installed);
        } else if self.gullible && !(self.agent_calls && self.session.is_some()) {
            self.handshake = Some(self.now);
        }
    }

    fn observe_device(&mut self) {
        self.device.handshake_age_s = self.handshake.map(|at| self.now - at);
        if self.files.observe(&self.device, self.now) == Moved::OnDisk {
            self.keep();
        }
        self.write();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            // What becomes of a fourth has a test of its own.
            Happening::Make if self.files.keys.len() + self.on_the_way.len() < MOST => {
                let _ = self.make();
            }
            Happening::Make => {}
            Happening::Take { which, again } => {
                if let Some(place) = which.checked_rem(self.on_the_way.len()) {
                    let file = self.on_the_way[place];
                    let is_older = self
                        .files
                        .keys
                        .last()
                        .is_some_and(|newest| u64::from(file) <= newest.made_ms);
                    assert_eq!(
                        self.take(file).is_err(),
                        is_older,
                        "file {file}, known {:?}",
                        self.known()
                    );
                    if !again {
                        self.on_the_way.remove(place);
                    }
                }
            }
            Happening::DieBeforeKeeping(which) => {
                if let Some(place) = which.checked_rem(self.on_the_way.len()) {
                    let _ = self.files.take(
                        psk(self.on_the_way[place]),
                        self.on_the_way[place].into(),
                        self.now,
                    );
                    self.files = self.disk.clone();
                }
            }
            Happening::RestartAgent => {
                self.files = self.disk.clone();
                self.write();
            }
            Happening::RestartNode(which) => {
                let known = self.known();
                self.restart_node(known[which % known.len()]);
            }
            Happening::Off(seconds) | Happening::Cut(seconds) => {
                self.session = self
                    .session
                    .filter(|_| matches!(happening, Happening::Cut(_)));
                self.is_there = false;
                self.pass(seconds);
                self.is_there = true;
            }
            Happening::Pass(seconds) => drop(self.pass(seconds)),
        }
    }

    /// What holds at any moment.
    fn check(&self) -> Result<(), TestCaseError> {
        let known = self.known();
        prop_assert!(
            self.files.key().is_some(),
            "a tunnel that had a key has none"
        );
        prop_assert!(known.is_sorted() && known.len() <= MOST);
        prop_assert!(
            known[0] <= self.newest_used,
            "{known:?} without {}, which alone was used",
            self.newest_used
        );
        if self.session.is_some() {
            prop_assert!(
                known.contains(&self.installed),
                "the key of the session, {}, is not among {known:?}",
                self.installed
            );
        }
        Ok(())
    }
}

fn world() -> impl Strategy<Value = World> {
    let world = (any::<bool>(), EARLIEST_S..=LATEST_S, any::<bool>());
    world
        .prop_map(|(agent_calls, renewal_s, gullible)| World::new(agent_calls, renewal_s, gullible))
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "World {{ agent_calls: {}, renewal_s: {}, gullible: {} }}",
            self.agent_calls, self.renewal_s, self.gullible
        )
    }
}

proptest! {
    #[test]
    fn whoever_restarts_with_a_file_that_counts_gets_through_in_time(
        mut world in world(),
        history in prop::collection::vec(happening(), 0..40),
        which in any::<usize>(),
    ) {
        for happening in history {
            world.happen(happening);
            world.check()?;
        }
        let promised = world.promised();
        world.restart_node(promised[which % promised.len()]);
        let (_, without) = world.pass(2 * FOUND_S);
        prop_assert!(without <= FOUND_S, "for {without} s");
        world.check()?;
        // With the newest file it stays, and the agent comes to know of it.
        world.on_the_way.clear();
        let newest = *world.known().last().unwrap();
        world.restart_node(newest);
        let (_, without) = world.pass(FOUND_S + 2 * SESSION_S);
        prop_assert!(without <= FOUND_S, "for {without} s");
        prop_assert_eq!(world.known(), [newest]);
    }

    #[test]
    fn a_session_is_renewed_whatever_becomes_of_files_and_agent(
        mut world in world(),
        before in prop::collection::vec(happening(), 0..40),
        meanwhile in prop::collection::vec(happening(), 1..20),
        which in any::<usize>(),
    ) {
        before.into_iter().for_each(|happening| world.happen(happening));
        let promised = world.promised();
        world.restart_node(promised[which % promised.len()]);
        world.pass(FOUND_S);
        prop_assert!(world.session.is_some());
        for happening in meanwhile {
            if matches!(happening, Happening::RestartNode(_) | Happening::Off(_) | Happening::Cut(_)) {
                continue;
            }
            world.happen(happening);
            world.check()?;
            let (_, without) = world.pass(100);
            prop_assert_eq!(without, 0, "after {:?}", happening);
        }
    }
}

#[test]
fn while_another_file_waits_to_be_installed_each_renewal_succeeds_at_once() {
    for agent_calls in [false, true] {
        let mut world = World::new(agent_calls, EARLIEST_S, true);
        let file = world.make();
        world.take(file).unwrap();
        let (oldest, without) = world.pass(3600);
        assert!(
            oldest <= EARLIEST_S + ATTEMPT_S && without == 0,
            "the session was {oldest} s old, and there was none for {without} s"
        );
        assert_eq!(world.known(), [1, 2]);
    }
}

#[test]
fn what_a_device_takes_for_a_handshake_proves_nothing_while_the_session_before_it_lives() {
    let mut taken_for_one = 0;
    for offset in 0..4 * TURN_S {
        let mut world = World::new(false, EARLIEST_S, true);
        world.pass(offset);
        let file = world.make();
        world.take(file).unwrap();
        // So it does not know whose the session is.
        world.happen(Happening::RestartAgent);
        for _ in offset..EARLIEST_S {
            world.pass(1);
            if world.session != world.handshake {
                taken_for_one += 1;
                // The next attempts are lost, and what the session still carries is not.
                world.renewal_s = SESSION_S;
                world.pass(2 * TURN_S);
                assert_eq!(world.known(), [1, 2]);
                break;
            }
        }
    }
    assert!(taken_for_one > 0);
}

#[test]
fn an_older_file_never_counts_and_neither_does_the_same_again() {
    let mut files = Files::default();
    files.take(psk(2), 2, 0).unwrap();
    assert_eq!(
        [1, 2].map(|file| files.take(psk(file), file.into(), 0)),
        [Err(Ignored::Old); 2]
    );
    assert!(files.key() == Some(&psk(2)) && !files.has_candidates());
}

#[test]
fn of_many_files_the_newest_count_and_the_one_in_use() {
    let mut world = World::new(false, EARLIEST_S, false);
    for expected in [vec![1, 2], vec![1, 2, 3], vec![1, 3, 4]] {
        let file = world.make();
        world.take(file).unwrap();
        assert_eq!(world.known(), expected);
    }
    world.restart_node(3);
    world.pass(FOUND_S);
    let file = world.make();
    world.take(file).unwrap();
    assert_eq!(world.known(), [3, 4, 5]);
}

#[test]
fn the_key_that_the_device_has_goes_on_with_its_turn() {
    let mut files = Files::default();
    [1, 2]
        .iter()
        .for_each(|file| files.take(psk(*file), (*file).into(), 0).unwrap());
    for (on_device, expected) in [(Some(2), 2), (Some(9), 2), (None, 2), (Some(1), 1)] {
        files.resume(&ObservedPeer {
            psk: on_device.map(psk),
            ..ObservedPeer::default()
        });
        assert!(files.key() == Some(&psk(expected)), "{on_device:?}");
    }
}

#[test]
fn what_is_kept_is_the_keys_alone() {
    let mut files = Files::default();
    files.take(psk(7), 7, 0).unwrap();
    let kept = serde_json::to_string(&files).unwrap();
    assert_eq!(
        kept,
        r#"[{"psk":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","made_ms":7}]"#
    );
    assert!(!format!("{files:?}").contains("7, 7"));
}
