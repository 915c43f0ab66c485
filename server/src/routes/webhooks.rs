//! `/webhooks`: who is told by HTTP of links and nodes that change their state.

pub mod queries;

use anyhow::Context;
use anyhow::bail;
use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use tokio::time::timeout;
use uuid::Uuid;
use wattle_mesh::audit::Subject;
use wattle_wire::{
    admin::Page,
    ids::WebhookId,
    webhook::{CreatedWebhook, NewWebhook, Webhook},
};

use crate::{
    db::AuditActor,
    error::{self, ErrorCode, Result},
    http::{
        body::{Body, Query},
        page::{self, PageQuery},
        path::Path,
    },
    mutation::{self, Mutation},
    state::app::App,
    tasks::webhook_outbox::{self, PATIENCE, RefusedAddress},
};

/// Makes a webhook: messages of links and nodes that change their state are posted to its URL,
/// signed with the secret that is shown this once.
#[utoipa::path(post, path = "/webhooks", tag = "webhooks", request_body = NewWebhook, responses((status = 201, body = CreatedWebhook)))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(wanted): Body<NewWebhook>,
) -> Result<Mutation<Response>> {
    let refused = |detail: String| error::invalid(ErrorCode::InvalidUrl, "url", detail);
    let url = webhook_outbox::parse(&wanted.url).map_err(|error| refused(format!("{error:#}")))?;
    // A name that is not known now may be later; where it leads is asked each time.
    if let Err(error) = webhook_outbox::addresses(&url, &app).await
        && error.is::<RefusedAddress>()
    {
        return Err(refused(error.to_string()).into());
    }
    let (id, url) = (WebhookId(Uuid::now_v7()), url.as_str());
    let secret = &webhook_outbox::secret(&app, id);
    let created = app.mutate(&actor, |mut change| async move {
        let webhook = queries::insert(&mut change, id, url).await?;
        let Some(webhook) = webhook else {
            return Err(error::invalid(
                ErrorCode::TooMany,
                "url",
                format!("at most {} webhooks; delete one", queries::MOST),
            )
            .into());
        };
        let created = CreatedWebhook {
            webhook: webhook.clone(),
            secret: secret.clone(),
        };
        let subject = Subject::webhook(id, &webhook_outbox::origin(url)?, true);
        change
            .changed(created, Vec::new(), "webhook.create", subject)
            .with_object(&webhook)
    });
    Ok(created.await?.map(|created| {
        let location = format!("/webhooks/{}", created.webhook.id);
        mutation::created(location, Json(created))
    }))
}

/// Lists the webhooks, without their secrets.
#[utoipa::path(get, path = "/webhooks", tag = "webhooks", params(PageQuery), responses((status = 200, body = Page<Webhook>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Webhook>>> {
    let (limit, after) = query.read::<WebhookId>()?;
    let webhooks = queries::all(&mut *app.db.begin().await?).await?;
    let rest = webhooks
        .into_iter()
        .filter(|webhook| after.is_none_or(|after| webhook.id > after));
    Ok(Json(page::cut(rest, limit, |webhook| webhook.id)))
}

/// Deletes a webhook, with the messages that were on their way to it.
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 204)))]
pub async fn remove(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(id): Path<String>,
) -> Result<Mutation<StatusCode>> {
    let id = parse_id(&id)?;
    app.mutate(&actor, |mut change| async move {
        let url = queries::delete(&mut change, id)
            .await?
            .ok_or_else(|| error::not_found("webhook"))?;
        let subject = Subject::webhook(id, &webhook_outbox::origin(&url)?, false);
        Ok(change.changed((), Vec::new(), "webhook.delete", subject))
    })
    .await
    .map(|done| done.map(|()| StatusCode::NO_CONTENT))
}

/// Sends a test message to a webhook now. `error` is null if it was taken.
#[utoipa::path(post, path = "/webhooks/{id}/test", tag = "webhooks", params(("id" = WebhookId, Path)), responses((status = 200, body = Webhook)))]
pub async fn test(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(id): Path<String>,
) -> Result<Json<Webhook>> {
    if actor.options.dry_run {
        return Err(error::no_dry_run().into());
    }
    let id = parse_id(&id)?;
    let webhook = queries::find(&mut *app.db.begin().await?, id)
        .await?
        .ok_or_else(|| error::not_found("webhook"))?;
    let message = webhook_outbox::message(&app, Vec::new());
    let body = serde_json::to_string(&message).context("a message cannot be written")?;
    // A request has to end before its own deadline.
    let sent = timeout(
        PATIENCE / 2,
        webhook_outbox::send(&app, &webhook.url, id, &body),
    )
    .await;
    let error = sent
        .unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs() / 2))
        .err()
        .map(|error| webhook_outbox::words(&error));
    let mut transaction = app.db.begin().await?;
    webhook_outbox::queries::attempted(&mut transaction, id, error.as_deref()).await?;
    let webhook = queries::find(&mut transaction, id)
        .await?
        .ok_or_else(|| error::not_found("webhook"))?;
    transaction.commit().await?;
    Ok(Json(webhook))
}

fn parse_id(id: &str) -> Result<WebhookId> {
    id.parse().map_err(|_| error::not_found("webhook").into())
}
