//! From what a host is to what it should be: the steps, each with its reason.
//!
//! The order is chosen so that stopping after any step leaves nothing open and takes nothing from a
//! tunnel that works: the ruleset stands before the interface, a prefix moves from peer to peer in
//! one write, and what goes goes last.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;
use wattle_wire::{key::WireguardKey, report::DeviceKind};

use crate::host::state::{
    AllowedIps, Change, Desired, DesiredPeer, DesiredPsk, Link, Observed, ObservedPeer,
    ObservedRuleset, PeerChange,
};

/// The steps from what is to what should be; empty when nothing is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// One change, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub change: Change,
    pub reason: String,
}

/// The steps from `observed` to `desired`. Only what differs is written, and the endpoint of a live
/// peer never is: the kernel has learned it from packets, and knows better.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    plan.host(desired, observed);
    let fresh = Link::new(DeviceKind::Kernel);
    let link = observed.link.as_ref().unwrap_or_else(|| {
        plan.push(Change::CreateLink, "the interface is missing");
        &fresh
    });
    let routes = differences(&desired.routes, &link.routes, |wanted, found| {
        wanted == found
    });
    let mut peers = differences(&desired.peers, &link.peers, DesiredPeer::is_met_by);
    for (_, wanted, found) in &mut peers {
        *wanted = wanted.filter(|wanted| wanted.may_be_there(*found));
    }
    plan.link(desired, link);
    plan.routes(&routes);
    plan.peers(&peers);
    if link.public_key.is_some_and(|key| key != desired.public_key) {
        plan.call(desired, link);
    }
    for (key, ..) in peers.iter().filter(|(key, wanted, found)| {
        wanted.is_none() && found.is_some() && **key != desired.public_key
    }) {
        let is_known = desired.peers.contains_key(key);
        let reason = if is_known {
            "it has no preshared key yet, and the mesh requires one"
        } else {
            "the mesh has no peer with this key"
        };
        plan.push(Change::RemovePeer(**key), reason);
    }
    for (prefix, ..) in routes.iter().filter(|(_, wanted, _)| wanted.is_none()) {
        plan.push(Change::RemoveRoute(**prefix), "no peer has this prefix");
    }
    for address in link.addresses.difference(&desired.addresses) {
        plan.push(
            Change::RemoveAddress(*address),
            "not the node's tunnel address",
        );
    }
    plan
}

impl Plan {
    fn push(&mut self, change: Change, reason: impl Into<String>) {
        self.steps.push(Step {
            change,
            reason: reason.into(),
        });
    }

    fn host(&mut self, desired: &Desired, observed: &Observed) {
        let set = || Change::SetRuleset(desired.ruleset.clone());
        match &observed.ruleset {
            ObservedRuleset::Intact(found) if *found == desired.ruleset => {}
            ObservedRuleset::Intact(found) if found.interface == desired.ruleset.interface => {
                let update = Change::UpdateRuleset {
                    from: found.clone(),
                    to: desired.ruleset.clone(),
                };
                self.push(update, "the prefixes of the mesh changed");
            }
            ObservedRuleset::Intact(_) => self.push(set(), "the table is for another interface"),
            ObservedRuleset::Absent => self.push(set(), "the table is missing"),
            ObservedRuleset::Altered => self.push(set(), "the table was altered"),
        }
        for family in desired.forwarding.difference(&observed.forwarding) {
            self.push(
                Change::EnableForwarding(*family),
                "packets of the LAN must be forwarded",
            );
        }
    }

    fn link(&mut self, desired: &Desired, link: &Link) {
        if link.public_key != Some(desired.public_key) {
            let reason = if link.public_key.is_some() {
                "the interface has another key"
            } else {
                "the interface has no key"
            };
            self.push(Change::SetPrivateKey(desired.public_key), reason);
        }
        if link.listen_port != desired.listen_port {
            self.push(
                Change::SetListenPort(desired.listen_port),
                format!("it is {}", link.listen_port),
            );
        }
        if link.mtu != desired.mtu {
            let reason = if link.mtu == 0 {
                "the interface is new".to_owned()
            } else {
                format!("it is {}", link.mtu)
            };
            self.push(Change::SetMtu(desired.mtu), reason);
        }
        for address in desired.addresses.difference(&link.addresses) {
            self.push(
                Change::AddAddress(*address),
                "the node's tunnel address is missing",
            );
        }
        if !link.up {
            self.push(Change::SetUp, "the interface is down");
        }
    }

    fn routes(&mut self, differences: &[Difference<'_, IpNet, Option<IpAddr>, Option<IpAddr>>]) {
        for (prefix, wanted, found) in differences {
            let Some(source) = wanted else { continue };
            let reason = if found.is_some() {
                "its source address differs"
            } else {
                "the route is missing"
            };
            self.push(Change::SetRoute(**prefix, **source), reason);
        }
    }

    /// Peers that only gain prefixes come first: a prefix that moves goes over in one write, and
    /// often nothing is left to write of its former holder.
    fn peers(&mut self, differences: &[Difference<'_, WireguardKey, DesiredPeer, ObservedPeer>]) {
        let wanted = differences
            .iter()
            .filter_map(|(key, wanted, found)| Some((*key, (*wanted)?, *found)));
        let loses = |(_, wanted, found): &(_, &DesiredPeer, Option<&ObservedPeer>)| {
            found.is_some_and(|found| !wanted.allowed_ips.is_superset(&found.allowed_ips))
        };
        let (losers, gainers): (Vec<_>, Vec<_>) = wanted.partition(loses);
        // A prefix that moves is gained by one that differs and lost by one that differs: the
        // others need not be looked at.
        let mut moved: BTreeSet<IpNet> = BTreeSet::new();
        for (key, peer, found) in gainers.into_iter().chain(losers) {
            let observed = found.cloned().map(|mut observed| {
                observed
                    .allowed_ips
                    .retain(|prefix| !moved.contains(prefix));
                observed
            });
            self.peer(*key, peer, observed.as_ref());
            moved.extend(&peer.allowed_ips);
        }
    }

    /// Shakes hands with the peers that stay, of whose sessions none is left. WireGuard does so
    /// when it is given a keepalive.
    fn call(&mut self, desired: &Desired, link: &Link) {
        let keepalive = |seconds| PeerChange {
            keepalive_s: Some(seconds),
            ..PeerChange::default()
        };
        for (key, peer) in desired
            .peers
            .iter()
            .filter(|(key, peer)| link.peers.contains_key(key) && !peer.allowed_ips.is_empty())
        {
            let reason = format!("{}: the interface has another key now", peer.name);
            let all = [0, peer.keepalive_s.max(1), peer.keepalive_s];
            let needed = if peer.keepalive_s == 0 {
                &all[..]
            } else {
                &all[..2]
            };
            for seconds in needed {
                self.push(Change::SetPeer(*key, keepalive(*seconds)), reason.clone());
            }
        }
    }

    fn peer(&mut self, key: WireguardKey, desired: &DesiredPeer, observed: Option<&ObservedPeer>) {
        if observed.is_some() && desired.anew {
            self.push(
                Change::RemovePeer(key),
                format!("{}: its entry is made again", desired.name),
            );
        }
        let Some(observed) = observed.filter(|_| !desired.anew) else {
            let change = PeerChange {
                endpoint: desired.endpoint,
                keepalive_s: Some(desired.keepalive_s),
                allowed_ips: AllowedIps::Replace(desired.allowed_ips.clone()),
                psk: if let DesiredPsk::Key(psk) = &desired.psk {
                    Some(psk.clone())
                } else {
                    None
                },
            };
            let reason = if desired.anew {
                "has another key"
            } else {
                "is missing"
            };
            return self.push(
                Change::SetPeer(key, change),
                format!("{} {reason}", desired.name),
            );
        };
        let mut change = PeerChange::default();
        let mut reasons = Vec::new();
        if !desired.endpoint_is_met_by(observed) {
            change.endpoint = desired.endpoint;
            reasons.push("nothing is heard from it, and its endpoint differs");
        }
        if desired.keepalive_s != observed.keepalive_s {
            change.keepalive_s = Some(desired.keepalive_s);
            reasons.push("its keepalive differs");
        }
        if let DesiredPsk::Key(psk) = &desired.psk
            && !desired.psk_is_met_by(observed)
        {
            change.psk = Some(psk.clone());
            reasons.push(if observed.psk.is_some() {
                "its preshared key differs"
            } else {
                "it has no preshared key"
            });
        }
        change.allowed_ips = allowed_ips(&desired.allowed_ips, &observed.allowed_ips);
        if change.allowed_ips != AllowedIps::Untouched {
            reasons.push("its prefixes differ");
        }
        if !reasons.is_empty() {
            self.push(
                Change::SetPeer(key, change),
                format!("{}: {}", desired.name, reasons.join(", ")),
            );
        }
    }
}

/// A key, what is wanted there and what was found there.
type Difference<'a, K, W, F> = (&'a K, Option<&'a W>, Option<&'a F>);

/// Walks two maps side by side and gives the keys at which they do not agree. Looking up each key
/// of one in the other would cost several times as much, and of thousands of peers most are as they
/// should be.
fn differences<'a, K: Ord, W, F>(
    wanted: &'a BTreeMap<K, W>,
    found: &'a BTreeMap<K, F>,
    is_met_by: impl Fn(&W, &F) -> bool,
) -> Vec<Difference<'a, K, W, F>> {
    let (mut wanted, mut found) = (wanted.iter().peekable(), found.iter().peekable());
    let mut differences = Vec::new();
    loop {
        let order = match (wanted.peek(), found.peek()) {
            (None, None) => return differences,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((wanted, _)), Some((found, _))) => wanted.cmp(found),
        };
        let wanted = if order.is_le() { wanted.next() } else { None };
        let found = if order.is_ge() { found.next() } else { None };
        match (wanted, found) {
            (Some((_, wanted)), Some((_, found))) if is_met_by(wanted, found) => {}
            (Some((key, _)), _) | (None, Some((key, _))) => {
                differences.push((
                    key,
                    wanted.map(|(_, wanted)| wanted),
                    found.map(|(_, found)| found),
                ));
            }
            (None, None) => {}
        }
    }
}

impl DesiredPeer {
    /// Whether nothing is to be written of the peer.
    fn is_met_by(&self, observed: &ObservedPeer) -> bool {
        !self.anew
            && self.keepalive_s == observed.keepalive_s
            && self.psk_is_met_by(observed)
            && self.endpoint_is_met_by(observed)
            && self.allowed_ips == observed.allowed_ips
    }

    /// Whether the peer may be on the device as it is: not without a preshared key where one is
    /// required. A key that we do not know is one.
    fn may_be_there(&self, observed: Option<&ObservedPeer>) -> bool {
        self.psk != DesiredPsk::Required || observed.is_some_and(|observed| observed.psk.is_some())
    }

    fn psk_is_met_by(&self, observed: &ObservedPeer) -> bool {
        match &self.psk {
            DesiredPsk::Key(psk) => observed.psk.as_ref() == Some(psk),
            DesiredPsk::Any => true,
            DesiredPsk::Required => observed.psk.is_some(),
        }
    }

    /// The endpoint of a live peer is the one the kernel has learned.
    fn endpoint_is_met_by(&self, observed: &ObservedPeer) -> bool {
        self.endpoint.is_none() || self.endpoint == observed.endpoint || observed.is_live()
    }
}

fn allowed_ips(desired: &BTreeSet<IpNet>, observed: &BTreeSet<IpNet>) -> AllowedIps {
    if desired == observed {
        AllowedIps::Untouched
    } else if desired.is_superset(observed) {
        AllowedIps::Add(desired.difference(observed).copied().collect())
    } else {
        AllowedIps::Replace(desired.clone())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.change, self.reason)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetRuleset(_) => f.write_str("set nftables table inet wattle"),
            Self::UpdateRuleset { .. } => {
                f.write_str("update the prefixes of nftables table inet wattle")
            }
            Self::CreateLink => f.write_str("create the interface"),
            Self::SetPrivateKey(key) => write!(f, "set the private key of {key}"),
            Self::SetListenPort(port) => write!(f, "set the listen port to {port}"),
            Self::SetMtu(mtu) => write!(f, "set the MTU to {mtu}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::SetUp => f.write_str("set the interface up"),
            Self::EnableForwarding(family) => write!(f, "enable forwarding of {family}"),
            Self::SetRoute(prefix, Some(source)) => write!(f, "set route {prefix} from {source}"),
            Self::SetRoute(prefix, None) => write!(f, "set route {prefix}"),
            Self::RemoveRoute(prefix) => write!(f, "remove route {prefix}"),
            Self::SetPeer(key, change) => write!(f, "set peer {key}{change}"),
            Self::RemovePeer(key) => write!(f, "remove peer {key}"),
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = self.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        if let Some(keepalive) = self.keepalive_s {
            write!(f, " keepalive {keepalive}")?;
        }
        if self.psk.is_some() {
            f.write_str(" preshared key")?;
        }
        let (verb, prefixes) = match &self.allowed_ips {
            AllowedIps::Untouched => return Ok(()),
            AllowedIps::Add(prefixes) => ("more", prefixes),
            AllowedIps::Replace(prefixes) => ("exactly", prefixes),
        };
        let prefixes: Vec<_> = prefixes.iter().map(IpNet::to_string).collect();
        write!(f, " prefixes {verb} {}", prefixes.join(","))
    }
}

impl fmt::Display for crate::host::state::Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        host::{
            ruleset::Ruleset,
            state::{Family, SESSION_S},
        },
        keys::psk::Psk,
        testing::Keys,
    };

    fn key(number: u64) -> WireguardKey {
        Keys::of(number).wireguard_key()
    }

    fn apply(observed: &Observed, plan: &Plan) -> Observed {
        plan.steps.iter().fold(observed.clone(), |observed, step| {
            observed.after(&step.change)
        })
    }

    const PEERS: u64 = 5;
    const PREFIXES: u8 = 8;

    fn prefix(number: u8) -> IpNet {
        format!("10.{number}.0.0/24").parse().unwrap()
    }

    fn endpoint() -> impl Strategy<Value = Option<SocketAddr>> {
        prop::option::of((1..4u8).prop_map(|host| SocketAddr::from(([203, 0, 113, host], 51820))))
    }

    fn psk() -> impl Strategy<Value = Psk> {
        (0..3u8).prop_map(|byte| Psk::new([byte; 32]))
    }

    fn desired_psk() -> impl Strategy<Value = DesiredPsk> {
        prop_oneof![
            psk().prop_map(DesiredPsk::Key),
            Just(DesiredPsk::Any),
            Just(DesiredPsk::Required)
        ]
    }

    fn routes() -> impl Strategy<Value = BTreeMap<IpNet, Option<IpAddr>>> {
        prop::collection::btree_map(
            (0..PREFIXES).prop_map(prefix),
            prop::option::of(Just(IpAddr::from([10, 0, 0, 1]))),
            0..4,
        )
    }

    fn addresses(least: usize) -> impl Strategy<Value = BTreeSet<IpNet>> {
        prop::collection::btree_set(
            (1..4u8).prop_map(|host| format!("10.99.0.{host}/16").parse().unwrap()),
            least..3,
        )
    }

    fn families() -> impl Strategy<Value = BTreeSet<Family>> {
        prop::collection::btree_set(prop_oneof![Just(Family::V4), Just(Family::V6)], 0..3)
    }

    fn ruleset() -> impl Strategy<Value = Ruleset> {
        let remote = prop::collection::btree_set((0..PREFIXES).prop_map(prefix), 0..3);
        (prop_oneof![Just("wattle0"), Just("wattle1")], remote).prop_map(|(interface, remote)| {
            Ruleset {
                interface: interface.parse().unwrap(),
                local: BTreeSet::new(),
                remote,
            }
        })
    }

    /// Which peer holds which prefix: each prefix at most one.
    fn holders() -> impl Strategy<Value = BTreeMap<u8, u64>> {
        prop::collection::btree_map(0..PREFIXES, 1..=PEERS, 0..10)
    }

    fn held(holders: &BTreeMap<u8, u64>, peer: u64) -> BTreeSet<IpNet> {
        holders
            .iter()
            .filter(|(_, holder)| **holder == peer)
            .map(|(number, _)| prefix(*number))
            .collect()
    }

    prop_compose! {
        fn desired()(
            holders in holders(),
            present in prop::collection::btree_map(1..=PEERS, (endpoint(), prop_oneof![Just(0u16), Just(25)], desired_psk()), 0..5),
            routes in routes(),
            addresses in addresses(1),
            forwarding in families(),
            ruleset in ruleset(),
        ) -> Desired {
            let peer = |(number, (endpoint, keepalive_s, psk)): (u64, _)| {
                let name = format!("site-{number}").parse().unwrap();
                (key(number), DesiredPeer { name, endpoint, keepalive_s, allowed_ips: held(&holders, number), psk, anew: false })
            };
            Desired {
                interface: "wattle0".parse().unwrap(),
                public_key: key(0),
                listen_port: 51820,
                mtu: 1420,
                addresses,
                peers: present.into_iter().map(peer).collect(),
                routes,
                forwarding,
                ruleset,
            }
        }
    }

    prop_compose! {
        fn observed_link()(
            holders in holders(),
            present in prop::collection::btree_map(
                0..=PEERS,
                (endpoint(), prop_oneof![Just(0u16), Just(25)], prop::option::of(0..2 * SESSION_S), prop::option::of(psk())),
                0..6,
            ),
            routes in routes(),
            addresses in addresses(0),
            own in prop::option::of(prop_oneof![Just(0u64), Just(99)]),
            up in any::<bool>(),
            mtu in prop_oneof![Just(1420u32), Just(1500)],
            listen_port in prop_oneof![Just(51820u16), Just(0)],
        ) -> Link {
            let peer = |(number, (endpoint, keepalive_s, handshake_age_s, psk)): (u64, _)| {
                let allowed_ips = held(&holders, number);
                (key(number), ObservedPeer { endpoint, keepalive_s, allowed_ips, psk, handshake_age_s, ..ObservedPeer::default() })
            };
            let public_key = own.map(key);
            // The kernel never keeps a peer with the interface's own key.
            let peers = present.into_iter().map(peer).filter(|(key, _)| Some(*key) != public_key).collect();
            Link { up, mtu, addresses, routes, public_key, listen_port, peers, ..Link::new(DeviceKind::Kernel) }
        }
    }

    prop_compose! {
        fn observed()(
            link in prop::option::weighted(0.9, observed_link()),
            forwarding in families(),
            ruleset in prop_oneof![
                Just(ObservedRuleset::Absent),
                Just(ObservedRuleset::Altered),
                ruleset().prop_map(ObservedRuleset::Intact),
            ],
        ) -> Observed {
            Observed { link, forwarding, ruleset }
        }
    }

    /// Checks each thing that the host should be, without the help of `plan`.
    fn reached(desired: &Desired, observed: &Observed) -> Result<(), TestCaseError> {
        let link = observed
            .link
            .as_ref()
            .ok_or_else(|| TestCaseError::fail("no interface"))?;
        prop_assert!(link.up);
        prop_assert_eq!(link.public_key, Some(desired.public_key));
        prop_assert_eq!(
            (link.listen_port, link.mtu),
            (desired.listen_port, desired.mtu)
        );
        prop_assert_eq!(&link.addresses, &desired.addresses);
        prop_assert_eq!(&link.routes, &desired.routes);
        prop_assert!(observed.forwarding.is_superset(&desired.forwarding));
        prop_assert_eq!(
            &observed.ruleset,
            &ObservedRuleset::Intact(desired.ruleset.clone())
        );
        let waits = |key: &WireguardKey| {
            desired
                .peers
                .get(key)
                .is_some_and(|peer| peer.psk == DesiredPsk::Required)
        };
        let settled = |key: &&WireguardKey| !waits(key);
        let (found, wanted) = (
            link.peers.keys().filter(settled),
            desired.peers.keys().filter(settled),
        );
        prop_assert_eq!(found.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
        for (key, peer) in &link.peers {
            let wanted = &desired.peers[key];
            prop_assert_eq!(
                (&peer.allowed_ips, peer.keepalive_s),
                (&wanted.allowed_ips, wanted.keepalive_s)
            );
            match &wanted.psk {
                DesiredPsk::Key(psk) => prop_assert_eq!(peer.psk.as_ref(), Some(psk)),
                DesiredPsk::Required => prop_assert!(peer.psk.is_some()),
                DesiredPsk::Any => {}
            }
            prop_assert!(
                peer.is_live() || wanted.endpoint.is_none() || peer.endpoint == wanted.endpoint
            );
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn applying_reaches_the_desired_state_and_planning_again_is_empty(desired in desired(), observed in observed()) {
            let after = apply(&observed, &plan(&desired, &observed));
            reached(&desired, &after)?;
            prop_assert_eq!(plan(&desired, &after), Plan::default());
        }

        #[test]
        fn h1_any_prefix_of_a_plan_can_be_repaired(desired in desired(), observed in observed(), stop in any::<prop::sample::Index>()) {
            let mut partly = plan(&desired, &observed);
            let steps = partly.steps.len();
            partly.steps.truncate(stop.index(steps + 1));
            let interrupted = apply(&observed, &partly);
            reached(&desired, &apply(&interrupted, &plan(&desired, &interrupted)))?;
        }

        #[test]
        fn no_prefix_is_ever_held_by_two_peers_and_one_at_its_right_place_stays(desired in desired(), observed in observed()) {
            let steps = plan(&desired, &observed).steps;
            let holders = |observed: &Observed| -> Vec<(IpNet, WireguardKey)> {
                let peers = observed.link.iter().flat_map(|link| &link.peers);
                peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (*prefix, *key))).collect()
            };
            let right: BTreeSet<_> = holders(&observed)
                .into_iter()
                .filter(|(prefix, key)| {
                    let found = observed.link.as_ref().and_then(|link| link.peers.get(key));
                    desired.peers.get(key).is_some_and(|peer| peer.allowed_ips.contains(prefix) && peer.may_be_there(found))
                })
                .collect();
            let mut now = observed;
            for step in steps {
                now = now.after(&step.change);
                let held = holders(&now);
                prop_assert_eq!(held.iter().map(|(prefix, _)| prefix).collect::<BTreeSet<_>>().len(), held.len());
                prop_assert!(right.is_subset(&held.into_iter().collect()), "after {}", step);
            }
        }

        #[test]
        fn a_live_peer_keeps_its_learned_endpoint_and_its_entry(desired in desired(), observed in observed()) {
            let live = |key: &WireguardKey| {
                observed.link.as_ref().and_then(|link| link.peers.get(key)).is_some_and(ObservedPeer::is_live)
            };
            for step in plan(&desired, &observed).steps {
                if let Change::SetPeer(key, change) = &step.change {
                    prop_assert!(change.endpoint.is_none() || !live(key), "{}", step);
                }
                if let Change::RemovePeer(key) = &step.change {
                    let has_psk = observed.link.as_ref().is_some_and(|link| link.peers[key].psk.is_some());
                    let must_go = desired.peers.get(key).is_none_or(|peer| peer.psk == DesiredPsk::Required && !has_psk);
                    prop_assert!(must_go, "{}", step);
                }
            }
        }

        #[test]
        fn a_peer_that_has_a_preshared_key_never_loses_it(desired in desired(), observed in observed()) {
            let keyed = |observed: &Observed| -> BTreeSet<WireguardKey> {
                let peers = observed.link.iter().flat_map(|link| &link.peers);
                peers.filter(|(key, peer)| peer.psk.is_some() && desired.peers.contains_key(key)).map(|(key, _)| *key).collect()
            };
            let mut now = observed;
            for step in plan(&desired, &now).steps {
                let before = keyed(&now);
                now = now.after(&step.change);
                prop_assert!(before.is_subset(&keyed(&now)), "after {}", step);
            }
        }
    }

    #[test]
    fn a_prefix_that_moves_is_written_once_and_the_ruleset_stands_first() {
        let name = |number: u64| format!("site-{number}").parse().unwrap();
        let peer = |number, prefixes: &[u8]| {
            let allowed_ips = prefixes.iter().map(|number| prefix(*number)).collect();
            (
                key(number),
                DesiredPeer {
                    name: name(number),
                    endpoint: None,
                    keepalive_s: 25,
                    allowed_ips,
                    psk: DesiredPsk::Any,
                    anew: false,
                },
            )
        };
        let before = Desired {
            interface: "wattle0".parse().unwrap(),
            public_key: key(0),
            listen_port: 51820,
            mtu: 1420,
            addresses: ["10.99.0.1/16".parse().unwrap()].into(),
            peers: [peer(1, &[1, 2]), peer(2, &[3])].into(),
            routes: BTreeMap::new(),
            forwarding: BTreeSet::new(),
            ruleset: Ruleset {
                interface: "wattle0".parse().unwrap(),
                local: BTreeSet::new(),
                remote: BTreeSet::new(),
            },
        };
        let first = plan(&before, &Observed::default());
        assert!(matches!(first.steps[0].change, Change::SetRuleset(_)));
        let observed = apply(&Observed::default(), &first);
        let moved = Desired {
            peers: [peer(1, &[1]), peer(2, &[3, 2])].into(),
            ..before
        };
        let changes: Vec<_> = plan(&moved, &observed)
            .steps
            .into_iter()
            .map(|step| step.change)
            .collect();
        let add = PeerChange {
            allowed_ips: AllowedIps::Add([prefix(2)].into()),
            ..PeerChange::default()
        };
        assert_eq!(changes, [Change::SetPeer(key(2), add)]);
    }
}
