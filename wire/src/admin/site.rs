//! Sites.

use std::{collections::BTreeMap, net::Ipv4Addr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::{node::NodeState, token::CreatedJoinToken},
    endpoint::Endpoint,
    ids::{NodeId, SiteId},
    name::Name,
    subnet::Subnet,
};

/// `POST /sites`: a site as somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteSpec {
    pub name: Name,
    /// Free text, at most 256 characters without control characters.
    #[serde(default)]
    pub description: String,
    /// Free labels, at most 32, for filters and tools.
    #[serde(default)]
    pub labels: BTreeMap<Name, String>,
    /// Where the site's gateway answers WireGuard packets; absent means it has to speak first
    /// (behind NAT).
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// LAN prefixes of the site, at most 256.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
}

/// `PATCH /sites/{site}`: absent fields stay as they are; `"endpoint": null` takes the endpoint
/// away.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SitePatch {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub name: Option<Name>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub description: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub labels: Option<BTreeMap<Name, String>>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(value_type = Option<Endpoint>)]
    pub endpoint: Option<Option<Endpoint>>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(nullable = false)]
    pub subnets: Option<Vec<Subnet>>,
}

impl SitePatch {
    /// A site that was so, after the patch.
    #[must_use]
    pub fn applied_to(&self, before: &SiteSpec) -> SiteSpec {
        let Self {
            name,
            description,
            labels,
            endpoint,
            subnets,
        } = self.clone();
        SiteSpec {
            name: name.unwrap_or_else(|| before.name.clone()),
            description: description.unwrap_or_else(|| before.description.clone()),
            labels: labels.unwrap_or_else(|| before.labels.clone()),
            endpoint: endpoint.unwrap_or(before.endpoint),
            subnets: subnets.unwrap_or_else(|| before.subnets.clone()),
        }
    }
}

/// A site, with its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Site {
    pub id: SiteId,
    pub name: Name,
    pub description: String,
    pub labels: BTreeMap<Name, String>,
    pub endpoint: Option<Endpoint>,
    pub subnets: Vec<Subnet>,
    /// The tunnel address kept for the site's gateway.
    #[schema(value_type = String, example = "10.99.0.1")]
    pub tunnel_address: Ipv4Addr,
    pub nodes: Vec<SiteNode>,
    pub created_at: DateTime<Utc>,
}

/// A node, as its site lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteNode {
    pub id: NodeId,
    pub name: Name,
    pub state: NodeState,
}

/// Answer to `POST /sites`: the site and, once, the way to join it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedSite {
    #[serde(flatten)]
    pub site: Site,
    pub join_token: CreatedJoinToken,
    pub warnings: Vec<Warning>,
}

/// Answer to `PATCH /sites/{site}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedSite {
    #[serde(flatten)]
    pub site: Site,
    pub warnings: Vec<Warning>,
}

/// What is done as it was asked for, and may not be what was meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// Stable; `subnet_holds_coordinator`, `subnet_holds_own_address` or
    /// `removal_waits_for_signature`.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// `POST /import`: sites that are created together, all or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// 1 to 1,000, each as in `POST /sites`.
    pub sites: Vec<SiteSpec>,
}

impl Import {
    pub const MOST_SITES: usize = 1_000;
}

/// Answer to `POST /import`: the sites in the order in which they were given.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    pub sites: Vec<CreatedSite>,
}
