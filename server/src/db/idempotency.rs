//! Answers to changes that came with an `Idempotency-Key`: whoever lost one sends the same again,
//! and hears the same again.
//!
//! They are kept in the transaction of the change, so that there is none without the other. An
//! answer may hold a secret that is shown once; so it is sealed under a key derived from the
//! caller's api token and the `Idempotency-Key`. Of the first only a hash is in the database: who
//! steals it reads no answer, however easily the second is guessed.

pub mod queries;

use std::fmt;

use anyhow::Context;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Salt},
};
use axum::http::request::Parts;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::PgConnection;
use zeroize::Zeroizing;

use crate::{
    error::{self, Error, Result},
    secret,
};

/// Separates this use of an api token from every other.
const CONTEXT: &[u8] = b"wattle answers 1";
const SEALED: &str = "an answer cannot be sealed or opened";

/// What lets its holder hear an answer again.
pub struct IdempotencyKey {
    id: [u8; 32],
    /// Hash of the request that it was made for.
    request: [u8; 32],
    cipher_key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(…)")
    }
}

impl IdempotencyKey {
    /// The key for a request of whoever holds this api token, under a name that they chose.
    pub fn new(api_token: &str, key: &str, parts: &Parts, body: &[u8]) -> Result<Self> {
        let secrets = Zeroizing::new([api_token.as_bytes(), b" ", key.as_bytes()].concat());
        let derived = Salt::new(HKDF_SHA256, CONTEXT).extract(&secrets);
        let derive = |what: &[u8]| {
            let mut bytes = Zeroizing::new([0; 32]);
            derived
                .expand(&[what], HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut *bytes))
                .context(SEALED)?;
            Ok::<_, Error>(bytes)
        };
        let target = parts
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let request = [format!("{} {target}\n", parts.method).as_bytes(), body].concat();
        Ok(Self {
            id: *derive(b"id")?,
            request: secret::hash(request),
            cipher_key: derive(b"key")?,
        })
    }

    fn seal(&self, answer: &impl Serialize) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec(answer).context(SEALED)?;
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(self.request), &mut text)
            .context(SEALED)?;
        Ok([nonce.as_ref().as_slice(), &text].concat())
    }

    fn open<T: DeserializeOwned>(&self, sealed: &[u8]) -> Result<T> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).context(SEALED)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).context(SEALED)?;
        let mut text = Zeroizing::new(text.to_vec());
        let text = self
            .cipher()?
            .open_in_place(nonce, Aad::from(self.request), &mut text)
            .context(SEALED)?;
        // The error would repeat what it does not like, and that may be secret.
        Ok(serde_json::from_slice(text).ok().context(SEALED)?)
    }

    fn cipher(&self) -> Result<RandomizedNonceKey> {
        Ok(RandomizedNonceKey::new(&AES_256_GCM, &*self.cipher_key).context(SEALED)?)
    }
}

/// The answer that was given before to the same request. Until this transaction ends, whoever sends
/// it again waits.
///
/// # Errors
///
/// 409 when the key was used for another request; 503 when the same is still under way elsewhere
/// and goes on for long.
pub async fn earlier_answer<T: DeserializeOwned>(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
) -> Result<Option<T>> {
    let Some((request, sealed)) = queries::claim(connection, key).await? else {
        return Ok(None);
    };
    if request != key.request {
        return Err(error::idempotency_key_reused().into());
    }
    key.open(&sealed).map(Some)
}

/// Keeps the answer to a request that was carried out in this transaction.
pub async fn keep(
    connection: &mut PgConnection,
    key: &IdempotencyKey,
    answer: &impl Serialize,
) -> Result<()> {
    queries::keep(connection, key, &key.seal(answer)?).await
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn key(api_token: &str, key: &str, path: &str, body: &[u8]) -> IdempotencyKey {
        let (parts, ()) = Request::post(path).body(()).unwrap().into_parts();
        IdempotencyKey::new(api_token, key, &parts, body).unwrap()
    }

    #[test]
    fn an_answer_opens_for_its_caller_its_key_and_its_request_alone() {
        let own = key("token", "key", "/sites", b"{}");
        let sealed = own.seal(&"a secret").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(
            key("token", "key", "/sites", b"{}")
                .open::<String>(&sealed)
                .unwrap(),
            "a secret"
        );
        assert_ne!(own.seal(&"a secret").unwrap(), sealed);
        let foreign = [
            key("tokem", "key", "/sites", b"{}"),
            key("token", "kez", "/sites", b"{}"),
            key("token", "key", "/import", b"{}"),
            key("token", "key", "/sites", b"{ }"),
        ];
        for other in &foreign {
            assert!(other.open::<String>(&sealed).is_err());
        }
        assert!(
            foreign[..2].iter().all(|other| other.id != own.id)
                && foreign[2..].iter().all(|other| other.id == own.id)
        );
        assert!(own.open::<String>(&[]).is_err());
    }
}
