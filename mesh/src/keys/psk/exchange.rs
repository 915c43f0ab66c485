//! The preshared keys of all tunnels of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wattle_wire::{
    ids::NodeId,
    psk::{GivenPsk, OutgoingMessage, PskPolicy, SignedPskMessage},
    report::{Problem, ProblemCode},
};
use zeroize::Zeroizing;

use super::{
    Ends, Ignored, Kem, Pair, Psk,
    files::{Files, Moved},
    given::Given,
};
use crate::{
    agent::replica::{Known, KnownPeer},
    host::state::Interface,
    keys::node_keys::NodeKeys,
    state_file::{UnknownFields, drop_unreadable},
};

/// How many peers are asked for a secret at a time. Each takes 9 KB of memory until it answers,
/// which may take two seconds where the two follow different coordinators. A peer that leaves its
/// request unanswered for half a minute keeps no other waiting.
const ASKED_AT_ONCE: usize = 256;

/// The preshared keys of all tunnels of a node, with what is under way. As it is kept on disk, it
/// is [`Exchange::kept`] first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exchange {
    /// Those that are agreed on with the peer. Each step is taken on a copy until it is on disk,
    /// and most change one pair of a thousand.
    #[serde(flatten)]
    pairs: BTreeMap<NodeId, Arc<Pair>>,
    /// Those of unmanaged peers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    given: BTreeMap<NodeId, Files>,
    #[serde(
        flatten,
        skip_deserializing,
        skip_serializing_if = "UnknownFields::is_empty"
    )]
    unknown: UnknownFields,
}

fn on_disk(value: &impl Serialize) -> Option<Zeroizing<Vec<u8>>> {
    serde_json::to_vec(value).ok().map(Zeroizing::new)
}

impl Exchange {
    /// Reads a file. Fields that this program does not know are kept, and a key that it cannot read
    /// is left out, so that another is agreed on. Returns how many there were.
    ///
    /// # Errors
    ///
    /// When the file as a whole cannot be read.
    pub fn read(text: &[u8]) -> serde_json::Result<(Self, usize)> {
        if let Ok(exchange) = serde_json::from_slice(text) {
            return Ok((exchange, 0));
        }
        let mut file: Value = serde_json::from_slice(text)?;
        let mut lost = drop_unreadable::<Files>(&mut file, "/given");
        let fields = Map::<String, Value>::deserialize(file)?;
        let is_known = |field: &String| field == "given" || field.parse::<NodeId>().is_ok();
        let (known, unknown): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(field, _)| is_known(field));
        let is_readable =
            |field: &String, value: &Value| field == "given" || Pair::deserialize(value).is_ok();
        let mut known: Map<_, _> = known.into_iter().collect();
        let before = known.len();
        known.retain(|field, value| is_readable(field, value));
        lost += before - known.len();
        let exchange = Self::deserialize(Value::Object(known))?;
        let unknown = unknown.into_iter().collect();
        Ok((
            Self {
                unknown,
                ..exchange
            },
            lost,
        ))
    }

    /// What of it outlives a restart.
    pub fn kept(&self) -> Self {
        let kept = |pair: &Arc<Pair>| {
            if pair.is_kept() {
                Arc::clone(pair)
            } else {
                Arc::new(pair.kept())
            }
        };
        Self {
            pairs: self
                .pairs
                .iter()
                .map(|(peer, pair)| (*peer, kept(pair)))
                .collect(),
            given: self.given.clone(),
            unknown: self.unknown.clone(),
        }
    }

    /// Whether a node that goes by this may be started again from what is on disk: every pair that
    /// had a key there is as it was, or goes by keys that the disk has, too. The others are with
    /// further peers.
    pub fn survives_with(&self, disk: &Self) -> bool {
        let mut pairs = disk.pairs.iter();
        let mut given = disk.given.iter();
        pairs.all(|(peer, kept)| {
            let now = self.pairs.get(peer);
            kept.since().is_none()
                || now.is_some_and(|now| {
                    now.survives_with(kept) || on_disk(&**now) == on_disk(&**kept)
                })
        }) && given.all(|(peer, kept)| {
            let now = self.given.get(peer);
            now.is_some_and(|now| on_disk(now) == on_disk(kept))
        })
    }

    /// The key to use with a peer.
    pub fn key(&self, peer: NodeId, policy: PskPolicy) -> Option<&Psk> {
        match self.pairs.get(&peer) {
            Some(pair) => pair.key(policy),
            None => self.given.get(&peer)?.key(),
        }
    }

    /// When the key that is used with a peer was agreed on, in seconds since 1970.
    pub fn since(&self, peer: NodeId) -> Option<u64> {
        self.pairs.get(&peer)?.since()
    }

    /// Wants another key with each peer with which one is agreed on. It is forgotten in a restart.
    pub fn want_others(&mut self) {
        self.pairs
            .values_mut()
            .for_each(|pair| Arc::make_mut(pair).want_another());
    }

    /// Wants another key with one peer, if there is one. It is forgotten in a restart.
    pub(super) fn want_another(&mut self, peer: NodeId) {
        if let Some(pair) = self.pairs.get_mut(&peer) {
            Arc::make_mut(pair).want_another();
        }
    }

    /// Whether this node is in the middle of changing the key with the peer, so that the two may
    /// use different ones. When neither of the two is and one is about to take up another WireGuard
    /// key, it stays so until then.
    pub fn is_changing(&self, peer: NodeId) -> bool {
        self.pairs.get(&peer).is_some_and(|pair| pair.is_changing())
    }

    /// Peers with which there is no key yet and that do not answer, or cannot.
    pub fn problems(&self, known: &Known, policy: PskPolicy) -> impl Iterator<Item = Problem> {
        let require = policy == PskPolicy::Require;
        let peers = known.peers.values().filter(move |_| require);
        peers.filter_map(
            |KnownPeer {
                 peer, statement, ..
             }| {
                let why = if statement.unmanaged {
                    let has_none = !self.given.contains_key(&peer.node);
                    has_none.then_some(
                        "its wg-quick file is older than this node or its key. Make a new file for \
                     that site",
                    )
                } else {
                    let pair = self.pairs.get(&peer.node);
                    pair.is_some_and(|pair| pair.is_unanswered()).then_some(
                    "its agent has not agreed on a preshared key. Check that it is connected and \
                     up to date",
                )
                }?;
                let words = format!("no packets to {} yet: {why}", peer.name);
                Some(Problem {
                    peer: Some(peer.node),
                    ..Problem::new(ProblemCode::PresharedKey, words)
                })
            },
        )
    }

    /// Whether [`Exchange::tick`] has anything to do.
    pub fn is_due(
        &self,
        known: &Known,
        node_keys: &NodeKeys,
        now: u64,
        unsettled: &BTreeSet<NodeId>,
    ) -> bool {
        let fresh = Pair::default();
        let may_ask = self.may_ask() > 0;
        let due = |(node, peer): (&NodeId, &KnownPeer)| {
            let (pair, ends) = (
                self.pairs.get(node).map_or(&fresh, Arc::as_ref),
                ends(known, node_keys, peer),
            );
            self.may_agree(*node, unsettled) && is_next(pair, &ends, now, may_ask)
        };
        let is_gone = |node| !known.peers.contains_key(node);
        self.pairs.keys().chain(self.given.keys()).any(is_gone) || agreeing_peers(known).any(due)
    }

    /// What to say because time has passed or peers have changed; the keys of peers that are gone
    /// are forgotten. `now` is in seconds since 1970. The messages may be sent once this is kept
    /// on disk. With peers that are `unsettled` no key is changed ([`Exchange::may_agree`]).
    pub fn tick(
        &mut self,
        known: &Known,
        node_keys: &NodeKeys,
        now: u64,
        kem: &impl Kem,
        unsettled: &BTreeSet<NodeId>,
    ) -> Vec<OutgoingMessage> {
        self.pairs.retain(|node, _| known.peers.contains_key(node));
        self.given.retain(|node, _| known.peers.contains_key(node));
        let mut may_ask = self.may_ask();
        let waits: BTreeSet<NodeId> = unsettled
            .iter()
            .filter(|node| !self.may_agree(**node, unsettled))
            .copied()
            .collect();
        let say = |(node, peer): (&NodeId, &KnownPeer)| {
            let (pair, ends) = (
                self.pairs.entry(*node).or_default(),
                ends(known, node_keys, peer),
            );
            // Asked first: a pair that has nothing to do is not copied.
            if !is_next(pair, &ends, now, may_ask > 0) {
                return None;
            }
            let begins = pair.would_begin(&ends);
            let message = Arc::make_mut(pair).tick(&ends, now, kem)?;
            may_ask -= usize::from(begins);
            Some(OutgoingMessage { to: *node, message })
        };
        agreeing_peers(known)
            .filter(|(node, _)| !waits.contains(node))
            .filter_map(say)
            .collect()
    }

    /// Whether a key may be agreed on with a peer now. With those that are `unsettled`, of whose
    /// new WireGuard key no handshake has succeeded yet, none is changed: both ends of it must have
    /// the same preshared key. A first key is not waited for: without one there may be no handshake.
    pub(super) fn may_agree(&self, peer: NodeId, unsettled: &BTreeSet<NodeId>) -> bool {
        !unsettled.contains(&peer) || self.since(peer).is_none()
    }

    /// Says at once what nobody has answered: the coordinator may have lost it.
    pub fn say_again(&mut self) {
        for pair in self.pairs.values_mut().filter(|pair| pair.waits()) {
            Arc::make_mut(pair).say_again();
        }
    }

    /// How many more peers may be asked for a secret now.
    fn may_ask(&self) -> usize {
        ASKED_AT_ONCE.saturating_sub(self.pairs.values().filter(|pair| pair.is_asking()).count())
    }

    /// Takes in a message of a peer. The answer may be sent once this is kept on disk.
    ///
    /// # Errors
    ///
    /// [`Ignored`]; everything is as it was.
    pub fn receive(
        &mut self,
        known: &Known,
        node_keys: &NodeKeys,
        peer: &KnownPeer,
        message: &SignedPskMessage,
        now: u64,
        kem: &impl Kem,
    ) -> Result<Option<OutgoingMessage>, Ignored> {
        if peer.statement.unmanaged {
            return Err(Ignored::Unexpected);
        }
        let to = peer.peer.node;
        let answer = Arc::make_mut(self.pairs.entry(to).or_default()).receive(
            &ends(known, node_keys, peer),
            message,
            now,
            kem,
        )?;
        Ok(answer.map(|message| OutgoingMessage { to, message }))
    }

    /// Takes in a key that the coordinator gave. It may be used once this is kept on disk.
    ///
    /// # Errors
    ///
    /// [`Ignored`]; everything is as it was.
    pub fn take(
        &mut self,
        known: &Known,
        node_keys: &NodeKeys,
        peer: &KnownPeer,
        given: &GivenPsk,
        now: u64,
    ) -> Result<(), Ignored> {
        if !peer.statement.unmanaged {
            return Err(Ignored::Managed);
        }
        let from = peer.peer.node;
        let to = (known.myself.node, node_keys.wireguard_key());
        let tunnel = Given {
            mesh: known.mesh.id,
            from: (from, peer.statement.wireguard_key),
            to,
            made_ms: given.made_ms,
        };
        let psk = tunnel
            .open(&given.sealed, &node_keys.wireguard_private_key())
            .ok_or(Ignored::Sealed)?;
        self.given
            .entry(from)
            .or_default()
            .take(psk, given.made_ms, now)
    }

    /// Lets keys that are tried in turn go on with their turns. To be said once, of keys as they
    /// were kept.
    pub fn resume(&mut self, known: &Known, interface: &Interface) {
        for (node, files) in &mut self.given {
            known
                .peers
                .get(node)
                .and_then(|peer| peer.entry(interface))
                .into_iter()
                .for_each(|seen| files.resume(seen));
        }
    }

    /// Whether [`Exchange::observe`] has anything to take note of.
    pub fn has_candidates(&self) -> bool {
        self.pairs.values().any(|pair| pair.has_candidates())
            || self.given.values().any(Files::has_candidates)
    }

    /// Takes note of what the device shows of the tunnels, at each observation of it.
    pub fn observe(&mut self, known: &Known, interface: &Interface, now: u64) -> Moved {
        let entry = |node| known.peers.get(node)?.entry(interface);
        let open = self
            .pairs
            .iter_mut()
            .filter(|(_, pair)| pair.has_candidates());
        let pairs = open.filter_map(|(node, pair)| {
            Some(Arc::make_mut(pair).observe(entry(node)?.handshake_age_s, now))
        });
        let turned = pairs.filter(|turned| *turned).count() > 0;
        let given = self
            .given
            .iter_mut()
            .filter_map(|(node, files)| Some(files.observe(entry(node)?, now)));
        given
            .max()
            .unwrap_or_default()
            .max(if turned { Moved::OnDisk } else { Moved::No })
    }
}

/// The peers with which keys are agreed on.
fn agreeing_peers(known: &Known) -> impl Iterator<Item = (&NodeId, &KnownPeer)> {
    known
        .peers
        .iter()
        .filter(|(_, peer)| !peer.statement.unmanaged)
}

/// Whether something is to be said to a peer now: nothing is that would ask one peer too many.
fn is_next(pair: &Pair, ends: &Ends<'_>, now: u64, may_ask: bool) -> bool {
    pair.is_due(ends, now) && (may_ask || !pair.would_begin(ends))
}

fn ends<'a>(known: &Known, node_keys: &'a NodeKeys, peer: &KnownPeer) -> Ends<'a> {
    Ends {
        mesh: known.mesh.id,
        node_keys,
        me: known.myself.node,
        peer: peer.peer.node,
        peer_identity: peer.statement.identity,
        peer_key: peer.statement.wireguard_key,
        is_turning: (peer.announced.is_some() && !peer.withdrawn)
            || known
                .myself
                .keys
                .is_some_and(|keys| keys.announced.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        agent::replica::Replica,
        config::view,
        keys::psk::{kem::seeded::SeededKem, retry::SHORTEST_RETRY_S},
        testing::{MESH, directory_of, node_id, node_keys_of, snapshot},
    };

    const NOW: u64 = 1_800_000_000;
    const MORE: usize = 4;

    #[test]
    fn a_node_asks_so_many_peers_at_a_time_and_one_that_does_not_answer_keeps_nobody_waiting() {
        let nodes = u64::try_from(ASKED_AT_ONCE + MORE + 1).unwrap();
        let (directory, last) = (directory_of(nodes), node_keys_of(nodes));
        let mut replica = Replica::new(MESH, last.wireguard_key());
        let view = view::view(&directory, node_id(nodes)).unwrap();
        replica.receive(snapshot(view), 0);
        let (known, none) = (replica.known().unwrap(), BTreeSet::new());
        let mut exchange = Exchange::default();
        let mut ask = |now| {
            let messages = exchange.tick(known, &last, now, &SeededKem, &none);
            let is_due = exchange.is_due(known, &last, now, &none);
            let asked: Vec<_> = messages.into_iter().map(|message| message.to).collect();
            (asked, is_due)
        };
        let (first, _) = ask(NOW);
        assert_eq!(first.len(), ASKED_AT_ONCE);
        assert_eq!(ask(NOW + SHORTEST_RETRY_S - 1), (Vec::new(), false));
        // All are asked again, and again, and then those that had to wait.
        for (seconds, is_due) in [(4, false), (12, false), (28, true)] {
            assert_eq!(ask(NOW + seconds), (first.clone(), is_due));
        }
        let (second, is_due) = ask(NOW + 28);
        assert!(second.iter().all(|node| !first.contains(node)));
        assert_eq!((second.len(), is_due), (MORE, false));
    }

    #[test]
    fn h8_a_key_that_a_newer_agent_wrote_costs_itself_alone_and_what_that_one_added_is_kept() {
        let id = |number| node_id(number).to_string();
        let pair = |phase: &str| json!({"round": 1, "current": null, "phase": phase});
        let file = json!({
            id(2): pair("idle"),
            id(3): pair("hybrid"),
            "given": {id(4): [], id(5): {"kind": "new"}},
            "next_kem": {"key": "a secret"},
        });
        let (exchange, lost) = Exchange::read(&serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(lost, 2);
        let kept = serde_json::to_value(exchange.kept()).unwrap();
        assert_eq!(kept["next_kem"], file["next_kem"]);
        assert_eq!((&kept[id(2)], &kept[id(3)]), (&file[id(2)], &Value::Null));
        assert_eq!(kept["given"], json!({id(4): []}));
        assert!(!format!("{exchange:?}").contains("a secret"));
        let again = serde_json::to_vec(&kept).unwrap();
        assert_eq!(Exchange::read(&again).unwrap().1, 0);
        assert!(Exchange::read(b"[").is_err());
    }
}
