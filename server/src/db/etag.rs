//! Tags of objects, as `ETag` shows them and `If-Match` names them.

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

use crate::{error::Result, secret};

/// Bytes of a hash that are enough to tell two states of one object apart.
const TAG: usize = 16;

/// The tag of an object: another state of it has another tag.
pub fn of(object: &impl Serialize) -> Result<String> {
    let text = serde_json::to_vec(object).context("an object cannot be written")?;
    Ok(format!(
        "\"{}\"",
        URL_SAFE_NO_PAD.encode(&secret::hash(text)[..TAG])
    ))
}

/// Whether an object is one of those that the caller names: one of these tags, or `*` for whatever
/// there is.
// Not with the crate `headers`: its If-Match panics, where debug assertions are on, at a tag that
// holds a blank, and takes `*` for a tag where it is one of several.
pub fn matches(if_match: &str, object: &impl Serialize) -> Result<bool> {
    let tag = of(object)?;
    Ok(if_match
        .split(',')
        .map(str::trim)
        .any(|named| named == "*" || named == tag))
}
