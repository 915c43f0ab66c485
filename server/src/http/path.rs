//! Reads the names and ids in a path.

use axum::{
    extract::{self, FromRequestParts},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use crate::error::{self, Error, Result};

/// What a path names. Nothing has a name that is no UTF-8 or has a null character.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let has_null = parts.uri.path().contains("%00");
        match extract::Path::from_request_parts(parts, state).await {
            Ok(extract::Path(named)) if !has_null => Ok(Self(named)),
            Ok(_) | Err(_) => Err(error::not_found("path").into()),
        }
    }
}
