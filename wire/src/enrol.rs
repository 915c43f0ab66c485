//! How a machine becomes a node: two requests, in which it proves both of its keys.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    endpoint::Endpoint,
    ids::{MeshId, NodeId, SiteId, TokenId},
    key::{Bytes32, IdentityKey, Signature, WireguardKey},
    name::Name,
    secret::Secret,
};

/// `POST /agent/enrol/start`: asks for a challenge.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnrolStart {
    pub token: TokenId,
    pub secret: Secret,
}

/// The challenge: a number used once, and a fresh X25519 key for the proof of a WireGuard key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyChallenge {
    pub nonce: Bytes32,
    /// The coordinator's ephemeral X25519 public key.
    pub server_key: WireguardKey,
}

/// What other nodes rely on. It is signed by the node and forwarded byte for byte, so that the
/// coordinator can lose it but not forge it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub mesh: MeshId,
    pub identity: IdentityKey,
    pub wireguard_key: WireguardKey,
    /// Grows with each statement of the same node, from 1; an older statement never replaces a
    /// newer one.
    pub sequence: u64,
    /// Identities that the node had before, the oldest first, at most
    /// [`Statement::MOST_PREDECESSORS`]; absent means none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predecessors: Vec<Predecessor>,
    /// Whether no agent runs on the node: nobody there follows what changes, answers letters or
    /// probes, or ever signs anything again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmanaged: bool,
}

impl Statement {
    pub const MOST_PREDECESSORS: usize = 16;
}

/// An identity that a node had before, with its word for the one that followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    pub identity: IdentityKey,
    /// Over the identity that followed: see `mesh::keys::enrolment`.
    pub signature: Signature,
}

/// A [`Statement`] as its node wrote it, with the node's signature over those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedStatement {
    /// The statement's JSON, verbatim, at most [`SignedStatement::LONGEST`] bytes. All peers get it.
    pub statement: String,
    pub signature: Signature,
}

impl SignedStatement {
    /// One with all predecessors is shorter.
    pub const LONGEST: usize = 4096;
}

/// `POST /agent/identity`: the node takes up another identity. It may be repeated.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewIdentity {
    pub node: NodeId,
    /// Signed by the new identity, with the one before as its last predecessor.
    pub statement: SignedStatement,
}

/// `POST /agent/enrol/finish`: the machine's keys with their proofs. Repeated with the same token
/// and identity, it gets the same answer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnrolFinish {
    pub token: TokenId,
    pub secret: Secret,
    /// The challenge's number.
    pub nonce: Bytes32,
    pub statement: SignedStatement,
    /// Shows that the machine holds the WireGuard private key: see `mesh::keys::enrolment`.
    pub wireguard_proof: Bytes32,
    /// Shows that the machine holds the identity private key: its signature over the whole
    /// exchange.
    pub identity_proof: Signature,
    /// Version of the agent, for people to read.
    pub agent_version: String,
    /// Where this machine answers WireGuard packets; absent means: as the site says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
}

/// The machine is a node now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolled {
    pub mesh: MeshId,
    pub node: NodeId,
    pub name: Name,
    pub site: Name,
    pub site_id: SiteId,
    /// Generation of the node's credential; tokens that the node signs carry it.
    pub generation: i32,
}

/// Claims of the token with which a node signs its requests (JWT, EdDSA, made by the node itself).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeClaims {
    pub iss: NodeId,
    pub sub: NodeId,
    /// The mesh for which the token is made.
    pub aud: MeshId,
    /// Seconds since 1970.
    pub iat: i64,
    /// Seconds since 1970, at most [`NODE_TOKEN_LIFETIME_S`] after `iat`.
    pub exp: i64,
    #[serde(rename = "gen")]
    pub generation: i32,
}

/// The `typ` header of a node's token.
pub const NODE_TOKEN_TYPE: &str = "wattle-node+jwt";
/// The longest time a node's token may live, in seconds.
pub const NODE_TOKEN_LIFETIME_S: i64 = 300;
