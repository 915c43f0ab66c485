//! The node's keys, which are made here and never leave, and what enrolment said.

use std::fmt;

use anyhow::{Context, anyhow};
use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use wattle_mesh::admit;
use wattle_wire::{
    enrol::{Enrolled, NODE_TOKEN_LIFETIME_S, NODE_TOKEN_TYPE, NodeClaims, SignedStatement, Statement},
    ids::MeshId,
    key::{Bytes32, IdentityKey, WireguardKey},
    secret::Secret,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::store::Store;

const KEYS: &str = "keys.json";
const MEMBERSHIP: &str = "membership.json";

/// The two key pairs of a node.
pub(crate) struct Keys {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) wireguard: StaticSecret,
    /// Number of the newest statement that was signed.
    pub(crate) sequence: u64,
}

/// [`Keys`] as they are kept: private halves in base64.
#[derive(Serialize, Deserialize)]
struct StoredKeys {
    /// PKCS#8.
    identity: Secret,
    wireguard: Secret,
    sequence: u64,
}

/// Of which mesh the machine is a node, and where its coordinators are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) enrolled: Enrolled,
    pub(crate) urls: Vec<String>,
    #[serde(default)]
    pub(crate) pins: Vec<Bytes32>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.wireguard_key().map_or_else(|_| "invalid".to_owned(), |key| key.to_string()))
    }
}

impl Keys {
    /// Reads the keys of the state directory; `None` if there are none yet.
    pub(crate) fn load(store: &Store) -> anyhow::Result<Option<Self>> {
        let Some(stored) = store.read::<StoredKeys>(KEYS)? else { return Ok(None) };
        let damaged = || anyhow!("{} is damaged; restore it, or join again with --replace", store.path(KEYS).display());
        let bytes = |secret: &Secret| STANDARD.decode(secret.reveal()).map(Zeroizing::new).map_err(|_| damaged());
        let identity = Ed25519KeyPair::from_pkcs8(&bytes(&stored.identity)?).map_err(|_| damaged())?;
        let wireguard = <[u8; 32]>::try_from(bytes(&stored.wireguard)?.as_slice()).map_err(|_| damaged())?;
        Ok(Some(Self { identity, wireguard: StaticSecret::from(wireguard), sequence: stored.sequence }))
    }

    /// Makes new keys and keeps them.
    pub(crate) fn make(store: &Store) -> anyhow::Result<Self> {
        let mut wireguard = Zeroizing::new([0; 32]);
        rand::fill(wireguard.as_mut()).map_err(|_| anyhow!("the system has no random numbers"))?;
        let identity = Ed25519KeyPair::generate().map_err(|_| anyhow!("cannot make an identity key"))?;
        let keys = Self { identity, wireguard: StaticSecret::from(*wireguard), sequence: 1 };
        keys.save(store)?;
        Ok(keys)
    }

    fn save(&self, store: &Store) -> anyhow::Result<()> {
        let pkcs8 = self.identity.to_pkcs8().map_err(|_| anyhow!("cannot encode the identity key"))?;
        let stored = StoredKeys {
            identity: Secret::new(STANDARD.encode(pkcs8.as_ref())),
            wireguard: Secret::new(STANDARD.encode(self.wireguard.as_bytes())),
            sequence: self.sequence,
        };
        store.write(KEYS, &stored)
    }

    pub(crate) fn identity_key(&self) -> anyhow::Result<IdentityKey> {
        let bytes: [u8; 32] = self.identity.public_key().as_ref().try_into().context("identity key")?;
        Ok(IdentityKey::from(bytes))
    }

    pub(crate) fn wireguard_key(&self) -> anyhow::Result<WireguardKey> {
        WireguardKey::try_from(PublicKey::from(&self.wireguard).to_bytes()).context("WireGuard key")
    }

    /// The private half, for the interface.
    pub(crate) fn wireguard_private_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.wireguard.to_bytes())
    }

    /// What other nodes rely on, signed.
    pub(crate) fn statement(&self, mesh: MeshId) -> anyhow::Result<SignedStatement> {
        let statement = Statement { mesh, identity: self.identity_key()?, wireguard_key: self.wireguard_key()?, sequence: self.sequence };
        Ok(admit::sign_statement(&statement, &self.identity)?)
    }

    /// A token that says who asks, good for five minutes from `now`, in seconds since 1970 by the coordinator's clock.
    pub(crate) fn token(&self, enrolled: &Enrolled, now: i64) -> anyhow::Result<Secret> {
        let header = Header { typ: Some(NODE_TOKEN_TYPE.to_owned()), ..Header::new(Algorithm::EdDSA) };
        let claims = NodeClaims {
            iss: enrolled.node,
            sub: enrolled.node,
            aud: enrolled.mesh,
            iat: now,
            exp: now + NODE_TOKEN_LIFETIME_S,
            generation: enrolled.generation,
        };
        let pkcs8 = self.identity.to_pkcs8().map_err(|_| anyhow!("cannot encode the identity key"))?;
        let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(pkcs8.as_ref()))?;
        Ok(Secret::new(token))
    }
}

impl Membership {
    /// `None` if the machine is not a node yet.
    pub(crate) fn load(store: &Store) -> anyhow::Result<Option<Self>> {
        store.read(MEMBERSHIP)
    }

    pub(crate) fn save(&self, store: &Store) -> anyhow::Result<()> {
        store.write(MEMBERSHIP, self)
    }

    /// Forgets the membership; the keys stay until new ones are made.
    pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
        store.remove(MEMBERSHIP)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use uuid::Uuid;
    use wattle_wire::ids::NodeId;

    use super::*;

    #[test]
    fn keys_are_kept_and_read_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(Keys::load(&store).unwrap().is_none());
        let made = Keys::make(&store).unwrap();
        let read = Keys::load(&store).unwrap().unwrap();
        assert_eq!(made.wireguard_key().unwrap(), read.wireguard_key().unwrap());
        assert_eq!(made.identity_key().unwrap(), read.identity_key().unwrap());
        let private = STANDARD.encode(made.wireguard.as_bytes());
        assert!(!format!("{made:?}").contains(&private));
    }

    #[test]
    fn a_token_verifies_with_the_identity_and_names_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::make(&Store::open(dir.path()).unwrap()).unwrap();
        let enrolled = Enrolled {
            mesh: MeshId(Uuid::from_u128(1)),
            node: NodeId(Uuid::from_u128(2)),
            name: "dublin".parse().unwrap(),
            site: "dublin".parse().unwrap(),
            generation: 3,
        };
        let now = jsonwebtoken::get_current_timestamp() as i64;
        let token = keys.token(&enrolled, now).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[enrolled.mesh]);
        let identity = keys.identity_key().unwrap();
        let decoded =
            jsonwebtoken::decode::<NodeClaims>(token.reveal(), &DecodingKey::from_ed_der(identity.as_bytes()), &validation).unwrap();
        assert_eq!(decoded.header.typ.as_deref(), Some(NODE_TOKEN_TYPE));
        assert_eq!((decoded.claims.sub, decoded.claims.generation), (enrolled.node, 3));
    }
}
