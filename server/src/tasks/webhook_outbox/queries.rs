//! SQL of what webhooks are to be told, and of messages on their way.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::health::alert::{LinkMove, NodeMove};
use wattle_wire::{
    admin::LinkState,
    ids::{NodeId, WebhookId},
    webhook::NodeChange,
};

use crate::error::Result;

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

/// What changed, in its order.
#[derive(Debug, Default)]
pub struct News {
    pub links: Vec<LinkMove>,
    pub nodes: Vec<NodeMove>,
}

/// Takes what changed, once nothing more came for five seconds or after half a minute. Nothing
/// while another coordinator does.
pub(super) async fn take_news(connection: &mut PgConnection) -> Result<News> {
    let rows = sqlx::query!(
        r#"WITH due AS (
               SELECT number FROM webhook_news
               WHERE (SELECT max(at) < now() - interval '5 seconds' OR min(at) < now() - interval '30 seconds' FROM webhook_news)
               FOR UPDATE SKIP LOCKED),
           taken AS (DELETE FROM webhook_news USING due WHERE webhook_news.number = due.number RETURNING webhook_news.*)
           SELECT a AS "a!", b, before AS "before: LinkState",
                  CASE WHEN name IS NULL THEN after END AS "after: LinkState", name,
                  CASE WHEN name IS NOT NULL THEN after END AS "change: NodeChange"
           FROM taken ORDER BY number"#
    );
    let mut news = News::default();
    for row in rows.fetch_all(connection).await? {
        match (row.name.zip(row.change), row.b, row.before.zip(row.after)) {
            (Some((name, change)), ..) => news.nodes.push(NodeMove {
                node: NodeId(row.a),
                name: name
                    .parse()
                    .context("the name of a node in the database is not valid")?,
                change,
            }),
            (None, Some(b), Some((before, after))) => {
                news.links.push(LinkMove {
                    ends: [NodeId(row.a), NodeId(b)],
                    before,
                    after,
                });
            }
            (None, ..) => return Err(anyhow!("news in the database are not valid").into()),
        }
    }
    Ok(news)
}

/// Leaves a message for each webhook.
pub(super) async fn enqueue(connection: &mut PgConnection, body: &str) -> Result<()> {
    let webhooks = sqlx::query_scalar!("SELECT id FROM webhooks ORDER BY id")
        .fetch_all(&mut *connection)
        .await?;
    let ids: Vec<_> = webhooks.iter().map(|_| Uuid::now_v7()).collect();
    sqlx::query!(
        "INSERT INTO webhook_deliveries (id, webhook, body)
         SELECT new.id, webhook, $3 FROM unnest($1::uuid[], $2::uuid[]) AS new(id, webhook) JOIN \
         webhooks ON webhooks.id = webhook",
        &ids,
        &webhooks,
        body
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM webhook_deliveries USING (
             SELECT id, row_number() OVER (PARTITION BY webhook ORDER BY id DESC) AS place FROM \
             webhook_deliveries) AS placed
         WHERE webhook_deliveries.id = placed.id AND place > $1",
        MOST_WAITING
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The message that has waited the longest of those that are due to webhooks that are not busy. It
/// is due again after twenty seconds, twice that after each attempt, in case nothing comes of this
/// one.
pub(super) async fn lease(
    connection: &mut PgConnection,
    busy: &BTreeSet<WebhookId>,
) -> Result<Option<Delivery>> {
    let busy: Vec<_> = busy.iter().map(|webhook| webhook.0).collect();
    let delivery = sqlx::query_as!(
        Delivery,
        "WITH due AS (
             SELECT id FROM webhook_deliveries WHERE next_at <= now() AND webhook <> ALL($1)
             ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         UPDATE webhook_deliveries AS delivery
         SET attempts = attempts + 1, next_at = now() + least(interval '6 hours', interval '20 \
         seconds' * power(2, attempts))
         FROM due, webhooks WHERE delivery.id = due.id AND webhooks.id = delivery.webhook
         RETURNING delivery.id, webhook, url, body, attempts",
        &busy
    );
    Ok(delivery.fetch_optional(connection).await?)
}

/// The message needs no more attempts.
pub(super) async fn done(connection: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("DELETE FROM webhook_deliveries WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes what came of an attempt.
pub async fn attempted(
    connection: &mut PgConnection,
    id: WebhookId,
    error: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "UPDATE webhooks SET error = $2, delivered_at = CASE WHEN $2::text IS NULL THEN now() ELSE \
         delivered_at END WHERE id = $1",
        id.0,
        error
    )
    .execute(connection)
    .await?;
    Ok(())
}
