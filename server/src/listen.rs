//! Accepts connections, and lets go of them when their other side is dead or the coordinator stops.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use axum::{Router, serve::ListenerExt};
use socket2::SockRef;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use wattle_wire::stream::SILENCE_S;

/// How long requests that are under way may take once the coordinator stops.
const GRACE: Duration = Duration::from_secs(5);

/// Binds the address; port 0 takes a free one.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Serves until the coordinator stops.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listener.tap_io(|connection| {
        let socket = SockRef::from(&*connection);
        // A heartbeat that nobody acknowledges is how a dead agent is noticed.
        let set = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(Duration::from_secs(SILENCE_S))));
        if let Err(error) = set {
            tracing::debug!(%error, "cannot set the options of a connection");
        }
    });
    let stopped = stop.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
    tokio::select! {
        result = server.into_future() => result.context("cannot serve"),
        () = after(&stop, GRACE) => {
            tracing::warn!("requests that are still under way are cut off");
            Ok(())
        }
    }
}

async fn after(stop: &CancellationToken, grace: Duration) {
    stop.cancelled().await;
    sleep(grace).await;
}
