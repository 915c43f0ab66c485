//! SQL of the mesh in memory.

use anyhow::{Context, anyhow};
use sqlx::{PgConnection, types::Json};
use wattle_mesh::config::{
    directory::{Directory, RecordChange},
    feed::Feed,
};
use wattle_wire::{
    ids::{MeshId, NodeId, Position},
    key::Signature,
    lock::SignedRemoval,
    peer::MeshSettings,
    probe::HealthSettings,
    psk::PskPolicy,
};

use crate::{
    db::{node_records, site_records},
    error::Result,
};

/// How many revisions the database keeps and a coordinator remembers when it starts; agents that are
/// further behind get a snapshot, and coordinators read the whole mesh.
const HISTORY: i64 = 10_000;

/// What a revision changed.
#[derive(Debug)]
pub struct Revision {
    pub revision: i64,
    pub changes: Json<Vec<RecordChange>>,
}

pub async fn position(connection: &mut PgConnection) -> Result<Position> {
    Ok(
        sqlx::query_as!(Position, "SELECT epoch, revision FROM mesh")
            .fetch_one(connection)
            .await?,
    )
}

/// The database lost what was seen, if its position is before that: its numbers will be given out
/// again, and must not be mistaken for those that were lost. Whether a new epoch began.
pub async fn begin_epoch(connection: &mut PgConnection, seen: Position) -> Result<bool> {
    let begun = sqlx::query!(
        "UPDATE mesh SET epoch = $1::bigint + 1 WHERE (epoch, revision) < ($1, $2)",
        seen.epoch,
        seen.revision
    );
    Ok(begun.execute(connection).await?.rows_affected() == 1)
}

pub async fn changes_since(connection: &mut PgConnection, revision: i64) -> Result<Vec<Revision>> {
    let changes = sqlx::query_as!(
        Revision,
        r#"SELECT revision, changes AS "changes: Json<Vec<RecordChange>>" FROM changes WHERE revision > $1 ORDER BY revision LIMIT 1000"#,
        revision
    );
    Ok(changes.fetch_all(connection).await?)
}

/// Forgets revisions that nobody asks for any more.
pub async fn forget_old(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "DELETE FROM changes WHERE revision <= (SELECT revision FROM mesh) - $1::bigint",
        HISTORY
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads the configuration as it is now, but for nodes that once took part.
pub async fn directory(connection: &mut PgConnection) -> Result<(Position, Directory)> {
    let (position, mesh) = settings(connection).await?;
    let mut directory = Directory::new(mesh);
    for site in site_records::all(connection).await? {
        directory.apply(&RecordChange::Site(site));
    }
    for node in node_records::all(connection).await? {
        directory.apply(&RecordChange::Node(node));
    }
    Ok((position, directory))
}

/// Reads all of the mesh, in a transaction that sees one moment.
pub async fn load(connection: &mut PgConnection) -> Result<Feed> {
    let (position, mut directory) = directory(connection).await?;
    let revoked = sqlx::query!(
        r#"SELECT coalesce(revoked.id, removals.node) AS "node!", removal AS "removal?",
                  signature AS "signature?: Signature"
           FROM (SELECT id FROM nodes WHERE state = 'revoked') AS revoked
           FULL JOIN removals ON removals.node = revoked.id"#
    );
    let revoked = revoked.fetch_all(&mut *connection).await?.into_iter();
    directory.revoked.extend(revoked.map(|row| {
        let removal = row.removal.zip(row.signature);
        let signed = removal.map(|(removal, signature)| SignedRemoval { removal, signature });
        (NodeId(row.node), signed)
    }));
    let history = sqlx::query_as!(
        Revision,
        r#"SELECT revision, changes AS "changes: Json<Vec<RecordChange>>" FROM changes
           WHERE revision > $1 AND epoch = $2 ORDER BY revision"#,
        position.revision - HISTORY,
        position.epoch
    );
    let history = history.fetch_all(&mut *connection).await?;
    Ok(Feed::new(
        directory,
        position,
        history
            .into_iter()
            .map(|change| (change.revision, change.changes.0)),
    ))
}

pub async fn settings(connection: &mut PgConnection) -> Result<(Position, MeshSettings)> {
    let row = sqlx::query!(
        r#"SELECT id, tunnel_prefix, listen_port, keepalive_s, psk AS "psk: PskPolicy", rotate_days,
                  probes, lossy_percent, slow_ms, epoch, revision FROM mesh"#
    )
    .fetch_one(connection)
    .await?;
    let invalid = "the settings of the mesh are not valid";
    let ipnet::IpNet::V4(tunnel_prefix) = row.tunnel_prefix else {
        return Err(anyhow!(invalid).into());
    };
    let settings = MeshSettings {
        id: MeshId(row.id),
        tunnel_prefix,
        listen_port: row.listen_port.try_into().context(invalid)?,
        keepalive_s: row.keepalive_s.try_into().context(invalid)?,
        psk: row.psk,
        rotate_days: row.rotate_days.try_into().context(invalid)?,
        health: HealthSettings {
            probes: row.probes,
            lossy_percent: row.lossy_percent.try_into().context(invalid)?,
            slow_ms: row.slow_ms.try_into().context(invalid)?,
        },
    };
    Ok((
        Position {
            epoch: row.epoch,
            revision: row.revision,
        },
        settings,
    ))
}
