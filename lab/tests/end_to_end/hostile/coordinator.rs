//! A coordinator in the wrong hands: it has the certificate authority of the mesh.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chrono::DateTime;
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::TLS13,
};
use serde_json::Value;
use wattle_lab::{Host, coordinator};
use wattle_wire::key::Bytes32;

use super::draw::{Liar, unix_s};

/// How long a body or a line without end goes on.
const ENDLESS: Duration = Duration::from_secs(3);
const BLOCK: usize = 64 << 10;

/// It answers until it is dropped.
#[derive(Debug)]
pub(crate) struct Hostile {
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// How many messages and answers were sent.
    sent: AtomicU64,
    tls: Arc<ServerConfig>,
    /// By the address of the gateway.
    liars: BTreeMap<Ipv4Addr, Mutex<Liar>>,
}

type Connection = StreamOwned<ServerConnection, TcpStream>;

impl Hostile {
    /// Takes the place of the coordinator, with its authority.
    pub(crate) fn start(
        host: &Host,
        authority: &str,
        liars: BTreeMap<Ipv4Addr, Mutex<Liar>>,
    ) -> Result<Self> {
        let address = SocketAddr::new(coordinator::ADDRESS.into(), coordinator::PORT);
        let listener = host.in_its_network(|| Ok(TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            tls: Arc::new(tls(authority)?),
            liars,
        });
        let accepts = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self {
            shared,
            accepts: Some(accepts),
        })
    }

    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(accepts) = self.accepts.take() {
            // It has nothing to say.
            let _ = accepts.join();
        }
    }
}

/// How to speak TLS as a coordinator of the mesh whose authority this is, in PEM.
fn tls(authority: &str) -> Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(authority.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(authority.as_bytes())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Wattle");
    let issuer = Issuer::new(params, KeyPair::try_from(&key)?);
    let own = KeyPair::generate()?;
    let params = CertificateParams::new([coordinator::ADDRESS.to_string()])?;
    let signed = params.signed_by(&own, &issuer)?;
    let chain = vec![signed.der().clone(), certificate];
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, own.into())?;
    Ok(config)
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut connections = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, from)) => {
                    let shared = Arc::clone(self);
                    connections.push(thread::spawn(move || {
                        // The gateway hangs up when it likes.
                        let _ = shared.serve(stream, from.ip());
                    }));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
            connections.retain(|connection| !connection.is_finished());
        }
        for connection in connections {
            let _ = connection.join();
        }
    }

    fn serve(&self, stream: TcpStream, from: IpAddr) -> Result<()> {
        let IpAddr::V4(from) = from else {
            return Ok(());
        };
        let liar = self.liars.get(&from).context("nobody's address")?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        let session = ServerConnection::new(Arc::clone(&self.tls))?;
        let mut connection = BufReader::new(StreamOwned::new(session, stream));
        while let Some(path) = read_request(&mut connection)? {
            let connection = connection.get_mut();
            let (path, query) = path.split_once('?').unwrap_or((&path, ""));
            if path == "/agent/stream" {
                lock(liar).begin(query.strip_prefix("since="));
                return self.stream(connection, liar);
            }
            self.answer(connection, liar, path)?;
        }
        Ok(())
    }

    fn answer(&self, to: &mut Connection, liar: &Mutex<Liar>, path: &str) -> Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let (head, body, kind) = {
            let mut liar = lock(liar);
            let status = match liar.dice.below(8) {
                0 => "401 Unauthorized",
                1 => "500 Internal Server Error",
                2 => "204 No Content",
                _ => "200 OK",
            };
            let head = format!("HTTP/1.1 {status}\r\n{}", headers(&mut liar));
            (head, liar.answer(path), liar.dice.below(12))
        };
        match kind {
            0 => {
                to.write_all(head.as_bytes())?;
                to.write_all(b"content-length: 1000000000000\r\n\r\n")?;
                self.endless(to, b"[[[[{\"a\":\"")
            }
            1 => {
                to.write_all(head.as_bytes())?;
                to.write_all(b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n")?;
                self.endless(to, b"ffffffffffff\r\n\x1f\x8b")
            }
            2 => self.endless(to, format!("{head}x-endless: ").as_bytes()),
            _ if head.contains(" 204 ") => Ok(to.write_all(format!("{head}\r\n").as_bytes())?),
            _ => {
                let body = body.to_string();
                let head = format!("{head}content-length: {}\r\n\r\n", body.len());
                to.write_all(head.as_bytes())?;
                Ok(to.write_all(body.as_bytes())?)
            }
        }
    }

    fn stream(&self, to: &mut Connection, liar: &Mutex<Liar>) -> Result<()> {
        let head = {
            let mut liar = lock(liar);
            format!("HTTP/1.1 200 OK\r\n{}", headers(&mut liar))
        };
        to.write_all(head.as_bytes())?;
        to.write_all(b"content-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
        while !self.stop.load(Ordering::Relaxed) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            let (message, kind) = {
                let mut liar = lock(liar);
                (liar.message()?, liar.dice.below(60))
            };
            match kind {
                0 => return self.endless(to, b"data: {\"type\":\"snapshot\",\"view\":[["),
                1 => return self.endless(to, b"\n:\n\n"),
                2 => return Ok(()),
                3 => to.write_all(b"data: {\"type\":\"delta\"}\n\n")?,
                _ => self.say(to, &message)?,
            }
            thread::sleep(Duration::from_millis(40));
        }
        Ok(())
    }

    fn say(&self, to: &mut Connection, message: &Value) -> Result<()> {
        to.write_all(format!("data: {message}\n\n").as_bytes())?;
        Ok(to.flush()?)
    }

    /// Begins something and never ends it.
    fn endless(&self, to: &mut Connection, begin: &[u8]) -> Result<()> {
        to.write_all(begin)?;
        let pattern: &[u8] = if begin == b"\n:\n\n" {
            b"\n:\n\n"
        } else {
            b"[0,0,["
        };
        let block: Vec<u8> = pattern.iter().copied().cycle().take(BLOCK).collect();
        let begun = Instant::now();
        while begun.elapsed() < ENDLESS && !self.stop.load(Ordering::Relaxed) {
            to.write_all(&block)?;
        }
        Ok(())
    }
}

/// Headers of an answer: a wrong time, and other authorities.
fn headers(liar: &mut Liar) -> String {
    const YEAR_S: i64 = 365 * 86_400;
    let off = liar.dice.of(&[
        0,
        0,
        60,
        -60,
        86_400,
        -86_400,
        YEAR_S,
        -40 * YEAR_S,
        70 * YEAR_S,
    ]);
    let date = DateTime::from_timestamp(unix_s() + off, 0).unwrap_or_default();
    let mut headers = format!("date: {}\r\n", date.format("%a, %d %b %Y %H:%M:%S GMT"));
    if liar.dice.one_in(3) {
        let pins = 1 + liar.dice.below(12);
        let pins: Vec<_> = (0..pins)
            .map(|_| Bytes32::from(liar.dice.bytes()).to_string())
            .collect();
        headers += &format!("wattle-pins: {}\r\n", pins.join(","));
    }
    headers
}

/// The path of a request, whose body is read to its end; `None` at the end of the connection.
fn read_request(from: &mut BufReader<Connection>) -> Result<Option<String>> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        if path.is_none() {
            path = line.split(' ').nth(1).map(str::to_owned);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length:") {
            length = bytes.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(path)
}

fn lock(liar: &Mutex<Liar>) -> MutexGuard<'_, Liar> {
    liar.lock().unwrap_or_else(PoisonError::into_inner)
}
