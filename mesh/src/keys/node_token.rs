//! The token with which a node signs its requests, as a coordinator reads it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, de::DeserializeOwned};
use wattle_wire::{
    enrol::{NODE_TOKEN_LIFETIME_S, NODE_TOKEN_TYPE, NodeClaims},
    ids::MeshId,
    key::IdentityKey,
    strict,
};

/// Seconds by which the clocks of a node and the coordinator may differ.
const LEEWAY_S: i64 = 60;

/// What a token claims, if it has the one form that nodes give it. Nothing of it is proven yet.
pub fn claims(token: &str) -> Option<NodeClaims> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NodeHeader {
        alg: String,
        typ: String,
    }
    let (header, rest) = token.split_once('.')?;
    let (claims, _) = rest.split_once('.')?;
    let header: NodeHeader = part(header)?;
    if header.alg != "EdDSA" || header.typ != NODE_TOKEN_TYPE {
        return None;
    }
    part(claims)
}

fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    strict::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Whether an identity has signed a token for this mesh.
pub fn is_signed(token: &str, identity: IdentityKey, mesh: MeshId) -> bool {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
    validation.set_audience(&[mesh]);
    // Time is an argument, and `is_good` looks at it.
    validation.validate_exp = false;
    let key = DecodingKey::from_ed_der(identity.as_bytes());
    jsonwebtoken::decode::<NodeClaims>(token, &key, &validation).is_ok()
}

/// Whether what was signed lets a node in whose tokens are of this generation so far, at `now` in
/// seconds since 1970. A higher one ends all before it.
pub fn is_good(claims: &NodeClaims, mesh: MeshId, generation: i32, now: i64) -> bool {
    let lives = claims.exp.checked_sub(claims.iat);
    let in_time = claims.iat <= now.saturating_add(LEEWAY_S)
        && claims.exp.saturating_add(LEEWAY_S) >= now
        && lives.is_some_and(|lives| (0..=NODE_TOKEN_LIFETIME_S).contains(&lives));
    let is_own = claims.iss == claims.sub && claims.aud == mesh && claims.generation >= generation;
    in_time && is_own
}
