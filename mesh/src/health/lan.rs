//! Whether LANs get each other's packets, from what their gateways find on themselves.

use wattle_wire::{
    admin::{ConnectionState, LanState, LinkProblem, NodeConnection, NodeProblem},
    ids::NodeId,
    report::{LanEffect, Problem},
};

/// One end of a link, or a node by itself.
#[derive(Clone, Copy, Debug)]
pub struct LanEnd<'n> {
    pub node: NodeId,
    /// Absent for a node without an agent.
    pub connection: Option<NodeConnection>,
    pub problems: &'n [NodeProblem],
}

impl LanEnd<'_> {
    /// How the LANs behind the node are, in all.
    pub fn state(self) -> LanState {
        self.judge(|_| true)
    }

    /// The problems that the link with a peer has from this end.
    fn of_link(self, peer: NodeId) -> impl Iterator<Item = LinkProblem> {
        let concerned = self.problems.iter().map(|known| &known.problem);
        let concerned =
            concerned.filter(move |problem| problem.lan.is_some() && is_of_link(problem, peer));
        concerned.map(move |problem| LinkProblem {
            node: self.node,
            code: problem.code,
            subject: problem.subject.clone(),
        })
    }

    /// What the problems that count come to. What a silent gateway said last is no account of how
    /// it is.
    fn judge(self, counts: impl Fn(&Problem) -> bool) -> LanState {
        match self.connection.map(|connection| connection.state) {
            None | Some(ConnectionState::Silent) => return LanState::Unknown,
            Some(ConnectionState::Connected | ConnectionState::Behind) => {}
        }
        let problems = self.problems.iter().map(|known| &known.problem);
        problems
            .filter(|problem| counts(problem))
            .map(|problem| match problem.lan {
                None => LanState::Ok,
                Some(LanEffect::Unproven) => LanState::Unproven,
                Some(LanEffect::Degraded) => LanState::Degraded,
            })
            .max()
            .unwrap_or(LanState::Ok)
    }
}

/// How the LANs at the two ends of a link are, and the problems that make it so: the worse end
/// counts.
pub fn of_link(ends: [LanEnd<'_>; 2]) -> (LanState, Vec<LinkProblem>) {
    let [a, b] = ends;
    let state = a
        .judge(|problem| is_of_link(problem, b.node))
        .max(b.judge(|problem| is_of_link(problem, a.node)));
    (state, a.of_link(b.node).chain(b.of_link(a.node)).collect())
}

/// Whether problems keep LANs from others, for sure.
pub fn are_degraded<'p>(problems: impl IntoIterator<Item = &'p Problem>) -> bool {
    let mut effects = problems.into_iter().map(|problem| problem.lan);
    effects.any(|effect| effect == Some(LanEffect::Degraded))
}

fn is_of_link(problem: &Problem, peer: NodeId) -> bool {
    problem.peer.is_none_or(|concerned| concerned == peer)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use wattle_wire::report::ProblemCode;

    use super::*;
    use crate::testing::node_id;

    fn problem(lan: Option<LanEffect>, peer: Option<NodeId>) -> NodeProblem {
        NodeProblem {
            problem: Problem {
                subject: "10.20.0.0/24".to_owned(),
                peer,
                lan,
                ..Problem::new(ProblemCode::Route, "diverted")
            },
            since: DateTime::UNIX_EPOCH,
        }
    }

    fn end(node: u64, problems: &[NodeProblem]) -> LanEnd<'_> {
        LanEnd {
            node: node_id(node),
            connection: Some(NodeConnection {
                state: ConnectionState::Connected,
                since: None,
            }),
            problems,
        }
    }

    #[test]
    fn the_worse_end_counts_and_a_problem_with_one_peer_is_of_that_link_alone() {
        let (degraded, unproven) = (Some(LanEffect::Degraded), Some(LanEffect::Unproven));
        let ours = [problem(degraded, Some(node_id(2))), problem(None, None)];
        let theirs = [problem(unproven, None)];
        let (one, two, three) = (end(1, &ours), end(2, &[]), end(3, &theirs));
        assert_eq!(
            [one, two, three].map(LanEnd::state),
            [LanState::Degraded, LanState::Ok, LanState::Unproven]
        );
        let named = LinkProblem {
            node: node_id(1),
            code: ProblemCode::Route,
            subject: "10.20.0.0/24".to_owned(),
        };
        assert_eq!(of_link([one, two]), (LanState::Degraded, vec![named]));
        let (state, problems) = of_link([one, three]);
        assert_eq!((state, problems.len()), (LanState::Unproven, 1));
        assert_eq!(of_link([two, end(4, &[])]), (LanState::Ok, vec![]));
    }

    #[test]
    fn of_a_gateway_that_is_silent_or_has_no_agent_nobody_knows() {
        let silent = Some(NodeConnection {
            state: ConnectionState::Silent,
            since: None,
        });
        let known = [problem(Some(LanEffect::Degraded), None)];
        for connection in [silent, None] {
            let away = LanEnd {
                connection,
                ..end(1, &known)
            };
            assert_eq!(away.state(), LanState::Unknown);
            assert_eq!(of_link([away, end(2, &[])]).0, LanState::Unknown);
            assert_eq!(of_link([end(2, &known), away]).0, LanState::Degraded);
        }
    }
}
