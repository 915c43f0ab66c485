//! `/healthz` and `/readyz`, for supervisors and load balancers; `/openapi.json`, for programs.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use wattle_wire::admin::Readiness;

use crate::{router, state::app::App};

/// Says that the process answers.
#[utoipa::path(get, path = "/healthz", tag = "coordinator", responses((status = 204)))]
pub async fn healthz() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Says whether this coordinator has a fresh copy of the mesh; 503 when it has not.
#[utoipa::path(get, path = "/readyz", tag = "coordinator", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn readyz(State(app): State<App>) -> Response {
    let ready = app.copy.is_fresh() && !app.stop.is_cancelled();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(Readiness {
            ready,
            position: app.copy.position(),
        }),
    )
        .into_response()
}

/// This description of the interface.
#[utoipa::path(get, path = "/openapi.json", tag = "coordinator", responses((status = 200, body = Object)))]
pub async fn openapi() -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        router::openapi_json(),
    )
        .into_response()
}
