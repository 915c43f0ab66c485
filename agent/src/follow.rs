//! Follows the coordinator's stream, and comes back when it breaks; keeps the view on disk.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::anyhow;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{Notify, mpsc, oneshot};
use wattle_mesh::{
    agent::replica::{Replica, Stored},
    backoff::backoff,
    keys::node_keys::NodeKeys,
};
use wattle_wire::{
    ids::{NodeId, Position},
    stream::StreamMessage,
};

use crate::{
    config::Paths,
    coordinator::{Coordinator, RequestError},
    identity::Membership,
    output, random,
    store::Store,
};

const VIEW: &str = "view.json";
const CONNECTION: &str = "connection.json";
/// Peers whose removal somebody confirmed, for the running agent to take up.
const CONFIRMED: &str = "confirmed.json";
/// The position of a coordinator that is behind, once somebody wants it to be followed from there.
const FOLLOWED_BACK: &str = "followed-back.json";

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
    store.read_or_previous(VIEW)
}

pub(crate) fn save_view(store: &Store, stored: &Stored) -> anyhow::Result<()> {
    store.write_keeping_previous(VIEW, stored)
}

pub(crate) fn forget_view(store: &Store) -> anyhow::Result<()> {
    store.remove_with_previous(VIEW)
}

/// What somebody confirmed on this gateway.
#[derive(Debug)]
pub(crate) struct Confirmed {
    removals: BTreeSet<NodeId>,
    rolled_back_to: Option<Position>,
}

impl Confirmed {
    /// Whether there was something that waited for it.
    pub(crate) fn carry_out(&self, replica: &mut Replica) -> bool {
        let back = self.rolled_back_to;
        let is_back = back.is_some_and(|position| replica.follow_back(position));
        replica.confirm(&self.removals) || is_back
    }
}

/// `wattle-agent confirm`.
pub(crate) fn confirm(paths: &Paths) -> anyhow::Result<()> {
    let store = Store::open(&paths.state_dir)?;
    let stored = load_view(&store)?;
    let removals = stored.as_ref().map(Stored::awaiting_confirmation);
    let removals = removals.unwrap_or_default();
    let rolled_back_to = stored.as_ref().and_then(Stored::rolled_back_to);
    if removals.is_empty() && rolled_back_to.is_none() {
        output::line("no removal waits to be confirmed");
        return Ok(());
    }
    if !removals.is_empty() {
        store.write(CONFIRMED, &removals)?;
    }
    let peers = stored.iter().flat_map(|stored| &stored.view.peers);
    for peer in peers.filter(|peer| removals.contains(&peer.node)) {
        output::line(format!("confirmed the removal of {}", peer.name));
    }
    if let Some(position) = rolled_back_to {
        store.write(FOLLOWED_BACK, &position)?;
        output::line(format!(
            "confirmed that the coordinator is followed from revision {position}"
        ));
    }
    if !store.is_locked()? {
        output::line("no agent runs here: it follows when it is started");
    }
    Ok(())
}

/// What was confirmed since the last call.
pub(crate) fn take_confirmed(store: &Store) -> anyhow::Result<Option<Confirmed>> {
    let removals = take(store, CONFIRMED)?;
    let rolled_back_to = take(store, FOLLOWED_BACK)?;
    let any = removals.is_some() || rolled_back_to.is_some();
    Ok(any.then(|| Confirmed {
        removals: removals.unwrap_or_default(),
        rolled_back_to,
    }))
}

fn take<T: DeserializeOwned>(store: &Store, name: &str) -> anyhow::Result<Option<T>> {
    let value = store.read(name)?;
    if value.is_some() {
        store.remove(name)?;
    }
    Ok(value)
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
    coordinator: Arc<Coordinator>,
    node_keys: Arc<NodeKeys>,
    membership: Membership,
    reconnect: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    let mut failures = 0;
    loop {
        let (answer, position) = oneshot::channel();
        if events.send(Event::WhereFrom(answer)).await.is_err() {
            return;
        }
        let Ok(since) = position.await else { return };
        let once = once(&coordinator, &node_keys, &membership, since, &events);
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
    coordinator: &Coordinator,
    node_keys: &NodeKeys,
    membership: &Membership,
    since: Option<Position>,
    events: &mpsc::Sender<Event>,
) -> Result<(), (bool, anyhow::Error)> {
    let stream = coordinator
        .stream(node_keys, membership, since)
        .await
        .map_err(|error| (false, error.into()))?;
    let mut stream = std::pin::pin!(stream);
    let _ = events.send(Event::Connected).await;
    while let Some(message) = stream.next().await {
        let message = message.map_err(|error| (true, error))?;
        let ends = matches!(message, StreamMessage::Bye { .. });
        if events.send(Event::Message(message)).await.is_err() || ends {
            break;
        }
    }
    Ok(())
}

/// Without random numbers the wait is the longest: slower, never a storm.
fn jitter() -> u32 {
    random::bytes().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes))
}
