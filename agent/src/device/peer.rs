//! A peer: its sessions, and where it was last heard from.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use gotatun::{
    noise::{Tunn, TunnResult},
    packet::{Packet, WgData, WgKind},
    tun::MtuWatcher,
    x25519::PublicKey,
};

use super::udp::{Arrival, Path};

/// For how long a device goes on reading what arrives under its key after it was given another.
/// Peers need a tenth of a second to change over, and some seconds when handshakes are lost.
const FORMER: Duration = Duration::from_secs(30);

/// Age of a session that is renewed although nothing is sent: after the 120 s at which an end that
/// sends renews it, and before the 180 s at which it ends.
const RENEWAL: Duration = Duration::from_secs(135);

pub(super) struct Peer {
    pub(super) key: PublicKey,
    tunnel: Mutex<Tunnel>,
}

/// What the tunnel to a peer is made of.
pub(super) struct Tunnel {
    noise: Tunn,
    /// The sessions under the key that the device had before, and until when they are read.
    former: Option<(Tunn, Instant)>,
    path: Option<Path>,
    /// The address of this host that the peer sent to last.
    asked: Option<IpAddr>,
    /// Index of the session that this end answered and that the peer has not used yet.
    unconfirmed: Option<u32>,
    last_handshake: Option<SystemTime>,
    /// Packets wait for a session.
    is_waiting: bool,
    /// Bytes received and sent under former keys.
    before: (u64, u64),
}

/// Bytes and times of a tunnel.
pub(super) struct Statistics {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) last_handshake: Option<SystemTime>,
}

impl Peer {
    pub(super) fn new(key: PublicKey, noise: Tunn) -> Arc<Self> {
        let tunnel = Tunnel {
            noise,
            former: None,
            path: None,
            asked: None,
            unconfirmed: None,
            last_handshake: None,
            is_waiting: false,
            before: (0, 0),
        };
        Arc::new(Self {
            key,
            tunnel: Mutex::new(tunnel),
        })
    }

    pub(super) fn tunnel(&self) -> MutexGuard<'_, Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tunnel {
    /// Takes up another key of the device. What the peer sends under the key before is read for
    /// [`FORMER`].
    pub(super) fn rekey(&mut self, noise: Tunn, now: Instant) {
        let before = std::mem::replace(&mut self.noise, noise);
        let (_, sent, received, ..) = before.stats();
        self.before.0 += received as u64;
        self.before.1 += sent as u64;
        self.former = Some((before, now + FORMER));
        self.unconfirmed = None;
        self.is_waiting = false;
    }

    pub(super) fn path(&self) -> Option<Path> {
        self.path
    }

    /// Sets where the peer is. Linux chooses the address of this host.
    pub(super) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        if self.path.is_none_or(|path| path.to != endpoint) {
            self.path = Some(Path {
                to: endpoint,
                from: None,
            });
            self.asked = None;
        }
    }

    pub(super) fn noise(&mut self) -> &mut Tunn {
        &mut self.noise
    }

    pub(super) fn statistics(&self) -> Statistics {
        let (_, sent, received, ..) = self.noise.stats();
        Statistics {
            received: self.before.0 + received as u64,
            sent: self.before.1 + sent as u64,
            last_handshake: self.last_handshake,
        }
    }

    /// What is to be sent for a packet of the host: the packet itself, or a handshake that it then
    /// waits for.
    pub(super) fn seal(&mut self, packet: Packet, mtu: &mut MtuWatcher) -> Option<WgKind> {
        let sealed = self.noise.handle_outgoing_packet(packet, Some(mtu));
        if !matches!(sealed, Some(WgKind::Data(_))) {
            self.is_waiting = true;
        }
        sealed
    }

    /// The next of the packets that waited for a session.
    pub(super) fn next_waiting(&mut self, mtu: &mut MtuWatcher) -> Option<WgKind> {
        // Without a session they would be queued anew, in another order.
        if !self.is_waiting || self.noise.time_since_last_handshake().is_none() {
            return None;
        }
        let next = self.noise.get_queued_packets(mtu).next();
        self.is_waiting = matches!(next, Some(WgKind::Data(_)));
        next
    }

    /// Opens a packet that the peer sent under the key of the device, or under the one before.
    /// Empty ones keep a tunnel alive and are not for the host.
    pub(super) fn open(
        &mut self,
        packet: Packet<WgData>,
        is_former: bool,
        arrival: &Arrival,
    ) -> Option<Packet> {
        let index = packet.header.receiver_idx.get();
        let noise = match &mut self.former {
            Some((former, _)) if is_former => former,
            _ => &mut self.noise,
        };
        let TunnResult::WriteToTunnel(packet) = noise.handle_incoming_packet(WgKind::Data(packet))
        else {
            return None;
        };
        self.heard(arrival, false);
        if self.unconfirmed == Some(index) {
            self.unconfirmed = None;
            self.last_handshake = Some(SystemTime::now());
        }
        Some(packet)
    }

    /// Takes a message of a handshake, and gives what is to be sent in turn.
    pub(super) fn shake(&mut self, message: WgKind, arrival: &Arrival) -> Option<WgKind> {
        let is_response = matches!(message, WgKind::HandshakeResp(_));
        let TunnResult::WriteToNetwork(reply) = self.noise.handle_incoming_packet(message) else {
            return None;
        };
        self.heard(arrival, true);
        if is_response {
            self.last_handshake = Some(SystemTime::now());
        } else if let WgKind::HandshakeResp(response) = &reply {
            self.unconfirmed = Some(response.sender_idx.get());
        }
        Some(reply)
    }

    /// Follows the peer to where it sends from. It is answered from the address that it asked.
    fn heard(&mut self, arrival: &Arrival, is_handshake: bool) {
        let (from, to) = (arrival.from, arrival.to);
        let is_new = self.path.is_none_or(|path| path.to != from) || self.asked != to;
        if is_new || is_handshake {
            self.asked = to;
            self.path = Some(Path {
                to: from,
                from: to.filter(|asked| usual_source(from) != Some(*asked)),
            });
        }
    }

    /// What is due by now: a keepalive, or a handshake.
    pub(super) fn due(&mut self, now: Instant) -> Option<WgKind> {
        if self.former.as_ref().is_some_and(|(_, until)| now >= *until) {
            self.former = None;
        }
        self.noise.update_timers().ok().flatten()
    }

    /// A handshake, if a keepalive should keep the peer in touch and there was none for long.
    ///
    /// On the kernel's WireGuard a keepalive renews the session after 120 s, and calls a peer that
    /// did not answer again and again. gotatun lets the session of an idle link end, and gives up
    /// on a peer after 90 s, until there is a packet to send. While an attempt is under way this
    /// does nothing.
    pub(super) fn renewal(&mut self) -> Option<WgKind> {
        self.noise.persistent_keepalive()?;
        let is_old = self
            .noise
            .time_since_last_handshake()
            .is_none_or(|age| age >= RENEWAL);
        if is_old { self.call() } else { None }
    }

    /// A handshake, unless one is under way.
    pub(super) fn call(&mut self) -> Option<WgKind> {
        self.noise
            .format_handshake_initiation(false)
            .map(WgKind::from)
    }

    /// Something that tells the peer where this device is now.
    pub(super) fn greet(&mut self) -> Option<WgKind> {
        match self.noise.encapsulate_with_session(Packet::default()) {
            Ok(keepalive) => Some(keepalive.into()),
            Err(_) => self.call(),
        }
    }
}

/// The address of this host that Linux would send to a peer from.
fn usual_source(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
