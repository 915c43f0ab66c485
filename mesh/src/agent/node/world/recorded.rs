//! What a node says, and in which order, in cases that are recorded: one line for each thing that
//! it hears (`>`) and each that it is to do (`<`).
//!
//! `INSTA_UPDATE=always cargo test -p wattle-mesh recorded` records them anew.

use std::time::Duration;

use super::{Paces, World};
use crate::agent::node::{Input, RotatedKey};

/// Two gateways, the first of which is recorded; both are up if `calm_s` is long enough.
fn two(calm_s: u64) -> World {
    let mut world = World::new(1, 2, Paces::default());
    world.run_until(Duration::from_secs(calm_s));
    world
}

/// Compares what the first gateway hears and says meanwhile with what is recorded.
fn compare(case: &str, world: &mut World, seconds: u64, begin: impl FnOnce(&mut World)) {
    world.gateways[0].record = Some(Vec::new());
    begin(world);
    world.run_until(world.now + Duration::from_secs(seconds));
    let record = world.gateways[0].record.take().unwrap().join("\n");
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path("recorded");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(case, record));
}

#[test]
fn a_new_gateway_makes_its_tunnels_keeps_its_view_and_reports() {
    let mut world = two(0);
    compare("new_gateway", &mut world, 2, |_| ());
}

#[test]
fn tunnels_come_up_from_disk_before_the_coordinator_is_asked() {
    let mut world = two(30);
    world.lose_coordinator(Duration::from_secs(600));
    world.gateways[0].lose_device();
    compare("from_disk", &mut world, 3, |world| world.kill(0));
}

#[test]
fn a_key_is_on_disk_before_it_is_announced_and_before_it_is_on_the_device() {
    let mut world = two(60);
    compare("own_key", &mut world, 3, |world| {
        world.tell(0, Input::Rotate(RotatedKey::Wireguard));
    });
}

#[test]
fn a_peer_that_takes_up_its_announced_key_is_followed_at_once() {
    let mut world = two(60);
    compare("key_of_a_peer", &mut world, 3, |world| {
        world.tell(1, Input::Rotate(RotatedKey::Wireguard));
    });
}

#[test]
fn with_a_full_disk_tunnels_go_on_and_the_view_is_kept_when_there_is_room() {
    let mut world = two(60);
    world.gateways[0].disk.is_full = true;
    compare("full_disk", &mut world, 12, |world| {
        super::run::change_site(world, 1);
        world.after(Duration::from_secs(6), super::Event::Room(0));
    });
}
