//! Echo requests and TCP connections, without another program.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence, SurgeError};
use tokio::{net::TcpStream, time::timeout};
use wattle_mesh::diagnose::verify::{Answers, Objection};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of payload, as `ping` sends them.
const PAYLOAD: [u8; 56] = [0; 56];
/// How long a connection may take: the first packet and one that is sent again after a second.
const CONNECT_LIMIT: Duration = Duration::from_millis(2500);
/// Type of an answer to a ping: RFC 792 and RFC 4443.
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

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
    let client = |socket| {
        let config = Config::builder().kind(kind).sock_type_hint(socket);
        Client::new(&config.build())
    };
    // A raw socket tells the time to live of an answer, and who objects. The other is for users
    // whom `net.ipv4.ping_group_range` lets ping.
    let client = client(socket2::Type::RAW)
        .or_else(|_| client(socket2::Type::DGRAM))
        .context(
            "this user may not send pings here (see net.ipv4.ping_group_range): run this as root",
        )?;
    let mut pinger = client.pinger(address, PingIdentifier(identifier)).await;
    pinger.timeout(ANSWER_LIMIT);
    let mut answers = Answers {
        address,
        sent: usize::from(count),
        round_trips_ms: Vec::new(),
        ttl: None,
        objection: None,
    };
    for sequence in 0..count {
        let (packet, took) = match pinger.ping(PingSequence(sequence), &PAYLOAD).await {
            Ok(answer) => answer,
            Err(SurgeError::IOError(error)) => {
                answers.objection = Some(Objection::Here(error.to_string()));
                continue;
            }
            Err(_) => continue,
        };
        let (from, kind, code, ttl) = match packet {
            IcmpPacket::V4(packet) => (
                packet.get_source().into(),
                packet.get_icmp_type().0,
                packet.get_icmp_code().0,
                packet.get_ttl(),
            ),
            IcmpPacket::V6(packet) => (
                packet.get_source().into(),
                packet.get_icmpv6_type().0,
                packet.get_icmpv6_code().0,
                None,
            ),
        };
        let reply = if address.is_ipv4() {
            ECHO_REPLY
        } else {
            ECHO_REPLY_V6
        };
        if kind == reply && from == address {
            answers.round_trips_ms.push(took.as_secs_f64() * 1000.0);
            answers.ttl = ttl;
        } else {
            answers.objection = Some(Objection::Icmp { from, kind, code });
        }
    }
    Ok(answers)
}

/// Makes TCP connections to an address, one after the other, closes each at once, and says what
/// came of them.
pub(crate) async fn connect(to: SocketAddr, count: u16) -> Answers {
    let mut answers = Answers {
        address: to.ip(),
        sent: usize::from(count),
        round_trips_ms: Vec::new(),
        ttl: None,
        objection: None,
    };
    for _ in 0..count {
        let start = Instant::now();
        match timeout(CONNECT_LIMIT, TcpStream::connect(to)).await {
            Ok(Ok(_)) => answers
                .round_trips_ms
                .push(start.elapsed().as_secs_f64() * 1000.0),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                answers.objection = Some(Objection::Closed);
            }
            Ok(Err(error)) => answers.objection = Some(Objection::Here(error.to_string())),
            Err(_) => {}
        }
    }
    answers
}
