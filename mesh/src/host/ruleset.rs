//! The table `inet wattle`, as text for `nft -f -`.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wattle_wire::ids::NodeId;

use crate::host::interface::InterfaceName;

/// Which packets pass between the local LANs and the mesh: those between exactly these prefixes,
/// and nothing else through the tunnel.
///
/// Addresses stay as they are: no masquerade. TCP's segments are fitted to the tunnel. Other tables
/// are untouched and still have their say.
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
        format!("table inet wattle {{\n{}}}\n", sets.concat())
    }

    /// The chains alone, which rely on the sets. One is empty and only says whose table it is.
    pub fn chains(&self) -> String {
        let (mark, interface) = (mark(self.node), &self.interface);
        format!(
            "table inet wattle {{
\tchain {mark} {{
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifname \"{interface}\" tcp flags syn tcp option maxseg size set rt mtu
\t\toifname \"{interface}\" tcp flags syn tcp option maxseg size set rt mtu
\t\tiifname \"{interface}\" ip saddr @remote4 ip daddr @local4 accept
\t\tiifname \"{interface}\" ip6 saddr @remote6 ip6 daddr @local6 accept
\t\toifname \"{interface}\" ip saddr @local4 ip daddr @remote4 accept
\t\toifname \"{interface}\" ip6 saddr @local6 ip6 daddr @remote6 accept
\t\tiifname \"{interface}\" drop
\t\toifname \"{interface}\" drop
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
}
