//! Keys and records for tests, the same at each run.
#![expect(clippy::unwrap_used, reason = "these keys are good")]
#![cfg_attr(fuzzing, expect(dead_code, reason = "fuzzers need few of them"))]

use std::collections::BTreeMap;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chrono::DateTime;
use uuid::Uuid;
use wattle_wire::{
    admin::{NodeState, SiteSpec},
    enrol::{KeyChallenge, SignedStatement, Statement},
    ids::{MeshId, NodeId, Position, SiteId},
    key::{IdentityKey, WireguardKey},
    name::Name,
    peer::{MeshSettings, View},
    probe::HealthSettings,
    psk::PskPolicy,
    report::Problem,
    rotation::SignedAnnouncement,
    stream::StreamMessage,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{
    config::{
        directory::{Directory, NodeRecord, RecordChange, SiteRecord},
        feed::{Feed, Next},
        view,
    },
    keys::{
        enrolment::{self, ChallengePurpose},
        node_keys::{NodeKeys, StoredNodeKeys},
    },
};

pub(crate) const CHALLENGE_SECRET: [u8; 32] = [7; 32];

/// A coordinator's challenge for a new key, made at this second.
pub(crate) fn challenge_of(now_unix_s: u64) -> KeyChallenge {
    let nonce = enrolment::challenge_nonce(now_unix_s, [3; 24]);
    enrolment::challenge(ChallengePurpose::Rotation, &CHALLENGE_SECRET, nonce).unwrap()
}

pub(crate) const MESH: MeshId = MeshId(Uuid::from_u128(0xa1));

/// The keys of the node with a number.
pub(crate) struct Keys {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) wireguard: StaticSecret,
}

impl Keys {
    pub(crate) fn of(number: u64) -> Self {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        Self {
            identity: Ed25519KeyPair::from_seed_unchecked(&seed).unwrap(),
            wireguard: StaticSecret::from(seed),
        }
    }

    pub(crate) fn identity_key(&self) -> IdentityKey {
        let bytes: [u8; 32] = self.identity.public_key().as_ref().try_into().unwrap();
        IdentityKey::from(bytes)
    }

    pub(crate) fn wireguard_key(&self) -> WireguardKey {
        WireguardKey::try_from(PublicKey::from(&self.wireguard).to_bytes()).unwrap()
    }

    pub(crate) fn statement(&self, sequence: u64) -> SignedStatement {
        self.stating(sequence, false)
    }

    /// The statement of a node without an agent.
    pub(crate) fn unmanaged(&self) -> SignedStatement {
        self.stating(1, true)
    }

    pub(crate) fn stating(&self, sequence: u64, unmanaged: bool) -> SignedStatement {
        enrolment::sign_statement(&self.saying(sequence, unmanaged), &self.identity).unwrap()
    }

    pub(crate) fn announcing(&self, sequence: u64, unmanaged: bool) -> SignedAnnouncement {
        enrolment::sign_announcement(&self.saying(sequence, unmanaged), &self.identity).unwrap()
    }

    fn saying(&self, sequence: u64, unmanaged: bool) -> Statement {
        Statement {
            mesh: MESH,
            identity: self.identity_key(),
            wireguard_key: self.wireguard_key(),
            sequence,
            predecessors: vec![],
            unmanaged,
        }
    }
}

/// The machine with the keys of a number.
pub(crate) fn node_keys_of(number: u64) -> NodeKeys {
    let keys = Keys::of(number);
    let identity = Zeroizing::new(keys.identity.to_pkcs8().unwrap().as_ref().to_vec());
    let wireguard = Zeroizing::new(keys.wireguard.to_bytes());
    NodeKeys::restore(&StoredNodeKeys {
        identity,
        wireguard,
        sequence: 1,
        since: 0,
        next: None,
        issued: 1,
        predecessors: vec![],
        successor: None,
    })
    .unwrap()
}

pub(crate) fn node_id(number: u64) -> NodeId {
    NodeId(Uuid::from_u128(u128::from(number)))
}

/// A site that is asked for otherwise.
pub(crate) fn respecified(
    mut site: SiteRecord,
    change: impl FnOnce(&mut SiteSpec),
) -> RecordChange {
    change(&mut site.spec);
    RecordChange::Site(site)
}

/// Site and node of a number: LAN `10.<number>.0.0/24` (from 99 on elsewhere), tunnel address
/// `10.99.0.<number>`.
pub(crate) fn node_record(number: u64) -> (SiteRecord, NodeRecord) {
    let keys = Keys::of(number);
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    let subnet = if number < 99 {
        format!("10.{number}.0.0/24")
    } else {
        format!("172.{}.{low}.0/24", 16 + high)
    };
    let name: Name = format!("site-{number}").parse().unwrap();
    let site = SiteRecord {
        id: SiteId(Uuid::from_u128(u128::from(number) << 64)),
        spec: SiteSpec {
            name: name.clone(),
            description: String::new(),
            labels: BTreeMap::new(),
            endpoint: Some(
                format!("203.0.{}.{low}:51820", 113 + u32::from(high))
                    .parse()
                    .unwrap(),
            ),
            subnets: vec![subnet.parse().unwrap()],
        },
        tunnel_address: format!("10.99.{high}.{low}").parse().unwrap(),
        created_at: DateTime::UNIX_EPOCH,
    };
    let node = NodeRecord {
        id: node_id(number),
        site: site.id,
        name,
        name_follows_site: true,
        state: NodeState::Active,
        tunnel_address: site.tunnel_address,
        identity_key: keys.identity_key(),
        wireguard_key: keys.wireguard_key(),
        statement: keys.statement(1),
        highest_sequence: 1,
        announced: None,
        rotate_since: None,
        admission: None,
        endpoint: None,
        endpoint_check: None,
        agent_version: Some("0".to_owned()),
        unmanaged: None,
        generation: 1,
        enrolled_at: DateTime::UNIX_EPOCH,
    };
    (site, node)
}

/// The same node without an agent.
pub(crate) fn unmanaged_record(number: u64) -> NodeRecord {
    NodeRecord {
        statement: Keys::of(number).unmanaged(),
        ..node_record(number).1
    }
}

/// A mesh of the nodes 1 to `count`, each of its own site.
pub(crate) fn directory_of(count: u64) -> Directory {
    let mesh = MeshSettings {
        id: MESH,
        tunnel_prefix: "10.99.0.0/16".parse().unwrap(),
        listen_port: 51820,
        keepalive_s: 25,
        psk: PskPolicy::Require,
        rotate_days: 0,
        health: HealthSettings::default(),
    };
    let mut directory = Directory::new(mesh);
    for (site, node) in (1..=count).map(node_record) {
        directory.apply(&RecordChange::Site(site));
        directory.apply(&RecordChange::Node(node));
    }
    directory
}

/// A whole view, as a coordinator's first word.
pub(crate) fn snapshot(view: View) -> StreamMessage {
    StreamMessage::Snapshot {
        position: Position {
            epoch: 1,
            revision: 1,
        },
        view,
        removed: vec![],
    }
}

/// What the coordinator sends to a node; `None` when there is nothing to send.
pub(crate) fn next_message(
    feed: &Feed,
    node: NodeId,
    since: Option<Position>,
) -> Option<StreamMessage> {
    match feed.next(node, since) {
        Next::Delta(since) => {
            let changed = feed.changed_since(since);
            Some(feed.delta(&changed, feed.audience(&changed, node)))
        }
        Next::Snapshot => {
            let removed = feed.directory().tombstones().collect();
            Some(StreamMessage::Snapshot {
                position: feed.position(),
                view: view::view(feed.directory(), node)?,
                removed,
            })
        }
        Next::Current | Next::Ahead(_) | Next::NotAMember => None,
    }
}

/// What problems say.
pub(crate) fn words(problems: impl Iterator<Item = Problem>) -> Vec<String> {
    problems.map(|problem| problem.words).collect()
}
