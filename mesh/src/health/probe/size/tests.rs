use proptest::prelude::*;
use wattle_wire::probe::Probe;

use super::*;
use crate::health::probe::{
    OutgoingProbe, Probes,
    tests::{ADDRESS, ms, node, probes_of},
};

const MTU: u16 = 1420;

/// A path to one peer, and what probes find of it.
struct Path {
    probes: Probes,
    now: Duration,
    round_trip: Duration,
    /// Bytes of the largest packet that passes, as the tunnel takes it.
    passes: u16,
    /// Answers on their way.
    waiting: Vec<(Duration, Probe)>,
    /// Large probes that were sent.
    large: u32,
}

impl Path {
    fn new(passes: u16, round_trip: Duration) -> Self {
        let mut probes = probes_of(1);
        probes.set_mtu(Some(MTU.into()));
        Self {
            probes,
            now: ms(0),
            round_trip,
            passes,
            waiting: Vec::new(),
            large: 0,
        }
    }

    fn found(&self) -> Option<u16> {
        self.probes.sizes().get(&node(0)).copied()
    }

    /// Goes on for some seconds. Of what is sent, `is_lost` is asked once more.
    fn live(&mut self, seconds: u64, mut is_lost: impl FnMut(Duration, Probe) -> bool) {
        let until = self.now + Duration::from_secs(seconds);
        while self.now < until {
            while let Some(OutgoingProbe { probe, length, .. }) = self.probes.next(self.now) {
                let is_large = matches!(probe, Probe::LargeRequest(_));
                self.large += u32::from(is_large);
                let size = u16::try_from(length).unwrap() + 28;
                assert!(size <= MTU);
                let padded = size.next_multiple_of(STEP).min(MTU);
                if (!is_large || padded <= self.passes) && !is_lost(self.now, probe) {
                    let answer = probe.answer().unwrap();
                    self.waiting.push((self.now + self.round_trip, answer));
                }
            }
            self.now += ms(10);
            let now = self.now;
            for (_, answer) in self.waiting.extract_if(.., |(at, _)| *at <= now) {
                self.probes.take(ADDRESS, answer, now);
            }
        }
    }

    /// The same, until something is found; for how long.
    fn until(&mut self, found: Option<u16>) -> Duration {
        let begin = self.now;
        while self.found() != found {
            self.live(1, |_, _| false);
            assert!(self.now < begin + Duration::from_secs(60), "{found:?}");
        }
        self.now - begin
    }
}

/// What is found of a path in the end.
fn right(passes: u16) -> Option<u16> {
    Some(if passes >= MTU {
        MTU
    } else {
        passes / STEP * STEP
    })
}

#[test]
fn a_path_that_becomes_small_is_found_within_nine_seconds_and_so_is_one_that_is_whole_again() {
    for (passes, round_trip) in [(1_400, 1), (1_340, 50), (1_280, 200), (600, 1), (100, 1)] {
        for pause in 30..36 {
            let mut path = Path::new(MTU, ms(round_trip));
            path.live(pause, |_, _| false);
            assert_eq!(path.found(), Some(MTU));
            path.probes.take_news();
            path.passes = passes;
            let took = path.until(right(passes));
            assert!(took <= Duration::from_secs(9), "{passes}: {took:?}");
            assert!(path.probes.take_news(), "it is told at once");
            path.live(pause, |_, _| false);
            assert!(!path.probes.take_news(), "and once");
            path.passes = MTU;
            let took = path.until(Some(MTU));
            assert!(took <= Duration::from_secs(9), "{passes}: {took:?}");
            assert!(path.probes.take_news());
        }
    }
}

#[test]
fn a_small_path_that_becomes_smaller_is_found_soon_and_one_that_grows_a_little_in_ten_minutes() {
    let mut path = Path::new(1_400, ms(20));
    path.until(Some(1_392));
    path.passes = 1_300;
    assert!(path.until(Some(1_296)) <= Duration::from_secs(10));
    path.passes = 1_380;
    path.live(11 * 60, |_, _| false);
    assert_eq!(path.found(), Some(1_376));
}

#[test]
fn what_is_lost_with_ordinary_probes_says_nothing() {
    let mut path = Path::new(MTU, ms(20));
    for silence in [500, 1_000, 1_500, 3_000, 20_000] {
        for shift in 0..20 {
            path.live(11, |_, _| false);
            let begin = path.now + ms(shift * 50);
            path.live(30, |now, _| now >= begin && now < begin + ms(silence));
            path.live(60, |_, _| false);
            assert_eq!(path.found(), Some(MTU), "{silence} ms");
        }
    }
    // Nor does a path that becomes slow at once.
    for round_trip in [20, 900, 2_500, 20] {
        path.round_trip = ms(round_trip);
        for _ in 0..120 {
            path.live(1, |_, _| false);
            assert!(!path.probes.sizes().values().any(|size| *size < MTU));
        }
    }
}

#[test]
fn two_that_are_lost_in_a_search_by_chance_do_not_mislead_it() {
    for first in 0..20 {
        let mut path = Path::new(MTU, ms(20));
        path.live(20, |_, _| false);
        path.passes = 1_400;
        let mut number = 0;
        for _ in 0..200 {
            path.live(1, |_, probe| {
                let is_large = matches!(probe, Probe::LargeRequest(_));
                number += u32::from(is_large);
                is_large && (first..first + 2).contains(&(number - 1))
            });
            assert!([Some(MTU), Some(1_392)].contains(&path.found()), "{first}");
        }
        assert_eq!(path.found(), Some(1_392));
    }
}

#[test]
fn what_is_lost_between_two_ordinary_probes_among_many_peers_says_nothing() {
    let mut probes = probes_of(1_000);
    probes.set_mtu(Some(MTU.into()));
    for tick in 0..30_000u64 {
        let now = ms(tick * 10);
        while let Some(OutgoingProbe { to, probe, .. }) = probes.next(now) {
            if !(200_000..208_000).contains(&(tick * 10)) {
                probes.take(to, probe.answer().unwrap(), now);
            }
        }
        if tick % 100 == 0 {
            assert!(probes.sizes().values().all(|size| *size == MTU));
        }
    }
    assert_eq!(probes.sizes().len(), 1_000);
}

#[test]
fn a_host_without_an_agent_gets_no_large_probes() {
    let mut path = Path::new(MTU, ms(20));
    path.live(20, |_, _| false);
    assert!(path.large > 0);
    let mut large = 0;
    for _ in 0..6_000 {
        path.now += ms(10);
        while let Some(OutgoingProbe { probe, .. }) = path.probes.next(path.now) {
            large += u32::from(matches!(probe, Probe::LargeRequest(_)));
            path.probes.refused(ADDRESS, probe, path.now);
        }
    }
    assert!(large <= 1, "{large}");
    assert_eq!(path.found(), Some(MTU));
}

#[test]
fn large_probes_are_a_fifth_of_the_ordinary_ones_however_many_peers_there_are() {
    for peers in [1, 50, 1_000] {
        let mut probes = probes_of(peers);
        probes.set_mtu(Some(MTU.into()));
        let (mut ordinary, mut large) = (0, 0);
        for tick in 0..20_000u64 {
            while let Some(OutgoingProbe { to, probe, .. }) = probes.next(ms(tick * 10)) {
                match probe {
                    Probe::LargeRequest(_) => large += 1,
                    Probe::Request(_) => ordinary += 1,
                    Probe::Answer(_) | Probe::LargeAnswer(_) => unreachable!(),
                }
                probes.take(to, probe.answer().unwrap(), ms(tick * 10));
            }
        }
        assert!(
            large * 4 <= ordinary + 4 * peers,
            "{large} beside {ordinary}"
        );
        assert!(large * 6 >= ordinary, "{large} beside {ordinary}");
    }
}

#[test]
fn a_thousand_small_paths_are_found_without_a_flood() {
    let mut probes = probes_of(1_000);
    probes.set_mtu(Some(MTU.into()));
    for second in 0..900u64 {
        let mut large = 0;
        for tick in 0..100 {
            let now = ms(second * 1_000 + tick * 10);
            while let Some(OutgoingProbe { to, probe, length }) = probes.next(now) {
                large += u32::from(matches!(probe, Probe::LargeRequest(_)));
                if length + 28 <= 1_328 {
                    probes.take(to, probe.answer().unwrap(), now);
                }
            }
        }
        assert!(large <= 50, "{large}");
    }
    let sizes = probes.sizes();
    let right = sizes.values().filter(|size| **size == 1_328).count();
    assert_eq!((sizes.len(), right), (1_000, 1_000));
}

#[test]
fn another_mtu_is_another_beginning() {
    let mut path = Path::new(1_300, ms(20));
    path.until(Some(1_296));
    path.probes.set_mtu(Some(1_280));
    assert_eq!(path.found(), None);
    for mtu in [None, Some(0), Some(68)] {
        path.probes.set_mtu(mtu);
        while let Some(asked) = path.probes.next(path.now) {
            assert_eq!(asked.length, Probe::LENGTH);
        }
        path.now += ms(5_000);
    }
}

proptest! {
    /// Whatever the size of the path, and whichever large probes are lost by chance as long as none
    /// follows another, the search ends with the size that gets there.
    #[test]
    fn the_right_size_is_found(
        passes in 48..1_500u16,
        round_trip in 0..400u64,
        lost in prop::collection::vec(2..9u32, 200),
    ) {
        let mut path = Path::new(passes.min(MTU), ms(round_trip));
        let (mut number, mut next) = (0, 0);
        let mut gaps = lost.into_iter();
        path.live(120, |_, probe| {
            if !matches!(probe, Probe::LargeRequest(_)) {
                return false;
            }
            number += 1;
            let is_lost = number >= next;
            if is_lost {
                next = number + gaps.next().unwrap_or(u32::MAX / 2);
            }
            is_lost
        });
        prop_assert_eq!(path.found(), right(passes));
    }

    /// Chance alone, of up to five of a hundred packets, makes no path small.
    #[test]
    fn no_path_is_called_small_by_chance(draws in prop::collection::vec(0..100u8, 4_000)) {
        let mut path = Path::new(MTU, ms(20));
        let mut draws = draws.into_iter();
        for _ in 0..600 {
            path.live(1, |_, _| draws.next().is_some_and(|draw| draw < 5));
            prop_assert!(!path.probes.sizes().values().any(|size| *size < MTU));
        }
    }
}
