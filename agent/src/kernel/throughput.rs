//! Measures what a tunnel carries: one gateway sends over TCP for two seconds, and the other
//! counts, throws away, and tells.
//!
//! Whoever counts sends 17 bytes in all, so nobody makes it send much; it listens where probes
//! arrive, and counts for one peer at a time.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;
use wattle_wire::probe::{PROBE_PORT, Throughput};

/// How long it is counted.
const COUNTED: Duration = Duration::from_secs(2);
/// Bytes after which it is counted no longer: two seconds of 4 Gbit/s.
const MOST_BYTES: u64 = 1 << 30;
/// How long a step may take beside the counting itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long who calls waits for its turn.
const TURN: Duration = Duration::from_secs(15);
/// Callers that wait; more are turned away by the system.
const MOST_WAITING: i32 = 8;
/// How long to wait before the socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// Bytes that are read and written at a time.
const CHUNK: usize = 256 * 1024;

/// Counts for peers, on the tunnel address and what comes through the interface alone, for as long
/// as it is polled.
pub(crate) async fn count_for(
    interface: &str,
    address: Ipv4Addr,
    is_peer: impl Fn(Ipv4Addr) -> bool,
) -> Infallible {
    loop {
        let served = async {
            let listener = listen(interface, address)?;
            loop {
                let (stream, from) = listener.accept().await?;
                // Whoever is no peer is not even told that somebody is here.
                if matches!(from, SocketAddr::V4(from) if is_peer(*from.ip()))
                    && let Err(error) = count(stream).await
                {
                    debug!(%from, "a measurement failed: {error}");
                }
            }
        };
        let Err::<Infallible, io::Error>(error) = served.await;
        debug!("cannot let peers measure now: {error}");
        sleep(REOPEN).await;
    }
}

fn listen(interface: &str, address: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::IPV4,
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(address, PROBE_PORT).into())?;
    socket.listen(MOST_WAITING)?;
    TcpListener::from_std(socket.into())
}

/// Says that it is the caller's turn, counts what comes, and tells how much it was.
async fn count(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    stream.write_all(&[Throughput::TURN]).await?;
    let mut bytes = timeout(ANSWER_LIMIT, stream.read(&mut buffer)).await?? as u64;
    let start = Instant::now();
    while bytes > 0 && bytes < MOST_BYTES {
        match timeout_at(start + COUNTED, stream.read(&mut buffer)).await {
            Ok(Ok(more)) if more > 0 => bytes += more as u64,
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => break,
        }
    }
    let throughput = Throughput {
        bytes,
        microseconds: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
    };
    stream.write_all(&throughput.to_bytes()).await?;
    // What is still on its way would otherwise be answered with a reset, which could overtake the
    // answer.
    let rest = async { while stream.read(&mut buffer).await.is_ok_and(|more| more > 0) {} };
    let _ = timeout(ANSWER_LIMIT, rest).await;
    Ok(())
}

/// Sends to a peer from one's own tunnel address for as long as it counts, and gives what it
/// counted.
///
/// # Errors
///
/// When the peer does not count, in words for people.
pub(crate) async fn measure(from: Ipv4Addr, to: Ipv4Addr) -> anyhow::Result<Throughput> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(from, 0).into())?;
    let connecting = socket.connect(SocketAddrV4::new(to, PROBE_PORT).into());
    let stream = match timeout(ANSWER_LIMIT, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            bail!("its agent does not run, or is older than this one")
        }
        Ok(Err(error)) => return Err(error).context("cannot connect to it"),
        Err(_) => {
            bail!("TCP port {PROBE_PORT} does not answer: allow it on the tunnel's interface there")
        }
    };
    // What is left to send when the answer is there is thrown away: a slow link would carry it for
    // a while yet.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let (mut incoming, mut outgoing) = stream.into_split();
    let turn = timeout(TURN, incoming.read_u8())
        .await
        .context("it is busy with another measurement: try again")?;
    anyhow::ensure!(
        turn.context("it refuses to measure with this gateway")? == Throughput::TURN,
        "something else answers on its port {PROBE_PORT}"
    );
    let zeros = vec![0; CHUNK];
    let send = async {
        loop {
            outgoing.write_all(&zeros).await?;
        }
    };
    let mut answer = [0; Throughput::LENGTH];
    let measured = async {
        tokio::select! {
            answered = incoming.read_exact(&mut answer) => answered.map(drop),
            Err::<Infallible, io::Error>(error) = send => Err(error),
        }
    };
    timeout(COUNTED + ANSWER_LIMIT, measured)
        .await
        .context("it did not say how much arrived")?
        .context("the connection broke")?;
    Ok(Throughput::from_bytes(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_is_counted_for_and_nobody_else_and_one_who_sends_nothing_holds_up_others_for_moments()
     {
        let [one, other, stranger] = [2, 3, 4].map(|last| Ipv4Addr::new(127, 88, 0, last));
        let counting = count_for("lo", other, |from| from == one);
        let measuring = async {
            let address = SocketAddrV4::new(other, PROBE_PORT).into();
            let error = loop {
                // Until it listens.
                let error = format!("{:#}", measure(stranger, other).await.unwrap_err());
                if !error.contains("does not run") {
                    break error;
                }
            };
            assert!(
                error.starts_with("it refuses to measure with this gateway"),
                "{error}"
            );
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddrV4::new(one, 0).into()).unwrap();
            let mut silent = socket.connect(address).await.unwrap();
            assert_eq!(silent.read_u8().await.unwrap(), Throughput::TURN);
            let start = Instant::now();
            let counted = measure(one, other).await.unwrap();
            assert!(
                start.elapsed() < ANSWER_LIMIT + COUNTED + ANSWER_LIMIT,
                "{:?}",
                start.elapsed()
            );
            let took = Duration::from_micros(counted.microseconds);
            assert!(
                counted.bytes > 1 << 20
                    && counted.bytes < MOST_BYTES + CHUNK as u64
                    && took < COUNTED + ANSWER_LIMIT,
                "{counted:?}"
            );
        };
        tokio::select! {
            never = counting => match never {},
            () = measuring => {}
        }
    }
}
