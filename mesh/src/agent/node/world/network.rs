//! WireGuard between the gateways, as far as tunnels depend on it: sessions, handshakes, and when
//! an end sends one.
//!
//! Times are WireGuard's (its paper, section 6.1): a session is renewed after 120 s, carries nothing
//! after 180 s, and a handshake that was lost is sent again after 5 s. A keepalive falls due every
//! 25 s, so an end without a session always has something to send.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wattle_wire::key::WireguardKey;

use super::{Event, World};
use crate::host::state::ObservedPeer;

const RENEWED_AFTER: Duration = Duration::from_secs(120);
const LIVES_FOR: Duration = Duration::from_secs(180);
const RETRIED_AFTER: Duration = Duration::from_secs(5);
/// How long a packet is under way.
const LATENCY: Duration = Duration::from_millis(10);

/// The tunnels of all pairs, named by the places of their ends, the lower one first.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    sessions: BTreeMap<(usize, usize), Session>,
    /// Pairs between which no packet gets through.
    pub(super) parted: BTreeSet<(usize, usize)>,
    /// When the next handshake of one end with another is to come, and for which of all entries
    /// ever: a new one is called at once.
    sending: BTreeMap<(usize, usize), (Duration, u64)>,
}

/// Keys that two ends have in common.
#[derive(Clone, Copy, Debug)]
struct Session {
    /// The keys of the ends, and which of their entries have it.
    ends: [(WireguardKey, u64); 2],
    at: Duration,
    /// Both ends renew it.
    is_renewed: bool,
}

impl Session {
    /// When its last handshake was.
    fn last(&self, now: Duration) -> Duration {
        if self.is_renewed {
            let passed = now.saturating_sub(self.at).as_secs();
            self.at + RENEWED_AFTER * u32::try_from(passed / RENEWED_AFTER.as_secs()).unwrap()
        } else {
            self.at
        }
    }

    fn is_live(&self, now: Duration) -> bool {
        now.saturating_sub(self.last(now)) < LIVES_FOR
    }
}

pub(super) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    /// The entry that one gateway has of another, by that one's present key.
    fn entry(&self, of: usize, at: usize) -> Option<(WireguardKey, &ObservedPeer, u64)> {
        let key = self.gateways[of].device.interface()?.public_key?;
        let device = &self.gateways[at].device;
        let entry = device.interface()?.peers.get(&key)?;
        Some((key, entry, device.age_of(key)))
    }

    /// What is between two gateways, for a law that was broken.
    pub(super) fn describe(&self, pair: (usize, usize)) -> String {
        let (a, b) = pair;
        let of_end = |of: usize, at: usize| {
            let (key, entry, age) = self.entry(of, at)?;
            Some((key, age, entry.allowed_ips.clone(), entry.psk.is_some()))
        };
        format!(
            "WATTLE_WORLD_SEED={}, it is {:?}, they agree: {}, session {:?}, the first at the second {:?}, the second at \
             the first {:?}, parted: {}, running: {:?}",
            self.seed,
            self.now,
            self.agree(pair),
            self.tunnels.sessions.get(&pair),
            of_end(a, b),
            of_end(b, a),
            self.tunnels.parted.contains(&pair),
            [a, b].map(|place| self.gateways[place].node.is_some()),
        )
    }

    /// What a session between the two would be, as their devices are now: absent when there can be
    /// none.
    fn ends(&self, (a, b): (usize, usize)) -> Option<[(WireguardKey, u64); 2]> {
        let ((key_a, _, age_a), (key_b, _, age_b)) = (self.entry(a, b)?, self.entry(b, a)?);
        Some([(key_a, age_a), (key_b, age_b)])
    }

    /// Whether a handshake between the two succeeds.
    fn agree(&self, (a, b): (usize, usize)) -> bool {
        let (Some((_, one, _)), Some((_, other, _))) = (self.entry(a, b), self.entry(b, a)) else {
            return false;
        };
        one.psk == other.psk && !self.tunnels.parted.contains(&(a, b))
    }

    /// Whether packets of each pass to the other.
    pub(super) fn is_up(&self, pair: (usize, usize)) -> bool {
        let (a, b) = pair;
        let carries = |of: usize, at: usize| {
            let address = self.gateways[of].tunnel_address();
            let entry = self.entry(of, at);
            entry.is_some_and(|(_, entry, _)| {
                entry
                    .allowed_ips
                    .iter()
                    .any(|prefix| prefix.contains(&address))
            })
        };
        let session = self.tunnels.sessions.get(&pair);
        session.is_some_and(|session| {
            session.is_live(self.now) && Some(session.ends) == self.ends(pair)
        }) && carries(a, b)
            && carries(b, a)
            && !self.tunnels.parted.contains(&pair)
    }

    /// Something is about to change of a gateway's device, or of what is between two: what was
    /// renewed until now is known from now on.
    pub(super) fn freeze(&mut self, pair: (usize, usize)) {
        let now = self.now;
        if let Some(session) = self.tunnels.sessions.get_mut(&pair) {
            (session.at, session.is_renewed) = (session.last(now), false);
            let (at, ends) = (session.at, session.ends);
            self.note_handshake(pair, ends, at);
        }
    }

    /// It has changed: sessions that both ends can renew go on, and who has none sends a handshake.
    pub(super) fn thaw(&mut self, pair: (usize, usize)) {
        let ends = self.ends(pair);
        let (agree, now) = (self.agree(pair), self.now);
        let mut is_live = false;
        if let Some(session) = self.tunnels.sessions.get_mut(&pair) {
            is_live = Some(session.ends) == ends && session.is_live(now);
            session.is_renewed = is_live && agree;
            is_live &= agree;
        }
        self.laws.watch(pair);
        if !is_live {
            self.send_handshake(pair.0, pair.1);
            self.send_handshake(pair.1, pair.0);
        }
    }

    /// An end without a session sends a handshake: at once with a new entry, otherwise when the one
    /// before counts as lost.
    fn send_handshake(&mut self, from: usize, to: usize) {
        let Some((.., age)) = self.entry(to, from) else {
            return;
        };
        let before = self.tunnels.sending.get(&(from, to)).copied();
        let wait = match before {
            Some((_, called)) if called != age => LATENCY,
            None => LATENCY,
            Some((at, _)) if at > self.now => return,
            Some(_) => RETRIED_AFTER,
        };
        self.tunnels
            .sending
            .insert((from, to), (self.now + wait, age));
        self.after(wait, Event::Handshake(from, to));
    }

    /// A first message arrives, and its answer if the two agree.
    pub(super) fn handshake(&mut self, from: usize, to: usize) {
        let next = self.tunnels.sending.get(&(from, to));
        let is_next = next.is_some_and(|(at, _)| *at == self.now);
        let pair = pair(from, to);
        if !is_next || self.is_renewed(pair) {
            return;
        }
        // Who has no prefixes of the other has nothing to send; who does not know it, nobody to
        // send to.
        let Some((_, entry, _)) = self.entry(to, from) else {
            return;
        };
        if entry.allowed_ips.is_empty() {
            return;
        }
        if !self.tunnels.parted.contains(&pair) {
            // It is authentic, whatever preshared key the two have.
            let caller = self.gateways[from].device.interface().unwrap().public_key;
            if let Some(key) = caller {
                self.gateways[to].device.received(key);
            }
            if self.agree(pair)
                && let Some(ends) = self.ends(pair)
            {
                let session = Session {
                    ends,
                    at: self.now,
                    is_renewed: true,
                };
                self.tunnels.sessions.insert(pair, session);
                self.note_handshake(pair, ends, self.now);
                return;
            }
        }
        self.send_handshake(from, to);
    }

    pub(super) fn is_renewed(&self, pair: (usize, usize)) -> bool {
        let session = self.tunnels.sessions.get(&pair);
        session.is_some_and(|session| {
            session.is_renewed && session.is_live(self.now) && Some(session.ends) == self.ends(pair)
        })
    }

    /// Both devices show when the last handshake was.
    fn note_handshake(
        &mut self,
        (a, b): (usize, usize),
        [(key_a, _), (key_b, _)]: [(WireguardKey, u64); 2],
        at: Duration,
    ) {
        self.gateways[a].device.shook_hands(key_b, at);
        self.gateways[b].device.shook_hands(key_a, at);
    }

    /// What is renewed is noted on the device before it is looked at.
    pub(super) fn renew(&mut self, gateway: usize) {
        let now = self.now;
        for other in (0..self.gateways.len()).filter(|other| *other != gateway) {
            let pair = pair(gateway, other);
            if let Some(session) = self.tunnels.sessions.get(&pair) {
                let (ends, at) = (session.ends, session.last(now));
                self.note_handshake(pair, ends, at);
            }
        }
    }

    pub(super) fn part(&mut self, a: usize, b: usize, time: Duration) {
        let pair = pair(a, b);
        self.freeze(pair);
        if self.tunnels.parted.insert(pair) {
            self.after(time, Event::Heal(a, b));
        }
        self.laws.part(pair);
    }

    pub(super) fn heal(&mut self, a: usize, b: usize) {
        let pair = pair(a, b);
        self.freeze(pair);
        self.tunnels.parted.remove(&pair);
        self.laws.part(pair);
        self.thaw(pair);
    }
}
