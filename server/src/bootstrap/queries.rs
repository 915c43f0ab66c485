//! SQL of the mesh's one row.

use anyhow::Context;
use ipnet::IpNet;
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_wire::ids::MeshId;

use super::MeshIdentity;
use crate::error::Result;

/// Whether there was none yet.
pub(super) async fn insert_mesh(
    connection: &mut PgConnection,
    tunnel_prefix: IpNet,
    challenge_secret: [u8; 32],
) -> Result<bool> {
    let inserted = sqlx::query!(
        "INSERT INTO mesh (id, tunnel_prefix, listen_port, keepalive_s, epoch, revision, \
         challenge_secret, psk)
         VALUES ($1, $2, 51820, 25, 1, 0, $3, 'require') ON CONFLICT DO NOTHING",
        Uuid::now_v7(),
        tunnel_prefix,
        &challenge_secret
    );
    Ok(inserted.execute(connection).await?.rows_affected() == 1)
}

pub(super) async fn mesh(connection: &mut PgConnection) -> Result<MeshIdentity> {
    let row = sqlx::query!("SELECT id, challenge_secret FROM mesh")
        .fetch_one(connection)
        .await?;
    let challenge_secret = row
        .challenge_secret
        .try_into()
        .ok()
        .context("the challenge secret has a wrong length")?;
    Ok(MeshIdentity {
        id: MeshId(row.id),
        challenge_secret,
    })
}
