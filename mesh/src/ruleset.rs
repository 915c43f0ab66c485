//! The table `inet wattle`, as text for `nft -f -`.

use std::{collections::BTreeSet, fmt::Write};

use ipnet::IpNet;

use crate::state::InterfaceName;

/// Lets packets pass between the local LANs and the mesh by exact prefixes, and nothing else through the tunnel; fits TCP's segments to it.
///
/// Addresses stay as they are: no masquerade. Other tables are untouched and still have their say.
pub fn ruleset(interface: &InterfaceName, local: &BTreeSet<IpNet>, remote: &BTreeSet<IpNet>) -> String {
    let mut text = String::from("table inet wattle {\n");
    for (name, family, prefixes) in [("local", 4, local), ("local", 6, local), ("remote", 4, remote), ("remote", 6, remote)] {
        let elements: Vec<_> = prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == (family == 4)).map(IpNet::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(text, "\tset {name}{family} {{\n\t\ttype ipv{family}_addr\n\t\tflags interval\n");
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
        }
        text.push_str("\t}\n");
    }
    let _ = write!(
        text,
        "\tchain forward {{
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
    );
    text
}
