//! Accepts connections, and lets go of them when they do not prove who they are, when their other
//! side is dead or the coordinator stops.

mod bodies;
mod connection;
mod limiter;
mod strangers;
mod streams;

use std::{convert::Infallible, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use wattle_wire::stream::SILENCE_S;

pub use self::connection::Connection;
use self::{
    bodies::{Answer, RequestBody},
    connection::{IDLE, asks_for_leave},
    limiter::ConnectionLimiter,
    strangers::{Socket, Turns},
    streams::StreamExecutor,
};
use crate::{
    config::Config,
    http::audience::RouteAudience,
    state::{origin::Origin, shares::SharePlace},
    tls::certificate::HTTP2,
};

/// How long requests that are under way may take once the coordinator stops.
const GRACE: Duration = Duration::from_secs(5);
/// The same once the credential of a connection has ended.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a connection may take to prove who it is: TLS handshake, headers and a valid
/// credential.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(8);
/// After how much silence of the other side it is asked whether it is there, and for how long its
/// answer is waited for. Both together are less than a minute.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the kernel asks within that time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// What the kernel keeps for a reader that is slow, in bytes (it doubles it); left to itself it
/// would keep megabytes for each. On a path of 100 ms it still lets two megabytes pass in a second.
const SEND_BUFFER: usize = 128 * 1024;
/// Connections that may wait to be accepted; the kernel caps it (`net.core.somaxconn`).
const BACKLOG: u32 = 65_535;
/// How long to wait when the system has no more connections to give.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// Open files that are kept for the database, logs and certificates.
const FILES_OF_OUR_OWN: u64 = 128;
/// Streams of one HTTP/2 connection at a time.
const MOST_STREAMS: u32 = 64;
/// The largest headers of a request, in bytes.
const LARGEST_HEADERS: u32 = 16 * 1024;
/// What one HTTP/2 stream may have under way in either direction, in bytes, and a connection, too: the
/// least that HTTP/2 allows. On a path of 100 ms it still lets half a megabyte pass in a second.
const WINDOW: u32 = 64 * 1024;
/// What is kept of an answer, encrypted or not, for a reader that is slow, in bytes.
const UNSENT: usize = 16 * 1024;

/// Binds the address; port 0 takes a free one.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        // What the kernel has acknowledged is what we answer for: a queue that overflows leaves
        // clients with connections that nobody has.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("cannot listen on {address}"))
}

/// Where the coordinator is reached.
#[derive(Debug)]
pub struct Listeners {
    /// For agents, and for all that has no listener of its own.
    pub agents: TcpListener,
    /// For people and scripts alone.
    pub admin: Option<TcpListener>,
    /// For metrics alone.
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Binds what the settings ask for.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            agents: bind(config.listen)?,
            admin: config.admin_listen.map(bind).transpose()?,
            metrics: config.metrics_listen.map(bind).transpose()?,
        })
    }

    /// Each listener and what it is for, that of agents first.
    pub(crate) fn each(self) -> Vec<(TcpListener, Vec<RouteAudience>)> {
        let mut all = vec![(self.agents, vec![RouteAudience::Agents])];
        for (listener, audience) in [
            (self.admin, RouteAudience::Admin),
            (self.metrics, RouteAudience::Metrics),
        ] {
            match listener {
                Some(listener) => all.push((listener, vec![audience])),
                None => all[0].1.push(audience),
            }
        }
        all
    }
}

impl From<TcpListener> for Listeners {
    /// One for all.
    fn from(agents: TcpListener) -> Self {
        Self {
            agents,
            admin: None,
            metrics: None,
        }
    }
}

/// Serves until the coordinator stops. Of the connections that the system allows, this listener has
/// its share, one of so many.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shares: usize,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let server = Arc::new(Server {
        tls: tls.map(TlsAcceptor::from),
        turns: Turns::new(),
        http1: http1(),
        router,
        stop,
    });
    let limiter = ConnectionLimiter::new(most_connections()?, shares);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = async { limiter.room().await; listener.accept().await } => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                set_options(&socket);
                let origin = Origin::of(address.ip());
                let connection = Arc::new(Connection::new(origin, limiter.add(origin)));
                connections.spawn(Arc::clone(&server).serve_connection(socket, connection));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(EXHAUSTED).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
    Ok(())
}

/// What all connections share.
struct Server {
    tls: Option<TlsAcceptor>,
    turns: Turns,
    http1: http1::Builder,
    router: Router,
    stop: CancellationToken,
}

impl Server {
    async fn serve_connection(self: Arc<Self>, socket: TcpStream, connection: Arc<Connection>) {
        let serving = self
            .turns
            .run(&connection, self.serve_http(socket, &connection));
        let why = tokio::select! {
            biased;
            () = connection.evicted() => Some("there are too many without a credential, or they \
                hold too much"),
            () = serving => None,
            () = unauthenticated(&connection) => Some("it showed no credential in time"),
            () = connection.unread() => Some("an answer was not read in time"),
        };
        connection.gone();
        if let Some(why) = why {
            tracing::debug!(why, "closed a connection");
        }
    }

    async fn serve_http(self: &Arc<Self>, socket: TcpStream, connection: &Arc<Connection>) {
        let service = service_fn(|request| {
            let answer = Answer::new(Arc::clone(connection), connection.begin(&request));
            Arc::clone(self).answer(request, Arc::clone(connection), answer)
        });
        let Some(tls) = &self.tls else {
            let serving = self.http1.serve_connection(TokioIo::new(socket), service);
            return self.run_until_stopped(Box::pin(serving), connection).await;
        };
        // What a handshake takes of memory it gives back: the connection that comes of it may idle
        // for months.
        let socket = match Box::pin(self.shake_hands(tls, socket)).await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "the TLS handshake failed"),
        };
        let is_http2 = socket.get_ref().1.alpn_protocol() == Some(HTTP2);
        let socket = TokioIo::new(socket);
        if is_http2 {
            let (executor, streams) = streams::of(Arc::clone(connection));
            let serving = http2(executor).serve_connection(socket, service);
            tokio::select! {
                () = self.run_until_stopped(Box::pin(serving), connection) => {}
                () = streams.run() => {}
            }
        } else {
            let serving = self.http1.serve_connection(socket, service);
            self.run_until_stopped(Box::pin(serving), connection).await;
        }
    }

    /// Answers a request.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
        answer: Answer,
    ) -> Result<Response<Body>, Infallible> {
        let wanted = !asks_for_leave(&request);
        let mut request =
            request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&connection), wanted)));
        request.extensions_mut().insert(Arc::clone(&connection));
        let mut response = self.router.clone().oneshot(request).await?;
        let place = response.extensions_mut().remove::<Arc<SharePlace>>();
        Ok(response.map(|body| Body::new(answer.with(body, place))))
    }

    async fn shake_hands(
        &self,
        tls: &TlsAcceptor,
        socket: TcpStream,
    ) -> io::Result<Box<TlsStream<Socket>>> {
        let handshake = tls.accept_with(Socket::new(socket), |tls| {
            tls.set_buffer_limit(Some(UNSENT));
        });
        let mut socket = handshake.await.map(Box::new)?;
        socket.get_mut().0.set_open();
        Ok(socket)
    }

    async fn run_until_stopped<C: GracefulConnection<Error = hyper::Error>>(
        &self,
        mut running: Pin<Box<C>>,
        connection: &Connection,
    ) {
        let grace = tokio::select! {
            result = running.as_mut() => return log(result),
            () = self.stop.cancelled() => GRACE,
            () = connection.idle() => GRACE,
            // Of many machines with one join string all hear that another was first.
            () = connection.disowned() => if connection.joins() { GRACE } else { FAREWELL },
        };
        running.as_mut().graceful_shutdown();
        match timeout(grace, running).await {
            Ok(result) => log(result),
            Err(_) if self.stop.is_cancelled() => {
                tracing::warn!("stopping: requests that are still running are cut off");
            }
            Err(_) => tracing::debug!("cut off what was still running on a connection"),
        }
    }
}

fn log(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Waits until a connection has had its time and proved nothing; for ever if it proves itself.
async fn unauthenticated(connection: &Connection) {
    sleep(AUTHENTICATION_TIMEOUT).await;
    if connection.is_authenticated() {
        std::future::pending::<Infallible>().await;
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(LARGEST_HEADERS as usize);
    builder
}

fn http2(executor: StreamExecutor) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LARGEST_HEADERS);
    // h2 itself ends a connection on floods of resets and of empty frames; these are the bounds.
    builder
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(64);
    builder
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(UNSENT);
    builder
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}

fn set_options(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(2);
    // A heartbeat that nobody acknowledges is how a dead agent is noticed.
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(Duration::from_secs(SILENCE_S))))
        .and_then(|()| socket.set_send_buffer_size(SEND_BUFFER));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}

/// How many connections may be open: what the system lets this process have, less what it needs
/// itself.
fn most_connections() -> anyhow::Result<usize> {
    let (_, most) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .context("cannot raise the limit of open files")?;
    Ok(usize::try_from(most.saturating_sub(FILES_OF_OUR_OWN).max(1)).unwrap_or(usize::MAX))
}
