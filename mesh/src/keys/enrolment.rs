//! Who may become a node, and who has a new key: signatures and proofs, made by the agent and
//! checked by the coordinator.
//!
//! The coordinator keeps no state between a challenge and its answer: its ephemeral key is
//! derived from a secret of the mesh and the number used once, which carries the time at which it
//! was made.

use std::ops::RangeInclusive;

use aws_lc_rs::{
    digest, hmac,
    signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey},
};
use thiserror::Error;
use wattle_wire::{
    enrol::{EnrolFinish, KeyChallenge, Predecessor, SignedStatement, Statement},
    ids::{MeshId, TokenId},
    key::{Bytes32, IdentityKey, Signature, WireguardKey},
    rotation::{KeyAnnouncement, SignedAnnouncement},
    strict,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// The numbers that statements can have, those of a column of the database.
const NUMBERS: RangeInclusive<u64> = 1..=i64::MAX.unsigned_abs();
/// Seconds for which a challenge may be answered.
pub const CHALLENGE_LIFETIME_S: u64 = 120;

// What a key signs or authenticates begins with its purpose, so that nothing made for one purpose
// serves another.
pub(crate) const STATEMENT: &[u8] = b"wattle statement v1\0";
pub(crate) const ANNOUNCEMENT: &[u8] = b"wattle announcement v1\0";
const SUCCESSOR: &[u8] = b"wattle successor v1\0";
const IDENTITY_PROOF: &[u8] = b"wattle enrol identity v1\0";

/// What a challenge is for: the answer to one is none to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengePurpose {
    Enrolment,
    Rotation,
}

impl ChallengePurpose {
    const fn challenge(self) -> &'static [u8] {
        match self {
            Self::Enrolment => b"wattle enrol challenge v1\0",
            Self::Rotation => b"wattle rotation challenge v1\0",
        }
    }

    const fn proof(self) -> &'static [u8] {
        match self {
            Self::Enrolment => b"wattle enrol wireguard v1\0",
            Self::Rotation => b"wattle rotation wireguard v1\0",
        }
    }
}

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

/// Why an enrolment or a new key is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EnrolmentRefused {
    #[error(transparent)]
    Statement(#[from] InvalidStatement),
    #[error("a new node has no former identities")]
    Predecessors,
    #[error("the number of a statement is 1 to 2^63-1")]
    Number,
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
    let statement = read(text).ok_or(InvalidStatement::Unreadable)?;
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

/// Reads what a node signed, once for all who believe it.
fn read(text: &str) -> Option<Statement> {
    let is_short = text.len() <= SignedStatement::LONGEST;
    is_short.then(|| strict::from_str(text).ok()).flatten()
}

/// Whether a statement has a number that a coordinator can keep.
pub fn has_number(statement: &Statement) -> bool {
    NUMBERS.contains(&statement.sequence)
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
    read(&signed.statement).map(|statement| statement.sequence)
}

/// What an announcement that was verified before says.
pub fn announced(signed: &SignedAnnouncement) -> Option<Statement> {
    read(&signed.announcement)
}

/// A number used once that carries the time at which it was made.
pub fn challenge_nonce(now_unix_s: u64, random: [u8; 24]) -> Bytes32 {
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&now_unix_s.to_be_bytes());
    nonce[8..].copy_from_slice(&random);
    Bytes32::from(nonce)
}

/// The coordinator's challenge, with its ephemeral key. `None` in the one case of 2^252 in which
/// that would be of low order: draw another number.
pub fn challenge(
    purpose: ChallengePurpose,
    challenge_secret: &[u8; 32],
    nonce: Bytes32,
) -> Option<KeyChallenge> {
    let private_key = challenge_private_key(purpose, challenge_secret, nonce);
    let server_key = WireguardKey::try_from(PublicKey::from(&private_key).to_bytes()).ok()?;
    Some(KeyChallenge { nonce, server_key })
}

/// The two proofs of an enrolment, made by the agent: of the WireGuard key and of the identity.
pub fn prove(
    challenge: &KeyChallenge,
    token: TokenId,
    statement: &SignedStatement,
    wireguard: &StaticSecret,
    identity: &Ed25519KeyPair,
) -> (Bytes32, Signature) {
    let text = &statement.statement;
    let proof = wireguard_proof(ChallengePurpose::Enrolment, challenge, text, wireguard);
    let message = identity_message(challenge.nonce, token, statement, proof);
    (proof, sign(identity, &message))
}

/// An announcement with the proof of its key, made by the agent.
pub fn prove_announced(
    challenge: &KeyChallenge,
    announcement: SignedAnnouncement,
    wireguard: &StaticSecret,
) -> KeyAnnouncement {
    let text = &announcement.announcement;
    let wireguard_proof = wireguard_proof(ChallengePurpose::Rotation, challenge, text, wireguard);
    KeyAnnouncement {
        announcement,
        nonce: challenge.nonce,
        wireguard_proof,
    }
}

/// Checks that whoever announces this key has its private half.
///
/// # Errors
///
/// [`EnrolmentRefused`] when the challenge has expired or the proof is wrong.
pub fn check_announced(
    claim: &KeyAnnouncement,
    key: WireguardKey,
    challenge_secret: &[u8; 32],
    now_unix_s: u64,
) -> Result<(), EnrolmentRefused> {
    check_time(claim.nonce, now_unix_s)?;
    check_wireguard_proof(
        ChallengePurpose::Rotation,
        challenge_secret,
        claim.nonce,
        key,
        &claim.announcement.announcement,
        claim.wireguard_proof,
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
    check_time(finish.nonce, now_unix_s)?;
    let statement = verify_statement(&finish.statement, mesh)?;
    if !statement.predecessors.is_empty() {
        return Err(EnrolmentRefused::Predecessors);
    }
    if statement.unmanaged {
        return Err(EnrolmentRefused::Unmanaged);
    }
    if !has_number(&statement) {
        return Err(EnrolmentRefused::Number);
    }
    check_wireguard_proof(
        ChallengePurpose::Enrolment,
        challenge_secret,
        finish.nonce,
        statement.wireguard_key,
        &finish.statement.statement,
        finish.wireguard_proof,
    )?;
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

fn check_time(nonce: Bytes32, now_unix_s: u64) -> Result<(), EnrolmentRefused> {
    let mut made = [0; 8];
    made.copy_from_slice(&nonce.as_bytes()[..8]);
    let made = u64::from_be_bytes(made);
    if made > now_unix_s || now_unix_s - made > CHALLENGE_LIFETIME_S {
        return Err(EnrolmentRefused::Expired);
    }
    Ok(())
}

fn wireguard_proof(
    purpose: ChallengePurpose,
    challenge: &KeyChallenge,
    text: &str,
    wireguard: &StaticSecret,
) -> Bytes32 {
    let server_key = PublicKey::from(*challenge.server_key.as_bytes());
    let shared = wireguard.diffie_hellman(&server_key);
    let message = wireguard_message(purpose, challenge.nonce, text);
    Bytes32::from(authenticate(shared.as_bytes(), &message))
}

fn check_wireguard_proof(
    purpose: ChallengePurpose,
    challenge_secret: &[u8; 32],
    nonce: Bytes32,
    key: WireguardKey,
    text: &str,
    proof: Bytes32,
) -> Result<(), EnrolmentRefused> {
    let shared = challenge_private_key(purpose, challenge_secret, nonce)
        .diffie_hellman(&PublicKey::from(*key.as_bytes()));
    hmac::verify(
        &hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes()),
        &wireguard_message(purpose, nonce, text),
        proof.as_bytes(),
    )
    .map_err(|_| EnrolmentRefused::WireguardProof)
}

fn challenge_private_key(
    purpose: ChallengePurpose,
    challenge_secret: &[u8; 32],
    nonce: Bytes32,
) -> StaticSecret {
    StaticSecret::from(authenticate(
        challenge_secret,
        &[purpose.challenge(), nonce.as_bytes()].concat(),
    ))
}

fn successor_message(mesh: MeshId, successor: IdentityKey) -> Vec<u8> {
    [SUCCESSOR, mesh.0.as_bytes(), successor.as_bytes()].concat()
}

fn wireguard_message(purpose: ChallengePurpose, nonce: Bytes32, text: &str) -> Vec<u8> {
    [purpose.proof(), nonce.as_bytes(), digest_of(text).as_ref()].concat()
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
        digest_of(&statement.statement).as_ref(),
        proof.as_bytes(),
    ]
    .concat()
}

fn digest_of(text: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, text.as_bytes())
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
mod tests;
