//! SQL of the pins that agents are to trust.

use sqlx::PgConnection;
use wattle_wire::key::Bytes32;

use crate::error::{Error, Result};

/// The pins, oldest first; nobody else changes them before the transaction ends.
pub(super) async fn lock_pins(connection: &mut PgConnection) -> Result<Vec<Bytes32>> {
    sqlx::query!("LOCK TABLE authorities IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *connection)
        .await?;
    let pins = sqlx::query_scalar!("SELECT pin FROM authorities ORDER BY made_at")
        .fetch_all(connection)
        .await?;
    pins.into_iter().map(parse).collect()
}

pub(super) async fn pins(connection: &mut PgConnection) -> Result<Vec<Bytes32>> {
    let pins = sqlx::query_scalar!("SELECT pin FROM authorities ORDER BY made_at")
        .fetch_all(connection)
        .await?;
    pins.into_iter().map(parse).collect()
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

fn parse(pin: Vec<u8>) -> Result<Bytes32> {
    <[u8; 32]>::try_from(pin)
        .map(Bytes32::from)
        .map_err(|_| Error::Internal("a pin has a wrong length"))
}
