//! What strangers may cost: their work takes turns, so that a thousand handshakes or requests at
//! once keep nobody else waiting, and what a handshake may say is little.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_util::sync::PollSemaphore;

use super::connection::Connection;

/// What a client may say before its handshake is done, in bytes: several times what any says.
const LONGEST: usize = 16 * 1024;

/// A socket that takes in little before the handshake on it is done.
#[derive(Debug)]
pub(super) struct Socket {
    socket: TcpStream,
    /// How many bytes may still come; `None` once there is no limit.
    left: Option<usize>,
}

impl Socket {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            left: Some(LONGEST),
        }
    }

    pub(super) fn set_open(&mut self) {
        self.left = None;
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        if let Some(left) = &mut self.left {
            let read = buffer.filled().len() - before;
            *left = left
                .checked_sub(read)
                .ok_or_else(|| io::Error::other("the handshake is too long"))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// As many turns at a time as leave a processor to others, where there are several.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, |number| number.get());
        Self(Arc::new(Semaphore::new(
            processors.saturating_sub(1).max(1),
        )))
    }

    /// Does the work of a connection, each step of it in its turn, for as long as it is a stranger's.
    /// While it waits for the other side it holds up nobody.
    pub(super) async fn run<T>(&self, connection: &Connection, work: impl Future<Output = T>) -> T {
        let mut turns = Some(PollSemaphore::new(Arc::clone(&self.0)));
        let mut waiting = None;
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            // Who is no stranger any more leaves the queue: a turn that is given to somebody who
            // does not come for it is lost.
            turns = turns.take().filter(|_| !connection.is_authenticated());
            let turn = match &mut turns {
                Some(turns) => match turns.poll_acquire(context) {
                    Poll::Ready(turn) => turn,
                    Poll::Pending => {
                        waiting.get_or_insert_with(|| connection.waiting());
                        return Poll::Pending;
                    }
                },
                None => None,
            };
            waiting = None;
            let step = work.as_mut().poll(context);
            if let Some(turn) = turn {
                connection.end_turn(turn);
            }
            step
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use tokio::time::timeout;
    use uuid::Uuid;
    use wattle_wire::ids::NodeId;

    use super::*;
    use crate::{
        http::listen::limiter::ConnectionLimiter,
        state::{
            origin::Origin,
            shares::{Credential, Shares},
        },
    };

    #[tokio::test]
    async fn work_that_waits_holds_up_nobody_and_work_that_is_given_up_neither() {
        let limiter = ConnectionLimiter::new(1000, 1);
        let stranger = || {
            let origin = Origin::of(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
            Connection::new(origin, limiter.add(origin))
        };
        let share = Shares::default().of(Credential::Node(NodeId(Uuid::nil())));
        let (one, other, proven) = (stranger(), stranger(), stranger());
        assert!(proven.set_authenticated(&share));

        let turns = Turns::new();
        let waits: Vec<_> = (0..100)
            .map(|_| Box::pin(turns.run(&one, pending::<()>())))
            .collect();
        let mut waits = futures_util::future::select_all(waits);
        assert!(timeout(Duration::ZERO, &mut waits).await.is_err());
        assert_eq!(
            timeout(Duration::from_secs(10), turns.run(&one, async { 7 })).await,
            Ok(7)
        );
        let all = turns.0.available_permits();
        let busy = turns.0.try_acquire_many(all.try_into().unwrap());
        let step = |connection| timeout(Duration::ZERO, turns.run(connection, async { 7 }));
        assert!(step(&one).await.is_err() && step(&proven).await.is_ok());
        // One that waits for its turn and then is no stranger any more leaves it to others.
        let mut waits_for_turn = pin!(turns.run(&other, pending::<()>()));
        assert!(timeout(Duration::ZERO, &mut waits_for_turn).await.is_err());
        assert!(other.set_authenticated(&share));
        drop((busy, waits));
        assert!(timeout(Duration::ZERO, &mut waits_for_turn).await.is_err());
        assert_eq!(
            timeout(Duration::from_secs(10), turns.run(&one, async { 7 })).await,
            Ok(7)
        );
    }
}
