//! Where the streams of an HTTP/2 connection run.
//!
//! Those of a stranger run within the connection's own task: they have its turns, and end with it at
//! once. Each as a task of its own, thousands would keep all others from the processor, and what
//! they hold would outlive a connection that was closed for it.

use std::{pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::rt::Executor;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::connection::Connection;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    connection: Arc<Connection>,
    streams: UnboundedSender<Work>,
}

/// Those that run within the task of their connection.
#[derive(Debug)]
pub(super) struct Streams(UnboundedReceiver<Work>);

pub(super) fn of(connection: Arc<Connection>) -> (StreamExecutor, Streams) {
    // As many as HTTP/2 lets be open.
    let (streams, receiver) = mpsc::unbounded_channel();
    let executor = StreamExecutor {
        connection,
        streams,
    };
    (executor, Streams(receiver))
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        if self.connection.is_authenticated() {
            tokio::spawn(stream);
        } else {
            // The connection is closed where nobody takes it.
            let _ = self.streams.send(Box::pin(stream));
        }
    }
}

impl Streams {
    /// Runs them until it is dropped.
    pub(super) async fn run(mut self) {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(stream) = self.0.recv() => running.push(stream),
                Some(()) = running.next() => {}
                else => return,
            }
        }
    }
}
