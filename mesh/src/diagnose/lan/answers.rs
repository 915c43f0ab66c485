//! Hosts of the LANs here that get packets of other sites and send no answer back by this gateway:
//! they answer to another router.

use std::{collections::BTreeSet, net::IpAddr};

use wattle_wire::report::{Problem, ProblemCode};

use super::{Facts, Served, degraded};
use crate::diagnose::firewall::Lan;

/// So many hosts of a LAN that do not answer, and none that does, are no chance: a host may be off,
/// or have a firewall of its own.
const FROM: usize = 3;
/// As many hosts and prefixes are named.
const MOST_NAMED: usize = 4;

/// LANs of which no host answers.
pub(super) fn problems(served: &Served, facts: &Facts) -> Vec<Problem> {
    let problem = |lan: &Lan| {
        let silent = silent(served, facts, lan);
        let is_all = silent.len() >= FROM && !served.answering.contains(&lan.subnet);
        is_all.then(|| {
            degraded(
                ProblemCode::ReturnRoute,
                lan.subnet,
                words(lan, &silent, "none of them answers"),
                remedy(served, lan),
            )
        })
    };
    facts.lans.iter().filter_map(problem).collect()
}

/// Hosts of the LANs here that do not answer others, where that may be their own choice: what to say
/// of each LAN, and what to do.
///
/// To be asked for where [`super::problems`] finds nothing, for that would explain it.
pub fn notices(served: &Served, facts: &Facts) -> Vec<(String, String)> {
    let notice = |lan: &Lan| {
        let silent = silent(served, facts, lan);
        let is_some =
            !silent.is_empty() && (silent.len() < FROM || served.answering.contains(&lan.subnet));
        is_some.then(|| {
            let words = words(lan, &silent, "do not answer");
            let remedy = remedy(served, lan);
            (
                words,
                format!("if no firewall of their own drops them: {remedy}"),
            )
        })
    };
    facts.lans.iter().filter_map(notice).collect()
}

/// Hosts of a LAN that are asked, that are there, and that do not answer.
fn silent(served: &Served, facts: &Facts, lan: &Lan) -> Vec<IpAddr> {
    let silent = served.silent.intersection(&facts.neighbours);
    silent
        .filter(|host| lan.subnet.contains(*host))
        .copied()
        .collect()
}

fn words(lan: &Lan, silent: &[IpAddr], they: &str) -> String {
    let named: Vec<_> = silent
        .iter()
        .take(MOST_NAMED)
        .map(IpAddr::to_string)
        .collect();
    let more = match silent.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "hosts of {} ({}{more}) get packets of other sites by this gateway, and {they} by it: they \
         send their answers to another router, which has no way to the other sites",
        lan.subnet,
        named.join(", ")
    )
}

/// What the router of the LAN is told.
fn remedy(served: &Served, lan: &Lan) -> String {
    let far: BTreeSet<_> = served.far.iter().map(|far| far.prefix).collect();
    let of_family = far
        .into_iter()
        .filter(|far| far.addr().is_ipv4() == lan.subnet.addr().is_ipv4());
    let commands: Vec<_> = of_family
        .take(MOST_NAMED)
        .map(|far| {
            let family = super::route::family(far);
            format!("ip {family}route add {far} via {}", lan.address.addr())
        })
        .collect();
    format!("on the router of {}: {}", lan.subnet, commands.join("; "))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            LanEffect, notices, problems,
            tests::{healthy, served},
        },
        *,
    };

    /// A healthy host of whose LAN these hosts are silent, and how many of them are there.
    fn host(silent: u8, there: u8) -> (Served, Facts) {
        let hosts = |number| {
            (0..number)
                .map(|last| IpAddr::from([10, 10, 0, 100 + last]))
                .collect()
        };
        let mut site = served();
        let mut facts = healthy(&site);
        site.silent = hosts(silent);
        facts.neighbours = hosts(there);
        (site, facts)
    }

    #[test]
    fn a_lan_of_which_three_hosts_that_are_there_do_not_answer_has_no_way_back() {
        let (site, facts) = host(3, 3);
        let [problem] = &problems(&site, &facts)[..] else {
            panic!("one problem");
        };
        assert_eq!(
            (problem.code, &*problem.subject, problem.peer, problem.lan),
            (
                ProblemCode::ReturnRoute,
                "10.10.0.0/24",
                None,
                Some(LanEffect::Degraded)
            )
        );
        assert_eq!(
            problem.remedy.as_deref(),
            Some(
                "on the router of 10.10.0.0/24: ip route add 10.20.0.0/24 via 10.10.0.1; ip route \
                 add 10.30.0.0/24 via 10.10.0.1"
            )
        );
        assert_eq!(notices(&site, &facts), []);
    }

    #[test]
    fn hosts_that_are_off_or_few_or_beside_one_that_answers_are_no_problem() {
        for (silent, there, answering, noticed) in [
            (100, 0, false, 0),
            (100, 2, false, 1),
            (1, 1, false, 1),
            (3, 3, true, 1),
            (0, 3, false, 0),
        ] {
            let (mut site, facts) = host(silent, there);
            if answering {
                site.answering = site.own.iter().copied().collect();
            }
            let case = (silent, there, answering);
            assert_eq!(problems(&site, &facts), [], "{case:?}");
            assert_eq!(notices(&site, &facts).len(), noticed, "{case:?}");
        }
    }

    #[test]
    fn what_is_in_the_way_on_this_host_explains_silence() {
        let (site, mut facts) = host(3, 3);
        facts.stopped.insert("lan0".to_owned());
        let codes: Vec<_> = problems(&site, &facts)
            .iter()
            .map(|problem| problem.code)
            .collect();
        assert_eq!(codes, [ProblemCode::Forwarding]);
        assert_eq!(notices(&site, &facts), []);
    }
}
