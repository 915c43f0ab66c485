//! `/healthz` and `/readyz`, for supervisors and load balancers; `/version`.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use wattle_wire::admin::{Readiness, Version};

use crate::state::app::App;

/// Says that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "coordinator", responses((status = 204)))]
pub async fn healthz() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Says whether this coordinator has a fresh copy of the mesh; 503 when it has not.
#[utoipa::path(get, path = "/readyz", tag = "coordinator", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn readyz(State(app): State<App>) -> Response {
    let ready = app.mesh_cache.is_fresh() && !app.stop.is_cancelled();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(Readiness {
            ready,
            position: app.mesh_cache.position(),
        }),
    )
        .into_response()
}

/// Shows the version of this coordinator.
#[utoipa::path(get, path = "/version", tag = "coordinator", responses((status = 200, body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
