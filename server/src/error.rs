//! Every error that a request can be answered with, as problem+json.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use thiserror::Error;
use wattle_mesh::access::AccessDenied;
use wattle_wire::problem::{Holder, PROBLEM_JSON, ProblemDetails};

pub use wattle_wire::problem::ErrorCode;

/// The longest text of an error that may hold input, in bytes.
const LONGEST_ECHO: usize = 200;
/// Seconds after which a client may try again when the coordinator cannot reach the database, or
/// when there were too many reports or failures.
const RETRY_AFTER_S: &str = "2";
/// The same for a node that makes too many changes in an hour.
const RETRY_AFTER_CHANGES_S: &str = "600";
/// Constraints that say what was looked at before in the same transaction.
const FREE_BEFORE: [&str; 5] = [
    "tunnel_address",
    "node_name",
    "site_name",
    "site_endpoint",
    "subnets_do_not_overlap",
];

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request is not carried out.
#[derive(Debug, Error)]
pub enum Error {
    /// The request is at fault, or the state of the mesh is against it.
    #[error("{}", .0.code)]
    Refused(Box<ProblemDetails>),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The coordinator cannot answer now, and will later.
    #[error("unavailable: {0}")]
    Unavailable(&'static str),
    /// A fault of the coordinator, with its causes, which the log names and nobody else is told.
    #[error("internal error: {0:#}")]
    Internal(anyhow::Error),
}

impl Error {
    /// The database constraint that a change broke.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Database(error) => error.as_database_error()?.constraint(),
            Self::Refused(_) | Self::Unavailable(_) | Self::Internal(_) => None,
        }
    }

    /// The error of one site of several: its field is named as it stands in the body.
    #[must_use]
    pub fn of_site(self, index: usize) -> Self {
        match self {
            Self::Refused(problem) => {
                let field = problem.field.as_ref().map_or_else(
                    || format!("sites[{index}]"),
                    |field| format!("sites[{index}].{field}"),
                );
                Self::Refused(Box::new(ProblemDetails {
                    field: Some(field),
                    ..*problem
                }))
            }
            other @ (Self::Database(_) | Self::Unavailable(_) | Self::Internal(_)) => other,
        }
    }

    /// Whether the same transaction may well succeed when it is tried again.
    pub fn is_transient(&self) -> bool {
        // Serialization failure, deadlock; what was free a moment ago, and somebody else took.
        self.sql_state()
            .is_some_and(|state| ["40001", "40P01"].contains(&state.as_str()))
            || self
                .constraint()
                .is_some_and(|name| FREE_BEFORE.contains(&name))
    }

    fn sql_state(&self) -> Option<String> {
        match self {
            Self::Database(error) => Some(error.as_database_error()?.code()?.into_owned()),
            Self::Refused(_) | Self::Unavailable(_) | Self::Internal(_) => None,
        }
    }

    /// Whether the database is out of reach or busy, rather than at odds with what it was asked.
    fn is_outage(&self) -> bool {
        let Self::Database(error) = self else {
            return false;
        };
        let is_lost = matches!(
            error,
            sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::Io(_)
                | sqlx::Error::WorkerCrashed
        );
        // Connection lost, transaction rollback, no resources, operator's intervention, system
        // error; lock not available; read-only.
        is_lost
            || self.sql_state().is_some_and(|state| {
                ["08", "40", "53", "57", "58"]
                    .iter()
                    .any(|class| state.starts_with(class))
                    || state == "55P03"
                    || state == "25006"
            })
    }

    /// Whether the database cannot keep a value that the types let through, or a column does not
    /// take it. That is a bug, and no fault of the database.
    fn cannot_be_kept(&self) -> bool {
        self.sql_state()
            .is_some_and(|state| state.starts_with("22") || state == "23514")
    }

    fn log(&self) {
        match self {
            Self::Refused(problem) => tracing::debug!(code = problem.code, "refused"),
            Self::Unavailable(why) => tracing::warn!(why, "cannot answer now"),
            Self::Database(error) if self.is_outage() => {
                tracing::warn!(%error, "cannot reach the database")
            }
            Self::Database(error) => {
                tracing::error!(%error, "the database refused a statement: this is a bug")
            }
            Self::Internal(error) => {
                tracing::error!(error = format!("{error:#}"), "internal error")
            }
        }
    }
}

// Not as the source of the error: its text has the causes already.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}

impl From<ProblemDetails> for Error {
    fn from(problem: ProblemDetails) -> Self {
        Self::Refused(Box::new(problem))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log();
        match self {
            Self::Refused(problem) => respond(&problem),
            Self::Unavailable(_) => respond(&unavailable()),
            Self::Database(_) if self.is_outage() => respond(&unavailable()),
            Self::Database(_) if self.cannot_be_kept() => respond(&not_kept()),
            Self::Database(_) | Self::Internal(_) => respond(&internal()),
        }
    }
}

/// A problem as a response.
pub fn respond(problem: &ProblemDetails) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = (
        status,
        [
            (header::CONTENT_TYPE, PROBLEM_JSON),
            (header::CACHE_CONTROL, "no-store"),
        ],
        body,
    )
        .into_response();
    if [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
    ]
    .contains(&status)
    {
        let is_of_an_hour = [ErrorCode::TooManyKeys, ErrorCode::TooManyChanges]
            .iter()
            .any(|code| problem.is(*code));
        let wait_s = if is_of_an_hour {
            RETRY_AFTER_CHANGES_S
        } else {
            RETRY_AFTER_S
        };
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(wait_s));
    }
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// An error without a field. What it repeats of the request is cut.
pub fn problem(code: ErrorCode, detail: impl Into<String>) -> ProblemDetails {
    ProblemDetails::new(code, shorten(detail.into()))
}

/// 400: the body is not what it says it is.
pub fn invalid_json(detail: impl Into<String>) -> ProblemDetails {
    problem(ErrorCode::InvalidJson, detail)
}

/// 401, the same for whatever is wrong with a credential.
pub fn unauthorized() -> ProblemDetails {
    let detail = "send `Authorization: Bearer` with an api token (people and scripts) or a token \
        signed by the node (agents) that is valid now";
    problem(ErrorCode::Unauthorized, detail)
}

/// 401, the same for whatever is wrong with a join token.
pub fn join_token_refused() -> ProblemDetails {
    let detail = "it is unknown, used, expired or revoked; make a new one with `POST \
        /sites/{site}/join-tokens`";
    problem(ErrorCode::JoinTokenRefused, detail)
}

/// 401: a key that the machine cannot prove to hold.
pub fn proof_refused(detail: impl Into<String>) -> ProblemDetails {
    problem(ErrorCode::ProofRefused, detail)
}

/// 403: who calls is known, and may not.
pub fn forbidden(detail: &str) -> ProblemDetails {
    problem(ErrorCode::Forbidden, detail)
}

/// 401 or 403: what the rules of access say.
pub fn denied(denied: AccessDenied) -> Error {
    let problem = match denied {
        AccessDenied::Unknown => unauthorized(),
        AccessDenied::NotForNodes
        | AccessDenied::ForNodesAlone
        | AccessDenied::Role(_)
        | AccessDenied::MoreThanOwn => forbidden(&denied.to_string()),
    };
    problem.into()
}

/// 403: a key that was revoked.
pub fn key_revoked() -> ProblemDetails {
    let detail = "a node with this key was revoked, and a revoked key cannot enrol again: make new \
        keys (`wattle-agent join --replace`)";
    problem(ErrorCode::KeyRevoked, detail)
}

/// 404: there is no such thing, or none for the caller.
pub fn not_found(what: &str) -> ProblemDetails {
    problem(ErrorCode::NotFound, format!("there is no such {what}"))
}

/// 405. The header `Allow` says what is possible.
pub fn method_not_allowed() -> ProblemDetails {
    problem(
        ErrorCode::MethodNotAllowed,
        "the header `Allow` lists the methods of this path",
    )
}

/// 408: the request was not whole, or not carried out, in time.
pub fn too_slow(limit: Duration) -> ProblemDetails {
    let detail = format!(
        "a request may take {} s, its body included",
        limit.as_secs()
    );
    problem(ErrorCode::TooSlow, detail)
}

/// 409: something that only one can hold is held by another.
pub fn taken(
    code: ErrorCode,
    field: &str,
    detail: impl Into<String>,
    holder: Option<Holder>,
) -> ProblemDetails {
    ProblemDetails {
        field: Some(field.to_owned()),
        holder,
        ..problem(code, detail)
    }
}

/// 409: the key stands for another request.
pub fn idempotency_key_reused() -> ProblemDetails {
    let detail =
        "another request of the last day had this Idempotency-Key; draw a new one for each request";
    problem(ErrorCode::IdempotencyKeyReused, detail)
}

/// 412: the object is not as the caller saw it.
pub fn changed_meanwhile() -> ProblemDetails {
    let detail = "it changed since you read it, or has no ETag. Read it again, and send the new \
        ETag in If-Match";
    problem(ErrorCode::ChangedMeanwhile, detail)
}

/// 413: the body is larger than it may be.
pub fn too_large(limit: usize) -> ProblemDetails {
    problem(
        ErrorCode::TooLarge,
        format!("a body may have {limit} bytes"),
    )
}

/// 415: the body is of a kind that is not taken.
pub fn unsupported_media_type() -> ProblemDetails {
    let detail = "send JSON with `Content-Type: application/json`, and not compressed";
    problem(ErrorCode::UnsupportedMediaType, detail)
}

/// 422: a field whose meaning is wrong.
pub fn invalid(
    code: ErrorCode,
    field: impl Into<String>,
    detail: impl Into<String>,
) -> ProblemDetails {
    let field = Some(shorten(field.into())).filter(|field| !field.is_empty());
    ProblemDetails {
        field,
        ..problem(code, detail)
    }
}

/// 422: a value that nothing but the database refused.
fn not_kept() -> ProblemDetails {
    invalid(
        ErrorCode::CannotBeKept,
        "",
        "a number or a text of the request is none that can be kept",
    )
}

/// 422: the query of a change.
pub fn invalid_change_query() -> ProblemDetails {
    invalid(
        ErrorCode::InvalidQuery,
        "",
        "the query of a change may have `dry_run=true` or `dry_run=false`, that of `/rotate` also \
         `force=true`, and nothing else",
    )
}

/// 422: an `Idempotency-Key` that is none, or where none is taken.
pub fn invalid_idempotency_key(detail: impl Into<String>) -> ProblemDetails {
    invalid(ErrorCode::InvalidIdempotencyKey, "Idempotency-Key", detail)
}

/// 422: somebody asks what something would do that changes nothing of the mesh, or that cannot
/// tell.
pub fn no_dry_run() -> ProblemDetails {
    invalid(
        ErrorCode::InvalidQuery,
        "dry_run",
        "this route has no dry run: only changes of the mesh with an api token have",
    )
}

/// 409: a report that was overtaken, or was sent before.
pub fn late_report() -> ProblemDetails {
    let detail = "a newer report of this node is known; the number of each is above those of all \
        before it";
    ProblemDetails {
        field: Some("number".to_owned()),
        ..problem(ErrorCode::LateReport, detail)
    }
}

/// 429: more is said than can be taken in now.
pub fn busy() -> ProblemDetails {
    let detail =
        "the coordinator is overloaded with reports; try again after the seconds in Retry-After";
    problem(ErrorCode::Busy, detail)
}

/// 429: a node changes its WireGuard key too often.
pub fn too_many_keys(detail: String) -> ProblemDetails {
    problem(ErrorCode::TooManyKeys, detail)
}

/// 429: a node changes something of itself too often.
pub fn too_many_changes(detail: String) -> ProblemDetails {
    problem(ErrorCode::TooManyChanges, detail)
}

/// 429: one credential takes more than its share.
pub fn too_much(what: &str) -> ProblemDetails {
    let detail = format!(
        "your credential has too many {what}; wait for some to end, and try again after the \
         seconds in Retry-After"
    );
    problem(ErrorCode::TooMuch, detail)
}

/// 429: too many credentials from this address were wrong.
pub fn too_many_failures() -> ProblemDetails {
    let detail = "too many wrong credentials came from your address; try again after the seconds \
        in Retry-After";
    problem(ErrorCode::TooManyFailures, detail)
}

/// 500.
pub fn internal() -> ProblemDetails {
    let detail = "this is a fault of the coordinator. Search its log for the value of X-Request-Id";
    problem(ErrorCode::Internal, detail)
}

/// 503: all places of those who watch are taken.
pub fn streams_are_full() -> ProblemDetails {
    let detail = "this coordinator serves as many streams of events as it can; close one, or ask \
        another coordinator";
    problem(ErrorCode::StreamsAreFull, detail)
}

/// 503.
pub fn unavailable() -> ProblemDetails {
    let detail = "the coordinator cannot reach its database, or it is busy; try again after the \
        seconds in Retry-After";
    problem(ErrorCode::Unavailable, detail)
}

/// Cuts a text that may hold input to what an answer may repeat.
fn shorten(mut text: String) -> String {
    if text.len() > LONGEST_ECHO {
        let mut end = LONGEST_ECHO - '…'.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
