//! SQL of join tokens and api tokens.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_wire::{
    admin::JoinToken,
    ids::{SiteId, TokenId},
};

use super::Issue;
use crate::{
    error::Result,
    secret::{self, ApiToken},
};

struct JoinTokenRow {
    id: Uuid,
    site: Uuid,
    uses_left: i32,
    expires_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
}

impl From<JoinTokenRow> for JoinToken {
    fn from(row: JoinTokenRow) -> Self {
        let JoinTokenRow { id, site, uses_left, expires_at, created_at } = row;
        Self { id: TokenId(id), site: SiteId(site), uses_left, expires_at, created_at }
    }
}

pub async fn insert(connection: &mut PgConnection, issue: &Issue) -> Result<JoinToken> {
    let row = sqlx::query_as!(
        JoinTokenRow,
        "INSERT INTO join_tokens (id, site, secret_hash, uses_left, expires_at)
         VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5::bigint::double precision))
         RETURNING id, site, uses_left, expires_at, created_at",
        issue.id.0,
        issue.site.0,
        &secret::hash(issue.secret.reveal()),
        issue.wanted.uses,
        issue.wanted.expires_in_s
    );
    Ok(row.fetch_one(connection).await?.into())
}

pub(super) async fn find(connection: &mut PgConnection, id: TokenId) -> Result<Option<JoinToken>> {
    let row = sqlx::query_as!(
        JoinTokenRow,
        "SELECT id, site, uses_left, expires_at, created_at FROM join_tokens WHERE id = $1 AND revoked_at IS NULL",
        id.0
    );
    Ok(row.fetch_optional(connection).await?.map(JoinToken::from))
}

pub(super) async fn of_site(connection: &mut PgConnection, site: SiteId, after: Option<TokenId>, limit: usize) -> Result<Vec<JoinToken>> {
    let rows = sqlx::query_as!(
        JoinTokenRow,
        "SELECT id, site, uses_left, expires_at, created_at FROM join_tokens
         WHERE site = $1 AND revoked_at IS NULL AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
        site.0,
        after.map(|id| id.0),
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(JoinToken::from).collect())
}

/// Whether there was such a token.
pub(super) async fn revoke(connection: &mut PgConnection, id: TokenId) -> Result<bool> {
    let revoked = sqlx::query!("UPDATE join_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL", id.0);
    Ok(revoked.execute(connection).await?.rows_affected() == 1)
}

/// An api token as it is stored.
#[derive(Debug)]
pub struct StoredApiToken {
    pub id: Uuid,
    pub name: String,
    pub role: String,
    pub created_at: DateTime<Utc>,
}

pub async fn insert_api_token(connection: &mut PgConnection, token: &ApiToken, name: &str) -> Result<()> {
    sqlx::query!(
        "INSERT INTO api_tokens (id, name, role, secret_hash) VALUES ($1, $2, 'owner', $3)",
        token.id.0,
        name,
        &secret::hash(token.secret.reveal())
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The api tokens that were not revoked.
pub async fn api_tokens(connection: &mut PgConnection) -> Result<Vec<StoredApiToken>> {
    let rows = sqlx::query_as!(StoredApiToken, "SELECT id, name, role, created_at FROM api_tokens WHERE revoked_at IS NULL ORDER BY id");
    Ok(rows.fetch_all(connection).await?)
}

/// The hash of an api token's secret.
pub async fn api_token_hash(connection: &mut PgConnection, id: TokenId) -> Result<Option<Vec<u8>>> {
    let hash = sqlx::query_scalar!("SELECT secret_hash FROM api_tokens WHERE id = $1 AND revoked_at IS NULL", id.0);
    Ok(hash.fetch_optional(connection).await?)
}

/// Whether there was such an api token.
pub async fn revoke_api_token(connection: &mut PgConnection, id: TokenId) -> Result<bool> {
    let revoked = sqlx::query!("UPDATE api_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL", id.0);
    Ok(revoked.execute(connection).await?.rows_affected() == 1)
}
