//! Who may call what.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use wattle_server::{
    router::{self, Caller},
    secret::ApiToken,
};

use crate::{
    agents::{Machine, Node, new_node, node_header},
    harness::{Answer, Coordinator, send},
};

#[tokio::test]
async fn every_route_asks_for_its_own_kind_of_credential() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let foreign = ApiToken::fresh().unwrap().reveal();
    let mut anyone = BTreeSet::new();
    for (method, path, caller) in router::table() {
        let url = coordinator.url(&path.replace("{site}", "dublin").replace("{node}", "dublin").replace("{id}", "x"));
        let call = |token: Option<String>| {
            let request = coordinator.client.request(Method::from_bytes(method.as_bytes()).unwrap(), &url);
            send(token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth))
        };
        let wrong_kind = match caller {
            Caller::Anyone => {
                anyone.insert(format!("{method} {path}"));
                continue;
            }
            Caller::ApiToken => node.token(),
            Caller::Node => coordinator.token.clone(),
        };
        for token in [None, Some(String::new()), Some("x".to_owned()), Some(foreign.clone()), Some("a.b.c".to_owned())] {
            let answer = call(token).await;
            assert_eq!(answer.problem(), (401, "unauthorized".to_owned(), None), "{method} {path}");
            assert!(answer.headers.contains_key("date"), "a node corrects its clock by it");
        }
        assert_eq!(call(Some(wrong_kind)).await.problem().0, 403, "{method} {path}");
    }
    let expected = ["GET /healthz", "GET /openapi.json", "GET /readyz", "POST /agent/enrol/finish", "POST /agent/enrol/start"];
    assert_eq!(anyone, expected.map(str::to_owned).into());
    assert_eq!(coordinator.get("/sites/dublin").await.status, 200, "nothing was changed");
}

#[tokio::test]
async fn a_revoked_api_token_ends_at_once() {
    let coordinator = Coordinator::start().await;
    coordinator.get("/sites").await.expect(200);
    sqlx::query("UPDATE api_tokens SET revoked_at = now()").execute(&mut coordinator.connection().await).await.unwrap();
    coordinator.get("/sites").await.expect(401);
}

#[tokio::test]
async fn forged_tokens_of_nodes_are_all_answered_alike() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let other = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    view(&coordinator, &node.token()).await.expect(200);
    for (what, token) in forgeries(&node, &other) {
        let answer = view(&coordinator, &token).await;
        assert_eq!(answer.problem(), (401, "unauthorized".to_owned(), None), "{what}");
    }
}

async fn view(coordinator: &Coordinator, token: &str) -> Answer {
    send(coordinator.client.get(coordinator.url("/agent/view")).bearer_auth(token)).await
}

fn forgeries(node: &Node, other: &Node) -> Vec<(String, String)> {
    let claims = serde_json::to_value(node.claims()).unwrap();
    let now = claims["iat"].as_i64().unwrap();
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let mut forged: Vec<(String, String)> = Vec::new();
    let mut claim = |what: &str, claims: Value| forged.push((format!("{what}: {claims}"), node.machine.sign(&node_header(), &claims)));
    for (name, values) in [
        (
            "exp",
            vec![
                json!((now + 300).to_string()),
                json!(now as f64 + 200.5),
                json!(-1),
                json!(i64::MAX),
                json!(u64::MAX),
                json!(1e300),
                json!(null),
                json!(now - 61),
                json!(now + 301),
            ],
        ),
        ("iat", vec![json!(now.to_string()), json!(now + 100_000), json!(-1), json!(i64::MIN), json!(null), json!(now - 1)]),
        ("aud", vec![json!("admin"), json!(other.id()), json!([claims["aud"]]), json!(null)]),
        ("iss", vec![json!(other.id()), json!("admin"), json!(null)]),
        ("sub", vec![json!(other.id()), json!(null)]),
        ("gen", vec![json!(0), json!(2), json!("1"), json!(1.0), json!(null)]),
        ("nbf", vec![json!(now)]),
        ("role", vec![json!("owner")]),
    ] {
        for value in values {
            claim(name, with(name, value));
        }
    }
    for name in ["exp", "iat", "aud", "iss", "sub", "gen"] {
        let mut claims = claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        claim("missing", claims);
    }
    let long_ago = json!({"iat": now - 400, "exp": now - 100});
    let mut expired = claims.clone();
    expired.as_object_mut().unwrap().extend(long_ago.as_object().unwrap().clone());
    claim("expired", expired);

    let good = node.token();
    let parts: Vec<&str> = good.split('.').collect();
    let header = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    for alg in ["none", "None", "nOnE", "", "HS256", "RS256", "EdDSA "] {
        let header = header(json!({"alg": alg, "typ": "wattle-node+jwt"}));
        forged.push((format!("alg {alg}"), format!("{header}.{}.", parts[1])));
        forged.push((format!("alg {alg} with the signature"), format!("{header}.{}.{}", parts[1], parts[2])));
    }
    let mut hmac = Header::new(Algorithm::HS256);
    hmac.typ = node_header().typ;
    let public_key = EncodingKey::from_secret(node.machine.identity_key().as_bytes());
    forged.push(("HS256 with the public key".to_owned(), jsonwebtoken::encode(&hmac, &claims, &public_key).unwrap()));
    for typ in [None, Some("JWT"), Some("wattle-node+JWT"), Some("wattle-api+jwt")] {
        let mut header = node_header();
        header.typ = typ.map(str::to_owned);
        forged.push((format!("typ {typ:?}"), node.machine.sign(&header, &claims)));
    }
    let mut named = node_header();
    named.kid = Some("../../dev/null".to_owned());
    forged.push(("kid".to_owned(), node.machine.sign(&named, &claims)));
    forged.push(("somebody else's key".to_owned(), other.machine.sign(&node_header(), &claims)));
    forged.push(("nobody's key".to_owned(), Machine::new().sign(&node_header(), &claims)));
    forged.push(("cut signature".to_owned(), good[..good.len() - 4].to_owned()));
    forged.push(("no signature".to_owned(), format!("{}.{}.", parts[0], parts[1])));
    forged.push(("two parts".to_owned(), format!("{}.{}", parts[0], parts[1])));
    forged.push(("four parts".to_owned(), format!("{good}.{}", parts[2])));
    let mut altered = claims;
    altered["exp"] = json!(now + 299);
    forged.push(("altered claims".to_owned(), format!("{}.{}.{}", parts[0], header(altered), parts[2])));
    forged
}

#[tokio::test]
async fn a_token_that_was_verified_before_is_good_only_as_it_was_and_while_its_node_takes_part() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let token = dublin.token();
    let view = async |token: &str| send(coordinator.client.get(coordinator.url("/agent/view")).bearer_auth(token)).await.status.as_u16();
    assert_eq!((view(&token).await, view(&token).await), (200, 200));
    let (claims, signature) = token.rsplit_once('.').unwrap();
    let forged: String = signature.chars().rev().collect();
    assert_eq!(view(&format!("{claims}.{forged}")).await, 401);
    assert_eq!(view(&token).await, 200);
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(view(&token).await, 401);
}
