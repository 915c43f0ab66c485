//! What fuzzers run: each takes any bytes, and must neither panic nor break its promise. `fuzz/`
//! has a program for each, and its corpus.

mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};
use wattle_wire::{
    endpoint::Endpoint, enrol::SignedStatement, ids::NodeId, join::JoinString, key::WireguardKey,
    rotation::SignedAnnouncement, stream::StreamMessage, subnet::Subnet,
};

use crate::{
    agent::{
        admission::Operator,
        guard::{Guard, Surroundings},
        replica::{Known, Replica, prefixes},
        underlay::Purpose,
    },
    host::{
        desired::{Local, desired},
        interface::InterfaceName,
        plan::{Plan, plan},
        ruleset::Ruleset,
        state::{Desired, DesiredPeer, DesiredPsk, Family, Observed},
        way::{ForeignRoute, Way},
    },
    keys::{
        enrolment as proofs,
        psk::{Psk, exchange::Exchange},
        rotation::canary::PeerKeys,
    },
    testing::{Keys, MESH, node_keys_of},
};

pub use self::requests::{claims, enrolment, mailbox, report};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// The targets by the names of their folders.
pub const TARGETS: [(&str, Target); 10] = [
    ("join_string", join_string),
    ("prefix", prefix),
    ("endpoint", endpoint),
    ("stream", stream),
    ("plan", plan_of),
    ("announcement", announcement),
    ("mailbox", mailbox),
    ("enrolment", enrolment),
    ("claims", claims),
    ("report", report),
];

/// A join string that is read is written the same again. Its content is tried without its checksum,
/// too, which no fuzzer guesses.
pub fn join_string(data: &[u8]) {
    let reads_back = |join: &JoinString| assert_eq!(join.to_string().parse().as_ref(), Ok(join));
    if let Ok(join) = String::from_utf8_lossy(data).parse() {
        reads_back(&join);
    }
    if let Ok(join) = serde_json::from_slice::<JoinString>(data)
        && !join.urls.is_empty()
    {
        reads_back(&join);
    }
}

/// A prefix that is taken is canonical, of no special range, and what a host may route.
pub fn prefix(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(subnet) = Subnet::from_str(&text) else {
        return;
    };
    assert_eq!(subnet.to_string(), text);
    let net = subnet.net();
    assert_eq!(net, net.trunc());
    assert!(net.prefix_len() >= 8);
    let ip = net.addr();
    assert!(!ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified());
    assert_eq!(Subnet::try_from(net), Ok(subnet));
}

/// An endpoint that is taken is unicast with a port, and is read back.
pub fn endpoint(data: &[u8]) {
    let Ok(endpoint) = Endpoint::from_str(&String::from_utf8_lossy(data)) else {
        return;
    };
    let socket = endpoint.socket();
    assert!(
        socket.port() != 0
            && !socket.ip().is_loopback()
            && !socket.ip().is_multicast()
            && !socket.ip().is_unspecified()
    );
    assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
}

/// What a node announces, signed by it. It is read as what it says or refused, and it is never a
/// statement, nor is a statement with this text an announcement.
pub fn announcement(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let node_keys = node_keys_of(1);
    let [announced, stated] = [proofs::ANNOUNCEMENT, proofs::STATEMENT]
        .map(|purpose| node_keys.sign(&[purpose, text.as_bytes()].concat()));
    let announcement = |signature| SignedAnnouncement {
        announcement: text.to_string(),
        signature,
    };
    let statement = |signature| SignedStatement {
        statement: text.to_string(),
        signature,
    };
    let signed = announcement(announced);
    let read = proofs::verify_announcement(&signed, MESH);
    if let Ok(said) = &read {
        assert_eq!(said.identity, node_keys.identity_key());
        assert_eq!(proofs::announced(&signed).as_ref(), Some(said));
    }
    assert_eq!(proofs::verify_statement(&statement(stated), MESH), read);
    assert!(proofs::verify_statement(&statement(announced), MESH).is_err());
    assert!(proofs::verify_announcement(&announcement(stated), MESH).is_err());
}

/// Messages of a coordinator, one on each line, for a host with the lock and one without.
pub fn stream(data: &[u8]) {
    let messages: Vec<StreamMessage> = data
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let operators = Operator::new(&[1; 32])
        .map(|operator| BTreeSet::from([operator.key()]))
        .ok();
    for operators in [None, operators] {
        let fresh = || Replica::new(MESH, Keys::of(1).wireguard_key()).locked_by(operators.clone());
        let mut replica = fresh();
        for message in &messages {
            let before = replica.position();
            replica.receive(message.clone(), 0);
            assert!(replica.position() >= before, "nothing leads back");
            let (Some(known), Some(stored)) = (replica.known(), replica.stored()) else {
                continue;
            };
            holds_together(known);
            is_within_limits(known);
            let mut restored = fresh();
            assert_eq!(restored.restore(stored), Ok(vec![]), "what is kept is good");
            assert_eq!(restored.known(), Some(known));
            assert!(replica.problems().all(|problem| !problem.words.is_empty()));
        }
    }
}

/// No key and no address belongs to two.
fn holds_together(known: &Known) {
    let own: Vec<IpNet> = known
        .myself
        .subnets
        .iter()
        .map(|subnet| subnet.net())
        .collect();
    let mut claims: Vec<(IpNet, NodeId)> = prefixes(known.myself.tunnel_address, &own)
        .map(|prefix| (prefix, known.myself.node))
        .collect();
    claims.extend(known.peers.values().flat_map(|known| {
        let node = known.peer.node;
        prefixes(known.peer.tunnel_address, &known.peer.subnets).map(move |prefix| (prefix, node))
    }));
    claims.sort();
    assert!(
        claims.windows(2).all(|two| !two[0].0.contains(&two[1].0)),
        "{claims:?}"
    );
    let keys: BTreeSet<_> = known
        .peers
        .values()
        .map(|known| known.statement.wireguard_key)
        .collect();
    assert!(keys.len() == known.peers.len() && !keys.contains(&Keys::of(1).wireguard_key()));
}

/// What reaches the kernel is what the guard lets through.
fn is_within_limits(known: &Known) {
    let network = IpNet::from(IpAddr::from([203, 0, 113, 1]));
    let coordinator = IpAddr::from([198, 18, 0, 2]);
    let way = Way {
        device: "eth0".to_owned(),
        gateway: Some(IpAddr::from([203, 0, 113, 254])),
        source: None,
    };
    let surroundings = Surroundings {
        networks: vec![network],
        underlay: [(coordinator, Purpose::Coordinator)].into(),
        routes: vec![ForeignRoute {
            prefix: IpNet::V4(Ipv4Net::default()),
            metric: 0,
            way: Some(way),
        }],
    };
    let refused = Guard::default().screen(known, &surroundings, 1_800_000_000);
    let Ok(interface) = "wattle0".parse() else {
        return;
    };
    let local = Local {
        interface,
        node_keys: &node_keys_of(1),
        addresses: vec![network],
    };
    let wanted = desired(
        known,
        &local,
        &refused,
        &Exchange::default(),
        &PeerKeys::default(),
    );
    for prefix in wanted.peers.values().flat_map(|peer| &peer.allowed_ips) {
        assert!(
            prefix.prefix_len() == 32 || Subnet::try_from(*prefix).is_ok(),
            "{prefix}"
        );
        assert!(
            !prefix.contains(&network)
                && (!prefix.contains(&coordinator)
                    || prefix.prefix_len() < 32 && wanted.underlay.contains_key(&coordinator)),
            "{prefix}"
        );
    }
    let host = carried_out(Observed::default(), &plan(&wanted, &Observed::default()));
    let again = plan(&wanted, &host);
    assert!(
        again
            .steps
            .iter()
            .all(|step| step.change.of_peer().is_some())
            || again.steps.is_empty(),
        "{again:?}"
    );
}

/// A host that was on its way to one state, was stopped after any step and is to be in another,
/// gets there, and stays there.
pub fn plan_of(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut host = Observed::default();
    for _ in 0..3 {
        let (first, second) = (state(&mut bytes), state(&mut bytes));
        let mut begun = plan(&first, &host);
        begun
            .steps
            .truncate(usize::from(bytes.next().unwrap_or(u8::MAX)));
        host = carried_out(host, &begun);
        host = carried_out(host.clone(), &plan(&second, &host));
        assert_eq!(plan(&second, &host), Plan::default());
        let found: Vec<_> = host
            .interface
            .iter()
            .flat_map(|interface| interface.peers.values().flat_map(|peer| &peer.allowed_ips))
            .collect();
        assert_eq!(
            found.iter().collect::<BTreeSet<_>>().len(),
            found.len(),
            "a prefix belongs to one"
        );
    }
}

fn carried_out(host: Observed, plan: &Plan) -> Observed {
    plan.steps
        .iter()
        .fold(host, |host, step| host.after(&step.change))
}

/// What a host should be, as some bytes say: four peers, who share eight prefixes.
fn state(bytes: &mut impl Iterator<Item = u8>) -> Desired {
    let mut next = || bytes.next().unwrap_or_default();
    let mut free: BTreeSet<u8> = (0..8).collect();
    let mut peers: BTreeMap<WireguardKey, DesiredPeer> = BTreeMap::new();
    for number in 2..6u8 {
        let (shape, held) = (next(), next());
        let (true, Ok(name)) = (shape & 1 == 1, format!("site-{number}").parse()) else {
            continue;
        };
        let (taken, left) = free.iter().partition(|bit| held >> **bit & 1 == 1);
        free = left;
        let taken: BTreeSet<u8> = taken;
        let peer = DesiredPeer {
            name,
            endpoint: (shape & 2 == 2)
                .then(|| SocketAddr::from(([203, 0, 113, shape >> 6], 51820))),
            keepalive_s: if shape & 4 == 4 { 25 } else { 0 },
            allowed_ips: taken.into_iter().map(lan).collect(),
            psk: if shape & 8 == 8 {
                DesiredPsk::Key(Psk::new([shape >> 5; 32]))
            } else {
                DesiredPsk::Any
            },
            anew: false,
        };
        peers.insert(Keys::of(u64::from(number)).wireguard_key(), peer);
    }
    let shape = next();
    let interface = machine_interface();
    let remote: BTreeSet<IpNet> = peers
        .values()
        .flat_map(|peer| peer.allowed_ips.iter().copied())
        .collect();
    Desired {
        interface: interface.clone(),
        public_key: Keys::of(if shape & 1 == 1 { 1 } else { 9 }).wireguard_key(),
        listen_port: if shape & 2 == 2 { 51820 } else { 4444 },
        mtu: if shape & 4 == 4 { 1420 } else { 1280 },
        addresses: [IpNet::from(IpAddr::from([10, 99, 0, shape >> 6]))].into(),
        peers,
        underlay: (shape & 32 == 32)
            .then(|| {
                let way = Way {
                    device: format!("eth{}", shape >> 7),
                    gateway: None,
                    source: None,
                };
                (IpAddr::from([10, 0, 0, 7]), way)
            })
            .into_iter()
            .collect(),
        routes: remote
            .iter()
            .map(|prefix| {
                (
                    *prefix,
                    (shape & 8 == 8).then_some(IpAddr::from([10, 1, 0, 1])),
                )
            })
            .collect(),
        forwarding: if shape & 16 == 16 {
            [Family::V4].into()
        } else {
            BTreeSet::new()
        },
        ruleset: Ruleset {
            node: NodeId(uuid::Uuid::nil()),
            interface,
            local: BTreeSet::new(),
            remote,
        },
    }
}

fn lan(number: u8) -> IpNet {
    IpNet::from(IpAddr::from([10, number, 0, 1]))
}

fn machine_interface() -> InterfaceName {
    "wattle0"
        .parse()
        .unwrap_or_else(|_| unreachable!("it is a name"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_corpus_of_each_target_keeps_its_promise() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../fuzz/corpus")
                .join(name);
            let inputs: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(
                inputs.len() >= 5,
                "{} has {} inputs",
                folder.display(),
                inputs.len()
            );
            for input in inputs {
                let data = fs::read(&input).unwrap();
                assert!(
                    std::panic::catch_unwind(|| target(&data)).is_ok(),
                    "{}",
                    input.display()
                );
            }
        }
    }
}
