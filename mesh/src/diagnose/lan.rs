//! What keeps the LANs of this site from those of others on this host, found without a packet.
//!
//! No packet may carry an address that a host of a LAN may have, so the way is judged by what the
//! kernel says of it: its rules, its switches, and where it would route such a packet.

mod answers;
mod route;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::Value;
use wattle_wire::{
    ids::NodeId,
    name::Name,
    peer::Peer,
    report::{LanEffect, Problem, ProblemCode},
};

pub(super) use self::route::family;
pub use self::{
    answers::notices,
    route::{Led, Question, questions},
};
use super::{
    firewall::{Deed, Firewall, Hook, Lan, Obstacle, Packet, Transport},
    remedy,
    verify::Fault,
};
use crate::{
    agent::{
        guard::Refused,
        replica::{Known, KnownPeer},
    },
    health::{link, replies::Replies},
    host::{
        interface::InterfaceName,
        state::Interface,
        way::{self, ForeignRoute, RoutingRule},
    },
};

/// The LANs of this site and of the others, as this host is to carry them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub interface: InterfaceName,
    /// The UDP port at which peers look for this node.
    pub port: u16,
    /// Subnets of the site; empty while the node stands by.
    pub own: Vec<IpNet>,
    pub far: Vec<FarLan>,
    /// Peers with an endpoint from which nothing was heard lately.
    pub unheard: Vec<Unheard>,
    /// Hosts of the own LANs that others ask and that do not answer by this host.
    pub silent: BTreeSet<IpAddr>,
    /// Those of the own LANs of which a host answers.
    pub answering: BTreeSet<IpNet>,
    /// The interfaces by which packets of the own LANs come, each with a host that sends them.
    pub came: BTreeSet<(String, IpAddr)>,
}

/// A peer that does not answer at its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unheard {
    pub node: NodeId,
    pub name: Name,
    pub endpoint: IpAddr,
}

/// A LAN behind a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarLan {
    pub node: NodeId,
    pub name: Name,
    pub prefix: IpNet,
}

/// What was found on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The LANs of the site that the host is in.
    pub lans: Vec<Lan>,
    /// Routes that the agent did not make.
    pub routes: Vec<ForeignRoute>,
    pub rules: Vec<RoutingRule>,
    /// Interfaces by which packets of the LANs come, and the tunnel's, that do not forward IPv4.
    pub stopped: BTreeSet<String>,
    /// Whether the host forwards IPv6.
    pub forwards_v6: bool,
    /// What `nft --json list ruleset` says, with the tables of iptables-legacy in the same form; the
    /// error when nft fails.
    pub ruleset: Result<Value, String>,
    /// Why there may be tables of iptables-legacy that were not read.
    pub legacy_unread: Option<String>,
    /// Where packets would be led.
    pub led: Vec<(Question, Led)>,
    /// Those of the silent hosts that are there: they answer ARP or neighbour discovery.
    pub neighbours: BTreeSet<IpAddr>,
}

impl Served {
    /// As the host carries it out; `found` is its interface now, `replies` are what hosts of its
    /// LANs send back.
    pub fn new(
        known: &Known,
        interface: &InterfaceName,
        refused: &Refused,
        found: Option<&Interface>,
        replies: &Replies,
    ) -> Self {
        let is_heard = |peer: &KnownPeer| {
            let entry = found.and_then(|found| peer.entry(found));
            entry.is_some_and(|entry| link::is_fresh(entry.handshake_age_s))
        };
        let unheard = known.peers.values().filter(|peer| !is_heard(peer));
        let unheard = unheard.filter_map(|KnownPeer { peer, .. }| {
            let endpoint = peer.endpoint_for(known.myself.node)?.socket().ip();
            Some(Unheard {
                node: peer.node,
                name: peer.name.clone(),
                endpoint,
            })
        });
        let peers = known.peers.values().map(|known| &known.peer);
        let far = peers
            .filter(|peer| refused.allows_peer(peer.node))
            .flat_map(|peer| {
                behind(peer, refused).map(|prefix| FarLan {
                    node: peer.node,
                    name: peer.name.clone(),
                    prefix,
                })
            });
        let own = known.myself.subnets.iter().map(|own| own.net());
        let own: Vec<_> = own.filter(|own| refused.serves(*own)).collect();
        Self {
            interface: interface.clone(),
            port: known.listen_port(),
            far: far.collect(),
            unheard: unheard.collect(),
            silent: replies.silent(&own),
            answering: replies.answering(&own),
            came: replies.came(&own),
            own,
        }
    }

    /// Whether the site and another have LANs of this family.
    fn has_family(&self, v4: bool) -> bool {
        self.own.iter().any(|own| own.addr().is_ipv4() == v4)
            && self.far.iter().any(|far| far.prefix.addr().is_ipv4() == v4)
    }
}

/// What of a peer's LANs the host carries out.
pub(super) fn behind(peer: &Peer, refused: &Refused) -> impl Iterator<Item = IpNet> {
    let parts = peer.subnets.iter();
    parts.flat_map(|subnet| refused.carried_out(*subnet))
}

/// LANs of the site behind a router of it: the host has no address in them, and a route of its own
/// by which they are reached.
pub fn routed(own: &[IpNet], lans: &[Lan], routes: &[ForeignRoute]) -> Vec<Lan> {
    let missing = own
        .iter()
        .filter(|own| lans.iter().all(|lan| lan.subnet != **own));
    let lan = |own: &IpNet| {
        let route = way::best(own.network(), routes)?;
        let way = route.way.as_ref()?;
        (route.prefix.prefix_len() > 0).then(|| Lan {
            interface: way.device.clone(),
            subnet: *own,
            address: *own,
            up: true,
        })
    };
    missing.filter_map(lan).collect()
}

impl Facts {
    /// Of a host that cannot be looked at, for this reason.
    pub fn unread(error: String) -> Self {
        Self {
            lans: Vec::new(),
            routes: Vec::new(),
            rules: Vec::new(),
            stopped: BTreeSet::new(),
            forwards_v6: true,
            ruleset: Err(error),
            legacy_unread: None,
            led: Vec::new(),
            neighbours: BTreeSet::new(),
        }
    }

    /// Whether nothing is known of the host.
    fn is_unread(&self) -> bool {
        self.ruleset.is_err() && self.lans.is_empty() && self.routes.is_empty()
    }
}

/// What is in the way between the LANs. Nothing where there are none.
pub fn problems(served: &Served, facts: &Facts) -> Vec<Problem> {
    if served.own.is_empty() || served.far.is_empty() {
        return Vec::new();
    }
    if facts.is_unread() {
        return rules(served, facts);
    }
    let mut problems = missing(served, facts);
    problems.extend(families(served, facts));
    problems.extend(forwarding(served, facts));
    problems.extend(route::problems(served, facts));
    problems.extend(rules(served, facts));
    // What is in the way here would explain it.
    if problems.is_empty() {
        problems.extend(answers::problems(served, facts));
    }
    problems
}

/// For each far LAN that packets of the own ones do not get to for sure, what is in the way.
pub fn ways(served: &Served, facts: &Facts) -> Vec<(IpNet, Fault, String)> {
    let problems = problems(served, facts);
    let way = |far: &FarLan| {
        let concerning = problems
            .iter()
            .filter(|problem| problem.peer.is_none_or(|peer| peer == far.node));
        let worst = concerning.max_by_key(|problem| problem.lan)?;
        let fault = match worst.lan? {
            LanEffect::Degraded => Fault::Blocked,
            LanEffect::Unproven => Fault::Unproven,
        };
        let reason = format!(
            "this gateway reaches it, but its LAN may not: {}. `wattle-agent doctor` says what to \
             do",
            worst.words
        );
        Some((far.prefix, fault, reason))
    };
    served.far.iter().filter_map(way).collect()
}

fn degraded(code: ProblemCode, subject: impl ToString, words: String, remedy: String) -> Problem {
    Problem {
        subject: subject.to_string(),
        remedy: Some(remedy),
        lan: Some(LanEffect::Degraded),
        ..Problem::new(code, words)
    }
}

fn unproven(subject: impl ToString, words: String, remedy: String) -> Problem {
    Problem {
        lan: Some(LanEffect::Unproven),
        ..degraded(ProblemCode::Firewall, subject, words, remedy)
    }
}

/// Subnets of the site that the host does not reach, and LANs that are cut off.
fn missing(served: &Served, facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    for own in &served.own {
        let lans: Vec<_> = facts.lans.iter().filter(|lan| lan.subnet == *own).collect();
        // A router in the LAN may have the rest of it behind itself.
        let is_routed = facts.routes.iter().any(|route| {
            let prefix = route.prefix;
            prefix.prefix_len() > 0
                && route.way.is_some()
                && (prefix.contains(own) || own.contains(&prefix))
        });
        if lans.is_empty() && !is_routed {
            problems.push(degraded(
                ProblemCode::NoLan,
                own,
                format!(
                    "this host has no address in {own} of its site and no route to it, so packets \
                     of other sites for it do not arrive"
                ),
                format!(
                    "give the interface of that LAN an address in it, or add a route if it is \
                     behind a router (`ip route add {own} via ROUTER`), or take it out of the site"
                ),
            ));
        } else if !lans.is_empty() && lans.iter().all(|lan| !lan.up) {
            let interface = &lans[0].interface;
            problems.push(degraded(
                ProblemCode::LanDown,
                interface,
                format!("{interface}, the interface of {own}, is down or has no carrier"),
                format!("ip link set {interface} up; if it stays down, see its cable and switch"),
            ));
        }
    }
    problems
}

/// Peers whose endpoint is of a family that this host does not speak: packets get to it neither from
/// here nor, most likely, the other way.
fn families<'s>(served: &'s Served, facts: &'s Facts) -> impl Iterator<Item = Problem> + use<'s> {
    let has_default = |v4: bool| {
        let mut routes = facts.routes.iter();
        routes.any(|route| route.prefix.prefix_len() == 0 && route.prefix.addr().is_ipv4() == v4)
    };
    let is_foreign = move |peer: &&Unheard| {
        let v4 = peer.endpoint.is_ipv4();
        way::best(peer.endpoint, &facts.routes).is_none() && has_default(!v4)
    };
    served.unheard.iter().filter(is_foreign).map(|peer| {
        let (theirs, ours) = if peer.endpoint.is_ipv4() {
            ("IPv4", "IPv6")
        } else {
            ("IPv6", "IPv4")
        };
        let words = format!(
            "the endpoint {} of {} is of {theirs}, and this host has no route of {theirs}: the two \
             gateways have no address family in common",
            peer.endpoint, peer.name
        );
        let remedy = format!(
            "give the site of {} an endpoint of {ours}, or this host an uplink with {theirs}",
            peer.name
        );
        Problem {
            peer: Some(peer.node),
            ..degraded(ProblemCode::AddressFamily, peer.endpoint, words, remedy)
        }
    })
}

fn forwarding(served: &Served, facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if served.has_family(true) {
        problems.extend(facts.stopped.iter().map(|interface| {
            degraded(
                ProblemCode::Forwarding,
                interface,
                format!(
                    "net.ipv4.conf.{interface}.forwarding is 0: this host forwards no IPv4 packet \
                     that comes in by {interface}"
                ),
                format!("sysctl -w net.ipv4.conf.{interface}.forwarding=1"),
            )
        }));
    }
    if served.has_family(false) && !facts.forwards_v6 {
        problems.push(degraded(
            ProblemCode::Forwarding,
            "all",
            "net.ipv6.conf.all.forwarding is 0: this host forwards no IPv6 packet".to_owned(),
            "sysctl -w net.ipv6.conf.all.forwarding=1".to_owned(),
        ));
    }
    problems
}

/// What the firewall does to packets between the LANs, either way.
fn rules(served: &Served, facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(reason) = &facts.legacy_unread {
        problems.push(unproven(
            "iptables-legacy",
            format!("the rules of iptables-legacy cannot be read: {reason}"),
            format!(
                "see `iptables-legacy-save` and `ip6tables-legacy-save`: what they print must let \
                 packets in by {0} and out by {0}. Better move the rules to nftables",
                served.interface
            ),
        ));
    }
    let ruleset = match &facts.ruleset {
        Ok(ruleset) => ruleset,
        Err(error) => {
            problems.push(unproven(
                "nftables",
                format!("the rules of the firewall cannot be read: {error}"),
                "install nftables".to_owned(),
            ));
            return problems;
        }
    };
    let firewall = Firewall::new(ruleset);
    problems.extend(route::by_selectors(served, facts, firewall.sets_marks()));
    let tunnel = served.interface.as_str();
    // One problem for each rule, whatever the number of LANs that it is in the way of: the worst.
    let mut by_rule: BTreeMap<_, InTheWay<'_>> = BTreeMap::new();
    for far in &served.far {
        let found = facts
            .lans
            .iter()
            .flat_map(|lan| firewall.between(lan, tunnel, far.prefix));
        for (packet, obstacle) in found {
            let known = by_rule
                .entry((obstacle.place(), obstacle.rule, obstacle.deed))
                .or_insert_with(|| InTheWay {
                    packet,
                    obstacle: obstacle.clone(),
                    nodes: BTreeSet::new(),
                    far: BTreeSet::new(),
                });
            known.nodes.insert(far.node);
            known.far.insert(far.prefix);
            if obstacle.certain && !known.obstacle.certain {
                (known.packet, known.obstacle) = (packet, obstacle);
            }
        }
    }
    let mut found: Vec<_> = by_rule.into_values().collect();
    found.sort_by_key(|known| !known.obstacle.certain);
    problems.extend(found.iter().map(|known| Problem {
        peer: only(served, &known.nodes),
        ..barrier(&served.interface, &firewall, known)
    }));
    problems
}

/// A rule, or a policy, that is in the way.
struct InTheWay<'p> {
    /// The packet that it does the worst to.
    packet: Packet<'p>,
    obstacle: Obstacle,
    /// Those whose LANs are concerned, and the LANs.
    nodes: BTreeSet<NodeId>,
    far: BTreeSet<IpNet>,
}

/// The one peer that something concerns, where there are others that it does not.
fn only(served: &Served, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
    let others = served.far.iter().any(|far| !nodes.contains(&far.node));
    nodes
        .first()
        .copied()
        .filter(|_| nodes.len() == 1 && others)
}

fn barrier(interface: &InterfaceName, firewall: &Firewall<'_>, known: &InTheWay<'_>) -> Problem {
    let InTheWay {
        packet,
        obstacle,
        far,
        ..
    } = known;
    let manager = remedy::manager(firewall, obstacle);
    let what = match packet.transport {
        Transport::Ping => "packets",
        Transport::Tcp | Transport::TcpPort(_) | Transport::UdpPort(_) => "connections",
    };
    let mut words = format!(
        "{obstacle}{}: {what} from {} to {}",
        manager.remark(),
        packet.source,
        packet.destination
    );
    let keep = || remedy::keep_source(interface, manager, obstacle);
    let pass = || {
        if obstacle.hook == Hook::Forward {
            remedy::let_through(interface, manager, obstacle)
        } else if far.contains(&packet.destination) {
            remedy::let_pairs_through(manager, obstacle, packet.source, far)
        } else {
            remedy::let_pairs_through(manager, obstacle, packet.destination, far)
        }
    };
    let (code, remedy) = match obstacle.deed {
        Deed::Drop | Deed::Reject => (ProblemCode::Firewall, pass()),
        Deed::Redirect => (ProblemCode::Nat, pass()),
        Deed::Rewrite => {
            words += ". Other sites drop what comes from an address that is not this site's";
            (ProblemCode::Nat, keep())
        }
        Deed::Masquerade => {
            words += ". Other sites see the tunnel address of this gateway in place of the host's";
            (ProblemCode::Nat, keep())
        }
    };
    let rule = obstacle.rule.map(|rule| format!(" rule {rule}"));
    let subject = obstacle.place() + &rule.unwrap_or_default();
    let effect = match obstacle.deed {
        // They get there all the same.
        Deed::Masquerade => None,
        Deed::Drop | Deed::Reject | Deed::Redirect | Deed::Rewrite if obstacle.certain => {
            Some(LanEffect::Degraded)
        }
        Deed::Drop | Deed::Reject | Deed::Redirect | Deed::Rewrite => Some(LanEffect::Unproven),
    };
    Problem {
        lan: effect,
        ..degraded(code, subject, words, remedy)
    }
}

#[cfg(test)]
mod tests;
