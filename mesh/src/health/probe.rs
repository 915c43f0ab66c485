//! Probes: whom to ask next whether it is there, and what the answers mean.
//!
//! The answers to a peer's last 64 probes are bits, of which everything else follows. What is down
//! comes back only after more answers the more often it went, so that a link that comes and goes
//! does not flap.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use wattle_wire::{
    ids::NodeId,
    probe::HealthSettings,
    report::{EndState, ProbeReport},
};

use crate::agent::replica::Known;

/// Least time between two probes of one peer, and the time after which an answer is missed.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between any two probes: 50 in a second, so that of 1,000 peers each is asked every 20
/// s.
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

/// All peers that are probed. Times are of a clock that only goes forward.
#[derive(Debug, Default)]
pub struct Probes {
    settings: HealthSettings,
    peers: BTreeMap<NodeId, Peer>,
    by_address: BTreeMap<Ipv4Addr, NodeId>,
    /// When each peer is to be looked at next.
    queue: BTreeSet<(Duration, NodeId)>,
    /// Before this no probe is sent.
    not_before: Duration,
    /// Whether a peer's state changed since somebody asked.
    news: bool,
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
    next_at: Duration,
}

impl Probes {
    /// Follows what is known of the mesh: whom to probe, and how to judge. On an unmanaged peer
    /// nobody would answer.
    pub fn follow(&mut self, known: &Known, now: Duration) {
        self.settings = known.mesh.health;
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
                .or_insert_with(|| Peer::new(*address, first_at));
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
    }

    /// When to call [`Probes::next`] again; `None` when there is nobody to probe.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| self.not_before.max(*at))
    }

    /// The probe to send now: its number and where to.
    pub fn next(&mut self, now: Duration) -> Option<(Ipv4Addr, u32)> {
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
                return Some((peer.address, peer.send(now)));
            }
        }
        None
    }

    /// A peer answered, or its host said that nobody there does: either way the packet went there
    /// and back.
    pub fn answered(&mut self, from: Ipv4Addr, number: u32, now: Duration) {
        let settings = self.settings;
        let changed = self.peer_at(from).is_some_and(|peer| {
            peer.answered(number, now);
            peer.judge(&settings, now)
        });
        self.news |= changed;
    }

    /// A request came. Whether to answer it: it is a peer's, and not too soon after another.
    pub fn heard(&mut self, from: Ipv4Addr, now: Duration) -> bool {
        let Some(peer) = self.peer_at(from) else {
            return false;
        };
        let in_a_row = peer
            .heard
            .filter(|(at, _)| now.saturating_sub(*at) < HEARD)
            .map_or(0, |(_, count)| count);
        peer.heard = Some((now, in_a_row.saturating_add(1)));
        let answer = peer
            .told_at
            .is_none_or(|at| now.saturating_sub(at) >= ANSWER_INTERVAL);
        if answer {
            peer.told_at = Some(now);
        }
        answer
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

    /// Whether the state of a peer changed since the last call.
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

impl Peer {
    fn new(address: Ipv4Addr, next_at: Duration) -> Self {
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
            next_at,
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
        self.sent
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
