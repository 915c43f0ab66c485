//! Whether a node's own endpoint leads to it. An address of an interface does. One of a router in
//! front of it does if peers are seen to send there, which the coordinator knows.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use wattle_wire::{
    endpoint::Endpoint,
    name::Name,
    report::{Problem, ProblemCode},
};

/// How often the coordinator is asked while a change is young, or while something is wrong.
const SOON: Duration = Duration::from_secs(5);
/// How often it is asked otherwise.
const LATER: Duration = Duration::from_secs(300);
/// For how long a change is young.
const YOUNG: Duration = Duration::from_secs(60);

/// Where a node says that it is, and where it is seen.
#[derive(Debug, Default)]
pub struct OwnEndpoint {
    /// What there is to find out: an endpoint that is of no interface.
    asks: Option<Asks>,
}

#[derive(Debug)]
struct Asks {
    endpoint: Endpoint,
    local: BTreeSet<IpAddr>,
    since: Duration,
    asked_at: Option<Duration>,
    seen_at: Vec<Endpoint>,
}

impl OwnEndpoint {
    /// Whether to ask the coordinator now where peers see the node. `endpoint` is its own as the
    /// mesh has it, `local` are the addresses of its host, `now` is of a clock that only goes
    /// forward.
    pub fn is_due(
        &mut self,
        endpoint: Option<Endpoint>,
        local: &BTreeSet<IpAddr>,
        now: Duration,
    ) -> bool {
        let Some(endpoint) = endpoint.filter(|own| !local.contains(&own.socket().ip())) else {
            self.asks = None;
            return false;
        };
        let is_same = |asks: &Asks| asks.endpoint == endpoint && asks.local == *local;
        if !self.asks.as_ref().is_some_and(is_same) {
            self.asks = Some(Asks {
                endpoint,
                local: local.clone(),
                since: now,
                asked_at: None,
                seen_at: Vec::new(),
            });
        }
        let Some(asks) = &mut self.asks else {
            return false;
        };
        let interval = if asks.is_wrong() || now.saturating_sub(asks.since) < YOUNG {
            SOON
        } else {
            LATER
        };
        let is_due = asks
            .asked_at
            .is_none_or(|at| now.saturating_sub(at) >= interval);
        if is_due {
            asks.asked_at = Some(now);
        }
        is_due
    }

    /// Takes note of where peers see the node.
    pub fn seen(&mut self, seen_at: Vec<Endpoint>) {
        if let Some(asks) = &mut self.asks {
            asks.seen_at = seen_at;
        }
    }

    /// What is wrong with the endpoint that the site of this name has.
    pub fn problem(&self, site: &Name) -> Option<Problem> {
        let asks = self.asks.as_ref().filter(|asks| asks.is_wrong())?;
        let Asks {
            endpoint, seen_at, ..
        } = asks;
        let seen = seen_at.first()?;
        let words = format!(
            "the endpoint {endpoint} of {site} is on no interface of this host, and no peer sees \
             this host there: they see it at {seen}. Peers that do not know it yet cannot reach it"
        );
        let remedy = format!(
            "forward UDP from {endpoint} to this host, or let the coordinator know the right \
             endpoint: PATCH /sites/{site} with {{\"endpoint\": \"{seen}\"}}"
        );
        Some(Problem {
            subject: endpoint.to_string(),
            remedy: Some(remedy),
            ..Problem::new(ProblemCode::Endpoint, words)
        })
    }
}

impl Asks {
    /// Whether peers see the node, and none of them at its endpoint. A router in front of it may
    /// give its packets another port.
    fn is_wrong(&self) -> bool {
        let address = self.endpoint.socket().ip();
        !self.seen_at.is_empty()
            && self
                .seen_at
                .iter()
                .all(|seen| seen.socket().ip() != address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn an_endpoint_of_an_interface_is_never_asked_about() {
        let mut own = OwnEndpoint::default();
        let local = ["198.18.0.1".parse().unwrap()].into();
        assert!(!own.is_due(Some(endpoint("198.18.0.1:51820")), &local, at(0)));
        assert!(!own.is_due(None, &local, at(0)));
        own.seen(vec![endpoint("203.0.113.9:51820")]);
        assert_eq!(own.problem(&"dublin".parse().unwrap()), None);
    }

    #[test]
    fn an_endpoint_at_which_no_peer_sees_the_node_is_a_problem_until_one_does() {
        let (mut own, dublin) = (OwnEndpoint::default(), "dublin".parse().unwrap());
        let local = ["192.168.1.2".parse().unwrap()].into();
        let wanted = Some(endpoint("203.0.113.10:51820"));
        assert!(own.is_due(wanted, &local, at(0)));
        assert!(!own.is_due(wanted, &local, at(4)), "it was just asked");
        own.seen(vec![]);
        assert_eq!(own.problem(&dublin), None, "no peer sees the node at all");
        assert!(own.is_due(wanted, &local, at(5)));
        own.seen(vec![endpoint("203.0.113.99:4711")]);
        let problem = own.problem(&dublin).unwrap();
        assert_eq!(
            (problem.code, problem.lan, &*problem.subject),
            (ProblemCode::Endpoint, None, "203.0.113.10:51820")
        );
        assert!(problem.words.contains("they see it at 203.0.113.99:4711"));
        assert!(
            own.is_due(wanted, &local, at(100)),
            "as long as it is wrong"
        );
        own.seen(vec![endpoint("203.0.113.10:4711")]);
        assert_eq!(own.problem(&dublin), None);
        assert!(!own.is_due(wanted, &local, at(399)));
        assert!(own.is_due(wanted, &local, at(400)));
        // Another endpoint is looked at anew.
        own.seen(vec![endpoint("203.0.113.99:4711")]);
        assert!(own.is_due(Some(endpoint("203.0.113.99:51820")), &local, at(401)));
        assert_eq!(own.problem(&dublin), None);
    }
}
