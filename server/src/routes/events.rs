//! `/events`: the audit log.

pub mod queries;

use anyhow::{Context, ensure};
use axum::{Json, extract::State};
use wattle_mesh::audit::{Content, Entry, Head};
use wattle_wire::admin::{Event, Page};

use crate::{
    db::Db,
    error::Result,
    http::{
        body::Query,
        page::{self, PageQuery},
    },
    state::app::App,
};

/// Events that are read at a time.
const CHUNK: usize = 10_000;

/// Lists what was done, by whom and to what, newest first.
#[utoipa::path(get, path = "/events", tag = "events", params(PageQuery), responses((status = 200, body = Page<Event>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Event>>> {
    let (limit, before) = query.read::<i64>()?;
    let events = queries::newest(&mut *app.db.begin().await?, before, limit + 1).await?;
    Ok(Json(page::cut(events.into_iter(), limit, |event| {
        event.number
    })))
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
                .follow(
                    &entry(event),
                    Head {
                        number: event.number,
                        hash: event.hash,
                    },
                )
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

fn entry(event: &Event) -> Entry<'_> {
    let content = Content {
        actor: &event.actor,
        action: &event.action,
        object: &event.object,
        request_id: event.request_id.as_deref(),
        after: event.after,
    };
    Entry {
        at: event.at,
        revision: event.revision,
        before: event.before,
        content,
    }
}
