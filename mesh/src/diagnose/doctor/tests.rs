use std::collections::BTreeSet;

use serde_json::{Value, json};

use wattle_wire::report::ProblemCode;

use super::*;
use crate::{
    diagnose::{firewall::Lan, lan::FarLan},
    host::way::Way,
    testing::node_id,
};

fn healthy() -> Symptoms {
    Symptoms {
        joined: true,
        mover: Mover::Kernel,
        taken: Taken::default(),
        may_administer: true,
        runs: true,
        device: Some(Device {
            kind: DeviceKind::Kernel,
            up: true,
            port: 51820,
            mtu: 1420,
        }),
        no_offload: BTreeSet::new(),
        kernel_release: "6.12.0".to_owned(),
        probes: true,
        served: Served {
            interface: "wattle0".parse().unwrap(),
            port: 51820,
            own: vec!["10.10.0.0/24".parse().unwrap()],
            far: vec![FarLan {
                node: node_id(2),
                name: "frankfurt".parse().unwrap(),
                prefix: "10.20.0.0/24".parse().unwrap(),
            }],
            unheard: Vec::new(),
            silent: BTreeSet::new(),
            answering: BTreeSet::new(),
            came: BTreeSet::new(),
        },
        facts: Facts {
            lans: vec![Lan {
                interface: "lan0".to_owned(),
                subnet: "10.10.0.0/24".parse().unwrap(),
                address: "10.10.0.1/24".parse().unwrap(),
                up: true,
            }],
            routes: Vec::new(),
            rules: Vec::new(),
            stopped: BTreeSet::new(),
            forwards_v6: false,
            ruleset: Ok(
                json!({"nftables": [{"chain": {"family": "inet", "table": "wattle", "name": "forward", "hook": "forward", "policy": "accept"}}]}),
            ),
            legacy_unread: None,
            led: Vec::new(),
            neighbours: BTreeSet::new(),
        },
        large_packets: Vec::new(),
        rp_filter: Some(2),
        uplinks: vec![uplink("eth0", true, 1500)],
        unresolved: Vec::new(),
        coordinator: Some(Ok(1)),
        loses_large_packets: false,
        peers: vec![PeerSymptoms {
            name: "frankfurt".parse().unwrap(),
            unmanaged: false,
            handshake_age_s: Some(5),
            endpoint: None,
            sent_bytes: 1,
            probe: None,
            largest: None,
        }],
        problems: Vec::new(),
        verdicts: None,
    }
}

/// What is told besides what is fine.
fn told(symptoms: &Symptoms) -> Vec<(&'static str, Severity, String)> {
    let findings = diagnose(symptoms)
        .into_iter()
        .filter(|finding| finding.severity != Severity::Fine);
    findings
        .map(|finding| {
            let Cow::Borrowed(check) = finding.check else {
                panic!("a check has a name of its own");
            };
            (check, finding.severity, finding.fix.unwrap_or_default())
        })
        .collect()
}

fn with_rules(rules: &[Value]) -> Symptoms {
    let mut symptoms = healthy();
    let mut all = symptoms.facts.ruleset.clone().unwrap()["nftables"]
        .as_array()
        .unwrap()
        .clone();
    all.extend_from_slice(rules);
    symptoms.facts.ruleset = Ok(json!({"nftables": all}));
    symptoms
}

fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
    json!({"chain": {"family": family, "table": table, "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy}})
}

fn uplink(interface: &str, is_v4: bool, mtu: u32) -> Uplink {
    Uplink {
        interface: interface.to_owned(),
        is_v4,
        mtu,
    }
}

#[test]
fn a_healthy_gateway_has_nothing_to_mend() {
    assert_eq!(told(&healthy()), []);
}

#[test]
fn each_ailment_is_told_with_its_remedy() {
    type Ailment = (&'static str, Severity, fn(&mut Symptoms));
    let ailments: [Ailment; 17] = [
        ("rights", Severity::Fault, |s| s.may_administer = false),
        ("agent", Severity::Fault, |s| s.runs = false),
        ("wireguard", Severity::Fault, |s| s.device = None),
        ("wireguard", Severity::Notice, |s| {
            s.device.as_mut().unwrap().kind = DeviceKind::Userspace
        }),
        ("interface", Severity::Fault, |s| {
            s.device.as_mut().unwrap().up = false
        }),
        ("port", Severity::Fault, |s| {
            s.device.as_mut().unwrap().port = 40_000
        }),
        ("forwarding", Severity::Fault, |s| {
            s.facts.stopped.insert("lan0".to_owned());
        }),
        ("rp_filter", Severity::Notice, |s| s.rp_filter = Some(1)),
        ("mtu", Severity::Notice, |s| {
            s.uplinks = vec![uplink("ppp0", true, 1479)]
        }),
        ("mtu", Severity::Notice, |s| {
            s.uplinks.push(uplink("ppp0", false, 1492));
        }),
        ("large_packets", Severity::Fault, |s| {
            s.large_packets = vec![Problem {
                remedy: Some("ip route change".to_owned()),
                lan: Some(LanEffect::Degraded),
                ..Problem::new(ProblemCode::LargePackets, "none get there")
            }]
        }),
        ("dns", Severity::Fault, |s| {
            s.unresolved = vec![("coordinator.example".to_owned(), "no such name".to_owned())]
        }),
        ("coordinator", Severity::Fault, |s| {
            s.coordinator = Some(Err(Unreached {
                error: "connection refused".to_owned(),
                out_of_time: None,
            }))
        }),
        ("clock", Severity::Notice, |s| {
            s.coordinator = Some(Ok(-3600))
        }),
        ("path", Severity::Notice, |s| s.loses_large_packets = true),
        ("firewall", Severity::Fault, |s| s.taken.table = true),
        ("wireguard", Severity::Fault, |s| {
            s.device = None;
            s.taken.interface = Some("another WireGuard interface".to_owned());
        }),
    ];
    for (check, severity, befall) in ailments {
        let mut symptoms = healthy();
        befall(&mut symptoms);
        let told = told(&symptoms);
        assert!(
            told.iter()
                .any(|(told, how, fix)| *told == check && *how == severity && !fix.is_empty()),
            "{check}: {told:?}"
        );
        assert_eq!(told.len(), 1, "{check}: {told:?}");
    }
}

#[test]
fn a_userspace_device_tells_what_it_does_without() {
    let offload = |befall: fn(&mut Symptoms)| {
        let mut symptoms = healthy();
        befall(&mut symptoms);
        diagnose(&symptoms)
            .into_iter()
            .find(|finding| finding.check == "offload")
            .map(|finding| (finding.severity, finding.detail))
    };
    let userspace: fn(&mut Symptoms) = |s| s.device.as_mut().unwrap().kind = DeviceKind::Userspace;
    assert_eq!(offload(userspace), None);
    let off = |s: &mut Symptoms| {
        s.device.as_mut().unwrap().kind = DeviceKind::Userspace;
        s.no_offload = BTreeSet::from([Offload::Send, Offload::Interface]);
    };
    let (severity, words) = offload(off).unwrap();
    assert_eq!(severity, Severity::Fine);
    assert!(words.ends_with("interface, send"), "{words}");
    let spoilt = |s: &mut Symptoms| {
        s.device.as_mut().unwrap().kind = DeviceKind::Userspace;
        s.kernel_release = "7.1.4-amd64".to_owned();
    };
    let (severity, words) = offload(spoilt).unwrap();
    assert_eq!(severity, Severity::Notice);
    assert!(words.contains("Linux 7.1.4-amd64"), "{words}");
    // The kernel's WireGuard sends no such batches.
    assert_eq!(offload(|s| s.kernel_release = "7.1.4".to_owned()), None);
}

#[test]
fn what_another_program_has_under_the_agents_names_is_named_with_the_remedy() {
    let mut symptoms = healthy();
    symptoms.device = None;
    symptoms.taken = Taken {
        interface: Some("an interface of kind bridge".to_owned()),
        table: true,
    };
    let told = told(&symptoms);
    assert!(
        told.iter()
            .any(|(check, _, fix)| *check == "wireguard" && fix.contains("--interface")),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|(_, _, fix)| fix.contains("nft delete table inet wattle")),
        "{told:?}"
    );
}

#[test]
fn before_a_machine_is_a_node_only_what_it_lacks_is_told() {
    let mut symptoms = healthy();
    symptoms.joined = false;
    symptoms.runs = false;
    symptoms.device = None;
    symptoms.served.far.clear();
    symptoms.facts.ruleset = Ok(json!({"nftables": []}));
    symptoms.coordinator = None;
    symptoms.peers = Vec::new();
    let checks = |symptoms: &Symptoms| -> Vec<_> {
        let told = told(symptoms).into_iter();
        told.map(|(check, severity, _)| (check, severity)).collect()
    };
    let unjoined = ("agent", Severity::Notice);
    assert_eq!(
        checks(&symptoms),
        [unjoined, ("coordinator", Severity::Notice)]
    );
    symptoms.coordinator = Some(Ok(0));
    assert_eq!(checks(&symptoms), [unjoined]);
    symptoms.mover = Mover::Tun;
    assert_eq!(
        checks(&symptoms),
        [unjoined, ("wireguard", Severity::Notice)]
    );
    symptoms.mover = Mover::Nobody;
    assert_eq!(
        checks(&symptoms),
        [unjoined, ("wireguard", Severity::Fault)]
    );
}

#[test]
fn a_certificate_that_is_out_of_time_is_told_as_a_wrong_clock() {
    let early = OutOfTime::Early {
        now: 120,
        from: Some(1_800_000_000),
    };
    let late = OutOfTime::Late {
        now: 1_900_000_000,
        until: None,
    };
    for (out_of_time, words) in [
        (
            early,
            "wrong: it says 1970-01-01 00:02 UTC, which is before",
        ),
        (late, "it says 2030-03-17 17:46 UTC"),
    ] {
        let mut symptoms = healthy();
        symptoms.coordinator = Some(Err(Unreached {
            error: "no TLS connection: certificate not valid yet".to_owned(),
            out_of_time: Some(out_of_time),
        }));
        let findings = diagnose(&symptoms);
        let clock = findings.iter().find(|finding| finding.check == "clock");
        let clock = clock.unwrap();
        assert_eq!(clock.severity, Severity::Fault);
        assert!(clock.detail.contains(words), "{}", clock.detail);
        let reached = findings
            .iter()
            .find(|finding| finding.check == "coordinator");
        assert!(reached.unwrap().detail.contains("not valid yet"));
    }
}

#[test]
fn a_firewall_in_the_way_is_named_with_the_words_of_its_own_tool() {
    let docker = [
        chain("ip", "filter", "FORWARD", "forward", "drop"),
        json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}),
    ];
    let ufw = [
        chain("ip", "filter", "FORWARD", "forward", "drop"),
        chain("ip", "filter", "INPUT", "input", "drop"),
        json!({"chain": {"family": "ip", "table": "filter", "name": "ufw-user-input"}}),
    ];
    let own = [chain("inet", "mine", "fwd", "forward", "drop")];
    let reject = |family: &str, table: &str, chain: &str| {
        json!({"rule": {"family": family,
        "table": table, "chain": chain, "handle": 9, "expr": [{"reject": {"type": "icmpx"}}]}})
    };
    let firewalld = [
        chain("inet", "firewalld", "filter_FORWARD", "forward", "accept"),
        reject("inet", "firewalld", "filter_FORWARD"),
    ];
    let iptables = [
        chain("ip", "filter", "FORWARD", "forward", "accept"),
        reject("ip", "filter", "FORWARD"),
    ];
    for (rules, expected) in [
        (
            &docker[..],
            vec!["iptables -I DOCKER-USER -i wattle0 -j ACCEPT"],
        ),
        (
            &ufw[..],
            vec![
                "ufw route allow in on wattle0",
                "ufw allow 51820/udp",
                "ufw allow in on wattle0 to any port 9587",
            ],
        ),
        (
            &own[..],
            vec!["nft add rule inet mine fwd iifname wattle0 accept"],
        ),
        (
            &firewalld[..],
            vec!["firewall-cmd --permanent --new-zone=wattle"],
        ),
        (
            &iptables[..],
            vec!["iptables -I FORWARD 1 -i wattle0 -j ACCEPT"],
        ),
    ] {
        let told = told(&with_rules(rules));
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for ((check, _, fix), expected) in told.iter().zip(expected) {
            assert!(
                ["firewall", "probes"].contains(check) && fix.starts_with(expected),
                "{fix}"
            );
        }
    }
    // One that was told of us is not in the way, if it lets both directions through.
    let rule = |key: &str| {
        json!({"rule": {"family": "inet", "table": "mine", "chain": "fwd",
        "expr": [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "wattle0"}}, {"accept": null}]}})
    };
    let one_way = [own[0].clone(), rule("iifname")];
    assert_eq!(told(&with_rules(&one_way)).len(), 1);
    let both = [own[0].clone(), rule("iifname"), rule("oifname")];
    assert_eq!(told(&with_rules(&both)), []);
}

#[test]
fn handshakes_are_judged_by_where_peers_are_reached_and_let_in_by_the_zone_of_firewalld() {
    let to = |zone: &str, interface: &str| {
        json!({"rule": {"family": "inet", "table": "firewalld", "chain": "filter_INPUT",
            "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}},
                "right": interface}}, {"goto": {"target": format!("filter_IN_{zone}")}}]}})
    };
    let zone = |name: &str, verdict: Value| {
        let name = format!("filter_IN_{name}");
        [
            json!({"chain": {"family": "inet", "table": "firewalld", "name": &name}}),
            json!({"rule": {"family": "inet", "table": "firewalld", "chain": &name, "handle": 9,
                "expr": [verdict]}}),
        ]
    };
    let mut rules = vec![
        chain("inet", "firewalld", "filter_INPUT", "input", "accept"),
        to("dmz", "wan6"),
        to("trusted", "wattle0"),
        to("trusted", "eth0"),
    ];
    rules.extend(zone("dmz", json!({"reject": {"type": "icmpx"}})));
    rules.extend(zone("trusted", json!({"accept": null})));
    let mut symptoms = with_rules(&rules);
    assert_eq!(told(&symptoms), []);
    symptoms.uplinks = vec![uplink("wan6", false, 1500)];
    let [(check, severity, fix)] = &told(&symptoms)[..] else {
        panic!("one finding");
    };
    assert_eq!((*check, *severity), ("firewall", Severity::Notice));
    assert_eq!(
        fix,
        "firewall-cmd --permanent --zone=dmz --add-port=51820/udp; firewall-cmd --reload"
    );
}

#[test]
fn packets_leave_by_the_interfaces_that_lead_to_the_endpoints() {
    let route = |prefix: &str, device: &str| ForeignRoute {
        prefix: prefix.parse().unwrap(),
        metric: 0,
        way: Some(Way {
            device: device.to_owned(),
            gateway: None,
            source: None,
        }),
    };
    let routes = [
        route("0.0.0.0/0", "eth0"),
        route("198.51.100.0/24", "leased"),
        route("2000::/3", "wan6"),
    ];
    let ways = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().unwrap());
        let ways = ways_out(endpoints, &routes).into_iter();
        ways.map(|(interface, is_v4)| format!("{interface} {is_v4}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ways(&["198.51.100.7", "2001:db8::7"]),
        ["leased true", "wan6 false"]
    );
    assert_eq!(ways(&[]), ["eth0 true"]);
    assert_eq!(ways(&["fd00::1"]), ["eth0 true"], "there is no way");
}

#[test]
fn chains_of_iptables_legacy_are_mended_with_its_own_program() {
    let legacy = |mut object: Value| {
        for (_, inside) in object.as_object_mut().unwrap() {
            inside["legacy"] = true.into();
        }
        object
    };
    let rule = |table: &str, chain: &str, target: &str| {
        let expr = json!([{"xt": {"type": "target", "name": target}}]);
        legacy(json!({"rule": {"family": "ip", "table": table, "chain": chain, "expr": expr}}))
    };
    let [forward, input, docker, nat] = [
        chain("ip", "filter", "FORWARD", "forward", "drop"),
        chain("ip", "filter", "INPUT", "input", "drop"),
        json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}),
        json!({"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "type": "nat",
            "hook": "postrouting", "prio": 100, "policy": "accept"}}),
    ]
    .map(legacy);
    let docker_of_nft =
        json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}});
    for (rules, expected) in [
        (
            vec![forward.clone(), docker_of_nft],
            vec![
                "iptables-legacy -A FORWARD -i wattle0 -j ACCEPT; iptables-legacy -A FORWARD -o \
                 wattle0 -j ACCEPT",
            ],
        ),
        (
            vec![forward.clone(), docker],
            vec![
                "iptables-legacy -I DOCKER-USER -i wattle0 -j ACCEPT; iptables-legacy -I \
                 DOCKER-USER -o wattle0 -j ACCEPT",
            ],
        ),
        (
            vec![
                forward,
                rule("filter", "FORWARD", "LOG"),
                rule("filter", "FORWARD", "REJECT"),
            ],
            vec![
                "iptables-legacy -I FORWARD 2 -i wattle0 -j ACCEPT; iptables-legacy -I FORWARD 2 \
                 -o wattle0 -j ACCEPT",
            ],
        ),
        (
            vec![input],
            vec![
                "iptables-legacy -A INPUT -p udp --dport 51820 -j ACCEPT",
                "iptables-legacy -A INPUT -i wattle0 -p udp --dport 9587 -j ACCEPT; \
                 iptables-legacy -A INPUT -i wattle0 -p tcp --dport 9587 -j ACCEPT",
            ],
        ),
        (
            vec![nat, rule("nat", "POSTROUTING", "MASQUERADE")],
            vec!["iptables-legacy -t nat -I POSTROUTING 1 -o wattle0 -j ACCEPT"],
        ),
    ] {
        let fixes: Vec<_> = told(&with_rules(&rules))
            .into_iter()
            .map(|(.., fix)| fix)
            .collect();
        assert_eq!(fixes, expected);
    }
}

#[test]
fn of_a_rule_that_is_in_the_way_of_one_kind_for_sure_and_of_another_perhaps_the_worst_is_told() {
    let rules = [
        chain("ip", "filter", "FORWARD", "forward", "drop"),
        json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 1,
            "expr": [{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "icmp"}},
                {"xt": {"type": "match", "name": "icmp"}}, {"accept": null}]}}),
    ];
    let told = told(&with_rules(&rules));
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].1, Severity::Fault);
}

#[test]
fn a_rule_that_replaces_the_source_address_of_a_lan_is_named() {
    let nat = json!({"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING",
        "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}});
    let rule = |expr: Value| {
        json!({"rule": {"family": "ip", "table": "nat",
        "chain": "POSTROUTING", "handle": 4, "expr": expr}})
    };
    let masquerade = json!({"xt": {"type": "target", "name": "MASQUERADE"}});
    let by_uplink = json!([{"match": {"op": "==", "left": {"meta": {"key": "oifname"}},
        "right": "eth0"}}, masquerade]);
    assert_eq!(told(&with_rules(&[nat.clone(), rule(by_uplink)])), []);
    let fix = "iptables -t nat -I POSTROUTING 1 -o wattle0 -j ACCEPT".to_owned();
    let snat = json!({"xt": {"type": "target", "name": "SNAT"}});
    // With the address of the tunnel packets get there all the same.
    for (target, severity) in [(masquerade, Severity::Notice), (snat, Severity::Fault)] {
        let everywhere = rule(json!([target]));
        assert_eq!(
            told(&with_rules(&[nat.clone(), everywhere])),
            [("nat", severity, fix.clone())]
        );
    }
}

#[test]
fn a_firewall_that_drops_probes_is_named_unless_the_mesh_wants_none() {
    let input = chain("inet", "mine", "in", "input", "drop");
    let rule = |handle: u64, expr: Value| json!({"rule": {"family": "inet", "table": "mine", "chain": "in", "handle": handle, "expr": expr}});
    let port = |number: u64| json!({"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": number}});
    let tunnel = rule(1, json!([port(51820), {"accept": null}]));
    let told_of_probes = |rules: &[Value], probes: bool| {
        let told = told(&Symptoms {
            probes,
            ..with_rules(rules)
        });
        assert!(
            told.iter()
                .all(|(check, severity, _)| *check == "probes" && *severity == Severity::Notice),
            "{told:?}"
        );
        told.into_iter().map(|(.., fix)| fix).collect::<Vec<_>>()
    };
    let deaf = [input.clone(), tunnel.clone()];
    let fix = "nft add rule inet mine in iifname wattle0 udp dport 9587 accept; \
               nft add rule inet mine in iifname wattle0 tcp dport 9587 accept";
    assert_eq!(told_of_probes(&deaf, true), [fix]);
    assert_eq!(told_of_probes(&deaf, false), [""; 0]);
    assert_eq!(
        told_of_probes(
            &[
                input,
                tunnel,
                rule(2, json!([port(9587), {"accept": null}]))
            ],
            true
        ),
        [""; 0]
    );
    // A rule of its own against them, whatever the chain does with the rest.
    let against = rule(7, json!([port(9587), {"drop": null}]));
    let open = chain("inet", "mine", "in", "input", "accept");
    assert_eq!(
        told_of_probes(&[open.clone(), against.clone()], true),
        [
            "nft insert rule inet mine in position 7 iifname wattle0 udp dport 9587 accept; \
             nft insert rule inet mine in position 7 iifname wattle0 tcp dport 9587 accept"
        ]
    );
    assert_eq!(told_of_probes(&[open, against], false), [""; 0]);
}

#[test]
fn a_missing_table_and_rules_that_cannot_be_seen_are_told() {
    let mut symptoms = healthy();
    symptoms.facts.ruleset = Ok(json!({"nftables": []}));
    symptoms.facts.legacy_unread = Some("no kernel".to_owned());
    let severities: Vec<_> = told(&symptoms)
        .into_iter()
        .map(|(check, severity, _)| (check, severity))
        .collect();
    assert_eq!(
        severities,
        [
            ("firewall", Severity::Notice),
            ("firewall", Severity::Fault)
        ]
    );
}

#[test]
fn a_tunnel_without_answers_says_where_the_packets_go() {
    let mut symptoms = healthy();
    let name = "frankfurt".parse().unwrap();
    symptoms.peers = vec![PeerSymptoms {
        name,
        unmanaged: false,
        handshake_age_s: None,
        endpoint: Some("198.51.100.20:51820".parse().unwrap()),
        sent_bytes: 148,
        probe: None,
        largest: None,
    }];
    let told = told(&symptoms);
    assert!(
        told[0].1 == Severity::Fault && told[0].2.contains("198.51.100.20:51820"),
        "{told:?}"
    );
    // What would be said of an agent there leads nowhere.
    symptoms.peers[0].unmanaged = true;
    let told = self::told(&symptoms);
    assert!(
        told[0].1 == Severity::Notice && told[0].2.contains("newest file"),
        "{told:?}"
    );
}

#[test]
fn a_tunnel_that_works_one_way_or_badly_is_told_whatever_its_handshake_says() {
    for (state, severity) in [
        (EndState::OneWay, Severity::Fault),
        (EndState::Lossy, Severity::Notice),
        (EndState::Slow, Severity::Notice),
        (EndState::Down, Severity::Fault),
    ] {
        let mut symptoms = healthy();
        symptoms.peers[0].endpoint = Some("198.51.100.20:51820".parse().unwrap());
        symptoms.peers[0].probe = Some(ProbeReport {
            state,
            loss_percent: 30,
            round_trip_us: 700_000,
        });
        let told = told(&symptoms);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].0, told[0].1), ("tunnel", severity), "{state:?}");
        symptoms.peers[0].probe.as_mut().unwrap().state = EndState::Up;
        symptoms.peers[0].handshake_age_s = None;
        assert_eq!(self::told(&symptoms), [], "who answers is there");
    }
}

#[test]
fn the_mtu_is_judged_by_the_endpoints_in_use_and_probes_have_their_say() {
    let mtu = |underlay: u32, is_v4: bool, largest: &[u16]| {
        let mut symptoms = healthy();
        symptoms.uplinks = vec![uplink("ppp0", is_v4, underlay)];
        let peer = symptoms.peers[0].clone();
        let with = |size: &u16| PeerSymptoms {
            largest: Some(*size),
            ..peer.clone()
        };
        symptoms.peers = largest.iter().map(with).chain([peer.clone()]).collect();
        let finding = diagnose(&symptoms)
            .into_iter()
            .find(|finding| finding.check == "mtu");
        let finding = finding.unwrap();
        (finding.severity, finding.detail)
    };
    let (v4, v6) = (true, false);
    let fits = "1420 plus 60 of WireGuard fits into the 1492 of ppp0";
    assert_eq!(mtu(1_492, v4, &[]), (Severity::Fine, fits.to_owned()));
    assert_eq!(mtu(1_479, v4, &[]).0, Severity::Notice);
    assert_eq!(mtu(1_492, v6, &[]).0, Severity::Notice);
    assert_eq!(mtu(1_500, v6, &[]).0, Severity::Fine);
    assert_eq!(
        mtu(1_492, v4, &[1_420, 1_420]).1,
        format!("{fits}. Packets of 1420 bytes get to 2 of 2 peers that answer probes")
    );
    assert_eq!(
        mtu(1_492, v4, &[1_420, 1_328]).1,
        format!(
            "{fits}. Packets of 1420 bytes get to 1 of 2 peers that answer probes: to one of the \
             others no more than 1328 do"
        )
    );
}
