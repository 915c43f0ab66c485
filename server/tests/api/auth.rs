//! Who may call what.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use wattle_mesh::access::{Action, Actor, Grant, Object, authorise};
use wattle_server::{
    router::{self, Operation},
    secret::ApiCredential,
};
use wattle_wire::{admin::Role, enrol::NodeClaims};

use crate::{
    agents::{Node, NodeKeys, new_node, node_header},
    harness::{Answer, Coordinator, send, send_head},
};

#[tokio::test]
async fn a6_a7_every_route_lets_in_whom_the_rules_let_in_and_nobody_else() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let foreign = NodeKeys::new().sign(
        &node_header(),
        &serde_json::to_value(node.claims()).unwrap(),
    );
    let nobody = [
        None,
        Some(String::new()),
        Some("x".to_owned()),
        Some("a.b.c".to_owned()),
        Some(ApiCredential::fresh().unwrap().reveal()),
        Some(foreign),
    ];
    let grant = |role| {
        Actor::ApiToken(Grant {
            role,
            expires_at: None,
        })
    };
    let mut known = vec![(Actor::Node, node.token())];
    for role in [Role::Viewer, Role::Operator, Role::Owner] {
        known.push((
            grant(role),
            mint(
                &coordinator,
                &coordinator.token,
                json!({"name": "x", "role": role}),
            )
            .await
            .expect(201)
            .token(),
        ));
    }
    let mut open = BTreeSet::new();
    for Operation {
        method,
        path,
        action,
        ..
    } in router::table()
    {
        // Nothing of what is named here exists, so that nothing is changed by whoever is let in.
        let url = coordinator.url(
            &path
                .replace("{site}", "nowhere")
                .replace("{node}", "nowhere")
                .replace("{id}", "x"),
        );
        let call = |token: Option<String>| {
            let request = coordinator
                .client
                .request(Method::from_bytes(method.as_bytes()).unwrap(), &url);
            send_head(
                token
                    .into_iter()
                    .fold(request, reqwest::RequestBuilder::bearer_auth),
            )
        };
        if action == Action::Ask {
            open.insert(format!("{method} {path}"));
            continue;
        }
        for token in &nobody {
            let answer = call(token.clone()).await;
            assert_eq!(
                answer.problem(),
                (401, "unauthorized".to_owned(), None),
                "{method} {path}"
            );
            assert!(
                answer.headers.contains_key("date"),
                "a node corrects its clock by it"
            );
        }
        for (actor, token) in &known {
            let answer = call(Some(token.clone())).await;
            match authorise(*actor, action, Object::Mesh) {
                Ok(()) => assert!(
                    ![401, 403].contains(&answer.status.as_u16()),
                    "{actor:?} {method} {path}: {}",
                    answer.text
                ),
                Err(_) => assert_eq!(
                    answer.problem(),
                    (403, "forbidden".to_owned(), None),
                    "{actor:?} {method} {path}"
                ),
            }
        }
    }
    let expected = [
        "GET /healthz",
        "GET /openapi.json",
        "GET /readyz",
        "POST /agent/enrol/finish",
        "POST /agent/enrol/start",
        "POST /agent/identity",
    ];
    assert_eq!(open, expected.map(str::to_owned).into());
}

/// Asks for a new api token.
async fn mint(coordinator: &Coordinator, token: &str, body: Value) -> Answer {
    send(
        coordinator
            .client
            .post(coordinator.url("/api-tokens"))
            .bearer_auth(token)
            .json(&body),
    )
    .await
}

impl Answer {
    /// The api token that was made.
    fn token(&self) -> String {
        self.json()["token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a9_nobody_makes_or_revokes_an_api_token_that_is_more_than_his_own() {
    let coordinator = Coordinator::start().await;
    let owner = coordinator.token.clone();
    let operator = mint(
        &coordinator,
        &owner,
        json!({"name": "op", "role": "operator", "expires_in_s": 3600}),
    )
    .await
    .expect(201);
    let operator_id = operator.json()["id"].as_str().unwrap().to_owned();
    let operator = operator.token();
    for body in [
        json!({"name": "x", "role": "owner", "expires_in_s": 60}),
        json!({"name": "x", "role": "operator"}),
        json!({"name": "x", "role": "operator", "expires_in_s": 7200}),
    ] {
        assert_eq!(
            mint(&coordinator, &operator, body.clone()).await.problem(),
            (403, "forbidden".to_owned(), None),
            "{body}"
        );
    }
    assert_eq!(
        coordinator.count("SELECT count(*) FROM api_tokens").await,
        2,
        "what was refused is not there"
    );
    mint(
        &coordinator,
        &operator,
        json!({"name": "x", "role": "operator", "expires_in_s": 60}),
    )
    .await
    .expect(201);

    let tokens = coordinator.get("/api-tokens").await.expect(200).json();
    let owner_id = tokens["items"][0]["id"].as_str().unwrap();
    assert_eq!(
        (&tokens["items"][0]["role"], &tokens["items"][0]["name"]),
        (&json!("owner"), &json!("first start"))
    );
    assert!(
        tokens["items"][0]["last_used_at"].is_string() && !tokens.to_string().contains("secret")
    );
    let delete = |token: &str, id: &str| {
        send(
            coordinator
                .client
                .delete(coordinator.url(&format!("/api-tokens/{id}")))
                .bearer_auth(token),
        )
    };
    assert_eq!(delete(&operator, owner_id).await.problem().0, 403);
    coordinator.get("/sites").await.expect(200);
    delete(&owner, &operator_id).await.expect(204);
    assert_eq!(delete(&owner, &operator_id).await.problem().0, 404);
    assert_eq!(
        mint(
            &coordinator,
            &operator,
            json!({"name": "x", "role": "viewer", "expires_in_s": 60})
        )
        .await
        .problem()
        .0,
        401
    );
}

#[tokio::test]
async fn a9_of_two_owners_who_revoke_each_other_at_once_one_stays() {
    let coordinator = Coordinator::start().await;
    for _ in 0..10 {
        let mut made = Vec::new();
        for _ in 0..2 {
            let answer = mint(
                &coordinator,
                &coordinator.token,
                json!({"name": "x", "role": "owner"}),
            )
            .await
            .expect(201);
            made.push((
                answer.json()["id"].as_str().unwrap().to_owned(),
                answer.token(),
            ));
        }
        let revoke = |by: usize| {
            let path = format!("/api-tokens/{}", made[1 - by].0);
            send(
                coordinator
                    .client
                    .delete(coordinator.url(&path))
                    .bearer_auth(&made[by].1),
            )
        };
        let (first, second) = tokio::join!(revoke(0), revoke(1));
        let mut statuses = [first.status.as_u16(), second.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [204, 401]);
    }
}

#[tokio::test]
async fn an_api_token_says_what_is_wrong_with_it_and_ends_when_it_was_to_end() {
    let coordinator = Coordinator::start().await;
    for (body, field) in [
        (json!({"role": "viewer"}), "name"),
        (json!({"name": "", "role": "viewer"}), "name"),
        (json!({"name": "a\nb", "role": "viewer"}), "name"),
        (json!({"name": "x"}), "role"),
        (json!({"name": "x", "role": "root"}), "role"),
        (
            json!({"name": "x", "role": "viewer", "expires_in_s": 0}),
            "expires_in_s",
        ),
        (
            json!({"name": "x", "role": "viewer", "expires_in_s": i64::MAX}),
            "expires_in_s",
        ),
        (
            json!({"name": "x", "role": "viewer", "scope": "all"}),
            "scope",
        ),
    ] {
        let (status, _, found) = mint(&coordinator, &coordinator.token, body.clone())
            .await
            .problem();
        assert_eq!((status, found.as_deref()), (422, Some(field)), "{body}");
    }
    let answer = mint(
        &coordinator,
        &coordinator.token,
        json!({"name": "x", "role": "viewer", "expires_in_s": 3600}),
    )
    .await
    .expect(201);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let token = answer.token();
    let get = || {
        send(
            coordinator
                .client
                .get(coordinator.url("/sites"))
                .bearer_auth(&token),
        )
    };
    get().await.expect(200);
    sqlx::query("UPDATE api_tokens SET expires_at = now() WHERE name = 'x'")
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    get().await.expect(401);
}

#[tokio::test]
async fn a_revoked_api_token_ends_at_once() {
    let coordinator = Coordinator::start().await;
    coordinator.get("/sites").await.expect(200);
    sqlx::query("UPDATE api_tokens SET revoked_at = now()")
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    coordinator.get("/sites").await.expect(401);
}

#[tokio::test]
async fn a10_a11_a13_forged_tokens_of_nodes_are_all_answered_alike() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let other = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    view(&coordinator, &node.token()).await.expect(200);
    for (what, token) in forgeries(&node, &other) {
        let answer = view(&coordinator, &token).await;
        assert_eq!(
            answer.problem(),
            (401, "unauthorized".to_owned(), None),
            "{what}"
        );
    }
}

async fn view(coordinator: &Coordinator, token: &str) -> Answer {
    send(
        coordinator
            .client
            .get(coordinator.url("/agent/view"))
            .bearer_auth(token),
    )
    .await
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
    let mut claim = |what: &str, claims: Value| {
        forged.push((
            format!("{what}: {claims}"),
            node.machine.sign(&node_header(), &claims),
        ))
    };
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
        (
            "iat",
            vec![
                json!(now.to_string()),
                json!(now + 100_000),
                json!(-1),
                json!(i64::MIN),
                json!(null),
                json!(now - 1),
            ],
        ),
        (
            "aud",
            vec![
                json!("admin"),
                json!(other.id()),
                json!([claims["aud"]]),
                json!(null),
            ],
        ),
        ("iss", vec![json!(other.id()), json!("admin"), json!(null)]),
        ("sub", vec![json!(other.id()), json!(null)]),
        (
            "gen",
            vec![
                json!(0),
                json!(-1),
                json!(1_i64 << 31),
                json!("1"),
                json!(1.0),
                json!(null),
            ],
        ),
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
    expired
        .as_object_mut()
        .unwrap()
        .extend(long_ago.as_object().unwrap().clone());
    claim("expired", expired);

    let good = node.token();
    let parts: Vec<&str> = good.split('.').collect();
    let header = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    for alg in ["none", "None", "nOnE", "", "HS256", "RS256", "EdDSA "] {
        let header = header(json!({"alg": alg, "typ": "wattle-node+jwt"}));
        forged.push((format!("alg {alg}"), format!("{header}.{}.", parts[1])));
        forged.push((
            format!("alg {alg} with the signature"),
            format!("{header}.{}.{}", parts[1], parts[2]),
        ));
    }
    let mut hmac = Header::new(Algorithm::HS256);
    hmac.typ = node_header().typ;
    let public_key = EncodingKey::from_secret(node.machine.identity_key().as_bytes());
    forged.push((
        "HS256 with the public key".to_owned(),
        jsonwebtoken::encode(&hmac, &claims, &public_key).unwrap(),
    ));
    for typ in [
        None,
        Some("JWT"),
        Some("wattle-node+JWT"),
        Some("wattle-api+jwt"),
    ] {
        let mut header = node_header();
        header.typ = typ.map(str::to_owned);
        forged.push((format!("typ {typ:?}"), node.machine.sign(&header, &claims)));
    }
    let mut named = node_header();
    named.kid = Some("../../dev/null".to_owned());
    forged.push(("kid".to_owned(), node.machine.sign(&named, &claims)));
    forged.push((
        "somebody else's key".to_owned(),
        other.machine.sign(&node_header(), &claims),
    ));
    forged.push((
        "nobody's key".to_owned(),
        NodeKeys::new().sign(&node_header(), &claims),
    ));
    forged.push((
        "cut signature".to_owned(),
        good[..good.len() - 4].to_owned(),
    ));
    forged.push((
        "no signature".to_owned(),
        format!("{}.{}.", parts[0], parts[1]),
    ));
    forged.push(("two parts".to_owned(), format!("{}.{}", parts[0], parts[1])));
    forged.push(("four parts".to_owned(), format!("{good}.{}", parts[2])));
    let mut altered = claims;
    altered["exp"] = json!(now + 299);
    forged.push((
        "altered claims".to_owned(),
        format!("{}.{}.{}", parts[0], header(altered), parts[2]),
    ));
    forged
}

#[tokio::test]
async fn a14_a_token_that_was_verified_before_is_good_only_as_it_was_and_while_its_node_takes_part()
{
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let token = dublin.token();
    let view = async |token: &str| {
        send(
            coordinator
                .client
                .get(coordinator.url("/agent/view"))
                .bearer_auth(token),
        )
        .await
        .status
        .as_u16()
    };
    assert_eq!((view(&token).await, view(&token).await), (200, 200));
    let (claims, signature) = token.rsplit_once('.').unwrap();
    let forged: String = signature.chars().rev().collect();
    assert_eq!(view(&format!("{claims}.{forged}")).await, 401);
    assert_eq!(view(&token).await, 200);
    coordinator.delete("/nodes/dublin").await.expect(204);
    assert_eq!(view(&token).await, 401);
}

#[tokio::test]
async fn e16_a_node_that_raises_the_generation_of_its_tokens_ends_all_earlier_ones_everywhere() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let token = |generation: i32, later_s: i64| {
        let claims = NodeClaims {
            generation,
            iat: dublin.claims().iat + later_s,
            exp: dublin.claims().exp + later_s,
            ..dublin.claims()
        };
        let claims = serde_json::to_value(claims).unwrap();
        dublin.machine.sign(&node_header(), &claims)
    };
    let view = async |at: &Coordinator, token: &str| {
        let request = at.client.get(at.url("/agent/view")).bearer_auth(token);
        send(request).await.status.as_u16()
    };
    let first = token(1, 0);
    assert_eq!(view(&coordinator, &first).await, 200);
    // Whoever else signs raises nothing.
    let stranger = NodeKeys::new().sign(
        &node_header(),
        &serde_json::to_value(NodeClaims {
            generation: 2,
            ..dublin.claims()
        })
        .unwrap(),
    );
    assert_eq!(view(&coordinator, &stranger).await, 401);
    assert_eq!(
        view(&coordinator, &token(2, 1_000)).await,
        401,
        "its time is to come"
    );
    assert_eq!(view(&coordinator, &first).await, 200);

    let second = token(2, 0);
    assert_eq!(view(&another, &second).await, 200);
    for at in [&coordinator, &another] {
        at.server.app.mesh_cache.refresh().await;
        assert_eq!(view(at, &first).await, 401);
        assert_eq!(
            view(at, &token(1, 50)).await,
            401,
            "nor one that is signed for later"
        );
        assert_eq!(view(at, &second).await, 200);
    }
    // It does so once a minute at most: each time is a change of configuration.
    assert_eq!(view(&coordinator, &token(3, 0)).await, 401);
    assert_eq!(view(&coordinator, &second).await, 200);
    let actions = "SELECT count(*) FROM events WHERE action = 'node.tokens.renew'";
    assert_eq!(coordinator.count(actions).await, 1);
}
