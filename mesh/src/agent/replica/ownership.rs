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

use super::{Known, KnownPeer, prefixes};

/// The keys of the peers, and the prefixes of the peers and of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ownership {
    keys: BTreeMap<WireguardKey, NodeId>,
    /// No two share an address.
    prefixes: BTreeMap<IpNet, NodeId>,
}

/// Two claim the same. What had an owner before keeps it; the claimant may have a part.
#[derive(Debug)]
pub(super) enum Contradiction {
    Key {
        holder: NodeId,
        claimant: NodeId,
    },
    Prefix {
        held: IpNet,
        holder: NodeId,
        claimed: IpNet,
        claimant: NodeId,
    },
}

impl Ownership {
    /// The owners in a view that holds together.
    pub(super) fn of(known: &Known) -> Self {
        let peers = known.peers.values();
        let keys = peers
            .clone()
            .flat_map(|known| keys(known).map(|key| (key, known.peer.node)))
            .collect();
        let own = of_myself(&known.myself).map(|prefix| (prefix, known.myself.node));
        let theirs = peers
            .flat_map(|KnownPeer { peer, .. }| of_peer(peer).map(|prefix| (prefix, peer.node)));
        Self {
            keys,
            prefixes: own.chain(theirs).collect(),
        }
    }

    pub(super) fn take_peer(&mut self, known: &KnownPeer) -> Result<(), Contradiction> {
        let claimant = known.peer.node;
        for key in keys(known) {
            if let Some(holder) = self.keys.insert(key, claimant) {
                return Err(Contradiction::Key { holder, claimant });
            }
        }
        self.take(claimant, of_peer(&known.peer))
    }

    pub(super) fn release_peer(&mut self, known: &KnownPeer) {
        keys(known).for_each(|key| {
            self.keys.remove(&key);
        });
        self.release(of_peer(&known.peer));
    }

    pub(super) fn take_own(&mut self, myself: &Myself) -> Result<(), Contradiction> {
        self.take(myself.node, of_myself(myself))
    }

    pub(super) fn release_own(&mut self, myself: &Myself) {
        self.release(of_myself(myself));
    }

    fn take(
        &mut self,
        claimant: NodeId,
        mut prefixes: impl Iterator<Item = IpNet>,
    ) -> Result<(), Contradiction> {
        prefixes.try_for_each(|claimed| {
            // In the order of address and then length, with no two that overlap: what holds the
            // prefix comes right before it, and of what lies in it the first comes right after it.
            let before = self.prefixes.range(..=claimed).next_back();
            let after = self.prefixes.range(claimed..).next();
            let clash = [before, after]
                .into_iter()
                .flatten()
                .find(|(held, _)| overlap(**held, claimed));
            if let Some((held, holder)) = clash {
                return Err(Contradiction::Prefix {
                    held: *held,
                    holder: *holder,
                    claimed,
                    claimant,
                });
            }
            self.prefixes.insert(claimed, claimant);
            Ok(())
        })
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

fn of_peer(peer: &Peer) -> impl Iterator<Item = IpNet> {
    prefixes(peer.tunnel_address, &peer.subnets)
}

fn of_myself(myself: &Myself) -> impl Iterator<Item = IpNet> {
    prefixes(myself.tunnel_address, &[]).chain(myself.subnets.iter().map(|subnet| subnet.net()))
}
