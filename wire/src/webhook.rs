//! Webhooks: who is told of links and nodes that change their state, and what they are told.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::LinkState,
    ids::{MeshId, NodeId, WebhookId},
    name::Name,
    secret::Secret,
};

/// Header of a message: `t=<seconds since 1970>,v1=<hex>`, HMAC-SHA256 under the webhook's secret
/// over `<t>.<body>`.
pub const SIGNATURE_HEADER: &str = "wattle-signature";

/// `POST /webhooks`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// Where messages are posted to, `https://` or `http://`, at most 2,048 bytes; kept in its
    /// canonical form. Addresses of coordinators, link-local, metadata and reserved ones are refused.
    pub url: String,
}

/// A webhook, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Webhook {
    pub id: WebhookId,
    pub url: String,
    pub created_at: DateTime<Utc>,
    /// When a message was last taken there; null means never.
    pub delivered_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed; null when it did not.
    pub error: Option<String>,
}

/// A new webhook with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedWebhook {
    #[serde(flatten)]
    pub webhook: Webhook,
    pub secret: Secret,
}

/// What is posted to a webhook. The same message may come more than once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Tells messages apart, also when one comes again.
    pub id: Uuid,
    pub mesh: MeshId,
    pub at: DateTime<Utc>,
    /// All of it in a sentence.
    pub summary: String,
    /// At most 100; empty in a test.
    pub alerts: Vec<Alert>,
    /// Alerts that were left out.
    pub more: usize,
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Alert {
    /// Most links of a node changed together.
    Node {
        node: NodeId,
        name: Name,
        /// The state of those links now.
        state: LinkState,
        links: usize,
        /// All links of the node.
        of: usize,
    },
    /// A link changed by itself.
    Link {
        ends: [NodeId; 2],
        names: [Name; 2],
        before: LinkState,
        state: LinkState,
    },
    /// The same became of these nodes.
    Nodes {
        change: NodeChange,
        /// At most 100.
        nodes: Vec<AlertNode>,
        /// How many they are in all.
        count: usize,
    },
}

/// A node of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AlertNode {
    pub node: NodeId,
    pub name: Name,
}

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum NodeChange {
    Joined,
    /// By itself or with its site.
    Revoked,
    /// Its agent has not reported for 150 s. Its tunnels may be up.
    Silent,
    /// Its agent reports again.
    Back,
    /// Something on the gateway keeps its LANs from others: see its problems.
    LanDegraded,
    /// Nothing does any more.
    LanOk,
}

impl NodeChange {
    pub const ALL: [Self; 6] = [
        Self::Joined,
        Self::Revoked,
        Self::Silent,
        Self::Back,
        Self::LanDegraded,
        Self::LanOk,
    ];
}
