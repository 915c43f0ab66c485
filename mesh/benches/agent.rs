//! What one change costs an agent, among many peers: taking in its delta, and planning for it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that cannot go on says so"
)]

use std::collections::BTreeMap;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use uuid::Uuid;
use wattle_mesh::{
    agent::{
        guard::Refused,
        replica::{Received, Replica},
    },
    health::replies::Flows,
    host::{
        desired::{Local, desired},
        plan::plan,
        state::{Desired, Interface, Observed, ObservedPeer, ObservedRoute, ObservedRuleset},
    },
    keys::{node_keys::NodeKeys, psk::exchange::Exchange, rotation::canary::PeerKeys},
};
use wattle_wire::{
    ids::{MeshId, NodeId, Position, SiteId},
    peer::{MeshSettings, Myself, Peer, View},
    probe::HealthSettings,
    psk::PskPolicy,
    report::DeviceKind,
    stream::{StreamMessage, ViewChange},
};

const MESH: MeshId = MeshId(Uuid::from_u128(1));
const SIZES: [u32; 2] = [1_000, 10_000];

fn node_keys(number: u32) -> NodeKeys {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    NodeKeys::new(&seed, &seed, 0).expect("every seed gives keys")
}

fn peer(number: u32) -> Peer {
    let name: wattle_wire::name::Name = format!("site-{number}").parse().unwrap();
    let [_, high, middle, low] = number.to_be_bytes();
    Peer {
        node: NodeId(Uuid::from_u128(u128::from(number))),
        name: name.clone(),
        site_name: name,
        statement: node_keys(number)
            .statement(MESH)
            .expect("a statement can be written"),
        announced: None,
        tunnel_address: [10, 99 + high, middle, low].into(),
        subnets: vec![format!("10.{}.{low}.0/24", 128 + middle).parse().unwrap()],
        endpoint: Some(format!("198.18.{middle}.{low}:51820").parse().unwrap()),
        endpoint_check: None,
        admission: None,
    }
}

/// The same peer, reached at another port.
fn moved(peer: &Peer) -> Peer {
    Peer {
        endpoint: Some("198.18.0.1:4500".parse().unwrap()),
        ..peer.clone()
    }
}

/// The same peer, with another subnet.
fn renumbered(peer: &Peer) -> Peer {
    Peer {
        subnets: vec!["172.16.0.0/24".parse().unwrap()],
        ..peer.clone()
    }
}

/// The replica of node 0, which knows so many peers.
fn replica(peers: u32) -> Replica {
    let myself = node_keys(0);
    let name: wattle_wire::name::Name = "site-0".parse().unwrap();
    let view = View {
        mesh: MeshSettings {
            id: MESH,
            tunnel_prefix: "10.99.0.0/16".parse().unwrap(),
            listen_port: 51820,
            keepalive_s: 25,
            psk: PskPolicy::Prefer,
            rotate_days: 0,
            health: HealthSettings::default(),
        },
        myself: Myself {
            node: NodeId(Uuid::nil()),
            name: name.clone(),
            site: SiteId(Uuid::nil()),
            site_name: name,
            tunnel_address: [10, 99, 0, 0].into(),
            subnets: vec!["192.168.0.0/24".parse().unwrap()],
            endpoint: None,
            keys: None,
        },
        peers: (1..=peers).map(peer).collect(),
    };
    let mut replica = Replica::new(MESH, myself.wireguard_key());
    let snapshot = StreamMessage::Snapshot {
        position: at(1),
        view,
        removed: vec![],
    };
    assert_eq!(
        replica.receive(snapshot, 0),
        Received::Changed { refused: vec![] }
    );
    replica
}

fn at(revision: i64) -> Position {
    Position { epoch: 1, revision }
}

fn delta(peer: Peer) -> StreamMessage {
    StreamMessage::Delta {
        since: at(1),
        position: at(2),
        changes: vec![ViewChange::Peer(peer)],
    }
}

fn wanted(replica: &Replica) -> Desired {
    let local = Local {
        interface: "wattle0".parse().unwrap(),
        node_keys: &node_keys(0),
        addresses: vec![],
    };
    desired(
        replica.known().expect("it has a view"),
        &local,
        &Refused::default(),
        &Exchange::default(),
        &PeerKeys::default(),
    )
}

/// A host that is as it should be.
fn reached(desired: &Desired) -> Observed {
    let peers: BTreeMap<_, _> = desired
        .peers
        .iter()
        .map(|(key, peer)| {
            let found = ObservedPeer {
                endpoint: peer.endpoint,
                keepalive_s: peer.keepalive_s,
                allowed_ips: peer.allowed_ips.clone(),
                ..ObservedPeer::default()
            };
            (*key, found)
        })
        .collect();
    let interface = Interface {
        up: true,
        mtu: desired.mtu,
        addresses: desired.addresses.clone(),
        routes: desired
            .routes
            .iter()
            .map(|(prefix, source)| {
                (
                    *prefix,
                    ObservedRoute {
                        source: *source,
                        mtu: None,
                    },
                )
            })
            .collect(),
        public_key: Some(desired.public_key),
        listen_port: desired.listen_port,
        peers,
        ..Interface::new(DeviceKind::Kernel)
    };
    Observed {
        interface: Some(interface),
        underlay: desired.underlay.clone(),
        forwarding: desired.forwarding.clone(),
        ruleset: ObservedRuleset::Intact(desired.ruleset.clone()),
        flows: Flows::default(),
    }
}

fn one_change(c: &mut Criterion) {
    for size in SIZES {
        let before = replica(size);
        let last = peer(size);
        let mut group = c.benchmark_group("one changed peer");
        group.bench_function(BenchmarkId::new("replica takes in the delta", size), |b| {
            let mut replica = before.clone();
            // The delta and its undoing, so that the replica need not be made anew each time.
            let there = delta(renumbered(&last));
            let back = StreamMessage::Delta {
                since: at(2),
                position: at(1),
                changes: vec![ViewChange::Peer(last.clone())],
            };
            let messages = || (there.clone(), back.clone());
            b.iter_batched(
                messages,
                |(there, back)| (replica.receive(there, 0), replica.receive(back, 0)),
                BatchSize::SmallInput,
            );
        });
        let observed = reached(&wanted(&before));
        for (what, changed) in [("endpoint", moved(&last)), ("subnet", renumbered(&last))] {
            let mut after = before.clone();
            after.receive(delta(changed), 0);
            let desired = wanted(&after);
            assert!(!plan(&desired, &observed).steps.is_empty());
            group.bench_function(
                BenchmarkId::new(format!("plan for its {what}"), size),
                |b| b.iter(|| plan(&desired, &observed)),
            );
        }
        group.bench_function(BenchmarkId::new("what the host should be", size), |b| {
            b.iter(|| wanted(&before))
        });
        group.finish();
    }
}

criterion_group!(benches, one_change);
criterion_main!(benches);
