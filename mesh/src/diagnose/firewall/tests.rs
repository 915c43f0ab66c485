use serde_json::json;

use super::*;

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// From the gateway's LAN into the tunnel.
pub(super) fn outward(transport: Transport) -> Packet<'static> {
    Packet {
        from: Some("lan0"),
        to: Some("wattle0"),
        source: net("10.10.0.0/24"),
        destination: net("10.20.0.0/24"),
        transport,
    }
}

/// A ruleset whose rules are as `nft --json` prints them, each with its chain.
fn ruleset(policy: &str, rules: &[(&str, Value)]) -> Value {
    let mut all = vec![
        json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
        "type": "filter", "hook": "forward", "prio": 0, "policy": policy}}),
    ];
    all.extend(rules.iter().zip(1..).map(|((chain, expr), handle)| {
        json!({"rule": {"family": "ip", "table": "filter", "chain": chain, "handle": handle,
            "expr": expr}})
    }));
    json!({ "nftables": all })
}

fn found(ruleset: &Value, packet: &Packet<'_>) -> Vec<String> {
    Firewall::new(ruleset)
        .obstacles(Hook::Forward, packet)
        .iter()
        .map(Obstacle::to_string)
        .collect()
}

fn matches(left: Value, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn by(key: &str, name: &str) -> Value {
    matches(json!({"meta": {"key": key}}), "==", name.into())
}

fn ip(field: &str, addr: &str, len: u8) -> Value {
    let left = json!({"payload": {"protocol": "ip", "field": field}});
    matches(left, "==", json!({"prefix": {"addr": addr, "len": len}}))
}

fn port(protocol: &str, right: Value) -> Value {
    let left = json!({"payload": {"protocol": protocol, "field": "dport"}});
    matches(left, "==", right)
}

fn state(states: &[&str]) -> Value {
    matches(json!({"ct": {"key": "state"}}), "in", json!(states))
}

const DROPPED: &str = "the chain ip filter FORWARD drops what no rule accepts";

#[test]
fn a_chain_without_rules_does_what_its_policy_says() {
    let packet = outward(Transport::Ping);
    assert_eq!(found(&ruleset("accept", &[]), &packet), [""; 0]);
    assert_eq!(found(&ruleset("drop", &[]), &packet), [DROPPED]);
}

#[test]
fn the_last_rule_decides_where_the_policy_does_not() {
    let reject = json!([{"counter": {"packets": 0, "bytes": 0}}, {"reject": {"type": "icmpx"}}]);
    let established = json!([state(&["established", "related"]), {"accept": null}]);
    let rules = [("FORWARD", established), ("FORWARD", reject)];
    assert_eq!(
        found(&ruleset("accept", &rules), &outward(Transport::Tcp)),
        ["rule 2 of the chain ip filter FORWARD rejects it"]
    );
}

#[test]
fn rules_of_iptables_are_read_as_nft_prints_them() {
    let conntrack = json!([{"xt": {"type": "match", "name": "conntrack"}}, {"accept": null}]);
    let ours = json!([by("iifname", "lan0"), {"xt": {"type": "match", "name": "comment"}},
        {"accept": null}]);
    let reject = json!([{"xt": {"type": "target", "name": "REJECT"}}]);
    let log = json!([{"xt": {"type": "target", "name": "LOG"}}]);
    let packet = outward(Transport::Ping);
    let all = [
        ("FORWARD", conntrack.clone()),
        ("FORWARD", log),
        ("FORWARD", reject.clone()),
    ];
    assert_eq!(
        found(&ruleset("accept", &all), &packet),
        ["rule 3 of the chain ip filter FORWARD rejects it"]
    );
    let all = [
        ("FORWARD", conntrack),
        ("FORWARD", ours),
        ("FORWARD", reject),
    ];
    assert_eq!(found(&ruleset("drop", &all), &packet), [""; 0]);
}

#[test]
fn firewallds_exception_for_translated_packets_lets_no_other_through() {
    let status = matches(json!({"ct": {"key": "status"}}), "in", "dnat".into());
    let rules = [
        ("FORWARD", json!([status, {"accept": null}])),
        ("FORWARD", json!([{"reject": {"type": "icmpx"}}])),
    ];
    assert_eq!(
        found(&ruleset("accept", &rules), &outward(Transport::Ping)),
        ["rule 2 of the chain ip filter FORWARD rejects it"]
    );
}

#[test]
fn a_rule_that_names_the_interface_and_only_logs_lets_nothing_through() {
    let rules = [("FORWARD", json!([by("oifname", "wattle0"), {"log": null}]))];
    assert_eq!(
        found(&ruleset("drop", &rules), &outward(Transport::Ping)),
        [DROPPED]
    );
}

#[test]
fn jumps_and_gotos_and_returns_are_followed() {
    let packet = outward(Transport::Ping);
    let jump = |to: &str| json!([{"jump": {"target": to}}]);
    let goto = |to: &str| json!([{"goto": {"target": to}}]);
    let verdict = |word: &str| json!([{ word: null }]);
    type Case<'c> = (&'c str, Vec<(&'c str, Value)>, &'c [&'c str]);
    let cases: [Case<'_>; 6] = [
        (
            "drop",
            vec![("FORWARD", jump("user")), ("user", verdict("return"))],
            &[DROPPED],
        ),
        (
            "drop",
            vec![("FORWARD", jump("user")), ("user", verdict("accept"))],
            &[],
        ),
        (
            "accept",
            vec![("FORWARD", jump("user")), ("user", verdict("drop"))],
            &["rule 2 of the chain ip filter user drops it"],
        ),
        // What comes after a goto is not reached.
        (
            "drop",
            vec![
                ("FORWARD", goto("user")),
                ("FORWARD", verdict("accept")),
                ("user", verdict("return")),
            ],
            &[DROPPED],
        ),
        // A chain that calls itself cannot be loaded; here it only has to end.
        (
            "accept",
            vec![("FORWARD", jump("loop")), ("loop", jump("loop"))],
            &[],
        ),
        // Another interface's chain.
        (
            "accept",
            vec![
                (
                    "FORWARD",
                    json!([by("iifname", "docker0"), {"jump": {"target": "d"}}]),
                ),
                ("d", verdict("drop")),
            ],
            &[],
        ),
    ];
    for (policy, rules, expected) in cases {
        assert_eq!(
            found(&ruleset(policy, &rules), &packet),
            expected,
            "{rules:?}"
        );
    }
}

#[test]
fn a_rule_for_some_ports_or_hosts_closes_a_service_and_opens_nothing_for_sure() {
    let web = port("tcp", 443.into());
    let packet = outward(Transport::Tcp);
    let closed = [("FORWARD", json!([web, {"drop": null}]))];
    assert_eq!(found(&ruleset("accept", &closed), &packet), [""; 0]);
    let opened = [("FORWARD", json!([web, {"accept": null}]))];
    assert_eq!(
        found(&ruleset("drop", &opened), &packet),
        ["the chain ip filter FORWARD may drop what no rule accepts"]
    );
    // A ping has no port.
    assert_eq!(
        found(&ruleset("drop", &opened), &outward(Transport::Ping)),
        [DROPPED]
    );
    let host = [(
        "FORWARD",
        json!([ip("daddr", "10.20.0.5", 32), {"drop": null}]),
    )];
    assert_eq!(found(&ruleset("accept", &host), &packet), [""; 0]);
    let whole = [(
        "FORWARD",
        json!([ip("daddr", "10.0.0.0", 8), {"drop": null}]),
    )];
    assert_eq!(
        found(&ruleset("accept", &whole), &packet),
        ["rule 1 of the chain ip filter FORWARD drops it"]
    );
    let exact = outward(Transport::TcpPort(443));
    assert_eq!(found(&ruleset("drop", &opened), &exact), [""; 0]);
    let range = port("tcp", json!({"set": [22, {"range": [400, 500]}]}));
    let opened = [("FORWARD", json!([range, {"accept": null}]))];
    assert_eq!(found(&ruleset("drop", &opened), &exact), [""; 0]);
    assert_eq!(
        found(&ruleset("drop", &opened), &outward(Transport::TcpPort(501))),
        [DROPPED]
    );
}

#[test]
fn a_connection_begins_with_syn_alone_of_the_flags_of_tcp() {
    let flags = |op, mask: &[&str], right: Value| {
        let field = json!({"payload": {"protocol": "tcp", "field": "flags"}});
        let asked = matches(json!({"&": [field, mask]}), op, right);
        [("FORWARD", json!([asked, {"drop": null}]))]
    };
    let all = ["fin", "syn", "rst", "ack"];
    let dropped = ["rule 1 of the chain ip filter FORWARD drops it"];
    for (rules, of_tcp) in [
        (flags("==", &all, "syn".into()), &dropped[..]),
        (flags("!=", &all, "syn".into()), &[]),
        (flags("==", &all, json!(["syn", "ack"])), &[]),
        (flags("==", &["ack"], 0.into()), &dropped),
        (flags("==", &["ack"], "ack".into()), &[]),
    ] {
        let ruleset = ruleset("accept", &rules);
        assert_eq!(found(&ruleset, &outward(Transport::Tcp)), of_tcp);
        assert_eq!(found(&ruleset, &outward(Transport::Ping)), [""; 0]);
    }
}

#[test]
fn a_negated_question_for_a_header_means_no_packet_without_it() {
    let v6 = Packet {
        source: net("fd00:10::/64"),
        destination: net("fd00:20::/64"),
        ..outward(Transport::Tcp)
    };
    let payload = |protocol: &str, field: &str, right: Value| {
        let left = json!({"payload": {"protocol": protocol, "field": field}});
        json!([matches(left, "!=", right), {"drop": null}])
    };
    let listing = |expr: Value| {
        let chain = json!({"family": "inet", "table": "t", "name": "f", "type": "filter",
            "hook": "forward", "prio": 0, "policy": "accept"});
        let rule = json!({"family": "inet", "table": "t", "chain": "f", "handle": 2, "expr": expr});
        json!({"nftables": [{"chain": chain}, {"rule": rule}]})
    };
    let web = Transport::TcpPort(443);
    for (expr, meant, others) in [
        (
            payload("tcp", "dport", 22.into()),
            outward(web),
            outward(Transport::Ping),
        ),
        (
            payload("udp", "dport", 53.into()),
            outward(Transport::UdpPort(54)),
            outward(web),
        ),
        (
            payload("icmp", "type", "redirect".into()),
            outward(Transport::Ping),
            outward(web),
        ),
        (payload("ip", "saddr", "10.30.0.1".into()), outward(web), v6),
        (payload("ip6", "saddr", "fd00::1".into()), v6, outward(web)),
    ] {
        let listing = listing(expr);
        let dropped = ["rule 2 of the chain inet t f drops it"];
        assert_eq!(found(&listing, &meant), dropped, "{listing}");
        assert_eq!(found(&listing, &others), [""; 0], "{listing}");
    }
}

#[test]
fn what_cannot_be_known_from_here_is_unproven() {
    let packet = outward(Transport::Ping);
    let limited = json!([{"limit": {"rate": 5, "per": "second"}}, {"accept": null}]);
    assert_eq!(
        found(&ruleset("drop", &[("FORWARD", limited)]), &packet),
        ["the chain ip filter FORWARD may drop what no rule accepts"]
    );
    let marked = matches(json!({"meta": {"key": "mark"}}), "==", 7.into());
    let dropped = json!([marked, {"drop": null}]);
    assert_eq!(
        found(&ruleset("accept", &[("FORWARD", dropped)]), &packet),
        ["rule 1 of the chain ip filter FORWARD may drop it"]
    );
    let queued = json!([{"queue": {"num": 0}}]);
    assert_eq!(
        found(&ruleset("accept", &[("FORWARD", queued)]), &packet),
        ["rule 1 of the chain ip filter FORWARD may drop it"]
    );
    // A rule after the certain one is never reached.
    let accepted = json!([{"accept": null}]);
    let odd = json!([{"xt": {"type": "match", "name": "geoip"}}, {"drop": null}]);
    let rules = [("FORWARD", accepted), ("FORWARD", odd)];
    assert_eq!(found(&ruleset("accept", &rules), &packet), [""; 0]);
}

#[test]
fn verdict_maps_and_named_sets_are_looked_up() {
    let listing = json!({"nftables": [
        {"chain": {"family": "inet", "table": "fw", "name": "forward", "type": "filter",
            "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "fw", "name": "lan"}},
        {"set": {"family": "inet", "table": "fw", "name": "far", "elem": [
            {"prefix": {"addr": "10.20.0.0", "len": 16}},
            {"elem": {"val": {"range": ["10.30.0.0", "10.30.0.255"]}, "counter": {}}}]}},
        {"rule": {"family": "inet", "table": "fw", "chain": "forward", "handle": 4, "expr": [
            {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
                ["established", {"accept": null}], ["invalid", {"drop": null}]]}}}]}},
        {"rule": {"family": "inet", "table": "fw", "chain": "forward", "handle": 5, "expr": [
            {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [
                ["lan*", {"goto": {"target": "lan"}}], ["eth0", {"drop": null}]]}}}]}},
        {"rule": {"family": "inet", "table": "fw", "chain": "lan", "handle": 6, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                "right": "@far"}}, {"accept": null}]}},
    ]});
    let packet = outward(Transport::Tcp);
    assert_eq!(found(&listing, &packet), [""; 0]);
    let elsewhere = Packet {
        destination: net("10.40.0.0/24"),
        ..packet
    };
    let dropped = ["the chain inet fw forward drops what no rule accepts"];
    assert_eq!(found(&listing, &elsewhere), dropped);
    let from_outside = Packet {
        from: Some("eth0"),
        ..packet
    };
    assert_eq!(
        found(&listing, &from_outside),
        ["rule 5 of the chain inet fw forward drops it"]
    );
}

#[test]
fn each_family_has_chains_of_its_own_and_the_agents_table_is_left_out() {
    let chain = |family: &str, table: &str| {
        json!({"chain": {"family": family, "table": table, "name": "f", "type": "filter",
            "hook": "forward", "prio": 0, "policy": "drop"}})
    };
    let listing = json!({"nftables": [
        chain("ip", "a"), chain("ip6", "b"), chain("inet", "c"), chain("inet", "wattle"),
        chain("bridge", "d"),
    ]});
    let places = |packet: &Packet<'_>| -> Vec<String> {
        let found = Firewall::new(&listing).obstacles(Hook::Forward, packet);
        found.iter().map(Obstacle::place).collect()
    };
    assert_eq!(places(&outward(Transport::Ping)), ["ip a f", "inet c f"]);
    let v6 = Packet {
        source: net("fd00:10::/64"),
        destination: net("fd00:20::/64"),
        ..outward(Transport::Ping)
    };
    assert_eq!(places(&v6), ["ip6 b f", "inet c f"]);
}

#[test]
fn a_source_address_is_replaced_by_the_first_chain_that_does_it() {
    let chain = |name: &str, prio: i64| {
        json!({"chain": {"family": "ip", "table": "nat", "name": name, "type": "nat",
            "hook": "postrouting", "prio": prio, "policy": "accept"}})
    };
    let rule = |chain: &str, handle: u64, expr: Value| {
        json!({"rule": {"family": "ip", "table": "nat", "chain": chain, "handle": handle,
            "expr": expr}})
    };
    let snat = json!([ip("saddr", "10.10.0.0", 24), {"snat": {"addr": "203.0.113.10"}}]);
    let mine = json!([by("oifname", "eth0"), {"masquerade": null}]);
    let all = json!([{"xt": {"type": "target", "name": "MASQUERADE"}}]);
    let listing = json!({"nftables": [
        chain("late", 110), chain("POSTROUTING", 100),
        rule("POSTROUTING", 1, mine), rule("POSTROUTING", 2, snat), rule("late", 3, all),
    ]});
    let found = Firewall::new(&listing).obstacles(Hook::Nat, &outward(Transport::Ping));
    let words: Vec<_> = found.iter().map(Obstacle::to_string).collect();
    assert_eq!(
        words,
        ["rule 2 of the chain ip nat POSTROUTING replaces its source address"]
    );
}

#[test]
fn a_proxy_for_everything_leads_packets_elsewhere_and_one_for_a_port_is_on_purpose() {
    let listing = |family: &str, expr: Value| {
        json!({"nftables": [
            {"chain": {"family": family, "table": "nat", "name": "PREROUTING", "type": "nat",
                "hook": "prerouting", "prio": -100, "policy": "accept"}},
            {"rule": {"family": family, "table": "nat", "chain": "PREROUTING", "handle": 4,
                "expr": expr}},
        ]})
    };
    let told = |expr: Value, packet: &Packet<'_>| {
        let listing = listing("ip", expr);
        let found = Firewall::new(&listing).obstacles(Hook::Redirect, packet);
        found.iter().map(Obstacle::to_string).collect::<Vec<_>>()
    };
    let sure = "rule 4 of the chain ip nat PREROUTING leads it elsewhere";
    for target in [
        json!({"redirect": {"port": 3128}}),
        json!({"dnat": {"addr": "10.10.0.7"}}),
        json!({"xt": {"type": "target", "name": "REDIRECT"}}),
        json!({"xt": {"type": "target", "name": "NETMAP"}}),
    ] {
        let all = json!([by("iifname", "lan0"), target]);
        assert_eq!(told(all, &outward(Transport::Tcp)), [sure]);
        let others = json!([by("iifname", "eth0"), target]);
        assert_eq!(told(others, &outward(Transport::Tcp)), [""; 0]);
        let port = json!([{"match": {"op": "==", "left": {"payload": {"protocol": "tcp",
            "field": "dport"}}, "right": 80}}, target]);
        assert_eq!(told(port, &outward(Transport::Tcp)), [""; 0]);
        let elsewhere = json!([ip("daddr", "198.51.100.0", 24), target]);
        assert_eq!(told(elsewhere, &outward(Transport::Tcp)), [""; 0]);
    }
}

#[test]
fn packets_to_the_host_itself_leave_by_no_interface() {
    let listing = json!({"nftables": [
        {"chain": {"family": "inet", "table": "t", "name": "in", "type": "filter",
            "hook": "input", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 2, "expr": [
            port("udp", json!(51820)), {"accept": null}]}},
    ]});
    let packet = |port| Packet {
        from: Some("eth0"),
        to: None,
        source: net("0.0.0.0/0"),
        destination: net("203.0.113.10/32"),
        transport: Transport::UdpPort(port),
    };
    let count = |port| {
        let firewall = Firewall::new(&listing);
        firewall.obstacles(Hook::Input, &packet(port)).len()
    };
    assert_eq!((count(51820), count(51821)), (0, 1));
}

#[test]
fn whatever_the_hook_a_forwarded_packet_that_is_dropped_there_is_told() {
    let lan = Lan {
        interface: "lan0".to_owned(),
        subnet: net("10.10.0.0/24"),
        address: net("10.10.0.1/24"),
        up: true,
    };
    let found = |family: &str, hook: &str, device: Value, expr: Value| -> Vec<Obstacle> {
        let listing = json!({"nftables": [
            {"chain": {"family": family, "table": "t", "name": "c", "type": "filter", "hook": hook,
                "dev": device, "prio": -300, "policy": "accept"}},
            {"rule": {"family": family, "table": "t", "chain": "c", "handle": 3, "expr": expr}}]});
        let firewall = Firewall::new(&listing);
        let between = firewall.between(&lan, "wattle0", net("10.20.0.0/24"));
        between.into_iter().map(|(_, obstacle)| obstacle).collect()
    };
    let drop = || json!([{"drop": null}]);
    for (family, hook, device) in [
        ("ip", "prerouting", Value::Null),
        ("inet", "postrouting", Value::Null),
        ("netdev", "ingress", json!("lan0")),
        ("netdev", "ingress", json!(["eth0", "wattle0"])),
        ("inet", "ingress", json!("wattle0")),
        ("netdev", "egress", json!("lan0")),
    ] {
        let told = found(family, hook, device, drop());
        assert!(!told.is_empty(), "{family} {hook}");
        assert!(told.iter().all(|obstacle| obstacle.certain));
    }
    assert_eq!(found("netdev", "ingress", json!("eth0"), drop()), []);
    assert_eq!(found("ip6", "prerouting", Value::Null, drop()), []);
    // Before it is known where a packet goes, no rule means those that leave by an interface.
    let by_output = json!([by("oifname", "wattle0"), {"drop": null}]);
    assert_eq!(found("ip", "prerouting", Value::Null, by_output), []);
    // Whether there is a way back, and where an address is, the kernel knows.
    let fib = |result: &str, flags: Value, right: Value| {
        let left = json!({"fib": {"result": result, "flags": flags}});
        json!([matches(left, "==", right), {"drop": null}])
    };
    for harmless in [
        fib("oif", json!(["saddr", "mark", "iif"]), json!(false)),
        fib("type", json!("daddr"), json!("local")),
        fib("type", json!("daddr"), json!("broadcast")),
    ] {
        assert_eq!(found("inet", "prerouting", Value::Null, harmless), []);
    }
    let unicast = fib("type", json!("daddr"), json!("unicast"));
    assert!(!found("inet", "prerouting", Value::Null, unicast).is_empty());
}
