//! Worlds in which anything happens.

use std::{env, time::Duration};

use wattle_wire::subnet::Subnet;

use super::{Event, LATENCY, Paces, World};
use crate::{
    agent::node::{Input, RotatedKey},
    config::directory::RecordChange,
};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
/// Longer than what was put off waits.
const CALM: Duration = Duration::from_secs(1_200);

/// Something that happens to a world, by chance.
fn happen(world: &mut World) {
    let gateway = world.dice.index(world.gateways.len());
    let other = world.dice.index(world.gateways.len());
    let time = Duration::from_secs(1 + world.dice.below(200));
    match world.dice.below(13) {
        0 | 1 => change_site(world, gateway),
        12 => claim(world, gateway),
        2 | 3 => {
            let node = world.gateways[gateway].id;
            world.coordinator.ask_for_rotation(node);
            world.stream();
        }
        4 => world.tell(gateway, Input::Rotate(RotatedKey::Wireguard)),
        5 => world.tell(gateway, Input::Rotate(RotatedKey::Preshared)),
        6 => world.tell(gateway, Input::Rotate(RotatedKey::Identity)),
        7 => world.kill(gateway),
        8 => world.gateways[gateway].dies_after = Some(1 + world.dice.below(12)),
        9 if gateway != other => world.part(gateway, other, time),
        9 => world.lose_coordinator(time),
        10 => {
            world.disconnect(gateway);
            world.cut_off.insert(gateway);
            world.after(time, Event::Reach(gateway));
        }
        _ => {
            world.gateways[gateway].disk.is_full = true;
            world.after(time, Event::Room(gateway));
        }
    }
}

/// A site gets or loses a LAN.
pub(super) fn change_site(world: &mut World, gateway: usize) {
    let number = u64::try_from(gateway).unwrap() + 1;
    let lan = format!("10.{}.0.0/24", number + 100);
    change_lan(world, gateway, lan.parse().unwrap());
}

/// A site gets or loses a LAN in which a host reaches others past the tunnel: the network of its own
/// uplink, that of the coordinator, or that of all gateways.
fn claim(world: &mut World, gateway: usize) {
    let lans = [
        format!("172.31.{}.0/24", 1 + world.dice.index(world.gateways.len())),
        "198.51.100.0/24".to_owned(),
        "203.0.113.0/24".to_owned(),
    ];
    let lan = lans[world.dice.index(lans.len())].parse().unwrap();
    let mut sites = world.coordinator.feed.directory().sites.values();
    if !sites.any(|site| site.spec.subnets.contains(&lan)) {
        change_lan(world, gateway, lan);
    }
}

fn change_lan(world: &mut World, gateway: usize, lan: Subnet) {
    let node = world.coordinator.node(world.gateways[gateway].id).unwrap();
    let mut site = world.coordinator.feed.directory().sites[&node.site].clone();
    if site.spec.subnets.len() > 1 {
        site.spec.subnets.pop();
    } else {
        site.spec.subnets.push(lan);
    }
    world.coordinator.change(RecordChange::Site(site));
    world.stream();
}

/// Everything works from now on, and in the end all tunnels are up.
fn calm(world: &mut World) {
    world.lossy = None;
    world.cut_off.clear();
    world.coordinator.is_away = false;
    for gateway in 0..world.gateways.len() {
        world.gateways[gateway].disk.is_full = false;
        world.gateways[gateway].dies_after = None;
    }
    for (a, b) in world.pairs() {
        world.heal(a, b);
    }
    world.run_until(world.now + CALM);
    world.all_are_up().unwrap();
    let nodes = &world.coordinator.feed.directory().nodes;
    let mut announced = nodes.values().filter(|node| node.announced.is_some());
    let stands = announced.next().map(|node| &node.name);
    assert_eq!(stands, None, "what it announced stands: {}", world.seed);
}

fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// So many events in such a time. In the end, and now and then, all works again.
fn live(seed: u64, nodes: u64, time: Duration, events: u64, paces: Paces) {
    let mut world = World::new(seed, nodes, paces);
    calm(&mut world);
    let mean_ms = u64::try_from(time.as_millis()).unwrap() / events;
    for event in 1..=events {
        happen(&mut world);
        // Mostly soon after one another, so that they meet.
        let most_ms = if world.dice.one_in(4) {
            8 * mean_ms
        } else {
            4_000
        };
        let wait = Duration::from_millis(world.dice.below(most_ms));
        world.lossy = world.dice.one_in(8).then_some(5);
        world.run_until(world.now + wait);
        if event % 100 == 0 {
            calm(&mut world);
        }
    }
    calm(&mut world);
}

/// `WATTLE_WORLD_SEED`, `WATTLE_WORLD_NODES`, `WATTLE_WORLD_DAYS` and `WATTLE_WORLD_EVENTS` make it
/// another one.
#[test]
fn whatever_happens_for_months_no_tunnel_is_lost_and_in_the_end_all_are_up() {
    let paces = Paces { observe: DAY / 2 };
    let time = DAY * u32::try_from(number("WATTLE_WORLD_DAYS", 100)).unwrap();
    let events = number("WATTLE_WORLD_EVENTS", 200);
    let nodes = number("WATTLE_WORLD_NODES", 4);
    live(number("WATTLE_WORLD_SEED", 1), nodes, time, events, paces);
}

#[test]
fn the_same_holds_for_an_hour_at_the_pace_of_agents() {
    let seed = number("WATTLE_WORLD_SEED", 1);
    live(seed, 3, HOUR, 30, Paces::default());
}

/// Two gateways of which the second changes their preshared key, up to when it begins.
fn changing_a_preshared_key() -> World {
    let mut world = World::new(1, 2, Paces::default());
    world.run_until(Duration::from_secs(60));
    world.gateways[1].record = Some(Vec::new());
    world.tell(1, Input::Rotate(RotatedKey::Preshared));
    let begins = |line: &String| line.contains("leave 1 messages");
    while !world.gateways[1].record.iter().flatten().any(begins) {
        world.run_until(world.now + LATENCY);
        assert!(world.now < Duration::from_secs(90), "it never begins");
    }
    world
}

#[test]
fn a_disk_that_fills_at_any_moment_of_a_change_of_preshared_keys_costs_no_tunnel() {
    for place in [0, 1] {
        for step in 0..14 {
            let mut world = changing_a_preshared_key();
            world.run_until(world.now + LATENCY * step);
            world.gateways[place].disk.is_full = true;
            // For longer than any session lasts.
            world.run_until(world.now + Duration::from_secs(400));
            world.all_are_up().unwrap();
        }
    }
}
