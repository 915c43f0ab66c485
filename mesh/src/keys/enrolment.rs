//! Who may become a node: the proofs of enrolment, made by the agent and checked by the
//! coordinator.
//!
//! The coordinator keeps no state between the two requests of an enrolment: its ephemeral key is
//! derived from a secret of the mesh and the number used once, which carries the time at which it
//! was made.

use aws_lc_rs::{
    digest, hmac,
    signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey},
};
use thiserror::Error;
use wattle_wire::{
    enrol::{EnrolFinish, Predecessor, SignedStatement, Statement},
    ids::{MeshId, TokenId},
    key::{Bytes32, IdentityKey, Signature, WireguardKey},
    rotation::SignedAnnouncement,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// Seconds for which a challenge may be answered.
pub const CHALLENGE_LIFETIME_S: u64 = 120;

// What a key signs or authenticates begins with its purpose, so that nothing made for one purpose
// serves another.
const STATEMENT: &[u8] = b"wattle statement v1\0";
const ANNOUNCEMENT: &[u8] = b"wattle announcement v1\0";
const SUCCESSOR: &[u8] = b"wattle successor v1\0";
const CHALLENGE: &[u8] = b"wattle enrol challenge v1\0";
const WIREGUARD_PROOF: &[u8] = b"wattle enrol wireguard v1\0";
const IDENTITY_PROOF: &[u8] = b"wattle enrol identity v1\0";

/// Why a statement is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidStatement {
    #[error("the statement cannot be read")]
    Unreadable,
    #[error("the statement is not signed by the identity that it names")]
    Signature,
    #[error("the statement was made for another mesh")]
    Mesh,
    #[error("the statement names a former identity that did not sign for the next one")]
    Predecessor,
}

/// Why an enrolment is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EnrolmentRefused {
    #[error(transparent)]
    Statement(#[from] InvalidStatement),
    #[error("a new node has no former identities")]
    Predecessors,
    #[error("the statement says `unmanaged`, but a node that enrols has an agent")]
    Unmanaged,
    #[error("the challenge has expired; start again")]
    Expired,
    #[error("the proof of the WireGuard key is wrong")]
    WireguardProof,
    #[error("the proof of the identity key is wrong")]
    IdentityProof,
}

/// Writes and signs a statement.
pub fn sign_statement(
    statement: &Statement,
    identity: &Ed25519KeyPair,
) -> Result<SignedStatement, serde_json::Error> {
    let text = serde_json::to_string(statement)?;
    let signature = sign(identity, &[STATEMENT, text.as_bytes()].concat());
    Ok(SignedStatement {
        statement: text,
        signature,
    })
}

/// Writes and signs what a node will state once it has taken up its next key.
pub fn sign_announcement(
    statement: &Statement,
    identity: &Ed25519KeyPair,
) -> Result<SignedAnnouncement, serde_json::Error> {
    let text = serde_json::to_string(statement)?;
    let signature = sign(identity, &[ANNOUNCEMENT, text.as_bytes()].concat());
    Ok(SignedAnnouncement {
        announcement: text,
        signature,
    })
}

/// An identity's word for the one that is to follow it.
pub(crate) fn sign_successor(
    mesh: MeshId,
    successor: IdentityKey,
    identity: &Ed25519KeyPair,
) -> Signature {
    sign(identity, &successor_message(mesh, successor))
}

/// Reads a statement that its identity has signed, and each of its predecessors for the one that
/// followed.
///
/// # Errors
///
/// [`InvalidStatement`] when it cannot be read, is of another mesh, or a signature is not that of
/// the identity which it names.
pub fn verify_statement(
    signed: &SignedStatement,
    mesh: MeshId,
) -> Result<Statement, InvalidStatement> {
    verify_text(STATEMENT, &signed.statement, &signed.signature, mesh)
}

/// Reads an announcement as [`verify_statement`] reads a statement. Neither passes for the other.
///
/// # Errors
///
/// Those of [`verify_statement`].
pub fn verify_announcement(
    signed: &SignedAnnouncement,
    mesh: MeshId,
) -> Result<Statement, InvalidStatement> {
    verify_text(ANNOUNCEMENT, &signed.announcement, &signed.signature, mesh)
}

fn verify_text(
    purpose: &[u8],
    text: &str,
    signature: &Signature,
    mesh: MeshId,
) -> Result<Statement, InvalidStatement> {
    let statement: Statement =
        serde_json::from_str(text).map_err(|_| InvalidStatement::Unreadable)?;
    let message = [purpose, text.as_bytes()].concat();
    if !verify(statement.identity, &message, signature) {
        return Err(InvalidStatement::Signature);
    }
    if statement.mesh != mesh {
        return Err(InvalidStatement::Mesh);
    }
    let successors = statement
        .predecessors
        .iter()
        .skip(1)
        .map(|predecessor| predecessor.identity)
        .chain([statement.identity]);
    let signed = |(
        Predecessor {
            identity,
            signature,
        },
        successor,
    ): (&Predecessor, IdentityKey)| {
        verify(*identity, &successor_message(mesh, successor), signature)
    };
    let is_short = statement.predecessors.len() <= Statement::MOST_PREDECESSORS;
    if is_short && statement.predecessors.iter().zip(successors).all(signed) {
        Ok(statement)
    } else {
        Err(InvalidStatement::Predecessor)
    }
}

/// Whether the node of a statement, which was verified, is or was this identity.
pub fn is_or_was(statement: &Statement, identity: IdentityKey) -> bool {
    statement.identity == identity
        || statement
            .predecessors
            .iter()
            .any(|predecessor| predecessor.identity == identity)
}

/// The number of a statement that was verified before.
pub fn sequence(signed: &SignedStatement) -> Option<u64> {
    serde_json::from_str::<Statement>(&signed.statement)
        .ok()
        .map(|statement| statement.sequence)
}

/// What an announcement that was verified before says.
pub fn announced(signed: &SignedAnnouncement) -> Option<Statement> {
    serde_json::from_str(&signed.announcement).ok()
}

/// A number used once that carries the time at which it was made.
pub fn challenge_nonce(now_unix_s: u64, random: [u8; 24]) -> Bytes32 {
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&now_unix_s.to_be_bytes());
    nonce[8..].copy_from_slice(&random);
    Bytes32::from(nonce)
}

/// The coordinator's ephemeral key of a challenge. `None` in the one case of 2^252 in which it
/// would be of low order: draw another number.
pub fn challenge_key(challenge_secret: &[u8; 32], nonce: Bytes32) -> Option<WireguardKey> {
    WireguardKey::try_from(
        PublicKey::from(&challenge_private_key(challenge_secret, nonce)).to_bytes(),
    )
    .ok()
}

/// The two proofs of an enrolment, made by the agent: of the WireGuard key and of the identity.
pub fn prove(
    nonce: Bytes32,
    server_key: WireguardKey,
    token: TokenId,
    statement: &SignedStatement,
    wireguard: &StaticSecret,
    identity: &Ed25519KeyPair,
) -> (Bytes32, Signature) {
    let shared = wireguard.diffie_hellman(&PublicKey::from(*server_key.as_bytes()));
    let proof = Bytes32::from(authenticate(
        shared.as_bytes(),
        &wireguard_message(nonce, statement),
    ));
    (
        proof,
        sign(identity, &identity_message(nonce, token, statement, proof)),
    )
}

/// Checks all that an enrolment claims, but the token: that is the database's part.
///
/// # Errors
///
/// [`EnrolmentRefused`], with the first claim that does not hold.
pub fn check(
    finish: &EnrolFinish,
    mesh: MeshId,
    challenge_secret: &[u8; 32],
    now_unix_s: u64,
) -> Result<Statement, EnrolmentRefused> {
    let mut made = [0; 8];
    made.copy_from_slice(&finish.nonce.as_bytes()[..8]);
    let made = u64::from_be_bytes(made);
    if made > now_unix_s || now_unix_s - made > CHALLENGE_LIFETIME_S {
        return Err(EnrolmentRefused::Expired);
    }
    let statement = verify_statement(&finish.statement, mesh)?;
    if !statement.predecessors.is_empty() {
        return Err(EnrolmentRefused::Predecessors);
    }
    if statement.unmanaged {
        return Err(EnrolmentRefused::Unmanaged);
    }
    let shared = challenge_private_key(challenge_secret, finish.nonce)
        .diffie_hellman(&PublicKey::from(*statement.wireguard_key.as_bytes()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
    hmac::verify(
        &key,
        &wireguard_message(finish.nonce, &finish.statement),
        finish.wireguard_proof.as_bytes(),
    )
    .map_err(|_| EnrolmentRefused::WireguardProof)?;
    let message = identity_message(
        finish.nonce,
        finish.token,
        &finish.statement,
        finish.wireguard_proof,
    );
    if !verify(statement.identity, &message, &finish.identity_proof) {
        return Err(EnrolmentRefused::IdentityProof);
    }
    Ok(statement)
}

fn challenge_private_key(challenge_secret: &[u8; 32], nonce: Bytes32) -> StaticSecret {
    StaticSecret::from(authenticate(
        challenge_secret,
        &[CHALLENGE, nonce.as_bytes()].concat(),
    ))
}

fn successor_message(mesh: MeshId, successor: IdentityKey) -> Vec<u8> {
    [SUCCESSOR, mesh.0.as_bytes(), successor.as_bytes()].concat()
}

fn wireguard_message(nonce: Bytes32, statement: &SignedStatement) -> Vec<u8> {
    [
        WIREGUARD_PROOF,
        nonce.as_bytes(),
        digest_of(statement).as_ref(),
    ]
    .concat()
}

fn identity_message(
    nonce: Bytes32,
    token: TokenId,
    statement: &SignedStatement,
    proof: Bytes32,
) -> Vec<u8> {
    [
        IDENTITY_PROOF,
        nonce.as_bytes(),
        token.0.as_bytes(),
        digest_of(statement).as_ref(),
        proof.as_bytes(),
    ]
    .concat()
}

fn digest_of(statement: &SignedStatement) -> digest::Digest {
    digest::digest(&digest::SHA256, statement.statement.as_bytes())
}

fn authenticate(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut tag = [0; 32];
    tag.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref());
    tag
}

pub(crate) fn sign(identity: &Ed25519KeyPair, message: &[u8]) -> Signature {
    let mut signature = [0; 64];
    signature.copy_from_slice(identity.sign(message).as_ref());
    Signature::from(signature)
}

pub(crate) fn verify(identity: IdentityKey, message: &[u8], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, identity.as_bytes())
        .verify(message, signature.as_bytes())
        .is_ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wattle_wire::secret::Secret;

    use super::*;
    use crate::testing::{Keys, MESH};

    const CHALLENGE_SECRET: [u8; 32] = [7; 32];
    const NOW: u64 = 1_800_000_000;

    fn finish(keys: &Keys) -> EnrolFinish {
        let nonce = challenge_nonce(NOW, [3; 24]);
        let server_key = challenge_key(&CHALLENGE_SECRET, nonce).unwrap();
        let token = TokenId(Uuid::from_u128(9));
        let statement = keys.statement(1);
        let (wireguard_proof, identity_proof) = prove(
            nonce,
            server_key,
            token,
            &statement,
            &keys.wireguard,
            &keys.identity,
        );
        EnrolFinish {
            token,
            secret: Secret::new("hush".to_owned()),
            nonce,
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
        let nonce = forged.nonce;
        let server_key = challenge_key(&CHALLENGE_SECRET, nonce).unwrap();
        let (wireguard, identity) = prove(
            nonce,
            server_key,
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
}
