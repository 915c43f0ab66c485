//! What came of a change that a caller asked for.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use wattle_wire::admin::DryRun;

use crate::error::{self, Result};

/// A change was made, or only tried out. A handler says with [`Mutation::map`] what it answers to
/// the first; the second is an answer by itself.
#[derive(Debug)]
pub enum Mutation<T> {
    Done(T),
    DryRun(Box<DryRun>),
}

impl<T> Mutation<T> {
    /// What follows from the change, if it was made.
    pub fn map<U>(self, done: impl FnOnce(T) -> U) -> Mutation<U> {
        match self {
            Self::Done(value) => Mutation::Done(done(value)),
            Self::DryRun(dry_run) => Mutation::DryRun(dry_run),
        }
    }

    /// What was done, where there is no dry run: agents ask for none, nor does a coordinator.
    ///
    /// # Errors
    ///
    /// 422 when only a dry run was asked for.
    pub fn done(self) -> Result<T> {
        match self {
            Self::Done(value) => Ok(value),
            Self::DryRun(_) => Err(error::no_dry_run().into()),
        }
    }

    /// As [`Mutation::map`], where that can fail.
    pub fn try_map<U>(self, done: impl FnOnce(T) -> Result<U>) -> Result<Mutation<U>> {
        Ok(match self {
            Self::Done(value) => Mutation::Done(done(value)?),
            Self::DryRun(dry_run) => Mutation::DryRun(dry_run),
        })
    }
}

/// 201: something was made, that is there from now on. The body may have a secret that is shown
/// once.
pub fn created(location: String, body: impl IntoResponse) -> Response {
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (StatusCode::CREATED, headers, body).into_response()
}

impl<T: IntoResponse> IntoResponse for Mutation<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Done(value) => value.into_response(),
            Self::DryRun(dry_run) => {
                ([(header::CACHE_CONTROL, "no-store")], Json(dry_run)).into_response()
            }
        }
    }
}
