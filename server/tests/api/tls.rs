//! TLS: whose certificate the coordinator shows, who is to believe it, and how that changes.

use std::{fs, os::unix::fs::PermissionsExt};

use reqwest::{Certificate, Client, Method};
use serde_json::json;
use tokio::process::Command;
use wattle_client::pin::{Pins, pin};
use wattle_server::{
    config::Config,
    db::{AuditActor, Db},
    http::listen,
    server::Server,
    tls::authority,
};
use wattle_wire::key::Bytes32;

use crate::{
    agents::{new_node, new_site},
    harness::{Coordinator, SOON, client, config, empty_database, reachable_folder},
};

async fn start(coordinator: &Coordinator, config: &Config) -> anyhow::Result<Server> {
    Server::start(
        coordinator.database.clone(),
        listen::bind("127.0.0.1:0".parse()?)?,
        config,
    )
    .await
}

/// An agent's connections.
fn pinned(pins: &[Bytes32]) -> Client {
    Client::builder()
        .tls_backend_preconfigured(Pins::new(pins.to_vec()).client_config().unwrap())
        .build()
        .unwrap()
}

async fn reaches(client: &Client, coordinator: &Coordinator) -> bool {
    client.get(coordinator.url("/healthz")).send().await.is_ok()
}

/// Whether `curl` reaches it, with the file that people give it.
async fn curl(coordinator: &Coordinator, arguments: &[&str]) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--noproxy", "*", "--cacert"])
        .arg(coordinator.data_dir.path().join("ca.crt"))
        .args(arguments);
    curl.arg(coordinator.url("/healthz"))
        .status()
        .await
        .unwrap()
        .success()
}

fn command_line() -> AuditActor {
    AuditActor::known_as("command line")
}

#[tokio::test]
async fn e6_only_tls_1_3_under_the_pinned_authority_is_spoken_and_the_join_string_has_the_pin() {
    let coordinator = Coordinator::start().await;
    let join = new_site(&coordinator, json!({"name": "dublin"})).await;
    assert_eq!(join.pins, coordinator.server.app.pins());
    assert!(reaches(&pinned(&join.pins), &coordinator).await);
    assert!(!reaches(&pinned(&[Bytes32::from([7; 32])]), &coordinator).await);
    assert!(
        !reaches(&Client::new(), &coordinator).await,
        "no public authority knows it"
    );
    assert!(curl(&coordinator, &["--tlsv1.3"]).await);
    assert!(!curl(&coordinator, &["--tls-max", "1.2"]).await);
    let in_the_clear = coordinator.url("/healthz").replace("https://", "http://");
    assert!(
        client(coordinator.data_dir.path())
            .get(in_the_clear)
            .send()
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_key_of_the_authority_is_in_a_private_file_and_not_in_the_database() {
    let coordinator = Coordinator::start().await;
    let mode = |name: &str| {
        fs::metadata(coordinator.data_dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("ca.pem"), mode("ca.crt")), (0o600, 0o644));
    assert!(
        !fs::read_to_string(coordinator.data_dir.path().join("ca.crt"))
            .unwrap()
            .contains("PRIVATE")
    );
    assert_eq!(
        coordinator.count("SELECT count(*) FROM authorities").await,
        1
    );
}

#[tokio::test]
async fn a_further_coordinator_needs_the_authority_of_the_first() {
    let coordinator = Coordinator::start().await;
    let folder = reachable_folder();
    let error = start(&coordinator, &config(folder.path(), &[]))
        .await
        .unwrap_err()
        .to_string();
    let fingerprint = wattle_server::fingerprint::fingerprint(coordinator.server.app.pins()[0]);
    assert!(
        error.contains(&fingerprint) && error.contains("ca.pem is missing: copy it"),
        "{error}"
    );
    assert!(
        !folder.path().join("ca.pem").exists(),
        "it makes none of its own"
    );

    let stranger = Coordinator::start().await;
    fs::copy(
        stranger.data_dir.path().join("ca.pem"),
        folder.path().join("ca.pem"),
    )
    .unwrap();
    let error = start(&coordinator, &config(folder.path(), &[]))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&fingerprint) && error.contains("copy the file"),
        "{error}"
    );

    let another = coordinator.another().await;
    let join = new_site(&another, json!({"name": "dublin"})).await;
    assert!(
        reaches(&pinned(&join.pins), &another).await
            && reaches(&pinned(&join.pins), &coordinator).await
    );
}

#[tokio::test]
async fn tokens_never_cross_a_network_in_the_clear() {
    let coordinator = Coordinator {
        database: empty_database().await,
        ..Coordinator::start().await
    };
    let folder = reachable_folder();
    let refused = [
        (
            &["--insecure-http"][..],
            "0.0.0.0:0",
            "--insecure-http on 0.0.0.0",
        ),
        (
            &["--insecure-http", "--url", "http://coordinator.example"],
            "0.0.0.0:0",
            "--insecure-http on 0.0.0.0",
        ),
        (
            &["--url", "http://coordinator.example"],
            "127.0.0.1:0",
            "write --url as https://",
        ),
    ];
    for (arguments, address, why) in refused {
        let listener = listen::bind(address.parse().unwrap()).unwrap();
        let error = Server::start(
            coordinator.database.clone(),
            listener,
            &config(folder.path(), arguments),
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains(why), "{error}");
    }
    for (arguments, address) in [
        (&["--insecure-http"][..], "127.0.0.1:0"),
        (
            &["--insecure-http", "--url", "https://coordinator.example"],
            "0.0.0.0:0",
        ),
    ] {
        let listener = listen::bind(address.parse().unwrap()).unwrap();
        let server = Server::start(
            coordinator.database.clone(),
            listener,
            &config(folder.path(), arguments),
        )
        .await
        .unwrap();
        let port = server.address.port();
        let answer = Client::new()
            .get(format!("http://127.0.0.1:{port}/healthz"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 204);
        assert!(server.app.pins().is_empty());
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_from_files_is_shown_and_agents_get_no_pin_for_it() {
    let coordinator = Coordinator::start().await;
    let folder = reachable_folder();
    let (certificate, key) = (
        folder.path().join("public.crt"),
        folder.path().join("public.key"),
    );
    let arguments = [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
        "--url",
        "https://localhost",
    ];
    assert!(
        start(&coordinator, &config(folder.path(), &arguments))
            .await
            .unwrap_err()
            .to_string()
            .contains("public.crt")
    );

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = start(&coordinator, &config(folder.path(), &arguments))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not belong to the key"), "{error}");

    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server = start(&coordinator, &config(folder.path(), &arguments))
        .await
        .unwrap();
    assert!(server.app.pins().is_empty());
    let believer = Client::builder()
        .tls_certs_only([Certificate::from_der(made.cert.der()).unwrap()])
        .build()
        .unwrap();
    let answer = believer
        .get(format!(
            "https://localhost:{}/healthz",
            server.address.port()
        ))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 204);
    assert!(!folder.path().join("ca.pem").exists());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn i6_agents_learn_the_next_authority_under_the_present_one_and_stragglers_are_refused() {
    let coordinator = Coordinator::start().await;
    let node = new_node(&coordinator, json!({"name": "dublin"})).await;
    let (data_dir, old) = (
        &coordinator.data_dir.path().to_owned(),
        coordinator.server.app.pins(),
    );
    let db = Db::open(coordinator.database.clone(), false).await.unwrap();
    let told = async || {
        let answer = node
            .request(&coordinator, Method::GET, "/agent/view")
            .send()
            .await
            .unwrap();
        let header = answer.headers()["wattle-pins"].to_str().unwrap().to_owned();
        header
            .split(',')
            .map(|pin| pin.parse().unwrap())
            .collect::<Vec<Bytes32>>()
    };
    assert_eq!(told().await, old);
    assert!(
        authority::switch(&db, data_dir)
            .await
            .unwrap_err()
            .to_string()
            .contains("ca next")
    );

    let next = authority::make_next(&db, &command_line(), data_dir)
        .await
        .unwrap();
    assert_eq!(
        authority::make_next(&db, &command_line(), data_dir)
            .await
            .unwrap(),
        next,
        "asking again changes nothing"
    );
    let both = vec![old[0], next];
    wait_until(async || told().await == both).await;
    assert!(
        reaches(&pinned(&old), &coordinator).await,
        "the old one still signs"
    );

    assert_eq!(authority::switch(&db, data_dir).await.unwrap(), next);
    wait_until(async || !reaches(&pinned(&old), &coordinator).await).await;
    assert!(reaches(&pinned(&both), &coordinator).await);
    assert!(
        reaches(&client(data_dir), &coordinator).await,
        "ca.crt is the new one"
    );

    let renewed = Coordinator {
        client: client(data_dir),
        ..coordinator
    };
    assert!(
        authority::forget(&db, &command_line(), data_dir, next)
            .await
            .unwrap_err()
            .to_string()
            .contains("signs here")
    );
    authority::forget(&db, &command_line(), data_dir, old[0])
        .await
        .unwrap();
    wait_until(async || renewed.server.app.pins() == [next]).await;
    assert_eq!(
        new_site(&renewed, json!({"name": "frankfurt"})).await.pins,
        [next]
    );
    assert_eq!(
        renewed
            .count("SELECT count(*) FROM events WHERE action LIKE 'authority.%'")
            .await,
        2
    );
}

/// Waits for what the coordinator notices by itself, at its next look.
async fn wait_until(condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON + SOON;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_connection_agrees_on_its_key_by_the_post_quantum_hybrid() {
    let coordinator = Coordinator::start().await;
    let connection = coordinator.connect().await;
    let (_, session) = connection.get_ref();
    let group = session
        .negotiated_key_exchange_group()
        .map(|group| group.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert_eq!(
        session.alpn_protocol(),
        None,
        "whoever does not ask speaks HTTP/1.1"
    );
    let shown = session.peer_certificates().unwrap();
    assert_eq!(pin(&shown[1]), coordinator.server.app.pins()[0]);
}
