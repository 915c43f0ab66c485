//! SQL of changes of identities.

use sqlx::PgConnection;
use wattle_wire::{enrol::Statement, ids::NodeId, key::IdentityKey};

use crate::error::Result;

/// Whether a node had this identity before the one that it has now.
pub(super) async fn is_former(
    connection: &mut PgConnection,
    identity: IdentityKey,
) -> Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM former_identities WHERE identity_key = $1) AS "found!""#,
        identity.as_bytes()
    );
    Ok(found.fetch_one(connection).await?)
}

/// Keeps which identities a node had before that of its statement.
pub(super) async fn keep_former(
    connection: &mut PgConnection,
    node: NodeId,
    statement: &Statement,
) -> Result<()> {
    let former: Vec<_> = statement
        .predecessors
        .iter()
        .map(|predecessor| predecessor.identity.as_bytes().to_vec())
        .collect();
    let kept = sqlx::query!(
        "INSERT INTO former_identities (identity_key, node) SELECT former, $2 FROM \
         unnest($1::bytea[]) AS former ON CONFLICT DO NOTHING",
        &former,
        node.0
    );
    kept.execute(connection).await?;
    Ok(())
}
