//! `/mesh`: settings that hold for all nodes.

pub mod queries;

use axum::{Extension, extract::State};
use wattle_mesh::{audit::Subject, config::directory::RecordChange};
use wattle_wire::{
    admin::{Mesh, MeshPatch},
    peer::MeshSettings,
    probe::HealthSettings,
};

use crate::{
    db::AuditActor,
    error::{self, ErrorCode, Result},
    http::{body::Body, preconditions::WithEtag},
    mutation::Mutation,
    state::{app::App, mesh_cache},
};

/// Shows the settings of the mesh.
#[utoipa::path(get, path = "/mesh", tag = "mesh", responses((status = 200, body = Mesh)))]
pub async fn show(State(app): State<App>) -> Result<WithEtag<Mesh>> {
    WithEtag::new(app.mesh_cache.read(|feed| mesh(&feed.directory().mesh)))
}

/// Changes settings of the mesh; fields that are absent stay as they are.
///
/// With `"psk": "require"` a tunnel carries nothing until its two nodes have agreed on a preshared
/// key. `rotate_days` is for how long a node uses a WireGuard key; nodes change theirs one after
/// another, each some time before it is that old.
#[utoipa::path(patch, path = "/mesh", tag = "mesh", request_body = MeshPatch, responses((status = 200, body = Mesh)))]
pub async fn change(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(patch): Body<MeshPatch>,
) -> Result<Mutation<WithEtag<Mesh>>> {
    check(&patch)?;
    let patch = &patch;
    let settings = app.mutate(&actor, |mut change| async move {
        queries::lock(&mut change).await?;
        let (_, before) = mesh_cache::queries::settings(&mut change).await?;
        change.check_precondition(&mesh(&before))?;
        let health = HealthSettings {
            probes: patch.probes.unwrap_or(before.health.probes),
            lossy_percent: patch.lossy_percent.unwrap_or(before.health.lossy_percent),
            slow_ms: patch.slow_ms.unwrap_or(before.health.slow_ms),
        };
        let after = MeshSettings {
            psk: patch.psk.unwrap_or(before.psk),
            rotate_days: patch.rotate_days.unwrap_or(before.rotate_days),
            health,
            ..before.clone()
        };
        if after == before {
            return Ok(change.unchanged(after));
        }
        queries::update(&mut change, &after).await?;
        let subject = Subject::mesh(&before, &after);
        let records = vec![RecordChange::Mesh(after.clone())];
        Ok(change.changed(after, records, "mesh.change", subject))
    });
    let changed = settings.await?;
    changed.try_map(|settings| WithEtag::new(mesh(&settings)))
}

fn check(patch: &MeshPatch) -> Result<()> {
    let longest = MeshPatch::LONGEST_ROTATE_DAYS;
    if patch.rotate_days.is_some_and(|days| days > longest) {
        return Err(error::invalid(
            ErrorCode::OutOfRange,
            "rotate_days",
            format!("0, or at most {longest} days"),
        )
        .into());
    }
    if patch
        .lossy_percent
        .is_some_and(|percent| !(1..=100).contains(&percent))
    {
        return Err(error::invalid(
            ErrorCode::OutOfRange,
            "lossy_percent",
            "a link is lossy from 1 to 100 percent of lost probes on",
        )
        .into());
    }
    if patch
        .slow_ms
        .is_some_and(|ms| !(1..=HealthSettings::SLOWEST_MS).contains(&ms))
    {
        let detail = format!(
            "a link is slow from 1 to {} milliseconds of round trip on",
            HealthSettings::SLOWEST_MS
        );
        return Err(error::invalid(ErrorCode::OutOfRange, "slow_ms", detail).into());
    }
    Ok(())
}

fn mesh(settings: &MeshSettings) -> Mesh {
    let MeshSettings {
        id,
        tunnel_prefix,
        listen_port,
        keepalive_s,
        psk,
        rotate_days,
        health,
    } = settings.clone();
    Mesh {
        id,
        tunnel_prefix,
        listen_port,
        keepalive_s,
        psk,
        rotate_days,
        health,
    }
}
