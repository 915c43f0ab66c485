//! Whether a rule means a packet, and what of its kind.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde_json::Value;

use super::{Hook, TableKey, Transport, Walk};

/// Whether a packet is one that a rule means, of those that have to be taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meant {
    Yes,
    No,
    /// Some of its kind are: others use another port or address.
    Some,
    Unknown,
}

impl Meant {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Some, _) | (_, Self::Some) => Self::Some,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }

    /// Of a list, of which one has to fit.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Some, _) | (_, Self::Some) => Self::Some,
            (Self::No, Self::No) => Self::No,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Some | Self::Unknown => self,
        }
    }

    fn of(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl<'r> Walk<'_, 'r> {
    pub(super) fn compare(&self, comparison: &'r Value) -> Meant {
        let left = &comparison["left"];
        let payload = left.pointer("/&/0/payload").unwrap_or(&left["payload"]);
        // Whatever is asked of a header, a packet without it is not meant.
        let protocol = payload["protocol"].as_str();
        if protocol.is_some_and(|name| !self.has(name)) {
            return Meant::No;
        }
        let meant = self.fits(left, &comparison["right"]);
        match comparison["op"].as_str() {
            Some("==" | "in") => meant,
            Some("!=") => meant.not(),
            _ => Meant::Unknown,
        }
    }

    /// Whether the packet has the header of a protocol.
    fn has(&self, protocol: &str) -> bool {
        let is_v4 = self.packet.source.addr().is_ipv4();
        let is_ping = self.packet.transport == Transport::Ping;
        match protocol {
            "ip" => is_v4,
            "ip6" => !is_v4,
            "icmp" => is_ping && is_v4,
            "icmpv6" => is_ping && !is_v4,
            "tcp" | "udp" => self.is_protocol(&Value::from(protocol)) == Meant::Yes,
            "th" => !is_ping,
            _ => true,
        }
    }

    /// Whether what `left` names of the packet is, or is in, `right`.
    pub(super) fn fits(&self, left: &Value, right: &'r Value) -> Meant {
        if let (Some(left), Some(right)) = (left["concat"].as_array(), right["concat"].as_array()) {
            let pairs = left.iter().zip(right);
            return pairs
                .map(|(left, right)| self.fits(left, right))
                .fold(Meant::Yes, Meant::and);
        }
        if let Some(masked) = left["&"].as_array() {
            return self.are_flags(masked, right);
        }
        if let Some(list) = right.as_array() {
            return self.any(left, list.iter());
        }
        if right.get("set").is_some() || right.as_str().is_some_and(|word| word.starts_with('@')) {
            return self.any(left, self.elements(right));
        }
        let right = right.pointer("/elem/val").unwrap_or(right);
        if let Some(fib) = left.get("fib") {
            return self.fib(fib, right);
        }
        let packet = self.packet;
        let is_v4 = packet.source.addr().is_ipv4();
        let (meta, payload, ct) = (&left["meta"], &left["payload"], &left["ct"]);
        let protocol = payload["protocol"].as_str().unwrap_or_default();
        let field = payload["field"].as_str().unwrap_or_default();
        match (meta["key"].as_str(), ct["key"].as_str()) {
            (Some("iifname" | "iif"), _) => interface(packet.from, right),
            (Some("oifname" | "oif"), _) => interface(packet.to, right),
            (Some("l4proto"), _) => self.is_protocol(right),
            (Some("nfproto"), _) => Meant::of(right == if is_v4 { "ipv4" } else { "ipv6" }),
            (Some("protocol"), _) => Meant::of(right == if is_v4 { "ip" } else { "ip6" }),
            (Some("pkttype"), _) => Meant::of(right == "host" || right == "unicast"),
            (_, Some("state")) => Meant::of(right == "new"),
            (_, Some("direction")) => Meant::of(right == "original"),
            // Packets that keep their addresses are those that are asked about.
            (_, Some("status")) if right == "dnat" || right == "snat" => Meant::No,
            (None, None) => match (protocol, field) {
                ("ip", _) if !is_v4 => Meant::No,
                ("ip6", _) if is_v4 => Meant::No,
                ("ip" | "ip6", "saddr") => network(packet.source, right),
                ("ip" | "ip6", "daddr") => network(packet.destination, right),
                ("ip", "protocol") | ("ip6", "nexthdr") => self.is_protocol(right),
                ("tcp" | "udp" | "th", "dport") => self.is_port(protocol, right),
                ("tcp", _) => self.is_protocol(&Value::from("tcp")).and(Meant::Some),
                ("udp", _) => self.is_protocol(&Value::from("udp")).and(Meant::Some),
                ("icmp", "type") if is_v4 => self.is_echo(right),
                ("icmpv6", "type") if !is_v4 => self.is_echo(right),
                ("icmp" | "icmpv6", "type") => Meant::No,
                _ => Meant::Unknown,
            },
            _ => Meant::Unknown,
        }
    }

    /// What the routes say of the packet's addresses.
    fn fib(&self, fib: &Value, right: &Value) -> Meant {
        let is_of_source = fib["flags"].to_string().contains("saddr");
        match (fib["result"].as_str(), right.as_str()) {
            // Whether there is a way back is asked of the kernel.
            (Some("oif" | "oifname"), None) if *right == false => Meant::No,
            (Some("type"), Some("local")) => Meant::of(self.hook == Hook::Input && !is_of_source),
            (Some("type"), Some("broadcast" | "multicast" | "anycast")) => Meant::No,
            (Some("type"), Some("unicast")) => Meant::of(self.hook != Hook::Input || is_of_source),
            _ => Meant::Unknown,
        }
    }

    fn any(&self, left: &Value, list: impl Iterator<Item = &'r Value>) -> Meant {
        list.map(|right| self.fits(left, right))
            .fold(Meant::No, Meant::or)
    }

    /// The elements of a set: one that stands in the rule, or the name of one of the table.
    pub(super) fn elements(&self, set: &'r Value) -> impl Iterator<Item = &'r Value> + use<'r> {
        let name = set.as_str().and_then(|name| name.strip_prefix('@'));
        let named = name.and_then(|name| {
            let mut all = self.firewall.of("set").chain(self.firewall.of("map"));
            all.find(|set| set["name"] == name && TableKey::of(set) == self.table)
        });
        let list = named.map_or(&set["set"], |set| &set["elem"]);
        list.as_array().into_iter().flatten()
    }

    fn is_protocol(&self, right: &Value) -> Meant {
        let v4 = self.packet.source.addr().is_ipv4();
        let (name, number) = match self.packet.transport {
            Transport::Ping if v4 => ("icmp", 1),
            Transport::Ping => ("ipv6-icmp", 58),
            Transport::Tcp | Transport::TcpPort(_) => ("tcp", 6),
            Transport::UdpPort(_) => ("udp", 17),
        };
        Meant::of(right == name || right == number)
    }

    fn is_port(&self, protocol: &str, right: &Value) -> Meant {
        let (of, port) = match self.packet.transport {
            Transport::Ping => return Meant::No,
            Transport::Tcp => ("tcp", None),
            Transport::TcpPort(port) => ("tcp", Some(u64::from(port))),
            Transport::UdpPort(port) => ("udp", Some(u64::from(port))),
        };
        if protocol != of && protocol != "th" {
            return Meant::No;
        }
        let Some(port) = port else {
            return Meant::Some;
        };
        match (right.as_u64(), right["range"].as_array()) {
            (Some(one), _) => Meant::of(one == port),
            (None, Some(range)) => {
                let end = |at: usize| range.get(at).and_then(Value::as_u64);
                match (end(0), end(1)) {
                    (Some(first), Some(last)) => Meant::of((first..=last).contains(&port)),
                    _ => Meant::Unknown,
                }
            }
            (None, None) => Meant::Unknown,
        }
    }

    /// Whether TCP flags, those of a mask, are the ones named. What begins a connection has `syn`.
    fn are_flags(&self, masked: &[Value], right: &Value) -> Meant {
        let [left, mask] = masked else {
            return Meant::Unknown;
        };
        if left["payload"]["protocol"] != "tcp" || left["payload"]["field"] != "flags" {
            return Meant::Unknown;
        }
        let names = |flags: &Value| match flags.as_array() {
            Some(all) => all.contains(&Value::from("syn")).then_some(all.len()),
            None => (flags == "syn").then_some(1),
        };
        let are_named = match names(mask) {
            Some(_) => names(right) == Some(1),
            None => *right == 0,
        };
        self.is_protocol(&Value::from("tcp"))
            .and(Meant::of(are_named))
    }

    fn is_echo(&self, right: &Value) -> Meant {
        match self.packet.transport {
            Transport::Ping => Meant::of(right == "echo-request"),
            Transport::Tcp | Transport::TcpPort(_) | Transport::UdpPort(_) => Meant::No,
        }
    }
}

fn interface(name: Option<&str>, right: &Value) -> Meant {
    match (name, right.as_str()) {
        (Some(name), Some(wanted)) => Meant::of(match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        }),
        // The packets of the host itself come by no interface, and those to it leave by none.
        (None, Some(_)) => Meant::No,
        (_, None) => Meant::Unknown,
    }
}

/// Whether a network is, or is in, an address, a prefix or a range.
fn network(net: IpNet, right: &Value) -> Meant {
    let address = |value: &Value| value.as_str().and_then(|text| IpAddr::from_str(text).ok());
    let (first, last) = if let Some(one) = address(right) {
        (one, one)
    } else if let Some(prefix) = right.get("prefix") {
        let length = prefix["len"]
            .as_u64()
            .and_then(|len| u8::try_from(len).ok());
        let known = address(&prefix["addr"])
            .zip(length)
            .and_then(|(address, length)| IpNet::new(address, length).ok());
        match known {
            Some(prefix) => (prefix.network(), prefix.broadcast()),
            None => return Meant::Unknown,
        }
    } else if let Some((first, last)) = address(&right["range"][0]).zip(address(&right["range"][1]))
    {
        (first, last)
    } else {
        return Meant::Unknown;
    };
    if first.is_ipv4() != net.addr().is_ipv4() || last < net.network() || first > net.broadcast() {
        Meant::No
    } else if first <= net.network() && last >= net.broadcast() {
        Meant::Yes
    } else {
        Meant::Some
    }
}
