//! Follows the coordinator's stream, and comes back when it breaks; keeps the view on disk.

use std::{
    fs,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::anyhow;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use wattle_client::{
    error::RequestError,
    node::{NodeClient, Signer},
};
use wattle_mesh::{
    agent::replica::Stored,
    backoff::{Pace, backoff},
    keys::node_keys::NodeKeys,
};
use wattle_wire::{ids::Position, stream::StreamMessage};

use crate::{
    config::Settings,
    control::{self, Confirmed, Request},
    identity::Membership,
    output, random,
    store::Store,
    underlay::UnderlayStore,
};

const VIEW: &str = "view.json";
const CONNECTION: &str = "connection.json";
/// 200 messages may come at once, and then one in each interval.
const INTERVAL: Duration = Duration::from_millis(50);
const BURST: Duration = Duration::from_secs(10);
/// So many messages may wait while another is dealt with.
pub(crate) const MOST_WAITING: usize = 64;
/// While a message waits that is longer than this, in bytes, no other is read.
const LONG: usize = 8 << 10;

/// What the follower tells the loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// The follower is about to connect, and asks from which position. All earlier messages were
    /// handled when this is.
    WhereFrom(oneshot::Sender<Option<Position>>),
    Connected,
    Message(StreamMessage),
    Disconnected {
        reason: String,
        /// Whether the coordinator does not know the node as who it says it is.
        is_stranger: bool,
    },
}

/// How the agent stands with the coordinator, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    pub(crate) connected: bool,
    pub(crate) url: String,
    /// Seconds since 1970.
    pub(crate) since: i64,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

pub(crate) fn load_view(store: &Store) -> anyhow::Result<Option<Stored>> {
    let read = store.read_or_previous_with(VIEW, Stored::read)?;
    Ok(read.map(|(stored, lost)| {
        if lost > 0 {
            tracing::warn!(
                "{lost} records of {VIEW} cannot be read, as a newer agent writes them: asking \
                the coordinator for all of them"
            );
        }
        stored
    }))
}

/// When the view on disk was written, in seconds since 1970.
pub(crate) fn view_written_at(store: &Store) -> Option<u64> {
    let written = fs::metadata(store.path(VIEW)).ok()?.modified().ok()?;
    Some(written.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

pub(crate) fn save_view(store: &Store, stored: &Stored) -> anyhow::Result<()> {
    store.write_keeping_previous(VIEW, stored)
}

pub(crate) fn forget_view(store: &Store) -> anyhow::Result<()> {
    store.remove_with_previous(VIEW)
}

/// `wattle-agent confirm`.
pub(crate) async fn confirm(settings: &Settings) -> anyhow::Result<()> {
    let Confirmed {
        removals,
        returned,
        rolled_back_to,
    } = control::ask_running(settings, Request::Confirm).await?;
    if removals.is_empty() && returned.is_empty() && rolled_back_to.is_none() {
        output::line("no removal waits to be confirmed");
    }
    for name in removals {
        output::line(format!("confirmed the removal of {name}"));
    }
    for name in returned {
        output::line(format!("confirmed that {name} is back"));
    }
    if let Some(position) = rolled_back_to {
        output::line(format!(
            "confirmed that the coordinator is followed from revision {position}"
        ));
    }
    Ok(())
}

pub(crate) fn load_connection(store: &Store) -> anyhow::Result<Option<Connection>> {
    store.read(CONNECTION)
}

pub(crate) fn save_connection(store: &Store, connection: &Connection) -> anyhow::Result<()> {
    store.write(CONNECTION, connection)
}

/// Follows the stream until the loop is gone. `reconnect` makes it leave a stream and come back at
/// once.
pub(crate) async fn follow(
    coordinator: Arc<NodeClient>,
    node_keys: Arc<NodeKeys>,
    membership: Membership,
    reconnect: Arc<Notify>,
    underlay: UnderlayStore,
    events: mpsc::Sender<Event>,
) {
    let mut failures = 0;
    loop {
        let (answer, position) = oneshot::channel();
        if events.send(Event::WhereFrom(answer)).await.is_err() {
            return;
        }
        let Ok(since) = position.await else { return };
        let once = once(
            &coordinator,
            membership.signer(&node_keys),
            since,
            &underlay,
            &events,
        );
        let ended = tokio::select! {
            ended = once => ended,
            // A coordinator whose snapshots are rejected is asked less and less often.
            () = reconnect.notified() => Err((false, anyhow!("a snapshot is needed"))),
        };
        let (reason, is_stranger) = match ended {
            Ok(()) => {
                failures = 0;
                ("the stream ended".to_owned(), false)
            }
            Err((was_open, error)) => {
                failures = if was_open { 0 } else { failures + 1 };
                (
                    format!("{error:#}"),
                    matches!(error.downcast_ref(), Some(RequestError::NotAMember)),
                )
            }
        };
        if events
            .send(Event::Disconnected {
                reason,
                is_stranger,
            })
            .await
            .is_err()
        {
            return;
        }
        tokio::time::sleep(backoff(failures, jitter())).await;
    }
}

/// Follows one stream to its end. An error says whether the stream had been open.
async fn once(
    coordinator: &NodeClient,
    signer: Signer<'_>,
    since: Option<Position>,
    underlay: &UnderlayStore,
    events: &mpsc::Sender<Event>,
) -> Result<(), (bool, anyhow::Error)> {
    let stream = coordinator
        .stream(signer, since)
        .await
        .map_err(|error| (false, error.into()))?;
    // Before anything that comes on the stream can lead its own packets into the tunnel.
    if let Some(address) = coordinator.address() {
        underlay.reached_coordinator(address).await;
    }
    let mut stream = std::pin::pin!(stream);
    let _ = events.send(Event::Connected).await;
    let mut is_silent = true;
    let (begun, mut pace) = (Instant::now(), Pace::new(BURST));
    while let Some(message) = stream.next().await {
        if message.is_err() && is_silent {
            coordinator.went_silent();
        }
        is_silent = false;
        let (message, length) = message.map_err(|error| (true, error))?;
        let ends = matches!(message, StreamMessage::Bye { .. });
        let sent = events.send(Event::Message(message)).await;
        if ends || sent.is_err() {
            break;
        }
        // The host follows the newest view, not each on the way there: what is short is read on
        // meanwhile.
        let room = if length > LONG { MOST_WAITING } else { 1 };
        let _ = events.reserve_many(room).await;
        pace.take(INTERVAL, begun.elapsed());
        tokio::time::sleep(pace.wait(begun.elapsed())).await;
    }
    Ok(())
}

/// Without random numbers the wait is the longest: slower, never a storm.
fn jitter() -> u32 {
    random::bytes().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes))
}
