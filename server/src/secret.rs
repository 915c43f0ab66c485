//! Random secrets, and what is stored in their place.

use anyhow::Context;
use aws_lc_rs::{constant_time, digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;
use wattle_wire::{ids::TokenId, secret::Secret};
use zeroize::Zeroizing;

use crate::error::Result;

/// What every api token begins with, so that a scanner finds one in a log or a repository.
const API_TOKEN_PREFIX: &str = "wattle_";

/// Characters of a token's checksum.
const CHECKSUM: usize = 8;

/// Random bytes from the system's generator.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).context("the system has no random numbers")?;
    Ok(bytes)
}

/// A new secret of 256 bits, as text.
pub fn fresh() -> Result<Secret> {
    let bytes = Zeroizing::new(random::<32>()?);
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(*bytes)))
}

/// What is stored of a secret: with 256 random bits a plain digest cannot be searched.
pub fn hash(secret: impl AsRef<[u8]>) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_ref()).as_ref());
    hash
}

/// Whether this is the secret of which `stored` is the hash, in a time that does not tell how much
/// of it is right.
pub fn matches(secret: &str, stored: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(&hash(secret), stored).is_ok()
}

/// An api token as its holder sends it: `wattle_<id>_<secret><checksum>`.
///
/// The checksum, CRC-32 in hex over all before it, finds copying mistakes, and lets scanners tell a
/// token from what looks like one.
#[derive(Debug)]
pub struct ApiCredential {
    pub id: TokenId,
    pub secret: Secret,
}

impl ApiCredential {
    pub fn fresh() -> Result<Self> {
        Ok(Self {
            id: TokenId(Uuid::now_v7()),
            secret: fresh()?,
        })
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (text, checksum) = text.split_at_checked(text.len().checked_sub(CHECKSUM)?)?;
        let (id, secret) = text.strip_prefix(API_TOKEN_PREFIX)?.split_once('_')?;
        let well_formed = id.len() == 32 && secret.len() == 43 && checksum == checksum_of(text);
        if !well_formed {
            return None;
        }
        Some(Self {
            id: id.parse().ok()?,
            secret: Secret::new(secret.to_owned()),
        })
    }

    /// The token itself. Whoever calls this answers for where it goes.
    pub fn reveal(&self) -> String {
        let text = format!(
            "{API_TOKEN_PREFIX}{}_{}",
            self.id.0.simple(),
            self.secret.reveal()
        );
        let checksum = checksum_of(&text);
        text + &checksum
    }
}

fn checksum_of(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_token_reads_back_and_its_debug_hides_the_secret() {
        let token = ApiCredential::fresh().unwrap();
        let again = ApiCredential::parse(&token.reveal()).unwrap();
        assert_eq!(again.id, token.id);
        assert!(matches(again.secret.reveal(), &hash(token.secret.reveal())));
        assert!(!format!("{token:?}").contains(token.secret.reveal()));
        let mistyped = token.reveal().replacen('_', "-", 1);
        for bad in [
            "",
            "wattle_",
            "wattle_x_y",
            "wattle_ü_12345678",
            &mistyped,
            &token.reveal()[1..],
            &format!("{}x", token.reveal()),
        ] {
            assert!(ApiCredential::parse(bad).is_none(), "{bad}");
        }
    }
}
