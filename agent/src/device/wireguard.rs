//! The device as `wg` sees it: what is asked and set on its socket.

use std::{
    collections::{BTreeSet, HashSet},
    io::{PipeWriter, Write},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::Context;
use gotatun::{
    device::uapi::command::{
        GetPeer, GetResponse, Peer as PeerSettings, Request, Response, Set, SetPeer, SetUnset,
    },
    noise::{Tunn, rate_limiter::RateLimiter},
    packet::WgKind,
    x25519::{PublicKey, StaticSecret},
};
use ip_network::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, packet_route::link::LinkAttribute};
use tokio::sync::mpsc;
use tracing::error;
use wattle_mesh::host::{interface::InterfaceName, offload::Offload};
use zeroize::Zeroizing;

use super::{
    inbound, outbound,
    peer::{Peer, Tunnel},
    shared::{DeviceKey, Entry, Shared},
    tun::{MOST_SEGMENTS, Tun},
    udp::UdpSocket,
    waiting::Waiting,
};

/// Handshakes in a second from which on the device wants cookies.
const HANDSHAKES: u64 = 100;

/// The device and the threads that move its packets.
pub(super) struct WireguardDevice {
    shared: Arc<Shared>,
    port: u16,
    mark: u32,
    /// Keys that it has had.
    keys: u64,
    offloads: BTreeSet<Offload>,
    socket_changed: PipeWriter,
    ended: mpsc::Receiver<()>,
}

impl WireguardDevice {
    /// Makes the interface, and uses what is named of what Linux does for many packets at once.
    pub(super) fn start(
        interface: &InterfaceName,
        offloads: BTreeSet<Offload>,
    ) -> anyhow::Result<Self> {
        let tun =
            Tun::open(interface, offloads.contains(&Offload::Interface)).with_context(|| {
                format!(
                    "cannot make the TUN interface {interface}: it takes CAP_NET_ADMIN and \
                 /dev/net/tun. Below wattle-agent.service, `systemctl start wattle-device.socket` \
                 is what to do"
                )
            })?;
        let shared = Shared::new(tun);
        let (changed, socket_changed) = std::io::pipe()?;
        let (end, ended) = mpsc::channel(2);
        let of_outbound = Arc::clone(&shared);
        spawn("outbound", end.clone(), move || outbound::run(&of_outbound))?;
        let of_inbound = Arc::clone(&shared);
        spawn("inbound", end, move || inbound::run(&of_inbound, changed))?;
        Ok(Self {
            shared,
            port: 0,
            mark: 0,
            keys: 0,
            offloads,
            socket_changed,
            ended,
        })
    }

    /// Has Linux cut a flow itself where it would hand over more segments of it than the device
    /// reads at once: those of a flow with tiny segments.
    pub(super) async fn limit_segments(&self, index: u32) -> anyhow::Result<()> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let limit = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(MOST_SEGMENTS));
        handle.link().set(limit.build()).execute().await?;
        Ok(())
    }

    /// Waits until the interface is gone.
    pub(super) async fn ended(&mut self) {
        self.ended.recv().await;
    }

    pub(super) fn answer(&mut self, request: &str) -> Zeroizing<String> {
        // The parser slices keys by bytes.
        let parsed = if request.is_ascii() {
            request.parse().ok()
        } else {
            None
        };
        match parsed {
            Some(Request::Get(_)) => Zeroizing::new(format!("{}\n", Response::Get(self.get()))),
            Some(Request::Set(set)) => errno(self.set(set)),
            None => errno(Err(Errno::EINVAL)),
        }
    }

    fn get(&self) -> GetResponse {
        let peers = self.shared.peers();
        let mut response = GetResponse::default();
        response.private_key = peers.key.as_ref().map(|key| key.private.to_bytes().into());
        response.listen_port = Some(
            self.shared
                .socket()
                .map_or(self.port, |socket| socket.port()),
        );
        response.fwmark = Some(self.mark);
        response.peers = peers.entries().map(described).collect();
        response
    }

    /// Writes only what the request names, and leaves the sessions of peers alone.
    fn set(&mut self, set: Set) -> Result<(), Errno> {
        if let Some(mark) = &set.fwmark {
            self.mark = if let SetUnset::Set(mark) = mark {
                u32::from(*mark)
            } else {
                0
            };
            if let Some(socket) = self.shared.socket() {
                socket.set_mark(self.mark).map_err(errno_of)?;
            }
        }
        if let Some(key) = &set.private_key {
            // All zero means none.
            let key = Some(key.0).filter(|key| *key != [0; 32]);
            self.set_key(key.map(StaticSecret::from));
        }
        self.set_port(set.listen_port)?;
        let mut new = self.new_peers(&set)?.into_iter();
        let mut peers = self.shared.change_peers();
        if set.replace_peers {
            peers.clear();
        }
        for settings in &set.peers {
            let key = public(settings);
            if settings.remove {
                peers.remove(&key);
                continue;
            }
            if peers.get(&key).is_none()
                && !settings.update_only
                && let Some(peer) = new.next()
            {
                peers.add(peer);
            }
            let Some(peer) = peers.get(&key).cloned() else {
                continue;
            };
            set_peer(&peer, settings);
            if settings.replace_allowed_ips {
                peers.clear_prefixes(&key);
            }
            for prefix in &settings.peer.allowed_ip {
                let prefix = IpNetwork::new_truncate(prefix.network(), prefix.prefix())
                    .map_err(|_| Errno::EINVAL)?;
                peers.give(prefix, &peer);
            }
        }
        drop(peers);
        let is_forgetting = set.replace_peers || set.peers.iter().any(|peer| peer.remove);
        if is_forgetting {
            self.shared.forget_sessions();
        }
        Ok(())
    }

    /// The peers that a request makes, in its order. Making one takes a computation of keys, for
    /// which packets do not wait: nothing is held meanwhile.
    fn new_peers(&self, set: &Set) -> Result<Vec<Arc<Peer>>, Errno> {
        let mut known: HashSet<_> = if set.replace_peers {
            HashSet::new()
        } else {
            let peers = self.shared.peers();
            peers.entries().map(|entry| entry.peer.key).collect()
        };
        let key = self.shared.peers().key.clone();
        let mut new = Vec::new();
        for settings in &set.peers {
            let public = public(settings);
            if settings.remove {
                known.remove(&public);
            } else if !settings.update_only && known.insert(public) {
                let key = key.as_ref().ok_or(Errno::ENOKEY)?;
                new.push(Peer::new(
                    public,
                    self.noise(key, public, None, None),
                    key.number,
                    Waiting::new(&self.shared.waiting),
                ));
            }
        }
        Ok(new)
    }

    fn noise(
        &self,
        key: &DeviceKey,
        peer: PublicKey,
        psk: Option<[u8; 32]>,
        keepalive: Option<u16>,
    ) -> Tunn {
        Tunn::new(
            key.private.clone(),
            peer,
            psk,
            keepalive,
            self.shared.indices.clone(),
            Arc::clone(&key.limiter),
        )
    }

    /// Takes another key. Sessions under the key before are read for a while, and peers are called.
    /// Without a key it neither sends nor receives.
    fn set_key(&mut self, private: Option<StaticSecret>) {
        let Some(private) = private else {
            self.shared.change_peers().key = None;
            return;
        };
        let public = PublicKey::from(&private);
        let before = self.shared.peers().key.as_ref().map(|key| key.public);
        if before == Some(public) {
            return;
        }
        self.keys += 1;
        let key = DeviceKey {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES)),
            private,
            public,
            number: self.keys,
        };
        let peers: Vec<_> = {
            let peers = self.shared.peers();
            peers
                .entries()
                .map(|entry| Arc::clone(&entry.peer))
                .collect()
        };
        let mut noises = Vec::with_capacity(peers.len());
        for peer in &peers {
            let (psk, keepalive) = {
                let mut tunnel = peer.tunnel();
                let noise = tunnel.noise();
                (noise.preshared_key(), noise.persistent_keepalive())
            };
            noises.push(self.noise(&key, peer.key, psk, keepalive));
        }
        {
            let now = Instant::now();
            let mut shared = self.shared.change_peers();
            for (peer, noise) in peers.iter().zip(noises) {
                peer.tunnel().rekey(noise, key.number, now);
            }
            shared.key = Some(key);
        }
        self.tell_all(Tunnel::call);
    }

    /// Moves to another port, or binds the first. The socket before is closed once there is
    /// another, and peers are told.
    fn set_port(&mut self, port: Option<u16>) -> Result<(), Errno> {
        if self.shared.peers().key.is_none() {
            self.port = port.unwrap_or(self.port);
            return Ok(());
        }
        let socket = self.shared.socket();
        if let Some(socket) = &socket
            && port.is_none_or(|port| port == socket.port())
        {
            return Ok(());
        }
        let port = port.unwrap_or(self.port);
        match self.bind(port) {
            Ok(bound) => self.take_socket(bound),
            Err(cause) => {
                error!(%cause, port, "cannot open the UDP socket");
                // No device is left without a socket: one with a wrong port is seen to have it,
                // and set right later.
                if socket.is_none() {
                    match self.bind(0) {
                        Ok(bound) => self.take_socket(bound),
                        Err(error) => error!(%error, "cannot open a UDP socket at all"),
                    }
                }
                return Err(errno_of(cause));
            }
        }
        Ok(())
    }

    fn bind(&self, port: u16) -> std::io::Result<UdpSocket> {
        UdpSocket::bind(port, self.mark, &self.offloads)
    }

    fn take_socket(&mut self, socket: UdpSocket) {
        let had = self.shared.socket().is_some();
        self.port = socket.port();
        self.shared.set_socket(socket);
        // The thread that reads holds the other end.
        let _ = self.socket_changed.write_all(&[1]);
        if had {
            self.tell_all(Tunnel::greet);
        }
    }

    /// Sends each peer what it is to be told.
    fn tell_all(&self, mut what: impl FnMut(&mut Tunnel) -> Option<WgKind>) {
        let peers = self.shared.peers();
        for Entry { peer, .. } in peers.entries() {
            let mut tunnel = peer.tunnel();
            if tunnel.path().is_some()
                && let Some(message) = what(&mut tunnel)
            {
                self.shared.send(peer, &mut tunnel, message);
            }
        }
    }

    /// Sends what is due. Call it four times a second.
    pub(super) fn tick(&self) {
        if let Some(key) = &self.shared.peers().key {
            key.limiter.try_reset_count();
        }
        let now = Instant::now();
        self.tell_all(|tunnel| tunnel.due(now));
    }

    /// Renews old sessions and looks at the interface. Call it every few seconds.
    pub(super) fn keep_in_touch(&self) {
        self.tell_all(Tunnel::renewal);
        self.shared.forget_sessions();
        self.shared.look_at_mtu();
    }
}

/// Starts a thread, at whose end it is told.
fn spawn(
    name: &str,
    end: mpsc::Sender<()>,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        work();
        let _ = end.blocking_send(());
    })?;
    Ok(())
}

fn public(peer: &SetPeer) -> PublicKey {
    PublicKey::from(peer.peer.public_key.0)
}

fn set_peer(peer: &Peer, set: &SetPeer) {
    let mut tunnel = peer.tunnel();
    let settings: &PeerSettings = &set.peer;
    if let Some(psk) = &settings.preshared_key {
        tunnel.noise().set_preshared_key(match psk {
            SetUnset::Set(psk) => Some(psk.0),
            SetUnset::Unset => None,
        });
    }
    if let Some(endpoint) = settings.endpoint {
        tunnel.set_endpoint(endpoint);
    }
    if settings.persistent_keepalive_interval.is_some() {
        tunnel
            .noise()
            .set_persistent_keepalive(settings.persistent_keepalive_interval);
    }
}

fn described(Entry { peer, prefixes }: &Entry) -> GetPeer {
    let mut tunnel = peer.tunnel();
    let mut settings = PeerSettings::new(peer.key.to_bytes());
    let statistics = tunnel.statistics();
    settings.endpoint = tunnel.path().map(|path| path.to);
    settings.preshared_key = tunnel
        .noise()
        .preshared_key()
        .map(|psk| SetUnset::Set(psk.into()));
    settings.persistent_keepalive_interval = tunnel.noise().persistent_keepalive();
    settings.allowed_ip = prefixes.iter().filter_map(prefix_of).collect();
    let mut described = GetPeer::from(settings);
    let handshake = statistics
        .last_handshake
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or(Duration::ZERO);
    described.last_handshake_time_sec = Some(handshake.as_secs());
    described.last_handshake_time_nsec = Some(handshake.subsec_nanos());
    described.rx_bytes = Some(statistics.received);
    described.tx_bytes = Some(statistics.sent);
    described
}

/// A prefix in the type of gotatun's dump.
fn prefix_of(prefix: &IpNetwork) -> Option<ipnetwork::IpNetwork> {
    ipnetwork::IpNetwork::new(prefix.network_address(), prefix.netmask()).ok()
}

fn errno(result: Result<(), Errno>) -> Zeroizing<String> {
    let code = result.err().map_or(0, |errno| errno as i32);
    Zeroizing::new(format!("errno={code}\n\n"))
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
