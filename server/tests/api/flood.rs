//! What strangers make the program hold in memory, whatever they send.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpSocket, TcpStream},
    runtime::Builder,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_rustls::TlsConnector;
use wattle_client::pin::{Pins, pin};

use crate::{
    harness::{SOON, alone, client, reachable_folder},
    hostile::{DATA, END_HEADERS, END_STREAM, HEADERS, HTTP1, HTTP2, PREFACE, frame, receive, say},
    private_postgres::{Program, token},
};

/// What strangers may make it hold above what it holds at rest, in KiB.
const MOST_WHILE_IT_LASTS: u64 = 64 * 1024;
/// The same once they are gone.
const MOST_AFTERWARDS: u64 = 16 * 1024;
/// Addresses from which strangers come, and connections that each has at a time.
const ADDRESSES: u32 = 50;
const CONNECTIONS: u32 = 20;
/// The preface of HTTP/2 with settings by which no stream may be answered.
const CLOSED: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
/// What strangers ask for.
const PATHS: [(&str, &str); 10] = [
    ("GET", "/"),
    ("GET", "/ui/main.js"),
    ("GET", "/openapi.json"),
    ("GET", "/readyz"),
    ("GET", "/sites"),
    ("POST", "/agent/enrol/start"),
    ("POST", "/agent/enrol/finish"),
    ("POST", "/agent/identity"),
    ("POST", "/import"),
    ("POST", "/agent/report"),
];
const STREAMS: u32 = 64;
/// A window update, whatever its flags.
const WINDOW_UPDATE: u8 = 8;

/// What a stranger does with a connection.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Silent,
    LongClientHello,
    SilentTls,
    LongHeaders,
    UnfinishedBody,
    UnreadAnswers,
    ClosedWindows,
    UnreadStreams,
    LongHeadersOfStreams,
    UnfinishedBodiesOfStreams,
}

const KINDS: [Kind; 10] = [
    Kind::Silent,
    Kind::LongClientHello,
    Kind::SilentTls,
    Kind::LongHeaders,
    Kind::UnfinishedBody,
    Kind::UnreadAnswers,
    Kind::ClosedWindows,
    Kind::UnreadStreams,
    Kind::LongHeadersOfStreams,
    Kind::UnfinishedBodiesOfStreams,
];

/// Strangers, and whom they attack.
#[derive(Clone)]
struct Strangers {
    coordinator: SocketAddr,
    tls: TlsConnector,
    /// What all do; `None`: all kinds of things.
    kind: Option<Kind>,
    until: Instant,
}

impl Strangers {
    /// Attacks from one address with one connection after the other, each of another kind.
    async fn attack(self, number: u32) {
        let address = Ipv4Addr::from(0x7f01_0000 + number % ADDRESSES);
        let kinds = (number..).map(|number| KINDS[number as usize % KINDS.len()]);
        for kind in kinds.map(|kind| self.kind.unwrap_or(kind)) {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((address, 0).into()).unwrap();
            let attack = async {
                if let Ok(connection) = socket.connect(self.coordinator).await {
                    let _ = self.attack_with(connection, kind, number).await;
                }
            };
            if timeout_at(self.until, attack).await.is_err() {
                return;
            }
            // Those that are refused at once leave something to others.
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn attack_with(&self, mut connection: TcpStream, kind: Kind, number: u32) -> Option<()> {
        match kind {
            Kind::Silent => until_closed(connection).await,
            Kind::LongClientHello => {
                // The heads of records that make up one message of 64 kB.
                let mut message = vec![1, 0, 0xff, 0xf0];
                message.resize(16_000, 0);
                for _ in 0..4 {
                    let head = [22, 3, 1, 0x3e, 0x80];
                    connection.write_all(&head).await.ok()?;
                    connection.write_all(&message).await.ok()?;
                }
                until_closed(connection).await
            }
            Kind::SilentTls => until_closed(self.open(connection, HTTP1).await?).await,
            Kind::LongHeaders => {
                let text = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}", "x".repeat(15_000));
                self.say(connection, &text).await
            }
            Kind::UnfinishedBody => {
                let (_, path) = PATHS[5 + number as usize % 5];
                let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 300000");
                let text = format!("{head}\r\n\r\n{}", " ".repeat(250_000));
                self.say(connection, &text).await
            }
            Kind::UnreadAnswers => {
                let text = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50);
                let mut connection = self.open(connection, HTTP1).await?;
                connection.write_all(text.as_bytes()).await.ok()?;
                sleep_until(self.until).await;
            }
            Kind::ClosedWindows => {
                let connection = self.requests(connection, CLOSED, 0).await?;
                until_closed(connection).await;
            }
            Kind::UnreadStreams => {
                let _unread = self.requests(connection, PREFACE, 0).await?;
                sleep(SOON).await;
            }
            Kind::LongHeadersOfStreams => {
                let connection = self.requests(connection, CLOSED, 15_000).await?;
                until_closed(connection).await;
            }
            Kind::UnfinishedBodiesOfStreams => self.bodies(connection).await?,
        }
        Some(())
    }

    async fn open(
        &self,
        connection: TcpStream,
        protocol: &[u8],
    ) -> Option<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let tls = self.tls.with_alpn(vec![protocol.to_vec()]);
        let name = "localhost".try_into().unwrap();
        tls.connect(name, connection).await.ok()
    }

    async fn say(&self, connection: TcpStream, text: &str) {
        if let Some(mut connection) = self.open(connection, HTTP1).await
            && connection.write_all(text.as_bytes()).await.is_ok()
        {
            until_closed(connection).await;
        }
    }

    /// Makes as many requests as a connection may have, for each path.
    async fn requests(
        &self,
        connection: TcpStream,
        preface: &[u8],
        padding: usize,
    ) -> Option<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let mut connection = self.open(connection, HTTP2).await?;
        connection.write_all(preface).await.ok()?;
        for number in 0..STREAMS {
            let (method, path) = PATHS[number as usize % PATHS.len()];
            let flags = match method {
                "GET" => END_HEADERS | END_STREAM,
                _ => END_HEADERS,
            };
            let head = head(method, path, padding);
            let request = frame(HEADERS, flags, 1 + 2 * number, &head);
            connection.write_all(&request).await.ok()?;
        }
        Some(connection)
    }

    /// Sends all of the bodies of many requests that the coordinator takes, but for their ends.
    async fn bodies(&self, connection: TcpStream) -> Option<()> {
        const CHUNK: usize = 8 * 1024;
        let mut connection = self.open(connection, HTTP2).await?;
        connection.write_all(PREFACE).await.ok()?;
        for number in 0..STREAMS {
            let (method, path) = PATHS[5 + number as usize % 5];
            let request = frame(HEADERS, END_HEADERS, 1 + 2 * number, &head(method, path, 0));
            connection.write_all(&request).await.ok()?;
        }
        let (mut reader, mut writer) = split(connection);
        let mut window = 65_535;
        for number in 0.. {
            // No stream gets more than its window.
            let stream = 1 + 2 * (number % STREAMS);
            if number / STREAMS < 7 && window >= CHUNK {
                window -= CHUNK;
                let data = frame(DATA, 0, stream, &[b' '; CHUNK]);
                writer.write_all(&data).await.ok()?;
            } else {
                let (kind, stream, payload) = receive(&mut reader).await.ok()?;
                if (kind, stream) == (WINDOW_UPDATE, 0) {
                    window += u32::from_be_bytes(payload.try_into().ok()?) as usize;
                }
            }
        }
        Some(())
    }
}

/// A request's headers in HPACK, with one that is as long as asked for.
fn head(method: &str, path: &str, padding: usize) -> Vec<u8> {
    let method = if method == "GET" { 0x82 } else { 0x83 };
    let mut head = vec![method, 0x87, 0x41, 1, b'x', 0x04];
    head.push(u8::try_from(path.len()).unwrap());
    head.extend(path.as_bytes());
    if let Some(mut rest) = padding.checked_sub(127) {
        head.extend([0, 1, b'a', 127]);
        while rest >= 128 {
            head.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        head.push(u8::try_from(rest).unwrap());
        head.resize(head.len() + padding, b'x');
    }
    head
}

async fn until_closed(mut connection: impl AsyncRead + Unpin) {
    let mut buffer = [0; 4096];
    while !matches!(connection.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

/// Memory of a program that is in use, in KiB.
fn resident_kib(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// How to open a connection that believes the program of a data directory.
fn believing(data_dir: &Path) -> TlsConnector {
    let authority = CertificateDer::from_pem_file(data_dir.join("ca.crt")).unwrap();
    let mut config = Pins::new(vec![pin(&authority)]).client_config().unwrap();
    config.alpn_protocols.clear();
    TlsConnector::from(Arc::new(config))
}

/// Waits until the program holds no more than so much, and says how much it holds.
async fn until_at_most(program: &Program, most: u64, deadline: Instant) -> u64 {
    loop {
        let resident = resident_kib(program);
        if resident <= most || Instant::now() >= deadline {
            return resident;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// The most that the program held until then.
async fn most_held(program: &Program, until: Instant) -> u64 {
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(resident_kib(program));
        sleep(Duration::from_millis(50)).await;
    }
    most
}

/// Says for how many seconds it goes on, by which figures are asked for.
const SECONDS: &str = "WATTLE_FUZZ_S";
/// The processor of strangers, and that of the coordinator and its good client.
const STRANGERS: usize = 0;
const OURS: usize = 1;

/// Where figures are asked for: keeps this thread, and what it starts from now on, on these
/// processors. A build with debug assertions would need more than one.
fn stay_on(processors: &[usize]) {
    if env::var_os(SECONDS).is_none() {
        return;
    }
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(*processor).unwrap();
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// All strangers at once, until they have to end.
fn attack(strangers: Strangers) -> JoinHandle<()> {
    let attacks = async move {
        let attacks = (0..ADDRESSES * CONNECTIONS).map(|number| strangers.clone().attack(number));
        for attack in join_all(attacks.map(tokio::spawn)).await {
            attack.unwrap();
        }
    };
    tokio::task::spawn_blocking(move || {
        stay_on(&[STRANGERS]);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(attacks);
    })
}

/// How long good requests take, one after the other, until then: the median, and all but the slowest
/// hundredth.
fn times(program: &Program, token: &str, until: Instant) -> JoinHandle<[Duration; 2]> {
    let request = program.client.get(format!("{}/sites", program.url));
    let request = request.bearer_auth(token).build().unwrap();
    let client = client(&program.data_dir);
    let requests = async move {
        let mut times = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            let answer = client.execute(request.try_clone().unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
            times.push(began.elapsed());
        }
        times.sort();
        [50, 99].map(|percent| times[times.len() * percent / 100])
    };
    tokio::task::spawn_blocking(move || {
        stay_on(&[OURS]);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(requests)
    })
}

/// Seconds of the attack, or as many as CONTRIBUTING says.
fn seconds() -> Duration {
    let seconds = env::var(SECONDS).map_or(10, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// All kinds at once; where figures are asked for, each alone as well.
fn kinds() -> Vec<Option<Kind>> {
    let mut kinds = vec![None];
    if env::var_os(SECONDS).is_some() {
        kinds.extend(KINDS.map(Some));
    }
    kinds
}

pub(crate) async fn fifty_addresses() {
    let _company = alone().await;
    let folder = reachable_folder();
    // It ends with the thread that starts it.
    stay_on(&[OURS]);
    let program = Program::start(folder.path());
    stay_on(&[STRANGERS, OURS]);
    let token = token(folder.path());
    let in_a_moment = Instant::now() + seconds() / 5;
    let normal = times(&program, &token, in_a_moment).await.unwrap();
    let watched = program.client.get(format!("{}/events/stream", program.url));
    let mut watched = watched.bearer_auth(&token).send().await.unwrap();
    watched.chunk().await.unwrap().unwrap();

    let rest = resident_kib(&program);
    let coordinator = program.url.strip_prefix("https://").unwrap();
    let strangers = Strangers {
        coordinator: coordinator.parse().unwrap(),
        tls: believing(folder.path()),
        kind: None,
        until: Instant::now(),
    };
    for kind in kinds() {
        let until = Instant::now() + seconds();
        let strangers = attack(Strangers {
            kind,
            until,
            ..strangers.clone()
        });
        let attacked = times(&program, &token, until);
        let most = most_held(&program, until).await;
        let attacked = attacked.await.unwrap();
        strangers.await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let afterwards = until_at_most(&program, rest + MOST_AFTERWARDS, deadline).await;
        say(&format!(
            "{}: at rest {rest} KiB, attacked {most} KiB, afterwards {afterwards} KiB; p50 and \
             p99 {normal:?} normally, {attacked:?} attacked",
            kind.map_or("all kinds".to_owned(), |kind| format!("{kind:?} alone"))
        ));
        assert!(
            most <= rest + MOST_WHILE_IT_LASTS,
            "{rest} KiB, then {most} KiB"
        );
        assert!(
            afterwards <= rest + MOST_AFTERWARDS,
            "{rest} KiB, afterwards {afterwards} KiB"
        );
        // A build with debug assertions takes long for each of the strangers' handshakes.
        assert!(
            attacked[1] < Duration::from_secs(1),
            "{normal:?}, then {attacked:?}"
        );
    }
    watched
        .chunk()
        .await
        .unwrap()
        .expect("who watches was cut off");
}
