//! RFC 9457 problem details: every error that the coordinator answers with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a [`ProblemDetails`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error: what was wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// Stable name of the kind of error, for programs: `subnet_taken`.
    pub code: String,
    /// The kind of error in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, and the fix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The field of the request body that is wrong: `subnets[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// For a clash: who holds what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
}

impl ProblemDetails {
    /// The longest that a client reads, in bytes.
    pub const LONGEST: usize = 64 << 10;
}

/// Who holds something that can be held only once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The name of the site, or `mesh` for what the mesh itself needs.
    pub site: String,
    /// What it holds: a prefix, a name.
    pub holds: String,
}
