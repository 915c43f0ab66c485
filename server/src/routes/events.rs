//! `/events`: the audit log.

pub mod queries;

use anyhow::{Context, ensure};
use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use wattle_mesh::audit::Head;
use wattle_wire::admin::{Event, Page};

use crate::{
    db::Db,
    error::{self, ErrorCode, Result},
    http::{
        body::Query,
        page::{self, PageQuery},
    },
    state::app::App,
};

/// Events that are read at a time.
const CHUNK: usize = 10_000;

/// Which events, as a query says it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    object: Option<String>,
    actor: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Id or name.
    pub object: Option<String>,
    /// Id, with or without its kind, or name.
    pub actor: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// Events of this moment are not among them.
    pub until: Option<DateTime<Utc>>,
}

impl Filter {
    fn of(query: &EventsQuery) -> Result<Self> {
        let filter = Self {
            object: given("object", query.object.as_deref())?,
            actor: given("actor", query.actor.as_deref())?,
            since: time("since", query.since.as_deref())?,
            until: time("until", query.until.as_deref())?,
        };
        match (filter.since, filter.until) {
            (Some(since), Some(until)) if until <= since => Err(error::invalid(
                ErrorCode::InvalidQuery,
                "until",
                "`until` must be later than `since`",
            )
            .into()),
            _ => Ok(filter),
        }
    }
}

fn given(name: &str, text: Option<&str>) -> Result<Option<String>> {
    match text {
        Some(text) if text.is_empty() || text.contains('\0') => {
            let detail = format!("`{name}` is an id or a name; leave it out for all");
            Err(error::invalid(ErrorCode::InvalidQuery, name, detail).into())
        }
        text => Ok(text.map(str::to_owned)),
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<DateTime<Utc>>> {
    let Some(text) = text else { return Ok(None) };
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Ok(Some(time.to_utc())),
        Err(_) => {
            let detail = format!(
                "`{name}` is a time such as 2026-11-28T09:30:00Z; in a URL, the + of a time zone \
                 is written %2B"
            );
            Err(error::invalid(ErrorCode::InvalidQuery, name, detail).into())
        }
    }
}

/// Lists what was done, by whom and to what, newest first.
#[utoipa::path(get, path = "/events", tag = "events",
    params(("object" = Option<String>, Query, description = "id or name of what was changed; a \
            name finds all that ever had it, also what was done to that under other names"),
        ("actor" = Option<String>, Query, description = "id or name of who did it: of an api \
            token or node, or `command line`"),
        ("since" = Option<DateTime<Utc>>, Query, description = "from this moment on"),
        ("until" = Option<DateTime<Utc>>, Query, description = "before this moment"), PageQuery),
    responses((status = 200, body = Page<Event>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Page<Event>>> {
    let filter = Filter::of(&query)?;
    let (limit, before) = PageQuery::new(query.limit, query.cursor).read::<i64>()?;
    let events = queries::newest(&mut *app.db.begin().await?, &filter, before, limit + 1).await?;
    Ok(Json(page::cut(events.into_iter(), limit, |event| {
        event.number
    })))
}

/// The newest events of those that are asked for, the oldest first.
pub async fn newest(db: &Db, filter: &Filter, limit: usize) -> Result<Vec<Event>> {
    let mut events = queries::newest(&mut *db.begin().await?, filter, None, limit).await?;
    events.reverse();
    Ok(events)
}

/// An event as a line for people.
pub fn line(event: &Event) -> String {
    let site = event.actor_site.as_ref();
    let site = site
        .map(|site| format!(" of site {site}"))
        .unwrap_or_default();
    format!(
        "{}  {}  {}{site} ({})  {}",
        event.number,
        event.at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        event.actor_name,
        event.actor,
        event.sentence
    )
}

/// Follows the chain from its beginning to its end, and gives the end.
///
/// # Errors
///
/// When an event is missing or altered, when the end is not where the mesh says it is, or when
/// `seen`, a place of before, is not in the chain.
pub async fn verify(db: &Db, seen: Option<Head>) -> anyhow::Result<Head> {
    // Before the events: those that come meanwhile do not matter.
    let end = queries::head(&mut *db.begin().await?).await?;
    let mut head = Head::start();
    let mut seen_again = seen.is_none_or(|seen| seen == head);
    loop {
        let events = queries::after(&mut *db.begin().await?, head.number, CHUNK).await?;
        let Some(last) = events.last().map(|event| event.number) else {
            break;
        };
        for event in &events {
            head = head
                .follow(&event.entry(), event.place())
                .context("the audit log is broken")?;
            seen_again |= seen == Some(head);
            ensure!(
                head.number != end.number || head == end,
                "the audit log is broken: event {} is not the last one that the mesh recorded",
                head.number
            );
        }
        tracing::debug!(last, "followed");
    }
    ensure!(
        head.number >= end.number,
        "the audit log is broken: it ends at event {}, but {} events were written",
        head.number,
        end.number
    );
    ensure!(
        seen_again,
        "the audit log was rewritten: the chain is complete, but event {} is not the one that was \
         there",
        seen.map_or(0, |seen| seen.number)
    );
    Ok(head)
}
