//! Settings of the mesh, and whether a coordinator is ready.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ids::{MeshId, Position},
    probe::HealthSettings,
    psk::PskPolicy,
};

/// Settings of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mesh {
    pub id: MeshId,
    /// The prefix from which tunnel addresses are taken.
    #[schema(value_type = String, example = "10.99.0.0/16")]
    pub tunnel_prefix: Ipv4Net,
    /// UDP port on which gateways listen, unless their endpoint says another.
    pub listen_port: u16,
    /// Seconds between WireGuard keepalives; 0 means none.
    pub keepalive_s: u16,
    pub psk: PskPolicy,
    /// Days for which a node uses a WireGuard key; 0 means that it keeps it until somebody asks for
    /// a new one.
    pub rotate_days: u16,
    #[serde(flatten)]
    pub health: HealthSettings,
}

/// `PATCH /mesh`: absent fields stay as they are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MeshPatch {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub psk: Option<PskPolicy>,
    /// 0, or 1 to [`MeshPatch::LONGEST_ROTATE_DAYS`].
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false, maximum = 3650)]
    pub rotate_days: Option<u16>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub probes: Option<bool>,
    /// 1 to 100.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false, minimum = 1, maximum = 100)]
    pub lossy_percent: Option<u8>,
    /// 1 to 60,000.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false, minimum = 1, maximum = 60_000)]
    pub slow_ms: Option<u16>,
}

impl MeshPatch {
    pub const LONGEST_ROTATE_DAYS: u16 = 3650;
}

/// `GET /version`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version of the coordinator, as `wattle-server --version` prints it.
    pub version: String,
}

/// `GET /readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// How far this coordinator's copy of the mesh has come.
    pub position: Position,
}
