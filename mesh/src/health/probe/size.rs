//! How large the packets are that get to a peer.
//!
//! A path that is smaller than the tunnel needs, and says nothing of it, is found by packets alone.
//! Every fifth ordinary probe is accompanied by a large one of the full size. When large ones stay
//! unanswered while ordinary ones are answered, the largest size that gets there is searched by
//! halves. From then on both sizes are tried; when either is a surprise, the search is made anew.
//!
//! A pair of gateways sends 2 · 17,280 large probes a day, of at most 1,500 bytes outside of the
//! tunnel: 26 MB each way. A path that is small costs twice that, and a search some 20 packets. Among
//! more than 50 peers large probes become rarer, as ordinary ones do.

use std::time::Duration;

/// Of so many ordinary probes one is accompanied.
const EVERY: u8 = 5;
/// Large probes in a row whose answers are missed when a search begins.
const MOST_MISSED: u8 = 3;
/// Probes of one size in a row whose answers are missed when a search takes it for too large.
const TRIES: u8 = 2;
/// How long an answer is waited for, besides a usual round trip. One that is late is still taken.
const PATIENCE: Duration = Duration::from_millis(250);
/// Least time between two large probes of one peer.
const SPACING: Duration = Duration::from_millis(100);
/// How often a small path is tried before it is searched anew: it may have grown a little. With
/// ordinary probes once a second this is every ten minutes.
const RENEWAL: u8 = 120;
/// WireGuard fills packets up to a multiple of this.
const STEP: u16 = 16;
/// Steps of the size of an ordinary probe, which gets there.
const LEAST: u16 = 3;
/// Large probes whose answers are still taken.
const REMEMBERED: usize = 16;
/// The least MTU of a tunnel that is looked at.
const SMALLEST_FULL: u32 = 576;

/// The size of packets that get to one peer. Sizes are counted in steps of 16 bytes; the highest is
/// the full size.
#[derive(Debug)]
pub(super) struct PathSize {
    /// Bytes of the largest packet that the tunnel takes.
    full: u16,
    /// The largest that is known to get there.
    found: Option<u16>,
    search: Option<Search>,
    /// The size that is tried, and how many of it were missed in a row.
    step: u16,
    missed: u8,
    /// Ordinary probes until the next large one.
    wait: u8,
    /// How often a small path was tried.
    rounds: u8,
    /// When the next is to be sent.
    due_at: Option<Duration>,
    /// Until when the answer to the last is waited for.
    until: Option<Duration>,
    /// Number of the last that was sent; the first is 1.
    sent: u32,
    sent_at: Duration,
    /// Of what sizes they were.
    steps: [u16; REMEMBERED],
}

/// A search by halves.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// Gets there.
    fits: u16,
    /// Does not; one more than there are while none is known.
    fails: u16,
    /// Whether that was found twice, once where the search ended.
    sure: bool,
}

impl PathSize {
    /// Through a tunnel with this MTU. `None` where it is nothing to be measured by.
    pub(super) fn new(mtu: Option<u32>) -> Option<Self> {
        let full = u16::try_from(mtu?.min(u16::MAX.into())).ok()?;
        (u32::from(full) >= SMALLEST_FULL).then(|| Self {
            full,
            found: None,
            search: None,
            step: full.div_ceil(STEP),
            missed: 0,
            wait: 1,
            rounds: 0,
            due_at: None,
            until: None,
            sent: 0,
            sent_at: Duration::ZERO,
            steps: [0; REMEMBERED],
        })
    }

    /// Bytes of the largest packet that is known to get there.
    pub(super) fn largest(&self) -> Option<u16> {
        Some(self.bytes(self.found?))
    }

    /// Whether that is less than the tunnel takes.
    pub(super) fn is_small(&self) -> bool {
        self.found.is_some_and(|found| found < self.top())
    }

    /// Whether it is not known whether large packets get there: ordinary probes have to tell.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.search.is_some() || self.missed > 0
    }

    /// An ordinary probe is sent, which a large one may accompany.
    pub(super) fn accompany(&mut self, now: Duration) {
        if self.next_at().is_none() {
            self.wait = self.wait.saturating_sub(1);
            self.due_at = (self.wait == 0).then_some(now);
        }
    }

    /// When to call [`PathSize::next`]; `None` before the next ordinary probe.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.until.or(self.due_at)
    }

    /// The large probe to send now: its number, and the bytes of its packet. `is_well` says that
    /// ordinary ones are answered: while they are not, what is missed says nothing.
    pub(super) fn next(
        &mut self,
        now: Duration,
        is_well: bool,
        round_trip: Duration,
    ) -> Option<(u32, u16)> {
        let at = self.next_at().filter(|at| *at <= now)?;
        if !is_well {
            self.rest(1);
            return None;
        }
        if self.until.take() == Some(at) {
            self.missed_one(now);
        }
        self.due_at.take_if(|at| *at <= now)?;
        self.sent = self.sent.wrapping_add(1);
        self.steps[self.sent as usize % REMEMBERED] = self.step;
        self.sent_at = now;
        self.until = Some(now + PATIENCE + round_trip);
        Some((self.sent, self.bytes(self.step)))
    }

    /// A large probe was answered.
    pub(super) fn answered(&mut self, number: u32, now: Duration) {
        let age = self.sent.wrapping_sub(number);
        if number == 0 || age as usize >= REMEMBERED {
            return;
        }
        let step = self.steps[number as usize % REMEMBERED];
        if step == 0 {
            return;
        }
        let (top, known) = (self.top(), self.found);
        match &mut self.search {
            // An answer may be late: what it tells is true all the same.
            Some(search) => {
                if step < search.fits {
                    return;
                }
                search.fits = step;
                if search.fails <= step {
                    (search.fails, search.sure) = (top + 1, false);
                }
                self.go_on(now);
            }
            None if step == top && known.is_none_or(|known| known == top) => {
                self.found = Some(top);
                self.rest(EVERY);
            }
            None if known.is_some_and(|known| step > known) => self.begin_search(now),
            None if step == self.step => {
                self.rounds += 1;
                if self.rounds >= RENEWAL {
                    self.begin_search(now);
                } else {
                    self.rest(EVERY);
                }
            }
            None => {}
        }
    }

    fn top(&self) -> u16 {
        self.full.div_ceil(STEP)
    }

    fn bytes(&self, step: u16) -> u16 {
        step.saturating_mul(STEP).min(self.full)
    }

    /// Nothing is to be sent until so many ordinary probes are.
    fn rest(&mut self, wait: u8) {
        self.search = None;
        (self.step, self.missed, self.wait) = (self.top(), 0, wait);
        (self.due_at, self.until) = (None, None);
    }

    /// This one is the next; an answer to the last is still taken.
    fn ask(&mut self, step: u16, now: Duration) {
        (self.step, self.until) = (step, None);
        self.due_at = Some(now.max(self.sent_at + SPACING));
    }

    /// An answer did not come in its time.
    fn missed_one(&mut self, now: Duration) {
        let (step, known) = (self.step, self.found.unwrap_or(self.top()));
        match &mut self.search {
            Some(search) => {
                self.missed += 1;
                if self.missed < TRIES {
                    return self.ask(step, now);
                }
                search.sure = search.fails == step;
                search.fails = step;
                self.go_on(now);
            }
            // As was known; it is the smaller one's turn.
            None if step > known => self.ask(known, now),
            None => {
                self.missed = self.missed.saturating_add(1);
                if self.missed >= MOST_MISSED {
                    self.begin_search(now);
                } else {
                    self.ask(step, now);
                }
            }
        }
    }

    fn begin_search(&mut self, now: Duration) {
        self.search = Some(Search {
            fits: LEAST,
            fails: self.top() + 1,
            sure: false,
        });
        self.go_on(now);
    }

    /// The next step of a search, or its end. What ended it is asked once more: it may have been
    /// chance.
    fn go_on(&mut self, now: Duration) {
        let Some(Search { fits, fails, sure }) = self.search else {
            return;
        };
        self.missed = 0;
        if fails - fits > 1 {
            self.ask(fits + (fails - fits) / 2, now);
        } else if fails <= self.top() && !sure {
            self.ask(fails, now);
        } else {
            (self.found, self.rounds) = (Some(fits), 0);
            self.rest(EVERY);
        }
    }
}

#[cfg(test)]
mod tests;
