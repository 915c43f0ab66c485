//! RFC 9457 problem details: every error that the coordinator answers with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a [`ProblemDetails`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The title of what is wrong with a request itself.
const INVALID: &str = "The request cannot be carried out as it is";

/// The kinds of errors, as programs know them. Later versions may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    InvalidJson,
    Unauthorized,
    JoinTokenRefused,
    ProofRefused,
    Forbidden,
    KeyRevoked,
    NotFound,
    MethodNotAllowed,
    TooSlow,
    NameTaken,
    SubnetTaken,
    SubnetHoldsEndpoint,
    SubnetHoldsCoordinator,
    EndpointTaken,
    NoTunnelAddress,
    HasGateway,
    KeyTaken,
    UnmanagedNode,
    UnmanagedSites,
    RotationUnderWay,
    NotAnnounced,
    IdempotencyKeyReused,
    LateReport,
    ChangedMeanwhile,
    TooLarge,
    UnsupportedMediaType,
    CannotBeKept,
    DuplicateField,
    EndpointInSubnet,
    InvalidAdmission,
    InvalidField,
    InvalidIdempotencyKey,
    InvalidQuery,
    InvalidReadmission,
    InvalidRemoval,
    Statement,
    InvalidText,
    InvalidUrl,
    KeyNotProved,
    MissingField,
    OutOfRange,
    SubnetsOverlap,
    TooMany,
    UnknownField,
    Busy,
    TooManyChanges,
    TooManyFailures,
    TooManyKeys,
    TooMuch,
    Internal,
    StreamsAreFull,
    Unavailable,
}

impl ErrorCode {
    /// As it is written: `subnet_taken`.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        self.row().1
    }

    /// The kind of error in words.
    pub const fn title(self) -> &'static str {
        self.row().2
    }

    const fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::InvalidJson => ("invalid_json", 400, "The body is not JSON"),
            Self::Unauthorized => ("unauthorized", 401, "No valid credential"),
            Self::JoinTokenRefused => ("join_token_refused", 401, "The join token is not valid"),
            Self::ProofRefused => ("proof_refused", 401, "A proof is wrong"),
            Self::Forbidden => ("forbidden", 403, "Not allowed"),
            Self::KeyRevoked => ("key_revoked", 403, "The key was revoked"),
            Self::NotFound => ("not_found", 404, "Not found"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method not allowed"),
            Self::TooSlow => ("too_slow", 408, "The request took too long"),
            Self::NameTaken => ("name_taken", 409, "The name is taken"),
            Self::SubnetTaken => ("subnet_taken", 409, "The subnet is taken"),
            Self::SubnetHoldsEndpoint => {
                ("subnet_holds_endpoint", 409, "The subnet holds an endpoint")
            }
            Self::SubnetHoldsCoordinator => (
                "subnet_holds_coordinator",
                409,
                "The subnet holds a coordinator",
            ),
            Self::EndpointTaken => ("endpoint_taken", 409, "The endpoint is taken"),
            Self::NoTunnelAddress => ("no_tunnel_address", 409, "The mesh is full"),
            Self::HasGateway => ("has_gateway", 409, "The site has a gateway already"),
            Self::KeyTaken => ("key_taken", 409, "The key is taken"),
            Self::UnmanagedNode => ("unmanaged_node", 409, "The node has no agent"),
            Self::UnmanagedSites => ("unmanaged_sites", 409, "Installed files name this key"),
            Self::RotationUnderWay => (
                "rotation_under_way",
                409,
                "Another node is changing its key",
            ),
            Self::NotAnnounced => ("not_announced", 409, "The key was not announced"),
            Self::IdempotencyKeyReused => (
                "idempotency_key_reused",
                409,
                "The Idempotency-Key was used",
            ),
            Self::LateReport => ("late_report", 409, "The report is late"),
            Self::ChangedMeanwhile => ("changed_meanwhile", 412, "Changed in the meantime"),
            Self::TooLarge => ("too_large", 413, "The body is too large"),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, "Unsupported media type"),
            Self::CannotBeKept => ("cannot_be_kept", 422, INVALID),
            Self::DuplicateField => ("duplicate_field", 422, INVALID),
            Self::EndpointInSubnet => ("endpoint_in_subnet", 422, INVALID),
            Self::InvalidAdmission => ("invalid_admission", 422, INVALID),
            Self::InvalidField => ("invalid_field", 422, INVALID),
            Self::InvalidIdempotencyKey => ("invalid_idempotency_key", 422, INVALID),
            Self::InvalidQuery => ("invalid_query", 422, INVALID),
            Self::InvalidReadmission => ("invalid_readmission", 422, INVALID),
            Self::InvalidRemoval => ("invalid_removal", 422, INVALID),
            Self::Statement => ("statement", 422, INVALID),
            Self::InvalidText => ("invalid_text", 422, INVALID),
            Self::InvalidUrl => ("invalid_url", 422, INVALID),
            Self::KeyNotProved => ("key_not_proved", 422, INVALID),
            Self::MissingField => ("missing_field", 422, INVALID),
            Self::OutOfRange => ("out_of_range", 422, INVALID),
            Self::SubnetsOverlap => ("subnets_overlap", 422, INVALID),
            Self::TooMany => ("too_many", 422, INVALID),
            Self::UnknownField => ("unknown_field", 422, INVALID),
            Self::Busy => ("busy", 429, "Too many reports at a time"),
            Self::TooManyChanges => ("too_many_changes", 429, "Too many changes within an hour"),
            Self::TooManyFailures => ("too_many_failures", 429, "Too many failures"),
            Self::TooManyKeys => ("too_many_keys", 429, "Too many keys within an hour"),
            Self::TooMuch => ("too_much", 429, "Too much at a time"),
            Self::Internal => ("internal", 500, "Internal error"),
            Self::StreamsAreFull => ("streams_are_full", 503, "Too many streams of events"),
            Self::Unavailable => ("unavailable", 503, "Not available now"),
        }
    }
}

/// An error: what was wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// The kind of error, for programs.
    #[schema(value_type = ErrorCode)]
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

    /// An error of this kind, with what happened and the fix.
    pub fn new(code: ErrorCode, detail: String) -> Self {
        Self {
            code: code.as_str().to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            detail: Some(detail),
            field: None,
            holder: None,
        }
    }

    /// Whether it is of this kind.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.as_str()
    }
}

/// Who holds something that can be held only once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The name of the site, or `mesh` for what the mesh itself needs.
    pub site: String,
    /// What it holds: a prefix, a name.
    pub holds: String,
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn every_error_is_described_by_the_name_under_which_it_is_sent() {
        let schema = serde_json::to_value(ErrorCode::schema()).unwrap();
        let described = schema["enum"].as_array().unwrap();
        for described in described {
            let code: ErrorCode = serde_json::from_value(described.clone()).unwrap();
            assert_eq!(described, code.as_str());
            assert!((400..600).contains(&code.status()), "{described}");
        }
        let sent = ProblemDetails::new(ErrorCode::SubnetTaken, "why".to_owned());
        assert_eq!(
            serde_json::to_value(&sent).unwrap(),
            serde_json::json!({"code": "subnet_taken", "title": "The subnet is taken",
                "status": 409, "detail": "why"})
        );
        assert!(sent.is(ErrorCode::SubnetTaken) && !sent.is(ErrorCode::NameTaken));
    }
}
