//! What WireGuard knows, and how to change it, on the kernel's device or on the userspace one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use ipnet::IpNet;
use wattle_mesh::{
    host::{
        interface::InterfaceName,
        state::{AllowedIps, ObservedPeer, PeerUpdate},
    },
    keys::psk::Psk,
};
use wattle_wire::{key::WireguardKey, report::DeviceKind};
use wireguard_control::{
    AllowedIp, Backend, Device, DeviceUpdate, Key, PeerConfigBuilder, PeerInfo,
};

use super::{
    device_state::{Dump, Write},
    userspace,
};

/// Prefixes in one netlink message. A peer must fit into 8 KiB whole, and a prefix takes up to 44
/// bytes of it.
const PREFIXES_PER_MESSAGE: usize = 128;

/// Everything that the device knows, or nothing if it does not answer.
pub(super) async fn dump(
    interface: &InterfaceName,
    kind: DeviceKind,
) -> anyhow::Result<Option<Dump>> {
    match kind {
        DeviceKind::Userspace => userspace::dump(interface, now().as_secs()).await,
        DeviceKind::Kernel => {
            let name = kernel_name(interface)?;
            let device = off_thread(move || Device::get(&name, Backend::Kernel)).await;
            Ok(Some(kernel_dump(
                device.context("cannot read the state of the WireGuard device from the kernel")?,
                now(),
            )))
        }
    }
}

/// Writes what it is told to and nothing else: no other peer is touched, and of this one only what
/// is named.
pub(super) async fn write(
    interface: &InterfaceName,
    kind: DeviceKind,
    what: &Write<'_>,
) -> anyhow::Result<()> {
    let written = match kind {
        DeviceKind::Userspace => userspace::write(interface, what).await,
        DeviceKind::Kernel => {
            let name = kernel_name(interface)?;
            let update = kernel_update(what);
            // Were the interface gone by now, this would make one of its name; the next round
            // completes it.
            off_thread(move || update.apply(&name, Backend::Kernel)).await
        }
    };
    written.map_err(super::explained)
}

/// `wireguard-control` blocks.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn kernel_name(interface: &InterfaceName) -> anyhow::Result<wireguard_control::InterfaceName> {
    interface
        .as_str()
        .parse()
        .map_err(|error| anyhow::anyhow!("{error:?}"))
        .context("not an interface name for the kernel")
}

fn kernel_dump(device: Device, now: Duration) -> Dump {
    Dump {
        public_key: device
            .public_key
            .and_then(|key| WireguardKey::try_from(key.0).ok()),
        listen_port: device.listen_port.unwrap_or(0),
        peers: kernel_peers(device.peers, now),
    }
}

fn kernel_peers(found: Vec<PeerInfo>, now: Duration) -> BTreeMap<WireguardKey, ObservedPeer> {
    let mut peers: BTreeMap<WireguardKey, ObservedPeer> = BTreeMap::new();
    for PeerInfo { config, stats } in found {
        let Ok(key) = WireguardKey::try_from(config.public_key.0) else {
            continue;
        };
        let prefixes = config
            .allowed_ips
            .iter()
            .filter_map(|prefix| IpNet::new(prefix.address, prefix.cidr).ok());
        // A peer with many prefixes comes in several messages, of which only the first has the
        // rest.
        if let Some(begun) = peers.get_mut(&key) {
            begun.allowed_ips.extend(prefixes);
            continue;
        }
        let handshake = stats
            .last_handshake_time
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let peer = ObservedPeer {
            endpoint: config.endpoint,
            keepalive_s: config.persistent_keepalive_interval.unwrap_or(0),
            allowed_ips: prefixes.collect(),
            psk: config
                .preshared_key
                .filter(|key| key.0 != [0; 32])
                .map(|key| Psk::new(key.0)),
            handshake_age_s: handshake.map(|at| now.saturating_sub(at).as_secs()),
            received_bytes: stats.rx_bytes,
            sent_bytes: stats.tx_bytes,
        };
        peers.insert(key, peer);
    }
    peers
}

/// Peers that do not fit into one netlink message go in several, one after another.
fn kernel_update(what: &Write<'_>) -> DeviceUpdate {
    let update = DeviceUpdate::new();
    match what {
        Write::PrivateKey(key) => update.set_private_key(Key(***key)),
        Write::ListenPort(port) => update.set_listen_port(*port),
        Write::Peers(peers) => peers
            .iter()
            .fold(update, |update, (key, change)| match change {
                Some(change) => peer_messages(key, change)
                    .into_iter()
                    .fold(update, DeviceUpdate::add_peer),
                None => update.remove_peer_by_key(&Key(*key.as_bytes())),
            }),
    }
}

/// One peer, in as few messages as its prefixes fit in; only the first replaces.
fn peer_messages(key: &WireguardKey, change: &PeerUpdate) -> Vec<PeerConfigBuilder> {
    let key = Key(*key.as_bytes());
    let mut first = PeerConfigBuilder::new(&key);
    if let Some(psk) = &change.psk {
        first = first.set_preshared_key(Key(*psk.reveal()));
    }
    if let Some(endpoint) = change.endpoint {
        first = first.set_endpoint(endpoint);
    }
    if let Some(seconds) = change.keepalive_s {
        first = first.set_persistent_keepalive_interval(seconds);
    }
    let prefixes = match &change.allowed_ips {
        AllowedIps::Untouched => &BTreeSet::new(),
        AllowedIps::Add(prefixes) => prefixes,
        AllowedIps::Replace(prefixes) => {
            first = first.replace_allowed_ips();
            prefixes
        }
    };
    let prefixes: Vec<_> = prefixes
        .iter()
        .map(|prefix| AllowedIp {
            address: prefix.network(),
            cidr: prefix.prefix_len(),
        })
        .collect();
    let mut messages = prefixes.chunks(PREFIXES_PER_MESSAGE);
    let first = first.add_allowed_ips(messages.next().unwrap_or_default());
    let more = messages.map(|prefixes| PeerConfigBuilder::new(&key).add_allowed_ips(prefixes));
    std::iter::once(first).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::device_state;

    fn key(seed: u8) -> WireguardKey {
        device_state::public_half(&[seed; 32]).unwrap()
    }

    fn prefixes(count: u8) -> BTreeSet<IpNet> {
        (0..count)
            .map(|third| format!("10.9.{third}.0/24").parse().unwrap())
            .collect()
    }

    #[test]
    fn a_change_of_the_keepalive_names_nothing_else() {
        let change = PeerUpdate {
            keepalive_s: Some(25),
            ..PeerUpdate::default()
        };
        let bare = PeerConfigBuilder::new(&Key(*key(1).as_bytes()));
        assert_eq!(
            peer_messages(&key(1), &change),
            [bare.set_persistent_keepalive_interval(25)]
        );
    }

    #[test]
    fn many_prefixes_take_several_messages_of_which_only_the_first_replaces() {
        let change = PeerUpdate {
            allowed_ips: AllowedIps::Replace(prefixes(200)),
            ..PeerUpdate::default()
        };
        let messages = peer_messages(&key(1), &change);
        let bare = PeerConfigBuilder::new(&Key(*key(1).as_bytes()));
        let all: Vec<_> = prefixes(200)
            .iter()
            .map(|net| AllowedIp {
                address: net.addr(),
                cidr: 24,
            })
            .collect();
        let (first, rest) = all.split_at(PREFIXES_PER_MESSAGE);
        assert_eq!(
            messages,
            [
                bare.clone().replace_allowed_ips().add_allowed_ips(first),
                bare.add_allowed_ips(rest)
            ]
        );
    }

    #[test]
    fn a_peer_without_prefixes_is_replaced_all_the_same() {
        let change = PeerUpdate {
            allowed_ips: AllowedIps::Replace(BTreeSet::new()),
            ..PeerUpdate::default()
        };
        assert_eq!(
            peer_messages(&key(1), &change),
            [PeerConfigBuilder::new(&Key(*key(1).as_bytes())).replace_allowed_ips()]
        );
    }

    #[test]
    fn a_peer_that_the_kernel_tells_in_two_messages_is_one_peer() {
        let mut first = PeerInfo::from_public_key(Key(*key(1).as_bytes()));
        first.config.endpoint = Some("192.0.2.1:51820".parse().unwrap());
        first.config.allowed_ips = vec!["10.9.0.0/24".parse().unwrap()];
        first.config.preshared_key = Some(Key::zero());
        first.stats.last_handshake_time = Some(UNIX_EPOCH + Duration::from_secs(90));
        first.stats.rx_bytes = 7;
        let mut second = PeerInfo::from_public_key(Key(*key(1).as_bytes()));
        second.config.allowed_ips = vec!["10.9.1.0/24".parse().unwrap()];

        let peer = ObservedPeer {
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed_ips: prefixes(2),
            handshake_age_s: Some(10),
            received_bytes: 7,
            ..ObservedPeer::default()
        };
        assert_eq!(
            kernel_peers(vec![first, second], Duration::from_secs(100)),
            BTreeMap::from([(key(1), peer)])
        );
    }
}
