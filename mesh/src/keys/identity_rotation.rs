//! How a node takes up another identity, which the one before has signed for.
//!
//! ```text
//!   the node                                            coordinator                  each peer
//!   makes an identity, keeps it beside the present one
//!   its statement, with the former one's word ────────▶ takes it for this node ────▶ pins the new identity in the place of the former
//!   keeps it as its own, forgets the former  ◀───────── says so
//! ```
//!
//! The statement proves itself: whoever has the former identity made it. So it is sent without a
//! token, as often as it takes, whichever of the two identities the coordinator knows the node by.
//! Both stay on disk until the coordinator has said that it took the new one; one that was told is
//! never thrown away, for peers may have pinned it. No tunnel knows of any of this.

use std::time::Duration;

use wattle_wire::{enrol::SignedStatement, ids::MeshId};

use crate::keys::node_keys::NodeKeys;

/// When the coordinator is told again that did not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// The same when it refused: an older one cannot take another identity.
const RETRY_LATER_INTERVAL: Duration = Duration::from_secs(600);

/// A change of the node's identity, as far as it has come. What has to outlive a restart is part of
/// the [`NodeKeys`].
#[derive(Clone, Debug, Default)]
pub struct IdentityRotation {
    /// The coordinator took the statement of the next identity.
    is_taken: bool,
    silent_until: Duration,
    problem: Option<String>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityAction {
    /// Make an identity and keep it on disk: [`NodeKeys::preparing_identity`].
    MakeIdentity,
    Tell(SignedStatement),
    /// Keep the next identity as the present one on disk: [`NodeKeys::identity_switched`].
    TakeUp,
}

/// What came of telling the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityReply {
    Taken,
    Unreachable,
    /// In words.
    Refused(String),
}

impl IdentityRotation {
    /// What is to be done next, if anything. `is_asked`: somebody on this host asks for another
    /// identity. `is_known`: the coordinator lets the node in as who it is; one whose database was
    /// restored may know it as who it was. `now` is of a clock that only goes forward.
    pub fn next(
        &mut self,
        node_keys: &NodeKeys,
        mesh: MeshId,
        is_asked: bool,
        is_known: bool,
        now: Duration,
    ) -> Option<IdentityAction> {
        if self.is_taken {
            self.is_taken = false;
            return node_keys.successor().map(|_| IdentityAction::TakeUp);
        }
        if now < self.silent_until {
            return None;
        }
        match node_keys.successor() {
            Some(_) => node_keys
                .next_identity_statement(mesh)
                .ok()
                .flatten()
                .map(IdentityAction::Tell),
            // A WireGuard key that is being announced bears the present identity's signature.
            None if is_asked && node_keys.next_key().is_none() => {
                Some(IdentityAction::MakeIdentity)
            }
            None if !is_known && node_keys.has_predecessors() => {
                node_keys.statement(mesh).ok().map(IdentityAction::Tell)
            }
            None => None,
        }
    }

    /// Takes note of what came of [`IdentityAction::Tell`].
    pub fn told(&mut self, told: IdentityReply, now: Duration) {
        (self.is_taken, self.silent_until) = match &told {
            IdentityReply::Taken => (true, now),
            IdentityReply::Unreachable => (false, now + RETRY_INTERVAL),
            IdentityReply::Refused(_) => (false, now + RETRY_LATER_INTERVAL),
        };
        match told {
            IdentityReply::Taken => self.problem = None,
            IdentityReply::Unreachable => {}
            IdentityReply::Refused(why) => {
                self.problem = Some(format!(
                    "the coordinator does not take this node's new identity: {why}"
                ))
            }
        }
    }

    /// Somebody on this host asks, and waits for an answer.
    pub fn hurry(&mut self) {
        self.silent_until = Duration::ZERO;
    }

    /// A step could not be carried out on this host.
    pub fn failed(&mut self, why: &str, now: Duration) {
        self.silent_until = now + RETRY_INTERVAL;
        self.problem = Some(format!("the identity was not changed: {why}"));
    }

    /// What stands in the way, in words.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::directory::NodeRecord,
        keys::{
            enrolment::{is_or_was, verify_statement},
            succession,
        },
        testing::{MESH, directory_of, node_id, node_keys_of},
    };

    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Ask,
        /// The agent takes its next step, and the answer arrives.
        Step,
        /// It takes it, and the answer is lost.
        LoseAnswer,
        /// It takes it, and is killed before it has kept what it did.
        Die,
        Restart,
        /// The coordinator refuses whatever it is asked once.
        Refuse,
        /// The coordinator's database is restored to what it was in the beginning.
        RestoreDatabase,
        /// A stranger, or a peer, sends something again that any peer ever saw.
        Replay(prop::sample::Index),
    }

    struct World {
        disk: NodeKeys,
        identity_rotation: IdentityRotation,
        is_asked: bool,
        now: Duration,
        seed: u8,
        /// By what the coordinator knows the node, and its peers.
        coordinator: NodeRecord,
        peer: SignedStatement,
        /// All that the peers have seen.
        seen: Vec<SignedStatement>,
    }

    impl World {
        fn new() -> Self {
            let disk = node_keys_of(1);
            let statement = disk.statement(MESH).unwrap();
            Self {
                disk,
                identity_rotation: IdentityRotation::default(),
                is_asked: false,
                now: Duration::ZERO,
                seed: 100,
                coordinator: Self::in_the_beginning(),
                seen: vec![statement.clone()],
                peer: statement,
            }
        }

        fn in_the_beginning() -> NodeRecord {
            directory_of(1).nodes[&node_id(1)].clone()
        }

        /// `POST /agent/identity`, whoever sends it; what is taken is told to the peers.
        fn tell(&mut self, told: &SignedStatement) -> bool {
            let statement = verify_statement(told, MESH).unwrap();
            let is_next = succession::may_succeed(&self.coordinator, &statement).is_ok();
            if is_next {
                let before = verify_statement(&self.coordinator.statement, MESH).unwrap();
                assert!(
                    statement.sequence > before.sequence,
                    "an older one is taken"
                );
                self.coordinator.statement = told.clone();
                self.coordinator.identity_key = statement.identity;
                self.coordinator.highest_sequence = statement.sequence;
                self.seen.push(told.clone());
                // As a peer's pin does: by the present identity or one that it signed for.
                let known = verify_statement(&self.peer, MESH).unwrap();
                let follows = is_or_was(&statement, known.identity);
                if follows && statement.sequence > known.sequence {
                    self.peer = told.clone();
                }
            }
            is_next || self.coordinator.statement == *told
        }

        /// Nobody but the node brings in an identity.
        fn the_mesh_goes_by_an_identity_that_the_node_has(&self) {
            for signed in [&self.coordinator.statement, &self.peer] {
                let stated = verify_statement(signed, MESH).unwrap();
                let has = [Some(self.disk.identity_key()), self.disk.successor()];
                let was = self.disk.statement(MESH).unwrap();
                let was = is_or_was(&verify_statement(&was, MESH).unwrap(), stated.identity);
                assert!(was || has.contains(&Some(stated.identity)));
            }
            let peer = verify_statement(&self.peer, MESH).unwrap().sequence;
            assert!(
                peer >= verify_statement(&self.coordinator.statement, MESH)
                    .unwrap()
                    .sequence
            );
        }

        fn step(&mut self, answer_arrives: bool, is_kept: bool) {
            let is_known = self.coordinator.identity_key == self.disk.identity_key();
            let Some(act) =
                self.identity_rotation
                    .next(&self.disk, MESH, self.is_asked, is_known, self.now)
            else {
                return;
            };
            match act {
                IdentityAction::MakeIdentity => {
                    self.seed = self.seed.wrapping_add(1);
                    let next = self.disk.preparing_identity(&[self.seed; 32]).unwrap();
                    if is_kept {
                        (self.disk, self.is_asked) = (next, false);
                    }
                }
                IdentityAction::TakeUp => {
                    let next = self.disk.identity_switched(MESH).unwrap();
                    if is_kept {
                        self.disk = next;
                    }
                }
                IdentityAction::Tell(statement) => {
                    let told = if self.tell(&statement) {
                        IdentityReply::Taken
                    } else {
                        IdentityReply::Refused("no".to_owned())
                    };
                    self.identity_rotation.told(
                        if answer_arrives {
                            told
                        } else {
                            IdentityReply::Unreachable
                        },
                        self.now,
                    );
                }
            }
            if !is_kept {
                self.identity_rotation = IdentityRotation::default();
            }
        }

        fn happen(&mut self, happening: Happening) {
            match happening {
                Happening::Ask => self.is_asked = true,
                Happening::Step => self.step(true, true),
                Happening::LoseAnswer => self.step(false, true),
                Happening::Die => self.step(true, false),
                Happening::Restart => self.identity_rotation = IdentityRotation::default(),
                Happening::Refuse => self
                    .identity_rotation
                    .told(IdentityReply::Refused("not now".to_owned()), self.now),
                Happening::RestoreDatabase => self.coordinator = Self::in_the_beginning(),
                Happening::Replay(what) => drop(self.tell(&what.get(&self.seen).clone())),
            }
            self.the_mesh_goes_by_an_identity_that_the_node_has();
            self.now += RETRY_INTERVAL;
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            2 => Just(Happening::Ask),
            6 => Just(Happening::Step),
            1 => Just(Happening::LoseAnswer),
            1 => Just(Happening::Die),
            1 => Just(Happening::Restart),
            1 => Just(Happening::Refuse),
            1 => Just(Happening::RestoreDatabase),
            3 => any::<prop::sample::Index>().prop_map(Happening::Replay),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn whatever_happened_the_node_its_coordinator_and_its_peers_come_to_one_identity(history in prop::collection::vec(happening(), 0..60)) {
            let mut world = World::new();
            let mut was_asked = false;
            for happening in history {
                world.happen(happening);
                was_asked |= matches!(happening, Happening::Ask);
            }
            for _ in 0..8 {
                world.now += RETRY_LATER_INTERVAL;
                world.happen(Happening::Step);
            }
            prop_assert!(world.disk.successor().is_none() && !world.is_asked);
            prop_assert_eq!(world.disk.has_predecessors(), was_asked);
            let own = world.disk.statement(MESH).unwrap();
            prop_assert_eq!([&world.coordinator.statement, &world.peer], [&own, &own]);
        }
    }

    #[test]
    fn nothing_is_begun_unless_asked_nor_while_a_wireguard_key_is_announced_and_a_refusal_is_told()
    {
        let (node_keys, now) = (node_keys_of(1), Duration::from_secs(100));
        let mut identity_rotation = IdentityRotation::default();
        assert_eq!(
            identity_rotation.next(&node_keys, MESH, false, false, now),
            None
        );
        assert_eq!(
            identity_rotation.next(
                &node_keys.preparing(&[9; 32]).unwrap(),
                MESH,
                true,
                true,
                now
            ),
            None
        );
        assert_eq!(
            identity_rotation.next(&node_keys, MESH, true, true, now),
            Some(IdentityAction::MakeIdentity)
        );
        let next = node_keys.preparing_identity(&[9; 32]).unwrap();
        assert!(matches!(
            identity_rotation.next(&next, MESH, false, true, now),
            Some(IdentityAction::Tell(_))
        ));
        identity_rotation.told(IdentityReply::Refused("it is full".to_owned()), now);
        assert_eq!(
            identity_rotation.problem(),
            Some("the coordinator does not take this node's new identity: it is full")
        );
        assert_eq!(
            identity_rotation.next(
                &next,
                MESH,
                true,
                true,
                now + RETRY_LATER_INTERVAL - RETRY_INTERVAL
            ),
            None
        );
        assert!(matches!(
            identity_rotation.next(&next, MESH, true, true, now + RETRY_LATER_INTERVAL),
            Some(IdentityAction::Tell(_))
        ));
    }
}
