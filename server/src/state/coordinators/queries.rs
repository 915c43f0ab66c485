//! SQL of where coordinators are.

use ipnet::IpNet;
use sqlx::PgConnection;
use uuid::Uuid;

use super::CoordinatorAddress;
use crate::error::Result;

/// Lets one coordinator at a time say where it is: two would wait for each other's rows.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("LOCK TABLE coordinator_addresses IN SHARE ROW EXCLUSIVE MODE")
        .execute(connection)
        .await?;
    Ok(())
}

/// Where the coordinators are.
pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<CoordinatorAddress>> {
    let rows = sqlx::query!("SELECT DISTINCT host, address FROM coordinator_addresses");
    let rows = rows.fetch_all(connection).await?.into_iter();
    Ok(rows
        .map(|row| CoordinatorAddress {
            address: row.address.addr(),
            host: row.host,
        })
        .collect())
}

pub(super) async fn of_host(connection: &mut PgConnection, host: &str) -> Result<Vec<IpNet>> {
    let addresses = sqlx::query_scalar!(
        "SELECT DISTINCT address FROM coordinator_addresses WHERE host = $1",
        host
    );
    Ok(addresses.fetch_all(connection).await?)
}

/// Writes down where a coordinator found a host, in place of what it found before.
pub(super) async fn keep(
    connection: &mut PgConnection,
    coordinator: Uuid,
    host: Option<&str>,
    addresses: &[IpNet],
) -> Result<()> {
    sqlx::query!(
        "DELETE FROM coordinator_addresses
         WHERE coordinator = $1 AND host IS NOT DISTINCT FROM $2 AND address <> ALL($3)",
        coordinator,
        host,
        addresses
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO coordinator_addresses (coordinator, host, address)
         SELECT $1, $2, unnest($3::inet[])
         ON CONFLICT (coordinator, host, address) DO UPDATE SET found_at = excluded.found_at",
        coordinator,
        host,
        addresses
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets where coordinators found a host that have not said so for three minutes: they have
/// ended. Whoever asks has an answer of its own.
pub(super) async fn forget_silent(connection: &mut PgConnection, host: &str) -> Result<()> {
    sqlx::query!(
        "DELETE FROM coordinator_addresses
         WHERE host = $1 AND found_at < now() - interval '3 minutes'",
        host
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets what nobody has said for longer: of interfaces at once, of hosts after a day.
pub(super) async fn forget_old(
    connection: &mut PgConnection,
    coordinator: Uuid,
    hosts: &[String],
) -> Result<()> {
    sqlx::query!(
        "DELETE FROM coordinator_addresses
         WHERE coordinator <> $1 AND found_at < now() - CASE WHEN host IS NULL
             THEN interval '3 minutes' ELSE interval '1 day' END
           AND (host IS NULL OR host <> ALL($2))",
        coordinator,
        hosts
    )
    .execute(connection)
    .await?;
    Ok(())
}
