//! The lock: a host that requires it takes no peer that an operator has not admitted, and of an
//! admitted one no prefix beyond those admitted.
//!
//! The operator's key is on no coordinator. What a host remembers of its operators' words outlives
//! what a coordinator says later: the newest admission of a node counts, and that of a node that
//! was removed is spent.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::{
    error::KeyRejected,
    signature::{Ed25519KeyPair, KeyPair},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wattle_wire::{
    admin::{Node, Site},
    ids::{MeshId, NodeId},
    key::{IdentityKey, OperatorKey},
    lock::{Admission, SignedAdmission},
    name::Name,
};

use crate::{
    agent::known_peer::{KnownPeer, prefixes},
    config::directory::{NodeRecord, SiteRecord},
    keys::enrolment,
};

/// What is signed begins with its purpose.
const ADMISSION: &[u8] = b"wattle admission v1\0";
/// Seconds by which an admission has to end later than the one before for it to be worth a
/// signature.
const LATER_S: i64 = 86_400;

/// Why an admission is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidAdmission {
    #[error("the admission cannot be read")]
    Unreadable,
    #[error("the admission is not signed by the operator that it names")]
    Signature,
    #[error("the admission was made for another mesh")]
    Mesh,
}

/// Reads an admission that the operator it names has signed. Whether the operator may is not asked
/// here.
///
/// # Errors
///
/// [`InvalidAdmission`] when it cannot be read, is of another mesh, or the signature is not that of
/// the operator which it names.
pub fn verify_admission(
    signed: &SignedAdmission,
    mesh: MeshId,
) -> Result<Admission, InvalidAdmission> {
    let admission: Admission =
        serde_json::from_str(&signed.admission).map_err(|_| InvalidAdmission::Unreadable)?;
    let signer = IdentityKey::from(*admission.operator.as_bytes());
    if !enrolment::verify(
        signer,
        &[ADMISSION, signed.admission.as_bytes()].concat(),
        &signed.signature,
    ) {
        return Err(InvalidAdmission::Signature);
    }
    if admission.mesh == mesh {
        Ok(admission)
    } else {
        Err(InvalidAdmission::Mesh)
    }
}

/// An operator with a key pair.
pub struct Operator {
    keys: Ed25519KeyPair,
    key: OperatorKey,
}

impl Operator {
    /// The operator whose private key is these bytes.
    ///
    /// # Errors
    ///
    /// When the cryptographic library refuses them, which it does for none.
    pub fn new(private_key: &[u8; 32]) -> Result<Self, KeyRejected> {
        let keys = Ed25519KeyPair::from_seed_unchecked(private_key)?;
        let mut key = [0; 32];
        key.copy_from_slice(keys.public_key().as_ref());
        Ok(Self {
            keys,
            key: OperatorKey::from(key),
        })
    }

    pub fn key(&self) -> OperatorKey {
        self.key
    }

    /// Signs what the operator saw and agreed to, at a time in seconds since 1970; always later
    /// than what was signed before.
    ///
    /// # Errors
    ///
    /// None that happens: an admission can always be written.
    pub fn sign(
        &self,
        mesh: MeshId,
        candidate: &Candidate,
        signed_at: i64,
        ends_at: Option<i64>,
    ) -> serde_json::Result<SignedAdmission> {
        let Candidate {
            identity,
            prefixes,
            before,
            ..
        } = candidate.clone();
        let signed_at = before.map_or(signed_at, |before| {
            signed_at.max(before.signed_at.saturating_add(1))
        });
        let admission = serde_json::to_string(&Admission {
            mesh,
            operator: self.key,
            identity,
            prefixes,
            signed_at,
            ends_at,
        })?;
        let signature = enrolment::sign(&self.keys, &[ADMISSION, admission.as_bytes()].concat());
        Ok(SignedAdmission {
            admission,
            signature,
        })
    }

    /// What there is to sign of a node of a site; `None` when this operator has admitted it just so
    /// already.
    pub fn candidate(
        &self,
        mesh: MeshId,
        node: &Node,
        site: &Site,
        ends_at: Option<i64>,
    ) -> Option<Candidate> {
        let before = node
            .admission
            .as_ref()
            .and_then(|signed| verify_admission(signed, mesh).ok());
        let before = before
            .filter(|before| before.operator == self.key && before.identity == node.identity_key);
        // A gateway that stands by is admitted with its site's LANs, too: it takes over without
        // asking anybody.
        let lans: Vec<IpNet> = site.subnets.iter().map(|subnet| subnet.net()).collect();
        let prefixes: BTreeSet<IpNet> = prefixes(node.tunnel_address, &lans).collect();
        let lasts = |before: &Admission| match (before.ends_at, ends_at) {
            (None, None) => true,
            (Some(before), Some(wanted)) => before.saturating_add(LATER_S) >= wanted,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if before
            .as_ref()
            .is_some_and(|before| before.prefixes == prefixes && lasts(before))
        {
            return None;
        }
        let (name, site) = (node.name.clone(), site.name.clone());
        Some(Candidate {
            name,
            site,
            identity: node.identity_key,
            prefixes,
            before,
        })
    }
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operator({})", self.key)
    }
}

/// What an operator is asked to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub name: Name,
    pub site: Name,
    pub identity: IdentityKey,
    pub prefixes: BTreeSet<IpNet>,
    /// What the operator signed of the node before; absent means nothing, as far as the coordinator
    /// tells.
    pub before: Option<Admission>,
}

/// Whether a node has the word of an operator, whoever that is, that holds at a time, in seconds
/// since 1970, and covers all that its site has.
pub fn is_admitted(node: &NodeRecord, site: &SiteRecord, now: i64) -> bool {
    let Some(Ok(admission)) = node
        .admission
        .as_ref()
        .map(|signed| serde_json::from_str::<Admission>(&signed.admission))
    else {
        return false;
    };
    let lans: Vec<IpNet> = site.subnets.iter().map(|subnet| subnet.net()).collect();
    let covers = |prefix: IpNet| {
        admission
            .prefixes
            .iter()
            .any(|admitted| admitted.contains(&prefix))
    };
    let is_its = admission.identity == node.identity_key
        || serde_json::from_str(&node.statement.statement)
            .is_ok_and(|statement| enrolment::is_or_was(&statement, admission.identity));
    let holds = is_its && admission.ends_at.is_none_or(|end| end > now);
    holds && prefixes(node.tunnel_address, &lans).all(covers)
}

/// What a host that requires the lock remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The operators whom the host believes, from its own file.
    #[serde(skip)]
    operators: BTreeSet<OperatorKey>,
    /// The newest admission of each node.
    admissions: BTreeMap<IdentityKey, Admission>,
    /// Nodes that were removed, and when the admission was signed that they had: only a later one
    /// lets them in again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    spent: BTreeMap<IdentityKey, i64>,
    /// Peers without an admission that were there when the lock was turned on, with the prefixes
    /// that they had.
    #[serde(
        rename = "tolerated",
        default,
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    grandfathered: BTreeMap<NodeId, BTreeSet<IpNet>>,
}

/// How a peer stands with the operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// It may have these prefixes.
    Admitted(&'a BTreeSet<IpNet>),
    /// Nobody has admitted it. It was there before the lock, and keeps what it had then.
    Grandfathered(&'a BTreeSet<IpNet>),
    Unsigned(Unsigned),
}

/// Why a peer is not configured.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsigned {
    #[error("no operator whose key is in `operator_keys` has admitted it")]
    NotAdmitted,
    #[error("its admission has ended")]
    Ended,
}

impl Admitted {
    /// The memory of a host that requires the lock and knows no peer yet.
    pub fn new(operators: BTreeSet<OperatorKey>) -> Self {
        Self {
            operators,
            ..Self::default()
        }
    }

    /// The lock is turned on where there are peers already. Those whom nobody has admitted stay as
    /// they are until somebody does or confirms that they go: a tunnel that works is not cut
    /// because a signature is late. Whoever comes later is not grandfathered.
    #[must_use]
    pub fn turned_on(
        operators: BTreeSet<OperatorKey>,
        mesh: MeshId,
        peers: &BTreeMap<NodeId, KnownPeer>,
    ) -> Self {
        let tolerate =
            |known: &KnownPeer| prefixes(known.peer.tunnel_address, &known.peer.subnets).collect();
        let grandfathered = peers
            .iter()
            .map(|(node, known)| (*node, tolerate(known)))
            .collect();
        Self {
            grandfathered,
            ..Self::new(operators)
        }
        .learning(mesh, peers)
    }

    /// The memory that was kept, under the operators of now: the words of others do not count any
    /// more.
    #[must_use]
    pub fn kept(
        mut self,
        operators: BTreeSet<OperatorKey>,
        mesh: MeshId,
        peers: &BTreeMap<NodeId, KnownPeer>,
    ) -> Self {
        self.admissions
            .retain(|_, admission| operators.contains(&admission.operator));
        self.operators = operators;
        self.learning(mesh, peers)
    }

    fn learning(mut self, mesh: MeshId, peers: &BTreeMap<NodeId, KnownPeer>) -> Self {
        peers.values().for_each(|known| self.learn(mesh, known));
        self
    }

    /// Takes in what came with a peer's record, if it is the word of an operator and newer than
    /// what is known.
    pub fn learn(&mut self, mesh: MeshId, known: &KnownPeer) {
        let Some(signed) = &known.peer.admission else {
            return;
        };
        let Ok(admission) = verify_admission(signed, mesh) else {
            return;
        };
        let identity = known.statement.identity;
        let newest = self
            .admissions
            .get(&identity)
            .map(|admission| admission.signed_at);
        let is_newer = |than: Option<i64>| than.is_none_or(|than| admission.signed_at > than);
        let is_known = self.operators.contains(&admission.operator)
            && enrolment::is_or_was(&known.statement, admission.identity);
        let spent =
            [identity, admission.identity].map(|identity| self.spent.get(&identity).copied());
        if is_known && is_newer(newest) && spent.into_iter().all(is_newer) {
            self.grandfathered.remove(&known.peer.node);
            self.admissions.insert(identity, admission);
        }
    }

    /// A peer has another identity, for which the one before has signed: what an operator said of
    /// that holds for it, and for nobody else.
    pub fn follow(&mut self, before: IdentityKey, identity: IdentityKey) {
        if before != identity
            && let Some(admission) = self.admissions.remove(&before)
        {
            self.spent.insert(before, admission.signed_at);
            self.admissions.entry(identity).or_insert(admission);
        }
    }

    /// A peer was removed. It does not come back with the admission that it had.
    pub fn forget(&mut self, known: &KnownPeer) {
        self.grandfathered.remove(&known.peer.node);
        if let Some(admission) = self.admissions.remove(&known.statement.identity) {
            self.spent
                .insert(known.statement.identity, admission.signed_at);
        }
    }

    /// Peers that stay until somebody admits them or confirms that they go.
    pub fn grandfathered(&self) -> impl Iterator<Item = NodeId> {
        self.grandfathered.keys().copied()
    }

    /// These peers are not grandfathered any more. Whether one was.
    pub fn confirm(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let before = self.grandfathered.len();
        self.grandfathered.retain(|node, _| !nodes.contains(node));
        self.grandfathered.len() < before
    }

    /// How a peer stands at a time, in seconds since 1970.
    pub fn standing(&self, known: &KnownPeer, now: i64) -> Standing<'_> {
        if let Some(prefixes) = self.grandfathered.get(&known.peer.node) {
            return Standing::Grandfathered(prefixes);
        }
        match self.admissions.get(&known.statement.identity) {
            None => Standing::Unsigned(Unsigned::NotAdmitted),
            Some(admission) if admission.ends_at.is_some_and(|end| end <= now) => {
                Standing::Unsigned(Unsigned::Ended)
            }
            Some(admission) => Standing::Admitted(&admission.prefixes),
        }
    }
}

/// What of a prefix lies in others, which do not overlap: all, parts, or nothing.
pub fn within(prefix: IpNet, admitted: &BTreeSet<IpNet>) -> Vec<IpNet> {
    if admitted.iter().any(|admitted| admitted.contains(&prefix)) {
        return vec![prefix];
    }
    admitted
        .iter()
        .copied()
        .filter(|admitted| prefix.contains(admitted))
        .collect()
}

#[cfg(test)]
mod tests;
