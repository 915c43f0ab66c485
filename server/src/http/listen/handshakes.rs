//! Work that is heavy for the processor takes turns, so that a thousand handshakes at once keep
//! nobody else waiting.

use std::{pin::pin, sync::Arc, task::ready, thread};

use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

/// As many turns at a time as leave a processor to others, where there are several.
#[derive(Debug)]
pub(super) struct HandshakeLimiter(Arc<Semaphore>);

impl HandshakeLimiter {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, |number| number.get());
        Self(Arc::new(Semaphore::new(
            processors.saturating_sub(1).max(1),
        )))
    }

    /// Does the work, each step of it in its turn. While the work waits for the other side it holds
    /// up nobody.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let mut turns = PollSemaphore::new(Arc::clone(&self.0));
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            let _turn = ready!(turns.poll_acquire(context));
            work.as_mut().poll(context)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn work_that_waits_holds_up_nobody_and_work_that_is_given_up_neither() {
        let limiter = HandshakeLimiter::new();
        let waits: Vec<_> = (0..100)
            .map(|_| Box::pin(limiter.run(std::future::pending::<()>())))
            .collect();
        let mut waits = futures_util::future::select_all(waits);
        assert!(timeout(Duration::ZERO, &mut waits).await.is_err());
        assert_eq!(
            timeout(Duration::from_secs(10), limiter.run(async { 7 })).await,
            Ok(7)
        );
        drop(waits);
        assert_eq!(
            timeout(Duration::from_secs(10), limiter.run(async { 7 })).await,
            Ok(7)
        );
    }
}
