//! Tests that need the machine to themselves. Each holds a thread of the runner while it waits to be
//! alone, and these names are the last: they wait for few others.

use crate::{cases, flood, hostile};

#[tokio::test(flavor = "multi_thread")]
async fn c1_five_thousand_hostile_connections_are_closed_within_ten_seconds_and_slow_nobody_down() {
    hostile::five_thousand_connections().await;
}

#[tokio::test]
async fn c10_nothing_that_anybody_sends_to_any_route_breaks_the_coordinator_or_makes_it_grow() {
    cases::all_routes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_whatever_strangers_send_from_fifty_addresses_the_coordinator_holds_little_of_it() {
    flood::fifty_addresses().await;
}
