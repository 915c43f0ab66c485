use proptest::prelude::*;

use super::*;
use crate::{
    agent::replica::Replica,
    config::{directory::RecordChange, view},
    testing::{MESH, directory_of, node_id, node_keys_of, snapshot, unmanaged_record},
};

pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(super) fn node(number: u128) -> NodeId {
    NodeId(uuid::Uuid::from_u128(number))
}

pub(super) fn probes_of(peers: u32) -> Probes {
    let mut probes = Probes::default();
    for number in 0..peers {
        let (node, address) = (
            node(number.into()),
            Ipv4Addr::from(u32::from(ADDRESS) + number),
        );
        let at = interval(peers as usize) * number / peers;
        probes.peers.insert(node, Peer::new(address, None, at));
        probes.by_address.insert(address, node);
        probes.queue.insert((at, node));
    }
    probes
}

/// One peer, whose fate in each second is told: whether it answers, whether it is heard. The
/// states it was in, with when that was known.
fn lives(
    fates: impl IntoIterator<Item = (bool, bool)>,
    round_trip: Duration,
) -> Vec<(Duration, EndState)> {
    let mut probes = probes_of(1);
    let mut seen: Vec<(Duration, EndState)> = Vec::new();
    let mut note = |probes: &Probes, now| {
        let state = probes.reports().get(&node(0)).map(|report| report.state);
        if let Some(state) = state.filter(|state| seen.last().is_none_or(|(_, last)| last != state))
        {
            seen.push((now, state));
        }
    };
    for (second, (answers, is_heard)) in (0..).zip(fates) {
        let now = Duration::from_secs(second);
        if let Some(OutgoingProbe { to, probe, .. }) = probes.next(now) {
            note(&probes, now);
            if answers {
                probes.take(to, probe.answer().unwrap(), now + round_trip);
                note(&probes, now + round_trip);
            }
        }
        if is_heard {
            probes.take(ADDRESS, Probe::Request(1), now + ms(500));
        }
    }
    seen
}

fn states(lived: &[(Duration, EndState)]) -> Vec<EndState> {
    lived.iter().map(|(_, state)| *state).collect()
}

#[test]
fn a_peer_that_falls_silent_is_down_within_five_seconds_and_comes_back_after_some_answers() {
    let fates = [
        vec![(true, true); 10],
        vec![(false, false); 30],
        vec![(true, true); 30],
    ]
    .concat();
    let lived = lives(fates, ms(20));
    assert_eq!(states(&lived), [EndState::Up, EndState::Down, EndState::Up]);
    // The last answer is to the probe of second 9.
    assert!(lived[1].0 <= Duration::from_secs(9 + 5), "{lived:?}");
    assert!(
        lived[2].0 > Duration::from_secs(42) && lived[2].0 < Duration::from_secs(50),
        "{lived:?}"
    );
}

#[test]
fn a_peer_that_is_heard_and_does_not_answer_is_one_way() {
    let lived = lives(
        [
            vec![(true, true); 10],
            vec![(false, true); 30],
            vec![(false, false); 30],
        ]
        .concat(),
        ms(20),
    );
    assert_eq!(
        states(&lived),
        [EndState::Up, EndState::OneWay, EndState::Down]
    );
    let lived = lives(
        [
            vec![(true, true); 10],
            vec![(false, false); 30],
            vec![(false, true); 30],
        ]
        .concat(),
        ms(20),
    );
    assert_eq!(
        states(&lived),
        [EndState::Up, EndState::Down, EndState::OneWay]
    );
}

#[test]
fn a_peer_that_never_answered_is_judged_by_others() {
    assert_eq!(lives(vec![(false, true); 60], ms(20)), []);
}

#[test]
fn a_slow_link_is_slow_and_not_down_though_each_answer_comes_after_its_time() {
    let mut probes = probes_of(1);
    let mut waiting = Vec::new();
    for tick in 0..600u64 {
        let now = ms(tick * 100);
        waiting.extend(
            probes
                .next(now)
                .map(|asked| (now + ms(1_500), asked.to, asked.probe.answer().unwrap())),
        );
        for (_, to, answer) in waiting.extract_if(.., |(at, ..)| *at <= now) {
            probes.take(to, answer, now);
        }
        assert!(probes.reports().values().all(|report| report.state.works()));
    }
    let report = probes.reports()[&node(0)];
    assert_eq!(report.state, EndState::Slow);
    assert!(
        (1_400_000..1_600_000).contains(&report.round_trip_us) && report.loss_percent < 5,
        "{report:?}"
    );
}

#[test]
fn loss_makes_a_link_lossy_until_it_is_half_of_that() {
    let every = |nth: usize, count: usize| {
        (1..=count).map(move |second| (!second.is_multiple_of(nth), true))
    };
    let lived = lives(
        every(6, 100).chain(every(14, 200)).chain(every(50, 200)),
        ms(20),
    );
    assert_eq!(
        states(&lived),
        [EndState::Up, EndState::Lossy, EndState::Up]
    );
    assert!(lived[2].0 > Duration::from_secs(250), "{lived:?}");
}

#[test]
fn nobody_is_asked_where_no_agent_would_answer() {
    let mut directory = directory_of(3);
    directory.apply(&RecordChange::Node(unmanaged_record(2)));
    let mut replica = Replica::new(MESH, node_keys_of(1).wireguard_key());
    let view = view::view(&directory, node_id(1)).unwrap();
    replica.receive(snapshot(view), 0);
    let mut probes = Probes::default();
    probes.follow(replica.known().unwrap(), Some(1420), ms(0));
    assert_eq!(probes.peers.keys().collect::<Vec<_>>(), [&node_id(3)]);
}

#[test]
fn only_peers_are_answered_and_none_more_often_than_it_may_ask() {
    let mut probes = probes_of(1);
    let mut answers = |from, probe: Probe| {
        let answers = (0..1000).filter_map(|tick| probes.take(from, probe, ms(tick)));
        let answers: Vec<_> = answers.collect();
        assert!(answers.iter().all(|answer| Some(*answer) == probe.answer()));
        answers.len()
    };
    assert_eq!(answers(Ipv4Addr::new(10, 99, 0, 77), Probe::Request(1)), 0);
    assert_eq!(answers(ADDRESS, Probe::Request(1)), 4);
    // A large one beside an ordinary one is no second one.
    assert_eq!(answers(ADDRESS, Probe::LargeRequest(1)), 20);
}

#[test]
fn a_thousand_peers_cost_fifty_probes_a_second_and_a_silent_one_is_noticed_soon_after_its_turn() {
    let mut probes = probes_of(1_000);
    let mut sent = 0;
    for tick in 0..12_000u64 {
        let now = ms(tick * 10);
        while let Some(OutgoingProbe { to, probe, .. }) = probes.next(now) {
            sent += 1;
            if to != ADDRESS || now < Duration::from_secs(60) {
                probes.take(to, probe.answer().unwrap(), now);
            }
        }
        if now >= Duration::from_secs(60 + 25) {
            assert_eq!(probes.reports()[&node(0)].state, EndState::Down);
        }
    }
    assert!((5_000..=6_000).contains(&sent), "{sent} in 120 s");
    assert_eq!(probes.reports().len(), 1_000);
}

proptest! {
    /// Whatever answers come and go, in five minutes a peer goes down and up a few times only.
    #[test]
    fn nothing_flaps(chance in 0.0..1.0f64, draws in prop::collection::vec((0.0..1.0f64, any::<bool>()), 300)) {
        let lived = lives(draws.into_iter().map(|(draw, heard)| (draw < chance, heard)), ms(20));
        let fell = lived.windows(2).filter(|pair| pair[0].1.works() && !pair[1].1.works()).count();
        prop_assert!(fell <= 12, "{lived:?}");
        prop_assert!(lived.len() <= 40, "{lived:?}");
    }

    /// Answers that were never asked for, come twice or late change nothing that they should
    /// not, and never panic.
    #[test]
    fn strange_answers_do_no_harm(numbers in prop::collection::vec((prop_oneof![any::<u32>(), 0..200u32], 0u64..100_000), 200)) {
        let mut probes = probes_of(1);
        probes.set_mtu(Some(1420));
        for (number, at) in numbers {
            probes.take(ADDRESS, Probe::Answer(number), ms(at));
            probes.take(ADDRESS, Probe::LargeAnswer(number), ms(at));
            probes.next(ms(at));
        }
        prop_assert!(probes.reports().values().all(|report| report.loss_percent <= 100));
    }
}
