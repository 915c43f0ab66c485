//! What holds in every world.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{World, gateway::Gateway};
use crate::host::state::{AllowedIps, Change};

/// How long a tunnel that was up may carry nothing while both agents run. Packets wait for so long
/// in WireGuard's queues; it takes a tenth of it unless an agent was started again between
/// announcing a key and taking it up.
const MOST_DOWN: Duration = Duration::from_millis(1_500);

#[derive(Debug, Default)]
pub(super) struct Laws {
    /// Pairs whose tunnel was up, and is not known to be renewed at present.
    watched: BTreeSet<(usize, usize)>,
    /// Pairs whose tunnel was up since the network was last whole between them.
    were_up: BTreeSet<(usize, usize)>,
    down_since: BTreeMap<(usize, usize), Duration>,
}

impl Laws {
    /// The network between two is parted or whole again: nothing is promised until the tunnel is up
    /// once more.
    pub(super) fn part(&mut self, pair: (usize, usize)) {
        self.were_up.remove(&pair);
        self.down_since.remove(&pair);
        self.watched.insert(pair);
    }

    pub(super) fn watch(&mut self, pair: (usize, usize)) {
        self.watched.insert(pair);
    }

    /// Once there is a preshared key, no packet passes without one; here, none ever does.
    pub(super) fn judge_step(&self, place: usize, gateway: &Gateway, change: &Change) {
        let Some((key, Some(update))) = change.of_peer() else {
            return;
        };
        let gives = match &update.allowed_ips {
            AllowedIps::Untouched => false,
            AllowedIps::Add(prefixes) | AllowedIps::Replace(prefixes) => !prefixes.is_empty(),
        };
        let entry = gateway
            .device
            .interface()
            .and_then(|interface| interface.peers.get(key));
        let has = entry.is_some_and(|entry| entry.psk.is_some());
        assert!(
            !gives || has || update.psk.is_some(),
            "gateway {place} lets packets pass without a preshared key: {change}"
        );
    }

    /// Whatever the coordinator says, a host goes on reaching what it reaches past the tunnel.
    pub(super) fn judge_host(&self, place: usize, gateway: &Gateway) {
        for address in gateway.outside() {
            assert!(
                !gateway.device.leads_into_tunnel(address),
                "gateway {place} is cut off from {address}"
            );
        }
    }
}

impl World {
    /// Judges what has just happened.
    pub(super) fn check(&mut self) {
        for pair in self.laws.watched.clone() {
            self.check_pair(pair);
        }
    }

    fn check_pair(&mut self, pair: (usize, usize)) {
        if !self.are_members(pair) {
            self.laws.part(pair);
            self.laws.watched.remove(&pair);
            return;
        }
        if self.is_up(pair) {
            self.laws.were_up.insert(pair);
            self.laws.down_since.remove(&pair);
            if self.is_renewed(pair) {
                self.laws.watched.remove(&pair);
            }
            return;
        }
        if !self.laws.were_up.contains(&pair) {
            return;
        }
        let now = self.now;
        let since = *self.laws.down_since.entry(pair).or_insert(now);
        let (a, b) = (&self.gateways[pair.0], &self.gateways[pair.1]);
        let run = a.node.is_some() && b.node.is_some();
        let since = since.max(a.since).max(b.since);
        assert!(
            !run || now.saturating_sub(since) <= MOST_DOWN,
            "the tunnel of {pair:?} was up, and carries nothing since {since:?}: {}",
            self.describe(pair),
        );
    }

    pub(super) fn are_members(&self, (a, b): (usize, usize)) -> bool {
        let is_member = |place: usize| self.coordinator.node(self.gateways[place].id).is_some();
        is_member(a) && is_member(b)
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let all = self.gateways.len();
        (0..all).flat_map(move |a| (a + 1..all).map(move |b| (a, b)))
    }

    /// All tunnels carry packets.
    pub(super) fn all_are_up(&self) -> Result<(), String> {
        for pair in self.pairs().filter(|pair| self.are_members(*pair)) {
            if !self.is_up(pair) {
                let what = self.describe(pair);
                return Err(format!("the tunnel of {pair:?} is down: {what}"));
            }
        }
        Ok(())
    }
}
