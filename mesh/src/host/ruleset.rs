//! The table `inet wattle`, as text for `nft -f -`.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wattle_wire::ids::NodeId;

use crate::{
    health::replies::{Flows, SEEN_S},
    host::interface::InterfaceName,
};

/// Which packets pass between the local LANs and the mesh: those between exactly these prefixes,
/// and nothing else through the tunnel.
///
/// Addresses stay as they are: no masquerade. TCP's segments are fitted to the tunnel. Other tables
/// are untouched and still have their say. Sets note which hosts of the LANs are asked, which answer,
/// and by which interface their packets come. Conntrack could tell, but a rule that asks it switches
/// it on for the whole host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// Whose table it is.
    pub node: NodeId,
    pub interface: InterfaceName,
    pub local: BTreeSet<IpNet>,
    pub remote: BTreeSet<IpNet>,
}

/// The name of the empty chain that says which node made the table. A name is all that every
/// version of nft keeps: comments need Linux 5.10.
pub fn mark(node: NodeId) -> String {
    format!("node_{}", node.to_string().replace('-', "_"))
}

/// Sets that packets fill: their names and the types of their elements.
const SEEN: [(&str, &str); 6] = [
    ("asked4", "ipv4_addr"),
    ("asked6", "ipv6_addr"),
    ("answered4", "ipv4_addr"),
    ("answered6", "ipv6_addr"),
    ("came4", "ifname . ipv4_addr"),
    ("came6", "ifname . ipv6_addr"),
];
/// As many hosts one of them holds; of others nothing is seen.
const MOST_SEEN: u16 = 1024;

/// The chains of a family that note who is asked, who answers and who comes by which interface, and
/// let packets pass.
fn seen_chains(version: &str, ip: &str, icmp: &str) -> String {
    format!(
        "\tchain asked{version} {{
\t\ttcp flags & (syn | ack) == syn update @asked{version} {{ {ip} daddr }}
\t\t{icmp} type echo-request update @asked{version} {{ {ip} daddr }}
\t\taccept
\t}}
\tchain answered{version} {{
\t\ttcp flags & (syn | ack) == syn | ack update @answered{version} {{ {ip} saddr }}
\t\ttcp flags rst update @answered{version} {{ {ip} saddr }}
\t\t{icmp} type echo-reply update @answered{version} {{ {ip} saddr }}
\t\taccept
\t}}
\tchain came{version} {{
\t\ttcp flags & (syn | ack) == syn update @came{version} {{ iifname . {ip} saddr }}
\t\t{icmp} type echo-request update @came{version} {{ iifname . {ip} saddr }}
\t\taccept
\t}}
"
    )
}

/// A listing of the table (`nft list table inet wattle`) without the elements that packets have put
/// there, and those.
pub fn split_flows(listing: &str) -> (String, Flows) {
    let (mut rest, mut flows) = (String::new(), Flows::default());
    let (mut set, mut is_within) = ("", false);
    for line in listing.lines() {
        let words = line.trim();
        if let Some(name) = words.strip_prefix("set ") {
            set = name.trim_end_matches(" {");
        }
        let is_seen = SEEN.iter().any(|(name, _)| *name == set);
        is_within |= is_seen && words.starts_with("elements = {");
        if !is_within {
            rest.push_str(line);
            rest.push('\n');
            continue;
        }
        let elements = words.split(['{', ',', '}']);
        match set.trim_end_matches(['4', '6']) {
            "asked" => flows.asked.extend(elements.filter_map(seen)),
            "answered" => flows.answered.extend(elements.filter_map(seen)),
            _ => flows.came.extend(elements.filter_map(seen_by)),
        }
        is_within = !words.ends_with('}');
    }
    (rest, flows)
}

/// Of an element such as `10.10.0.5 expires 58s704ms` the address, and how long ago it was seen.
fn seen(element: &str) -> Option<(IpAddr, Duration)> {
    let mut words = element.split_whitespace();
    let address = words.next()?.parse().ok()?;
    let left = words
        .skip_while(|word| *word != "expires")
        .nth(1)
        .map_or(Duration::ZERO, duration);
    Some((address, Duration::from_secs(SEEN_S).saturating_sub(left)))
}

/// Of an element such as `"lan0" . 10.10.0.5 expires 58s704ms` the interface and the address.
fn seen_by(element: &str) -> Option<(String, IpAddr)> {
    let (interface, rest) = element.trim().strip_prefix('"')?.split_once("\" . ")?;
    let (address, _) = seen(rest)?;
    Some((interface.to_owned(), address))
}

/// A time as nft writes it, such as `1m2s345ms`. What it does not write is nothing.
fn duration(text: &str) -> Duration {
    let (mut all, mut rest) = (Duration::ZERO, text);
    while let Some(end) = rest.find(|letter: char| !letter.is_ascii_digit()) {
        let (number, unit) = rest.split_at(end);
        let number = number.parse().unwrap_or(0);
        let length = unit.find(|letter: char| letter.is_ascii_digit());
        let (unit, next) = unit.split_at(length.unwrap_or(unit.len()));
        all += match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.saturating_mul(60)),
            _ => Duration::ZERO,
        };
        rest = next;
    }
    all
}

/// A set of the table: its name, the type of its elements, and them.
type Set = (&'static str, &'static str, Vec<String>);

impl Ruleset {
    /// The sets alone. They are put in place first: a chain that came in the same transaction can
    /// be seen by packets a moment before the elements of its sets are, and would drop them.
    pub fn sets(&self) -> String {
        let sets = self.all_sets().map(|(name, kind, elements)| {
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!("\t\telements = {{ {} }}\n", elements.join(", "))
            };
            format!("\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n{elements}\t}}\n")
        });
        let seen = SEEN.map(|(name, kind)| {
            format!(
                "\tset {name} {{\n\t\ttype {kind}\n\t\tsize {MOST_SEEN}\n\t\tflags \
                 dynamic,timeout\n\t\ttimeout {SEEN_S}s\n\t}}\n"
            )
        });
        format!(
            "table inet wattle {{\n{}{}}}\n",
            sets.concat(),
            seen.concat()
        )
    }

    /// The chains alone, which rely on the sets. One is empty and only says whose table it is.
    pub fn chains(&self) -> String {
        let (mark, interface) = (mark(self.node), &self.interface);
        let (v4, v6) = (
            seen_chains("4", "ip", "icmp"),
            seen_chains("6", "ip6", "icmpv6"),
        );
        format!(
            "table inet wattle {{
\tchain {mark} {{
\t}}
{v4}{v6}\tchain inward {{
\t\ttcp flags syn tcp option maxseg size set rt mtu
\t\tip saddr @remote4 ip daddr @local4 goto asked4
\t\tip6 saddr @remote6 ip6 daddr @local6 goto asked6
\t\tdrop
\t}}
\tchain outward {{
\t\ttcp flags syn tcp option maxseg size set rt mtu
\t\tip saddr @local4 ip daddr @remote4 goto answered4
\t\tip6 saddr @local6 ip6 daddr @remote6 goto answered6
\t\tdrop
\t}}
\tchain before {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"{interface}\" accept
\t\tip saddr @local4 ip daddr @remote4 goto came4
\t\tip6 saddr @local6 ip6 daddr @remote6 goto came6
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifname \"{interface}\" goto inward
\t\toifname \"{interface}\" goto outward
\t}}
}}
"
        )
    }

    /// The commands that lead from another ruleset of the same interface to this one, and touch
    /// only what differs.
    pub fn update_from(&self, before: &Self) -> String {
        let without = |of: &Self, but: &Self| Self {
            node: of.node,
            interface: of.interface.clone(),
            local: &of.local - &but.local,
            remote: &of.remote - &but.remote,
        };
        let (gone, new) = (
            without(before, self).all_sets(),
            without(self, before).all_sets(),
        );
        let mut commands = String::new();
        for ((name, _, gone), (_, _, new)) in gone.into_iter().zip(new) {
            for (verb, elements) in [("delete", gone), ("add", new)] {
                if !elements.is_empty() {
                    commands.push_str(&format!(
                        "{verb} element inet wattle {name} {{ {} }}\n",
                        elements.join(", ")
                    ));
                }
            }
        }
        commands
    }

    fn all_sets(&self) -> [Set; 4] {
        let of = |prefixes: &BTreeSet<IpNet>, is_v4: bool| {
            prefixes
                .iter()
                .filter(|prefix| prefix.addr().is_ipv4() == is_v4)
                .map(IpNet::to_string)
                .collect()
        };
        [
            ("local4", "ipv4_addr", of(&self.local, true)),
            ("local6", "ipv6_addr", of(&self.local, false)),
            ("remote4", "ipv4_addr", of(&self.remote, true)),
            ("remote6", "ipv6_addr", of(&self.remote, false)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(local: &[&str], remote: &[&str]) -> Ruleset {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Ruleset {
            node: NodeId(uuid::Uuid::nil()),
            interface: "wattle0".parse().unwrap(),
            local: prefixes(local),
            remote: prefixes(remote),
        }
    }

    #[test]
    fn an_update_names_only_what_differs() {
        let before = ruleset(
            &["10.10.0.0/24"],
            &["10.20.0.0/24", "10.99.0.2/32", "fd00:2::/64"],
        );
        let after = ruleset(
            &["10.10.0.0/24"],
            &["10.21.0.0/24", "10.99.0.2/32", "fd00:2::/64", "fd00:3::/64"],
        );
        let commands = "delete element inet wattle remote4 { 10.20.0.0/24 }\nadd element inet \
            wattle remote4 { 10.21.0.0/24 }\n\
                        add element inet wattle remote6 { fd00:3::/64 }\n";
        assert_eq!(after.update_from(&before), commands);
        assert_eq!(after.update_from(&after), "");
    }

    #[test]
    fn what_packets_put_into_the_table_is_taken_out_of_its_listing() {
        let fixed = "table inet wattle {
\tset asked4 {
\t\ttype ipv4_addr
\t\tflags dynamic,timeout
<asked>\t}

\tset answered6 {
\t\ttype ipv6_addr
<answered>\t}

\tset came4 {
\t\ttype ifname . ipv4_addr
<came>\t}

\tset local4 {
\t\ttype ipv4_addr
\t\telements = { 10.10.0.0/24 }
\t}
}
";
        let listing = fixed
            .replace(
                "<asked>",
                "\t\telements = { 10.10.0.5 expires 58s704ms, 10.10.0.6 timeout 1m expires 3s,\n\t\t\t     \
                 10.10.0.7 expires 1m }\n",
            )
            .replace("<answered>", "\t\telements = { fd00:10::5 expires 250ms }\n")
            .replace(
                "<came>",
                "\t\telements = { \"lan 1\" . 10.10.0.5 timeout 1m expires 58s704ms,\n\t\t\t     \
                 \"lan0\" . 10.10.0.6 expires 1m }\n",
            );
        let (rest, flows) = split_flows(&listing);
        let asked = [
            ("10.10.0.5", 1_296),
            ("10.10.0.6", 57_000),
            ("10.10.0.7", 0),
        ];
        let seen = |(host, ms): (&str, u64)| (host.parse().unwrap(), Duration::from_millis(ms));
        assert_eq!(flows.asked, asked.map(seen).into());
        assert_eq!(flows.answered, [seen(("fd00:10::5", 59_750))].into());
        let came = [("lan 1", "10.10.0.5"), ("lan0", "10.10.0.6")];
        let came = came.map(|(by, host)| (by.to_owned(), host.parse().unwrap()));
        assert_eq!(flows.came, came.into());
        let empty = ["<asked>", "<answered>", "<came>"]
            .iter()
            .fold(fixed.to_owned(), |text, mark| text.replace(mark, ""));
        assert_eq!(rest, empty);
        assert_eq!(split_flows(&rest), (rest.clone(), Flows::default()));
    }
}
