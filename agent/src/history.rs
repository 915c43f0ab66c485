//! `wattle-agent history`: what this gateway was told of its peers, kept in the state directory.

use std::fmt::Display;

use chrono::{SecondsFormat, Utc};
use wattle_mesh::agent::{
    history::{History, PeerChange, PeerFacts, PeerHistory, Seen},
    replica::Known,
};

use crate::{config::Settings, output, store::Store};

const HISTORY: &str = "history.json";

/// The history as the running agent keeps it.
#[derive(Debug)]
pub(crate) struct Record {
    store: Store,
    history: History,
}

impl Record {
    /// Goes on from what is on disk. What cannot be read is told and begun anew: tunnels do not
    /// depend on it.
    pub(crate) fn open(store: Store) -> Self {
        let history = load(&store).unwrap_or_else(|error| {
            tracing::warn!("cannot read the history of the peers, and begins a new one: {error:#}");
            History::default()
        });
        Self { store, history }
    }

    /// Takes note of what is known now, and keeps it.
    pub(crate) fn note(&mut self, known: &Known) {
        if self.history.note(known, Utc::now())
            && let Err(error) = self.store.write_keeping_previous(HISTORY, &self.history)
        {
            tracing::warn!("{error:#}");
        }
    }
}

pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
    store.remove_with_previous(HISTORY)
}

pub(crate) fn show(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let history = load(&Store::open(&settings.state_dir)?)?;
    if json {
        return output::json(&history);
    }
    let mut lines: Vec<_> = history
        .peers()
        .flat_map(|(_, peer)| lines_of(peer))
        .collect();
    // Of what was taken up at one moment, in the order in which it was told.
    lines.sort_by_key(|(seen, _)| (seen.at, seen.position));
    if lines.is_empty() {
        output::line("this gateway has not been told of any peer yet");
    }
    for (Seen { at, position }, line) in lines {
        output::line(format!(
            "{} revision {position} {line}",
            at.to_rfc3339_opts(SecondsFormat::Secs, true)
        ));
    }
    Ok(())
}

fn load(store: &Store) -> anyhow::Result<History> {
    Ok(store.read_or_previous(HISTORY)?.unwrap_or_default())
}

fn lines_of(peer: &PeerHistory) -> Vec<(Seen, String)> {
    let name = &peer.name;
    let first = (
        peer.first_seen,
        format!("{name} appeared: {}", in_words(&peer.at_first)),
    );
    let oldest = peer.changes.front().filter(|_| peer.dropped > 0);
    let dropped = oldest.map(|change| {
        (
            change.seen,
            format!(
                "{name} changed {} times before this, which is not kept",
                peer.dropped
            ),
        )
    });
    let changes = peer
        .changes
        .iter()
        .map(|change| (change.seen, format!("{name} {}", change_in_words(change))));
    [first].into_iter().chain(dropped).chain(changes).collect()
}

fn change_in_words(PeerChange { from, to, .. }: &PeerChange) -> String {
    let (from, to) = match (from, to) {
        (Some(from), Some(to)) => (from, to),
        (None, Some(to)) => return format!("came back: {}", in_words(to)),
        (_, None) => return "was removed".to_owned(),
    };
    let mut parts = Vec::new();
    if from.identity != to.identity {
        parts.push(format!("identity {} -> {}", from.identity, to.identity));
    }
    if from.wireguard_key != to.wireguard_key {
        parts.push(format!(
            "key {} -> {}",
            from.wireguard_key, to.wireguard_key
        ));
    }
    if from.prefixes != to.prefixes {
        parts.push(format!(
            "prefixes {} -> {}",
            list(&from.prefixes),
            list(&to.prefixes)
        ));
    }
    if from.endpoint != to.endpoint {
        parts.push(format!(
            "endpoint {} -> {}",
            or_none(from.endpoint),
            or_none(to.endpoint)
        ));
    }
    parts.join(", ")
}

fn in_words(
    PeerFacts {
        identity,
        wireguard_key,
        prefixes,
        endpoint,
    }: &PeerFacts,
) -> String {
    format!(
        "identity {identity}, key {wireguard_key}, prefixes {}, endpoint {}",
        list(prefixes),
        or_none(*endpoint)
    )
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

fn or_none<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}
