//! Echo requests, without another program.

use std::{net::IpAddr, time::Duration};

use anyhow::Context;
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence};
use wattle_mesh::diagnose::verify::Answers;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of payload, as `ping` sends them.
const PAYLOAD: [u8; 56] = [0; 56];

/// Sends echo requests to an address, one after the other, and says what came back. The identifier
/// tells their answers from those of others.
///
/// # Errors
///
/// When this process may not send them.
pub(crate) async fn ping(address: IpAddr, identifier: u16, count: u16) -> anyhow::Result<Answers> {
    let kind = if address.is_ipv4() {
        ICMP::V4
    } else {
        ICMP::V6
    };
    // A raw socket tells the time to live of an answer.
    let config = Config::builder()
        .kind(kind)
        .sock_type_hint(socket2::Type::RAW)
        .build();
    let client = Client::new(&config).context("cannot send pings: run this as root")?;
    let mut pinger = client.pinger(address, PingIdentifier(identifier)).await;
    pinger.timeout(ANSWER_LIMIT);
    let mut answers = Answers {
        address,
        sent: usize::from(count),
        round_trips_ms: Vec::new(),
        ttl: None,
    };
    for sequence in 0..count {
        // No route and no answer are the same to who waits for one.
        if let Ok((packet, took)) = pinger.ping(PingSequence(sequence), &PAYLOAD).await {
            answers.round_trips_ms.push(took.as_secs_f64() * 1000.0);
            answers.ttl = match packet {
                IcmpPacket::V4(packet) => packet.get_ttl(),
                IcmpPacket::V6(_) => None,
            };
        }
    }
    Ok(answers)
}
