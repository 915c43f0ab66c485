//! The open streams of nodes: what others tell them, and the texts that they share.

pub mod text;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use wattle_wire::{ids::NodeId, stream::HEARTBEAT_S};

use self::text::Texts;

const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_S);
/// Signs of life are due at multiples of this: of thousands of streams hundreds at one moment, so
/// that the coordinator need not wake up for each.
const BEAT: Duration = Duration::from_millis(250);
/// The open streams: one per node, the newest wins.
#[derive(Debug)]
pub struct Streams {
    open: Mutex<HashMap<NodeId, Open>>,
    pub texts: Texts,
    /// From when on beats are counted.
    began: Instant,
}

/// An open stream, as others see it.
#[derive(Clone, Debug, Default)]
pub struct Open {
    pub superseded: CancellationToken,
    pub mail: Arc<Notify>,
    /// The newest letter that the node was told of.
    told: i64,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            texts: Texts::default(),
            began: Instant::now(),
        }
    }
}

impl Streams {
    /// When a stream on which something is said now has to show its next sign of life: at the last
    /// beat before `HEARTBEAT` is over.
    pub fn heartbeat_after(&self, now: Instant) -> Instant {
        let limit = now + HEARTBEAT;
        let since_beat = (limit - self.began).as_nanos() % BEAT.as_nanos();
        limit - Duration::from_nanos(u64::try_from(since_beat).unwrap_or_default())
    }

    /// Whether a node has an open stream with this coordinator.
    pub fn is_open(&self, node: NodeId) -> bool {
        self.lock().contains_key(&node)
    }

    /// Tells nodes of the newest letter that waits for each, if it has an open stream here and was
    /// not told of this one. Whether any was told.
    pub fn tell_of_messages(&self, newest: Vec<(NodeId, i64)>) -> bool {
        let (mut streams, mut told_any) = (self.lock(), false);
        for (node, letter) in newest {
            if let Some(open) = streams.get_mut(&node).filter(|open| open.told < letter) {
                open.told = letter;
                open.mail.notify_one();
                told_any = true;
            }
        }
        told_any
    }

    /// Registers a stream and ends the one that the node had before.
    pub fn open(&self, node: NodeId) -> Open {
        let open = Open::default();
        if let Some(older) = self.lock().insert(node, open.clone()) {
            older.superseded.cancel();
        }
        open
    }

    pub fn close(&self, node: NodeId, superseded: &CancellationToken) {
        // A newer stream has cancelled this one and put itself in its place.
        if !superseded.is_cancelled() {
            self.lock().remove(&node);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_are_due_together_and_never_late() {
        let streams = Streams::default();
        let spoke = |ms| streams.began + Duration::from_millis(ms);
        let due: Vec<_> = [0, 249, 250, 499]
            .map(|ms| streams.heartbeat_after(spoke(ms)))
            .into();
        assert_eq!(
            due,
            [spoke(15_000), spoke(15_000), spoke(15_250), spoke(15_250)]
        );
    }
}
