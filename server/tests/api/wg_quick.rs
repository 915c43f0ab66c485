//! `POST /sites/{site}/wg-quick`: gateways without an agent.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, process::Command};

use reqwest::{Method, header};
use serde_json::{Value, json};
use wattle_mesh::{
    config::wg_quick::NO_KEY,
    keys::{enrolment, psk::given::Given},
};
use wattle_wire::{
    admin::CreatedWgQuick,
    ids::NodeId,
    key::{Bytes32, WireguardKey},
    psk::MailboxResponse,
    stream::{StreamMessage, ViewChange},
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    agents::{Node, NodeKeys, new_node, new_site},
    harness::{Coordinator, reachable_folder, send},
};

fn new_key() -> WireguardKey {
    WireguardKey::try_from(PublicKey::from(&StaticSecret::random()).to_bytes()).unwrap()
}

/// A site, and the file of its gateway.
async fn new_file(coordinator: &Coordinator, site: Value, body: Value) -> CreatedWgQuick {
    let path = format!("/sites/{}/wg-quick", site["name"].as_str().unwrap());
    new_site(coordinator, site).await;
    make(coordinator, &path, body).await
}

async fn make(coordinator: &Coordinator, path: &str, body: Value) -> CreatedWgQuick {
    let answer = coordinator.post(path, body).await.expect(201);
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    let created: CreatedWgQuick = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(
        answer.headers[header::LOCATION],
        format!("/nodes/{}", created.node.id)
    );
    created
}

/// The sections of a file, each a map of its settings.
fn sections(file: &CreatedWgQuick) -> Vec<BTreeMap<String, String>> {
    let mut sections: Vec<BTreeMap<_, _>> = Vec::new();
    for line in file
        .file
        .reveal()
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        match line.split_once(" = ") {
            None => sections.push(BTreeMap::from([(String::new(), line.to_owned())])),
            Some((name, value)) => {
                _ = sections
                    .last_mut()
                    .unwrap()
                    .insert(name.to_owned(), value.to_owned())
            }
        }
    }
    sections
}

/// The preshared key that a file has for a node.
fn psk_in(file: &CreatedWgQuick, key: WireguardKey) -> [u8; 32] {
    let sections = sections(file);
    let peer = sections
        .iter()
        .find(|section| section.get("PublicKey") == Some(&key.to_string()))
        .expect("no such peer in the file");
    *peer["PresharedKey"].parse::<Bytes32>().unwrap().as_bytes()
}

async fn mail(coordinator: &Coordinator, node: &Node, taken: &[i64]) -> MailboxResponse {
    let request = node
        .request(coordinator, Method::POST, "/agent/mailbox")
        .json(&json!({"taken": taken}));
    serde_json::from_str(&send(request).await.expect(200).text).unwrap()
}

/// The preshared key that waits for a node, which is the only thing that does; opened as its agent
/// would.
async fn given(coordinator: &Coordinator, node: &Node, file: &CreatedWgQuick) -> [u8; 32] {
    let mail = mail(coordinator, node, &[]).await;
    let [sealed] = &mail.given[..] else {
        panic!("{mail:?}")
    };
    let made_ms = file.made_at.timestamp_millis().cast_unsigned();
    assert_eq!((sealed.from, sealed.made_ms), (file.node.id, made_ms));
    let to = (node.id(), node.machine.wireguard_key());
    let given = Given {
        mesh: node.enrolled.mesh,
        from: (file.node.id, file.node.wireguard_key),
        to,
        made_ms,
    };
    *given
        .open(&sealed.sealed, &node.machine.wireguard.to_bytes())
        .expect("it is sealed for the node")
        .reveal()
}

#[tokio::test]
async fn a_file_makes_an_unmanaged_node_whose_preshared_keys_wait_sealed_for_its_peers() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(
        &coordinator,
        json!({"name": "dublin", "endpoint": "203.0.113.10:51820", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    let galway = new_node(&coordinator, json!({"name": "galway"})).await;
    let mut stream = dublin.follow(&coordinator, None).await;
    assert!(matches!(
        stream.news().await,
        Some(StreamMessage::Snapshot { .. })
    ));
    let site =
        json!({"name": "cork", "endpoint": "203.0.113.20:4500", "subnets": ["10.20.0.0/24"]});
    let file = new_file(&coordinator, site, json!({})).await;

    let shown = coordinator.get("/nodes/cork").await.expect(200).json();
    assert_eq!(json!(file.node), shown);
    for (field, value) in [
        ("state", json!("active")),
        ("tunnel_address", json!("10.99.0.3")),
        ("endpoint", json!("203.0.113.20:4500")),
        ("endpoint_verified", json!(true)),
        ("agent_version", Value::Null),
        (
            "unmanaged",
            json!({"file_made_at": file.made_at, "file_is_current": true}),
        ),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    let sections = sections(&file);
    let [interface, peers @ ..] = &sections[..] else {
        panic!("{sections:?}")
    };
    let private: Bytes32 = interface["PrivateKey"].parse().unwrap();
    let public = PublicKey::from(&StaticSecret::from(*private.as_bytes())).to_bytes();
    assert_eq!(public, *file.node.wireguard_key.as_bytes());
    assert_eq!(
        (
            interface["Address"].as_str(),
            interface["ListenPort"].as_str()
        ),
        ("10.99.0.3/32", "4500")
    );
    assert_eq!(peers.len(), 2);
    assert_eq!(
        (
            peers[0]["AllowedIPs"].as_str(),
            peers[0]["Endpoint"].as_str()
        ),
        ("10.99.0.1/32, 10.10.0.0/24", "203.0.113.10:51820")
    );

    let mut keys = Vec::new();
    for node in [&dublin, &galway] {
        keys.push(psk_in(&file, node.machine.wireguard_key()));
        assert_eq!(
            given(&coordinator, node, &file).await,
            *keys.last().unwrap()
        );
    }
    assert_ne!(keys[0], keys[1]);

    // Its peers hear of it, and that nobody can speak for it.
    let Some(StreamMessage::Delta { changes, .. }) = stream.news().await else {
        panic!("no delta")
    };
    let [ViewChange::Peer(peer)] = &changes[..] else {
        panic!("{changes:?}")
    };
    let statement = enrolment::verify_statement(&peer.statement, dublin.enrolled.mesh).unwrap();
    assert!(
        statement.unmanaged
            && statement.identity == file.node.identity_key
            && statement.wireguard_key == file.node.wireguard_key
    );
    assert_eq!(stream.news().await, Some(StreamMessage::MessagesWaiting));

    // What was taken is gone.
    let waiting = mail(&coordinator, &dublin, &[]).await.given[0].id;
    assert_eq!(mail(&coordinator, &dublin, &[waiting]).await.given, []);
    assert_eq!(
        coordinator.count("SELECT count(*) FROM psk_messages").await,
        1
    );
    let event = coordinator.get("/events?limit=1").await.json()["items"][0].clone();
    assert_eq!(
        (&event["action"], &event["object"]),
        (&json!("wg-quick.create"), &json!(file.node.id))
    );
}

#[tokio::test]
async fn another_file_is_for_the_same_node_and_only_the_preshared_keys_are_new() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let key = new_key();
    let first = new_file(
        &coordinator,
        json!({"name": "cork"}),
        json!({"wireguard_key": key}),
    )
    .await;
    assert_eq!(first.node.wireguard_key, key);
    let mut before = (first.made_at, given(&coordinator, &dublin, &first).await);
    for body in [json!({}), json!({"wireguard_key": key}), json!({})] {
        let again = make(&coordinator, "/sites/cork/wg-quick", body).await;
        assert_eq!(
            (
                again.node.id,
                again.node.wireguard_key,
                again.node.identity_key
            ),
            (first.node.id, key, first.node.identity_key)
        );
        let now = psk_in(&again, dublin.machine.wireguard_key());
        assert!(again.made_at > before.0 && now != before.1);
        assert_eq!(
            given(&coordinator, &dublin, &again).await,
            now,
            "it takes the place of the one before"
        );
        let text = again.file.reveal();
        assert!(
            sections(&again)[0]["PrivateKey"] == NO_KEY
                && text.contains(&format!("whose public key is {key}")),
            "{text}"
        );
        assert_eq!(
            coordinator
                .count("SELECT count(*) FROM nodes WHERE file_made_at IS NOT NULL")
                .await,
            1
        );
        before = (again.made_at, now);
    }
}

#[tokio::test]
async fn a_made_key_is_in_the_first_file_alone_and_comes_anew_with_a_new_node() {
    let coordinator = Coordinator::start().await;
    let first = new_file(&coordinator, json!({"name": "cork"}), json!({})).await;
    assert!(sections(&first)[0]["PrivateKey"] != NO_KEY);
    let second = make(&coordinator, "/sites/cork/wg-quick", json!({})).await;
    assert_eq!(sections(&second)[0]["PrivateKey"], NO_KEY);
    let other = coordinator
        .post("/sites/cork/wg-quick", json!({"wireguard_key": new_key()}))
        .await;
    assert_eq!(
        other.problem(),
        (
            409,
            "has_gateway".to_owned(),
            Some("wireguard_key".to_owned())
        )
    );
    coordinator.delete("/nodes/cork").await.expect(204);
    let third = make(&coordinator, "/sites/cork/wg-quick", json!({})).await;
    assert!(sections(&third)[0].contains_key("PrivateKey"));
    assert!(third.node.id != first.node.id && third.node.wireguard_key != first.node.wireguard_key);
    assert_eq!(third.node.tunnel_address, first.node.tunnel_address);
}

#[tokio::test]
async fn a_file_is_refused_for_a_site_with_an_agent_and_with_a_key_that_is_or_was_anothers() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let revoked = new_node(&coordinator, json!({"name": "galway"})).await;
    coordinator.delete("/nodes/galway").await.expect(204);
    new_site(&coordinator, json!({"name": "cork"})).await;
    let asked = async |site: &str, body: Value| {
        coordinator
            .post(&format!("/sites/{site}/wg-quick"), body)
            .await
            .problem()
    };
    let field = Some("wireguard_key".to_owned());
    assert_eq!(
        asked("dublin", json!({})).await,
        (409, "has_gateway".to_owned(), Some("site".to_owned()))
    );
    assert_eq!(asked("nowhere", json!({})).await.0, 404);
    let of = |node: &Node| json!({"wireguard_key": node.machine.wireguard_key()});
    assert_eq!(
        asked("cork", of(&dublin)).await,
        (409, "key_taken".to_owned(), field.clone())
    );
    assert_eq!(
        asked("cork", of(&revoked)).await,
        (403, "key_revoked".to_owned(), field.clone())
    );
    for bad in ["", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
        assert_eq!(
            asked("cork", json!({"wireguard_key": bad})).await,
            (422, "invalid_field".to_owned(), field.clone()),
            "{bad}"
        );
    }
    assert_eq!(coordinator.count("SELECT count(*) FROM nodes").await, 2);
}

#[tokio::test]
async fn of_many_that_ask_for_the_first_file_at_once_all_get_one_of_the_same_node_and_the_last_counts()
 {
    let coordinator = Coordinator::start().await;
    let (other, dublin) = (
        coordinator.another().await,
        new_node(&coordinator, json!({"name": "dublin"})).await,
    );
    new_site(&coordinator, json!({"name": "cork"})).await;
    other.server.app.mesh_cache.refresh().await;
    let asked = (0..8).map(|turn| {
        make(
            if turn % 2 == 0 { &coordinator } else { &other },
            "/sites/cork/wg-quick",
            json!({}),
        )
    });
    let mut files = futures_util::future::join_all(asked).await;
    files.sort_by_key(|file| file.made_at);
    assert!(files.is_sorted_by(|a, b| a.made_at < b.made_at && a.node.id == b.node.id));
    let private: Vec<_> = files
        .iter()
        .map(|file| sections(file)[0]["PrivateKey"] != NO_KEY)
        .collect();
    assert_eq!(
        private,
        [true, false, false, false, false, false, false, false]
    );
    let last = files.last().unwrap();
    assert_eq!(
        given(&coordinator, &dublin, last).await,
        psk_in(last, dublin.machine.wireguard_key())
    );
}

#[tokio::test]
async fn an_agent_that_joins_beside_a_gateway_without_one_takes_over_when_that_is_removed() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "cork"})).await;
    let file = make(&coordinator, "/sites/cork/wg-quick", json!({})).await;
    let gateway = NodeKeys::new().enrol(&coordinator, &join).await;
    assert_eq!(
        coordinator
            .get(&format!("/nodes/{}", gateway.id()))
            .await
            .json()["state"],
        "standby"
    );
    assert_eq!(
        make(&coordinator, "/sites/cork/wg-quick", json!({}))
            .await
            .node
            .id,
        file.node.id
    );
    coordinator
        .delete(&format!("/nodes/{}", file.node.id))
        .await
        .expect(204);
    assert_eq!(
        coordinator
            .get(&format!("/nodes/{}", gateway.id()))
            .await
            .json()["state"],
        "active"
    );
    assert_eq!(
        coordinator
            .post("/sites/cork/wg-quick", json!({}))
            .await
            .problem()
            .1,
        "has_gateway"
    );
}

#[tokio::test]
async fn two_sites_without_an_agent_have_no_tunnel_with_each_other() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_file(&coordinator, json!({"name": "cork"}), json!({})).await;
    let galway = new_file(&coordinator, json!({"name": "galway"}), json!({})).await;
    assert!(
        galway
            .file
            .reveal()
            .contains("# There is no tunnel with cork, which has no agent either.")
    );
    assert_eq!(sections(&galway).len(), 2);
    let links = coordinator.get("/links").await.json();
    let ends = |link: &Value| [0, 1].map(|end| link["ends"][end]["node"].clone());
    let linked: Vec<_> = links["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(ends)
        .collect();
    let pair = |id: NodeId| [json!(dublin.id()), json!(id)];
    assert_eq!(linked, [pair(cork.node.id), pair(galway.node.id)]);
    assert_eq!(coordinator.get("/links/cork/galway").await.problem().0, 404);
    // Nor does the file of the one become old by the other.
    assert_eq!(
        coordinator.get("/nodes/cork").await.json()["unmanaged"]["file_is_current"],
        true
    );
}

#[tokio::test]
async fn a_file_is_out_of_date_from_the_change_of_a_peer_until_another_is_made() {
    let coordinator = Coordinator::start().await;
    new_node(
        &coordinator,
        json!({"name": "dublin", "subnets": ["10.10.0.0/24"]}),
    )
    .await;
    new_file(&coordinator, json!({"name": "cork"}), json!({})).await;
    let is_current = async || {
        coordinator.get("/nodes/cork").await.json()["unmanaged"]["file_is_current"].clone()
    };
    coordinator
        .patch(
            "/sites/dublin",
            json!({"description": "x", "name": "dublin-2"}),
        )
        .await
        .expect(200);
    assert_eq!(is_current().await, true);
    coordinator
        .patch("/sites/dublin-2", json!({"subnets": ["10.11.0.0/24"]}))
        .await
        .expect(200);
    assert_eq!(is_current().await, false);
    make(&coordinator, "/sites/cork/wg-quick", json!({})).await;
    assert_eq!(is_current().await, true);
    new_node(&coordinator, json!({"name": "galway"})).await;
    assert_eq!(is_current().await, false);
    coordinator.delete("/sites/galway").await.expect(204);
    assert_eq!(is_current().await, true, "the mesh is again what it says");
}

#[tokio::test]
async fn wg_and_wg_quick_take_a_file_and_wg_refuses_one_without_a_private_key() {
    let coordinator = Coordinator::start().await;
    new_node(&coordinator, json!({"name": "dublin", "endpoint": "[2001:db8::1]:51820", "subnets": ["10.10.0.0/24", "fd10::/64"]})).await;
    new_node(&coordinator, json!({"name": "galway"})).await;
    let made = new_file(
        &coordinator,
        json!({"name": "cork", "endpoint": "203.0.113.20:4500"}),
        json!({}),
    )
    .await;
    let keyless = make(&coordinator, "/sites/cork/wg-quick", json!({})).await;
    let folder = reachable_folder();
    for (file, reason) in [
        // It reads the whole file before it turns to the device, which is not there.
        (&made, "Unable to modify interface: "),
        (&keyless, "Key is not the correct length or format: `INSERT"),
    ] {
        let path = folder.path().join("wattle.conf");
        fs::write(&path, file.file.reveal()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let stripped = Command::new("wg-quick")
            .arg("strip")
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            stripped.status.success() && stripped.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&stripped.stderr)
        );
        let stripped = String::from_utf8(stripped.stdout).unwrap();
        assert!(
            !stripped.contains("Address") && stripped.contains("ListenPort = 4500"),
            "{stripped}"
        );
        let settings =
            |text: &str, name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        for name in [
            "PrivateKey",
            "PublicKey",
            "PresharedKey",
            "AllowedIPs",
            "Endpoint",
            "PersistentKeepalive",
        ] {
            assert_eq!(
                settings(&stripped, name),
                settings(file.file.reveal(), name),
                "{name}"
            );
        }
        fs::write(&path, stripped).unwrap();
        let set = Command::new("wg")
            .args(["setconf", "wattle-none"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&set.stderr);
        assert!(!set.status.success() && said.starts_with(reason), "{said}");
    }
}

#[tokio::test]
async fn a_link_with_a_gateway_without_an_agent_is_as_the_other_end_says_and_nobody_waits_for_its_word()
 {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let cork = new_file(&coordinator, json!({"name": "cork"}), json!({}))
        .await
        .node
        .id;
    let link = async || {
        coordinator
            .get("/links/dublin/cork")
            .await
            .expect(200)
            .json()
    };
    let states = async |expected: &str| {
        let listed = coordinator.get("/links").await.json()["items"][0]["state"].clone();
        assert_eq!(
            (link().await["state"].clone(), listed),
            (json!(expected), json!(expected))
        );
        let metrics = coordinator.get("/metrics").await.text;
        assert!(
            metrics.contains(&format!("wattle_links{{state=\"{expected}\"}} 1")),
            "{expected}"
        );
    };
    assert_eq!(link().await["psk_made_by"], "coordinator");
    states("never").await;
    for (age, expected) in [(json!(3), "up"), (json!(181), "down"), (json!(5), "up")] {
        let said = json!([{"peer": cork, "handshake_age_s": age, "received_bytes": 0, "sent_bytes": 0, "endpoint": null}]);
        dublin
            .report(
                &coordinator,
                json!({"applied": "1.4", "device": "kernel", "links": said}),
            )
            .await
            .expect(204);
        // What metrics say is looked at once a second.
        coordinator
            .until(if expected == "up" { UP } else { DOWN }, 1)
            .await;
        states(expected).await;
    }
    let shown = link().await;
    let end = |node: NodeId| {
        shown["ends"]
            .as_array()
            .unwrap()
            .iter()
            .find(|end| end["node"] == json!(node))
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&end(dublin.id())["state"], &end(dublin.id())["up"]),
        (&json!("up"), &json!(true))
    );
    assert_eq!(
        (
            &end(cork)["state"],
            &end(cork)["up"],
            &end(cork)["reported_at"]
        ),
        (&Value::Null, &json!(true), &Value::Null)
    );
    // Whoever looks for the silent looks among those that were heard of.
    assert_eq!(
        coordinator.count("SELECT count(*) FROM node_reports").await,
        1
    );
    new_node(&coordinator, json!({"name": "galway"})).await;
    assert_eq!(
        coordinator.get("/links/dublin/galway").await.json()["psk_made_by"],
        "nodes"
    );
}

/// Whether the history of a link says that it is so.
const UP: &str = "SELECT count(*) FROM links WHERE state = 'up'";
const DOWN: &str = "SELECT count(*) FROM links WHERE state = 'down'";
