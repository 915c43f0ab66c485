//! A machine with its key pairs: what it signs and proves, as a node or on its way to become one.

use std::fmt;

use aws_lc_rs::{
    digest::{SHA256, digest},
    error::{KeyRejected, Unspecified},
    signature::{Ed25519KeyPair, KeyPair},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use thiserror::Error;
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{
        EnrolFinish, Enrolled, KeyChallenge, NODE_TOKEN_LIFETIME_S, NODE_TOKEN_TYPE, NodeClaims,
        Predecessor, SignedStatement, Statement,
    },
    ids::MeshId,
    join::JoinString,
    key::{IdentityKey, InvalidKey, Signature, WireguardKey},
    rotation::{KeyAnnouncement, SignedAnnouncement},
    secret::Secret,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::keys::{enrolment, preshared_key::Psk};

const CANARY: &[u8] = b"wattle canary v1\0";

/// How far a coordinator's word moves a machine's numbers on: further than any uses in years, and
/// so little that none runs out of them, whatever it is told.
const LARGEST_STEP: u64 = 1 << 20;

/// The keys of a machine. `Debug` shows the public WireGuard key only.
pub struct NodeKeys {
    identity: Identity,
    wireguard: StaticSecret,
    wireguard_key: WireguardKey,
    /// Number of its statement.
    sequence: u64,
    /// Seconds since 1970 at which it took up its WireGuard key; 0 when that is not known.
    since: u64,
    next: Option<NextKey>,
    /// The highest number of a statement that it may have signed.
    issued: u64,
    /// Identities that it had before, the oldest first.
    predecessors: Vec<Predecessor>,
    /// The identity that it is going to take up.
    successor: Option<Identity>,
}

struct Identity {
    pair: Ed25519KeyPair,
    key: IdentityKey,
}

/// The WireGuard key that a machine is going to take up.
struct NextKey {
    secret: StaticSecret,
    key: WireguardKey,
}

/// The keys of a machine as they are kept.
pub struct StoredNodeKeys {
    /// PKCS#8.
    pub identity: Zeroizing<Vec<u8>>,
    pub wireguard: Zeroizing<[u8; 32]>,
    pub sequence: u64,
    pub since: u64,
    pub next: Option<Zeroizing<[u8; 32]>>,
    pub issued: u64,
    pub predecessors: Vec<Predecessor>,
    /// PKCS#8.
    pub successor: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for StoredNodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredNodeKeys(statement {})", self.sequence)
    }
}

/// Why keys are not usable.
#[derive(Debug, Error)]
pub enum InvalidNodeKeys {
    #[error("the identity key is damaged")]
    Identity(#[from] KeyRejected),
    #[error("the identity key cannot be encoded")]
    Encoding(#[from] Unspecified),
    #[error("the WireGuard key is not usable")]
    Wireguard(#[from] InvalidKey),
}

impl NodeKeys {
    /// A machine with the keys that come of these random bytes. `now` is in seconds since 1970.
    pub fn new(
        identity_seed: &[u8; 32],
        wireguard: &[u8; 32],
        now: u64,
    ) -> Result<Self, InvalidNodeKeys> {
        Self::restore(&StoredNodeKeys {
            identity: Identity::encoded(identity_seed)?,
            wireguard: Zeroizing::new(*wireguard),
            sequence: 1,
            since: now,
            next: None,
            issued: 1,
            predecessors: Vec::new(),
            successor: None,
        })
    }

    /// A machine with keys that were kept.
    pub fn restore(kept: &StoredNodeKeys) -> Result<Self, InvalidNodeKeys> {
        let NextKey {
            secret: wireguard,
            key: wireguard_key,
        } = NextKey::of(&kept.wireguard)?;
        Ok(Self {
            identity: Identity::of(&kept.identity)?,
            wireguard,
            wireguard_key,
            sequence: kept.sequence,
            since: kept.since,
            next: kept
                .next
                .as_ref()
                .map(|secret| NextKey::of(secret))
                .transpose()?,
            issued: kept.issued.max(kept.sequence),
            predecessors: kept.predecessors.clone(),
            successor: kept
                .successor
                .as_ref()
                .map(|kept| Identity::of(kept))
                .transpose()?,
        })
    }

    /// The keys as they are to be kept.
    pub fn kept(&self) -> Result<StoredNodeKeys, InvalidNodeKeys> {
        Ok(StoredNodeKeys {
            identity: self.identity.kept()?,
            wireguard: self.wireguard_private_key(),
            sequence: self.sequence,
            since: self.since,
            next: self
                .next
                .as_ref()
                .map(|next| Zeroizing::new(next.secret.to_bytes())),
            issued: self.issued,
            predecessors: self.predecessors.clone(),
            successor: self.successor.as_ref().map(Identity::kept).transpose()?,
        })
    }

    /// The machine, whose next statement has a number above this one, as the coordinator says.
    pub fn numbering_above(&self, highest: u64) -> Result<Self, InvalidNodeKeys> {
        let limit = self.issued.saturating_add(LARGEST_STEP);
        Self::restore(&StoredNodeKeys {
            issued: self.issued.max(highest.min(limit)),
            ..self.kept()?
        })
    }

    /// The machine, about to take up the key that comes of these random bytes. Its statement has a
    /// number that none had before.
    pub fn preparing(&self, wireguard: &[u8; 32]) -> Result<Self, InvalidNodeKeys> {
        Self::restore(&StoredNodeKeys {
            next: Some(Zeroizing::new(*wireguard)),
            issued: self.issued + 1,
            ..self.kept()?
        })
    }

    /// The machine, staying with the key that it has.
    pub fn staying(&self) -> Result<Self, InvalidNodeKeys> {
        Self::restore(&StoredNodeKeys {
            next: None,
            ..self.kept()?
        })
    }

    /// The machine with its next key, if there is one, as the present one. `now` is in seconds
    /// since 1970.
    pub fn switched(&self, now: u64) -> Result<Self, InvalidNodeKeys> {
        let kept = self.kept()?;
        Self::restore(&match kept.next {
            Some(wireguard) => StoredNodeKeys {
                wireguard,
                next: None,
                sequence: kept.issued,
                since: now,
                ..kept
            },
            None => kept,
        })
    }

    /// The machine, about to take up the identity that comes of these random bytes. Its statement
    /// has a number that none had before.
    pub fn preparing_identity(&self, identity_seed: &[u8; 32]) -> Result<Self, InvalidNodeKeys> {
        Self::restore(&StoredNodeKeys {
            successor: Some(Identity::encoded(identity_seed)?),
            issued: self.issued + 1,
            ..self.kept()?
        })
    }

    /// The machine with the identity that it was going to take up, if there is one, as the present
    /// one.
    pub fn identity_switched(&self, mesh: MeshId) -> Result<Self, InvalidNodeKeys> {
        let kept = self.kept()?;
        let predecessors = self.and_predecessors(mesh);
        Self::restore(&match (kept.successor, predecessors) {
            (Some(identity), Some(predecessors)) => StoredNodeKeys {
                identity,
                predecessors,
                sequence: kept.issued,
                successor: None,
                ..kept
            },
            (successor, _) => StoredNodeKeys { successor, ..kept },
        })
    }

    pub fn identity_key(&self) -> IdentityKey {
        self.identity.key
    }

    /// The identity that it is going to take up.
    pub fn successor(&self) -> Option<IdentityKey> {
        self.successor.as_ref().map(|successor| successor.key)
    }

    /// Whether it had another identity before.
    pub fn has_predecessors(&self) -> bool {
        !self.predecessors.is_empty()
    }

    pub fn wireguard_key(&self) -> WireguardKey {
        self.wireguard_key
    }

    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The highest number of a statement that it may have signed.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Seconds since 1970 at which it took up its WireGuard key; 0 when that is not known.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The WireGuard key that it is going to take up.
    pub fn next_key(&self) -> Option<WireguardKey> {
        self.next.as_ref().map(|next| next.key)
    }

    /// The private half of the WireGuard key.
    pub fn wireguard_private_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.wireguard.to_bytes())
    }

    /// The identity's signature. What is signed begins with its purpose.
    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        enrolment::sign(&self.identity.pair, message)
    }

    /// What other nodes rely on, signed.
    pub fn statement(&self, mesh: MeshId) -> Result<SignedStatement, serde_json::Error> {
        let statement = self.saying(mesh, self.wireguard_key, self.sequence);
        enrolment::sign_statement(&statement, &self.identity.pair)
    }

    /// What they will rely on once it has taken up its next key, signed as an announcement, with
    /// the proof of that key. A machine without a next key announces the present one.
    pub fn announcement(
        &self,
        mesh: MeshId,
        challenge: &KeyChallenge,
    ) -> Result<KeyAnnouncement, serde_json::Error> {
        let secret = self
            .next
            .as_ref()
            .map_or(&self.wireguard, |next| &next.secret);
        let signed = self.unproved_announcement(mesh)?;
        Ok(enrolment::prove_announced(challenge, signed, secret))
    }

    /// That of [`NodeKeys::announcement`], as peers see it.
    pub(crate) fn unproved_announcement(
        &self,
        mesh: MeshId,
    ) -> Result<SignedAnnouncement, serde_json::Error> {
        let statement = match &self.next {
            Some(next) => self.saying(mesh, next.key, self.issued),
            None => self.saying(mesh, self.wireguard_key, self.sequence),
        };
        enrolment::sign_announcement(&statement, &self.identity.pair)
    }

    fn saying(&self, mesh: MeshId, wireguard_key: WireguardKey, sequence: u64) -> Statement {
        Statement {
            mesh,
            identity: self.identity.key,
            wireguard_key,
            sequence,
            predecessors: self.predecessors.clone(),
            unmanaged: false,
        }
    }

    /// What other nodes will rely on once it has taken up its next identity, signed by that; `None`
    /// when it has none.
    pub fn next_identity_statement(
        &self,
        mesh: MeshId,
    ) -> Result<Option<SignedStatement>, serde_json::Error> {
        let (Some(Identity { pair, key }), Some(predecessors)) =
            (&self.successor, self.and_predecessors(mesh))
        else {
            return Ok(None);
        };
        let statement = Statement {
            mesh,
            identity: *key,
            wireguard_key: self.wireguard_key,
            sequence: self.issued,
            predecessors,
            unmanaged: false,
        };
        enrolment::sign_statement(&statement, pair).map(Some)
    }

    /// The newest identities up to the present one, which signs for the one that it is going to
    /// take up; `None` when there is none.
    fn and_predecessors(&self, mesh: MeshId) -> Option<Vec<Predecessor>> {
        let signature =
            enrolment::sign_successor(mesh, self.successor.as_ref()?.key, &self.identity.pair);
        let mut predecessors = self.predecessors.clone();
        predecessors.push(Predecessor {
            identity: self.identity.key,
            signature,
        });
        predecessors.drain(
            ..predecessors
                .len()
                .saturating_sub(Statement::MOST_PREDECESSORS),
        );
        Some(predecessors)
    }

    /// The preshared key of the entry that stands ready for a peer's announced key. Nobody else
    /// knows it, so that no handshake with that entry completes: it only shows that the peer has
    /// begun to use the key.
    pub fn canary_psk(&self, announced: WireguardKey) -> Psk {
        let secret =
            Zeroizing::new([CANARY, &*self.wireguard_private_key(), announced.as_bytes()].concat());
        let digest = digest(&SHA256, &secret);
        let mut psk = [0; 32];
        psk.copy_from_slice(digest.as_ref());
        Psk::new(psk)
    }

    /// The claim to become a node, with both proofs.
    pub fn claim(
        &self,
        join: &JoinString,
        challenge: &KeyChallenge,
        endpoint: Option<Endpoint>,
        agent_version: &str,
    ) -> Result<EnrolFinish, serde_json::Error> {
        let statement = self.statement(join.mesh)?;
        let (wireguard_proof, identity_proof) = enrolment::prove(
            challenge,
            join.token,
            &statement,
            &self.wireguard,
            &self.identity.pair,
        );
        Ok(EnrolFinish {
            token: join.token,
            secret: join.secret.clone(),
            nonce: challenge.nonce,
            statement,
            wireguard_proof,
            identity_proof,
            agent_version: agent_version.to_owned(),
            endpoint,
        })
    }

    /// A token that says which node asks, good for five minutes from `now`, in seconds since 1970
    /// by the coordinator's clock.
    pub fn token(
        &self,
        enrolled: &Enrolled,
        now: i64,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        let header = Header {
            typ: Some(NODE_TOKEN_TYPE.to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        let claims = NodeClaims {
            iss: enrolled.node,
            sub: enrolled.node,
            aud: enrolled.mesh,
            iat: now,
            exp: now + NODE_TOKEN_LIFETIME_S,
            generation: enrolled.generation,
        };
        let key = self
            .identity
            .pair
            .to_pkcs8()
            .map_err(|_| jsonwebtoken::errors::ErrorKind::InvalidKeyFormat)?;
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(key.as_ref()))
            .map(Secret::new)
    }
}

/// The token that a node sends with its requests, used again for most of its life: a new signature
/// for each request would have to be made here and verified there.
#[derive(Debug, Default)]
pub struct HeldToken(Option<(i64, Secret)>);

impl HeldToken {
    /// Seconds before its end at which a token is replaced; clocks may differ a little, and
    /// requests take time.
    const SPARE_S: i64 = 60;

    /// A token that is good for at least a minute from `now`, in seconds since 1970 by the
    /// coordinator's clock.
    pub fn at(
        &mut self,
        now: i64,
        node_keys: &NodeKeys,
        enrolled: &Enrolled,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        // A clock that was set back makes a token that is not valid yet.
        let usable = |made: i64| (0..NODE_TOKEN_LIFETIME_S - Self::SPARE_S).contains(&(now - made));
        if let Some((_, token)) = self.0.as_ref().filter(|(made, _)| usable(*made)) {
            return Ok(token.clone());
        }
        let token = node_keys.token(enrolled, now)?;
        self.0 = Some((now, token.clone()));
        Ok(token)
    }
}

impl Identity {
    /// The identity that comes of these random bytes, as PKCS#8.
    fn encoded(seed: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, InvalidNodeKeys> {
        Ok(Zeroizing::new(
            Ed25519KeyPair::from_seed_unchecked(seed)?
                .to_pkcs8()?
                .as_ref()
                .to_vec(),
        ))
    }

    fn of(kept: &[u8]) -> Result<Self, InvalidNodeKeys> {
        let pair = Ed25519KeyPair::from_pkcs8(kept)?;
        let key: [u8; 32] = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| InvalidNodeKeys::Encoding(Unspecified))?;
        Ok(Self {
            pair,
            key: IdentityKey::from(key),
        })
    }

    fn kept(&self) -> Result<Zeroizing<Vec<u8>>, InvalidNodeKeys> {
        Ok(Zeroizing::new(self.pair.to_pkcs8()?.as_ref().to_vec()))
    }
}

impl NextKey {
    fn of(secret: &[u8; 32]) -> Result<Self, InvalidNodeKeys> {
        let secret = StaticSecret::from(*secret);
        let key = WireguardKey::try_from(PublicKey::from(&secret).to_bytes())?;
        Ok(Self { secret, key })
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKeys({})", self.wireguard_key)
    }
}

#[cfg(test)]
mod tests;
