//! `/api-tokens`: what lets people and scripts use the interface.

pub mod queries;

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use wattle_mesh::{
    access::{self, Action, Grant, Object},
    audit::{Edit, Subject},
};
use wattle_wire::{
    admin::{ApiToken, CreatedApiToken, NewApiToken, Page},
    ids::TokenId,
    secret::Secret,
};

use crate::{
    db::{AuditActor, PendingChange},
    error::{self, ErrorCode, Result},
    http::{
        auth::CallingToken,
        body::{Body, Query},
        page::{self, PageQuery},
        path::Path,
    },
    mutation::{self, Mutation},
    secret,
    state::app::App,
    text,
};

/// Makes an api token; its secret is shown this once.
#[utoipa::path(post, path = "/api-tokens", tag = "api \
    tokens", request_body = NewApiToken, responses((status = 201, body = CreatedApiToken)))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Extension(caller): Extension<CallingToken>,
    Body(wanted): Body<NewApiToken>,
) -> Result<Mutation<Response>> {
    check(&wanted)?;
    let token = secret::ApiCredential::fresh()?;
    let (new, wanted) = (&token, &wanted);
    let created = app.mutate(&actor, |mut change| async move {
        let own = caller.lock(&mut change).await?;
        let api_token = queries::insert(&mut change, new, wanted).await?;
        let grant = Grant {
            role: api_token.role,
            expires_at: api_token.expires_at,
        };
        access::authorise(
            access::Actor::ApiToken(own),
            Action::Grant,
            Object::NewApiToken(grant),
        )
        .map_err(error::denied)?;
        let created = CreatedApiToken {
            api_token: api_token.clone(),
            token: Secret::new(new.reveal()),
        };
        let subject = Subject::api_token(Edit::Made(&api_token));
        change
            .changed(created, Vec::new(), "api-token.create", subject)
            .with_object(&api_token)
    });
    Ok(created.await?.map(|created| {
        let location = format!("/api-tokens/{}", created.api_token.id);
        mutation::created(location, Json(created))
    }))
}

/// Lists the api tokens that were not revoked, without their secrets.
#[utoipa::path(get, path = "/api-tokens", tag = "api \
    tokens", params(PageQuery), responses((status = 200, body = Page<ApiToken>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ApiToken>>> {
    let (limit, after) = query.read::<TokenId>()?;
    let tokens = queries::list(&mut *app.db.begin().await?, after, limit + 1).await?;
    Ok(Json(page::cut(tokens.into_iter(), limit, |token| token.id)))
}

/// Shows the calling api token, without its secret: its name, role and expiry.
#[utoipa::path(get, path = "/api-tokens/self", tag = "api \
    tokens", responses((status = 200, body = ApiToken)))]
pub async fn own(
    State(app): State<App>,
    Extension(caller): Extension<CallingToken>,
) -> Result<Json<ApiToken>> {
    let found = queries::find(&mut *app.db.begin().await?, caller.0).await?;
    found.map(Json).ok_or_else(|| error::unauthorized().into())
}

/// Shows an api token, without its secret.
#[utoipa::path(get, path = "/api-tokens/{id}", tag = "api \
    tokens", params(("id" = TokenId, Path)), responses((status = 200, body = ApiToken)))]
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<ApiToken>> {
    let found = queries::find(&mut *app.db.begin().await?, parse(&id)?).await?;
    found
        .map(Json)
        .ok_or_else(|| error::not_found("api token").into())
}

/// Revokes an api token; it ends at once.
#[utoipa::path(delete, path = "/api-tokens/{id}", tag = "api \
    tokens", params(("id" = TokenId, Path)), responses((status = 204)))]
pub async fn revoke(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Extension(caller): Extension<CallingToken>,
    Path(id): Path<String>,
) -> Result<Mutation<StatusCode>> {
    let id = parse(&id)?;
    app.mutate(&actor, |mut change| async move {
        let own = caller.lock(&mut change).await?;
        let token = queries::revoke(&mut change, id)
            .await?
            .ok_or_else(|| error::not_found("api token"))?;
        access::authorise(
            access::Actor::ApiToken(own),
            Action::Grant,
            Object::ApiToken(token.role),
        )
        .map_err(error::denied)?;
        let subject = Subject::api_token(Edit::Gone(&token));
        Ok(change.changed((), Vec::new(), "api-token.revoke", subject))
    })
    .await
    .map(|done| {
        done.map(|()| {
            app.forget_token(id);
            StatusCode::NO_CONTENT
        })
    })
}

impl CallingToken {
    /// What the calling token is good for, which nobody changes before this transaction ends.
    async fn lock(self, change: &mut PendingChange) -> Result<Grant> {
        queries::lock(change, self.0)
            .await?
            .ok_or_else(|| error::unauthorized().into())
    }
}

fn parse(id: &str) -> Result<TokenId> {
    id.parse().map_err(|_| error::not_found("api token").into())
}

fn check(wanted: &NewApiToken) -> Result<()> {
    text::check("name", &wanted.name)?;
    if wanted.name.is_empty() {
        return Err(
            error::invalid(ErrorCode::InvalidText, "name", "say what the token is for").into(),
        );
    }
    if wanted
        .expires_in_s
        .is_some_and(|seconds| !(1..=NewApiToken::LONGEST_S).contains(&seconds))
    {
        let detail = format!(
            "an api token is valid for 1 to {} seconds (10 years); leave this field out for a \
             token that never expires",
            NewApiToken::LONGEST_S
        );
        return Err(error::invalid(ErrorCode::InvalidField, "expires_in_s", detail).into());
    }
    Ok(())
}
