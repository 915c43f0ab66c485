//! What is in requests, of every route: lists for objects, keys that come twice, null characters,
//! numbers at their ends, and what is no text.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};
use wattle_server::router;
use wattle_wire::{
    enrol::{EnrolFinish, SignedStatement},
    key::Signature,
    rotation::SignedAnnouncement,
};

use crate::{
    agents::{Node, NodeKeys, enrol, new_node, new_site, node_header},
    harness::{Answer, Coordinator, send},
    rotation::{NextKey, announce},
};

/// How one place of a body is changed.
#[derive(Clone, Copy, Debug)]
enum Twist<'a> {
    /// An object becomes the list of its values.
    List,
    /// The first key of an object comes again at its end.
    KeyTwice,
    /// A text has a null character.
    Null,
    /// A value becomes this one.
    Value(&'a str),
}

/// Writes a value as JSON, with one place of it twisted.
struct Twisted<'a> {
    twist: Twist<'a>,
    /// Places before the one that is twisted.
    before: usize,
    text: String,
    is_twisted: bool,
}

impl<'a> Twisted<'a> {
    /// Each text that a twist makes of a value.
    fn all(value: &Value, twist: Twist<'a>) -> Vec<String> {
        let of_place = |before| {
            let mut twisted = Self {
                twist,
                before,
                text: String::new(),
                is_twisted: false,
            };
            twisted.write(value);
            twisted
        };
        let places = (0..count(value)).map(of_place);
        let twisted = places.filter(|twisted| twisted.is_twisted);
        twisted.map(|twisted| twisted.text).collect()
    }

    fn write(&mut self, value: &Value) {
        let is_here = self.before == 0;
        self.before = self.before.wrapping_sub(1);
        let was = self.is_twisted;
        self.is_twisted = true;
        match (self.twist, value) {
            (Twist::List, Value::Object(fields)) if is_here => {
                self.list('[', ']', fields.values().map(|value| (None, value)));
            }
            (Twist::KeyTwice, Value::Object(fields)) if is_here && !fields.is_empty() => {
                let again = fields.iter().chain(fields.iter().take(1));
                self.list('{', '}', again.map(|(key, value)| (Some(key), value)));
            }
            (Twist::Null, Value::String(text)) if is_here => {
                self.text += &json!(format!("{text}\0")).to_string();
            }
            (Twist::Value(text), _) if is_here => self.text += text,
            (_, value) => {
                self.is_twisted = was;
                self.plain(value);
            }
        }
    }

    fn plain(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                let entries = fields.iter().map(|(key, value)| (Some(key), value));
                self.list('{', '}', entries);
            }
            Value::Array(values) => self.list('[', ']', values.iter().map(|value| (None, value))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.text += &value.to_string();
            }
        }
    }

    fn list<'v>(
        &mut self,
        open: char,
        close: char,
        entries: impl Iterator<Item = (Option<&'v String>, &'v Value)>,
    ) {
        self.text.push(open);
        for (index, (key, value)) in entries.enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            if let Some(key) = key {
                self.text += &format!("{}:", json!(key));
            }
            self.write(value);
        }
        self.text.push(close);
    }
}

/// A value and all that is in it.
fn count(value: &Value) -> usize {
    let inner: usize = match value {
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    };
    inner + 1
}

/// Values that are no good in most places.
const ODD: [&str; 18] = [
    "null",
    "true",
    "0",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "0.5",
    "\"\"",
    "\"x\"",
    "\"\\ud800\"",
    "\"\\ufffd\\uffff\"",
    "\"10.0.0.0/8\"",
    "[]",
    "{}",
];

/// A good body for a route.
struct Sample {
    method: &'static str,
    /// As the description of the interface has it.
    route: &'static str,
    body: Value,
}

fn samples(dublin: &Node, cork: &Node, finish: &EnrolFinish) -> Vec<Sample> {
    let next = NextKey::new(dublin, 2);
    let signature = Signature::from([7; 64]);
    let signed = json!({"statement": next.statement.statement, "signature": signature});
    let site = json!({"name": "galway", "description": "d", "labels": {"a": "1", "b": "2"},
        "endpoint": "203.0.113.7:51820", "subnets": ["10.77.0.0/24"]});
    let link = json!({"peer": cork.id(), "handshake_age_s": 1, "received_bytes": 1,
        "sent_bytes": 1, "endpoint": "203.0.113.8:1",
        "probe": {"state": "up", "loss_percent": 1, "round_trip_us": 1}});
    let held = json!({"node": cork.id(), "name": "cork", "identity": cork.machine.identity_key(),
        "because": "lost", "lost": {"site_name": "cork", "statement": signed}});
    let problem = json!({"code": "route", "subject": "s", "peer": cork.id(), "words": "w",
        "remedy": "r", "lan": "degraded"});
    let armed = json!({"peer": cork.id(), "sequence": 2, "signature": signature});
    let report = json!({"applied": "1.1", "device": "kernel", "mtu": 1420, "links": [link],
        "problems": [problem], "held": {"total": 1, "peers": [held]}, "returned": [cork.id()],
        "locked": true, "armed": [armed],
        "start": {"number": 1, "drawn": 1}, "number": 1_700_000_000_000_i64});
    let message = json!({"message": "{}", "signature": signature});
    let claim = json!({"announcement": next.announcement, "nonce": finish.nonce,
        "wireguard_proof": finish.wireguard_proof});
    let of = |method, route, body| Sample {
        method,
        route,
        body,
    };
    vec![
        of("post", "/sites", site.clone()),
        of("patch", "/sites/{site}", site.clone()),
        of("post", "/import", json!({ "sites": [site] })),
        of(
            "post",
            "/sites/{site}/join-tokens",
            json!({"uses": 1, "expires_in_s": 60}),
        ),
        of(
            "post",
            "/sites/{site}/wg-quick",
            json!({"wireguard_key": next.key()}),
        ),
        of(
            "patch",
            "/mesh",
            json!({"psk": "prefer", "rotate_days": 0,
            "probes": true, "lossy_percent": 10, "slow_ms": 500}),
        ),
        of("patch", "/nodes/{node}", json!({"name": "limerick"})),
        of(
            "post",
            "/nodes/readmit",
            json!({"nodes":
            [{"node": cork.id(), "identity": cork.machine.identity_key()}]}),
        ),
        of(
            "post",
            "/admissions",
            json!({"admissions":
            [{"admission": "{}", "signature": signature}]}),
        ),
        of(
            "post",
            "/removals",
            json!({"removals":
            [{"removal": "{}", "signature": signature}]}),
        ),
        of(
            "post",
            "/api-tokens",
            json!({"name": "x", "role": "viewer", "expires_in_s": 60}),
        ),
        of(
            "post",
            "/webhooks",
            json!({"url": "https://127.0.0.9/hook"}),
        ),
        of(
            "post",
            "/agent/enrol/start",
            json!({"token": finish.token,
            "secret": finish.secret}),
        ),
        of(
            "post",
            "/agent/enrol/finish",
            serde_json::to_value(finish).unwrap(),
        ),
        of(
            "post",
            "/agent/identity",
            json!({"node": dublin.id(), "statement": signed}),
        ),
        of("post", "/agent/report", report),
        of(
            "post",
            "/agent/mailbox",
            json!({"leave": [{"to": cork.id(), "message": message}],
            "taken": [1]}),
        ),
        of("post", "/agent/rotation", json!({"announce": claim})),
        of("post", "/agent/rotation", json!({"done": signed})),
        of("post", "/agent/rotation", json!({"withdraw": {}})),
    ]
}

/// The mesh to which bodies are sent.
struct Ground {
    coordinator: Coordinator,
    dublin: Node,
    site: String,
    samples: Vec<Sample>,
}

impl Ground {
    async fn new() -> Self {
        let coordinator = Coordinator::start().await;
        let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
        let cork = new_node(&coordinator, json!({"name": "cork"})).await;
        let join = new_site(&coordinator, json!({"name": "sligo"})).await;
        let finish = NodeKeys::new().finish(&coordinator, &join).await;
        Self {
            samples: samples(&dublin, &cork, &finish),
            site: join.site.to_string(),
            coordinator,
            dublin,
        }
    }

    async fn send(&self, method: &str, route: &str, body: &str) -> Answer {
        let node = self.dublin.id().to_string();
        let path = route.replace("{site}", &self.site).replace("{node}", &node);
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = if route.starts_with("/agent/") {
            self.dublin.request(&self.coordinator, method, &path)
        } else {
            self.coordinator.request(method, &path)
        };
        let request = request.header("content-type", "application/json");
        send(request.body(body.to_owned())).await
    }

    /// All that requests could have changed.
    async fn state(&self) -> Vec<i64> {
        let coordinator = &self.coordinator;
        coordinator.write_reports().await;
        let mut state = Vec::new();
        for sql in [
            "SELECT event_number FROM mesh",
            "SELECT revision FROM mesh",
            "SELECT count(*) FROM node_reports",
            "SELECT count(*) FROM links",
            "SELECT count(*) FROM psk_messages",
            "SELECT count(*) FROM join_tokens",
            "SELECT count(*) FROM webhooks",
        ] {
            state.push(coordinator.count(sql).await);
        }
        state
    }
}

/// The interface as it describes itself: each path with each method.
fn operations() -> Vec<(String, String, Value)> {
    let api = serde_json::to_value(router::openapi()).unwrap();
    let paths = api["paths"].as_object().unwrap().clone().into_iter();
    let of_path = |(path, item): (String, Value)| {
        let methods = item.as_object().unwrap().clone().into_iter();
        methods.map(move |(method, operation)| (method, path.clone(), operation))
    };
    paths.flat_map(of_path).collect()
}

#[tokio::test]
async fn b18_every_body_is_refused_with_a_list_for_an_object_a_key_that_comes_twice_or_a_null_character()
 {
    let ground = Ground::new().await;
    for (method, path, operation) in operations() {
        let has_sample = || {
            let mut samples = ground.samples.iter();
            samples.any(|sample| (sample.method, sample.route) == (&method, &path))
        };
        assert!(
            operation["requestBody"].is_null() || has_sample(),
            "{method} {path} needs a sample of its body"
        );
    }
    let before = ground.state().await;
    let mut refused = 0;
    for Sample {
        method,
        route,
        body,
    } in &ground.samples
    {
        for (twist, code) in [
            (Twist::List, "invalid_field"),
            (Twist::KeyTwice, "duplicate_field"),
            (Twist::Null, "invalid_field"),
        ] {
            for text in Twisted::all(body, twist) {
                let answer = ground.send(method, route, &text).await;
                assert_eq!(answer.status, 422, "{route} {text}");
                let (status, said, _) = answer.problem();
                assert_eq!((status, said.as_str()), (422, code), "{route} {text}");
                refused += 1;
            }
        }
    }
    assert!(refused > 150, "{refused}");
    assert_eq!(ground.state().await, before);
}

#[tokio::test]
async fn b18_no_value_in_any_place_of_any_body_is_a_fault_of_the_coordinator() {
    let ground = Ground::new().await;
    for Sample {
        method,
        route,
        body,
    } in &ground.samples
    {
        for odd in ODD {
            for text in Twisted::all(body, Twist::Value(odd)) {
                let answer = ground.send(method, route, &text).await;
                let is_kept = !answer.text.contains("cannot_be_kept");
                assert!(
                    answer.status.as_u16() < 500 && is_kept,
                    "{method} {route} {text}: {}",
                    answer.text
                );
            }
        }
    }
    ground.state().await;
}

#[tokio::test]
async fn b18_no_cursor_path_or_query_is_a_fault_of_the_coordinator_or_lacks_a_problem() {
    let ground = Ground::new().await;
    let odd = ODD.iter().map(|text| (*text).to_owned());
    let further = [
        "4611686018427387904",
        "-4611686018427387904",
        "253402300800000000",
        "\"\\u0000\"",
        "[\"00000000-0000-0000-0000-000000000000\",\"00000000-0000-0000-0000-000000000000\"]",
        "\"00000000-0000-0000-0000-000000000000\"",
        "{\"a\":1,\"a\":2}",
    ];
    let keys: Vec<_> = odd.chain(further.map(str::to_owned)).collect();
    for (method, path, operation) in operations() {
        let parameters = operation["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let takes = |name: &str| parameters.iter().any(|parameter| parameter["name"] == name);
        let path = path
            .replace("{other}", "cork")
            .replace("{id}", &ground.site);
        if takes("cursor") {
            for key in &keys {
                let cursor = URL_SAFE_NO_PAD.encode(key);
                let answer = ground
                    .send(&method, &format!("{path}?cursor={cursor}"), "")
                    .await;
                let status = answer.status.as_u16();
                assert!(
                    [200, 422].contains(&status),
                    "{path} {key}: {}",
                    answer.text
                );
            }
            for query in ["cursor=%ff", "cursor=%00", "limit=%ff", "%ff=1", "x=%c3%28"] {
                let answer = ground.send(&method, &format!("{path}?{query}"), "").await;
                let (status, code, _) = answer.problem();
                assert_eq!(
                    (status, code.as_str()),
                    (422, "invalid_query"),
                    "{path} {query}"
                );
            }
        }
    }
    for (method, path, _) in operations() {
        if !path.contains('{') {
            continue;
        }
        let parts = path.split('/').map(|part| match part.starts_with('{') {
            true => "{}",
            false => part,
        });
        let path = parts.collect::<Vec<_>>().join("/");
        for odd in ["%ff", "%00", "x%00", "%c3%28", "%ed%a0%80"] {
            let answer = ground.send(&method, &path.replace("{}", odd), "{}").await;
            let (status, ..) = answer.problem();
            assert_eq!(status, 404, "{method} {path} {odd}");
        }
    }
    for path in ["/assets/%ff", "/%ff", "/sites/%ff/%ff/%ff"] {
        let answer = ground.send("get", path, "").await;
        assert_eq!(answer.problem().0, 404, "{path}");
    }
}

/// A statement in other words, signed as it stands.
fn sign(text: String, purpose: &[u8], identity: &Ed25519KeyPair) -> SignedStatement {
    let signature = identity.sign(&[purpose, text.as_bytes()].concat());
    let bytes: [u8; 64] = signature.as_ref().try_into().unwrap();
    SignedStatement {
        statement: text,
        signature: Signature::from(bytes),
    }
}

const STATEMENT: &[u8] = b"wattle statement v1\0";
const ANNOUNCEMENT: &[u8] = b"wattle announcement v1\0";

/// What a signed text says in other forms than nodes write, or with numbers that none has.
fn other_forms(text: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(text).unwrap();
    let forms = [Twist::List, Twist::KeyTwice, Twist::Null];
    let mut texts: Vec<_> = forms
        .into_iter()
        .flat_map(|twist| Twisted::all(&value, twist))
        .collect();
    for number in ["0", "-1", "9223372036854775808", "18446744073709551615"] {
        let own = format!("\"sequence\":{}", value["sequence"]);
        texts.push(text.replace(&own, &format!("\"sequence\":{number}")));
    }
    let known = text.strip_suffix('}').unwrap();
    texts.push(format!("{known},\"newer\":1,\"newer\":2}}"));
    texts.push(format!(
        "{known},\"newer\":\"{}\"}}",
        "x".repeat(SignedStatement::LONGEST)
    ));
    texts
}

#[tokio::test]
async fn b18_what_is_signed_has_one_form_a_length_and_a_number_that_can_be_kept() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let join = new_site(&coordinator, json!({"name": "cork"})).await;
    let events = async || coordinator.count("SELECT event_number FROM mesh").await;
    let before = events().await;

    let machine = NodeKeys::new();
    let good = serde_json::to_string(&machine.statement(&join)).unwrap();
    for text in other_forms(&good) {
        let statement = sign(text.clone(), STATEMENT, &machine.identity);
        let finish = machine.finish_with(&coordinator, &join, statement).await;
        let answer = enrol(&coordinator, &finish).await;
        assert_eq!(answer.problem().1, "proof_refused", "{text}");
    }
    let next = NextKey::new(&dublin, 2);
    for text in other_forms(&next.statement.statement) {
        let signed = sign(text.clone(), ANNOUNCEMENT, &dublin.machine.identity);
        let other = NextKey {
            secret: next.secret.clone(),
            announcement: SignedAnnouncement {
                announcement: signed.statement,
                signature: signed.signature,
            },
            statement: next.statement.clone(),
        };
        let announced = announce(&coordinator, &dublin, &other).await;
        assert_eq!(announced.problem().1, "statement", "{text}");
        let signed = sign(text.clone(), STATEMENT, &dublin.machine.identity);
        for (path, body) in [
            ("/agent/rotation", json!({ "done": signed })),
            (
                "/agent/identity",
                json!({"node": dublin.id(), "statement": signed}),
            ),
        ] {
            let request = dublin.request(&coordinator, Method::POST, path);
            let answer = send(request.json(&body)).await;
            let status = answer.problem().0;
            assert!([401, 409, 422].contains(&status), "{status} {path} {text}");
        }
    }
    let claims = serde_json::to_value(dublin.claims()).unwrap();
    let list: Vec<_> = ["iss", "sub", "aud", "iat", "exp", "gen"]
        .iter()
        .map(|claim| claims[claim].clone())
        .collect();
    let token = dublin.machine.sign(&node_header(), &json!(list));
    let view = coordinator.client.get(coordinator.url("/agent/view"));
    send(view.bearer_auth(token)).await.expect(401);
    assert_eq!(events().await, before);

    // The same machine and key, said as nodes say it.
    let statement = sign(good, STATEMENT, &machine.identity);
    let finish = machine.finish_with(&coordinator, &join, statement).await;
    enrol(&coordinator, &finish).await.expect(200);
    announce(&coordinator, &dublin, &next).await.expect(200);
}
