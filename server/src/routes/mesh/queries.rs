//! SQL of the settings of the mesh.

use sqlx::PgConnection;
use wattle_wire::{peer::MeshSettings, probe::HealthSettings, psk::PskPolicy};

use crate::error::Result;

/// Lets one transaction at a time change the settings.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("SELECT id FROM mesh FOR UPDATE")
        .fetch_one(connection)
        .await?;
    Ok(())
}

pub(super) async fn update(connection: &mut PgConnection, settings: &MeshSettings) -> Result<()> {
    let HealthSettings {
        probes,
        lossy_percent,
        slow_ms,
    } = settings.health;
    sqlx::query!(
        "UPDATE mesh SET psk = $1, rotate_days = $2, probes = $3, lossy_percent = $4, slow_ms = $5",
        settings.psk as PskPolicy,
        i32::from(settings.rotate_days),
        probes,
        i32::from(lossy_percent),
        i32::from(slow_ms)
    )
    .execute(connection)
    .await?;
    Ok(())
}
