//! SQL of api tokens.

use sqlx::PgConnection;
use wattle_mesh::access::Grant;
use wattle_wire::{
    admin::{ApiToken, NewApiToken, Role},
    ids::TokenId,
};

use crate::{error::Result, secret};

pub async fn insert(
    connection: &mut PgConnection,
    token: &secret::ApiCredential,
    wanted: &NewApiToken,
) -> Result<ApiToken> {
    let row = sqlx::query_as!(
        ApiToken,
        r#"INSERT INTO api_tokens (id, name, role, secret_hash, expires_at)
           VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5::bigint::double precision))
           RETURNING id, name, role AS "role: Role", created_at, expires_at,
                     last_used_at"#,
        token.id.0,
        wanted.name,
        wanted.role as Role,
        &secret::hash(token.secret.reveal()),
        wanted.expires_in_s
    );
    Ok(row.fetch_one(connection).await?)
}

pub(super) async fn find(connection: &mut PgConnection, id: TokenId) -> Result<Option<ApiToken>> {
    let row = sqlx::query_as!(
        ApiToken,
        r#"SELECT id, name, role AS "role: Role", created_at, expires_at,
                  last_used_at
           FROM api_tokens WHERE id = $1 AND revoked_at IS NULL"#,
        id.0
    );
    Ok(row.fetch_optional(connection).await?)
}

/// The api tokens that were not revoked.
pub async fn list(
    connection: &mut PgConnection,
    after: Option<TokenId>,
    limit: usize,
) -> Result<Vec<ApiToken>> {
    let tokens = sqlx::query_as!(
        ApiToken,
        r#"SELECT id, name, role AS "role: Role", created_at, expires_at,
                  last_used_at
           FROM api_tokens
           WHERE revoked_at IS NULL AND ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2"#,
        after.map(|id| id.0),
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    Ok(tokens.fetch_all(connection).await?)
}

/// What an api token is good for now; it is not revoked before the transaction ends.
pub(super) async fn lock(connection: &mut PgConnection, id: TokenId) -> Result<Option<Grant>> {
    let row = sqlx::query!(
        r#"SELECT role AS "role: Role", expires_at FROM api_tokens
           WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
           FOR SHARE"#,
        id.0
    );
    let Some(row) = row.fetch_optional(connection).await? else {
        return Ok(None);
    };
    Ok(Some(Grant {
        role: row.role,
        expires_at: row.expires_at,
    }))
}

/// The api token as it was; `None` if there was none.
pub async fn revoke(connection: &mut PgConnection, id: TokenId) -> Result<Option<ApiToken>> {
    let token = sqlx::query_as!(
        ApiToken,
        r#"UPDATE api_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
           RETURNING id, name, role AS "role: Role", created_at, expires_at, last_used_at"#,
        id.0
    );
    Ok(token.fetch_optional(connection).await?)
}
