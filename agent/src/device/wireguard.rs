//! The device itself, and around it what gotatun lacks: writes that leave sessions alone, prefixes
//! that move, renewal of idle sessions.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::future::join_all;
use gotatun::{
    device::{
        Device, DeviceBuilder, Error, Peer,
        configure::{DeviceWrite, PeerStats},
        uapi::{
            UapiClient, UapiServer,
            command::{Get, Request, Set, SetPeer, SetUnset},
        },
    },
    tun::tun_async_device::TunDevice,
    x25519::{PublicKey, StaticSecret},
};
use ipnet::IpNet;
use nix::errno::Errno;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, warn};
use zeroize::Zeroizing;

use super::{
    INTERFACE_CHECK,
    lease::{Departures, Lease, Shared, Sockets},
};

/// Age of a session that is renewed although nothing is sent: after the 120 s at which an end that
/// sends renews it, and before the 180 s at which it ends.
const RENEWAL: Duration = Duration::from_secs(135);
/// What one round of calls may take. They are sent at once; it is the answers that take time, and
/// nobody waits for them.
const CALLS_LIMIT: Duration = Duration::from_millis(50);

/// How long a socket of the device itself may take to close.
const SOCKET_LIMIT: Duration = Duration::from_secs(1);
const SOCKET_POLL: Duration = Duration::from_millis(10);

/// For how long a device goes on reading what arrives under its key after it was given another.
/// Peers need a tenth of a second to change over, and some seconds when handshakes are lost.
const FORMER: Duration = Duration::from_secs(30);

type Transports = (Sockets, TunDevice, Departures);
type PublicKeyBytes = [u8; 32];

/// The device, and around it what gotatun lacks.
pub(super) struct WireguardDevice {
    tun: TunDevice,
    device: Device<Transports>,
    dump: UapiClient,
    shared: Shared,
    lease: Lease,
    /// The device with the key before, and until when it goes on reading.
    former: Option<(Device<Transports>, Instant)>,
    /// Which peer holds which prefix: gotatun routes by prefix, yet forgets to take a prefix from
    /// the peer that held it before.
    owners: BTreeMap<IpNet, PublicKeyBytes>,
    recovered: Option<Instant>,
}

/// What a device needs to be made anew.
#[derive(Clone)]
struct Settings {
    key: Option<StaticSecret>,
    port: u16,
    mark: u32,
    peers: Vec<Peer>,
}

impl WireguardDevice {
    pub(super) async fn new(tun: TunDevice) -> Result<Self, Error> {
        let (shared, lease) = (Shared::default(), Lease::new());
        let (device, dump) = idle_device(&tun, &shared, &lease, 0, 0).await?;
        Ok(Self {
            tun,
            device,
            dump,
            shared,
            lease,
            former: None,
            owners: BTreeMap::new(),
            recovered: None,
        })
    }

    /// Waits until the device ends by itself: its interface is gone, or it gave up.
    pub(super) async fn ended(&mut self) {
        self.device.wait().await;
    }

    pub(super) async fn stop(mut self) {
        self.stop_former().await;
        self.device.stop().await;
    }

    /// Ends the device with the key before, once its time has come.
    pub(super) async fn end_former(&mut self) {
        if self
            .former
            .as_ref()
            .is_some_and(|(_, until)| Instant::now() >= *until)
        {
            self.stop_former().await;
        }
    }

    async fn stop_former(&mut self) {
        self.shared.forget_former();
        if let Some((former, _)) = self.former.take() {
            former.stop().await;
        }
    }

    pub(super) async fn answer(&mut self, request: &str) -> Zeroizing<String> {
        // The parser slices keys by bytes.
        let parsed = if request.is_ascii() {
            request.parse().ok()
        } else {
            None
        };
        match parsed {
            Some(Request::Get(_)) => match self.dump.send(Get::default()).await {
                Ok(dump) => Zeroizing::new(format!("{dump}\n")),
                Err(_) => errno(Err(Errno::EIO)),
            },
            Some(Request::Set(set)) => errno(self.set(set).await),
            None => errno(Err(Errno::EINVAL)),
        }
    }

    /// Writes only what the request names, and leaves the sessions of peers alone.
    async fn set(&mut self, set: Set) -> Result<(), Errno> {
        if set.private_key.is_some() || set.listen_port.is_some() {
            self.set_socket(
                set.private_key.map(|key| StaticSecret::from(key.0)),
                set.listen_port,
            )
            .await?;
        }
        if let Some(mark) = set.fwmark {
            let mark = if let SetUnset::Set(mark) = mark {
                u32::from(mark)
            } else {
                0
            };
            self.device
                .set_fwmark(mark)
                .await
                .map_err(|error| errno_of(&error))?;
        }
        self.forget_in_former(&set.peers, set.replace_peers).await;
        let Self { device, owners, .. } = self;
        let written = device
            .write(async |device| {
                let has_key = device.private_key().is_some();
                if set.replace_peers {
                    for found in device.peers().await {
                        device.remove_peer(&found.peer.public_key).await;
                    }
                    owners.clear();
                }
                for peer in set.peers {
                    // gotatun panics on a peer that comes before the key.
                    if !has_key && !peer.remove {
                        return Err(Errno::ENOKEY);
                    }
                    set_peer(device, owners, peer).await?;
                }
                Ok(())
            })
            .await;
        written.map_err(|error| errno_of(&error))?
    }

    /// From a peer that is removed nothing is taken under the key before, either.
    async fn forget_in_former(&mut self, peers: &[SetPeer], all: bool) {
        if all {
            self.stop_former().await;
        }
        let gone = peers
            .iter()
            .filter(|peer| peer.remove)
            .map(|peer| PublicKey::from(peer.peer.public_key.0));
        let gone: Vec<_> = gone.collect();
        let Some((former, _)) = self.former.as_ref().filter(|_| !gone.is_empty()) else {
            return;
        };
        let removed = former
            .write(async |former| {
                for key in &gone {
                    former.remove_peer(key).await;
                }
            })
            .await;
        if removed.is_err() {
            self.stop_former().await;
        }
    }

    /// Changes the key, the port, or both. Either ends the sessions; a key does so on the kernel's
    /// WireGuard too.
    async fn set_socket(
        &mut self,
        key: Option<StaticSecret>,
        port: Option<u16>,
    ) -> Result<(), Errno> {
        let before = self.settings().await;
        let wanted = Settings {
            key: key.or(before.key.clone()),
            port: port.unwrap_or(before.port),
            ..before.clone()
        };
        let same_key =
            wanted.key.as_ref().map(PublicKey::from) == before.key.as_ref().map(PublicKey::from);
        if same_key && wanted.port == before.port {
            return Ok(());
        }
        if wanted.port != before.port {
            refuse_taken(wanted.port)?;
        }
        let keeps_reading = wanted.port == before.port && before.key.is_some();
        let Err(cause) = self.remake(&wanted, keeps_reading).await else {
            return Ok(());
        };
        error!(%cause, port = wanted.port, "cannot open the UDP socket");
        // No device is left without a socket: one with a wrong port is seen to have it, and set
        // right later.
        let port = if wanted.port == before.port {
            0
        } else {
            before.port
        };
        if let Err(error) = self.remake(&Settings { port, ..wanted }, false).await {
            error!(%error, port, "cannot open a UDP socket at all");
        }
        Err(errno_of(&cause))
    }

    /// Goes on after gotatun gave up, which it does when a single packet cannot be sent while it is
    /// under load.
    pub(super) async fn recover(&mut self) -> anyhow::Result<()> {
        if self
            .recovered
            .replace(Instant::now())
            .is_some_and(|last| last.elapsed() < INTERFACE_CHECK)
        {
            bail!("the device keeps failing");
        }
        warn!("the device failed; making it again");
        let settings = self.settings().await;
        self.remake(&settings, false)
            .await
            .context("cannot make the device again")
    }

    /// Shakes hands with the peers that a keepalive should keep in touch with, where gotatun does
    /// not.
    ///
    /// On the kernel's WireGuard a keepalive renews the session after 120 s, and calls a peer that
    /// did not answer again and again. gotatun lets the session of an idle link end, and gives up
    /// on a peer after 90 s, until there is a packet to send. While an attempt is under way this
    /// does nothing.
    pub(super) async fn keep_in_touch(&self) {
        let peers = self.device.peers().await;
        let idle = peers
            .iter()
            .filter(|found| found.stats.last_handshake.is_none_or(|age| age >= RENEWAL));
        self.call(idle.filter(|found| found.peer.keepalive.is_some()))
            .await;
    }

    async fn call_all(&self) {
        self.call(self.device.peers().await.iter()).await;
    }

    async fn call(&self, peers: impl Iterator<Item = &PeerStats>) {
        let calls = peers
            .filter(|found| found.peer.endpoint.is_some())
            .map(|found| self.device.force_handshake(&found.peer.public_key));
        let _ = timeout(CALLS_LIMIT, join_all(calls)).await;
    }

    /// Another gotatun device on the same interface.
    ///
    /// It could change its key and port by itself, but to that end it restarts its tasks, and now
    /// and then takes their end for the end of the interface: from then on it reports a failure for
    /// ever. With `keeps_reading` the device before goes on reading what arrives under its key.
    ///
    /// Its sessions are gone, so it calls all peers: they learn of another port by hearing from it.
    async fn remake(&mut self, settings: &Settings, keeps_reading: bool) -> Result<(), Error> {
        self.replace(settings, keeps_reading).await?;
        self.call_all().await;
        Ok(())
    }

    async fn replace(&mut self, settings: &Settings, mut keeps_reading: bool) -> Result<(), Error> {
        let deadline = Instant::now() + SOCKET_LIMIT;
        self.stop_former().await;
        loop {
            let lease = Lease::new();
            let (device, dump) = idle_device(
                &self.tun,
                &self.shared,
                &lease,
                settings.port,
                settings.mark,
            )
            .await?;
            let before = std::mem::replace(&mut self.device, device);
            let lease = std::mem::replace(&mut self.lease, lease);
            if std::mem::take(&mut keeps_reading) {
                self.shared.end_lease(&lease);
                self.former = Some((before, Instant::now() + FORMER));
            } else {
                before.stop().await;
            }
            self.dump = dump;
            let Some(key) = settings.key.clone() else {
                return Ok(());
            };
            let peers = settings.peers.clone();
            let started = self
                .device
                .write(async |device| {
                    device.set_private_key(key).await;
                    device.add_peers(peers)
                })
                .await;
            match started {
                // The socket of the device before closes a moment after the device has stopped.
                Err(error)
                    if errno_of(&error) == Errno::EADDRINUSE && Instant::now() < deadline =>
                {
                    sleep(SOCKET_POLL).await
                }
                other => return other.map(drop),
            }
        }
    }

    async fn settings(&self) -> Settings {
        self.device
            .read(async |device| Settings {
                key: device.private_key().cloned(),
                port: device.listen_port(),
                mark: device.fwmark().unwrap_or(0),
                peers: device
                    .peers()
                    .await
                    .into_iter()
                    .map(|found| found.peer)
                    .collect(),
            })
            .await
    }
}

/// A device that has neither key nor peers yet, and so no socket.
async fn idle_device(
    tun: &TunDevice,
    shared: &Shared,
    lease: &Lease,
    port: u16,
    mark: u32,
) -> Result<(Device<Transports>, UapiClient), Error> {
    let (dump, server) = UapiServer::new();
    let sockets = Sockets {
        shared: shared.clone(),
        lease: lease.clone(),
    };
    let departures = Departures {
        tun: tun.clone(),
        lease: lease.clone(),
    };
    let device = DeviceBuilder::new()
        .with_udp(sockets)
        .with_ip_pair(tun.clone(), departures)
        .with_uapi(server);
    Ok((
        device
            .with_listen_port(port)
            .with_fwmark(mark)
            .build()
            .await?,
        dump,
    ))
}

/// Tells that a port is taken while the device still works on the one that it has.
fn refuse_taken(port: u16) -> Result<(), Errno> {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
            Err(Errno::EADDRINUSE)
        }
        _ => Ok(()),
    }
}

async fn set_peer(
    device: &mut DeviceWrite<'_, Transports>,
    owners: &mut BTreeMap<IpNet, PublicKeyBytes>,
    set: SetPeer,
) -> Result<(), Errno> {
    let owner = set.peer.public_key.0;
    let key = PublicKey::from(owner);
    if set.remove {
        device.remove_peer(&key).await;
        owners.retain(|_, held_by| *held_by != owner);
        return Ok(());
    }

    // `modify_peer` answers whether the peer is there, and with nothing to write writes nothing.
    let is_known = device.modify_peer(&key, |_| {}).await;
    if !is_known {
        if set.update_only {
            return Ok(());
        }
        device.add_peer(Peer::new(key));
    }
    if set.replace_allowed_ips {
        owners.retain(|_, held_by| *held_by != owner);
    }
    for prefix in &set.peer.allowed_ip {
        let prefix = IpNet::new(prefix.network(), prefix.prefix()).map_err(|_| Errno::EINVAL)?;
        if let Some(loser) = owners.insert(prefix, owner)
            && loser != owner
        {
            let left = prefixes_of(owners, loser)?;
            device
                .modify_peer(&PublicKey::from(loser), |peer| {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(left.allowed_ips);
                })
                .await;
        }
    }
    device
        .modify_peer(&key, |peer| {
            if let Some(psk) = set.peer.preshared_key {
                peer.set_preshared_key(if let SetUnset::Set(psk) = psk {
                    Some(psk.0)
                } else {
                    None
                });
            }
            if set.peer.endpoint.is_some() {
                peer.set_endpoint(set.peer.endpoint);
            }
            if set.peer.persistent_keepalive_interval.is_some() {
                peer.set_keepalive(set.peer.persistent_keepalive_interval);
            }
            if set.replace_allowed_ips {
                peer.clear_allowed_ips();
            }
            peer.add_allowed_ips(set.peer.allowed_ip);
        })
        .await;
    Ok(())
}

/// The prefixes of one peer, in gotatun's own type, which has no public name but that of this
/// field.
fn prefixes_of(
    owners: &BTreeMap<IpNet, PublicKeyBytes>,
    owner: PublicKeyBytes,
) -> Result<Peer, Errno> {
    let mut peer = Peer::new(PublicKey::from(owner));
    for prefix in owners
        .iter()
        .filter(|(_, held_by)| **held_by == owner)
        .map(|(prefix, _)| prefix)
    {
        peer.allowed_ips
            .push(prefix.to_string().parse().map_err(|_| Errno::EINVAL)?);
    }
    Ok(peer)
}

fn errno(result: Result<(), Errno>) -> Zeroizing<String> {
    let code = result.err().map_or(0, |errno| errno as i32);
    Zeroizing::new(format!("errno={code}\n\n"))
}

fn errno_of(error: &Error) -> Errno {
    if let Error::Bind(error, _) | Error::IoError(error) = error
        && let Some(code) = error.raw_os_error()
    {
        return Errno::from_raw(code);
    }
    Errno::EINVAL
}
