//! The node's keys, which are made here and never leave, and what enrolment said, in one file of
//! the state directory.

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use wattle_client::node::Signer;
use wattle_mesh::{
    keys::{
        authorities::Authorities,
        node_keys::{NodeKeys, StoredNodeKeys},
    },
    state_file::UnknownFields,
};
use wattle_wire::{
    enrol::{Enrolled, Predecessor},
    secret::Secret,
};
use zeroize::Zeroizing;

use crate::{random, store::Store};

/// Which of the machine's identities: the present one, or the one that `join --replace` is about to
/// put in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Present,
    Next,
}

/// [`NodeKeys`] and [`Membership`] as they are kept, in one file, so that they change together:
/// private halves in base64.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    keys: StoredKeys,
    /// Absent until the machine is a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
    #[serde(flatten)]
    unknown: UnknownFields,
}

#[derive(Serialize, Deserialize)]
struct StoredKeys {
    /// PKCS#8.
    identity: Secret,
    wireguard: Secret,
    sequence: u64,
    #[serde(default)]
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_wireguard: Option<Secret>,
    #[serde(default)]
    issued: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    predecessors: Vec<Predecessor>,
    /// PKCS#8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_identity: Option<Secret>,
}

/// Of which mesh the machine is a node, and where its coordinators are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) enrolled: Enrolled,
    pub(crate) urls: Vec<String>,
    #[serde(flatten)]
    pub(crate) authorities: Authorities,
    #[serde(flatten)]
    pub(crate) unknown: UnknownFields,
}

impl Membership {
    /// The node with these keys, as who signs its requests.
    pub(crate) fn signer<'a>(&'a self, keys: &'a NodeKeys) -> Signer<'a> {
        let enrolled = &self.enrolled;
        Signer { keys, enrolled }
    }
}

impl Slot {
    fn file(self) -> &'static str {
        match self {
            Self::Present => "node.json",
            Self::Next => "node.next.json",
        }
    }

    /// Reads the keys, and the membership if the machine is a node; `None` if there are no keys
    /// yet.
    pub(crate) fn load(
        self,
        store: &Store,
    ) -> anyhow::Result<Option<(NodeKeys, Option<Membership>)>> {
        let Some(stored) = store.read::<Stored>(self.file())? else {
            return Ok(None);
        };
        let node_keys = stored.keys.node_keys().with_context(|| {
            format!(
                "{} is damaged; restore it, or join again with --replace",
                store.path(self.file()).display()
            )
        })?;
        Ok(Some((node_keys, stored.membership)))
    }

    /// Reads the keys, or makes new ones and keeps them.
    pub(crate) fn load_or_make(self, store: &Store) -> anyhow::Result<NodeKeys> {
        if let Some((node_keys, _)) = self.load(store)? {
            return Ok(node_keys);
        }
        let node_keys = NodeKeys::new(&*random::bytes()?, &*random::bytes()?, unix_s())?;
        self.save(store, &node_keys, None)?;
        Ok(node_keys)
    }

    pub(crate) fn save(
        self,
        store: &Store,
        node_keys: &NodeKeys,
        membership: Option<Membership>,
    ) -> anyhow::Result<()> {
        store.write(
            self.file(),
            &Stored {
                keys: StoredKeys::of(node_keys)?,
                membership,
                unknown: UnknownFields::default(),
            },
        )
    }

    /// Keeps other keys of the same machine. What somebody else has changed of the membership
    /// stays.
    pub(crate) fn save_keys(self, store: &Store, node_keys: &NodeKeys) -> anyhow::Result<()> {
        let keys = StoredKeys::of(node_keys)?;
        self.change(store, |stored| stored.keys = keys)
    }

    /// Keeps another membership. What the running agent has changed of the keys stays.
    pub(crate) fn save_membership(
        self,
        store: &Store,
        membership: Membership,
    ) -> anyhow::Result<()> {
        self.change(store, |stored| stored.membership = Some(membership))
    }

    fn change(self, store: &Store, change: impl FnOnce(&mut Stored)) -> anyhow::Result<()> {
        let _alone = store.wait_for("node.lock")?;
        let mut stored: Stored = store
            .read(self.file())?
            .with_context(|| format!("{} is gone", store.path(self.file()).display()))?;
        change(&mut stored);
        store.write(self.file(), &stored)
    }

    /// Raises the generation of the tokens that the machine signs, and gives the new one.
    pub(crate) fn raise_generation(self, store: &Store) -> anyhow::Result<i32> {
        let mut generation = None;
        self.change(store, |stored| {
            let membership = stored.membership.as_mut();
            generation = membership.and_then(|membership| {
                let next = membership.enrolled.generation.checked_add(1)?;
                membership.enrolled.generation = next;
                Some(next)
            });
        })?;
        generation.context("there is no generation after this one: join again")
    }

    /// Removes the keys.
    pub(crate) fn clear(self, store: &Store) -> anyhow::Result<()> {
        store.remove(self.file())
    }
}

impl StoredKeys {
    fn of(node_keys: &NodeKeys) -> anyhow::Result<Self> {
        let kept = node_keys.kept()?;
        let secret = |bytes: &[u8]| Secret::new(STANDARD.encode(bytes));
        Ok(Self {
            identity: secret(&kept.identity),
            wireguard: secret(&*kept.wireguard),
            sequence: kept.sequence,
            since: kept.since,
            next_wireguard: kept.next.as_ref().map(|next| secret(&**next)),
            issued: kept.issued,
            next_identity: kept.successor.as_ref().map(|successor| secret(successor)),
            predecessors: kept.predecessors,
        })
    }

    fn node_keys(&self) -> anyhow::Result<NodeKeys> {
        let bytes = |secret: &Secret| {
            STANDARD
                .decode(secret.reveal())
                .map(Zeroizing::new)
                .context("not base64")
        };
        let key = |secret: &Secret| {
            <[u8; 32]>::try_from(bytes(secret)?.as_slice())
                .map(Zeroizing::new)
                .context("not a key")
        };
        let kept = StoredNodeKeys {
            identity: bytes(&self.identity)?,
            wireguard: key(&self.wireguard)?,
            sequence: self.sequence,
            since: self.since,
            next: self.next_wireguard.as_ref().map(key).transpose()?,
            issued: self.issued,
            predecessors: self.predecessors.clone(),
            successor: self.next_identity.as_ref().map(bytes).transpose()?,
        };
        Ok(NodeKeys::restore(&kept)?)
    }
}

pub(crate) fn unix_s() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h8_what_a_newer_agent_wrote_of_the_node_is_kept_by_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let made = Slot::Present.load_or_make(&store).unwrap();
        const ID: &str = "00000000-0000-0000-0000-000000000001";
        let membership = serde_json::json!({
            "enrolled": {
                "mesh": ID, "node": ID, "name": "dublin", "site": "dublin", "site_id": ID,
                "generation": 1
            },
            "urls": ["https://coordinator.example:8443"],
            "later": 2,
        });
        let mut file: serde_json::Value = store.read("node.json").unwrap().unwrap();
        file["membership"] = membership;
        file["next_kem_key"] = serde_json::json!({"algorithm": "x", "key": "secret"});
        store.write("node.json", &file).unwrap();
        let (node_keys, read) = Slot::Present.load(&store).unwrap().unwrap();
        assert_eq!(node_keys.identity_key(), made.identity_key());
        let switched = made.preparing(&[9; 32]).unwrap().switched(7).unwrap();
        Slot::Present.save_keys(&store, &switched).unwrap();
        let membership = Membership {
            urls: vec!["https://other.example:8443".to_owned()],
            ..read.unwrap()
        };
        Slot::Present.save_membership(&store, membership).unwrap();
        let after: serde_json::Value = store.read("node.json").unwrap().unwrap();
        assert_eq!(after["next_kem_key"], file["next_kem_key"]);
        assert_eq!(after["membership"]["later"], 2);
        assert_ne!(after["wireguard"], file["wireguard"]);
        assert!(
            !format!("{:?}", Slot::Present.load(&store).unwrap().unwrap().1).contains("secret")
        );
    }

    #[test]
    fn keys_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(Slot::Present.load(&store).unwrap().is_none());
        let made = Slot::Present.load_or_make(&store).unwrap();
        let (read, membership) = Slot::Present.load(&store).unwrap().unwrap();
        assert!(membership.is_none());
        assert_eq!(made.wireguard_key(), read.wireguard_key());
        assert_eq!(made.identity_key(), read.identity_key());
        assert_eq!(
            Slot::Present.load_or_make(&store).unwrap().wireguard_key(),
            made.wireguard_key()
        );
        let switched = made.preparing(&[9; 32]).unwrap().switched(7).unwrap();
        Slot::Present.save_keys(&store, &switched).unwrap();
        assert_eq!(
            Slot::Present.load_or_make(&store).unwrap().wireguard_key(),
            switched.wireguard_key()
        );
        assert_ne!(
            Slot::Next.load_or_make(&store).unwrap().wireguard_key(),
            made.wireguard_key()
        );
    }
}
