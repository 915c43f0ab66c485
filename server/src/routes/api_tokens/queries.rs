//! SQL of api tokens.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::access::Grant;
use wattle_wire::{
    admin::{ApiToken, NewApiToken},
    ids::TokenId,
};

use crate::{
    error::{Error, Result},
    http::auth::parse_role,
    secret,
};

struct ApiTokenRow {
    id: Uuid,
    name: String,
    role: String,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
}

impl TryFrom<ApiTokenRow> for ApiToken {
    type Error = Error;

    fn try_from(row: ApiTokenRow) -> Result<Self> {
        let ApiTokenRow {
            id,
            name,
            role,
            created_at,
            expires_at,
            last_used_at,
        } = row;
        Ok(Self {
            id: TokenId(id),
            name,
            role: parse_role(&role)?,
            created_at,
            expires_at,
            last_used_at,
        })
    }
}

pub async fn insert(
    connection: &mut PgConnection,
    token: &secret::ApiCredential,
    wanted: &NewApiToken,
) -> Result<ApiToken> {
    let row = sqlx::query_as!(
        ApiTokenRow,
        "INSERT INTO api_tokens (id, name, role, secret_hash, expires_at)
         VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5::bigint::double precision))
         RETURNING id, name, role, created_at, expires_at, last_used_at",
        token.id.0,
        wanted.name,
        wanted.role.name(),
        &secret::hash(token.secret.reveal()),
        wanted.expires_in_s
    );
    row.fetch_one(connection).await?.try_into()
}

pub(super) async fn find(connection: &mut PgConnection, id: TokenId) -> Result<Option<ApiToken>> {
    let row = sqlx::query_as!(
        ApiTokenRow,
        "SELECT id, name, role, created_at, expires_at, last_used_at FROM api_tokens WHERE id = $1 \
         AND revoked_at IS NULL",
        id.0
    );
    row.fetch_optional(connection)
        .await?
        .map(ApiToken::try_from)
        .transpose()
}

/// The api tokens that were not revoked.
pub async fn list(
    connection: &mut PgConnection,
    after: Option<TokenId>,
    limit: usize,
) -> Result<Vec<ApiToken>> {
    let rows = sqlx::query_as!(
        ApiTokenRow,
        "SELECT id, name, role, created_at, expires_at, last_used_at FROM api_tokens
         WHERE revoked_at IS NULL AND ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2",
        after.map(|id| id.0),
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(ApiToken::try_from)
        .collect()
}

/// What an api token is good for now; it is not revoked before the transaction ends.
pub(super) async fn lock(connection: &mut PgConnection, id: TokenId) -> Result<Option<Grant>> {
    let row = sqlx::query!(
        "SELECT role, expires_at FROM api_tokens
         WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) FOR \
         SHARE",
        id.0
    );
    let Some(row) = row.fetch_optional(connection).await? else {
        return Ok(None);
    };
    Ok(Some(Grant {
        role: parse_role(&row.role)?,
        expires_at: row.expires_at,
    }))
}

/// The api token as it was; `None` if there was none.
pub async fn revoke(connection: &mut PgConnection, id: TokenId) -> Result<Option<ApiToken>> {
    let row = sqlx::query_as!(
        ApiTokenRow,
        "UPDATE api_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
         RETURNING id, name, role, created_at, expires_at, last_used_at",
        id.0
    );
    row.fetch_optional(connection)
        .await?
        .map(ApiToken::try_from)
        .transpose()
}
