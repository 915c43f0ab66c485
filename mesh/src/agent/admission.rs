//! The lock: a host that requires it takes no peer that an operator has not admitted, and of an
//! admitted one no prefix beyond those admitted.
//!
//! The operator's key is on no coordinator. What a host remembers of its operators' words outlives
//! what a coordinator says later: the newest admission of a node counts, and that of a node that
//! was removed is spent. A removal that an operator has signed waits for no other confirmation.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::{
    error::KeyRejected,
    signature::{Ed25519KeyPair, KeyPair},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use wattle_wire::{
    admin::{Node, RemovedNode, Site},
    ids::{MeshId, NodeId},
    key::{IdentityKey, OperatorKey, Signature},
    lock::{Admission, Removal, SignedAdmission, SignedRemoval},
    name::Name,
    report::{Held, HeldBecause, HeldPeer},
    strict,
};

use crate::{
    agent::known_peer::{KnownPeer, prefixes},
    config::directory::{NodeRecord, SiteRecord},
    keys::enrolment,
};

/// What is signed begins with its purpose.
const ADMISSION: &[u8] = b"wattle admission v1\0";
const REMOVAL: &[u8] = b"wattle removal v1\0";
/// Seconds by which an admission has to end later than the one before for it to be worth a
/// signature.
const LATER_S: i64 = 86_400;

/// Why an admission or a removal is not an operator's word.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidWord {
    #[error("it cannot be read")]
    Unreadable,
    #[error("it is not signed by the operator that it names")]
    Signature,
    #[error("it was made for another mesh")]
    Mesh,
}

/// Reads an admission that the operator it names has signed. Whether the operator may is not asked
/// here.
///
/// # Errors
///
/// [`InvalidWord`] when it cannot be read, is of another mesh, or the signature is not that of the
/// operator which it names.
pub fn verify_admission(signed: &SignedAdmission, mesh: MeshId) -> Result<Admission, InvalidWord> {
    let SignedAdmission {
        admission,
        signature,
    } = signed;
    let of = |word: &Admission| (word.operator, word.mesh);
    verify_word(ADMISSION, admission, signature, mesh, of)
}

/// Reads a removal, as [`verify_admission`] does an admission.
///
/// # Errors
///
/// As of [`verify_admission`].
pub fn verify_removal(signed: &SignedRemoval, mesh: MeshId) -> Result<Removal, InvalidWord> {
    let SignedRemoval { removal, signature } = signed;
    let of = |word: &Removal| (word.operator, word.mesh);
    verify_word(REMOVAL, removal, signature, mesh, of)
}

/// Reads what an operator signed for a purpose; `of` says whose word it is, and of which mesh.
fn verify_word<T: DeserializeOwned>(
    purpose: &[u8],
    text: &str,
    signature: &Signature,
    mesh: MeshId,
    of: impl FnOnce(&T) -> (OperatorKey, MeshId),
) -> Result<T, InvalidWord> {
    let word: T = strict::from_str(text).map_err(|_| InvalidWord::Unreadable)?;
    let (operator, made_for) = of(&word);
    let signer = IdentityKey::from(*operator.as_bytes());
    if !enrolment::verify(signer, &[purpose, text.as_bytes()].concat(), signature) {
        return Err(InvalidWord::Signature);
    }
    if made_for == mesh {
        Ok(word)
    } else {
        Err(InvalidWord::Mesh)
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

    /// Signs that a node is out of the mesh, at a time in seconds since 1970; later than the
    /// admission that it had, unless the coordinator says that this was signed in days to come.
    ///
    /// # Errors
    ///
    /// None that happens: a removal can always be written.
    pub fn sign_removal(
        &self,
        mesh: MeshId,
        candidate: &RemovalCandidate,
        signed_at: i64,
    ) -> serde_json::Result<SignedRemoval> {
        let is_plausible = |at: &i64| *at < signed_at.saturating_add(LATER_S);
        let admitted_at = candidate.admitted_at.filter(is_plausible);
        let removal = serde_json::to_string(&Removal {
            mesh,
            operator: self.key,
            node: candidate.node,
            identity: candidate.identity,
            signed_at: admitted_at.map_or(signed_at, |at| signed_at.max(at.saturating_add(1))),
        })?;
        let signature = enrolment::sign(&self.keys, &[REMOVAL, removal.as_bytes()].concat());
        Ok(SignedRemoval { removal, signature })
    }

    /// What there is to sign of nodes that are out of the mesh: of those that the coordinator
    /// lists, and of those that hosts hold although it has lost them. What this operator has signed
    /// already is not there.
    ///
    /// A host may say what it likes of others, so no node that takes part is among them.
    pub fn removal_candidates(
        &self,
        mesh: MeshId,
        removed: &[RemovedNode],
        nodes: &[Node],
    ) -> Vec<RemovalCandidate> {
        let mut candidates: BTreeMap<NodeId, RemovalCandidate> = removed
            .iter()
            .filter_map(|removed| self.removal_candidate(mesh, removed))
            .map(|candidate| (candidate.node, candidate))
            .collect();
        let listed: BTreeSet<_> = removed.iter().map(|removed| removed.id).collect();
        let there: BTreeSet<_> = nodes.iter().map(|node| node.id).collect();
        let identities: BTreeSet<_> = nodes.iter().map(|node| node.identity_key).collect();
        let is_lost = |peer: &HeldPeer| {
            let takes_part = there.contains(&peer.node) || identities.contains(&peer.identity);
            let is_removed = peer.because != HeldBecause::NotAdmitted;
            is_removed && !takes_part && !listed.contains(&peer.node)
        };
        for node in nodes {
            for peer in node.held.iter().flat_map(|held| &held.peers) {
                if is_lost(peer) {
                    candidates
                        .entry(peer.node)
                        .or_insert_with(|| RemovalCandidate {
                            name: Some(peer.name.clone()),
                            ..RemovalCandidate::of(peer.node, peer.identity)
                        });
                }
                if let Some(candidate) = candidates.get_mut(&peer.node) {
                    candidate.held_by.insert(node.name.clone());
                }
            }
        }
        candidates.into_values().collect()
    }

    fn removal_candidate(&self, mesh: MeshId, removed: &RemovedNode) -> Option<RemovalCandidate> {
        let (node, identity) = (removed.id, removed.identity_key);
        let admission = removed.admission.as_ref();
        let admission = admission.and_then(|signed| verify_admission(signed, mesh).ok());
        let admitted_at = admission.map(|admission| admission.signed_at);
        let before = removed.removal.as_ref();
        let before = before.and_then(|signed| verify_removal(signed, mesh).ok());
        let is_signed = before.is_some_and(|removal| {
            let is_own = removal.operator == self.key;
            let is_later = admitted_at.is_none_or(|at| removal.signed_at > at);
            is_own && is_later && (removal.node, removal.identity) == (node, identity)
        });
        (!is_signed).then(|| RemovalCandidate {
            name: removed.name.clone(),
            site: removed.site_name.clone(),
            admitted_at,
            ..RemovalCandidate::of(node, identity)
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

/// A node of which an operator is asked to sign that it is out of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemovalCandidate {
    pub node: NodeId,
    /// Absent for one that neither the coordinator nor a host can name.
    pub name: Option<Name>,
    /// Absent once the site is gone, too.
    pub site: Option<Name>,
    pub identity: IdentityKey,
    /// Nodes whose hosts have it until somebody confirms that it goes.
    pub held_by: BTreeSet<Name>,
    /// When an operator admitted it last, as far as the coordinator tells.
    #[serde(skip)]
    admitted_at: Option<i64>,
}

impl RemovalCandidate {
    fn of(node: NodeId, identity: IdentityKey) -> Self {
        Self {
            node,
            name: None,
            site: None,
            identity,
            held_by: BTreeSet::new(),
            admitted_at: None,
        }
    }
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
    let lans: Vec<IpNet> = site
        .spec
        .subnets
        .iter()
        .map(|subnet| subnet.net())
        .collect();
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

/// Whether hosts that require the lock keep a node that is removed until an operator signs that,
/// as far as others know: an operator admitted it, or this host says that it let it in before.
pub fn is_kept(node: &NodeRecord, held: Option<&Held>) -> bool {
    let is_held = |held: &Held| held.peers.iter().any(|peer| peer.node == node.id);
    node.admission.is_some() || held.is_some_and(is_held)
}

/// What a host that requires the lock remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The operators whom the host believes, from its own file.
    operators: BTreeSet<OperatorKey>,
    /// The newest admission of each node.
    admissions: BTreeMap<IdentityKey, Admission>,
    /// Nodes that were removed, and when the admission was signed that they had, or the removal:
    /// only a later admission lets them in again.
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
        if let Some(admission) = self.news_of(mesh, known) {
            self.grandfathered.remove(&known.peer.node);
            let identity = known.statement.identity;
            self.admissions.insert(identity, admission);
        }
    }

    /// What came with a peer's record, if it is the word of an operator and newer than what is
    /// known, also of its removal.
    pub fn news_of(&self, mesh: MeshId, known: &KnownPeer) -> Option<Admission> {
        let signed = known.peer.admission.as_ref()?;
        let admission = verify_admission(signed, mesh).ok()?;
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
        let counts = is_known && is_newer(newest) && spent.into_iter().all(is_newer);
        counts.then_some(admission)
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

    /// When an operator signed that a peer goes; `None` if it is the word of none whom the host
    /// believes, is of another node, or was signed before the peer was admitted.
    pub fn removal_signed_at(
        &self,
        mesh: MeshId,
        known: &KnownPeer,
        signed: &SignedRemoval,
    ) -> Option<i64> {
        let removal = verify_removal(signed, mesh).ok()?;
        let is_its = removal.node == known.peer.node
            && enrolment::is_or_was(&known.statement, removal.identity);
        let admission = self.admissions.get(&known.statement.identity);
        let is_later = admission.is_none_or(|admission| removal.signed_at > admission.signed_at);
        let counts = self.operators.contains(&removal.operator) && is_its && is_later;
        counts.then_some(removal.signed_at)
    }

    /// A peer was removed, and an operator signed that at a time, if any did. It does not come back
    /// with the admission that it had, nor with one that was signed before the removal.
    pub fn forget(&mut self, known: &KnownPeer, signed_at: Option<i64>) {
        self.grandfathered.remove(&known.peer.node);
        let identity = known.statement.identity;
        let admission = self.admissions.remove(&identity);
        let admitted_at = admission.map(|admission| admission.signed_at);
        if let Some(at) = admitted_at.max(signed_at) {
            let spent = self.spent.entry(identity).or_insert(at);
            *spent = at.max(*spent);
        }
    }

    /// Whether an operator let a peer in, or the host did when the lock was turned on. It does not
    /// matter whether the admission has ended: clocks can be set.
    pub fn has(&self, known: &KnownPeer) -> bool {
        self.grandfathered.contains_key(&known.peer.node)
            || self.admissions.contains_key(&known.statement.identity)
    }

    /// Whether the host believes these operators, and no others.
    pub fn believes(&self, operators: &BTreeSet<OperatorKey>) -> bool {
        self.operators == *operators
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
