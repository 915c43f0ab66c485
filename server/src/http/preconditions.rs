//! How a change is asked for: to be told only what it would do, in spite of what it does
//! to others, only if its object is as the caller last saw it, or once however often it is sent.

use std::sync::Arc;

use anyhow::Context;
use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use wattle_mesh::access::Action;

use crate::{
    db::{AuditActor, ChangeOptions, etag, idempotency::IdempotencyKey},
    error::{self, Result},
    http::{auth, body},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LONGEST_KEY: usize = 255;

/// Routes that are for the same action.
#[derive(Clone, Debug)]
pub struct ActionRoutes {
    pub action: Action,
    /// Those that can be asked to do what they would refuse.
    pub forced: Arc<[(&'static str, String)]>,
}

impl ActionRoutes {
    fn can_be_forced(&self, request: &Request) -> bool {
        let matched = request.extensions().get::<MatchedPath>();
        matched.is_some_and(|path| {
            let mut forced = self.forced.iter();
            forced.any(|(method, forced)| request.method() == method && forced == path.as_str())
        })
    }
}

/// The query of a change.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeQuery {
    #[serde(default)]
    dry_run: bool,
    force: Option<bool>,
}

/// Reads from a request how its change is asked for, and refuses what its route knows nothing of.
pub async fn read(State(routes): State<ActionRoutes>, request: Request, next: Next) -> Response {
    match with_options(&routes, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn with_options(routes: &ActionRoutes, mut request: Request) -> Result<Request> {
    let query = request.uri().query().unwrap_or_default();
    let is_change = match routes.action {
        Action::Change | Action::Grant | Action::Configure => !request.method().is_safe(),
        Action::Ask | Action::Read | Action::TakePart => false,
    };
    if !is_change {
        // Whoever thinks that nothing will happen is not to be surprised.
        let takes_none = query
            .split('&')
            .any(|parameter| parameter.split('=').next() == Some("dry_run"));
        return if takes_none {
            Err(error::no_dry_run().into())
        } else {
            Ok(request)
        };
    }
    let ChangeQuery { dry_run, force } =
        body::query(request.uri()).map_err(|_| error::invalid_change_query())?;
    if force.is_some() && !routes.can_be_forced(&request) {
        return Err(error::invalid_change_query().into());
    }
    let mut options = ChangeOptions {
        dry_run,
        force: force.unwrap_or_default(),
        if_match: if_match(request.headers()),
        idempotency_key: None,
    };
    // A dry run leaves nothing that a second one could do again.
    if !dry_run && idempotency_key_of(request.headers())?.is_some() {
        (request, options.idempotency_key) = with_idempotency_key(request).await?;
    }
    if let Some(actor) = request.extensions_mut().get_mut::<AuditActor>() {
        actor.options = options;
    }
    Ok(request)
}

/// Reads the body of a request that is to be known again.
async fn with_idempotency_key(request: Request) -> Result<(Request, Option<Arc<IdempotencyKey>>)> {
    if request.method() != Method::POST {
        return Err(error::invalid_idempotency_key(
            "only POST takes an Idempotency-Key; PATCH and DELETE can be repeated anyway",
        )
        .into());
    }
    let (parts, body) = request.into_parts();
    let body = body::read(body, body::LARGEST_IMPORT).await?;
    let (api_token, key) = (
        auth::bearer(&parts.headers),
        idempotency_key_of(&parts.headers)?,
    );
    let idempotency_key = api_token
        .zip(key)
        .map(|(api_token, key)| IdempotencyKey::new(api_token, key, &parts, &body))
        .transpose()?;
    Ok((
        Request::from_parts(parts, body.into()),
        idempotency_key.map(Arc::new),
    ))
}

/// All tags that the caller names, of however many headers.
fn if_match(headers: &HeaderMap) -> Option<String> {
    let named: Vec<_> = headers
        .get_all(header::IF_MATCH)
        .iter()
        .map(|tags| tags.to_str().unwrap_or_default())
        .collect();
    if named.is_empty() {
        None
    } else {
        Some(named.join(","))
    }
}

/// An object as it is shown, with its tag in the header `ETag`: another state of it has another
/// tag.
#[derive(Debug)]
pub struct WithEtag<T> {
    tag: HeaderValue,
    shown: T,
}

impl<T: Serialize> WithEtag<T> {
    pub fn new(shown: T) -> Result<Self> {
        Ok(Self {
            tag: tag(&shown)?,
            shown,
        })
    }
}

impl<T> WithEtag<T> {
    /// Shows something more, of which the tag does not depend.
    pub fn map<U>(self, more: impl FnOnce(T) -> U) -> WithEtag<U> {
        WithEtag {
            tag: self.tag,
            shown: more(self.shown),
        }
    }
}

impl<T: Serialize> IntoResponse for WithEtag<T> {
    fn into_response(self) -> Response {
        ([(header::ETAG, self.tag)], Json(self.shown)).into_response()
    }
}

fn tag(object: &impl Serialize) -> Result<HeaderValue> {
    Ok(HeaderValue::try_from(etag::of(object)?).context("a tag is no header")?)
}

/// The `Idempotency-Key` of a request.
///
/// # Errors
///
/// 422 when there are several, or when it is empty, long or not plain text.
fn idempotency_key_of(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut named = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (first, second) = (named.next(), named.next());
    let Some(first) = first else { return Ok(None) };
    match first
        .to_str()
        .ok()
        .filter(|key| second.is_none() && (1..=LONGEST_KEY).contains(&key.len()))
    {
        Some(key) => Ok(Some(key)),
        None => Err(error::invalid_idempotency_key(format!(
            "an Idempotency-Key has 1 to {LONGEST_KEY} printable ASCII characters; draw a new one \
             for each request"
        ))
        .into()),
    }
}
