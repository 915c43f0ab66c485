//! SQL of webhooks.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::alert::LinkMove;
use wattle_wire::{
    admin::LinkState,
    ids::{NodeId, WebhookId},
    webhook::Webhook,
};

use crate::error::{Error, Result};

/// Webhooks of a mesh.
pub const MOST: i64 = 16;
/// Attempts to deliver a message, over half a day; after each the pause doubles.
pub const MOST_ATTEMPTS: i32 = 12;
/// Messages that wait for one webhook; the oldest give way.
const MOST_WAITING: i64 = 100;

/// A message that is to be sent now.
#[derive(Debug)]
pub struct Delivery {
    pub id: Uuid,
    pub webhook: WebhookId,
    pub url: String,
    pub body: String,
    /// This one included.
    pub attempts: i32,
}

struct WebhookRow {
    id: Uuid,
    url: String,
    created_at: DateTime<Utc>,
    delivered_at: Option<DateTime<Utc>>,
    error: Option<String>,
}

impl From<WebhookRow> for Webhook {
    fn from(row: WebhookRow) -> Self {
        let WebhookRow { id, url, created_at, delivered_at, error } = row;
        Self { id: WebhookId(id), url, created_at, delivered_at, error }
    }
}

/// Adds a webhook; `None` when there are as many as may be.
pub(super) async fn insert(connection: &mut PgConnection, id: WebhookId, url: &str) -> Result<Option<Webhook>> {
    let row = sqlx::query_as!(
        WebhookRow,
        "INSERT INTO webhooks (id, url) SELECT $1, $2 WHERE (SELECT count(*) FROM webhooks) < $3
         RETURNING id, url, created_at, delivered_at, error",
        id.0,
        url,
        MOST
    );
    Ok(row.fetch_optional(connection).await?.map(Webhook::from))
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Webhook>> {
    let rows = sqlx::query_as!(WebhookRow, "SELECT id, url, created_at, delivered_at, error FROM webhooks ORDER BY id");
    Ok(rows.fetch_all(connection).await?.into_iter().map(Webhook::from).collect())
}

pub(super) async fn find(connection: &mut PgConnection, id: WebhookId) -> Result<Option<Webhook>> {
    let row = sqlx::query_as!(WebhookRow, "SELECT id, url, created_at, delivered_at, error FROM webhooks WHERE id = $1", id.0);
    Ok(row.fetch_optional(connection).await?.map(Webhook::from))
}

/// Whether there was one.
pub(super) async fn delete(connection: &mut PgConnection, id: WebhookId) -> Result<bool> {
    Ok(sqlx::query!("DELETE FROM webhooks WHERE id = $1", id.0).execute(connection).await?.rows_affected() > 0)
}

/// Notes links that changed, if there is anybody to tell.
pub async fn note(connection: &mut PgConnection, moves: &[LinkMove]) -> Result<()> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = moves.iter().map(|link| (link.ends[0].0, link.ends[1].0)).unzip();
    let (before, after): (Vec<_>, Vec<_>) = moves.iter().map(|link| (link.before.name(), link.after.name())).unzip();
    sqlx::query!(
        "INSERT INTO webhook_news (a, b, before, after)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) WHERE EXISTS (SELECT FROM webhooks)",
        &first,
        &second,
        &before as _,
        &after as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes what changed, in its order, once nothing more came for five seconds or after half a minute. Nothing while another coordinator does.
pub(super) async fn take_news(connection: &mut PgConnection) -> Result<Vec<LinkMove>> {
    let rows = sqlx::query!(
        r#"WITH due AS (
               SELECT number FROM webhook_news
               WHERE (SELECT max(at) < now() - interval '5 seconds' OR min(at) < now() - interval '30 seconds' FROM webhook_news)
               FOR UPDATE SKIP LOCKED),
           taken AS (DELETE FROM webhook_news USING due WHERE webhook_news.number = due.number RETURNING webhook_news.*)
           SELECT a AS "a!", b AS "b!", before AS "before!", after AS "after!" FROM taken ORDER BY number"#
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    rows.map(|row| Ok(LinkMove { ends: [NodeId(row.a), NodeId(row.b)], before: state(&row.before)?, after: state(&row.after)? })).collect()
}

/// Leaves a message for each webhook.
pub(super) async fn enqueue(connection: &mut PgConnection, body: &str) -> Result<()> {
    let webhooks = sqlx::query_scalar!("SELECT id FROM webhooks ORDER BY id").fetch_all(&mut *connection).await?;
    let ids: Vec<_> = webhooks.iter().map(|_| Uuid::now_v7()).collect();
    sqlx::query!(
        "INSERT INTO webhook_deliveries (id, webhook, body)
         SELECT new.id, webhook, $3 FROM unnest($1::uuid[], $2::uuid[]) AS new(id, webhook) JOIN webhooks ON webhooks.id = webhook",
        &ids,
        &webhooks,
        body
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM webhook_deliveries USING (
             SELECT id, row_number() OVER (PARTITION BY webhook ORDER BY id DESC) AS place FROM webhook_deliveries) AS placed
         WHERE webhook_deliveries.id = placed.id AND place > $1",
        MOST_WAITING
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The message that has waited the longest of those that are due. It is due again after twenty seconds, twice that after each attempt, in case
/// nothing comes of this one.
pub(super) async fn lease(connection: &mut PgConnection) -> Result<Option<Delivery>> {
    let row = sqlx::query!(
        "WITH due AS (
             SELECT id FROM webhook_deliveries WHERE next_at <= now() ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         UPDATE webhook_deliveries AS delivery
         SET attempts = attempts + 1, next_at = now() + least(interval '6 hours', interval '20 seconds' * power(2, attempts))
         FROM due, webhooks WHERE delivery.id = due.id AND webhooks.id = delivery.webhook
         RETURNING delivery.id, webhook, url, body, attempts"
    );
    let row = row.fetch_optional(connection).await?;
    Ok(row.map(|row| Delivery { id: row.id, webhook: WebhookId(row.webhook), url: row.url, body: row.body, attempts: row.attempts }))
}

/// The message needs no more attempts.
pub(super) async fn done(connection: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("DELETE FROM webhook_deliveries WHERE id = $1", id).execute(connection).await?;
    Ok(())
}

/// Notes what came of an attempt.
pub(super) async fn attempted(connection: &mut PgConnection, id: WebhookId, error: Option<&str>) -> Result<()> {
    sqlx::query!(
        "UPDATE webhooks SET error = $2, delivered_at = CASE WHEN $2::text IS NULL THEN now() ELSE delivered_at END WHERE id = $1",
        id.0,
        error
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn state(name: &str) -> Result<LinkState> {
    let found = LinkState::ALL.into_iter().find(|state| state.name() == name);
    found.ok_or(Error::Internal("the state of a link in the database is not valid"))
}
