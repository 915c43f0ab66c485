//! For whom a path is: each listener serves only its audiences.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use crate::error;

/// For whom a path is. Each may have a listener of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAudience {
    Agents,
    /// People and scripts.
    Admin,
    Metrics,
}

impl RouteAudience {
    /// For whom a path is; `None` means for everybody.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/healthz" | "/readyz" => None,
            "/metrics" => Some(Self::Metrics),
            path if path.starts_with("/agent/") => Some(Self::Agents),
            _ => Some(Self::Admin),
        }
    }
}

/// What a listener is not for is not there.
pub(crate) async fn only(
    State(audiences): State<Arc<[RouteAudience]>>,
    request: Request,
    next: Next,
) -> Response {
    match RouteAudience::of(request.uri().path()) {
        Some(audience) if !audiences.contains(&audience) => {
            error::respond(&error::not_found("path"))
        }
        Some(_) | None => next.run(request).await,
    }
}
