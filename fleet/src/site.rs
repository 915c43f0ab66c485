//! The sites that the fleet makes, by their numbers.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The body of `POST /sites`.
pub(crate) fn site(number: u32) -> Value {
    json!({
        "name": format!("fleet-{number}"),
        "endpoint": endpoint(number),
        "subnets": [subnet(number)],
    })
}

/// 10.128.0.0/24 and on: the upper half of 10.0.0.0/8, clear of the tunnel prefix.
pub(crate) fn subnet(number: u32) -> String {
    format!(
        "{}/24",
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number * 256)
    )
}

/// Of the range for benchmarks, RFC 2544; nothing is ever sent there.
fn endpoint(number: u32) -> String {
    format!(
        "{}:51820",
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number)
    )
}
