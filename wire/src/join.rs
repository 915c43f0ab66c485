//! The join string: one word that holds all a new gateway needs.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    ids::{MeshId, SiteId, TokenId},
    key::Bytes32,
    secret::Secret,
};

/// What every join string of this version begins with.
const PREFIX: &str = "wattle1";

/// Where the coordinator is, how to recognise it, and a token for it:
/// `wattle1.<base64url>.<crc32>`.
///
/// The checksum finds typing and copying mistakes before any request is made. `Display` shows the
/// whole string, secret included.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinString {
    /// Base URLs of the coordinators of the mesh, in order of preference; never empty.
    #[serde(rename = "u")]
    pub urls: Vec<String>,
    #[serde(rename = "m")]
    pub mesh: MeshId,
    /// The site that the machine becomes a gateway of.
    #[serde(rename = "i")]
    pub site: SiteId,
    /// SHA-256 of the certificates of the authorities to trust, and of no others; empty means those
    /// of the system.
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Bytes32>,
    #[serde(rename = "t")]
    pub token: TokenId,
    #[serde(rename = "s")]
    pub secret: Secret,
}

/// Why a text is not a join string.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidJoinString {
    #[error(
        "a join string has three parts, wattle1.….…: copy all of it, as `POST /sites` returned it"
    )]
    Parts,
    #[error(
        "the version of the join string is not wattle1: use an agent as new as the coordinator"
    )]
    Version,
    #[error(
        "the checksum of the join string is wrong: copy all of it, as `POST /sites` returned it"
    )]
    Checksum,
    #[error(
        "the join string is damaged: ask for a new one with `POST /sites/{{site}}/join-tokens`"
    )]
    Content,
}

impl FromStr for JoinString {
    type Err = InvalidJoinString;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('.');
        let (Some(prefix), Some(body), Some(checksum), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidJoinString::Parts);
        };
        if prefix != PREFIX {
            return Err(if prefix.starts_with("wattle") {
                InvalidJoinString::Version
            } else {
                InvalidJoinString::Parts
            });
        }
        if checksum != checksum_of(body) {
            return Err(InvalidJoinString::Checksum);
        }
        let json = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| InvalidJoinString::Content)?;
        let join: Self =
            crate::strict::from_slice(&json).map_err(|_| InvalidJoinString::Content)?;
        if join.urls.is_empty() {
            Err(InvalidJoinString::Content)
        } else {
            Ok(join)
        }
    }
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        let body = URL_SAFE_NO_PAD.encode(json);
        write!(f, "{PREFIX}.{body}.{}", checksum_of(&body))
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinString({:?}, token {})", self.urls, self.token)
    }
}

fn checksum_of(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn example() -> JoinString {
        JoinString {
            urls: vec!["https://198.18.0.2:8443".to_owned()],
            mesh: MeshId(Uuid::from_u128(1)),
            site: SiteId(Uuid::from_u128(3)),
            pins: vec![],
            token: TokenId(Uuid::from_u128(2)),
            secret: Secret::new("hush".to_owned()),
        }
    }

    #[test]
    fn a_join_string_reads_back_and_its_debug_hides_the_secret() {
        let text = example().to_string();
        assert_eq!(text.parse(), Ok(example()));
        assert_eq!(format!("\t{text}\n").parse(), Ok(example()));
        assert!(!format!("{:?}", example()).contains("hush"));
    }

    #[test]
    fn any_mistyped_character_is_noticed() {
        let text = example().to_string();
        for position in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[position] = if wrong[position] == b'x' { b'y' } else { b'x' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong.parse::<JoinString>().is_err(), "{wrong}");
        }
        assert_eq!(
            text[..text.len() - 1].parse::<JoinString>(),
            Err(InvalidJoinString::Checksum)
        );
        assert_eq!("hello".parse::<JoinString>(), Err(InvalidJoinString::Parts));
        assert_eq!(
            text.replacen("wattle1", "wattle2", 1).parse::<JoinString>(),
            Err(InvalidJoinString::Version)
        );
    }
}
