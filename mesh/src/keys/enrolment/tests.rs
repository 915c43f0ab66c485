use uuid::Uuid;
use wattle_wire::secret::Secret;

use super::*;
use crate::testing::{Keys, MESH};

const CHALLENGE_SECRET: [u8; 32] = [7; 32];
const NOW: u64 = 1_800_000_000;

fn challenge_for(purpose: ChallengePurpose) -> KeyChallenge {
    challenge(purpose, &CHALLENGE_SECRET, challenge_nonce(NOW, [3; 24])).unwrap()
}

fn finish(keys: &Keys) -> EnrolFinish {
    let challenge = challenge_for(ChallengePurpose::Enrolment);
    let token = TokenId(Uuid::from_u128(9));
    let statement = keys.statement(1);
    let (wireguard_proof, identity_proof) = prove(
        &challenge,
        token,
        &statement,
        &keys.wireguard,
        &keys.identity,
    );
    EnrolFinish {
        token,
        secret: Secret::new("hush".to_owned()),
        nonce: challenge.nonce,
        statement,
        wireguard_proof,
        identity_proof,
        agent_version: "1.0.0".to_owned(),
        endpoint: None,
    }
}

fn check_at(finish: &EnrolFinish, now: u64) -> Result<Statement, EnrolmentRefused> {
    check(finish, MESH, &CHALLENGE_SECRET, now)
}

#[test]
fn both_proofs_of_the_right_keys_are_believed() {
    let keys = Keys::of(1);
    assert_eq!(
        check_at(&finish(&keys), NOW + 1).map(|statement| statement.wireguard_key),
        Ok(keys.wireguard_key())
    );
}

#[test]
fn a_challenge_can_be_answered_for_two_minutes() {
    let finish = finish(&Keys::of(1));
    assert!(check_at(&finish, NOW + CHALLENGE_LIFETIME_S).is_ok());
    assert_eq!(
        check_at(&finish, NOW + CHALLENGE_LIFETIME_S + 1),
        Err(EnrolmentRefused::Expired)
    );
    assert_eq!(check_at(&finish, NOW - 1), Err(EnrolmentRefused::Expired));
}

#[test]
fn somebody_elses_wireguard_key_is_refused_without_its_private_half() {
    let (mine, theirs) = (Keys::of(1), Keys::of(2));
    let mut forged = finish(&mine);
    let claim = Statement {
        mesh: MESH,
        identity: mine.identity_key(),
        wireguard_key: theirs.wireguard_key(),
        sequence: 1,
        predecessors: vec![],
        unmanaged: false,
    };
    forged.statement = sign_statement(&claim, &mine.identity).unwrap();
    assert_eq!(
        check_at(&forged, NOW),
        Err(EnrolmentRefused::WireguardProof)
    );
}

#[test]
fn who_enrols_cannot_say_that_it_is_unmanaged() {
    let keys = Keys::of(1);
    let mut alone = finish(&keys);
    alone.statement = keys.unmanaged();
    assert_eq!(check_at(&alone, NOW), Err(EnrolmentRefused::Unmanaged));
}

#[test]
fn somebody_elses_identity_is_refused_without_its_private_half() {
    let (mine, theirs) = (Keys::of(1), Keys::of(2));
    let mut forged = finish(&mine);
    forged.statement = theirs.statement(1);
    let (wireguard, identity) = prove(
        &challenge_for(ChallengePurpose::Enrolment),
        forged.token,
        &forged.statement,
        &theirs.wireguard,
        &mine.identity,
    );
    (forged.wireguard_proof, forged.identity_proof) = (wireguard, identity);
    assert_eq!(check_at(&forged, NOW), Err(EnrolmentRefused::IdentityProof));
}

#[test]
fn proofs_hold_for_their_own_challenge_token_and_mesh_only() {
    let keys = Keys::of(1);
    let mut other_token = finish(&keys);
    other_token.token = TokenId(Uuid::from_u128(10));
    assert_eq!(
        check_at(&other_token, NOW),
        Err(EnrolmentRefused::IdentityProof)
    );
    let mut other_nonce = finish(&keys);
    other_nonce.nonce = challenge_nonce(NOW, [4; 24]);
    assert_eq!(
        check_at(&other_nonce, NOW),
        Err(EnrolmentRefused::WireguardProof)
    );
    let other_mesh = MeshId(Uuid::from_u128(77));
    assert_eq!(
        check(&finish(&keys), other_mesh, &CHALLENGE_SECRET, NOW),
        Err(EnrolmentRefused::Statement(InvalidStatement::Mesh))
    );
    let mut altered = finish(&keys);
    altered.statement.statement = altered
        .statement
        .statement
        .replace("\"sequence\":1", "\"sequence\":2");
    assert_eq!(
        check_at(&altered, NOW),
        Err(EnrolmentRefused::Statement(InvalidStatement::Signature))
    );
}

#[test]
fn a21_an_announcement_is_no_statement_and_a_statement_no_announcement() {
    let keys = Keys::of(1);
    let (statement, announcement) = (keys.statement(2), keys.announcing(2, false));
    let said = verify_statement(&statement, MESH);
    assert!(said.is_ok());
    assert_eq!(verify_announcement(&announcement, MESH), said);
    let seen = SignedStatement {
        statement: announcement.announcement,
        signature: announcement.signature,
    };
    assert_eq!(
        verify_statement(&seen, MESH),
        Err(InvalidStatement::Signature)
    );
    let reverse = SignedAnnouncement {
        announcement: statement.statement,
        signature: statement.signature,
    };
    assert_eq!(
        verify_announcement(&reverse, MESH),
        Err(InvalidStatement::Signature)
    );
}

#[test]
fn a23_a_new_key_is_proved_for_its_own_challenge_announcement_and_purpose_alone() {
    let (own, other) = (Keys::of(1), Keys::of(2));
    let rotation = challenge_for(ChallengePurpose::Rotation);
    let of = |challenge: &KeyChallenge, keys: &Keys| {
        prove_announced(challenge, own.announcing(2, false), &keys.wireguard)
    };
    let check = |claim: &KeyAnnouncement, now| {
        check_announced(claim, own.wireguard_key(), &CHALLENGE_SECRET, now)
    };
    let good = of(&rotation, &own);
    assert_eq!(check(&good, NOW + CHALLENGE_LIFETIME_S), Ok(()));
    for now in [NOW - 1, NOW + CHALLENGE_LIFETIME_S + 1] {
        assert_eq!(check(&good, now), Err(EnrolmentRefused::Expired));
    }
    let enrolment = challenge_for(ChallengePurpose::Enrolment);
    let of_enrolment = wireguard_proof(
        ChallengePurpose::Enrolment,
        &enrolment,
        &good.announcement.announcement,
        &own.wireguard,
    );
    for wrong in [
        of(&rotation, &other),
        of(&enrolment, &own),
        KeyAnnouncement {
            wireguard_proof: of_enrolment,
            ..good.clone()
        },
        KeyAnnouncement {
            nonce: challenge_nonce(NOW, [4; 24]),
            ..good.clone()
        },
        KeyAnnouncement {
            announcement: own.announcing(3, false),
            ..good
        },
    ] {
        assert_eq!(check(&wrong, NOW), Err(EnrolmentRefused::WireguardProof));
    }
}
