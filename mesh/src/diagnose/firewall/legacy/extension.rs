//! What the matches of iptables ask (iptables-extensions(8)), as far as it is known here.

use serde_json::{Value, json};

use super::{Bytes, compare};

const TCP: u16 = 6;
const UDP: u16 = 17;

/// `XT_CONNTRACK_STATE`, `_STATUS`, `_DIRECTION` and `_STATE_ALIAS`: what `conntrack` asks for.
const CT_STATE: u16 = 1;
const CT_STATUS: u16 = 1 << 6;
const CT_DIRECTION: u16 = 1 << 12;
const CT_ALIAS: u16 = 1 << 13;
/// Names of states and of `enum ip_conntrack_status` by their bits.
const STATES: [&str; 9] = [
    "invalid",
    "established",
    "related",
    "new",
    "",
    "",
    "snat",
    "dnat",
    "untracked",
];
const OLD_STATES: [&str; 7] = [
    "invalid",
    "established",
    "related",
    "new",
    "",
    "",
    "untracked",
];
const STATUSES: [&str; 6] = [
    "expected",
    "seen-reply",
    "assured",
    "confirmed",
    "snat",
    "dnat",
];
/// Names of the flags of TCP by their bits.
const FLAGS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];

/// A match or a target of which nothing but the name is known.
pub(super) fn unknown(kind: &str, name: &str) -> Value {
    json!({"xt": {"type": kind, "name": name}})
}

/// The questions of a match in nft's words.
pub(super) fn read(name: &str, revision: u8, data: Bytes<'_>, protocol: u16) -> Vec<Value> {
    let known = match (name, revision) {
        ("tcp", 0) => tcp(data),
        ("udp", 0) => udp(data),
        ("icmp", 0) => icmp("icmp", 8, data),
        ("icmp6", 0) => icmp("icmpv6", 128, data),
        ("multiport", 1) => multiport(data, protocol),
        ("state", 0) => state(data),
        ("conntrack", 1..=3) => conntrack(data, revision),
        _ => None,
    };
    known.unwrap_or_else(|| match name {
        // As nft prints it, it would be taken for the rule for known connections.
        "state" | "conntrack" => vec![other_of_connection()],
        _ => vec![unknown("match", name)],
    })
}

fn tcp(data: Bytes<'_>) -> Option<Vec<Value>> {
    let inverted = data.u8(11)?;
    let mut all = ports("tcp", data, inverted)?;
    if data.u8(8)? != 0 {
        all.push(unknown("match", "tcp option"));
    }
    let (mask, wanted) = (data.u8(9)?, data.u8(10)?);
    if mask != 0 {
        let [mask, wanted] = [mask, wanted].map(|flags| names(&FLAGS, flags.into()));
        let wanted = match wanted.as_slice() {
            [] => json!(0),
            [one] => json!(one),
            _ => json!(wanted),
        };
        let flags = json!({"payload": {"protocol": "tcp", "field": "flags"}});
        all.push(compare(
            json!({"&": [flags, mask]}),
            inverted & 4 != 0,
            wanted,
        ));
    }
    Some(all)
}

fn udp(data: Bytes<'_>) -> Option<Vec<Value>> {
    ports("udp", data, data.u8(8)?)
}

/// The two ranges of ports with which the data of `tcp` and `udp` begin.
fn ports(protocol: &str, data: Bytes<'_>, inverted: u8) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    for (field, at, flag) in [("sport", 0, 1), ("dport", 4, 2)] {
        let (first, last, not) = (data.u16(at)?, data.u16(at + 2)?, inverted & flag != 0);
        if (first, last) != (0, u16::MAX) || not {
            let left = json!({"payload": {"protocol": protocol, "field": field}});
            all.push(compare(left, not, json!({"range": [first, last]})));
        }
    }
    Some(all)
}

fn icmp(protocol: &str, echo: u8, data: Bytes<'_>) -> Option<Vec<Value>> {
    let [kind, first, last, inverted] = data.array(0)?;
    let not = inverted & 1 != 0;
    let is_any_code = (first, last) == (0, u8::MAX);
    let left = |field| json!({"payload": {"protocol": protocol, "field": field}});
    Some(match kind {
        u8::MAX if protocol == "icmp" && !not => Vec::new(),
        // Codes and types are not told apart by `not`.
        _ if kind == echo && !is_any_code => vec![compare(left("code"), not, json!(first))],
        _ if kind == echo => vec![compare(left("type"), not, json!("echo-request"))],
        _ => vec![compare(left("type"), not, json!(kind))],
    })
}

fn multiport(data: Bytes<'_>, protocol: u16) -> Option<Vec<Value>> {
    let field = match data.u8(0)? {
        0 => "sport",
        1 => "dport",
        _ => return None,
    };
    let count = usize::from(data.u8(1)?).min(15);
    let mut ports = Vec::new();
    let mut at = 0;
    while at < count {
        let port = data.u16(2 + 2 * at)?;
        // With its next it makes a range.
        let goes_on = data.u8(32 + at)? != 0;
        let last = if goes_on {
            at += 1;
            data.u16(2 + 2 * at)?
        } else {
            port
        };
        ports.push(json!({"range": [port, last]}));
        at += 1;
    }
    let protocol = match protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "th",
    };
    let left = json!({"payload": {"protocol": protocol, "field": field}});
    Some(vec![compare(
        left,
        data.u8(47)? != 0,
        json!({ "set": ports }),
    )])
}

fn state(data: Bytes<'_>) -> Option<Vec<Value>> {
    let states = names(&OLD_STATES, data.u32(0)?);
    Some(vec![compare(of_connection("state"), false, json!(states))])
}

/// `struct xt_conntrack_mtinfo1` and its two successors: 128 bytes of addresses, then times, ports
/// and what is asked for.
fn conntrack(data: Bytes<'_>, revision: u8) -> Option<Vec<Value>> {
    let (asked, inverted) = (data.u16(146)?, data.u16(148)?);
    let (states, statuses) = match revision {
        1 => (data.u8(150)?.into(), data.u8(151)?.into()),
        _ => (data.u16(150)?, data.u16(152)?),
    };
    let mut all = Vec::new();
    for (flag, key, right) in [
        (CT_STATE, "state", json!(names(&STATES, states.into()))),
        (
            CT_STATUS,
            "status",
            json!(names(&STATUSES, statuses.into())),
        ),
        (CT_DIRECTION, "direction", json!("original")),
    ] {
        if asked & flag != 0 {
            all.push(compare(of_connection(key), inverted & flag != 0, right));
        }
    }
    if asked & !(CT_STATE | CT_STATUS | CT_DIRECTION | CT_ALIAS) != 0 {
        all.push(other_of_connection());
    }
    Some(all)
}

fn of_connection(key: &str) -> Value {
    json!({"ct": {"key": key}})
}

/// A question for something else of a connection, whose answer is not known here.
fn other_of_connection() -> Value {
    compare(of_connection("other"), false, Value::Null)
}

/// The names of the bits that are set.
fn names(all: &[&'static str], bits: u32) -> Vec<&'static str> {
    let is_set = |(bit, name): (usize, &&'static str)| (bits & (1 << bit) != 0).then_some(*name);
    all.iter().enumerate().filter_map(is_set).collect()
}
