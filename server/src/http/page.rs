//! Lists in pages.

use std::ops::Bound;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::IntoParams;
use wattle_wire::{admin::Page, strict};

use crate::error::{self, ErrorCode, Result};

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;

/// A moment as the key of a page, in microseconds since 1970: one that a history can have.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Moment(pub DateTime<Utc>);

impl TryFrom<i64> for Moment {
    type Error = &'static str;

    fn try_from(microseconds: i64) -> std::result::Result<Self, Self::Error> {
        let time = DateTime::from_timestamp_micros(microseconds);
        let has_been = |time: &DateTime<Utc>| (1970..10_000).contains(&time.year());
        time.filter(has_been)
            .map(Self)
            .ok_or("no moment of a history")
    }
}

impl From<Moment> for i64 {
    fn from(moment: Moment) -> Self {
        moment.0.timestamp_micros()
    }
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Most items to return, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next_cursor` of the page before; absent for the first.
    cursor: Option<String>,
}

impl PageQuery {
    pub fn new(limit: Option<usize>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// The limit, and the key of the last item of the page before.
    pub fn read<K: DeserializeOwned>(&self) -> Result<(usize, Option<K>)> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=LARGEST_LIMIT).contains(&limit) {
            return Err(error::invalid(
                ErrorCode::InvalidQuery,
                "limit",
                format!("`limit` is 1 to {LARGEST_LIMIT}"),
            )
            .into());
        }
        let Some(cursor) = &self.cursor else {
            return Ok((limit, None));
        };
        let key = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|json| strict::from_slice(&json).ok());
        match key {
            Some(key) => Ok((limit, Some(key))),
            None => Err(error::invalid(
                ErrorCode::InvalidQuery,
                "cursor",
                "`cursor` must be the `next_cursor` of the page before",
            )
            .into()),
        }
    }
}

/// The range of keys after the last one of the page before.
pub fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (
        key.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}

/// The first items, and the cursor of the next page if there are more.
pub fn cut<T, K: Serialize>(
    items: impl Iterator<Item = T>,
    limit: usize,
    key: impl Fn(&T) -> K,
) -> Page<T> {
    let mut items: Vec<T> = items.take(limit + 1).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items
        .last()
        .filter(|_| more)
        .and_then(|last| serde_json::to_vec(&key(last)).ok())
        .map(|json| URL_SAFE_NO_PAD.encode(json));
    Page { items, next_cursor }
}
