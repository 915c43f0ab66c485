//! Whether packets really get from this gateway to the others: what to ping, and what the answers
//! mean.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wattle_wire::{name::Name, probe::Throughput};

use crate::agent::{
    guard::Refused,
    replica::{Known, KnownPeer},
};

/// What the first router of a packet puts into its time to live: RFC 1700's 64 and what other
/// systems took.
const INITIAL_TTLS: [u8; 3] = [64, 128, 255];

/// What to ask of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub peer: Name,
    /// Whether no agent runs there, which would count for a measurement.
    pub unmanaged: bool,
    pub what: What,
    /// The TCP port to connect to; absent means a ping.
    pub port: Option<u16>,
    /// Any of them will do: of a LAN it is not known which hosts there are. Never empty.
    pub addresses: Vec<IpAddr>,
    /// Why this host's guard keeps the prefix out. Whoever answers is not behind the peer then, so
    /// nobody is asked.
    pub refused: Option<String>,
}

/// What stands behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The peer's tunnel address.
    Tunnel,
    /// A LAN behind the peer.
    Lan(IpNet),
}

/// What the questions to one address gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    pub address: IpAddr,
    pub sent: usize,
    /// Milliseconds, one for each answer. Only an echo reply from the address itself is one, and a
    /// connection that it accepts.
    pub round_trips_ms: Vec<f64>,
    /// The time to live of an answer as it came in; absent when there was none, or where it is not
    /// known.
    pub ttl: Option<u8>,
    /// What came in place of the last answer that did not come; absent when that was nothing.
    pub objection: Option<Objection>,
}

/// What somebody said in place of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// An ICMP message that is no echo reply.
    Icmp {
        from: IpAddr,
        /// Type and code, of RFC 792 and RFC 1812, or of RFC 4443 if `from` is of IPv6.
        kind: u8,
        code: u8,
    },
    /// A TCP connection was refused, by the host or by a firewall in its name.
    Closed,
    /// This host did not get it on its way; what its kernel says.
    Here(String),
}

/// What an ICMP message means for who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Prohibited,
    NoHost,
    NoRoute,
    NoPort,
    TooBig,
    Loop,
    Other,
}

/// What is wrong with the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nobody answered.
    Silent,
    /// A firewall on the way said that it does not let it through, or the host refused a TCP
    /// connection.
    Refused,
    /// Somebody on the way, or this host, said that it does not get there.
    Unreachable,
    /// This host's guard keeps the prefix out.
    Guarded,
    /// A rule of this host stands between its LAN and that one.
    Blocked,
    /// A rule of this host may do so: whether it does cannot be known without the packet.
    Unproven,
    /// Some pings were not answered.
    Lossy,
    /// Another router stands between the two gateways.
    NotDirect,
    /// Its throughput was asked for, and could not be measured.
    Unmeasured,
}

/// All there is to ask: each peer's tunnel address, and in each LAN behind it every host that was
/// named, else the addresses where a LAN usually has its gateway.
///
/// # Errors
///
/// The first address that was named and is in no LAN of another site.
pub fn targets(
    known: &Known,
    refused: &Refused,
    hosts: &[IpAddr],
    tcp: &[SocketAddr],
) -> Result<Vec<Target>, IpAddr> {
    let named: Vec<(IpAddr, Option<u16>)> = hosts
        .iter()
        .map(|host| (*host, None))
        .chain(tcp.iter().map(|to| (to.ip(), Some(to.port()))))
        .collect();
    let mut targets = Vec::new();
    let mut found = BTreeSet::new();
    for KnownPeer {
        peer, statement, ..
    } in known.peers.values()
    {
        if refused.is_unsigned(peer.node) {
            // There is no tunnel to it, and there is to be none.
            continue;
        }
        let mut push = |what, port, addresses: Vec<IpAddr>, prefix: IpNet| {
            let is_in = |address: &IpAddr| {
                refused
                    .carried_out(prefix)
                    .any(|part| part.contains(address))
            };
            let (inside, outside): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_in);
            let is_refused = inside.is_empty();
            targets.push(Target {
                peer: peer.name.clone(),
                unmanaged: statement.unmanaged,
                what,
                port,
                addresses: if is_refused { outside } else { inside },
                refused: refused.why(prefix).filter(|_| is_refused),
            });
        };
        let tunnel = IpAddr::from(peer.tunnel_address);
        push(What::Tunnel, None, vec![tunnel], tunnel.into());
        for lan in &peer.subnets {
            let of_lan: Vec<_> = named
                .iter()
                .filter(|(host, _)| lan.contains(host))
                .collect();
            if of_lan.is_empty() {
                push(What::Lan(*lan), None, usual_gateways(*lan), *lan);
            }
            for (host, port) in of_lan {
                found.insert(*host);
                push(What::Lan(*lan), *port, vec![*host], *lan);
            }
        }
    }
    match named.iter().find(|(host, _)| !found.contains(host)) {
        Some((stranger, _)) => Err(*stranger),
        None => Ok(targets),
    }
}

/// The first and the last address of a LAN that a host may have.
fn usual_gateways(lan: IpNet) -> Vec<IpAddr> {
    let (first, last) = match lan {
        IpNet::V4(lan) if lan.prefix_len() < 31 => (
            IpAddr::from((u32::from(lan.network()) + 1).to_be_bytes()),
            IpAddr::from((u32::from(lan.broadcast()) - 1).to_be_bytes()),
        ),
        IpNet::V6(lan) if lan.prefix_len() < 127 => (
            IpAddr::from((u128::from(lan.network()) + 1).to_be_bytes()),
            lan.broadcast().into(),
        ),
        IpNet::V4(_) | IpNet::V6(_) => (lan.network(), lan.broadcast()),
    };
    BTreeSet::from([first, last]).into_iter().collect()
}

/// What is wrong with the way to a target, if anything is. The best answers count: of several
/// addresses any will do.
pub fn fault(what: What, answers: &Answers) -> Option<Fault> {
    // The other gateway is one router on the way to a host behind it; to itself it is none.
    let most_routers = match what {
        What::Tunnel => 0,
        What::Lan(_) => 1,
    };
    match answers.round_trips_ms.len() {
        0 => Some(answers.objection.as_ref().map_or(Fault::Silent, |said| {
            if said.is_refusal() {
                Fault::Refused
            } else {
                Fault::Unreachable
            }
        })),
        answered if answered < answers.sent => Some(Fault::Lossy),
        _ => answers
            .ttl
            .is_some_and(|ttl| routers(ttl) > most_routers)
            .then_some(Fault::NotDirect),
    }
}

impl Objection {
    /// Whether it is a rule that stands in the way, and no missing route or host.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Icmp { from, kind, code } => matches!(
                meaning(*from, *kind, *code),
                Meaning::Prohibited | Meaning::NoPort
            ),
            Self::Here(_) => false,
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, kind, code) = match self {
            Self::Closed => {
                return f.write_str(
                    "the connection is refused: nobody listens on that port, or a firewall rejects \
                     it",
                );
            }
            Self::Here(error) => return write!(f, "this host did not send it: {error}"),
            Self::Icmp { from, kind, code } => (from, *kind, *code),
        };
        match meaning(*from, kind, code) {
            Meaning::Prohibited => write!(f, "refused by {from}: a firewall there forbids it"),
            Meaning::NoHost => write!(f, "unreachable, says {from}: the host does not answer it"),
            Meaning::NoRoute => write!(f, "unreachable, says {from}: it has no route there"),
            Meaning::NoPort => write!(
                f,
                "refused by {from}: it says \"port unreachable\", as firewalls do that reject"
            ),
            Meaning::TooBig => write!(f, "{from} says that the packet is too big"),
            Meaning::Loop => write!(
                f,
                "a routing loop: it went in circles until it ended at {from}"
            ),
            Meaning::Other => write!(f, "{from} answered with ICMP type {kind}, code {code}"),
        }
    }
}

fn meaning(from: IpAddr, kind: u8, code: u8) -> Meaning {
    match (from, kind, code) {
        (IpAddr::V4(_), 3, 9 | 10 | 13) | (IpAddr::V6(_), 1, 1 | 5) => Meaning::Prohibited,
        (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4) => Meaning::NoPort,
        (IpAddr::V4(_), 3, 4) | (IpAddr::V6(_), 2, _) => Meaning::TooBig,
        (IpAddr::V4(_), 3, 1 | 7 | 12) | (IpAddr::V6(_), 1, 3) => Meaning::NoHost,
        (IpAddr::V4(_), 3, 0 | 5 | 6 | 8 | 11) | (IpAddr::V6(_), 1, 0 | 2 | 6) => Meaning::NoRoute,
        (IpAddr::V4(_), 11, _) | (IpAddr::V6(_), 3, _) => Meaning::Loop,
        _ => Meaning::Other,
    }
}

/// Megabits in a second; `None` when nothing was counted.
pub fn mbit_per_s(counted: Throughput) -> Option<f64> {
    // A bit in a microsecond is a megabit in a second.
    #[expect(
        clippy::cast_precision_loss,
        reason = "bytes and microseconds of some seconds fit into 53 bits"
    )]
    let rate = (counted.bytes * 8) as f64 / counted.microseconds as f64;
    (counted.bytes > 0 && counted.microseconds > 0).then_some(rate)
}

/// How many routers an answer passed, judged by the time to live that is left.
fn routers(ttl: u8) -> u8 {
    INITIAL_TTLS
        .into_iter()
        .find(|initial| *initial >= ttl)
        .map_or(0, |initial| initial - ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(round_trips_ms: &[f64], ttl: u8) -> Answers {
        Answers {
            address: [10, 99, 0, 2].into(),
            sent: 3,
            round_trips_ms: round_trips_ms.to_vec(),
            ttl: Some(ttl),
            objection: None,
        }
    }

    /// A message of ICMP that came in place of each answer.
    fn objected(from: &str, kind: u8, code: u8) -> Answers {
        Answers {
            objection: Some(Objection::Icmp {
                from: from.parse().unwrap(),
                kind,
                code,
            }),
            ..answers(&[], 0)
        }
    }

    #[test]
    fn an_error_of_icmp_is_no_answer_and_says_who_refuses_what() {
        for (from, kind, code, expected, words) in [
            (
                "198.51.100.20",
                3,
                13,
                Fault::Refused,
                "refused by 198.51.100.20",
            ),
            (
                "198.51.100.20",
                3,
                10,
                Fault::Refused,
                "refused by 198.51.100.20",
            ),
            ("10.20.0.1", 3, 3, Fault::Refused, "refused by 10.20.0.1"),
            (
                "10.20.0.1",
                3,
                1,
                Fault::Unreachable,
                "unreachable, says 10.20.0.1",
            ),
            (
                "192.0.2.1",
                3,
                0,
                Fault::Unreachable,
                "unreachable, says 192.0.2.1",
            ),
            ("192.0.2.1", 11, 0, Fault::Unreachable, "a routing loop"),
            ("fd00:20::1", 1, 1, Fault::Refused, "refused by fd00:20::1"),
            (
                "fd00:20::1",
                1,
                0,
                Fault::Unreachable,
                "it has no route there",
            ),
            ("fd00:20::1", 3, 0, Fault::Unreachable, "a routing loop"),
            (
                "10.20.0.1",
                12,
                0,
                Fault::Unreachable,
                "ICMP type 12, code 0",
            ),
        ] {
            let given = objected(from, kind, code);
            let lan = What::Lan("10.20.0.0/24".parse().unwrap());
            for what in [What::Tunnel, lan] {
                assert_eq!(fault(what, &given), Some(expected), "{given:?}");
            }
            let said = given.objection.unwrap().to_string();
            assert!(said.contains(words), "{said}");
        }
        let here = Answers {
            objection: Some(Objection::Here("Network is unreachable".into())),
            ..answers(&[], 0)
        };
        assert_eq!(fault(What::Tunnel, &here), Some(Fault::Unreachable));
        let closed = Answers {
            objection: Some(Objection::Closed),
            ..answers(&[], 0)
        };
        assert_eq!(fault(What::Tunnel, &closed), Some(Fault::Refused));
        // One that came late or out of place takes nothing away from answers.
        let answered = Answers {
            round_trips_ms: vec![1.0; 3],
            ttl: Some(64),
            ..objected("10.20.0.1", 3, 1)
        };
        assert_eq!(fault(What::Tunnel, &answered), None);
    }

    #[test]
    fn an_answer_tells_whether_the_way_is_there_whole_and_direct() {
        let lan = What::Lan("10.20.0.0/24".parse().unwrap());
        for (what, given, expected) in [
            (What::Tunnel, answers(&[1.0; 3], 64), None),
            (What::Tunnel, answers(&[1.0; 3], 128), None),
            (What::Tunnel, answers(&[1.0; 3], 63), Some(Fault::NotDirect)),
            (What::Tunnel, answers(&[1.0; 2], 64), Some(Fault::Lossy)),
            (What::Tunnel, answers(&[], 64), Some(Fault::Silent)),
            (lan, answers(&[1.0; 3], 64), None),
            (lan, answers(&[1.0; 3], 63), None),
            (lan, answers(&[1.0; 3], 62), Some(Fault::NotDirect)),
        ] {
            assert_eq!(fault(what, &given), expected, "{what:?} {given:?}");
        }
    }

    #[test]
    fn a_throughput_is_told_in_megabits_per_second() {
        assert_eq!(
            mbit_per_s(Throughput {
                bytes: 25_000_000,
                microseconds: 2_000_000
            }),
            Some(100.0)
        );
        assert_eq!(
            mbit_per_s(Throughput {
                bytes: 0,
                microseconds: 2_000_000
            }),
            None
        );
        assert_eq!(
            mbit_per_s(Throughput {
                bytes: 1,
                microseconds: 0
            }),
            None
        );
    }

    #[test]
    fn a_lan_is_asked_where_its_gateway_usually_is() {
        let usual = |lan: &str| {
            usual_gateways(lan.parse().unwrap())
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(usual("10.20.0.0/24"), ["10.20.0.1", "10.20.0.254"]);
        assert_eq!(usual("10.20.0.4/30"), ["10.20.0.5", "10.20.0.6"]);
        assert_eq!(usual("10.20.0.4/31"), ["10.20.0.4", "10.20.0.5"]);
        assert_eq!(usual("10.20.0.4/32"), ["10.20.0.4"]);
        assert_eq!(usual("fd00:20::/64")[0], "fd00:20::1");
    }
}
