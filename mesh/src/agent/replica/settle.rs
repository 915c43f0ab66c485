//! What can be carried out of the coordinator's word where two claim the same, and what of it has
//! to wait.
//!
//! What has an owner stays with it. A newcomer waits as a whole; of a peer that is there, and of
//! the node itself, only the prefix waits. Where a peer is to get an address or a key that another
//! has, it stays as it is. All is tried again with each message and each confirmation, and all at
//! once: a word that does not contradict itself is carried out to the end as soon as nobody who was
//! removed is still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wattle_wire::{endpoint::Endpoint, ids::NodeId, key::WireguardKey, peer::Myself};

use super::{
    Known, KnownPeer,
    ownership::{Ownership, keys, of_myself, of_peer},
};

/// How many peers have to stay as they are before all do that were to change: to look who else has
/// to costs a pass each.
const AT_MOST: usize = 16;

/// A record of the coordinator that is not carried out, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting<T> {
    pub(super) told: T,
    pub(super) contests: Vec<Contest>,
}

/// Something that two claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contest {
    pub(super) claimed: Claimed,
    pub(super) holder: NodeId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The key of a peer, or of the node itself.
    Key,
    Prefix {
        claimed: IpNet,
        held: IpNet,
    },
    /// Of one that was removed and is still there.
    Endpoint(Endpoint),
}

/// The word of the coordinator about those that it touched, and those that waited.
pub(super) struct Word<'a> {
    pub(super) before: Option<&'a Known>,
    pub(super) removed: BTreeSet<NodeId>,
    pub(super) told: BTreeMap<NodeId, KnownPeer>,
    pub(super) myself: Myself,
    pub(super) own_key: WireguardKey,
    /// Endpoints of peers that were removed and stay for now.
    pub(super) endpoints: BTreeMap<Endpoint, NodeId>,
}

/// What becomes of it.
pub(super) struct Settled {
    pub(super) myself: Myself,
    /// Those that change.
    pub(super) peers: BTreeMap<NodeId, KnownPeer>,
    pub(super) ownership: Ownership,
    pub(super) waiting: BTreeMap<NodeId, Waiting<KnownPeer>>,
    pub(super) own_waiting: Option<Waiting<Myself>>,
}

impl Word<'_> {
    pub(super) fn settle(self) -> Settled {
        // Peers that stay as they are, although they were to change.
        let mut unchanged = BTreeMap::new();
        loop {
            match self.attempt(&unchanged) {
                Ok(settled) => return settled,
                Err((node, contests)) => {
                    unchanged.insert(node, contests);
                }
            }
            if unchanged.len() >= AT_MOST {
                let there = self.told.keys().filter(|node| self.known(**node).is_some());
                there.for_each(|node| {
                    unchanged.entry(*node).or_default();
                });
            }
        }
    }

    fn known(&self, node: NodeId) -> Option<&KnownPeer> {
        self.before?.peers.get(&node)
    }

    /// # Errors
    ///
    /// A peer that has to stay as it is, and why.
    fn attempt(
        &self,
        unchanged: &BTreeMap<NodeId, Vec<Contest>>,
    ) -> Result<Settled, (NodeId, Vec<Contest>)> {
        let mut ownership = self.kept(unchanged);
        let (myself, own_waiting) = self.settle_own(&mut ownership);
        let (mut peers, mut waiting) = (BTreeMap::new(), BTreeMap::new());
        let (there, new): (Vec<_>, Vec<_>) = self
            .told
            .iter()
            .partition(|(node, _)| self.known(**node).is_some());
        for (node, told) in there.into_iter().chain(new) {
            let set_aside = |contests| Waiting {
                told: told.clone(),
                contests,
            };
            if let Some(contests) = unchanged.get(node) {
                waiting.insert(*node, set_aside(contests.clone()));
                continue;
            }
            let before = self.known(*node);
            let mut contests = self.contested_identity(&ownership, told, before);
            let is_free = contests.is_empty();
            if before.is_some() && !is_free {
                return Err((*node, contests));
            }
            keys(told).for_each(|key| {
                if ownership.holder_of_key(key).is_none() {
                    ownership.put_key(key, *node);
                }
            });
            let had: BTreeSet<_> = before
                .iter()
                .flat_map(|known| of_peer(&known.peer))
                .collect();
            let mut placed = told.clone();
            let address = IpNet::from(IpAddr::V4(told.peer.tunnel_address));
            let mut taken = BTreeSet::new();
            if is_free && !had.contains(&address) {
                ownership.put_prefix(address, *node);
                taken.insert(address);
            }
            let mut seen = BTreeSet::new();
            placed.peer.subnets.retain(|subnet| {
                let is_first = seen.insert(*subnet);
                if is_first && had.contains(subnet) {
                    return true;
                }
                match ownership.holder_of(*subnet) {
                    None => {
                        ownership.put_prefix(*subnet, *node);
                        taken.insert(*subnet)
                    }
                    Some((held, holder)) => {
                        let claimed = Claimed::Prefix {
                            claimed: *subnet,
                            held,
                        };
                        contests.push(Contest { claimed, holder });
                        false
                    }
                }
            });
            let is_others = |contest: &Contest| contest.holder != *node;
            if before.is_none() && (!is_free || contests.iter().any(is_others)) {
                ownership.withdraw(*node, keys(told), taken);
                waiting.insert(*node, set_aside(contests));
                continue;
            }
            if !contests.is_empty() {
                waiting.insert(*node, set_aside(contests));
            }
            peers.insert(*node, placed);
        }
        Ok(Settled {
            myself,
            peers,
            ownership,
            waiting,
            own_waiting,
        })
    }

    /// What stays with whoever has it.
    fn kept(&self, unchanged: &BTreeMap<NodeId, Vec<Contest>>) -> Ownership {
        let mut ownership = Ownership::default();
        let Some(before) = self.before else {
            return ownership;
        };
        for (node, known) in &before.peers {
            match self.told.get(node) {
                _ if self.removed.contains(node) => {}
                Some(told) if !unchanged.contains_key(node) => {
                    let (its_keys, its): (BTreeSet<_>, BTreeSet<_>) =
                        (keys(told).collect(), of_peer(&told.peer).collect());
                    keys(known)
                        .filter(|key| its_keys.contains(key))
                        .for_each(|key| ownership.put_key(key, *node));
                    of_peer(&known.peer)
                        .filter(|prefix| its.contains(prefix))
                        .for_each(|prefix| ownership.put_prefix(prefix, *node));
                }
                Some(_) | None => ownership.put_peer(known),
            }
        }
        let own: BTreeSet<_> = of_myself(&self.myself).collect();
        of_myself(&before.myself)
            .filter(|prefix| own.contains(prefix))
            .for_each(|prefix| ownership.put_prefix(prefix, before.myself.node));
        ownership
    }

    fn settle_own(&self, ownership: &mut Ownership) -> (Myself, Option<Waiting<Myself>>) {
        let had: BTreeSet<_> = self
            .before
            .iter()
            .flat_map(|known| of_myself(&known.myself))
            .collect();
        let (node, mut contests) = (self.myself.node, Vec::new());
        let mut seen = BTreeSet::new();
        let mut take = |claimed: IpNet| {
            let is_first = seen.insert(claimed);
            if is_first && had.contains(&claimed) {
                return true;
            }
            let Some((held, holder)) = ownership.holder_of(claimed) else {
                ownership.put_prefix(claimed, node);
                return true;
            };
            let claimed = Claimed::Prefix { claimed, held };
            contests.push(Contest { claimed, holder });
            false
        };
        let mut myself = self.myself.clone();
        let address = |myself: &Myself| IpNet::from(IpAddr::V4(myself.tunnel_address));
        if !take(address(&myself))
            && let Some(before) = self.before
        {
            myself.tunnel_address = before.myself.tunnel_address;
        }
        myself.subnets.retain(|subnet| take(subnet.net()));
        let kept = address(&myself);
        ownership.put_prefix(kept, node);
        let told = self.myself.clone();
        let waiting = (!contests.is_empty()).then_some(Waiting { told, contests });
        (myself, waiting)
    }

    /// What of a peer's keys, its tunnel address and, for a newcomer, its endpoint others have.
    fn contested_identity(
        &self,
        ownership: &Ownership,
        told: &KnownPeer,
        before: Option<&KnownPeer>,
    ) -> Vec<Contest> {
        let node = told.peer.node;
        let mut contests = Vec::new();
        for key in keys(told) {
            let holder = if key == self.own_key {
                Some(self.myself.node)
            } else {
                ownership
                    .holder_of_key(key)
                    .filter(|holder| *holder != node)
            };
            contests.extend(holder.map(|holder| Contest {
                claimed: Claimed::Key,
                holder,
            }));
        }
        let address = IpNet::from(IpAddr::V4(told.peer.tunnel_address));
        let has_it = before.is_some_and(|known| of_peer(&known.peer).any(|had| had == address));
        if !has_it && let Some((held, holder)) = ownership.holder_of(address) {
            let claimed = Claimed::Prefix {
                claimed: address,
                held,
            };
            contests.push(Contest { claimed, holder });
        }
        if before.is_none()
            && let Some(endpoint) = told.peer.endpoint
            && let Some(holder) = self.endpoints.get(&endpoint)
        {
            let claimed = Claimed::Endpoint(endpoint);
            let holder = *holder;
            contests.push(Contest { claimed, holder });
        }
        contests
    }
}
