//! `/join-tokens`: what lets a machine become a node.

pub mod queries;

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use uuid::Uuid;
use wattle_mesh::audit::{Edit, Subject};
use wattle_wire::{
    admin::{CreatedJoinToken, InstallCommands, JoinToken, NewJoinToken, Page},
    ids::{SiteId, TokenId},
    join::JoinString,
    secret::Secret,
};

use crate::{
    db::{AuditActor, site_records},
    error::{self, ErrorCode, Result},
    http::{
        body::{Body, Query},
        page::{self, PageQuery},
        path::Path,
    },
    mutation::{self, Mutation},
    secret,
    state::app::App,
};

/// A join token that is about to be stored, with its secret.
#[derive(Debug)]
pub struct Issue {
    pub id: TokenId,
    pub site: SiteId,
    pub secret: Secret,
    pub wanted: NewJoinToken,
}

impl Issue {
    /// # Errors
    ///
    /// A problem when more is wanted than a join token may be good for.
    pub fn fresh(site: SiteId, wanted: NewJoinToken) -> Result<Self> {
        check(&wanted)?;
        Ok(Self {
            id: TokenId(Uuid::now_v7()),
            site,
            secret: secret::fresh()?,
            wanted,
        })
    }

    /// What is shown this once.
    pub fn created(&self, app: &App, stored: &JoinToken) -> CreatedJoinToken {
        let join = JoinString {
            urls: app.settings.urls.clone(),
            mesh: app.settings.mesh,
            site: self.site,
            pins: app.pins(),
            token: self.id,
            secret: self.secret.clone(),
        };
        CreatedJoinToken {
            id: self.id,
            expires_at: stored.expires_at,
            join_string: Secret::new(join.to_string()),
            command: Secret::new(format!("echo {join} | wattle-agent join -")),
            install: app.settings.packages.as_deref().map(install),
        }
    }
}

/// Makes a join token for a further gateway of a site. An empty body asks for one use within an
/// hour.
#[utoipa::path(post, path = "/sites/{site}/join-tokens", tag = "join \
    tokens", params(("site" = String, Path, description = "id or name")),
    request_body = NewJoinToken, responses((status = 201, body = CreatedJoinToken)))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(site): Path<String>,
    Body(wanted): Body<NewJoinToken>,
) -> Result<Mutation<Response>> {
    let issue = Issue::fresh(app.find_site(&site)?, wanted)?;
    let (new, app) = (&issue, &app);
    let created = app.mutate(&actor, |mut change| async move {
        let stored = queries::insert(&mut change, new).await?;
        let site = site_records::name(&mut change, stored.site).await?;
        change
            .changed(
                new.created(app, &stored),
                Vec::new(),
                "join-token.create",
                Subject::join_token(&site, Edit::Made(&stored)),
            )
            .with_object(&stored)
    });
    let created = match created.await {
        Err(error) if error.constraint() == Some("join_tokens_site_fkey") => {
            return Err(error::not_found("site").into());
        }
        result => result?,
    };
    Ok(created.map(|created| {
        let location = format!("/join-tokens/{}", created.id);
        mutation::created(location, Json(created))
    }))
}

/// Lists the join tokens of a site that were not revoked, without their secrets.
#[utoipa::path(get, path = "/sites/{site}/join-tokens", tag = "join tokens",
    params(("site" = String, Path, description = "id or \
        name"), PageQuery), responses((status = 200, body = Page<JoinToken>)))]
pub async fn list(
    State(app): State<App>,
    Path(site): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<JoinToken>>> {
    let (limit, after) = query.read::<TokenId>()?;
    let tokens = queries::of_site(
        &mut *app.db.begin().await?,
        app.find_site(&site)?,
        after,
        limit + 1,
    )
    .await?;
    Ok(Json(page::cut(tokens.into_iter(), limit, |token| token.id)))
}

/// Shows a join token, without its secret.
#[utoipa::path(get, path = "/join-tokens/{id}", tag = "join tokens", params(("id" = TokenId, Path)),
    responses((status = 200, body = JoinToken)))]
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<JoinToken>> {
    let found = queries::find(&mut *app.db.begin().await?, parse(&id)?).await?;
    found
        .map(Json)
        .ok_or_else(|| error::not_found("join token").into())
}

/// Revokes a join token. Nodes that enrolled with it stay.
#[utoipa::path(delete, path = "/join-tokens/{id}", tag = "join \
    tokens", params(("id" = TokenId, Path)), responses((status = 204)))]
pub async fn revoke(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(id): Path<String>,
) -> Result<Mutation<StatusCode>> {
    let id = parse(&id)?;
    app.mutate(&actor, |mut change| async move {
        let token = queries::revoke(&mut change, id)
            .await?
            .ok_or_else(|| error::not_found("join token"))?;
        let site = site_records::name(&mut change, token.site).await?;
        let subject = Subject::join_token(&site, Edit::Gone(&token));
        Ok(change.changed((), Vec::new(), "join-token.revoke", subject))
    })
    .await
    .map(|done| {
        done.map(|()| {
            app.forget_token(id);
            StatusCode::NO_CONTENT
        })
    })
}

/// How the agent of this coordinator's version is installed out of a folder that scripts/package
/// filled.
fn install(packages: &str) -> InstallCommands {
    let version = env!("CARGO_PKG_VERSION");
    let deb = format!("{packages}/wattle-agent_{version}-1_$(dpkg --print-architecture).deb");
    let rpm = format!("{packages}/wattle-agent-{version}-1.$(uname -m).rpm");
    InstallCommands {
        deb: format!(
            "curl -fsSLo /run/wattle-agent.deb \"{deb}\" && apt-get install -y /run/wattle-agent.deb"
        ),
        rpm: format!("dnf install -y \"{rpm}\""),
    }
}

fn parse(id: &str) -> Result<TokenId> {
    id.parse()
        .map_err(|_| error::not_found("join token").into())
}

fn check(wanted: &NewJoinToken) -> Result<()> {
    if !(1..=NewJoinToken::MOST_USES).contains(&wanted.uses) {
        return Err(error::invalid(
            ErrorCode::InvalidField,
            "uses",
            format!("a join token has 1 to {} uses", NewJoinToken::MOST_USES),
        )
        .into());
    }
    if !(1..=NewJoinToken::LONGEST_S).contains(&wanted.expires_in_s) {
        let detail = format!(
            "a join token is valid for 1 to {} seconds (7 days)",
            NewJoinToken::LONGEST_S
        );
        return Err(error::invalid(ErrorCode::InvalidField, "expires_in_s", detail).into());
    }
    Ok(())
}
