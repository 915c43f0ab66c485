//! SQL of kept answers.

use anyhow::Context;
use sqlx::PgConnection;

use super::IdempotencyKey;
use crate::error::{Error, Result};

/// The hash of the request that the key was used for, and its sealed answer. `None` makes it
/// this transaction's: others wait for its end.
pub(super) async fn claim(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let claimed = sqlx::query!(
        "INSERT INTO answers (id, request) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
        key.id.as_slice(),
        key.request.as_slice()
    );
    if claimed.execute(&mut *connection).await?.rows_affected() == 1 {
        return Ok(None);
    }
    let row = sqlx::query!(
        "SELECT request, sealed FROM answers WHERE id = $1",
        key.id.as_slice()
    );
    // It may just have been forgotten, after its day.
    let row = row
        .fetch_optional(connection)
        .await?
        .ok_or(Error::Unavailable("an answer was forgotten this moment"))?;
    Ok(Some((
        row.request,
        row.sealed.context("an answer was not kept")?,
    )))
}

pub(super) async fn keep(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
    sealed: &[u8],
) -> Result<()> {
    sqlx::query!(
        "UPDATE answers SET sealed = $2 WHERE id = $1",
        key.id.as_slice(),
        sealed
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets answers after a day.
pub async fn forget_old(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("DELETE FROM answers WHERE made_at < now() - interval '24 hours'")
        .execute(connection)
        .await?;
    Ok(())
}
