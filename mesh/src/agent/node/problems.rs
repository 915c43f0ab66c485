//! What keeps a host from what its mesh wants, or its LANs from others.

use wattle_wire::report::{Problem, ProblemCode};

use super::{LocalNode, Secrets};
use crate::{agent::replica::Known, diagnose::size, health::clock};

impl<S: Secrets> LocalNode<S> {
    /// What keeps this host from what the mesh wants, or its LANs from others.
    pub fn problems(&self, known: &Known) -> impl Iterator<Item = Problem> {
        let clock = self.now.clock_ahead_s.and_then(clock::problem);
        self.host_problems(known)
            .chain(clock)
            .chain(self.lan_problems.iter().cloned())
            .chain(self.large_packets(known))
    }

    /// What keeps this host from what the mesh wants.
    pub fn host_problems(&self, known: &Known) -> impl Iterator<Item = Problem> {
        let unsaved = self.save_problem.iter().map(|words| Problem {
            subject: "the view".to_owned(),
            ..Problem::new(ProblemCode::State, words)
        });
        let outcome = self.round.outcome();
        let policy = outcome.refused.psk_policy(known.mesh.psk);
        self.replica
            .problems()
            .chain(outcome.problems.iter().cloned())
            .chain(unsaved)
            .chain(self.psks.problems(known, policy))
            .chain(self.key_problems(known))
            .chain(self.own_endpoint.problem(&known.myself.site_name))
    }

    /// Peers that large packets do not get to.
    fn large_packets(&self, known: &Known) -> Vec<Problem> {
        let outcome = self.round.outcome();
        let interface = outcome.interface();
        interface
            .map(|found| {
                size::problems(
                    known,
                    &outcome.refused,
                    &self.interface_name,
                    found,
                    &self.sizes,
                )
            })
            .unwrap_or_default()
    }
}
