//! A machine with its two key pairs: what it signs and proves, as a node or on its way to become one.

use std::fmt;

use aws_lc_rs::{
    error::{KeyRejected, Unspecified},
    signature::{Ed25519KeyPair, KeyPair},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use thiserror::Error;
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{EnrolChallenge, EnrolFinish, Enrolled, NODE_TOKEN_LIFETIME_S, NODE_TOKEN_TYPE, NodeClaims, SignedStatement, Statement},
    ids::MeshId,
    join::JoinString,
    key::{IdentityKey, InvalidKey, Signature, WireguardKey},
    secret::Secret,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::admit;

/// The keys of a machine. `Debug` shows the public WireGuard key only.
pub struct Machine {
    identity: Ed25519KeyPair,
    identity_key: IdentityKey,
    wireguard: StaticSecret,
    wireguard_key: WireguardKey,
    /// Number of the newest statement that it signed.
    sequence: u64,
}

/// Why keys are not usable.
#[derive(Debug, Error)]
pub enum InvalidMachine {
    #[error("the identity key is damaged")]
    Identity(#[from] KeyRejected),
    #[error("the identity key cannot be encoded")]
    Encoding(#[from] Unspecified),
    #[error("the WireGuard key is not usable")]
    Wireguard(#[from] InvalidKey),
}

impl Machine {
    /// A machine with the keys that come of these random bytes.
    pub fn new(identity_seed: &[u8; 32], wireguard: &[u8; 32]) -> Result<Self, InvalidMachine> {
        Self::of(Ed25519KeyPair::from_seed_unchecked(identity_seed)?, wireguard, 1)
    }

    /// A machine with keys that were kept: the identity in PKCS#8, the WireGuard private key, the number of its newest statement.
    pub fn restore(identity_pkcs8: &[u8], wireguard: &[u8; 32], sequence: u64) -> Result<Self, InvalidMachine> {
        Self::of(Ed25519KeyPair::from_pkcs8(identity_pkcs8)?, wireguard, sequence)
    }

    fn of(identity: Ed25519KeyPair, wireguard: &[u8; 32], sequence: u64) -> Result<Self, InvalidMachine> {
        let identity_key: [u8; 32] = identity.public_key().as_ref().try_into().map_err(|_| InvalidMachine::Encoding(Unspecified))?;
        let wireguard = StaticSecret::from(*wireguard);
        let wireguard_key = WireguardKey::try_from(PublicKey::from(&wireguard).to_bytes())?;
        Ok(Self { identity, identity_key: IdentityKey::from(identity_key), wireguard, wireguard_key, sequence })
    }

    pub fn identity_key(&self) -> IdentityKey {
        self.identity_key
    }

    pub fn wireguard_key(&self) -> WireguardKey {
        self.wireguard_key
    }

    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The private half of the identity, in PKCS#8.
    pub fn identity_private_key(&self) -> Result<Zeroizing<Vec<u8>>, InvalidMachine> {
        Ok(Zeroizing::new(self.identity.to_pkcs8()?.as_ref().to_vec()))
    }

    /// The private half of the WireGuard key.
    pub fn wireguard_private_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.wireguard.to_bytes())
    }

    /// The identity's signature. What is signed begins with its purpose.
    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        admit::sign(&self.identity, message)
    }

    /// What other nodes rely on, signed.
    pub fn statement(&self, mesh: MeshId) -> Result<SignedStatement, serde_json::Error> {
        let statement = Statement { mesh, identity: self.identity_key, wireguard_key: self.wireguard_key, sequence: self.sequence };
        admit::sign_statement(&statement, &self.identity)
    }

    /// The claim to become a node, with both proofs.
    pub fn claim(
        &self,
        join: &JoinString,
        challenge: &EnrolChallenge,
        endpoint: Option<Endpoint>,
        agent_version: &str,
    ) -> Result<EnrolFinish, serde_json::Error> {
        let statement = self.statement(join.mesh)?;
        let (wireguard_proof, identity_proof) =
            admit::prove(challenge.nonce, challenge.server_key, join.token, &statement, &self.wireguard, &self.identity);
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

    /// A token that says which node asks, good for five minutes from `now`, in seconds since 1970 by the coordinator's clock.
    pub fn token(&self, enrolled: &Enrolled, now: i64) -> Result<Secret, jsonwebtoken::errors::Error> {
        let header = Header { typ: Some(NODE_TOKEN_TYPE.to_owned()), ..Header::new(Algorithm::EdDSA) };
        let claims = NodeClaims {
            iss: enrolled.node,
            sub: enrolled.node,
            aud: enrolled.mesh,
            iat: now,
            exp: now + NODE_TOKEN_LIFETIME_S,
            generation: enrolled.generation,
        };
        let key = self.identity.to_pkcs8().map_err(|_| jsonwebtoken::errors::ErrorKind::InvalidKeyFormat)?;
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(key.as_ref())).map(Secret::new)
    }
}

/// The token that a node sends with its requests, used again for most of its life: a new signature for each request would have to be made
/// here and verified there.
#[derive(Debug, Default)]
pub struct HeldToken(Option<(i64, Secret)>);

impl HeldToken {
    /// Seconds before its end at which a token is replaced; clocks may differ a little, and requests take time.
    const SPARE_S: i64 = 60;

    /// A token that is good for at least a minute from `now`, in seconds since 1970 by the coordinator's clock.
    pub fn at(&mut self, now: i64, machine: &Machine, enrolled: &Enrolled) -> Result<Secret, jsonwebtoken::errors::Error> {
        // A clock that was set back makes a token that is not valid yet.
        let usable = |made: i64| (0..NODE_TOKEN_LIFETIME_S - Self::SPARE_S).contains(&(now - made));
        if let Some((_, token)) = self.0.as_ref().filter(|(made, _)| usable(*made)) {
            return Ok(token.clone());
        }
        let token = machine.token(enrolled, now)?;
        self.0 = Some((now, token.clone()));
        Ok(token)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({})", self.wireguard_key)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use uuid::Uuid;
    use wattle_wire::ids::NodeId;

    use super::*;
    use crate::testing::MESH;

    #[test]
    fn keys_that_were_kept_are_the_same_and_debug_hides_them() {
        let made = Machine::new(&[1; 32], &[2; 32]).unwrap();
        let kept = Machine::restore(&made.identity_private_key().unwrap(), &made.wireguard_private_key(), 7).unwrap();
        assert_eq!((made.identity_key(), made.wireguard_key()), (kept.identity_key(), kept.wireguard_key()));
        assert_eq!((made.sequence(), kept.sequence()), (1, 7));
        assert_eq!(format!("{made:?}"), format!("Machine({})", made.wireguard_key()));
    }

    #[test]
    fn a_token_is_used_again_until_it_is_about_to_end_or_the_clock_is_set_back() {
        let machine = Machine::new(&[1; 32], &[2; 32]).unwrap();
        let name: wattle_wire::name::Name = "dublin".parse().unwrap();
        let enrolled = Enrolled { mesh: MESH, node: NodeId(Uuid::from_u128(2)), name: name.clone(), site: name, generation: 3 };
        let mut held = HeldToken::default();
        let mut at = |now| held.at(now, &machine, &enrolled).unwrap().reveal().to_owned();
        let made_at = |now| machine.token(&enrolled, now).unwrap().reveal().to_owned();
        assert_eq!([at(1000), at(1239)], [made_at(1000), made_at(1000)]);
        assert_eq!([at(1240), at(1100)], [made_at(1240), made_at(1100)]);
    }

    #[test]
    fn a_token_verifies_with_the_identity_and_names_the_node() {
        let machine = Machine::new(&[1; 32], &[2; 32]).unwrap();
        let name: wattle_wire::name::Name = "dublin".parse().unwrap();
        let enrolled = Enrolled { mesh: MESH, node: NodeId(Uuid::from_u128(2)), name: name.clone(), site: name, generation: 3 };
        let token = machine.token(&enrolled, 1_800_000_000).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[MESH]);
        // Time is the coordinator's part.
        validation.validate_exp = false;
        let key = DecodingKey::from_ed_der(machine.identity_key().as_bytes());
        let decoded = jsonwebtoken::decode::<NodeClaims>(token.reveal(), &key, &validation).unwrap();
        assert_eq!(decoded.header.typ.as_deref(), Some(NODE_TOKEN_TYPE));
        assert_eq!((decoded.claims.sub, decoded.claims.generation, decoded.claims.exp), (enrolled.node, 3, 1_800_000_300));
    }
}
