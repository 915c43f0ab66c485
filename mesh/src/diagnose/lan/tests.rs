use serde_json::json;

use super::*;
use crate::{
    host::way::{RoutingRuleKind, Way},
    testing::node_id,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A site with one LAN of each family, and two others.
pub(super) fn served() -> Served {
    let far = |number, name: &str, prefix| FarLan {
        node: node_id(number),
        name: name.parse().unwrap(),
        prefix: net(prefix),
    };
    Served {
        interface: "wattle0".parse().unwrap(),
        port: 51820,
        own: vec![net("10.10.0.0/24")],
        far: vec![
            far(2, "dublin", "10.20.0.0/24"),
            far(3, "cork", "10.30.0.0/24"),
        ],
        unheard: Vec::new(),
        silent: BTreeSet::new(),
        answering: BTreeSet::new(),
        came: BTreeSet::new(),
    }
}

fn lan(interface: &str, subnet: &str, address: &str) -> Lan {
    Lan {
        interface: interface.to_owned(),
        subnet: net(subnet),
        address: net(address),
        up: true,
    }
}

fn route(prefix: &str, device: &str) -> ForeignRoute {
    ForeignRoute {
        prefix: net(prefix),
        metric: 0,
        way: Some(Way {
            device: device.to_owned(),
            gateway: None,
            source: None,
        }),
    }
}

/// A host on which nothing is in the way.
pub(super) fn healthy(served: &Served) -> Facts {
    let lans = vec![lan("lan0", "10.10.0.0/24", "10.10.0.1/24")];
    let routes = vec![route("10.10.0.0/24", "lan0"), route("0.0.0.0/0", "eth0")];
    Facts {
        led: led(served, &lans, &routes),
        lans,
        routes,
        rules: Vec::new(),
        stopped: BTreeSet::new(),
        forwards_v6: false,
        ruleset: Ok(json!({"nftables": []})),
        legacy_unread: None,
        neighbours: BTreeSet::new(),
    }
}

/// What a kernel says that has the mesh's routes and these.
fn led(served: &Served, lans: &[Lan], routes: &[ForeignRoute]) -> Vec<(Question, Led)> {
    let questions = questions(served, lans, routes, &BTreeSet::new());
    let answer = |question: &Question| {
        let own = way::best(question.to, routes);
        let ours = served
            .far
            .iter()
            .find(|far| far.prefix.contains(&question.to));
        let ours = ours.map_or(0, |far| far.prefix.prefix_len());
        match own.filter(|own| own.prefix.prefix_len() > ours) {
            Some(own) => Led::By(own.way.as_ref().unwrap().device.clone()),
            None => Led::By("wattle0".to_owned()),
        }
    };
    questions
        .into_iter()
        .map(|question| (question.clone(), answer(&question)))
        .collect()
}

/// Code, subject and peer of each problem, and whether it is sure.
fn told(served: &Served, facts: &Facts) -> Vec<(ProblemCode, String, Option<NodeId>, LanEffect)> {
    let problems = problems(served, facts);
    assert!(problems.iter().all(|problem| problem.remedy.is_some()));
    problems
        .into_iter()
        .map(|problem| {
            (
                problem.code,
                problem.subject,
                problem.peer,
                problem.lan.unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_healthy_gateway_one_that_stands_by_and_one_that_is_alone_have_no_problem() {
    let site = served();
    assert_eq!(told(&site, &healthy(&site)), []);
    let changes: [fn(&mut Served); 2] = [|site| site.own.clear(), |site| site.far.clear()];
    for change in changes {
        let mut other = served();
        change(&mut other);
        let facts = Facts {
            lans: Vec::new(),
            stopped: ["wattle0".to_owned()].into(),
            legacy_unread: Some("no kernel".to_owned()),
            ..healthy(&served())
        };
        assert_eq!(told(&other, &facts), []);
    }
}

#[test]
fn of_a_host_that_cannot_be_looked_at_nothing_is_said_but_that() {
    let expected = (
        ProblemCode::Firewall,
        "nftables".to_owned(),
        None,
        LanEffect::Unproven,
    );
    let facts = Facts::unread("no netlink".to_owned());
    assert_eq!(told(&served(), &facts), [expected]);
}

#[test]
fn each_thing_that_is_in_the_way_is_one_problem_with_a_remedy() {
    use LanEffect::{Degraded, Unproven};
    type Befall = fn(&mut Facts);
    let site = served();
    let ailments: [(Befall, ProblemCode, &str, LanEffect); 7] = [
        (
            |facts| {
                facts.stopped.insert("lan0".to_owned());
            },
            ProblemCode::Forwarding,
            "lan0",
            Degraded,
        ),
        (
            |facts| facts.lans[0].up = false,
            ProblemCode::LanDown,
            "lan0",
            Degraded,
        ),
        (
            |facts| {
                facts.lans.clear();
                facts.routes.remove(0);
                facts.led.clear();
            },
            ProblemCode::NoLan,
            "10.10.0.0/24",
            Degraded,
        ),
        (
            |facts| facts.legacy_unread = Some("no kernel".to_owned()),
            ProblemCode::Firewall,
            "iptables-legacy",
            Unproven,
        ),
        (
            |facts| facts.ruleset = Err("no nft".to_owned()),
            ProblemCode::Firewall,
            "nftables",
            Unproven,
        ),
        (
            |facts| {
                facts.ruleset = Ok(
                    json!({"nftables": [{"chain": {"family": "ip", "table": "filter",
                    "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0,
                    "policy": "drop"}}]}),
                )
            },
            ProblemCode::Firewall,
            "ip filter FORWARD",
            Degraded,
        ),
        (
            |facts| {
                facts.ruleset = Ok(json!({"nftables": [
                    {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING",
                        "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}},
                    {"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING", "handle": 4,
                        "expr": [{"snat": {"addr": "203.0.113.10"}}]}}]}))
            },
            ProblemCode::Nat,
            "ip nat POSTROUTING rule 4",
            Degraded,
        ),
    ];
    for (befall, code, subject, effect) in ailments {
        let mut facts = healthy(&site);
        befall(&mut facts);
        let expected = (code, subject.to_owned(), None, effect);
        assert_eq!(told(&site, &facts), [expected]);
    }
}

#[test]
fn what_concerns_one_other_site_alone_says_which() {
    let site = served();
    let facts = Facts {
        ruleset: Ok(json!({"nftables": [
            {"chain": {"family": "inet", "table": "mine", "name": "fwd", "type": "filter",
                "hook": "forward", "prio": 0, "policy": "accept"}},
            {"rule": {"family": "inet", "table": "mine", "chain": "fwd", "handle": 7, "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                    "right": {"prefix": {"addr": "10.30.0.0", "len": 24}}}},
                {"drop": null}]}}]})),
        ..healthy(&site)
    };
    let expected = (
        ProblemCode::Firewall,
        "inet mine fwd rule 7".to_owned(),
        Some(node_id(3)),
        LanEffect::Degraded,
    );
    assert_eq!(told(&site, &facts), [expected]);
}

#[test]
fn a_peer_whose_endpoint_is_of_a_family_that_the_host_does_not_speak_is_told() {
    let unheard = |endpoint: &str| Served {
        unheard: vec![Unheard {
            node: node_id(2),
            name: "dublin".parse().unwrap(),
            endpoint: endpoint.parse().unwrap(),
        }],
        ..served()
    };
    let facts = healthy(&served());
    let site = unheard("2001:db8::1");
    let expected = (
        ProblemCode::AddressFamily,
        "2001:db8::1".to_owned(),
        Some(node_id(2)),
        LanEffect::Degraded,
    );
    assert_eq!(told(&site, &facts), [expected]);
    // One that is of the host's family is away for another reason, and so are all without an uplink.
    assert_eq!(told(&unheard("198.51.100.7"), &facts), []);
    let cut_off = Facts {
        routes: vec![route("10.10.0.0/24", "lan0")],
        ..facts
    };
    assert_eq!(told(&site, &cut_off), []);
}

#[test]
fn a_packet_that_another_route_or_rule_leads_astray_is_told_with_what_leads_it() {
    let site = served();
    let usual = healthy(&site);
    let tell = |routes: &[ForeignRoute], change: fn(&mut (Question, Led))| {
        let routes: Vec<_> = usual.routes.iter().chain(routes).cloned().collect();
        let mut led = led(&site, &usual.lans, &routes);
        led.iter_mut().for_each(change);
        let facts = Facts {
            routes,
            led,
            ..usual.clone()
        };
        problems(&site, &facts)
    };
    // A narrower route of the host's own to a part of one LAN.
    let [problem] = &tell(&[route("10.20.0.128/25", "eth1")], |_| ())[..] else {
        panic!("one problem");
    };
    assert_eq!(
        (problem.code, &*problem.subject, problem.peer),
        (ProblemCode::Route, "10.20.0.128/25", Some(node_id(2)))
    );
    assert!(problem.words.contains("leave by eth1"), "{}", problem.words);
    assert!(
        problem
            .remedy
            .as_ref()
            .unwrap()
            .ends_with("ip route del 10.20.0.128/25"),
        "{problem:?}"
    );
    // A routing rule leads all that leaves the LAN elsewhere: one problem, of all sites.
    let [problem] = &tell(&[], |(question, led)| {
        if question.by == "lan0" {
            *led = Led::By("ppp0".to_owned());
        }
    })[..] else {
        panic!("one problem");
    };
    assert_eq!((&*problem.subject, problem.peer), ("10.10.0.0/24", None));
    assert_eq!(
        problem.remedy.as_deref(),
        Some(
            "ip rule add to 10.20.0.0/24 lookup main priority 10; ip rule add to 10.30.0.0/24 \
             lookup main priority 10"
        )
    );
    // What comes in for the LAN goes nowhere, or to the host itself, which may have two addresses.
    let [problem] = &tell(&[], |(question, led)| {
        if question.by == "wattle0" {
            *led = Led::Nowhere("No route to host".to_owned());
        }
    })[..] else {
        panic!("one problem");
    };
    assert_eq!(&*problem.subject, "10.10.0.0/24 from wattle0");
    // Strict rp_filter says what it is, and how it is made loose.
    let [problem] = &tell(&[], |(question, led)| {
        if question.by == "lan0" {
            *led = Led::Filtered;
        }
    })[..] else {
        panic!("one problem");
    };
    assert_eq!(
        problem.remedy.as_deref(),
        Some("sysctl -w net.ipv4.conf.lan0.rp_filter=2")
    );
    let here = tell(&[], |(question, led)| {
        if question.by == "wattle0" {
            *led = Led::Here;
        }
    });
    assert_eq!(here, []);
}

#[test]
fn packets_of_a_lan_that_come_by_another_interface_are_asked_about_as_they_come() {
    let mut site = served();
    site.came = [("lan0", "10.10.0.5"), ("lan1", "10.10.0.6")]
        .map(|(by, host)| (by.to_owned(), host.parse().unwrap()))
        .into();
    let mut facts = healthy(&site);
    assert_eq!(told(&site, &facts), []);
    let (question, led) = facts.led.last_mut().unwrap();
    assert_eq!(
        (&*question.by, question.from),
        ("lan1", "10.10.0.6".parse().unwrap())
    );
    *led = Led::Filtered;
    let [problem] = &problems(&site, &facts)[..] else {
        panic!("one problem");
    };
    assert_eq!(
        (&*problem.subject, problem.remedy.as_deref()),
        (
            "rp_filter of lan1",
            Some("sysctl -w net.ipv4.conf.lan1.rp_filter=2")
        )
    );
}

#[test]
fn a_routing_rule_that_goes_by_marks_is_unproven_until_others_come_before_it() {
    let mut site = served();
    site.far.truncate(1);
    let rule = |priority, kind| RoutingRule {
        priority,
        is_v4: true,
        from: None,
        to: None,
        by: None,
        kind,
    };
    let marks = json!({"nftables": [{"rule": {"family": "inet", "table": "mine", "chain": "pre",
        "expr": [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}]}}]});
    let mut facts = Facts {
        rules: vec![rule(100, RoutingRuleKind::ByMark)],
        ..healthy(&site)
    };
    assert_eq!(told(&site, &facts), [], "nobody sets a mark");
    facts.ruleset = Ok(marks);
    let [problem] = &problems(&site, &facts)[..] else {
        panic!("one problem");
    };
    assert_eq!(
        (problem.code, problem.lan, problem.remedy.as_deref()),
        (
            ProblemCode::Route,
            Some(LanEffect::Unproven),
            Some(
                "ip rule add to 10.10.0.0/24 lookup main priority 10; ip rule add to \
                 10.20.0.0/24 lookup main priority 10"
            )
        )
    );
    let main = ["10.10.0.0/24", "10.20.0.0/24"].map(|lan| RoutingRule {
        to: Some(net(lan)),
        ..rule(10, RoutingRuleKind::Main)
    });
    facts.rules.extend(main);
    assert_eq!(told(&site, &facts), []);
}

#[test]
fn a_routing_rule_that_goes_by_ports_is_unproven_for_the_lans_that_it_may_mean() {
    let mut site = served();
    site.far.truncate(1);
    let told = |by: Option<&str>, from: Option<&str>, to: Option<&str>, is_v4| {
        let rule = RoutingRule {
            by: by.map(str::to_owned),
            priority: 100,
            is_v4,
            from: from.map(net),
            to: to.map(net),
            kind: RoutingRuleKind::ByTraffic,
        };
        let facts = Facts {
            rules: vec![rule],
            ..healthy(&site)
        };
        let problems = problems(&site, &facts).into_iter();
        problems
            .map(|problem| (problem.subject, problem.remedy.unwrap()))
            .collect::<Vec<_>>()
    };
    let fix = |lan: &str| format!("ip rule add to {lan} lookup main priority 10");
    let (near, far) = (fix("10.10.0.0/24"), fix("10.20.0.0/24"));
    let ports = || "ports".to_owned();
    assert_eq!(
        told(None, None, None, true),
        [(ports(), format!("{near}; {far}"))]
    );
    let part = told(None, Some("10.10.0.0/25"), None, true);
    assert_eq!(part, [(ports(), far)]);
    for (by, to) in [(None, Some("10.10.0.7/32")), (Some("wattle0"), None)] {
        assert_eq!(told(by, None, to, true), [(ports(), near.clone())]);
    }
    assert_eq!(told(None, Some("192.168.7.0/24"), None, true), []);
    assert_eq!(told(Some("docker0"), None, None, true), []);
    assert_eq!(told(None, None, None, false), []);
}

#[test]
fn a_subnet_behind_a_router_of_the_site_is_looked_at_as_one_that_the_host_is_in() {
    let mut site = served();
    site.own.push(net("10.11.0.0/24"));
    let mut facts = healthy(&site);
    facts.routes.push(route("10.11.0.0/16", "lan0"));
    let routed = routed(&site.own, &facts.lans, &facts.routes);
    assert_eq!(routed, [lan("lan0", "10.11.0.0/24", "10.11.0.0/24")]);
    facts.lans.extend(routed);
    facts.led = led(&site, &facts.lans, &facts.routes);
    assert_eq!(told(&site, &facts), []);
    let asked = questions(&site, &facts.lans, &facts.routes, &BTreeSet::new());
    assert_eq!(asked.len(), 8, "two LANs, two others, both ways");
    // Without a route to it nobody gets there; the uplink is none.
    facts.routes.pop();
    facts.lans.pop();
    facts.led = led(&site, &facts.lans, &facts.routes);
    assert_eq!(told(&site, &facts)[0].0, ProblemCode::NoLan);
}

#[test]
fn what_drops_before_it_is_known_where_packets_go_is_told_by_their_addresses() {
    let site = served();
    let rules = |family: &str, table: &str, chain: &str| {
        Ok(json!({"nftables": [
            {"chain": {"family": family, "table": table, "name": chain, "type": "filter",
                "hook": "prerouting", "prio": -300, "policy": "accept"}},
            {"rule": {"family": family, "table": table, "chain": chain, "handle": 5, "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                    "right": {"prefix": {"addr": "10.20.0.0", "len": 16}}}},
                {"drop": null}]}}]}))
    };
    for (family, table, chain, remedy) in [
        (
            "inet",
            "mine",
            "pre",
            "nft insert rule inet mine pre position 5 ip saddr 10.10.0.0/24 ip daddr 10.20.0.0/24 \
             accept; nft insert rule inet mine pre position 5 ip saddr 10.20.0.0/24 ip daddr \
             10.10.0.0/24 accept",
        ),
        (
            "ip",
            "raw",
            "PREROUTING",
            "iptables -t raw -I PREROUTING 1 -s 10.10.0.0/24 -d 10.20.0.0/24 -j ACCEPT; iptables \
             -t raw -I PREROUTING 1 -s 10.20.0.0/24 -d 10.10.0.0/24 -j ACCEPT",
        ),
    ] {
        let facts = Facts {
            ruleset: rules(family, table, chain),
            ..healthy(&site)
        };
        let [problem] = &problems(&site, &facts)[..] else {
            panic!("one problem");
        };
        assert_eq!(problem.remedy.as_deref(), Some(remedy));
        assert_eq!(problem.peer, Some(node_id(2)));
    }
}

#[test]
fn only_hosts_of_the_lans_are_asked_for_and_nothing_that_is_to_stay_outside() {
    let mut site = served();
    site.own.push(net("fd00:10::/64"));
    site.far[0].prefix = net("fd00:20::/64");
    let lans = [
        // The site's subnet is wider than what is on the link.
        lan("lan0", "10.10.0.0/16", "10.10.0.1/24"),
        lan("lan1", "fd00:10::/64", "fd00:10::1/64"),
        Lan {
            up: false,
            ..lan("lan2", "10.11.0.0/24", "10.11.0.1/24")
        },
    ];
    let outside: BTreeSet<_> = ["10.30.0.9".parse().unwrap()].into();
    let routes = [route("10.30.0.9/32", "eth0"), route("10.30.0.8/32", "eth0")];
    let asked: Vec<_> = questions(&site, &lans, &routes, &outside)
        .into_iter()
        .map(|asked| (asked.from.to_string(), asked.to.to_string(), asked.by))
        .collect();
    let expected = [
        ("10.10.0.2", "10.30.0.1", "lan0"),
        ("10.10.0.2", "10.30.0.8", "lan0"),
        ("10.30.0.1", "10.10.0.2", "wattle0"),
        ("fd00:10::2", "fd00:20::1", "lan1"),
        ("fd00:20::1", "fd00:10::2", "wattle0"),
    ];
    let expected = expected.map(|(from, to, by)| (from.to_owned(), to.to_owned(), by.to_owned()));
    assert_eq!(asked, expected);
}
