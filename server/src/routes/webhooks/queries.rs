//! SQL of webhooks.

use sqlx::PgConnection;
use wattle_wire::{ids::WebhookId, webhook::Webhook};

use crate::error::Result;

/// Webhooks of a mesh.
pub const MOST: i64 = 16;

/// Adds a webhook; `None` when there are as many as may be.
pub(super) async fn insert(
    connection: &mut PgConnection,
    id: WebhookId,
    url: &str,
) -> Result<Option<Webhook>> {
    let row = sqlx::query_as!(
        Webhook,
        "INSERT INTO webhooks (id, url) SELECT $1, $2 WHERE (SELECT count(*) FROM webhooks) < $3
         RETURNING id, url, created_at, delivered_at, error",
        id.0,
        url,
        MOST
    );
    Ok(row.fetch_optional(connection).await?)
}

pub(super) async fn all(connection: &mut PgConnection) -> Result<Vec<Webhook>> {
    let rows = sqlx::query_as!(
        Webhook,
        "SELECT id, url, created_at, delivered_at, error FROM webhooks ORDER BY id"
    );
    Ok(rows.fetch_all(connection).await?)
}

pub(super) async fn find(connection: &mut PgConnection, id: WebhookId) -> Result<Option<Webhook>> {
    let row = sqlx::query_as!(
        Webhook,
        "SELECT id, url, created_at, delivered_at, error FROM webhooks WHERE id = $1",
        id.0
    );
    Ok(row.fetch_optional(connection).await?)
}

/// The URL that it had; `None` if there was none.
pub(super) async fn delete(connection: &mut PgConnection, id: WebhookId) -> Result<Option<String>> {
    let url = sqlx::query_scalar!("DELETE FROM webhooks WHERE id = $1 RETURNING url", id.0);
    Ok(url.fetch_optional(connection).await?)
}
