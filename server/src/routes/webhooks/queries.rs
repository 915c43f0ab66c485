//! SQL of webhooks.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::health::alert::{LinkMove, NodeMove};
use wattle_wire::{
    admin::LinkState,
    ids::{NodeId, WebhookId},
    webhook::{NodeChange, Webhook},
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
        let WebhookRow {
            id,
            url,
            created_at,
            delivered_at,
            error,
        } = row;
        Self {
            id: WebhookId(id),
            url,
            created_at,
            delivered_at,
            error,
        }
    }
}

/// Adds a webhook; `None` when there are as many as may be.
pub(super) async fn insert(
    connection: &mut PgConnection,
    id: WebhookId,
    url: &str,
) -> Result<Option<Webhook>> {
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
    let rows = sqlx::query_as!(
        WebhookRow,
        "SELECT id, url, created_at, delivered_at, error FROM webhooks ORDER BY id"
    );
    Ok(rows
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(Webhook::from)
        .collect())
}

pub(super) async fn find(connection: &mut PgConnection, id: WebhookId) -> Result<Option<Webhook>> {
    let row = sqlx::query_as!(
        WebhookRow,
        "SELECT id, url, created_at, delivered_at, error FROM webhooks WHERE id = $1",
        id.0
    );
    Ok(row.fetch_optional(connection).await?.map(Webhook::from))
}

/// Whether there was one.
pub(super) async fn delete(connection: &mut PgConnection, id: WebhookId) -> Result<bool> {
    Ok(sqlx::query!("DELETE FROM webhooks WHERE id = $1", id.0)
        .execute(connection)
        .await?
        .rows_affected()
        > 0)
}

/// Notes links that changed, if there is anybody to tell.
pub async fn note(connection: &mut PgConnection, moves: &[LinkMove]) -> Result<()> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = moves
        .iter()
        .map(|link| (link.ends[0].0, link.ends[1].0))
        .unzip();
    let (before, after): (Vec<_>, Vec<_>) = moves
        .iter()
        .map(|link| (link.before.name(), link.after.name()))
        .unzip();
    sqlx::query!(
        "INSERT INTO webhook_news (a, b, before, after)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) WHERE EXISTS (SELECT \
         FROM webhooks)",
        &first,
        &second,
        &before as _,
        &after as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes what became of nodes, if there is anybody to tell.
pub async fn note_nodes(
    connection: &mut PgConnection,
    nodes: &[Uuid],
    change: NodeChange,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO webhook_news (a, name, after)
         SELECT id, name, $2 FROM nodes WHERE id = ANY($1) AND EXISTS (SELECT FROM webhooks) ORDER \
         BY id",
        nodes,
        change.name()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes which nodes became silent, that is, for so many seconds, and which are back; of several
/// coordinators one does. `silent` are those that may be: nobody is who was not listened to.
pub async fn note_silence(
    connection: &mut PgConnection,
    silent: &[Uuid],
    after_s: i64,
) -> Result<()> {
    let turned = sqlx::query!(
        "WITH turned AS (
             SELECT node FROM node_reports
             WHERE CASE WHEN silent THEN at >= now() - interval '1 second' * $2::bigint
                        ELSE node = ANY($1) AND at < now() - interval '1 second' * $2::bigint END
             ORDER BY node FOR UPDATE SKIP LOCKED)
         UPDATE node_reports SET silent = NOT silent FROM turned WHERE node_reports.node = \
         turned.node
         RETURNING node_reports.node, silent",
        silent,
        after_s
    );
    let turned = turned.fetch_all(&mut *connection).await?;
    for (change, is_silent) in [(NodeChange::Silent, true), (NodeChange::Back, false)] {
        let nodes: Vec<_> = turned
            .iter()
            .filter(|row| row.silent == is_silent)
            .map(|row| row.node)
            .collect();
        if !nodes.is_empty() {
            note_nodes(connection, &nodes, change).await?;
        }
    }
    Ok(())
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
           SELECT a AS "a!", b, before, after AS "after!", name FROM taken ORDER BY number"#
    );
    let mut news = News::default();
    for row in rows.fetch_all(connection).await? {
        match (row.name, row.b, row.before) {
            (Some(name), ..) => news.nodes.push(NodeMove {
                node: NodeId(row.a),
                name: name.parse().map_err(|_| {
                    Error::Internal("the name of a node in the database is not valid")
                })?,
                change: node_change(&row.after)?,
            }),
            (None, Some(b), Some(before)) => {
                news.links.push(LinkMove {
                    ends: [NodeId(row.a), NodeId(b)],
                    before: state(&before)?,
                    after: state(&row.after)?,
                });
            }
            (None, ..) => return Err(Error::Internal("news in the database are not valid")),
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

/// The message that has waited the longest of those that are due. It is due again after twenty
/// seconds, twice that after each attempt, in case nothing comes of this one.
pub(super) async fn lease(connection: &mut PgConnection) -> Result<Option<Delivery>> {
    let row = sqlx::query!(
        "WITH due AS (
             SELECT id FROM webhook_deliveries WHERE next_at <= now() ORDER BY next_at LIMIT 1 FOR \
             UPDATE SKIP LOCKED)
         UPDATE webhook_deliveries AS delivery
         SET attempts = attempts + 1, next_at = now() + least(interval '6 hours', interval '20 \
         seconds' * power(2, attempts))
         FROM due, webhooks WHERE delivery.id = due.id AND webhooks.id = delivery.webhook
         RETURNING delivery.id, webhook, url, body, attempts"
    );
    let row = row.fetch_optional(connection).await?;
    Ok(row.map(|row| Delivery {
        id: row.id,
        webhook: WebhookId(row.webhook),
        url: row.url,
        body: row.body,
        attempts: row.attempts,
    }))
}

/// The message needs no more attempts.
pub(super) async fn done(connection: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("DELETE FROM webhook_deliveries WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes what came of an attempt.
pub(super) async fn attempted(
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

fn node_change(name: &str) -> Result<NodeChange> {
    let found = NodeChange::ALL
        .into_iter()
        .find(|change| change.name() == name);
    found.ok_or(Error::Internal(
        "what became of a node in the database is not valid",
    ))
}

fn state(name: &str) -> Result<LinkState> {
    let found = LinkState::ALL
        .into_iter()
        .find(|state| state.name() == name);
    found.ok_or(Error::Internal(
        "the state of a link in the database is not valid",
    ))
}
