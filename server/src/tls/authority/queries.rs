//! SQL of the pins that agents are to trust.

use sqlx::PgConnection;
use wattle_wire::key::Bytes32;

use crate::error::Result;

/// The pins, oldest first; nobody else changes them before the transaction ends.
pub(super) async fn lock_pins(connection: &mut PgConnection) -> Result<Vec<Bytes32>> {
    sqlx::query!("LOCK TABLE authorities IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *connection)
        .await?;
    Ok(
        sqlx::query_scalar!(r#"SELECT pin AS "pin: Bytes32" FROM authorities ORDER BY made_at"#)
            .fetch_all(connection)
            .await?,
    )
}

pub(super) async fn pins(connection: &mut PgConnection) -> Result<Vec<Bytes32>> {
    Ok(
        sqlx::query_scalar!(r#"SELECT pin AS "pin: Bytes32" FROM authorities ORDER BY made_at"#)
            .fetch_all(connection)
            .await?,
    )
}

/// Whether the pin is new.
pub(super) async fn insert(connection: &mut PgConnection, pin: Bytes32) -> Result<bool> {
    let inserted = sqlx::query!(
        "INSERT INTO authorities (pin) VALUES ($1) ON CONFLICT DO NOTHING",
        pin.as_bytes()
    );
    Ok(inserted.execute(connection).await?.rows_affected() == 1)
}

/// Whether there was such a pin.
pub(super) async fn delete(connection: &mut PgConnection, pin: Bytes32) -> Result<bool> {
    Ok(
        sqlx::query!("DELETE FROM authorities WHERE pin = $1", pin.as_bytes())
            .execute(connection)
            .await?
            .rows_affected()
            == 1,
    )
}
