//! Join tokens and api tokens.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use crate::{
    ids::{SiteId, TokenId},
    secret::Secret,
};

/// `POST /sites/{site}/join-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewJoinToken {
    /// How many machines may join with it, 1 to 100.
    pub uses: i32,
    /// Seconds until it expires, at most 7 days.
    pub expires_in_s: i64,
}

impl NewJoinToken {
    pub const MOST_USES: i32 = 100;
    pub const LONGEST_S: i64 = 7 * 24 * 3600;
}

impl Default for NewJoinToken {
    /// One machine, within an hour.
    fn default() -> Self {
        Self {
            uses: 1,
            expires_in_s: 3600,
        }
    }
}

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    pub id: TokenId,
    pub site: SiteId,
    pub uses_left: i32,
    pub expires_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

/// A new join token with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedJoinToken {
    pub id: TokenId,
    pub expires_at: DateTime<Utc>,
    /// The word that holds all a new gateway needs.
    pub join_string: Secret,
    /// What to run on the gateway.
    pub command: Secret,
    /// What to run there before, when it has no agent yet. Null when the coordinator does not know
    /// where packages are (`--packages`).
    #[serde(default)]
    pub install: Option<InstallCommands>,
}

/// Commands that install the agent, for root, by the kind of the package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstallCommands {
    /// On Debian, Ubuntu and what is like them.
    pub deb: String,
    /// On Fedora, RHEL and what is like them.
    pub rpm: String,
}

/// What an api token may do: each role may do what those before it may, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(
    feature = "sqlx",
    derive(sqlx::Type),
    sqlx(type_name = "text", rename_all = "snake_case")
)]
pub enum Role {
    /// Sees the mesh and how it is.
    Viewer,
    /// Changes sites and nodes, lets machines join, and makes api tokens for viewers and operators.
    Operator,
    /// Does all.
    Owner,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Viewer, Self::Operator, Self::Owner]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or(InvalidRole)
    }
}

/// The text is not the name of a [`Role`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a role is viewer, operator or owner")]
pub struct InvalidRole;

/// `POST /api-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiToken {
    /// What it is for, 1 to 256 characters without control characters.
    pub name: String,
    /// At most the role of the token that makes it.
    pub role: Role,
    /// Seconds until it expires, at most 10 years; absent means that it does not, which only a
    /// token may ask for that does not either.
    #[serde(default)]
    pub expires_in_s: Option<i64>,
}

impl NewApiToken {
    pub const LONGEST_S: i64 = 10 * 366 * 24 * 3600;
}

/// An api token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    pub id: TokenId,
    pub name: String,
    pub role: Role,
    pub created_at: DateTime<Utc>,
    /// Null when it does not expire.
    pub expires_at: Option<DateTime<Utc>>,
    /// To within a minute; null before its first use.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A new api token with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiToken {
    #[serde(flatten)]
    pub api_token: ApiToken,
    /// What its holder sends: `Authorization: Bearer <token>`.
    pub token: Secret,
}
