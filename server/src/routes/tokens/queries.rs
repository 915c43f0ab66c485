//! SQL of join tokens.

use sqlx::PgConnection;
use wattle_wire::{
    admin::JoinToken,
    ids::{SiteId, TokenId},
};

use super::Issue;
use crate::{error::Result, secret};

pub async fn insert(connection: &mut PgConnection, issue: &Issue) -> Result<JoinToken> {
    let row = sqlx::query_as!(
        JoinToken,
        "INSERT INTO join_tokens (id, site, secret_hash, uses_left, expires_at)
         VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5::bigint::double precision))
         RETURNING id, site, uses_left, expires_at, created_at",
        issue.id.0,
        issue.site.0,
        &secret::hash(issue.secret.reveal()),
        issue.wanted.uses,
        issue.wanted.expires_in_s
    );
    Ok(row.fetch_one(connection).await?)
}

pub(super) async fn find(connection: &mut PgConnection, id: TokenId) -> Result<Option<JoinToken>> {
    let row = sqlx::query_as!(
        JoinToken,
        "SELECT id, site, uses_left, expires_at, created_at FROM join_tokens WHERE id = $1 AND \
         revoked_at IS NULL",
        id.0
    );
    Ok(row.fetch_optional(connection).await?)
}

pub(super) async fn of_site(
    connection: &mut PgConnection,
    site: SiteId,
    after: Option<TokenId>,
    limit: usize,
) -> Result<Vec<JoinToken>> {
    let rows = sqlx::query_as!(
        JoinToken,
        "SELECT id, site, uses_left, expires_at, created_at FROM join_tokens
         WHERE site = $1 AND revoked_at IS NULL AND ($2::uuid IS NULL OR id > $2) ORDER BY id \
         LIMIT $3",
        site.0,
        after.map(|id| id.0),
        i64::try_from(limit).unwrap_or(i64::MAX)
    );
    Ok(rows.fetch_all(connection).await?)
}

/// The token as it was; `None` if there was none.
pub(super) async fn revoke(
    connection: &mut PgConnection,
    id: TokenId,
) -> Result<Option<JoinToken>> {
    let row = sqlx::query_as!(
        JoinToken,
        "UPDATE join_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
         RETURNING id, site, uses_left, expires_at, created_at",
        id.0
    );
    Ok(row.fetch_optional(connection).await?)
}
