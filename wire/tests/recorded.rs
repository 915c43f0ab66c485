//! Releases one version apart understand each other: what each of them says is in `recorded`, one file
//! for each, and today's programs lose nothing of it.
//!
//! The file of this version is what it says now. While nobody has this version, a new form is recorded
//! by `WATTLE_RECORD=1 cargo test -p wattle-wire --test recorded`. Of former versions one is kept.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use serde::{
    Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::Value;
use uuid::Uuid;
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{
        EnrolFinish, EnrolStart, Enrolled, KeyChallenge, NewIdentity, Predecessor, SignedStatement,
        Statement,
    },
    ids::{MeshId, NodeId, Position, SiteId, TokenId},
    join::JoinString,
    key::{
        Bytes32, IdentityKey, KemCiphertext, KemKey, OperatorKey, SealedPsk, Signature,
        WireguardKey,
    },
    lock::{Admission, Removal, SignedAdmission, SignedRemoval},
    peer::{EndpointCheck, MeshSettings, Myself, Peer, View},
    probe::HealthSettings,
    psk::{
        GivenPsk, IncomingMessage, MailboxRequest, MailboxResponse, OutgoingMessage, PskMessage,
        PskPolicy, PskStep, SignedPskMessage,
    },
    report::{
        DeviceKind, EndState, Held, HeldBecause, HeldPeer, LanEffect, LinkReport, LostPeer,
        ProbeReport, Problem, ProblemCode, Report, Start,
    },
    rotation::{
        KeyAnnouncement, KeyInPlace, OwnKeys, ReadyPeer, RotationAnswer, RotationStep,
        SignedAnnouncement,
    },
    secret::Secret,
    stream::{ByeReason, StreamMessage, Tombstone, ViewChange},
};

/// Messages by their names.
type Messages = BTreeMap<String, Value>;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn node(number: u128) -> NodeId {
    NodeId(id(number))
}

fn bytes() -> Bytes32 {
    Bytes32::from([3; 32])
}

fn signature() -> Signature {
    Signature::from([4; 64])
}

fn wireguard() -> WireguardKey {
    WireguardKey::try_from([9; 32]).unwrap()
}

fn identity() -> IdentityKey {
    IdentityKey::from([5; 32])
}

fn position() -> Position {
    "1.7".parse().unwrap()
}

fn endpoint() -> Endpoint {
    "203.0.113.10:51820".parse().unwrap()
}

fn statement() -> SignedStatement {
    SignedStatement {
        statement: "{}".to_owned(),
        signature: signature(),
    }
}

fn announcement() -> SignedAnnouncement {
    SignedAnnouncement {
        announcement: "{}".to_owned(),
        signature: signature(),
    }
}

fn challenge() -> KeyChallenge {
    KeyChallenge {
        nonce: bytes(),
        server_key: wireguard(),
    }
}

fn message() -> SignedPskMessage {
    SignedPskMessage {
        message: "{}".into(),
        signature: signature(),
    }
}

fn mesh_settings() -> MeshSettings {
    MeshSettings {
        id: MeshId(id(1)),
        tunnel_prefix: "10.99.0.0/16".parse().unwrap(),
        listen_port: 51820,
        keepalive_s: 25,
        psk: PskPolicy::Require,
        rotate_days: 30,
        health: HealthSettings::default(),
    }
}

fn myself() -> Myself {
    Myself {
        node: node(2),
        name: "dublin".parse().unwrap(),
        site: SiteId(id(3)),
        site_name: "dublin".parse().unwrap(),
        tunnel_address: "10.99.0.1".parse().unwrap(),
        subnets: vec!["10.10.0.0/24".parse().unwrap()],
        endpoint: Some(endpoint()),
        keys: Some(OwnKeys {
            sequence: 1,
            highest: 2,
            announced: Some(2),
            rotate: true,
        }),
    }
}

fn peer() -> Peer {
    Peer {
        node: node(4),
        name: "cork".parse().unwrap(),
        site_name: "cork".parse().unwrap(),
        statement: statement(),
        announced: Some(announcement()),
        tunnel_address: "10.99.0.2".parse().unwrap(),
        subnets: vec!["10.20.0.0/24".parse().unwrap()],
        endpoint: Some(endpoint()),
        endpoint_check: Some(EndpointCheck {
            endpoint: endpoint(),
            by: node(2),
        }),
        admission: Some(SignedAdmission {
            admission: "{}".to_owned(),
            signature: signature(),
        }),
    }
}

fn tombstone() -> Tombstone {
    Tombstone {
        node: node(5),
        removal: Some(SignedRemoval {
            removal: "{}".to_owned(),
            signature: signature(),
        }),
    }
}

fn report() -> Report {
    Report {
        applied: position(),
        device: Some(DeviceKind::Kernel),
        mtu: Some(1420),
        links: vec![LinkReport {
            peer: node(4),
            handshake_age_s: Some(7),
            received_bytes: 1,
            sent_bytes: 2,
            endpoint: Some(endpoint()),
            probe: Some(ProbeReport {
                state: EndState::Up,
                loss_percent: 1,
                round_trip_us: 900,
            }),
        }],
        problems: vec![Problem {
            code: ProblemCode::Firewall,
            subject: "inet filter forward".to_owned(),
            peer: Some(node(4)),
            words: "a rule drops packets".to_owned(),
            remedy: Some("nft list ruleset".to_owned()),
            lan: Some(LanEffect::Degraded),
        }],
        held: Some(Held {
            total: 1,
            peers: vec![HeldPeer {
                node: node(5),
                name: "oslo".parse().unwrap(),
                identity: identity(),
                because: HeldBecause::Lost,
                lost: Some(LostPeer {
                    site_name: "oslo".parse().unwrap(),
                    statement: statement(),
                }),
            }],
        }),
        returned: [node(6)].into(),
        locked: true,
        keys_in_place: vec![KeyInPlace {
            peer: node(4),
            sequence: 2,
            signature: signature(),
        }],
        start: Some(Start {
            number: 3,
            drawn: 4,
        }),
        number: Some(1_799_999_999_000),
    }
}

fn finish() -> EnrolFinish {
    EnrolFinish {
        token: TokenId(id(8)),
        secret: Secret::new("secret".to_owned()),
        nonce: bytes(),
        statement: statement(),
        wireguard_proof: bytes(),
        identity_proof: signature(),
        agent_version: "0.1.0".to_owned(),
        endpoint: Some(endpoint()),
    }
}

fn psk_steps() -> [(&'static str, PskStep); 5] {
    let request = PskStep::Request {
        initiator_key: wireguard(),
        responder_key: wireguard(),
        kem_key: KemKey::from([6; 1184]),
    };
    let offer = PskStep::Offer {
        ciphertext: KemCiphertext::from([7; 1088]),
    };
    [
        ("request", request),
        ("offer", offer),
        ("confirm", PskStep::Confirm { proof: bytes() }),
        ("commit", PskStep::Commit {}),
        ("renew", PskStep::Renew { newest: Some(9) }),
    ]
}

/// Says a message, and reads what another release says in its place: what this one then says is the
/// same, or more.
trait Form {
    fn said(&self) -> Value;
    fn said_again(&self, recorded: Value) -> serde_json::Result<Value>;
}

impl<T: Serialize + DeserializeOwned> Form for T {
    fn said(&self) -> Value {
        serde_json::to_value(self).unwrap()
    }

    fn said_again(&self, recorded: Value) -> serde_json::Result<Value> {
        serde_json::to_value(serde_json::from_value::<T>(recorded)?)
    }
}

/// A join string is no JSON.
struct JoinText(JoinString);

impl Form for JoinText {
    fn said(&self) -> Value {
        self.0.to_string().into()
    }

    fn said_again(&self, recorded: Value) -> serde_json::Result<Value> {
        let text: String = serde_json::from_value(recorded)?;
        let join: JoinString = text.parse().map_err(serde_json::Error::custom)?;
        Ok(join.to_string().into())
    }
}

/// A message of each form, with all that it can hold.
fn forms() -> BTreeMap<String, Box<dyn Form>> {
    let mut forms: BTreeMap<String, Box<dyn Form>> = BTreeMap::new();
    let mut add = |name: &str, form: Box<dyn Form>| {
        assert!(forms.insert(name.to_owned(), form).is_none(), "{name}");
    };
    let join = JoinString {
        urls: vec!["https://coordinator.example:8443".to_owned()],
        mesh: MeshId(id(1)),
        site: SiteId(id(3)),
        pins: vec![bytes()],
        token: TokenId(id(8)),
        secret: Secret::new("secret".to_owned()),
    };
    add("join string", Box::new(JoinText(join)));
    let start = EnrolStart {
        token: TokenId(id(8)),
        secret: Secret::new("secret".to_owned()),
    };
    add("enrol start", Box::new(start));
    add("enrol challenge", Box::new(challenge()));
    add("enrol finish", Box::new(finish()));
    let enrolled = Enrolled {
        mesh: MeshId(id(1)),
        node: node(2),
        name: "dublin".parse().unwrap(),
        site: "dublin".parse().unwrap(),
        site_id: SiteId(id(3)),
        generation: 1,
    };
    add("enrolled", Box::new(enrolled));
    let stated = Statement {
        mesh: MeshId(id(1)),
        identity: identity(),
        wireguard_key: wireguard(),
        sequence: 2,
        predecessors: vec![Predecessor {
            identity: identity(),
            signature: signature(),
        }],
        unmanaged: true,
    };
    add("statement", Box::new(stated));
    let new_identity = NewIdentity {
        node: node(2),
        statement: statement(),
    };
    add("new identity", Box::new(new_identity));
    let snapshot = StreamMessage::Snapshot {
        position: position(),
        view: View {
            mesh: mesh_settings(),
            myself: myself(),
            peers: vec![peer()],
        },
        removed: vec![tombstone()],
    };
    let delta = StreamMessage::Delta {
        since: position(),
        position: position(),
        changes: vec![
            ViewChange::Peer(peer()),
            ViewChange::PeerRemoved(tombstone()),
            ViewChange::Myself(myself()),
            ViewChange::Mesh(mesh_settings()),
        ],
    };
    let heartbeat = StreamMessage::Heartbeat {
        position: position(),
    };
    for (name, streamed) in [
        ("snapshot", snapshot),
        ("delta", delta),
        ("heartbeat", heartbeat),
        ("mail", StreamMessage::MessagesWaiting),
    ] {
        add(&format!("stream {name}"), Box::new(streamed));
    }
    for reason in [
        ByeReason::Revoked,
        ByeReason::Superseded,
        ByeReason::Shutdown,
    ] {
        let bye = StreamMessage::Bye { reason };
        add(&format!("stream bye {reason:?}"), Box::new(bye));
    }
    add("report", Box::new(report()));
    // Each of these is a word in a report or in what is told of the mesh.
    let codes = vec![
        ProblemCode::Configuration,
        ProblemCode::Refused,
        ProblemCode::NotAdmitted,
        ProblemCode::Underlay,
        ProblemCode::NotApplied,
        ProblemCode::Unreadable,
        ProblemCode::PresharedKey,
        ProblemCode::KeyRotation,
        ProblemCode::State,
        ProblemCode::Forwarding,
        ProblemCode::Firewall,
        ProblemCode::Nat,
        ProblemCode::Route,
        ProblemCode::NoLan,
        ProblemCode::LanDown,
        ProblemCode::AddressFamily,
        ProblemCode::ReturnRoute,
        ProblemCode::Clock,
        ProblemCode::Endpoint,
        ProblemCode::OldDevice,
        ProblemCode::LargePackets,
        ProblemCode::Other,
    ];
    add("words of problems", Box::new(codes));
    let states = vec![
        EndState::Up,
        EndState::Lossy,
        EndState::Slow,
        EndState::OneWay,
        EndState::Down,
    ];
    add("words of ends", Box::new(states));
    let reasons = vec![
        HeldBecause::Removed,
        HeldBecause::Lost,
        HeldBecause::NotAdmitted,
    ];
    add("words of held peers", Box::new(reasons));
    add(
        "words of devices",
        Box::new(vec![DeviceKind::Kernel, DeviceKind::Userspace]),
    );
    add(
        "words of LANs",
        Box::new(vec![LanEffect::Unproven, LanEffect::Degraded]),
    );
    add(
        "words of preshared keys",
        Box::new(vec![PskPolicy::Require, PskPolicy::Prefer]),
    );
    let admission = Admission {
        mesh: MeshId(id(1)),
        operator: OperatorKey::from([2; 32]),
        identity: identity(),
        prefixes: ["10.99.0.2/32".parse().unwrap()].into(),
        signed_at: 1_799_999_999,
        ends_at: Some(1_800_000_999),
    };
    add("admission", Box::new(admission));
    let removal = Removal {
        mesh: MeshId(id(1)),
        operator: OperatorKey::from([2; 32]),
        node: node(5),
        identity: identity(),
        signed_at: 1_799_999_999,
    };
    add("removal", Box::new(removal));
    let outgoing = OutgoingMessage {
        to: node(4),
        message: message(),
    };
    let request = MailboxRequest {
        leave: vec![outgoing],
        taken: vec![1],
    };
    add("mailbox request", Box::new(request));
    let incoming = IncomingMessage {
        id: 1,
        from: node(4),
        message: message(),
    };
    let given = GivenPsk {
        id: 2,
        from: node(7),
        made_ms: 1_799_999_999_000,
        sealed: SealedPsk::from([8; 80]),
    };
    let response = MailboxResponse {
        messages: vec![incoming],
        given: vec![given],
        more: true,
    };
    add("mailbox response", Box::new(response));
    for (name, step) in psk_steps() {
        let said = PskMessage {
            mesh: MeshId(id(1)),
            from: node(2),
            to: node(4),
            round: 3,
            step,
        };
        add(&format!("psk {name}"), Box::new(said));
    }
    let announced = KeyAnnouncement {
        announcement: announcement(),
        nonce: bytes(),
        wireguard_proof: bytes(),
    };
    for (name, step) in [
        ("prepare", RotationStep::Prepare {}),
        ("announce", RotationStep::Announce(announced)),
        ("done", RotationStep::Done(statement())),
        ("withdraw", RotationStep::Withdraw {}),
    ] {
        add(&format!("rotation {name}"), Box::new(step));
    }
    let answer = RotationAnswer {
        ready: vec![ReadyPeer {
            node: node(4),
            signature: signature(),
        }],
        challenge: Some(challenge()),
    };
    add("rotation answer", Box::new(answer));
    forms
}

/// Whether a value has all that another one has.
fn has_all(value: &Value, recorded: &Value) -> bool {
    match (value, recorded) {
        (Value::Object(value), Value::Object(recorded)) => recorded
            .iter()
            .all(|(key, recorded)| value.get(key).is_some_and(|value| has_all(value, recorded))),
        (Value::Array(value), Value::Array(recorded)) => {
            let mut pairs = value.iter().zip(recorded);
            value.len() == recorded.len() && pairs.all(|(value, recorded)| has_all(value, recorded))
        }
        _ => value == recorded,
    }
}

/// A message as a version says it that has one thing more to say everywhere. What is a whole form of its
/// own (an enum, a map of names) stays.
fn with_news(mut message: Value) -> Value {
    match &mut message {
        Value::Object(fields) => {
            fields
                .values_mut()
                .for_each(|field| *field = with_news(field.take()));
            if fields.len() > 1 {
                fields.insert("news".to_owned(), 1.into());
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| *item = with_news(item.take())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    message
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded")
}

#[test]
fn what_this_version_says_is_recorded() {
    let said: Messages = forms()
        .iter()
        .map(|(name, form)| (name.clone(), form.said()))
        .collect();
    let file = folder().join(concat!(env!("CARGO_PKG_VERSION"), ".json"));
    if env::var_os("WATTLE_RECORD").is_some() {
        fs::write(&file, serde_json::to_string_pretty(&said).unwrap() + "\n").unwrap();
    }
    let recorded: Messages = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(said, recorded);
}

#[test]
fn what_each_recorded_version_says_is_understood_whole() {
    let forms = forms();
    let mut versions = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let recorded: Messages = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (name, recorded) in recorded {
            let form = &forms[&name];
            let again = form.said_again(with_news(recorded.clone())).unwrap();
            assert!(
                has_all(&again, &recorded),
                "{}: {name}: {again}",
                path.display()
            );
        }
        versions += 1;
    }
    assert!((1..=2).contains(&versions), "this version and one before");
}
