//! What nodes and strangers send to a coordinator, and to each other through it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use wattle_wire::{
    admin::LinkState,
    enrol::{EnrolFinish, EnrolStart, NODE_TOKEN_LIFETIME_S, NODE_TOKEN_TYPE, NewIdentity},
    ids::{NodeId, TokenId},
    key::{KemCiphertext, KemKey, Signature},
    psk::{MailboxRequest, MailboxResponse, PskPolicy},
    report::{Problem, Report, SUMMARY_S},
    text::is_unseen,
};
use zeroize::Zeroizing;

use crate::{
    agent::{
        replica::Replica,
        reporting::{Reporting, fit_problems},
    },
    config::{directory::RecordChange, view},
    health::{
        link::{EndRecord, LinkRecord, end_state},
        tracker::TrackedLinks,
    },
    keys::{
        enrolment::{self as proofs, ChallengePurpose},
        node_token,
        psk::{
            Kem, KemSecret, PURPOSE,
            exchange::Exchange,
            mailbox::{MailboxReply, Means, PskMailbox},
        },
    },
    testing::{
        CHALLENGE_SECRET, Keys, MESH, directory_of, node_id, node_keys_of, node_record, snapshot,
        unmanaged_record,
    },
};

const NOW: u64 = 1_800_000_000;
/// The node that reads, between two peers with an agent: it asks one and answers the other.
const OWN: u64 = 2;
const PEERS: [u64; 3] = [1, 3, UNMANAGED];
const UNMANAGED: u64 = 4;

/// The answers of a coordinator to requests of a mailbox, one on each line.
///
/// They are taken unsigned, as they are, and with each message signed by the peer that it says it is
/// of. What nobody signed changes no key, and what is kept reads back.
pub fn mailbox(data: &[u8]) {
    let node_keys = node_keys_of(OWN);
    let mut directory = directory_of(UNMANAGED - 1);
    directory.apply(&RecordChange::Site(node_record(UNMANAGED).0));
    directory.apply(&RecordChange::Node(unmanaged_record(UNMANAGED)));
    let mut replica = Replica::new(MESH, node_keys.wireguard_key());
    let Some(view) = view::view(&directory, node_id(OWN)) else {
        return;
    };
    replica.receive(snapshot(view), 0);
    let Some(known) = replica.known() else { return };

    let mut mailbox = PskMailbox::default();
    for (response, now) in lines::<MailboxResponse>(data).zip(NOW..) {
        let means = Means {
            node_keys: &node_keys,
            now,
            kem: &AnyKem,
        };
        let [unsigned, signed] = [false, true].map(|is_signed| {
            let mut response = response.clone();
            for message in &mut response.messages {
                let peer = PEERS
                    .into_iter()
                    .find(|peer| node_id(*peer) == message.from);
                let text = message.message.message.as_bytes();
                message.message.signature = match peer.filter(|_| is_signed) {
                    Some(peer) => node_keys_of(peer).sign(&[PURPOSE, text].concat()),
                    None => Signature::from([0; 64]),
                };
            }
            response
        });
        for (response, may_agree) in [(unsigned, false), (response, true), (signed, true)] {
            mailbox.tick(known, &means, BTreeSet::new());
            keep(&mut mailbox);
            let request = mailbox.next_request().unwrap_or_default();
            assert!(request.leave.len() <= MailboxRequest::MOST_MESSAGES);
            assert!(request.taken.len() <= MailboxRequest::MOST_MESSAGES);
            let before = agreed(mailbox.exchange());
            mailbox.take_in(
                &request,
                MailboxReply::Response(response),
                Some(known),
                &means,
            );
            keep(&mut mailbox);
            assert!(mailbox.problem().is_none(), "{:?}", mailbox.problem());
            assert!(may_agree || agreed(mailbox.exchange()) == before);
        }
    }
}

/// Keeps what is to be kept, which reads back as it was written.
fn keep(mailbox: &mut PskMailbox) {
    let Some(exchange) = mailbox.to_keep() else {
        return;
    };
    let kept = serde_json::to_string(&exchange).ok();
    let read = kept.as_deref().map(serde_json::from_str::<Exchange>);
    let read = read.and_then(Result::ok);
    assert_eq!(
        read.and_then(|read| serde_json::to_string(&read).ok()),
        kept
    );
    mailbox.kept(Ok(()));
}

/// The keys with the peers that have an agent.
fn agreed(exchange: &Exchange) -> BTreeMap<u64, Option<[u8; 32]>> {
    let peers = PEERS.into_iter().filter(|peer| *peer != UNMANAGED);
    let key = |peer| exchange.key(node_id(peer), PskPolicy::Prefer);
    peers
        .map(|peer| (peer, key(peer).map(|key| *key.reveal())))
        .collect()
}

/// ML-KEM-768. Which random numbers it takes makes no difference to any promise.
struct AnyKem;

impl Kem for AnyKem {
    #[expect(clippy::disallowed_methods, reason = "a fuzzer is no decision")]
    fn generate(&self) -> Option<(KemSecret, KemKey)> {
        let secret = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let key = secret.encapsulation_key().ok()?.key_bytes().ok()?;
        let key: [u8; 1184] = key.as_ref().try_into().ok()?;
        Some((KemSecret(Arc::new(secret)), key.into()))
    }

    #[expect(clippy::disallowed_methods, reason = "a fuzzer is no decision")]
    fn encapsulate(&self, key: &KemKey) -> Option<(KemCiphertext, Zeroizing<[u8; 32]>)> {
        let key = EncapsulationKey::new(&ML_KEM_768, key.as_bytes()).ok()?;
        let (ciphertext, secret) = key.encapsulate().ok()?;
        let ciphertext: [u8; 1088] = ciphertext.as_ref().try_into().ok()?;
        let secret = secret.as_ref().try_into().ok()?;
        Some((ciphertext.into(), Zeroizing::new(secret)))
    }
}

/// What a machine sends to become a node, and a node to become another identity.
///
/// A statement that is proved as it should be is taken as what it says, or refused. With anything
/// else changed, it is refused.
pub fn enrolment(data: &[u8]) {
    // It has nothing to be checked but the token, which is the database's part.
    let _ = serde_json::from_slice::<EnrolStart>(data);
    if let Ok(new) = serde_json::from_slice::<NewIdentity>(data)
        && let Ok(said) = proofs::verify_statement(&new.statement, MESH)
    {
        assert_eq!(proofs::sequence(&new.statement), Some(said.sequence));
        assert!(proofs::is_or_was(&said, said.identity));
    }
    let Ok(mut finish) = serde_json::from_slice::<EnrolFinish>(data) else {
        return;
    };
    let check = |finish: &EnrolFinish, now| proofs::check(finish, MESH, &CHALLENGE_SECRET, now);
    let _ = check(&finish, NOW);

    let (keys, node_keys) = (Keys::of(1), node_keys_of(1));
    let nonce = proofs::challenge_nonce(NOW, [3; 24]);
    let purposes = [ChallengePurpose::Enrolment, ChallengePurpose::Rotation];
    let [Some(challenge), Some(other)] =
        purposes.map(|purpose| proofs::challenge(purpose, &CHALLENGE_SECRET, nonce))
    else {
        return;
    };
    let text = &finish.statement.statement;
    finish.statement.signature = node_keys.sign(&[proofs::STATEMENT, text.as_bytes()].concat());
    finish.nonce = nonce;
    let prove = |finish: &mut EnrolFinish, challenge| {
        let (token, statement) = (finish.token, &finish.statement);
        let proofs = proofs::prove(challenge, token, statement, &keys.wireguard, &keys.identity);
        (finish.wireguard_proof, finish.identity_proof) = proofs;
    };
    prove(&mut finish, &other);
    assert!(check(&finish, NOW).is_err(), "proved for another purpose");
    prove(&mut finish, &challenge);
    let Ok(said) = check(&finish, NOW) else {
        return;
    };
    assert_eq!(
        serde_json::from_str(&finish.statement.statement).ok(),
        Some(said.clone())
    );
    assert_eq!((said.mesh, said.identity), (MESH, keys.identity_key()));
    assert_eq!(said.wireguard_key, keys.wireguard_key());
    assert!(said.predecessors.is_empty() && !said.unmanaged);
    assert!(check(&finish, NOW - 1).is_err() && check(&finish, NOW + 3600).is_err());
    let of_another = EnrolFinish {
        token: TokenId(Uuid::from_u128(finish.token.0.as_u128() ^ 1)),
        ..finish.clone()
    };
    assert!(check(&of_another, NOW).is_err(), "proved for another token");
    let mut longer = finish;
    longer.statement.statement.push(' ');
    assert!(check(&longer, NOW).is_err(), "another text");
}

/// The token of a node: the bytes as a whole token, and as the claims that a node has signed. Only
/// what the node says of itself, for this mesh and for this moment, lets it in.
pub fn claims(data: &[u8]) {
    let node_keys = node_keys_of(1);
    let is_signed = |token: &str| node_token::is_signed(token, node_keys.identity_key(), MESH);
    if let Ok(token) = str::from_utf8(data) {
        let _ = node_token::claims(token).map(|_| is_signed(token));
    }
    let header = format!(r#"{{"alg":"EdDSA","typ":"{NODE_TOKEN_TYPE}"}}"#);
    let [header, payload] = [header.as_bytes(), data].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{header}.{payload}");
    let by = |number| {
        let signature = node_keys_of(number).sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_bytes()))
    };
    let (token, of_another) = (by(1), by(2));
    let Some(claims) = node_token::claims(&token) else {
        return;
    };
    assert!(!is_signed(&of_another));
    let now = NOW.cast_signed();
    if !(is_signed(&token) && node_token::is_good(&claims, MESH, 1, now)) {
        return;
    }
    assert_eq!(
        (claims.iss, claims.aud, claims.generation),
        (claims.sub, MESH, 1)
    );
    assert!((0..=NODE_TOKEN_LIFETIME_S).contains(&(claims.exp - claims.iat)));
    assert!(!node_token::is_good(&claims, MESH, 2, now));
    let long = 2 * NODE_TOKEN_LIFETIME_S;
    assert!(
        [now - long, now + long]
            .iter()
            .all(|then| !node_token::is_good(&claims, MESH, 1, *then))
    );
}

/// Reports of a node, one on each line. A report reads back; what was told is not told again, and
/// nothing is left untold; problems fit;
/// and a link is up only if one of its ends says so.
pub fn report(data: &[u8]) {
    let mut reporting = Reporting::default();
    let mut links = TrackedLinks::default();
    for (report, second) in lines::<Report>(data).zip(0..) {
        let json = serde_json::to_vec(&report).unwrap_or_default();
        assert_eq!(serde_json::from_slice(&json).ok(), Some(report.clone()));

        let fit = fit_problems(report.problems.iter().cloned());
        assert!(fit.len() <= Report::MOST_PROBLEMS);
        for Problem {
            subject,
            words,
            remedy,
            ..
        } in &fit
        {
            let remedy = remedy.as_deref().unwrap_or_default();
            for (text, longest) in [
                (&**subject, Problem::LONGEST_SUBJECT),
                (&**words, Problem::LONGEST_WORDS),
                (remedy, Problem::LONGEST_REMEDY),
            ] {
                assert!(text.chars().count() <= longest && !text.contains(is_unseen));
            }
        }
        assert_eq!(fit_problems(fit.iter().cloned()), fit);

        // A node has one entry for each of its peers.
        let entries: BTreeMap<_, _> = report.links.iter().map(|link| (link.peer, *link)).collect();
        let full = Report {
            links: entries.values().copied().collect(),
            number: None,
            ..report
        };
        let now = Duration::from_secs(second);
        if let Some(due) = reporting.due(full.clone(), now) {
            reporting.told(&due, full.links.len(), now);
        }
        assert_eq!(reporting.due(full.clone(), now), None, "all was told");
        let later = now + Duration::from_secs(SUMMARY_S);
        assert_eq!(reporting.due(full.clone(), later), Some(full));

        judge(&mut links, &entries.into_iter().collect::<Vec<_>>(), second);
    }
}

/// Takes in what a node says of its links, as if each peer said what its neighbour in the report
/// says.
fn judge(
    links: &mut TrackedLinks,
    said: &[(NodeId, wattle_wire::report::LinkReport)],
    second: u64,
) {
    let at = |second: u64| DateTime::UNIX_EPOCH + TimeDelta::seconds(second.cast_signed());
    let record = |link: &wattle_wire::report::LinkReport| EndRecord {
        state: end_state(link),
        probed: link.probe.is_some(),
        ever: link.handshake_age_s.is_some(),
        since: at(second),
    };
    let others = said.iter().skip(1).map(Some).chain([None]);
    for ((peer, link), other) in said.iter().zip(others) {
        let pair = (node_id(OWN).min(*peer), node_id(OWN).max(*peer));
        let ends = [Some(record(link)), other.map(|(_, link)| record(link))];
        let record = LinkRecord {
            ends,
            recorded: None,
        };
        let (began, now): (DateTime<Utc>, _) = (at(0), at(second));
        links.take(vec![(pair, record)], None, began, now);
        let status = links.judge(pair, [false; 2], now);
        let works = ends.map(|end| end.is_some_and(|end| end.state.works()));
        assert!(
            status.state != LinkState::Up || works.contains(&true),
            "{status:?}"
        );
    }
}

/// The values of JSON, one on each line; what is none is passed over.
fn lines<T: serde::de::DeserializeOwned>(data: &[u8]) -> impl Iterator<Item = T> {
    data.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}
