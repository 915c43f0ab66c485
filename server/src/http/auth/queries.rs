//! SQL of credentials.

use sqlx::PgConnection;
use wattle_mesh::access::Grant;
use wattle_wire::{
    admin::Role,
    ids::{NodeId, TokenId},
};

use crate::error::Result;

/// What is known of an api token that is good for something now.
pub(super) struct Credential {
    /// Of its secret.
    pub(super) hash: Vec<u8>,
    pub(super) grant: Grant,
    /// What it is for.
    pub(super) name: String,
}

pub(super) async fn credential(
    connection: &mut PgConnection,
    id: TokenId,
) -> Result<Option<Credential>> {
    let row = sqlx::query!(
        r#"SELECT secret_hash, role AS "role: Role", expires_at, name FROM api_tokens
           WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"#,
        id.0
    );
    let Some(row) = row.fetch_optional(connection).await? else {
        return Ok(None);
    };
    Ok(Some(Credential {
        hash: row.secret_hash,
        grant: Grant {
            role: row.role,
            expires_at: row.expires_at,
        },
        name: row.name,
    }))
}

/// The api tokens that were used and are good now, with the hashes of their secrets.
pub(super) async fn known(connection: &mut PgConnection) -> Result<Vec<(TokenId, Vec<u8>)>> {
    let rows = sqlx::query!(
        "SELECT id, secret_hash FROM api_tokens WHERE last_used_at IS NOT NULL AND revoked_at IS \
         NULL AND (expires_at IS NULL OR expires_at > now())"
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows.map(|row| (TokenId(row.id), row.secret_hash)).collect())
}

/// Those of some api tokens and join tokens that are good for nothing now.
pub(super) async fn ended(
    connection: &mut PgConnection,
    tokens: &[TokenId],
) -> Result<Vec<TokenId>> {
    let tokens: Vec<_> = tokens.iter().map(|token| token.0).collect();
    let ended = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM unnest($1::uuid[]) AS asked (id)
           WHERE NOT EXISTS (SELECT FROM api_tokens WHERE api_tokens.id = asked.id
               AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
             AND NOT EXISTS (SELECT FROM join_tokens WHERE join_tokens.id = asked.id
               AND revoked_at IS NULL AND uses_left > 0 AND expires_at > now())"#,
        &tokens
    );
    let ended = ended.fetch_all(connection).await?;
    Ok(ended.into_iter().map(TokenId).collect())
}

/// Notes that an api token was used.
pub(super) async fn used(connection: &mut PgConnection, id: TokenId) -> Result<()> {
    sqlx::query!(
        "UPDATE api_tokens SET last_used_at = now() WHERE id = $1",
        id.0
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Raises the generation of a node's tokens, unless the node did so within the last minute.
/// Whether it did.
pub(super) async fn raise_generation(
    connection: &mut PgConnection,
    node: NodeId,
    generation: i32,
) -> Result<bool> {
    let raised = sqlx::query!(
        "UPDATE nodes SET generation = $2, generation_since = now() WHERE id = $1 AND generation < \
         $2 AND state <> 'revoked' AND (generation_since IS NULL OR generation_since < now() - \
         interval '1 minute')",
        node.0,
        generation
    );
    Ok(raised.execute(connection).await?.rows_affected() == 1)
}
