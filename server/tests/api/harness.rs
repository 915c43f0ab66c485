//! A coordinator for a test: on a database of its own, in one private Postgres per test process.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use reqwest::{Method, StatusCode, header};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use uuid::Uuid;
use wattle_client::pin::Pins;
use wattle_server::{
    config::{Arguments, Config},
    http::listen,
    postgres::Postgres,
    server::Server,
    state::coordinators::{HostResolver, Resolver},
};

/// How long a test waits for what should be there at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A folder of a test, which the account of a private Postgres can reach.
pub(crate) fn reachable_folder() -> TempDir {
    static HOME: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (home, _) = HOME.get_or_init(|| {
        let home = folder_in(Path::new("/tmp")).keep();
        let sweeper = sweep_after_us(&home);
        (home, sweeper)
    });
    folder_in(home)
}

fn folder_in(parent: &Path) -> TempDir {
    let everyone_passes = fs::Permissions::from_mode(0o711);
    tempfile::Builder::new()
        .prefix("wattle-test-")
        .permissions(everyone_passes)
        .tempdir_in(parent)
        .unwrap()
}

/// A shell that reads from us until we are gone, however we ended, and then removes the folder as
/// soon as no Postgres is left in it.
fn sweep_after_us(folder: &Path) -> Child {
    let script = r#"cat
        for _ in $(seq 100); do ls "$1"/*/postgres/data/postmaster.pid || break; sleep 0.1; done
        rm -rf "$1"; sleep 2; rm -rf "$1""#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sweep"])
        .arg(folder)
        .process_group(0);
    shell
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The Postgres of this test process; it goes down with it.
fn cluster() -> &'static Postgres {
    static CLUSTER: OnceLock<Postgres> = OnceLock::new();
    CLUSTER.get_or_init(|| Postgres::start(&reachable_folder().keep()).unwrap())
}

/// A new, empty database.
pub(crate) async fn empty_database() -> PgConnectOptions {
    let options = tokio::task::spawn_blocking(|| cluster().options())
        .await
        .unwrap();
    let name = format!("test_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    options.database(&name)
}

/// Held by every test: by most together, by one that measures or listens to this process alone.
static TESTS: RwLock<()> = RwLock::const_new(());

/// Lets other tests run meanwhile, or none.
#[derive(Debug)]
pub(crate) enum Company {
    Others {
        _held: RwLockReadGuard<'static, ()>,
    },
    Nobody {
        _held: RwLockWriteGuard<'static, ()>,
    },
}

pub(crate) async fn among_others() -> Company {
    Company::Others {
        _held: TESTS.read().await,
    }
}

pub(crate) async fn alone() -> Company {
    // Not in the queue of the lock: there it would keep a test from its second coordinator, which
    // waits for the end of that test.
    loop {
        match TESTS.try_write() {
            Ok(held) => return Company::Nobody { _held: held },
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A coordinator, and a client of it that holds the owner's token.
pub(crate) struct Coordinator {
    pub(crate) server: Server,
    pub(crate) database: PgConnectOptions,
    pub(crate) token: String,
    pub(crate) client: reqwest::Client,
    pub(crate) data_dir: TempDir,
    pub(crate) arguments: &'static [&'static str],
    pub(crate) _company: Company,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    /// Status, code and field of a problem.
    pub(crate) fn problem(&self) -> (u16, String, Option<String>) {
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/problem+json",
            "{}",
            self.text
        );
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16(), "{json}");
        assert!(
            json["title"].is_string() && json["detail"].is_string(),
            "{json}"
        );
        (
            self.status.as_u16(),
            json["code"].as_str().unwrap().to_owned(),
            json["field"].as_str().map(str::to_owned),
        )
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

impl Coordinator {
    /// The first coordinator of a new mesh.
    pub(crate) async fn start() -> Self {
        Self::start_in(among_others().await, empty_database().await, &[]).await
    }

    /// The first coordinator of a new mesh, on a database that is empty, with more words on its
    /// command line.
    pub(crate) async fn start_with(
        database: PgConnectOptions,
        arguments: &'static [&'static str],
    ) -> Self {
        Self::start_in(among_others().await, database, arguments).await
    }

    pub(crate) async fn start_in(
        company: Company,
        database: PgConnectOptions,
        arguments: &'static [&'static str],
    ) -> Self {
        Self::start_resolving(company, database, arguments, Arc::new(HostResolver)).await
    }

    /// The first coordinator of a new mesh, which asks this resolver where its URLs lead.
    pub(crate) async fn start_resolving(
        company: Company,
        database: PgConnectOptions,
        arguments: &'static [&'static str],
        resolver: Arc<dyn Resolver>,
    ) -> Self {
        let data_dir = reachable_folder();
        let server = serve_with(&database, data_dir.path(), arguments, resolver).await;
        let token = fs::read_to_string(data_dir.path().join("api-token"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            server,
            database,
            token,
            client: client(data_dir.path()),
            data_dir,
            arguments,
            _company: company,
        }
    }

    /// A further coordinator on the same database.
    pub(crate) async fn another(&self) -> Self {
        self.another_resolving(Arc::new(HostResolver)).await
    }

    /// As [`Coordinator::another`], with a resolver of its own.
    pub(crate) async fn another_resolving(&self, resolver: Arc<dyn Resolver>) -> Self {
        let data_dir = reachable_folder();
        fs::copy(
            self.data_dir.path().join("ca.pem"),
            data_dir.path().join("ca.pem"),
        )
        .unwrap();
        let server = serve_with(&self.database, data_dir.path(), self.arguments, resolver).await;
        let (database, token, arguments) =
            (self.database.clone(), self.token.clone(), self.arguments);
        Self {
            server,
            database,
            token,
            client: client(data_dir.path()),
            data_dir,
            arguments,
            _company: among_others().await,
        }
    }

    /// How to open a connection that believes this coordinator and asks for no protocol.
    pub(crate) fn tls(&self) -> TlsConnector {
        let mut config = Pins::new(self.server.app.pins()).client_config().unwrap();
        config.alpn_protocols.clear();
        TlsConnector::from(Arc::new(config))
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let connection = TcpStream::connect(self.server.address).await.unwrap();
        self.speak_tls(connection).await
    }

    /// The same, for which the kernel keeps little that was not read.
    pub(crate) async fn connect_with_little_room(&self) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let connection = socket.connect(self.server.address).await.unwrap();
        self.speak_tls(connection).await
    }

    async fn speak_tls(&self, connection: TcpStream) -> TlsStream<TcpStream> {
        let name = "localhost".try_into().unwrap();
        self.tls().connect(name, connection).await.unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, self.url(path))
            .bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PATCH, path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect_with(&self.database).await.unwrap()
    }

    /// One number from the database.
    /// Waits until a count is at least so much.
    pub(crate) async fn until(&self, sql: &'static str, least: i64) {
        let deadline = Instant::now() + SOON;
        while self.count(sql).await < least {
            assert!(Instant::now() < deadline, "{sql} never gave {least}");
        }
    }

    /// What nodes reported is in the database once this ends. A machine that is busy may not have a
    /// connection at once; the coordinator tries again, and so does this.
    pub(crate) async fn write_reports(&self) {
        let app = &self.server.app;
        let deadline = Instant::now() + SOON;
        while let Err(error) = app.reports.write(&app.db).await {
            assert!(Instant::now() < deadline, "{error}");
        }
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&mut self.connection().await)
            .await
            .unwrap()
    }
}

/// A client that believes the coordinator of a data directory, and nobody else.
pub(crate) fn client(data_dir: &Path) -> reqwest::Client {
    client_builder(data_dir).build().unwrap()
}

fn client_builder(data_dir: &Path) -> reqwest::ClientBuilder {
    let authority =
        reqwest::Certificate::from_pem(&fs::read(data_dir.join("ca.crt")).unwrap()).unwrap();
    reqwest::Client::builder().tls_certs_only([authority])
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

pub(crate) async fn serve(
    database: &PgConnectOptions,
    data_dir: &Path,
    arguments: &[&str],
) -> Server {
    serve_with(database, data_dir, arguments, Arc::new(HostResolver)).await
}

/// The settings of a coordinator with these arguments and no file.
pub(crate) fn config(data_dir: &Path, arguments: &[&str]) -> Config {
    let data_dir = data_dir.to_str().unwrap();
    let words = [
        "wattle-server",
        "--config",
        "/dev/null",
        "--data-dir",
        data_dir,
    ];
    let arguments = Arguments::parse_from(words.iter().chain(arguments));
    arguments.config().unwrap()
}

/// As [`serve`], with a resolver for the hosts of its URLs.
pub(crate) async fn serve_with(
    database: &PgConnectOptions,
    data_dir: &Path,
    arguments: &[&str],
    resolver: Arc<dyn Resolver>,
) -> Server {
    // Where webhooks may lead that nothing is to be sent to.
    let config = config(
        data_dir,
        &[&["--webhook-allow=127.0.0.9/32"], arguments].concat(),
    );
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Server::start_with(database.clone(), listener, &config, resolver)
        .await
        .unwrap()
}

/// As [`send`]; of a good answer, which may be a stream, only the head.
pub(crate) async fn send_head(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = if status.is_success() {
        String::new()
    } else {
        response.text().await.unwrap()
    };
    Answer {
        status,
        headers,
        text,
    }
}
