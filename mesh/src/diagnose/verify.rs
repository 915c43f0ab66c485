//! Whether packets really get from this gateway to the others: what to ping, and what the answers
//! mean.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde::Serialize;
use wattle_wire::{name::Name, probe::Throughput};

use crate::agent::replica::{Known, KnownPeer};

/// What the first router of a packet puts into its time to live: RFC 1700's 64 and what other
/// systems took.
const INITIAL_TTLS: [u8; 3] = [64, 128, 255];

/// What to ping of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub peer: Name,
    /// Whether no agent runs there, which would count for a measurement.
    pub unmanaged: bool,
    pub what: What,
    /// Any of them will do: of a LAN it is not known which hosts there are.
    pub addresses: Vec<IpAddr>,
}

/// What stands behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The peer's tunnel address.
    Tunnel,
    /// A LAN behind the peer.
    Lan(IpNet),
}

/// What the pings of one address gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    pub address: IpAddr,
    pub sent: usize,
    /// Milliseconds, one for each answer.
    pub round_trips_ms: Vec<f64>,
    /// The time to live of an answer as it came in; absent when there was none, or where it is not
    /// known.
    pub ttl: Option<u8>,
}

/// What is wrong with the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nobody answered.
    Silent,
    /// Some pings were not answered.
    Lossy,
    /// Another router stands between the two gateways.
    NotDirect,
    /// Its throughput was asked for, and could not be measured.
    Unmeasured,
}

/// All there is to ping: each peer's tunnel address, and in each LAN behind it the hosts that were
/// named, else the addresses where a LAN usually has its gateway.
pub fn targets(known: &Known, hosts: &[IpAddr]) -> Vec<Target> {
    let of_peer = known.peers.values().flat_map(
        |KnownPeer {
             peer, statement, ..
         }| {
            let target = |what, addresses| Target {
                peer: peer.name.clone(),
                unmanaged: statement.unmanaged,
                what,
                addresses,
            };
            let tunnel = target(What::Tunnel, vec![peer.tunnel_address.into()]);
            let lans = peer.subnets.iter().map(move |lan| {
                let named: Vec<_> = hosts
                    .iter()
                    .copied()
                    .filter(|host| lan.contains(host))
                    .collect();
                let addresses = if named.is_empty() {
                    usual_gateways(*lan)
                } else {
                    named
                };
                target(What::Lan(*lan), addresses)
            });
            std::iter::once(tunnel).chain(lans)
        },
    );
    of_peer.collect()
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
        0 => Some(Fault::Silent),
        answered if answered < answers.sent => Some(Fault::Lossy),
        _ => answers
            .ttl
            .is_some_and(|ttl| routers(ttl) > most_routers)
            .then_some(Fault::NotDirect),
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
        }
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
