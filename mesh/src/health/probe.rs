//! Probes: whom to ask next whether it is there, and what the answers mean.
//!
//! The answers to a peer's last 64 probes are bits, of which everything else follows. What is down
//! comes back only after more answers the more often it went, so that a link that comes and goes
//! does not flap. Some are accompanied by large ones ([`size`]).

mod size;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use wattle_wire::{
    ids::NodeId,
    probe::{HealthSettings, Probe},
    report::{EndState, ProbeReport},
};

use self::size::PathSize;
use crate::agent::replica::Known;

/// Least time between two probes of one peer, and the time after which an answer is missed.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between any two probes: 50 in a second, so that of 1,000 peers each is asked every 20
/// s. The same between any two large ones.
const SPACING: Duration = Duration::from_millis(20);
/// Probes in a row whose answers are missed when a peer counts as down: with [`PROBE_INTERVAL`],
/// four seconds after the last answer at most.
const MOST_MISSED: u32 = 3;
/// Answers in a row with which a peer that was down counts as up: at first, and at most.
const LEAST_ANSWERS: u32 = 3;
const MOST_ANSWERS: u32 = 48;
/// Answers in a row after which it is forgotten how often a peer went down.
const STEADY: u32 = 300;
/// Probes that loss is measured over, at most and at least.
const LOSS_OVER: u32 = 60;
const LOSS_FROM: u32 = 20;
/// Probes whose answers are still taken.
const REMEMBERED: usize = 16;
/// How long ago a request of a peer was that is still heard when its answers end. One that is cut
/// off was heard longer ago.
const HEARD: Duration = Duration::from_millis(2_500);
/// Silence after which a peer that was heard and did not answer is not heard any more.
const UNHEARD: Duration = Duration::from_secs(10);
/// Requests, one after the other, with which a peer that was silent is heard.
const LEAST_HEARD: u32 = 3;
/// Least time between two answers to one peer.
const ANSWER_INTERVAL: Duration = Duration::from_millis(250);
/// The same of answers to large probes: they come faster in a search.
const LARGE_ANSWER_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of a datagram's IPv4 and UDP headers.
const HEADERS: u16 = 28;

/// All peers that are probed. Times are of a clock that only goes forward.
#[derive(Debug, Default)]
pub struct Probes {
    settings: HealthSettings,
    peers: BTreeMap<NodeId, Peer>,
    by_address: BTreeMap<Ipv4Addr, NodeId>,
    /// MTU of the tunnel; absent while it is not known.
    mtu: Option<u32>,
    /// When each peer is to be looked at next.
    queue: BTreeSet<(Duration, NodeId)>,
    /// Before this no probe is sent.
    not_before: Duration,
    /// The same for large probes.
    large_queue: BTreeSet<(Duration, NodeId)>,
    large_not_before: Duration,
    /// Whether a peer's state, or what gets to it, changed since somebody asked.
    news: bool,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutgoingProbe {
    pub to: Ipv4Addr,
    pub probe: Probe,
    /// Bytes of the datagram: zeros follow the probe.
    pub length: usize,
}

#[derive(Debug)]
struct Peer {
    address: Ipv4Addr,
    /// Number of the last probe that was sent; the first is 1.
    sent: u32,
    sent_at: [Duration; REMEMBERED],
    /// Whether each probe was answered, the last in the lowest bit.
    answered: u64,
    /// How many of those bits count.
    counted: u32,
    /// Answers in a row.
    steady: u32,
    /// Microseconds, smoothed; absent before the first answer.
    round_trip_us: Option<u32>,
    /// Absent before the first answer: until then handshakes decide.
    state: Option<EndState>,
    /// Answers in a row with which it counts as up again.
    answers_needed: u32,
    /// When its last request came, and how many came in a row.
    heard: Option<(Duration, u32)>,
    told_at: Option<Duration>,
    told_large_at: Option<Duration>,
    next_at: Duration,
    /// The last answer came from the host, which has no agent that answers. Hosts give no more than
    /// one such answer a second: there is none to spare for a large probe.
    is_refused: bool,
    /// Absent while it cannot be measured.
    size: Option<PathSize>,
    /// Where it is in the queue of large probes.
    large_at: Option<Duration>,
}

impl Probes {
    /// Follows what is known of the mesh: whom to probe, and how to judge. On an unmanaged peer
    /// nobody would answer. `mtu` is that of the tunnel, if there is one.
    pub fn follow(&mut self, known: &Known, mtu: Option<u32>, now: Duration) {
        self.settings = known.mesh.health;
        self.set_mtu(mtu);
        let managed = known
            .peers
            .values()
            .filter(|known| self.settings.probes && !known.statement.unmanaged);
        let peers: BTreeMap<_, _> = managed
            .map(|known| (known.peer.node, known.peer.tunnel_address))
            .collect();
        self.peers
            .retain(|node, peer| peers.get(node) == Some(&peer.address));
        let count = u32::try_from(peers.len()).unwrap_or(u32::MAX);
        for (place, (node, address)) in (0..).zip(&peers) {
            // Spread over one round.
            let first_at = now + interval(peers.len()) * place / count.max(1);
            self.peers
                .entry(*node)
                .or_insert_with(|| Peer::new(*address, self.mtu, first_at));
        }
        self.by_address = peers
            .into_iter()
            .map(|(node, address)| (address, node))
            .collect();
        self.queue = self
            .peers
            .iter()
            .map(|(node, peer)| (peer.next_at, *node))
            .collect();
        self.large_queue = self
            .peers
            .iter()
            .filter_map(|(node, peer)| Some((peer.large_at?, *node)))
            .collect();
    }

    /// What was found with another MTU says nothing.
    fn set_mtu(&mut self, mtu: Option<u32>) {
        if std::mem::replace(&mut self.mtu, mtu) != mtu {
            for peer in self.peers.values_mut() {
                (peer.size, peer.large_at) = (PathSize::new(mtu), None);
            }
        }
    }

    /// When to call [`Probes::next`] again; `None` when there is nobody to probe.
    pub fn next_at(&self) -> Option<Duration> {
        let ordinary = self.queue.first().map(|(at, _)| self.not_before.max(*at));
        let large = self.large_queue.first();
        let large = large.map(|(at, _)| self.large_not_before.max(*at));
        [ordinary, large].into_iter().flatten().min()
    }

    /// The probe to send now.
    pub fn next(&mut self, now: Duration) -> Option<OutgoingProbe> {
        self.next_ordinary(now).or_else(|| self.next_large(now))
    }

    fn next_ordinary(&mut self, now: Duration) -> Option<OutgoingProbe> {
        let round = interval(self.peers.len());
        while self.not_before <= now && self.queue.first().is_some_and(|(at, _)| *at <= now) {
            let (_, node) = self.queue.pop_first()?;
            let peer = self.peers.get_mut(&node)?;
            self.news |= peer.judge(&self.settings, now);
            let due_at = if peer.is_doubtful() {
                peer.last_sent_at() + PROBE_INTERVAL
            } else {
                peer.last_sent_at() + round
            };
            let send = peer.sent == 0 || due_at <= now;
            peer.next_at = if send { now + PROBE_INTERVAL } else { due_at };
            self.queue.insert((peer.next_at, node));
            if send {
                self.not_before = now + SPACING;
                let probe = OutgoingProbe {
                    to: peer.address,
                    probe: Probe::Request(peer.send(now)),
                    length: Probe::LENGTH,
                };
                self.queue_large(node);
                return Some(probe);
            }
        }
        None
    }

    fn next_large(&mut self, now: Duration) -> Option<OutgoingProbe> {
        while self.large_not_before <= now
            && let Some((_, node)) = self.large_queue.first().filter(|(at, _)| *at <= now)
        {
            let node = *node;
            let peer = self.peers.get_mut(&node)?;
            let was = peer.small_path();
            let to = peer.address;
            let large = peer.next_large(now);
            self.news |= peer.small_path() != was;
            self.queue_large(node);
            if let Some((number, size)) = large {
                self.large_not_before = now + SPACING;
                return Some(OutgoingProbe {
                    to,
                    probe: Probe::LargeRequest(number),
                    length: size.saturating_sub(HEADERS).into(),
                });
            }
        }
        None
    }

    /// Keeps the place of a peer in the queue of large probes.
    fn queue_large(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        let next_at = peer.size.as_ref().and_then(PathSize::next_at);
        if let Some(before) = std::mem::replace(&mut peer.large_at, next_at) {
            self.large_queue.remove(&(before, node));
        }
        self.large_queue.extend(next_at.map(|at| (at, node)));
    }

    /// A probe came through the tunnel. The answer to give, if any: to a peer, and not too soon after
    /// another.
    pub fn take(&mut self, from: Ipv4Addr, probe: Probe, now: Duration) -> Option<Probe> {
        match probe {
            Probe::Request(_) => self.peer_at(from)?.heard(now),
            Probe::LargeRequest(_) => self.peer_at(from)?.heard_large(now),
            Probe::Answer(_) | Probe::LargeAnswer(_) => {
                self.answered(from, probe, false, now);
                false
            }
        }
        .then(|| probe.answer())?
    }

    /// The host of a peer said that nobody there takes this probe: so it went there and back.
    pub fn refused(&mut self, from: Ipv4Addr, probe: Probe, now: Duration) {
        if let Some(answer) = probe.answer() {
            self.answered(from, answer, true, now);
        }
    }

    fn answered(&mut self, from: Ipv4Addr, answer: Probe, is_refused: bool, now: Duration) {
        let settings = self.settings;
        let Some(node) = self.by_address.get(&from).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        peer.is_refused = is_refused;
        match answer {
            Probe::Answer(number) => {
                peer.answered(number, now);
                self.news |= peer.judge(&settings, now);
            }
            Probe::LargeAnswer(number) => {
                let was = peer.small_path();
                if let Some(size) = &mut peer.size {
                    size.answered(number, now);
                }
                self.news |= peer.small_path() != was;
                self.queue_large(node);
            }
            Probe::Request(_) | Probe::LargeRequest(_) => {}
        }
    }

    /// Whether a tunnel address is that of a peer that is probed.
    pub fn is_peer(&self, address: Ipv4Addr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// What probes found of each peer that ever answered.
    pub fn reports(&self) -> BTreeMap<NodeId, ProbeReport> {
        self.peers
            .iter()
            .filter_map(|(node, peer)| Some((*node, peer.report()?)))
            .collect()
    }

    /// Bytes of the largest packet that is known to get to each peer through its tunnel; no more than
    /// the tunnel's MTU.
    pub fn sizes(&self) -> BTreeMap<NodeId, u16> {
        let works = |peer: &&Peer| peer.state.is_some_and(EndState::works);
        let size = |peer: &Peer| peer.size.as_ref()?.largest();
        let peers = self.peers.iter().filter(|(_, peer)| works(peer));
        peers
            .filter_map(|(node, peer)| Some((*node, size(peer)?)))
            .collect()
    }

    /// Whether the state of a peer, or what gets to it, changed since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    fn peer_at(&mut self, address: Ipv4Addr) -> Option<&mut Peer> {
        self.peers.get_mut(self.by_address.get(&address)?)
    }
}

/// Time between two probes of one peer that is well.
fn interval(peers: usize) -> Duration {
    PROBE_INTERVAL.max(SPACING * u32::try_from(peers).unwrap_or(u32::MAX))
}

/// Whether the next one may be given so soon after the last.
fn is_due(last: &mut Option<Duration>, interval: Duration, now: Duration) -> bool {
    let is_due = last.is_none_or(|at| now.saturating_sub(at) >= interval);
    if is_due {
        *last = Some(now);
    }
    is_due
}

impl Peer {
    fn new(address: Ipv4Addr, mtu: Option<u32>, next_at: Duration) -> Self {
        Self {
            address,
            sent: 0,
            sent_at: [Duration::ZERO; REMEMBERED],
            answered: 0,
            counted: 0,
            steady: 0,
            round_trip_us: None,
            state: None,
            answers_needed: LEAST_ANSWERS,
            heard: None,
            told_at: None,
            told_large_at: None,
            next_at,
            is_refused: false,
            size: PathSize::new(mtu),
            large_at: None,
        }
    }

    fn last_sent_at(&self) -> Duration {
        self.sent_at[self.sent as usize % REMEMBERED]
    }

    fn send(&mut self, now: Duration) -> u32 {
        if self.counted > 0 {
            self.steady = if self.answered & 1 == 1 {
                self.steady.saturating_add(1)
            } else {
                0
            };
        }
        self.sent = self.sent.wrapping_add(1);
        self.sent_at[self.sent as usize % REMEMBERED] = now;
        self.answered <<= 1;
        self.counted = (self.counted + 1).min(LOSS_OVER + 1);
        if let Some(size) = &mut self.size {
            size.accompany(now);
        }
        self.sent
    }

    /// The large probe to send now: its number, and the bytes of its packet.
    fn next_large(&mut self, now: Duration) -> Option<(u32, u16)> {
        let is_clean = self.state.is_some_and(|state| match state {
            EndState::Up | EndState::Slow => true,
            EndState::Lossy | EndState::OneWay | EndState::Down => false,
        });
        let is_well = is_clean && !self.is_refused && self.row(now).0 == 0;
        let round_trip = Duration::from_micros(self.round_trip_us.unwrap_or(0).into());
        let size = self.size.as_mut()?;
        size.next(now, is_well, round_trip)
    }

    /// The size of the packets that get to it, where that is less than the tunnel takes.
    fn small_path(&self) -> Option<u16> {
        let size = self.size.as_ref().filter(|size| size.is_small())?;
        size.largest()
    }

    /// A request came. Whether to answer it.
    fn heard(&mut self, now: Duration) -> bool {
        let in_a_row = self
            .heard
            .filter(|(at, _)| now.saturating_sub(*at) < HEARD)
            .map_or(0, |(_, count)| count);
        self.heard = Some((now, in_a_row.saturating_add(1)));
        is_due(&mut self.told_at, ANSWER_INTERVAL, now)
    }

    /// The same of a large one. It came beside an ordinary one, by which the peer is heard.
    fn heard_large(&mut self, now: Duration) -> bool {
        is_due(&mut self.told_large_at, LARGE_ANSWER_INTERVAL, now)
    }

    fn answered(&mut self, number: u32, now: Duration) {
        let age = self.sent.wrapping_sub(number);
        if age as usize >= REMEMBERED || age >= self.counted || self.answered & (1 << age) != 0 {
            return;
        }
        self.answered |= 1 << age;
        let took = now.saturating_sub(self.sent_at[number as usize % REMEMBERED]);
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.round_trip_us = Some(
            self.round_trip_us
                .map_or(took, |before| before - before / 8 + took / 8),
        );
    }

    /// The last probe may still be answered: it says nothing yet.
    fn pending(&self, now: Duration) -> u32 {
        u32::from(
            self.counted > 0
                && self.answered & 1 == 0
                && now.saturating_sub(self.last_sent_at()) < PROBE_INTERVAL,
        )
    }

    /// Probes in a row that were missed, and that were answered, up to now; one of the two is 0.
    fn row(&self, now: Duration) -> (u32, u32) {
        let pending = self.pending(now);
        let (decided, count) = (self.answered >> pending, self.counted - pending);
        (
            decided.trailing_zeros().min(count),
            decided.trailing_ones().min(count),
        )
    }

    /// Whether it is asked as often as may be.
    fn is_doubtful(&self) -> bool {
        self.state
            .is_some_and(|state| !state.works() || self.answered & 1 == 0)
            || self.size.as_ref().is_some_and(PathSize::is_in_doubt)
    }

    fn loss_percent(&self) -> u8 {
        // The last one may be pending; it counts with the next.
        let over = self.counted.saturating_sub(1).min(LOSS_OVER);
        let bits = (self.answered >> 1) & ((1 << over) - 1);
        u8::try_from((over - bits.count_ones()) * 100 / over.max(1)).unwrap_or(100)
    }

    fn report(&self) -> Option<ProbeReport> {
        Some(ProbeReport {
            state: self.state?,
            loss_percent: self.loss_percent(),
            round_trip_us: self.round_trip_us?,
        })
    }

    /// Whether its state changed.
    fn judge(&mut self, settings: &HealthSettings, now: Duration) -> bool {
        let (missed, answers) = self.row(now);
        if self.steady >= STEADY {
            self.answers_needed = LEAST_ANSWERS;
        }
        let state = match self.state {
            None if answers > 0 => {
                // What was lost before there was a tunnel says nothing of how it is.
                self.counted = answers;
                Some(EndState::Up)
            }
            None => None,
            Some(state) if state.works() => {
                if missed >= MOST_MISSED {
                    self.answers_needed = (self.answers_needed * 2).min(MOST_ANSWERS);
                    let is_heard = self
                        .heard
                        .is_some_and(|(at, _)| now.saturating_sub(at) < HEARD);
                    Some(if is_heard {
                        EndState::OneWay
                    } else {
                        EndState::Down
                    })
                } else {
                    Some(self.quality(state, settings))
                }
            }
            Some(state) => {
                let is_heard = self.heard.is_some_and(|(at, in_a_row)| {
                    let within = if state == EndState::OneWay {
                        UNHEARD
                    } else {
                        HEARD
                    };
                    (state == EndState::OneWay || in_a_row >= LEAST_HEARD)
                        && now.saturating_sub(at) < within
                });
                if answers >= self.answers_needed {
                    // What was lost while it was down says nothing of how it is now.
                    self.counted = answers;
                    Some(EndState::Up)
                } else if answers > 0 {
                    // It is coming back.
                    Some(state)
                } else {
                    Some(if is_heard {
                        EndState::OneWay
                    } else {
                        EndState::Down
                    })
                }
            }
        };
        std::mem::replace(&mut self.state, state) != state
    }

    /// How well a peer works that does. A quality ends later than it begins.
    fn quality(&self, before: EndState, settings: &HealthSettings) -> EndState {
        let (loss, round_trip) = (self.loss_percent(), self.round_trip_us.unwrap_or(0));
        let slow_us = u32::from(settings.slow_ms) * 1000;
        let lossy_from = if before == EndState::Lossy {
            settings.lossy_percent / 2 + 1
        } else {
            settings.lossy_percent
        };
        let slow_from = if before == EndState::Slow {
            slow_us / 5 * 4
        } else {
            slow_us
        };
        if self.counted > LOSS_FROM && loss >= lossy_from {
            EndState::Lossy
        } else if round_trip >= slow_from {
            EndState::Slow
        } else {
            EndState::Up
        }
    }
}

#[cfg(test)]
mod tests;
