//! Who is calling: a person or script with an api token, or a node with a token that it signed
//! itself.

mod queries;

use std::{sync::Arc, time::Instant};

use axum::{
    body::HttpBody,
    extract::{Request, State},
    http::{Extensions, HeaderMap, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use uuid::Uuid;
use wattle_mesh::{
    access::{self, Action, Grant, Object},
    config::feed::Feed,
    keys::node_token,
};
use wattle_wire::{
    PINS_HEADER,
    ids::{NodeId, TokenId},
};

use crate::{
    db::{AuditActor, Db, node_records},
    error::{self, Error, Result},
    http::{body::LARGEST_IMPORT, listen::Connection},
    secret::{self, ApiCredential},
    state::{
        app::App,
        credentials::KnownTokens,
        origin::Origin,
        shares::{AdmittedRequest, Credential, Share},
    },
};

/// The id of a request, in its answer, in the log and in the audit log.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// The node that calls, as its own signature proves.
#[derive(Clone, Copy, Debug)]
pub struct CallingNode(pub NodeId);

/// The api token that calls.
#[derive(Clone, Copy, Debug)]
pub struct CallingToken(pub TokenId);

/// Who a credential belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Caller {
    /// With what it is for.
    ApiToken(TokenId, Grant, String),
    Node(NodeId),
}

/// A caller whose request is let in.
struct Entered {
    caller: Caller,
    share: Arc<Share>,
    admitted: AdmittedRequest,
}

/// Lets those in who may do what a route is for.
pub async fn enter(
    State((app, action)): State<(App, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    let size = request.body().size_hint();
    let bytes = size.upper().unwrap_or(LARGEST_IMPORT as u64);
    let entered = match entered(&app, request.headers(), bytes, request.extensions()).await {
        Ok(entered) => entered,
        Err(error) => return error.into_response(),
    };
    let Entered {
        caller,
        share,
        admitted: AdmittedRequest { place, turn },
    } = entered;
    let actor = match caller {
        Caller::ApiToken(_, grant, _) => access::Actor::ApiToken(grant),
        Caller::Node(_) => access::Actor::Node,
    };
    if let Err(denied) = access::authorise(actor, action, Object::Mesh) {
        return error::denied(denied).into_response();
    }
    request.extensions_mut().insert(share);
    let mut response = match caller {
        Caller::ApiToken(id, _, name) => {
            let request_id = request
                .extensions()
                .get::<RequestId>()
                .map(|id| id.0.clone());
            request
                .extensions_mut()
                .insert(AuditActor::api_token(id, &name, request_id));
            request.extensions_mut().insert(CallingToken(id));
            next.run(request).await
        }
        Caller::Node(node) => {
            request.extensions_mut().insert(CallingNode(node));
            let mut response = next.run(request).await;
            tell_pins(&app, &mut response);
            response
        }
    };
    drop(turn);
    // Until the answer was read.
    response.extensions_mut().insert(Arc::new(place));
    response
}

/// Who calls, and whether the credential has room for one more request, whose body has at most so
/// many bytes.
async fn entered(
    app: &App,
    headers: &HeaderMap,
    bytes: u64,
    extensions: &Extensions,
) -> Result<Entered> {
    let bearer = bearer(headers).ok_or_else(error::unauthorized)?;
    let entered = match ApiCredential::parse(bearer) {
        Some(token) => api_token(app, &token, origin(extensions)).await?,
        None => node(app, bearer, bytes, origin(extensions)).await?,
    };
    match extensions.get::<Arc<Connection>>() {
        Some(connection) if !connection.set_authenticated(&entered.share) => {
            Err(error::too_much("connections").into())
        }
        Some(_) | None => Ok(entered),
    }
}

/// Tells a node which certificate authorities to trust from now on.
fn tell_pins(app: &App, response: &mut Response) {
    let pins: Vec<String> = app.pins().iter().map(ToString::to_string).collect();
    if let Some(pins) = HeaderValue::from_str(&pins.join(","))
        .ok()
        .filter(|_| !pins.is_empty())
    {
        response.headers_mut().insert(PINS_HEADER, pins);
    }
}

async fn api_token(app: &App, token: &ApiCredential, origin: Option<Origin>) -> Result<Entered> {
    let is_known = app.known.has(token);
    let share = app.shares.of(Credential::ApiToken(token.id));
    // Whoever has shown it before waits for a turn first, and a stranger for a look-up.
    let early = match is_known {
        true => Some(share.admit().await?),
        false => None,
    };
    let lookup = async {
        let stored = queries::credential(&mut *app.db.credentials().await?, token.id).await?;
        Ok(stored.filter(|stored| secret::matches(token.secret.reveal(), &stored.hash)))
    };
    // Its holder is not kept out by what others at the same address do.
    let found = unless_guessing(app, origin.filter(|_| !is_known), lookup).await?;
    let Some(queries::Credential { hash, grant, name }) = found else {
        app.forget_token(token.id);
        return Err(error::unauthorized().into());
    };
    if app.known.use_is_due(token.id, hash, Instant::now()) {
        let mut transaction = app.db.credentials().await?;
        queries::used(&mut transaction, token.id).await?;
        transaction.commit().await?;
    }
    let admitted = match early {
        Some(admitted) => admitted,
        None => share.admit().await?,
    };
    Ok(Entered {
        caller: Caller::ApiToken(token.id, grant, name),
        share,
        admitted,
    })
}

/// The api tokens that were used before this coordinator started: a start during an attack locks
/// nobody out.
pub async fn known_tokens(db: &Db) -> Result<KnownTokens> {
    let known = queries::known(&mut *db.credentials().await?).await?;
    Ok(KnownTokens::of(known))
}

/// Those of some api tokens and join tokens that are good for nothing any more.
pub async fn ended_tokens(db: &Db, tokens: &[TokenId]) -> Result<Vec<TokenId>> {
    queries::ended(&mut *db.follow().await?, tokens).await
}

/// Looks a credential up, unless too many from the same place were wrong. It counts as wrong until
/// it was found: those that are tried at the same time are not more.
///
/// # Errors
///
/// 429, before the database is asked anything.
pub async fn unless_guessing<T>(
    app: &App,
    origin: Option<Origin>,
    lookup: impl Future<Output = Result<Option<T>>>,
) -> Result<Option<T>> {
    let Some(origin) = origin else {
        return lookup.await;
    };
    if !app.auth_limiter.take(origin, Instant::now()) {
        return Err(error::too_many_failures().into());
    }
    let found = lookup.await;
    // An outage is nobody's guess.
    if !matches!(found, Ok(None)) {
        app.auth_limiter.give_back(origin);
    }
    found
}

/// Where a request comes from, for [`unless_guessing`].
pub fn origin(extensions: &Extensions) -> Option<Origin> {
    extensions
        .get::<Arc<Connection>>()
        .and_then(|connection| connection.stranger())
}

/// The credential of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut headers = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(header), None) = (headers.next(), headers.next()) else {
        return None;
    };
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

async fn node(app: &App, token: &str, bytes: u64, origin: Option<Origin>) -> Result<Entered> {
    let node = calling_node(app, token, origin).await?;
    app.shares.pace(node, bytes)?;
    let share = app.shares.of(Credential::Node(node));
    let admitted = share.admit().await?;
    Ok(Entered {
        caller: Caller::Node(node),
        share,
        admitted,
    })
}

async fn calling_node(app: &App, token: &str, origin: Option<Origin>) -> Result<NodeId> {
    let unauthorized = || Error::from(error::unauthorized());
    let claimed = node_token::claims(token).ok_or_else(unauthorized)?;
    let known = || {
        let takes_part = |feed: &Feed| {
            feed.directory().nodes.contains_key(&claimed.sub)
                || feed.directory().revoked.contains_key(&claimed.sub)
        };
        app.mesh_cache.read(takes_part).then_some(())
    };
    if known().is_none() {
        // It may have enrolled with another coordinator a moment ago.
        let refreshed = async {
            app.mesh_cache.refresh().await;
            Ok(known())
        };
        unless_guessing(app, origin, refreshed).await?;
    }
    if !app.mesh_cache.is_fresh() {
        return Err(Error::Unavailable(
            "the copy of the mesh in memory is too old to check credentials",
        ));
    }
    let found = app.mesh_cache.read(|feed| {
        feed.directory()
            .nodes
            .get(&claimed.sub)
            .map(|node| (node.identity_key, node.generation))
    });
    let (key, generation) = found.ok_or_else(unauthorized)?;
    let hash = secret::hash(token);
    if !app.verified.has(claimed.sub, hash, key) {
        if !node_token::is_signed(token, key, app.settings.mesh) {
            return Err(unauthorized());
        }
        app.verified.remember(claimed.sub, hash, key);
    }
    let now = Utc::now().timestamp();
    if !node_token::is_good(&claimed, app.settings.mesh, generation, now) {
        return Err(unauthorized());
    }
    if claimed.generation > generation {
        raise_generation(app, claimed.sub, claimed.generation).await?;
    }
    Ok(claimed.sub)
}

/// A node signs with a higher generation than before: whatever it signed until now is refused from
/// now on, wherever it is. That is a change of configuration, so that each coordinator knows it.
async fn raise_generation(app: &App, node: NodeId, generation: i32) -> Result<()> {
    let actor = &app.node_actor(node, None);
    app.mutate(actor, |mut change| async move {
        let found = node_records::find(&mut change, node).await?;
        let before = found.ok_or_else(error::unauthorized)?;
        if before.generation == generation {
            return Ok(change.unchanged(()));
        }
        if !queries::raise_generation(&mut change, node, generation).await? {
            return Err(error::unauthorized().into());
        }
        let found = node_records::find(&mut change, node).await?;
        let after = found.ok_or_else(error::unauthorized)?;
        change
            .changed_node((), "node.tokens.renew", &before, after)
            .await
    })
    .await?
    .done()
}

/// Gives each request an id, its own if it has a sensible one, and says it in the answer.
pub async fn with_request_id(mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .filter(|id| is_sensible(id));
    let id = given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

fn is_sensible(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
