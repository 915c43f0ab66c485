//! The preshared keys of all tunnels of a node.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wattle_wire::{
    ids::NodeId,
    psk::{OutgoingLetter, PskPolicy, SignedPskMessage},
};

use super::{Ends, Ignored, Kem, Pair, Psk};
use crate::{
    machine::Machine,
    replica::{Known, KnownPeer},
    state::Link,
};

/// The preshared keys of all tunnels of a node, with what is under way. As it is kept on disk, it is [`Exchange::kept`] first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Exchange(BTreeMap<NodeId, Pair>);

impl Exchange {
    /// What of it outlives a restart.
    pub fn kept(&self) -> Self {
        Self(self.0.iter().map(|(peer, pair)| (*peer, pair.kept())).collect())
    }

    /// The key to use with a peer.
    pub fn key(&self, peer: NodeId, policy: PskPolicy) -> Option<&Psk> {
        self.0.get(&peer)?.key(policy)
    }

    /// When the key that is used with a peer was agreed on, in seconds since 1970.
    pub fn since(&self, peer: NodeId) -> Option<u64> {
        self.0.get(&peer)?.since()
    }

    /// Wants another key with each peer. It is forgotten in a restart.
    pub fn want_others(&mut self) {
        self.0.values_mut().for_each(Pair::want_another);
    }

    /// Whether this node is in the middle of changing the key with the peer, so that the two may use different ones. When neither of the two is
    /// and one is about to take up another WireGuard key, it stays so until then.
    pub fn is_changing(&self, peer: NodeId) -> bool {
        self.0.get(&peer).is_some_and(Pair::is_changing)
    }

    /// Peers with which there is no key yet and that do not answer, in words.
    pub fn problems(&self, known: &Known) -> impl Iterator<Item = String> {
        let peers = self.0.iter().filter(|(_, pair)| pair.is_unanswered()).filter_map(|(node, _)| known.peers.get(node));
        let require = known.mesh.psk == PskPolicy::Require;
        peers.filter(move |_| require).map(|KnownPeer { peer, .. }| {
            format!(
                "no packet passes to {} yet: its agent does not answer about a preshared key; is it connected, and new enough?",
                peer.name
            )
        })
    }

    /// Whether [`Exchange::tick`] has anything to do.
    pub fn is_due(&self, known: &Known, machine: &Machine, now: u64, unsettled: &BTreeSet<NodeId>) -> bool {
        let fresh = Pair::default();
        let due = |(node, peer)| self.0.get(node).unwrap_or(&fresh).is_due(&ends(known, machine, peer), now);
        let mut settled = known.peers.iter().filter(|(node, _)| !unsettled.contains(node));
        self.0.keys().any(|node| !known.peers.contains_key(node)) || settled.any(due)
    }

    /// What to say because time has passed or peers have changed; the keys of peers that are gone are forgotten. `now` is in seconds since
    /// 1970. The letters may be sent once this is kept on disk. To peers that are `unsettled`, of whose new WireGuard key no handshake has
    /// succeeded yet, nothing is said: both ends of it must have the same preshared key.
    pub fn tick(
        &mut self,
        known: &Known,
        machine: &Machine,
        now: u64,
        kem: &impl Kem,
        unsettled: &BTreeSet<NodeId>,
    ) -> Vec<OutgoingLetter> {
        self.0.retain(|node, _| known.peers.contains_key(node));
        let say = |(node, peer): (&NodeId, &KnownPeer)| {
            let message = self.0.entry(*node).or_default().tick(&ends(known, machine, peer), now, kem)?;
            Some(OutgoingLetter { to: *node, message })
        };
        known.peers.iter().filter(|(node, _)| !unsettled.contains(node)).filter_map(say).collect()
    }

    /// Takes in a message of a peer. The answer may be sent once this is kept on disk.
    ///
    /// # Errors
    ///
    /// [`Ignored`]; everything is as it was.
    pub fn receive(
        &mut self,
        known: &Known,
        machine: &Machine,
        peer: &KnownPeer,
        message: &SignedPskMessage,
        now: u64,
        kem: &impl Kem,
    ) -> Result<Option<OutgoingLetter>, Ignored> {
        let to = peer.peer.node;
        let answer = self.0.entry(to).or_default().receive(&ends(known, machine, peer), message, now, kem)?;
        Ok(answer.map(|message| OutgoingLetter { to, message }))
    }

    /// Whether [`Exchange::observe`] has anything to take note of.
    pub fn is_on_trial(&self) -> bool {
        self.0.values().any(Pair::is_on_trial)
    }

    /// Takes note of the handshakes, at each look at the device. Whether a key to use is another one now.
    pub fn observe(&mut self, known: &Known, link: &Link, now: u64) -> bool {
        let mut changed = false;
        for (node, pair) in &mut self.0 {
            let found = known.peers.get(node).and_then(|peer| peer.entry(link));
            changed |= found.is_some_and(|found| pair.observe(found.handshake_age_s, now));
        }
        changed
    }
}

fn ends<'a>(known: &Known, machine: &'a Machine, peer: &KnownPeer) -> Ends<'a> {
    Ends {
        mesh: known.mesh.id,
        machine,
        me: known.myself.node,
        peer: peer.peer.node,
        peer_identity: peer.statement.identity,
        peer_key: peer.statement.wireguard_key,
        is_turning: peer.announced.is_some() || known.myself.keys.is_some_and(|keys| keys.announced.is_some()),
    }
}
