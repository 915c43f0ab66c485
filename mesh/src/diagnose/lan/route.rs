//! Where the host would lead packets between LANs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wattle_wire::{
    report::{Problem, ProblemCode},
    subnet::overlap,
};

use super::{Facts, FarLan, Served, degraded, only, unproven};
use crate::{
    diagnose::firewall::Lan,
    host::way::{ForeignRoute, RoutingRule, RoutingRuleKind, best},
};

/// As many questions are asked of the kernel at a time.
const MOST_QUESTIONS: usize = 4096;
/// As many prefixes a remedy names.
const MOST_NAMED: usize = 4;

/// A packet between two LANs of which the kernel is asked where it would lead it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// A host of the one LAN.
    pub from: IpAddr,
    /// A host of the other.
    pub to: IpAddr,
    /// The interface by which it comes.
    pub by: String,
    /// The number of the own LAN, and of the far one.
    lan: usize,
    far: usize,
    /// Whether it leaves the site.
    is_outward: bool,
}

/// Where the kernel leads a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Led {
    /// Out by an interface.
    By(String),
    /// To the host itself.
    Here,
    /// Nowhere: it came by an interface by which no packet leaves to its sender, and `rp_filter` is
    /// strict.
    Filtered,
    /// Nowhere; what the kernel says.
    Nowhere(String),
}

impl Led {
    /// What becomes of packets, in words, that should leave by `way`.
    fn in_place_of(&self, way: &str) -> String {
        match self {
            Self::By(interface) => format!("leave by {interface} and not by {way}"),
            Self::Here => "end on this host".to_owned(),
            Self::Filtered => "are dropped".to_owned(),
            Self::Nowhere(error) => format!("go nowhere ({error})"),
        }
    }
}

/// What to ask: for each pair of LANs a packet either way, and one for each route of somebody else
/// to a part of the far LAN; and one for each other interface by which packets of a LAN come.
///
/// `outside` are addresses that are to be reached past the tunnel.
pub fn questions(
    served: &Served,
    lans: &[Lan],
    routes: &[ForeignRoute],
    outside: &BTreeSet<IpAddr>,
) -> Vec<Question> {
    let mut questions = Vec::new();
    for (lan, number) in lans.iter().zip(0..) {
        let Some(near) = host_in(lan.network(), Some(lan.address.addr())).filter(|_| lan.up) else {
            continue;
        };
        for (far, of_far) in served.far.iter().zip(0..) {
            if far.prefix.addr().is_ipv4() != near.is_ipv4() {
                continue;
            }
            let parts = routes.iter().map(|route| route.prefix);
            let parts = parts.filter(|part| part != &far.prefix && far.prefix.contains(part));
            let targets = [far.prefix]
                .into_iter()
                .chain(parts)
                .filter_map(|part| host_in(part, None))
                .filter(|target| !outside.contains(target));
            questions.extend(targets.map(|to| Question {
                from: near,
                to,
                by: lan.interface.clone(),
                lan: number,
                far: of_far,
                is_outward: true,
            }));
            if let Some(from) = host_in(far.prefix, None) {
                questions.push(Question {
                    from,
                    to: near,
                    by: served.interface.to_string(),
                    lan: number,
                    far: of_far,
                    is_outward: false,
                });
            }
        }
    }
    questions.truncate(MOST_QUESTIONS);
    questions.extend(from_elsewhere(served, lans));
    questions
}

/// Packets of hosts of the LANs that come by another interface than the one that leads there.
fn from_elsewhere<'q>(
    served: &'q Served,
    lans: &'q [Lan],
) -> impl Iterator<Item = Question> + use<'q> {
    served.came.iter().filter_map(|(by, host)| {
        let mut of_host = lans.iter().zip(0..);
        let (lan, number) = of_host.find(|(lan, _)| lan.subnet.contains(host))?;
        let mut far = served.far.iter().zip(0..);
        let (far, of_far) = far.find(|(far, _)| far.prefix.addr().is_ipv4() == host.is_ipv4())?;
        (*by != lan.interface).then_some(Question {
            from: *host,
            to: host_in(far.prefix, None)?,
            by: by.clone(),
            lan: number,
            far: of_far,
            is_outward: true,
        })
    })
}

/// Where packets do not go as they should. What is led astray by the same route or rule is one
/// problem.
pub(super) fn problems(served: &Served, facts: &Facts) -> Vec<Problem> {
    let mut astray: BTreeMap<_, Vec<(&Question, &FarLan)>> = BTreeMap::new();
    for (question, led) in &facts.led {
        let (Some(lan), Some(far)) = (facts.lans.get(question.lan), served.far.get(question.far))
        else {
            continue;
        };
        // Told as what it is.
        let is_stopped = facts.stopped.contains(&question.by) && question.to.is_ipv4()
            || !facts.forwards_v6 && question.to.is_ipv6();
        if !is_stopped && !is_right(served, facts, question, lan, led) {
            let way = diversion(facts, question, far);
            let key = (question.lan, question.is_outward, led, way);
            astray.entry(key).or_default().push((question, far));
        }
    }
    astray
        .iter()
        .filter_map(|((lan, is_outward, led, way), packets)| {
            let lan = facts.lans.get(*lan)?;
            let nodes = packets.iter().map(|(_, far)| far.node).collect();
            let problem = if *led == &Led::Filtered {
                filtered(packets)
            } else if *is_outward {
                outward(lan, led, *way, packets)
            } else {
                inward(served, lan, led, packets)
            };
            Some(Problem {
                peer: only(served, &nodes),
                ..problem
            })
        })
        .collect()
}

/// LANs whose packets a routing rule may lead elsewhere that goes by marks, which the firewall sets or
/// does not set, or by what packets carry: the kernel was asked for none of them.
pub(super) fn by_selectors(served: &Served, facts: &Facts, sets_marks: bool) -> Vec<Problem> {
    let mut rules = facts.rules.clone();
    rules.sort_by_key(|rule| rule.priority);
    let tunnel = served.interface.as_str();
    let pairs = facts.lans.iter().flat_map(|lan| {
        let far = served.far.iter().map(|far| far.prefix);
        far.flat_map(move |far| {
            [
                (lan.interface.as_str(), lan.subnet, far),
                (tunnel, far, lan.subnet),
            ]
        })
    });
    let mut open: BTreeMap<_, BTreeSet<IpNet>> = BTreeMap::new();
    for (by, from, to) in pairs {
        let of_family = rules.iter().filter(|rule| {
            rule.is_v4 == from.addr().is_ipv4() && rule.is_v4 == to.addr().is_ipv4()
        });
        let mut concerned = of_family.filter(|rule| match rule.kind {
            RoutingRuleKind::ByMark => sets_marks && may_mean(rule, by, from, to),
            RoutingRuleKind::ByTraffic => may_mean(rule, by, from, to),
            RoutingRuleKind::Main => means_all(rule, by, from, to),
        });
        match concerned.next().map(|rule| rule.kind) {
            Some(RoutingRuleKind::Main) | None => {}
            Some(kind @ (RoutingRuleKind::ByMark | RoutingRuleKind::ByTraffic)) => {
                open.entry(kind).or_default().insert(to);
            }
        }
    }
    let problem = |(kind, open): (&RoutingRuleKind, &BTreeSet<IpNet>)| {
        let (subject, cause) = if *kind == RoutingRuleKind::ByMark {
            (
                "fwmark",
                "a routing rule of this host goes by marks (`ip rule`), and rules of the firewall \
                 set marks",
            )
        } else {
            (
                "ports",
                "a routing rule of this host leads some protocols or ports elsewhere (`ip rule`)",
            )
        };
        let words = format!(
            "{cause}: whether packets to {} get there is not known",
            some(open)
        );
        Problem {
            code: ProblemCode::Route,
            ..unproven(subject, words, self::rules(open))
        }
    };
    open.iter().map(problem).collect()
}

/// Whether a rule means packets that come by an interface from one network to another, or some of
/// them.
fn may_mean(rule: &RoutingRule, by: &str, from: IpNet, to: IpNet) -> bool {
    let overlaps = |of: Option<IpNet>, net| of.is_none_or(|of| overlap(of, net));
    let is_by = rule.by.as_deref().is_none_or(|of| of == by);
    is_by && overlaps(rule.from, from) && overlaps(rule.to, to)
}

/// Whether a rule means all of them.
fn means_all(rule: &RoutingRule, by: &str, from: IpNet, to: IpNet) -> bool {
    let holds = |of: Option<IpNet>, net: IpNet| of.is_none_or(|of| of.contains(&net));
    let is_by = rule.by.as_deref().is_none_or(|of| of == by);
    is_by && holds(rule.from, from) && holds(rule.to, to)
}

fn is_right(served: &Served, facts: &Facts, question: &Question, lan: &Lan, led: &Led) -> bool {
    let interface = match led {
        Led::By(interface) => interface,
        // It may have several addresses in its LAN.
        Led::Here => return !question.is_outward,
        Led::Filtered | Led::Nowhere(_) => return false,
    };
    if question.is_outward {
        return *interface == served.interface.as_str();
    }
    // Somebody may have put the host behind a router of its LAN.
    let is_route = best(question.to, &facts.routes).is_some_and(|route| {
        let way = route.way.as_ref();
        route.prefix.prefix_len() > 0 && way.is_some_and(|way| way.device == *interface)
    });
    *interface == lan.interface || is_route && *interface != served.interface.as_str()
}

/// The route of somebody else that takes the packet from the tunnel, if it is one of the main
/// table.
fn diversion(facts: &Facts, question: &Question, far: &FarLan) -> Option<IpNet> {
    let route = best(question.to, &facts.routes).filter(|_| question.is_outward)?;
    (route.prefix.prefix_len() >= far.prefix.prefix_len()).then_some(route.prefix)
}

fn outward(lan: &Lan, led: &Led, way: Option<IpNet>, packets: &[(&Question, &FarLan)]) -> Problem {
    let far: BTreeSet<IpNet> = packets.iter().map(|(_, far)| far.prefix).collect();
    let place = led.in_place_of("the tunnel");
    let (to, subject) = match way {
        Some(way) => (way.to_string(), way.to_string()),
        None => (some(&far), lan.subnet.to_string()),
    };
    let words = format!("packets from {} to {to} {place}: ", lan.subnet);
    let (cause, remedy) = match way {
        Some(way) => (
            format!("this host has a route of its own to {way}"),
            format!(
                "if nothing else needs it: ip {}route del {way}",
                family(way)
            ),
        ),
        None => (
            "a routing rule of this host leads them there (`ip rule`)".to_owned(),
            rules(&far),
        ),
    };
    degraded(ProblemCode::Route, subject, words + &cause, remedy)
}

fn inward(served: &Served, lan: &Lan, led: &Led, packets: &[(&Question, &FarLan)]) -> Problem {
    let far: BTreeSet<IpNet> = packets.iter().map(|(_, far)| far.prefix).collect();
    let place = led.in_place_of(&lan.interface);
    degraded(
        ProblemCode::Route,
        format!("{} from {}", lan.subnet, served.interface),
        format!(
            "packets from {} to {} {place}: a route or a routing rule of this host does that (`ip \
             rule`)",
            some(&far),
            lan.subnet
        ),
        rules(&[lan.subnet].into()),
    )
}

fn filtered(packets: &[(&Question, &FarLan)]) -> Problem {
    let by = packets.first().map_or("all", |(question, _)| &question.by);
    degraded(
        ProblemCode::Route,
        format!("rp_filter of {by}"),
        format!(
            "rp_filter is strict, and packets to those whose packets come by {by} would leave by \
             another interface: what comes by {by} is dropped"
        ),
        format!("sysctl -w net.ipv4.conf.{by}.rp_filter=2"),
    )
}

/// Commands that let the main table decide before any other rule.
fn rules(prefixes: &BTreeSet<IpNet>) -> String {
    let commands = prefixes.iter().take(MOST_NAMED).map(|prefix| {
        let family = family(*prefix);
        format!("ip {family}rule add to {prefix} lookup main priority 10")
    });
    let mut all = commands.collect::<Vec<_>>().join("; ");
    if prefixes.len() > MOST_NAMED {
        all += "; and so on for the others";
    }
    all
}

fn some(prefixes: &BTreeSet<IpNet>) -> String {
    match (prefixes.first(), prefixes.len()) {
        (Some(first), 1) => first.to_string(),
        (Some(first), number) => format!("{first} and {} more", number - 1),
        (None, _) => "nowhere".to_owned(),
    }
}

/// What `ip` is told of the family of a prefix.
pub(in crate::diagnose) fn family(prefix: IpNet) -> &'static str {
    if prefix.addr().is_ipv4() { "" } else { "-6 " }
}

/// An address of a network that a host of it may have, and that is not this one.
fn host_in(network: IpNet, but: Option<IpAddr>) -> Option<IpAddr> {
    // The first address of an IPv6 network means any of its routers.
    let is_anycast =
        |host: &IpAddr| host.is_ipv6() && *host == network.network() && network.prefix_len() < 127;
    let mut hosts = network.hosts().take(3);
    hosts.find(|host| !is_anycast(host) && Some(*host) != but)
}
