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

/// Which of the node's identities: the present one, or the one that `join --replace` is about to put in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Present,
    Next,
}

/// The two key pairs of a node.
pub(crate) struct Keys {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) wireguard: StaticSecret,
    /// Number of the newest statement that was signed.
    pub(crate) sequence: u64,
}

/// [`Keys`] and [`Membership`] as they are kept, in one file, so that they change together: private halves in base64.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// PKCS#8.
    identity: Secret,
    wireguard: Secret,
    sequence: u64,
    /// Absent until the machine is a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
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
    /// Reads the keys of the state directory, and the membership if the machine is a node; `None` if there are no keys yet.
    pub(crate) fn load(store: &Store, slot: Slot) -> anyhow::Result<Option<(Self, Option<Membership>)>> {
        let Some(stored) = store.read::<Stored>(slot.file())? else { return Ok(None) };
        let damaged = || anyhow!("{} is damaged; restore it, or join again with --replace", store.path(slot.file()).display());
        let bytes = |secret: &Secret| STANDARD.decode(secret.reveal()).map(Zeroizing::new).map_err(|_| damaged());
        let identity = Ed25519KeyPair::from_pkcs8(&bytes(&stored.identity)?).map_err(|_| damaged())?;
        let wireguard = <[u8; 32]>::try_from(bytes(&stored.wireguard)?.as_slice()).map_err(|_| damaged())?;
        let keys = Self { identity, wireguard: StaticSecret::from(wireguard), sequence: stored.sequence };
        Ok(Some((keys, stored.membership)))
    }

    /// Reads the keys, or makes new ones and keeps them.
    pub(crate) fn load_or_make(store: &Store, slot: Slot) -> anyhow::Result<Self> {
        if let Some((keys, _)) = Self::load(store, slot)? {
            return Ok(keys);
        }
        let mut wireguard = Zeroizing::new([0; 32]);
        rand::fill(wireguard.as_mut()).map_err(|_| anyhow!("the system has no random numbers"))?;
        let identity = Ed25519KeyPair::generate().map_err(|_| anyhow!("cannot make an identity key"))?;
        let keys = Self { identity, wireguard: StaticSecret::from(*wireguard), sequence: 1 };
        keys.save(store, slot, None)?;
        Ok(keys)
    }

    pub(crate) fn save(&self, store: &Store, slot: Slot, membership: Option<Membership>) -> anyhow::Result<()> {
        let pkcs8 = self.identity.to_pkcs8().map_err(|_| anyhow!("cannot encode the identity key"))?;
        let stored = Stored {
            identity: Secret::new(STANDARD.encode(pkcs8.as_ref())),
            wireguard: Secret::new(STANDARD.encode(self.wireguard.as_bytes())),
            sequence: self.sequence,
            membership,
        };
        store.write(slot.file(), &stored)
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

impl Slot {
    fn file(self) -> &'static str {
        match self {
            Self::Present => "node.json",
            Self::Next => "node.next.json",
        }
    }

    /// Removes the keys of the slot.
    pub(crate) fn clear(self, store: &Store) -> anyhow::Result<()> {
        store.remove(self.file())
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
        assert!(Keys::load(&store, Slot::Present).unwrap().is_none());
        let made = Keys::load_or_make(&store, Slot::Present).unwrap();
        let (read, membership) = Keys::load(&store, Slot::Present).unwrap().unwrap();
        assert!(membership.is_none());
        assert_eq!(made.wireguard_key().unwrap(), read.wireguard_key().unwrap());
        assert_eq!(made.identity_key().unwrap(), read.identity_key().unwrap());
        let private = STANDARD.encode(made.wireguard.as_bytes());
        assert!(!format!("{made:?}").contains(&private));
    }

    #[test]
    fn a_token_verifies_with_the_identity_and_names_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_make(&Store::open(dir.path()).unwrap(), Slot::Present).unwrap();
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
