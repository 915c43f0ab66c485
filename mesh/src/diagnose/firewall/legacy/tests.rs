use std::iter;

use ipnet::IpNet;
use proptest::{collection, prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{
    super::{
        Firewall, Hook, Lan, Obstacle, Packet, Transport,
        tests::{net, outward},
    },
    HOOKS, LegacyDump, LegacyTable, hooked, listed,
};
use crate::host::state::Family;

/// A table as the kernel would give it.
#[derive(Clone, Debug)]
struct Dump {
    family: Family,
    table: LegacyTable,
    info: Vec<u8>,
    entries: Vec<u8>,
}

impl Dump {
    fn objects(&self) -> Option<Vec<Value>> {
        let dump = LegacyDump {
            family: self.family,
            table: self.table,
            info: &self.info,
            entries: &self.entries,
        };
        dump.objects()
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// A verdict as the kernel has it.
    Verdict(i32),
    Jump(&'static str),
    Goto(&'static str),
    Extension(&'static str),
    /// It only counts.
    Nothing,
}
use Target::{Extension, Goto, Jump, Nothing, Verdict};

const ACCEPT: Target = Verdict(-2);
const DROP: Target = Verdict(-1);
const RETURN: Target = Verdict(-5);

#[derive(Clone, Debug)]
struct Rule {
    source: Option<IpNet>,
    destination: Option<IpNet>,
    interfaces: [&'static str; 2],
    inverted: u8,
    protocol: u16,
    matches: Vec<(&'static str, u8, Vec<u8>)>,
    target: Target,
}

fn rule(target: Target) -> Rule {
    Rule {
        source: None,
        destination: None,
        interfaces: ["", ""],
        inverted: 0,
        protocol: 0,
        matches: Vec::new(),
        target,
    }
}

fn with(target: Target, name: &'static str, revision: u8, data: Vec<u8>) -> Rule {
    Rule {
        matches: vec![(name, revision, data)],
        ..rule(target)
    }
}

fn of_protocol(protocol: u16, asked: Rule) -> Rule {
    Rule { protocol, ..asked }
}

/// Chains of the kernel with their policies, and others.
type Chains = Vec<(&'static str, Option<Target>, Vec<Rule>)>;

fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(len, 0);
    bytes
}

/// `struct xt_entry_match` or `xt_entry_target`, with its data.
fn extension(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
    let len = 32 + data.len().next_multiple_of(8);
    let mut bytes = u16::try_from(len).unwrap().to_ne_bytes().to_vec();
    bytes.extend(padded(name.as_bytes(), 29));
    bytes.push(revision);
    bytes.extend(data);
    padded(&bytes, len)
}

/// `struct ipt_entry` or `ip6t_entry`, up to the target.
fn entry(family: Family, rule: &Rule, target: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let nets = [rule.source, rule.destination];
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let len = if family == Family::V4 { 4 } else { 16 };
    for net in nets {
        bytes.extend(net.map_or(vec![0; len], |net| octets(net.network())));
    }
    for net in nets {
        bytes.extend(net.map_or(vec![0; len], |net| octets(net.netmask())));
    }
    for name in rule.interfaces {
        bytes.extend(padded(name.trim_end_matches('+').as_bytes(), 16));
    }
    for name in rule.interfaces {
        let counts = match name.strip_suffix('+') {
            Some(start) => start.len(),
            None if name.is_empty() => 0,
            None => name.len() + 1,
        };
        bytes.extend(padded(&vec![0xff; counts], 16));
    }
    bytes.extend(rule.protocol.to_ne_bytes());
    let goes = matches!(rule.target, Goto(_));
    match family {
        Family::V4 => bytes.extend([if goes { 2 } else { 0 }, rule.inverted]),
        Family::V6 => {
            let asks_protocol = u8::from(rule.protocol != 0);
            bytes.extend([0, if goes { 4 } else { 0 } | asks_protocol, rule.inverted]);
            bytes.extend([0; 3]);
        }
    }
    bytes.extend([0; 4]);
    let matches = rule
        .matches
        .iter()
        .flat_map(|(name, revision, data)| extension(name, *revision, data));
    let matches: Vec<u8> = matches.collect();
    let head = if family == Family::V4 { 112 } else { 168 };
    for place in [head + matches.len(), head + matches.len() + target.len()] {
        bytes.extend(u16::try_from(place).unwrap().to_ne_bytes());
    }
    // Counters are of no account.
    bytes.extend(vec![0xa5; head - bytes.len()]);
    bytes.extend(matches);
    bytes.extend(target);
    bytes
}

/// The table that iptables-legacy would make: the kernel's chains, each with its policy behind it,
/// then the others, each behind its name, then the end.
fn table(family: Family, table: LegacyTable, chains: &Chains) -> Dump {
    let named = |name: &str| {
        let target = extension("ERROR", 0, &padded(name.as_bytes(), 30));
        entry(family, &rule(Nothing), &target)
    };
    // Their length depends on nothing.
    let len_of = |rule: &Rule| match rule.target {
        Extension(name) => entry(family, rule, &extension(name, 0, &[0; 8])).len(),
        Verdict(_) | Jump(_) | Goto(_) | Nothing => {
            entry(family, rule, &extension("", 0, &[0; 4])).len()
        }
    };
    let all = |(_, policy, rules): &(&str, Option<Target>, Vec<Rule>)| {
        let last = rule(policy.unwrap_or(RETURN));
        rules.clone().into_iter().chain([last]).collect::<Vec<_>>()
    };
    let mut at = 0;
    let mut firsts = Vec::new();
    for chain in chains {
        if chain.1.is_none() {
            at += named(chain.0).len();
        }
        firsts.push((chain.0, at));
        at += all(chain).iter().map(len_of).sum::<usize>();
    }
    let first_of = |wanted: &str| firsts.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let mut entries = Vec::new();
    let mut places = [[u32::MAX; 5]; 2];
    let mut used = 0_u32;
    for chain in chains {
        let hook = HOOKS.iter().position(|(name, _)| *name == chain.0);
        if chain.1.is_none() {
            entries.extend(named(chain.0));
        } else {
            let hook = hook.unwrap();
            used |= 1 << hook;
            places[0][hook] = u32::try_from(entries.len()).unwrap();
        }
        for one in all(chain) {
            if let Some(hook) = hook {
                places[1][hook] = u32::try_from(entries.len()).unwrap();
            }
            let verdict = match one.target {
                Verdict(verdict) => verdict,
                Jump(name) | Goto(name) => i32::try_from(first_of(name)).unwrap(),
                Nothing => i32::try_from(entries.len() + len_of(&one)).unwrap(),
                Extension(_) => 0,
            };
            let target = match one.target {
                Extension(name) => extension(name, 0, &[0; 8]),
                Verdict(_) | Jump(_) | Goto(_) | Nothing => {
                    extension("", 0, &verdict.to_ne_bytes())
                }
            };
            entries.extend(entry(family, &one, &target));
        }
    }
    entries.extend(named("ERROR"));
    let mut info = padded(table.name().as_bytes(), 32);
    info.extend(used.to_ne_bytes());
    info.extend(
        places
            .iter()
            .flatten()
            .flat_map(|place| place.to_ne_bytes()),
    );
    info.extend(0_u32.to_ne_bytes());
    info.extend(u32::try_from(entries.len()).unwrap().to_ne_bytes());
    assert_eq!(LegacyDump::entries_len(&info), Some(entries.len()));
    Dump {
        family,
        table,
        info,
        entries,
    }
}

fn told(objects: Vec<Value>, hook: Hook, packet: &Packet<'_>) -> Vec<String> {
    let ruleset = json!({ "nftables": objects });
    let found = Firewall::new(&ruleset).obstacles(hook, packet);
    found.iter().map(Obstacle::to_string).collect()
}

/// What a table `filter` does in FORWARD, with other chains beside it.
fn forward(policy: Target, rules: Vec<Rule>, others: Chains, transport: Transport) -> Vec<String> {
    let mut chains = vec![
        ("INPUT", Some(ACCEPT), Vec::new()),
        ("FORWARD", Some(policy), rules),
        ("OUTPUT", Some(ACCEPT), Vec::new()),
    ];
    chains.extend(others);
    let dump = table(Family::V4, LegacyTable::Filter, &chains);
    told(dump.objects().unwrap(), Hook::Forward, &outward(transport))
}

/// What one rule before a policy of DROP does.
fn after(asked: Rule, transport: Transport) -> Vec<String> {
    forward(DROP, vec![asked], Vec::new(), transport)
}

const DROPPED: &str = "the chain iptables-legacy filter FORWARD drops what no rule accepts";
const MAYBE: &str = "the chain iptables-legacy filter FORWARD may drop what no rule accepts";
const NOTHING: [&str; 0] = [];

/// `struct xt_conntrack_mtinfo3` with `match_flags`, `invert_flags`, `state_mask`, `status_mask`.
fn conntrack(asked: u16, inverted: u16, states: u16, statuses: u16) -> Vec<u8> {
    let mut data = vec![0; 146];
    for number in [asked, inverted, states, statuses] {
        data.extend(number.to_ne_bytes());
    }
    padded(&data, 162)
}

/// `-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`.
fn established() -> Rule {
    with(ACCEPT, "conntrack", 3, conntrack(0x2001, 0, 0b110, 0))
}

/// `struct xt_tcp` of `--dport`.
fn dport(first: u16, last: u16) -> Vec<u8> {
    let ports = [0, u16::MAX, first, last];
    let mut data: Vec<u8> = ports.iter().flat_map(|port| port.to_ne_bytes()).collect();
    data.extend([0; 4]);
    data
}

#[test]
fn a_policy_decides_what_no_rule_does() {
    let ping = Transport::Ping;
    assert_eq!(forward(ACCEPT, vec![], vec![], ping), NOTHING);
    assert_eq!(forward(DROP, vec![], vec![], ping), [DROPPED]);
    assert_eq!(after(rule(Nothing), ping), [DROPPED]);
    assert_eq!(after(rule(Extension("LOG")), ping), [DROPPED]);
    assert_eq!(after(rule(ACCEPT), ping), NOTHING);
}

#[test]
fn a_rule_has_the_number_by_which_iptables_knows_it() {
    let rules = vec![established(), rule(Nothing), rule(Extension("REJECT"))];
    assert_eq!(
        forward(ACCEPT, rules, vec![], Transport::Tcp),
        ["rule 3 of the chain iptables-legacy filter FORWARD rejects it"]
    );
}

#[test]
fn chains_of_administrators_are_followed() {
    let others = || -> Chains {
        vec![
            ("first", None, vec![rule(Nothing), rule(RETURN)]),
            ("strangers", None, vec![established(), rule(DROP)]),
        ]
    };
    let dropped = ["rule 2 of the chain iptables-legacy filter strangers drops it"];
    for to in [Jump("strangers"), Goto("strangers")] {
        let rules = vec![rule(Jump("first")), rule(to), rule(ACCEPT)];
        assert_eq!(forward(ACCEPT, rules, others(), Transport::Ping), dropped);
    }
    // What is behind a goto is not reached.
    for (to, expected) in [(Jump("first"), vec![]), (Goto("first"), vec![DROPPED])] {
        let rules = vec![rule(to), rule(ACCEPT)];
        assert_eq!(forward(DROP, rules, others(), Transport::Ping), expected);
    }
}

#[test]
fn a_rule_for_known_connections_does_not_let_new_ones_through() {
    let ping = Transport::Ping;
    assert_eq!(after(established(), ping), [DROPPED]);
    let old = |states: u32| with(ACCEPT, "state", 0, states.to_ne_bytes().to_vec());
    assert_eq!(after(old(0b110), ping), [DROPPED]);
    assert_eq!(after(old(0b1110), ping), NOTHING);
    let new = |inverted| with(ACCEPT, "conntrack", 3, conntrack(1, inverted, 0b1000, 0));
    assert_eq!(after(new(0), ping), NOTHING);
    assert_eq!(after(new(1), ping), [DROPPED]);
    let translated = with(ACCEPT, "conntrack", 3, conntrack(1 << 6, 0, 0, 1 << 5));
    assert_eq!(after(translated, ping), [DROPPED]);
    let answers = with(ACCEPT, "conntrack", 3, conntrack(1 << 12, 1 << 12, 0, 0));
    assert_eq!(after(answers, ping), [DROPPED]);
    let former = with(ACCEPT, "conntrack", 1, {
        let mut data = conntrack(1, 0, 0, 0);
        data[150] = 0b1000;
        data
    });
    assert_eq!(after(former, ping), NOTHING);
    // A question for more, and one that is not known.
    for (asked, revision) in [(1 << 2, 3), (1 << 2 | 1, 3), (1, 9)] {
        let more = with(
            ACCEPT,
            "conntrack",
            revision,
            conntrack(asked, 0, 0b1000, 0),
        );
        assert_eq!(after(more, ping), [MAYBE]);
    }
}

#[test]
fn interfaces_and_their_wildcards_are_compared() {
    let by = |incoming, outgoing, inverted| Rule {
        interfaces: [incoming, outgoing],
        inverted,
        ..rule(ACCEPT)
    };
    for (accepts, is_through) in [
        (by("lan0", "", 0), true),
        (by("lan", "", 0), false),
        (by("lan+", "", 0), true),
        (by("eth+", "", 0), false),
        (by("", "wattle+", 0), true),
        (by("", "wattle0", 0x02), false),
        (by("eth0", "", 0x01), true),
        (by("lan0", "eth0", 0x02), true),
    ] {
        let words = format!("{accepts:?}");
        let expected: &[&str] = if is_through { &[] } else { &[DROPPED] };
        assert_eq!(after(accepts, Transport::Ping), expected, "{words}");
    }
}

#[test]
fn addresses_are_compared() {
    let from = |source, inverted| Rule {
        source: Some(net(source)),
        inverted,
        ..rule(ACCEPT)
    };
    let to = |destination| Rule {
        destination: Some(net(destination)),
        ..rule(ACCEPT)
    };
    for (accepts, expected) in [
        (from("10.0.0.0/8", 0), &[][..]),
        (from("10.0.0.0/8", 0x08), &[DROPPED]),
        (from("10.10.0.7/32", 0), &[MAYBE]),
        (to("10.20.0.0/16"), &[]),
        (to("10.10.0.0/16"), &[DROPPED]),
    ] {
        let words = format!("{accepts:?}");
        assert_eq!(after(accepts, Transport::Ping), expected, "{words}");
    }
}

#[test]
fn protocols_and_ports_are_compared() {
    let icmp = |kind| of_protocol(1, with(ACCEPT, "icmp", 0, vec![kind, 0, 0xff, 0]));
    let tcp = |first, last| of_protocol(6, with(ACCEPT, "tcp", 0, dport(first, last)));
    let flags = |mask, wanted| {
        let mut data = dport(0, u16::MAX);
        data[9..11].copy_from_slice(&[mask, wanted]);
        of_protocol(6, with(ACCEPT, "tcp", 0, data))
    };
    // `--dports 80,443:450`
    let ports = |protocol| {
        let mut data = vec![1, 3];
        let numbers = [80, 443, 450].into_iter().chain(iter::repeat(0));
        data.extend(numbers.take(15).flat_map(|port: u16| port.to_ne_bytes()));
        data.extend([0, 1]);
        of_protocol(protocol, with(ACCEPT, "multiport", 1, padded(&data, 48)))
    };
    let not_tcp = Rule {
        inverted: 0x40,
        ..of_protocol(6, rule(ACCEPT))
    };
    let (ping, any, https) = (Transport::Ping, Transport::Tcp, Transport::TcpPort(443));
    for (number, (accepts, transport, expected)) in [
        (of_protocol(1, rule(ACCEPT)), ping, &[][..]),
        (of_protocol(6, rule(ACCEPT)), ping, &[DROPPED]),
        (not_tcp.clone(), ping, &[]),
        (not_tcp, any, &[DROPPED]),
        (icmp(8), ping, &[]),
        (icmp(3), ping, &[DROPPED]),
        (icmp(0xff), ping, &[]),
        (tcp(0, u16::MAX), any, &[]),
        (tcp(443, 443), any, &[MAYBE]),
        (tcp(400, 500), https, &[]),
        (tcp(80, 80), https, &[DROPPED]),
        (ports(6), Transport::TcpPort(445), &[]),
        (ports(6), Transport::TcpPort(442), &[DROPPED]),
        (ports(17), Transport::UdpPort(80), &[]),
        // `--syn` begins a connection, and `! --syn` does not.
        (flags(0b01_0111, 0b00_0010), any, &[]),
        (flags(0b01_0111, 0b01_0000), any, &[DROPPED]),
        (flags(0b11_1111, 0), any, &[DROPPED]),
        (flags(0b01_0000, 0), any, &[]),
        (flags(0b01_0000, 0), ping, &[DROPPED]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(after(accepts, transport), expected, "{number}");
    }
}

#[test]
fn what_is_not_known_of_a_rule_is_unproven() {
    let limited = |target| with(target, "hashlimit", 1, vec![0; 40]);
    assert_eq!(after(limited(ACCEPT), Transport::Ping), [MAYBE]);
    assert_eq!(
        forward(ACCEPT, vec![limited(DROP)], vec![], Transport::Ping),
        ["rule 1 of the chain iptables-legacy filter FORWARD may drop it"]
    );
    let noted = with(ACCEPT, "comment", 0, padded(b"wattle", 256));
    assert_eq!(after(noted, Transport::Ping), NOTHING);
    let mut other = table(
        Family::V4,
        LegacyTable::Filter,
        &vec![("FORWARD", Some(DROP), vec![rule(ACCEPT)])],
    );
    // A mask with holes.
    other.entries[8..12].copy_from_slice(&[255, 0, 255, 0]);
    let objects = other.objects().unwrap();
    assert_eq!(
        told(objects, Hook::Forward, &outward(Transport::Ping)),
        [MAYBE]
    );
}

#[test]
fn a_source_address_that_is_replaced_is_told() {
    let all = |rules| {
        let chains = vec![
            ("PREROUTING", Some(ACCEPT), vec![]),
            ("POSTROUTING", Some(ACCEPT), rules),
        ];
        let dump = table(Family::V4, LegacyTable::Nat, &chains);
        let objects = dump.objects().unwrap();
        told(objects, Hook::Nat, &outward(Transport::Tcp))
    };
    let by_uplink = Rule {
        interfaces: ["", "eth0"],
        ..rule(Extension("MASQUERADE"))
    };
    assert_eq!(all(vec![by_uplink.clone()]), NOTHING);
    assert_eq!(
        all(vec![by_uplink, rule(Extension("MASQUERADE"))]),
        ["rule 2 of the chain iptables-legacy nat POSTROUTING replaces its source address"]
    );
}

#[test]
fn tables_of_both_families_and_of_both_kinds_of_iptables_are_kept_apart() {
    let v6 = Packet {
        source: net("fd00:10::/64"),
        destination: net("fd00:20::/64"),
        ..outward(Transport::Ping)
    };
    let chains = |inside: Rule| -> Chains {
        vec![
            ("FORWARD", Some(ACCEPT), vec![rule(Jump("lans"))]),
            ("lans", None, vec![inside]),
        ]
    };
    let mut to_lan = rule(DROP);
    to_lan.destination = Some(net("fd00::/16"));
    to_lan.interfaces = ["lan+", "wattle0"];
    to_lan = of_protocol(58, to_lan);
    to_lan.matches = vec![("icmp6", 0, vec![128, 0, 0xff, 0])];
    let of_v6 = table(Family::V6, LegacyTable::Filter, &chains(to_lan));
    let of_v4 = table(Family::V4, LegacyTable::Filter, &chains(rule(Nothing)));
    let mut objects = of_v6.objects().unwrap();
    objects.extend(of_v4.objects().unwrap());
    // iptables-nft has chains of the same names, which accept.
    let nft = json!([
        {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "type": "filter",
            "hook": "forward", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "ip6", "table": "filter", "chain": "FORWARD", "handle": 7,
            "expr": [{"accept": null}]}},
        {"rule": {"family": "ip6", "table": "filter", "chain": "lans", "handle": 8,
            "expr": [{"accept": null}]}},
    ]);
    objects.extend(nft.as_array().unwrap().clone());
    let ping = outward(Transport::Ping);
    assert_eq!(told(objects.clone(), Hook::Forward, &ping), NOTHING);
    assert_eq!(
        told(objects, Hook::Forward, &v6),
        ["rule 1 of the chain ip6tables-legacy filter lans drops it"]
    );
}

#[test]
fn each_table_stands_where_the_kernel_has_it() {
    let every: Chains = HOOKS.map(|(name, _)| (name, Some(ACCEPT), vec![])).into();
    let places = |of: LegacyTable| -> Vec<String> {
        let objects = table(Family::V4, of, &every).objects().unwrap();
        let chains = objects.iter().map(|object| &object["chain"]);
        let place = |chain: &Value| format!("{} {}", chain["type"], chain["prio"]).replace('"', "");
        chains.map(place).collect()
    };
    assert_eq!(places(LegacyTable::Raw), ["filter -300"; 5]);
    assert_eq!(
        places(LegacyTable::Mangle)[2..4],
        ["filter -150", "route -150"]
    );
    assert_eq!(
        places(LegacyTable::Nat),
        ["nat -100", "nat 100", "nat 100", "nat -100", "nat 100"]
    );
    assert_eq!(places(LegacyTable::Filter), ["filter 0"; 5]);
    assert_eq!(places(LegacyTable::Security), ["filter 50"; 5]);
    // A packet that is dropped before there is a route is dropped.
    let drops = vec![("PREROUTING", Some(ACCEPT), vec![rule(DROP)])];
    let ruleset = json!({"nftables": table(Family::V4, LegacyTable::Raw, &drops).objects()});
    let lan = Lan {
        interface: "lan0".to_owned(),
        subnet: net("10.10.0.0/24"),
        address: net("10.10.0.1/24"),
        up: true,
    };
    let far = net("10.20.0.0/24");
    let firewall = Firewall::new(&ruleset);
    assert_eq!(firewall.between(&lan, "wattle0", far).len(), 4);
}

#[test]
fn tables_in_use_are_those_that_the_kernel_names() {
    use LegacyTable::{Filter, Mangle, Nat, Raw};
    let names = listed("nat\nfilter\nunheard-of\n");
    assert_eq!(names, [Nat, Filter].into());
    let nothing = json!({"nftables": []});
    let used = |family, hooks: &str| hooked(family, hooks, &nothing, false);
    // Linux 6.12, and 5.15 with modules.
    let newer = "family ip {\n\thook prerouting {\n\t\t-0000000300 ipt_do_table\n\
        \t\t-0000000150 iptable_mangle_hook\n\t}\n\thook forward {\n\
        \t\t 0000000000 chain inet wattle forward [nf_tables]\n\t\t 0000000000 ipt_do_table\n\t}\n}\n\
        family ip6 {\n\thook forward {\n\t\t 0000000000 chain inet wattle forward [nf_tables]\n";
    assert_eq!(used(Family::V4, newer), Some([Raw, Mangle, Filter].into()));
    assert_eq!(used(Family::V6, newer), Some([].into()));
    let older =
        "family ip6 {\n\thook input {\n\t\t+0000000000 ip6table_filter_hook [ip6table_filter]";
    assert_eq!(used(Family::V6, older), Some([Filter].into()));
    // A kernel that does not tell, and one that has no names of functions.
    let own = json!({"nftables": [{"chain": {"family": "inet", "table": "wattle",
        "name": "forward", "type": "filter", "hook": "forward", "prio": 0}}]});
    assert_eq!(hooked(Family::V4, "", &own, false), None);
    assert_eq!(used(Family::V4, ""), Some([].into()), "nobody has a hook");
    let nameless = "family ip {\n\thook forward {\n\t\t 0000000000\n";
    assert_eq!(used(Family::V4, nameless), None);
}

#[test]
fn a_table_nat_is_in_use_where_nobody_else_translates_addresses_or_signs_are_for_it() {
    let nat = "family ip {\n\thook postrouting {\n\t\t+0000000100 nf_nat_ipv4_out [nf_nat]\n";
    let filter = "\thook forward {\n\t\t 0000000000 ipt_do_table [ip_tables]\n";
    let both = format!("{nat}{filter}");
    let ruleset = |family: &str| {
        json!({"nftables": [{"chain": {"family": family, "table": "nat", "name": "POSTROUTING",
            "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}]})
    };
    for (hooks, of_nft, has_nat, is_used) in [
        (nat, "bridge", false, true),
        (nat, "ip6", false, true),
        (nat, "ip", false, false),
        (nat, "inet", false, false),
        (nat, "ip", true, true),
        (both.as_str(), "ip", false, true),
        (
            "family ip {\n\thook forward {\n\t\t0 nf_hook\n",
            "ip",
            true,
            false,
        ),
        // A newer kernel says by whom.
        (
            "family ip {\n\thook postrouting {\n\t\t+0000000100 ipt_do_table\n",
            "ip",
            false,
            true,
        ),
    ] {
        let used = hooked(Family::V4, hooks, &ruleset(of_nft), has_nat).unwrap();
        let is_told = used.contains(&LegacyTable::Nat);
        assert_eq!(is_told, is_used, "{hooks} {of_nft} {has_nat}");
    }
}

/// A table with all that is read.
fn varied(family: Family) -> Dump {
    let mut rules = vec![
        established(),
        of_protocol(6, with(ACCEPT, "tcp", 0, dport(1, 443))),
        of_protocol(17, with(DROP, "multiport", 1, vec![1; 48])),
        with(Extension("MARK"), "state", 0, vec![1, 0, 0, 0]),
        of_protocol(1, with(Goto("user"), "icmp", 0, vec![8, 0, 0xff, 0])),
        rule(Jump("user")),
    ];
    rules[5].interfaces = ["eth+", "lan0"];
    let chains = vec![
        ("INPUT", Some(ACCEPT), vec![]),
        ("FORWARD", Some(DROP), rules),
        ("user", None, vec![rule(RETURN)]),
    ];
    table(family, LegacyTable::Filter, &chains)
}

#[test]
fn a_table_that_is_cut_off_is_none() {
    for family in [Family::V4, Family::V6] {
        let whole = varied(family);
        assert_eq!(whole.objects().unwrap().len(), 3 + 8);
        for len in 0..whole.entries.len() {
            let mut cut = whole.clone();
            cut.entries.truncate(len);
            assert_eq!(cut.objects(), None, "{len}");
            // As if the kernel had said so.
            let told = u32::try_from(len).unwrap().to_ne_bytes();
            cut.info[80..].copy_from_slice(&told);
            assert_eq!(cut.objects(), None, "{len}");
        }
        for len in 0..whole.info.len() {
            let mut cut = whole.clone();
            cut.info.truncate(len);
            assert_eq!(cut.objects(), None, "{len}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken(
        is_v6: bool,
        info in collection::vec(any::<u8>(), 0..100),
        entries in collection::vec(any::<u8>(), 0..600),
    ) {
        let family = if is_v6 { Family::V6 } else { Family::V4 };
        let table = LegacyTable::Nat;
        let _ = Dump { family, table, info, entries }.objects();
    }

    #[test]
    fn any_change_of_a_table_is_taken(
        is_v6: bool,
        of_entries in collection::vec((any::<Index>(), any::<u8>()), 0..6),
        of_info in collection::vec((any::<Index>(), any::<u8>()), 0..2),
    ) {
        let mut dump = varied(if is_v6 { Family::V6 } else { Family::V4 });
        for (at, byte) in of_entries {
            let at = at.index(dump.entries.len());
            dump.entries[at] = byte;
        }
        for (at, byte) in of_info {
            let at = at.index(dump.info.len());
            dump.info[at] = byte;
        }
        let _ = dump.objects();
    }
}
