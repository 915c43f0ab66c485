//! Reads bodies and queries strictly, and says what is wrong with them: which field, and why.

use axum::{
    extract::{self, FromRequest, FromRequestParts, Request},
    http::{HeaderMap, Uri, header, request::Parts},
};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_json::error::Category;
use serde_path_to_error::Track;
use wattle_wire::{PROTOCOL_HEADER, PROTOCOL_VERSION, strict::Strict};

use crate::{
    error::{self, Error, ErrorCode, Result},
    http::audience::RouteAudience,
};

/// The largest body that is read where nothing else is said, in bytes.
pub const LARGEST_BODY: usize = 256 * 1024;
/// The largest body of any change: an import of sites, in bytes.
pub const LARGEST_IMPORT: usize = 4 * 1024 * 1024;
/// How much of a larger one is read before the answer, in bytes.
const MOST_THROWN_AWAY: usize = 8 * 1024 * 1024;
/// The longest field name that an answer repeats.
const LONGEST_FIELD: usize = 64;

/// A JSON body of at most so many bytes. An empty one counts as `{}`.
#[derive(Debug)]
pub struct Body<T, const LARGEST: usize = LARGEST_BODY>(pub T);

impl<T: DeserializeOwned, S: Send + Sync, const LARGEST: usize> FromRequest<S>
    for Body<T, LARGEST>
{
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let is_json = is_json(request.headers());
        let unknown = unknown_fields(&request);
        let bytes = read(request.into_body(), LARGEST).await?;
        if bytes.is_empty() {
            return parse(b"{}", unknown).map(Self);
        }
        if !is_json {
            return Err(error::unsupported_media_type().into());
        }
        parse(&bytes, unknown).map(Self)
    }
}

/// Reads a body whole. One that is too large is read on for a while and thrown away: who is cut off
/// while sending seldom sees the answer.
pub async fn read(body: axum::body::Body, largest: usize) -> Result<Vec<u8>> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| error::invalid_json("the body ended too early"))?;
        length += chunk.len();
        if length > MOST_THROWN_AWAY {
            break;
        }
        match length <= largest {
            true => bytes.extend_from_slice(&chunk),
            false => bytes = Vec::new(),
        }
    }
    if length > largest {
        Err(error::too_large(largest).into())
    } else {
        Ok(bytes)
    }
}

/// The query of a list or stream; unknown parameters are refused.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        query(&parts.uri).map(Self)
    }
}

/// Reads a query strictly.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T> {
    let malformed = "the query has a parameter that is unknown or malformed";
    let refused = |name: &str, why| error::invalid(ErrorCode::InvalidQuery, name, why);
    let all = extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let extract::Query(all) = all.map_err(|_| refused("", malformed))?;
    // What is no UTF-8 was read as a replacement character.
    let is_text = |text: &str| !text.contains(['\0', char::REPLACEMENT_CHARACTER]);
    if let Some((name, _)) = all
        .iter()
        .find(|(name, value)| !(is_text(name) && is_text(value)))
    {
        let why = "a parameter is UTF-8 without null characters";
        return Err(refused(name, why).into());
    }
    match extract::Query::try_from_uri(uri) {
        Ok(extract::Query(query)) => Ok(query),
        Err(_) => Err(refused("", malformed).into()),
    }
}

/// `curl -d` sends JSON as a form unless it is told otherwise; that is taken, too.
fn is_json(headers: &HeaderMap) -> bool {
    if headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        return false;
    }
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/x-www-form-urlencoded"]
        .iter()
        .any(|accepted| kind.eq_ignore_ascii_case(accepted))
}

/// What becomes of fields that the coordinator does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnknownFields {
    /// They are typing mistakes, or hopes.
    Refused,
    /// They are news, of an agent that is newer than this coordinator.
    Ignored,
}

fn unknown_fields(request: &Request) -> UnknownFields {
    let version = request.headers().get(PROTOCOL_HEADER);
    let version = version.and_then(|text| text.to_str().ok()?.parse::<u32>().ok());
    let is_newer = version.is_some_and(|version| version > PROTOCOL_VERSION);
    if is_newer && RouteAudience::of(request.uri().path()) == Some(RouteAudience::Agents) {
        UnknownFields::Ignored
    } else {
        UnknownFields::Refused
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], unknown: UnknownFields) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = Track::new();
    let mut ignored = None;
    let value = serde_ignored::deserialize(
        serde_path_to_error::Deserializer::new(Strict(&mut deserializer), &mut track),
        |path| {
            ignored.get_or_insert_with(|| field(&path));
        },
    );
    // Before the error, which may be that another field is missing.
    if let Some(field) = ignored.filter(|_| unknown == UnknownFields::Refused) {
        return Err(error::invalid(ErrorCode::UnknownField, field, "unknown field").into());
    }
    let value = value.map_err(|error| explain(&track.path().to_string(), &error))?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

/// The name of a field, as the path of an error has it.
fn field(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field(parent)),
        Path::Map { parent, key } => {
            let key: String = key.chars().take(LONGEST_FIELD).collect();
            match field(parent).as_str() {
                "" => key,
                parent => format!("{parent}.{key}"),
            }
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field(parent),
    }
}

fn explain(path: &str, error: &serde_json::Error) -> Error {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            let what = message.strip_suffix(&place).unwrap_or(&message);
            error::invalid_json(format!(
                "{what}, at line {} column {}",
                error.line(),
                error.column()
            ))
            .into()
        }
        Category::Data => {
            let what = message.strip_suffix(&place).unwrap_or(&message);
            // Of a key that is refused the path does not know the name.
            let path = match path {
                "." | "?" => "",
                path => path.strip_suffix(".?").unwrap_or(path),
            };
            for (start, code, advice) in [
                ("unknown field `", ErrorCode::UnknownField, "unknown field"),
                (
                    "missing field `",
                    ErrorCode::MissingField,
                    "this field is required",
                ),
                (
                    "duplicate field `",
                    ErrorCode::DuplicateField,
                    "this field is given twice",
                ),
            ] {
                let Some((name, rest)) = what
                    .strip_prefix(start)
                    .and_then(|rest| rest.split_once('`'))
                else {
                    continue;
                };
                let name: String = name.chars().take(LONGEST_FIELD).collect();
                // An unknown field is in the path already, a missing one is not.
                let field = match path {
                    "" => name,
                    path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
                    path => format!("{path}.{name}"),
                };
                let expected = rest
                    .strip_prefix(", expected ")
                    .map(|known| format!("; known are {known}"))
                    .unwrap_or_default();
                return error::invalid(code, field, format!("{advice}{expected}")).into();
            }
            error::invalid(ErrorCode::InvalidField, path, without_value(what)).into()
        }
    }
}

/// serde repeats a value of the wrong type, which may be a secret in the wrong place: keeps only
/// what was expected.
fn without_value(message: &str) -> String {
    let repeats = [
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
        "unknown variant ",
    ]
    .iter()
    .any(|start| message.starts_with(start));
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if repeats => format!("expected {}", in_words(expected)),
        _ => message.to_owned(),
    }
}

/// What serde expects, in words of JSON instead of Rust.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a number from 0 to 255",
        "u16" => "a number from 0 to 65535",
        "u32" => "a number from 0 to 4294967295",
        "u64" => "a number from 0 to 18446744073709551615",
        "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.contains("struct ") || other.contains("enum ") => "an object",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use wattle_wire::{
        admin::{MeshPatch, SiteSpec},
        problem::ProblemDetails,
    };

    use super::*;

    fn problem_of(text: &str) -> ProblemDetails {
        match parse::<SiteSpec>(text.as_bytes(), UnknownFields::Refused) {
            Err(Error::Refused(problem)) => *problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_names_the_field_and_the_fix() {
        let problem = problem_of(r#"{"name":"dublin","subnets":["10.10.0.0/24","10.1.2.3/16"]}"#);
        assert_eq!(
            (problem.status, problem.field.as_deref()),
            (422, Some("subnets[1]"))
        );
        assert_eq!(
            problem.detail.as_deref(),
            Some("10.1.2.3/16 has host bits set; the prefix is 10.1.0.0/16")
        );
        for (text, status, code, field) in [
            ("{", 400, "invalid_json", None),
            ("[]", 422, "invalid_field", None),
            (r#"{"name":"a"} x"#, 400, "invalid_json", None),
            ("{}", 422, "missing_field", Some("name")),
            (
                r#"{"name":"a","role":"admin"}"#,
                422,
                "unknown_field",
                Some("role"),
            ),
            (
                r#"{"name":"a","name":"b"}"#,
                422,
                "duplicate_field",
                Some("name"),
            ),
            (
                r#"{"name":"a","labels":{"x":"1","x":"2"}}"#,
                422,
                "duplicate_field",
                Some("labels.x"),
            ),
            (
                r#"{"name":"a","labels":{"x\u0000":"1"}}"#,
                422,
                "invalid_field",
                Some("labels"),
            ),
            (
                r#"{"name":"a","description":"\u0000"}"#,
                422,
                "invalid_field",
                Some("description"),
            ),
            (r#"{"name":7}"#, 422, "invalid_field", Some("name")),
        ] {
            let problem = problem_of(text);
            assert_eq!(
                (
                    problem.status,
                    problem.code.as_str(),
                    problem.field.as_deref()
                ),
                (status, code, field),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_expected_is_said_in_words_of_json() {
        let of = |text: &str| match parse::<MeshPatch>(text.as_bytes(), UnknownFields::Refused) {
            Err(Error::Refused(problem)) => problem.detail.clone().unwrap(),
            other => panic!("{other:?}"),
        };
        for (text, expected) in [
            (r#"{"rotate_days": 70000}"#, "a number from 0 to 65535"),
            (r#"{"rotate_days": "x"}"#, "a number from 0 to 65535"),
            (r#"{"lossy_percent": -1}"#, "a number from 0 to 255"),
            (r#"{"probes": 1}"#, "true or false"),
            ("[]", "an object"),
        ] {
            assert_eq!(of(text), format!("expected {expected}"), "{text}");
        }
        for (text, expected) in [
            (r#"{"name": "a", "subnets": {}}"#, "a list"),
            (r#"{"name": "a", "labels": []}"#, "an object"),
        ] {
            let said = problem_of(text).detail.clone().unwrap();
            assert_eq!(said, format!("expected {expected}"), "{text}");
        }
    }

    #[test]
    fn a_value_in_the_wrong_place_is_not_repeated() {
        let problem = problem_of(r#"{"name":"a","subnets":"hunter2"}"#);
        assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        let problem = problem_of(&format!(r#"{{"name":"a","{}":1}}"#, "x".repeat(5000)));
        assert!(serde_json::to_string(&problem).unwrap().len() < 600);
    }
}
