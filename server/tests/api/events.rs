//! The audit log, and what never gets into it, nor into the database, nor into a log.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use aho_corasick::AhoCorasick;
use base64::{Engine, engine::general_purpose};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tracing::subscriber;
use tracing_subscriber::fmt::MakeWriter;
use wattle_mesh::audit::Head;
use wattle_server::routes::events;
use wattle_wire::join::JoinString;

use crate::{
    agents::{NodeKeys, new_node, new_site},
    harness::{Coordinator, alone, empty_database, send},
};

async fn verify(coordinator: &Coordinator, seen: Option<Head>) -> Result<Head, String> {
    events::verify(&coordinator.server.app.db, seen)
        .await
        .map_err(|error| format!("{error:#}"))
}

async fn tamper(coordinator: &Coordinator, sql: &'static str) {
    sqlx::raw_sql(sql)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
}

#[tokio::test]
async fn every_change_is_an_event_with_its_actor_and_what_it_found_and_left() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let site = coordinator.get("/sites/dublin").await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    coordinator
        .patch("/sites/dublin", json!({"description": "x"}))
        .await
        .expect(200);
    coordinator
        .patch("/sites/dublin", json!({"description": "x"}))
        .await
        .expect(200);
    coordinator
        .post("/api-tokens", json!({"name": "x", "role": "viewer"}))
        .await
        .expect(201);
    coordinator.delete("/sites/dublin").await.expect(204);
    let events = coordinator.get("/events").await.expect(200).json();
    let events: Vec<&Value> = events["items"].as_array().unwrap().iter().rev().collect();
    let said: Vec<_> = events
        .iter()
        .map(|event| event["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        said,
        [
            "site.create",
            "node.enrol",
            "site.change",
            "api-token.create",
            "site.remove",
            "node.revoke"
        ]
    );
    assert!(events.iter().enumerate().all(
        |(index, event)| event["number"] == json!(index + 1) && event["request_id"].is_string()
    ));
    let owner = format!(
        "api-token:{}",
        coordinator.get("/api-tokens").await.json()["items"][0]["id"]
            .as_str()
            .unwrap()
    );
    assert_eq!(events[0]["actor"], owner);
    assert!(
        events[1]["actor"]
            .as_str()
            .unwrap()
            .starts_with("join-token:")
    );
    assert_eq!(
        (
            &events[1]["object"],
            &events[0]["object"],
            &events[4]["object"]
        ),
        (&json!(node.id()), &json!(site), &json!(site))
    );
    assert_eq!(
        (
            &events[0]["before"],
            &events[2]["before"],
            &events[4]["before"]
        ),
        (&Value::Null, &events[0]["after"], &events[2]["after"])
    );
    assert_eq!(
        (events[3]["after"].is_string(), &events[4]["after"]),
        (true, &Value::Null)
    );
    assert_eq!(
        (&events[2]["revision"], &events[3]["revision"]),
        (&json!(3), &Value::Null)
    );
    let page = coordinator.get("/events?limit=2").await.json();
    let page = coordinator
        .get(&format!(
            "/events?limit=2&cursor={}",
            page["next_cursor"].as_str().unwrap()
        ))
        .await
        .json();
    assert_eq!(page["items"], json!([events[3], events[2]]));
}

#[tokio::test]
async fn the_chain_is_whole_however_changes_race_and_tells_where_it_was_touched() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let start = verify(&coordinator, None).await.unwrap();
    join_all((0..20).map(|number| {
        let by = if number % 2 == 0 {
            &coordinator
        } else {
            &another
        };
        by.post("/sites", json!({"name": format!("site-{number}")}))
    }))
    .await;
    let seen = verify(&coordinator, Some(start)).await.unwrap();
    assert_eq!(
        seen.number,
        coordinator.count("SELECT count(*) FROM events").await
    );
    assert!(seen.number > 15, "{seen}");
    coordinator
        .post("/sites", json!({"name": "one-more"}))
        .await
        .expect(201);
    let end = verify(&coordinator, Some(seen)).await.unwrap();
    assert_eq!(end.number, seen.number + 1);

    for sql in [
        "UPDATE events SET actor = 'x'",
        "DELETE FROM events",
        "TRUNCATE events",
    ] {
        let error = sqlx::query(sql)
            .execute(&mut coordinator.connection().await)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("only ever added to"), "{error}");
    }
    tamper(
        &coordinator,
        "ALTER TABLE events DISABLE TRIGGER events_are_only_added",
    )
    .await;
    tamper(
        &coordinator,
        "UPDATE events SET actor = 'api-token:nobody' WHERE number = 7",
    )
    .await;
    assert!(
        verify(&coordinator, None)
            .await
            .unwrap_err()
            .contains("event 7, or one before it, is not what it was")
    );
    tamper(&coordinator, "DELETE FROM events WHERE number = 5").await;
    assert!(
        verify(&coordinator, None)
            .await
            .unwrap_err()
            .contains("event 5 is missing")
    );
    tamper(&coordinator, "DELETE FROM events WHERE number > 3").await;
    assert!(
        verify(&coordinator, None)
            .await
            .unwrap_err()
            .contains("it ends at event 3")
    );

    // All of it anew, as only somebody can who writes to both tables: whole again, and another than
    // it was.
    tamper(
        &coordinator,
        "DELETE FROM events; UPDATE mesh SET event_number = 0, event_hash = \
        decode(repeat('00', 32), 'hex')",
    )
    .await;
    for number in 0..25 {
        coordinator
            .post("/sites", json!({"name": format!("new-{number}")}))
            .await
            .expect(201);
    }
    verify(&coordinator, None).await.unwrap();
    assert!(
        verify(&coordinator, Some(end))
            .await
            .unwrap_err()
            .contains("the audit log was rewritten")
    );
}

/// All that is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn e11_no_secret_is_in_a_dump_of_the_database_nor_in_any_log() {
    // In a process of its own: `tracing` remembers for a whole process whether anybody listens, and
    // the threads of other tests do not.
    const IN_PROCESS: &str = "WATTLE_TEST_IN_PROCESS";
    if env::var_os(IN_PROCESS).is_none() {
        let _company = alone().await;
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("events::e11_no_secret_is_in_a_dump_of_the_database_nor_in_any_log")
            .env(IN_PROCESS, "1")
            .output()
            .await
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let company = alone().await;
    let log = Log::default();
    let collector = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let _collecting = subscriber::set_default(collector);
    let coordinator = Coordinator::start_in(company, empty_database().await, &[]).await;

    let machine = NodeKeys::new();
    let mut secrets = vec![(
        "the private key of WireGuard",
        machine.wireguard.to_bytes().to_vec(),
    )];
    // PKCS#8 of version 2 ends with the public key; the seed is what is secret.
    secrets.push(("the seed of the identity", machine.pkcs8[16..48].to_vec()));
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    let node = machine.enrol(&coordinator, &join).await;
    node.report(
        &coordinator,
        json!({"applied": "1.2", "device": "kernel", "links": [], "problems": []}),
    )
    .await;
    let node_token = node.token();
    let key = "a key that is easily guessed";
    let again = coordinator
        .request(Method::POST, "/api-tokens")
        .header("idempotency-key", key);
    let made = send(again.json(&json!({"name": "x", "role": "viewer"})))
        .await
        .expect(201)
        .json();
    let again = coordinator
        .request(Method::POST, "/sites/dublin/join-tokens")
        .header("idempotency-key", key.to_uppercase());
    let kept = send(again.json(&json!({}))).await.expect(201).json();
    let kept: JoinString = kept["join_string"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        coordinator
            .count("SELECT count(*) FROM answers WHERE sealed IS NOT NULL")
            .await,
        2
    );
    let made = made["token"].as_str().unwrap();
    new_site(&coordinator, json!({"name": "cork"})).await;
    let again = coordinator
        .request(Method::POST, "/sites/cork/wg-quick")
        .header("idempotency-key", "another");
    let file = send(again.json(&json!({}))).await.expect(201).json()["file"]
        .as_str()
        .unwrap()
        .to_owned();
    for (line, what) in [
        ("PrivateKey = ", "the private key of a file"),
        ("PresharedKey = ", "a preshared key of a file"),
    ] {
        let key = file
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap();
        secrets.push((what, general_purpose::STANDARD.decode(key).unwrap()));
    }
    for (what, text) in [
        ("the join token", join.secret.reveal()),
        ("the join string", &join.to_string()),
        ("a join token whose answer is kept", kept.secret.reveal()),
        ("the join string of a kept answer", &kept.to_string()),
        ("a key of a kept answer", key),
        ("the owner's token", &coordinator.token),
        (
            "the secret of the owner's token",
            &coordinator.token[40..83],
        ),
        ("a token that was made", made),
        ("a node's token", &node_token),
    ] {
        secrets.push((what, text.as_bytes().to_vec()));
        if let Ok(bytes) = general_purpose::URL_SAFE_NO_PAD.decode(text) {
            secrets.push((what, bytes));
        }
    }
    let authority = fs::read_to_string(coordinator.data_dir.path().join("ca.pem")).unwrap();
    let key: String = authority
        .split_once("PRIVATE KEY-----")
        .unwrap()
        .1
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with('-'))
        .collect();
    secrets.push((
        "the key of the authority",
        general_purpose::STANDARD.decode(&key).unwrap()[..64].to_vec(),
    ));
    // Credentials in wrong places and wrong ones are secrets, too.
    coordinator
        .post("/sites", json!({"name": coordinator.token}))
        .await
        .expect(422);
    coordinator.get("/sites/nowhere").await.expect(404);
    drop(coordinator.connection().await);

    let options = &coordinator.database;
    let mut dump = Command::new(pg_dump());
    dump.arg("--host").arg(options.get_socket().unwrap()).args([
        "--username",
        options.get_username(),
        "--port",
        &options.get_port().to_string(),
    ]);
    let dump = dump
        .arg(options.get_database().unwrap())
        .output()
        .await
        .unwrap();
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let said = std::mem::take(&mut *log.0.lock().unwrap());
    for (text, part) in [
        (&dump.stdout, "dublin"),
        (&said, "/agent/enrol/finish"),
        (&said, "INSERT INTO api_tokens"),
        (&said, "refused"),
    ] {
        assert!(contains(text, part.as_bytes()), "{part} is to be found");
    }
    let (names, written): (Vec<&str>, Vec<Vec<u8>>) = secrets
        .iter()
        .flat_map(|(what, secret)| forms(secret).map(|form| (*what, form)))
        .unzip();
    let secrets = AhoCorasick::new(&written).unwrap();
    for (place, text) in [("the database", &dump.stdout), ("the log", &said)] {
        let found = secrets.find(text).map(|found| names[found.pattern()]);
        assert_eq!(found, None, "it is in {place}");
    }
}

/// The newest that is installed.
fn pg_dump() -> PathBuf {
    let folders = fs::read_dir("/usr/lib/postgresql")
        .unwrap()
        .map(|folder| folder.unwrap().path().join("bin/pg_dump"));
    folders.filter(|program| program.is_file()).max().unwrap()
}

/// How bytes may be written: as they are, in hex, in both kinds of base64.
fn forms(bytes: &[u8]) -> [Vec<u8>; 5] {
    let mut hex = String::new();
    bytes
        .iter()
        .for_each(|byte| write!(hex, "{byte:02x}").unwrap());
    let base64 = general_purpose::STANDARD_NO_PAD.encode(bytes);
    let url = general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    [
        bytes.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        base64.into_bytes(),
        url.into_bytes(),
    ]
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    AhoCorasick::new([part]).unwrap().is_match(text)
}
