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

use crate::host::{
    state::{
        AllowedIps, Change, Desired, DesiredPeer, DesiredPsk, Interface, Observed, ObservedPeer,
        ObservedRoute, ObservedRuleset, PeerUpdate,
    },
    way::Way,
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
    let underlay = differences(&desired.underlay, &observed.underlay, |wanted, found| {
        wanted == found
    });
    plan.underlay(&underlay);
    let fresh = Interface::new(DeviceKind::Kernel);
    let interface = observed.interface.as_ref().unwrap_or_else(|| {
        plan.push(Change::CreateInterface, "the interface is missing");
        &fresh
    });
    let routes = differences(&desired.routes, &interface.routes, |wanted, found| {
        *wanted == found.source
    });
    // Another private key leaves no session that a preshared key of before could be kept for.
    let keeps_sessions = interface.public_key == Some(desired.public_key);
    let may_be_there = |wanted: &DesiredPeer, found: Option<&ObservedPeer>| {
        wanted.may_be_there(found.filter(|_| keeps_sessions))
    };
    let mut peers = differences(&desired.peers, &interface.peers, |wanted, found| {
        wanted.is_met_by(found) && may_be_there(wanted, Some(found))
    });
    for (_, wanted, found) in &mut peers {
        *wanted = wanted.filter(|wanted| may_be_there(wanted, *found));
    }
    plan.interface(desired, interface);
    plan.routes(&routes);
    plan.peers(&peers);
    if interface
        .public_key
        .is_some_and(|key| key != desired.public_key)
    {
        plan.call(desired, interface);
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
    for address in interface.addresses.difference(&desired.addresses) {
        plan.push(
            Change::RemoveAddress(*address),
            "not the node's tunnel address",
        );
    }
    // After the routes into the tunnel, which it kept the address out of.
    for (address, ..) in underlay.iter().filter(|(_, wanted, _)| wanted.is_none()) {
        plan.push(
            Change::RemoveUnderlayRoute(**address),
            "no prefix of the mesh takes it into the tunnel",
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
            ObservedRuleset::Intact(found)
                if (found.node, &found.interface)
                    == (desired.ruleset.node, &desired.ruleset.interface) =>
            {
                let update = Change::UpdateRuleset {
                    from: found.clone(),
                    to: desired.ruleset.clone(),
                };
                self.push(update, "the prefixes of the mesh changed");
            }
            ObservedRuleset::Intact(_) => {
                self.push(set(), "the table is for another interface or node");
            }
            ObservedRuleset::Absent => self.push(set(), "the table is missing"),
            ObservedRuleset::Altered => self.push(set(), "the table was altered"),
            ObservedRuleset::Foreign => {
                self.push(set(), "another program has a table of this name")
            }
        }
        for family in desired.forwarding.difference(&observed.forwarding) {
            self.push(
                Change::EnableForwarding(*family),
                "packets of the LAN must be forwarded",
            );
        }
    }

    /// Ways past the tunnel come before all that leads into it.
    fn underlay(&mut self, differences: &[Difference<'_, IpAddr, Way, Way>]) {
        for (address, wanted, found) in differences {
            let Some(way) = wanted else { continue };
            let reason = if found.is_some() {
                "the host's way there is another now"
            } else {
                "the mesh has a prefix with it, and it is reached outside of the tunnel"
            };
            self.push(Change::SetUnderlayRoute(**address, (*way).clone()), reason);
        }
    }

    fn interface(&mut self, desired: &Desired, interface: &Interface) {
        if interface.public_key != Some(desired.public_key) {
            let reason = if interface.public_key.is_some() {
                "the interface has another key"
            } else {
                "the interface has no key"
            };
            self.push(Change::SetPrivateKey(desired.public_key), reason);
        }
        if interface.listen_port != desired.listen_port {
            self.push(
                Change::SetListenPort(desired.listen_port),
                format!("it is {}", interface.listen_port),
            );
        }
        if interface.mtu != desired.mtu {
            let reason = if interface.mtu == 0 {
                "the interface is new".to_owned()
            } else {
                format!("it is {}", interface.mtu)
            };
            self.push(Change::SetMtu(desired.mtu), reason);
        }
        for address in desired.addresses.difference(&interface.addresses) {
            self.push(
                Change::AddAddress(*address),
                "the node's tunnel address is missing",
            );
        }
        if !interface.up {
            self.push(Change::SetUp, "the interface is down");
        }
    }

    fn routes(&mut self, differences: &[Difference<'_, IpNet, Option<IpAddr>, ObservedRoute>]) {
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
    fn call(&mut self, desired: &Desired, interface: &Interface) {
        let keepalive = |seconds| PeerUpdate {
            keepalive_s: Some(seconds),
            ..PeerUpdate::default()
        };
        for (key, peer) in desired
            .peers
            .iter()
            .filter(|(key, peer)| interface.peers.contains_key(key) && !peer.allowed_ips.is_empty())
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
            let change = PeerUpdate {
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
        let mut change = PeerUpdate::default();
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
            Self::CreateInterface => f.write_str("create the interface"),
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
            Self::SetUnderlayRoute(address, way) => {
                write!(f, "set route {address} past the tunnel {way}")
            }
            Self::RemoveUnderlayRoute(address) => {
                write!(f, "remove route {address} past the tunnel")
            }
            Self::SetPeer(key, change) => write!(f, "set peer {key}{change}"),
            Self::RemovePeer(key) => write!(f, "remove peer {key}"),
        }
    }
}

impl fmt::Display for PeerUpdate {
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
mod tests;
