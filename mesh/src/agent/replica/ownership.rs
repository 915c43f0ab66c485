//! Who holds which key and which prefix. Each belongs to one; what comes is compared with its
//! neighbours, not with all.

use std::{collections::BTreeMap, iter};

use ipnet::IpNet;
use wattle_wire::{
    ids::NodeId,
    key::WireguardKey,
    peer::{Myself, Peer},
    subnet::overlap,
};

use super::{KnownPeer, prefixes};

/// The keys of the peers, and the prefixes of the peers and of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ownership {
    keys: BTreeMap<WireguardKey, NodeId>,
    /// No two share an address.
    prefixes: BTreeMap<IpNet, NodeId>,
}

impl Ownership {
    /// The owners in a view that holds together.
    #[cfg(test)]
    pub(super) fn of(known: &super::Known) -> Self {
        let mut ownership = Self::default();
        ownership.put_own(&known.myself);
        known
            .peers
            .values()
            .for_each(|peer| ownership.put_peer(peer));
        ownership
    }

    /// Who has a key.
    pub(super) fn holder_of_key(&self, key: WireguardKey) -> Option<NodeId> {
        self.keys.get(&key).copied()
    }

    /// Who has an address of a prefix, and by which prefix.
    pub(super) fn holder_of(&self, claimed: IpNet) -> Option<(IpNet, NodeId)> {
        // In the order of address and then length, with no two that overlap: what holds the prefix
        // comes right before it, and of what lies in it the first comes right after it.
        let before = self.prefixes.range(..=claimed).next_back();
        let after = self.prefixes.range(claimed..).next();
        [before, after]
            .into_iter()
            .flatten()
            .find(|(held, _)| overlap(**held, claimed))
            .map(|(held, holder)| (*held, *holder))
    }

    /// Gives a peer all that it claims. Whether nobody had any of it; if not, all of this is to be
    /// made anew.
    pub(super) fn take_peer(&mut self, known: &KnownPeer) -> bool {
        let claimant = known.peer.node;
        keys(known).all(|key| self.keys.insert(key, claimant).is_none())
            && of_peer(&known.peer).all(|prefix| self.take(prefix, claimant))
    }

    /// As [`Ownership::take_peer`], for the node itself.
    pub(super) fn take_own(&mut self, myself: &Myself) -> bool {
        of_myself(myself).all(|prefix| self.take(prefix, myself.node))
    }

    fn take(&mut self, prefix: IpNet, claimant: NodeId) -> bool {
        let is_free = self.holder_of(prefix).is_none();
        if is_free {
            self.put_prefix(prefix, claimant);
        }
        is_free
    }

    /// Gives a peer what is known to be its own, or nobody's.
    pub(super) fn put_peer(&mut self, known: &KnownPeer) {
        keys(known).for_each(|key| self.put_key(key, known.peer.node));
        of_peer(&known.peer).for_each(|prefix| self.put_prefix(prefix, known.peer.node));
    }

    #[cfg(test)]
    fn put_own(&mut self, myself: &Myself) {
        of_myself(myself).for_each(|prefix| self.put_prefix(prefix, myself.node));
    }

    pub(super) fn put_key(&mut self, key: WireguardKey, claimant: NodeId) {
        self.keys.insert(key, claimant);
    }

    pub(super) fn put_prefix(&mut self, prefix: IpNet, claimant: NodeId) {
        self.prefixes.insert(prefix, claimant);
    }

    /// Takes from a peer what it was given of these.
    pub(super) fn withdraw(
        &mut self,
        claimant: NodeId,
        keys: impl Iterator<Item = WireguardKey>,
        prefixes: impl IntoIterator<Item = IpNet>,
    ) {
        for key in keys {
            if self.holder_of_key(key) == Some(claimant) {
                self.keys.remove(&key);
            }
        }
        self.release(prefixes.into_iter());
    }

    pub(super) fn release_peer(&mut self, known: &KnownPeer) {
        keys(known).for_each(|key| {
            self.keys.remove(&key);
        });
        self.release(of_peer(&known.peer));
    }

    pub(super) fn release_own(&mut self, myself: &Myself) {
        self.release(of_myself(myself));
    }

    fn release(&mut self, prefixes: impl Iterator<Item = IpNet>) {
        prefixes.for_each(|prefix| {
            self.prefixes.remove(&prefix);
        });
    }
}

/// The keys of a peer: the present one, and the one that it announced.
pub(super) fn keys(known: &KnownPeer) -> impl Iterator<Item = WireguardKey> {
    iter::once(known.statement.wireguard_key).chain(
        known
            .announced
            .as_ref()
            .map(|announced| announced.wireguard_key),
    )
}

pub(super) fn of_peer(peer: &Peer) -> impl Iterator<Item = IpNet> {
    prefixes(peer.tunnel_address, &peer.subnets)
}

pub(super) fn of_myself(myself: &Myself) -> impl Iterator<Item = IpNet> {
    prefixes(myself.tunnel_address, &[]).chain(myself.subnets.iter().map(|subnet| subnet.net()))
}
