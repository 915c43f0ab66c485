//! The bodies of requests and answers, counted as they pass.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes},
};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::{runtime::Handle, time::timeout};

use super::connection::Connection;
use crate::state::shares::SharePlace;

/// The most of an answer that is handed to the other side at a time, in bytes: so much lies in
/// memory for one that reads nothing.
const PIECE: usize = 16 * 1024;
/// How much of a body that nobody wants is read and thrown away, in bytes, and for how long.
const MOST_THROWN_AWAY: usize = 8 * 1024 * 1024;
const LONGEST_THROWING: Duration = Duration::from_secs(8);

/// The body of a request.
///
/// Of one that is dropped early the rest is read and thrown away: who is cut off while sending
/// seldom sees the answer.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Option<Incoming>,
    connection: Arc<Connection>,
    /// What of it counts, in bytes; `None` once the connection has proved something.
    held: usize,
    wanted: bool,
}

impl RequestBody {
    /// `wanted`: the rest is read even if the handler drops it.
    pub(super) fn new(body: Incoming, connection: Arc<Connection>, wanted: bool) -> Self {
        Self {
            body: Some(body),
            connection,
            held: 0,
            wanted,
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !self.connection.is_authenticated()
        {
            self.held += data.len();
            self.connection.hold(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.connection.release(self.held);
        if self.wanted
            && let Some(body) = self.body.take().filter(|body| !body.is_end_stream())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(LONGEST_THROWING, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut length = 0;
    while length <= MOST_THROWN_AWAY {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let Some(Ok(frame)) = next.await else { return };
        length += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// An answer that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    connection: Arc<Connection>,
    number: u64,
}

impl Answer {
    pub(super) fn new(connection: Arc<Connection>, number: u64) -> Self {
        Self { connection, number }
    }

    /// With its body, and the place that it takes until it was read.
    pub(super) fn with(self, body: Body, place: Option<Arc<SharePlace>>) -> AnswerBody {
        self.connection.handed(self.number, true);
        AnswerBody {
            body,
            rest: Bytes::new(),
            answer: self,
            _place: place,
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.end(self.number);
    }
}

/// The body of an answer, in pieces. It is asked for the next one when the other side has taken
/// what it was sent.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    rest: Bytes,
    answer: Answer,
    _place: Option<Arc<SharePlace>>,
}

impl AnswerBody {
    fn next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = self.next(context);
        let Answer { connection, number } = &self.answer;
        connection.handed(*number, next.is_ready());
        next.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
