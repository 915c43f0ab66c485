//! The lock: who may be in the mesh and who is out of it, as an operator says it with a key that no
//! coordinator has.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ids::{MeshId, NodeId},
    key::{IdentityKey, OperatorKey, Signature},
};

/// That a node may be in the mesh, with at most these prefixes. Of two admissions of one node, the
/// one that was signed later counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    pub mesh: MeshId,
    pub operator: OperatorKey,
    /// Who the node is. Its WireGuard key may change under it.
    pub identity: IdentityKey,
    /// Its tunnel address and its LANs.
    pub prefixes: BTreeSet<IpNet>,
    /// Seconds since 1970, by the operator's clock.
    pub signed_at: i64,
    /// Seconds since 1970, by the clock of whoever believes it; absent means that it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<i64>,
}

/// An [`Admission`] as its operator wrote it, with the operator's signature over those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedAdmission {
    /// The admission's JSON, verbatim.
    pub admission: String,
    pub signature: Signature,
}

impl SignedAdmission {
    /// The longest text of an admission, in bytes: one with 256 prefixes is shorter.
    pub const LONGEST: usize = 16 * 1024;
}

/// `POST /admissions`: all or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAdmissions {
    /// 1 to 10,000, each of a node of this mesh.
    pub admissions: Vec<SignedAdmission>,
}

impl NewAdmissions {
    pub const MOST: usize = 10_000;
}

/// That a node is out of the mesh. It counts against every admission that was signed before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub mesh: MeshId,
    pub operator: OperatorKey,
    pub node: NodeId,
    /// Who the node was.
    pub identity: IdentityKey,
    /// Seconds since 1970, by the operator's clock.
    pub signed_at: i64,
}

/// A [`Removal`] as its operator wrote it, with the operator's signature over those bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedRemoval {
    /// The removal's JSON, verbatim.
    pub removal: String,
    pub signature: Signature,
}

impl SignedRemoval {
    /// The longest text of a removal, in bytes.
    pub const LONGEST: usize = 1024;
}

/// `POST /removals`: all or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRemovals {
    /// 1 to 5,000, each of a node that was removed.
    pub removals: Vec<SignedRemoval>,
}

impl NewRemovals {
    pub const MOST: usize = 5_000;
}
