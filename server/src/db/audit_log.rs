//! SQL that asks the audit log. It is written by [`super::Db::mutate`].

use sqlx::PgConnection;

use crate::error::Result;

/// Whether it is in the audit log that this was done to the object.
pub async fn is_told(connection: &mut PgConnection, action: &str, object: &str) -> Result<bool> {
    let told = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM events WHERE object = $1 AND action = $2) AS "told!""#,
        object,
        action
    );
    Ok(told.fetch_one(connection).await?)
}
