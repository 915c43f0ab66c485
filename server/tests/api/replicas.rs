//! Several coordinators on one Postgres, which may tell them nothing of its own accord.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wattle_wire::{
    ids::{NodeId, Position},
    join::JoinString,
    stream::{StreamMessage, ViewChange},
};

use crate::{
    agents::{Follower, NodeKeys, new_node},
    harness::{Coordinator, SOON, empty_database, reachable_folder},
};

/// Those who listen for notifications in the database of this connection.
const LISTENERS: &str =
    "pg_stat_activity WHERE datname = current_database() AND query ILIKE 'listen %'";

#[tokio::test]
async fn a_change_that_was_not_notified_is_seen_within_seconds() {
    let coordinator = Coordinator::start().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    new_node(&coordinator, json!({"name": "frankfurt"})).await;
    let mut stream = dublin
        .follow(
            &coordinator,
            Some(Position {
                epoch: 1,
                revision: 4,
            }),
        )
        .await;
    stream.next().await;
    // As another coordinator does it, whose notification is lost.
    let silently = "BEGIN;
        UPDATE mesh SET revision = revision + 1;
        INSERT INTO changes (revision, epoch, changes) SELECT revision + 1, epoch, changes FROM \
        changes ORDER BY revision DESC LIMIT 1;
        COMMIT";
    sqlx::raw_sql(silently)
        .execute(&mut coordinator.connection().await)
        .await
        .unwrap();
    let message = stream.news().await;
    assert!(
        matches!(message, Some(StreamMessage::Delta { position, .. }) if position.revision == 5),
        "{message:?}"
    );
}

#[tokio::test]
async fn c8_agents_that_all_come_back_at_once_are_current_soon_and_the_database_has_no_more_connections_than_before()
 {
    const AGENTS: u64 = 200;
    let coordinator = Coordinator::start().await;
    let sites: Vec<_> = (0..AGENTS)
        .map(|number| json!({"name": format!("site-{number}")}))
        .collect();
    let made = coordinator
        .post("/import", json!({ "sites": sites }))
        .await
        .expect(201)
        .json();
    let joins = made["sites"].as_array().unwrap().iter().map(|made| {
        made["join_token"]["join_string"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    });
    let joins: Vec<JoinString> = joins.collect();
    let mut nodes = Vec::new();
    for some in joins.chunks(20) {
        nodes.extend(
            join_all(
                some.iter()
                    .map(|join| NodeKeys::new().enrol(&coordinator, join)),
            )
            .await,
        );
    }
    // They know all but the last change, and turn to a coordinator that has heard of none of them.
    let another = coordinator.another().await;
    coordinator
        .patch("/sites/site-0", json!({"subnets": ["10.10.0.0/24"]}))
        .await
        .expect(200);
    another.server.app.mesh_cache.refresh().await;
    let now = coordinator.server.app.mesh_cache.position();
    let since = Position {
        revision: now.revision - 1,
        ..now
    };
    let first = join_all(
        nodes
            .iter()
            .map(async |node| node.follow(&another, Some(since)).await.next().await),
    )
    .await;
    for message in first {
        assert!(
            matches!(message, Some(StreamMessage::Delta { position, .. }) if position == now),
            "{message:?}"
        );
    }
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'wattle-server'";
    assert!(
        coordinator.count(connections).await <= 2 * 21,
        "each coordinator has four pools of 20, and a listener"
    );
}

#[tokio::test]
async fn f7_a_listener_that_is_cut_off_misses_nothing_and_listens_again() {
    let coordinator = Coordinator::start().await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut stream = dublin.follow(&another, None).await;
    stream.next().await;
    let mut connection = coordinator.connection().await;
    let count = format!("SELECT count(*) FROM {LISTENERS}");
    let listeners = async |connection: &mut PgConnection| -> i64 {
        sqlx::query_scalar(AssertSqlSafe(count.clone()))
            .fetch_one(connection)
            .await
            .unwrap()
    };
    let both_listen = async |connection: &mut PgConnection| {
        let deadline = Instant::now() + SOON;
        while listeners(connection).await < 2 {
            assert!(Instant::now() < deadline, "nobody listens again");
            sleep(Duration::from_millis(20)).await;
        }
    };
    both_listen(&mut connection).await;
    let cut = format!("SELECT pg_terminate_backend(pid) FROM {LISTENERS}");
    sqlx::raw_sql(AssertSqlSafe(cut))
        .execute(&mut connection)
        .await
        .unwrap();
    let frankfurt = new_node(&coordinator, json!({"name": "frankfurt"})).await;
    assert_eq!(peers(&mut stream, 1).await, [frankfurt.id()].into());
    both_listen(&mut connection).await;
}

#[tokio::test]
async fn f7_behind_a_pooler_that_shares_connections_nothing_fails_and_nothing_is_skipped() {
    let database = empty_database().await;
    let pooler = Pooler::start(&database).await;
    let coordinator =
        Coordinator::start_with(pooler.options(&database), &["--database-pooler"]).await;
    let another = coordinator.another().await;
    let dublin = new_node(&coordinator, json!({"name": "dublin"})).await;
    let mut streams = [
        dublin.follow(&coordinator, None).await,
        dublin.follow(&another, None).await,
    ];
    // The second stream of a node ends the first only where both are open on one coordinator.
    for stream in &mut streams {
        assert!(matches!(
            stream.next().await,
            Some(StreamMessage::Snapshot { .. })
        ));
    }
    let all = [&coordinator, &another];
    let sites = (0..24).map(|number| {
        new_node(
            all[number % 2],
            json!({"name": format!("site-{number}"), "subnets": [format!("10.{number}.0.0/16")]}),
        )
    });
    let expected: BTreeSet<_> = join_all(sites).await.iter().map(|node| node.id()).collect();
    for stream in &mut streams {
        assert_eq!(peers(stream, expected.len()).await, expected);
    }
    let links = another.get("/links?limit=5").await.expect(200).json();
    assert_eq!(links["items"].as_array().unwrap().len(), 5);
    coordinator
        .post(
            "/sites",
            json!({"name": "clash", "subnets": ["10.3.7.0/24"]}),
        )
        .await
        .expect(409);
    another.delete("/sites/site-3").await.expect(204);
}

/// Reads until the stream has told of so many peers.
async fn peers(stream: &mut Follower, count: usize) -> BTreeSet<NodeId> {
    let mut seen = BTreeSet::new();
    while seen.len() < count {
        let message = stream.news().await;
        let Some(StreamMessage::Delta { changes, .. }) = message else {
            panic!("{message:?}")
        };
        seen.extend(changes.iter().filter_map(|change| {
            if let ViewChange::Peer(peer) = change {
                Some(peer.node)
            } else {
                None
            }
        }));
    }
    seen
}

/// `pgbouncer` in transaction mode, with fewer connections to Postgres than the coordinators have
/// to it.
struct Pooler {
    process: Child,
    folder: TempDir,
}

impl Pooler {
    async fn start(database: &PgConnectOptions) -> Self {
        let folder = reachable_folder();
        let socket = database.get_socket().unwrap();
        let owner = fs::metadata(socket).unwrap();
        let user = database.get_username();
        let config = folder.path().join("pgbouncer.ini");
        let path = folder.path().display();
        let text = format!(
            "[databases]\n* = host={} port={} user={user}\n[pgbouncer]\npool_mode = \
             transaction\nunix_socket_dir = {path}\nlisten_port = 6432\n\
             auth_type = any\nignore_startup_parameters = extra_float_digits\ndefault_pool_size = \
             4\nmax_client_conn = 200\n\
             server_reset_query_always = 1\n",
            socket.display(),
            database.get_port()
        );
        fs::write(&config, text).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new("setpriv");
        // It does not run as root, and Postgres' socket is for its own account only.
        if nix::unistd::geteuid().is_root() {
            command.args([
                format!("--reuid={}", owner.uid()),
                format!("--regid={}", owner.gid()),
                "--clear-groups".to_owned(),
            ]);
        }
        command
            .args(["--pdeathsig=KILL", "pgbouncer"])
            .arg(&config)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let pooler = Self { process, folder };
        let deadline = Instant::now() + SOON;
        while PgConnection::connect_with(&pooler.options(database))
            .await
            .is_err()
        {
            assert!(Instant::now() < deadline, "pgbouncer does not answer");
            sleep(Duration::from_millis(20)).await;
        }
        pooler
    }

    /// As an operator would write them.
    fn options(&self, database: &PgConnectOptions) -> PgConnectOptions {
        let (folder, name) = (
            self.folder.path().display(),
            database.get_database().unwrap(),
        );
        let url = format!(
            "postgres:///{name}?host={folder}&port=6432&user={}",
            database.get_username()
        );
        url.parse().unwrap()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
