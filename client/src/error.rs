//! Why a request brought no answer.

use hyper::{Response, StatusCode, body::Incoming};
use thiserror::Error;
use wattle_mesh::diagnose::doctor::OutOfTime;
use wattle_wire::problem::ProblemDetails;

use crate::http::{self, HttpError};

/// Why a request failed.
#[derive(Debug, Error)]
pub enum RequestError {
    #[error("cannot reach the coordinator at {url}")]
    Unreachable { url: String, source: HttpError },
    #[error("the coordinator answered {status}: \
        {}", problem.detail.as_deref().unwrap_or(&problem.title))]
    Refused {
        status: StatusCode,
        problem: Box<ProblemDetails>,
    },
    #[error(
        "the coordinator does not know this node: the node was removed from the mesh, or the \
         coordinator uses another database"
    )]
    NotAMember,
    #[error("what answers at {url} is not a Wattle coordinator (status {status})")]
    NotWattle { url: String, status: StatusCode },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl RequestError {
    /// Whether the coordinator's certificate is not valid at the time of this host's clock.
    pub fn out_of_time(&self) -> Option<OutOfTime> {
        match self {
            Self::Unreachable { source, .. } => source.connect_error()?.out_of_time(),
            Self::Refused { .. } | Self::NotAMember | Self::NotWattle { .. } | Self::Other(_) => {
                None
            }
        }
    }
}

/// What an answer says that is no success.
pub(crate) async fn refused(url: &str, response: Response<Incoming>) -> RequestError {
    let status = response.status();
    match http::read(response, ProblemDetails::LONGEST).await {
        Ok(problem) => RequestError::Refused {
            status,
            problem: Box::new(problem),
        },
        Err(_) => RequestError::NotWattle {
            url: url.to_owned(),
            status,
        },
    }
}
