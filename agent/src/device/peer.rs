//! A peer: its sessions, and where it was last heard from.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use gotatun::{
    noise::{Tunn, TunnResult},
    packet::{Packet, WgData, WgKind},
    x25519::PublicKey,
};

use super::{
    udp::{Arrival, Path},
    waiting::Waiting,
};

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
    /// [`DeviceKey::number`](super::shared::DeviceKey::number) of the key that is under.
    key: u64,
    /// The sessions under the key that the device had before, and until when they are read.
    former: Option<(Tunn, Instant)>,
    path: Option<Path>,
    /// The address of this host that the peer sent to last.
    asked: Option<IpAddr>,
    /// Index of the session that this end answered and that the peer has not used yet.
    unconfirmed: Option<u32>,
    /// First messages of handshakes since the peer was heard last.
    calls: u32,
    last_handshake: Option<SystemTime>,
    /// Whether a handshake under the present key is complete at both ends.
    has_session: bool,
    /// What waits for one.
    waiting: Waiting,
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
    /// A peer of a device whose key has this number.
    pub(super) fn new(key: PublicKey, noise: Tunn, number: u64, waiting: Waiting) -> Arc<Self> {
        let tunnel = Tunnel {
            noise,
            key: number,
            former: None,
            path: None,
            asked: None,
            unconfirmed: None,
            calls: 0,
            last_handshake: None,
            has_session: false,
            waiting,
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
    /// [`FORMER`]; what waits, waits for a session under the new one.
    pub(super) fn rekey(&mut self, noise: Tunn, number: u64, now: Instant) {
        let before = std::mem::replace(&mut self.noise, noise);
        let (_, sent, received, ..) = before.stats();
        self.before.0 += received as u64;
        self.before.1 += sent as u64;
        self.former = Some((before, now + FORMER));
        self.key = number;
        self.unconfirmed = None;
        self.has_session = false;
    }

    /// The number of the device's key that it is under.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn path(&self) -> Option<Path> {
        self.path
    }

    /// Where a message goes. When a call was not answered, Linux chooses the address of this host
    /// for the next: nothing may come to the one that the peer used last.
    pub(super) fn path_of(&mut self, message: &WgKind) -> Option<Path> {
        let mut path = self.path?;
        if matches!(message, WgKind::HandshakeInit(_)) {
            self.calls += 1;
            if self.calls > 1 {
                path.from = None;
            }
        }
        Some(path)
    }

    /// Sets where the peer is. Linux chooses the address of this host.
    pub(super) fn set_endpoint(&mut self, endpoint: SocketAddr) {
        if self.path.is_none_or(|path| path.to != endpoint) {
            self.begin();
            self.path = Some(Path {
                to: endpoint,
                from: None,
            });
            self.asked = None;
        }
    }

    /// Sets gotatun's clock. It stands still while there is nowhere to send to, for its timers are
    /// not looked at then, and would end the first session at once.
    fn begin(&mut self) {
        if self.path.is_none() {
            self.noise.reset();
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
    /// waits for. `mtu` is the interface's, in bytes.
    pub(super) fn seal(&mut self, packet: Packet, mtu: usize) -> Option<WgKind> {
        match self.seal_now(packet, mtu) {
            Ok(sealed) => Some(sealed.into()),
            Err(packet) => {
                self.waiting.push(&packet);
                self.call()
            }
        }
    }

    /// The next of the packets that waited for a session, once there is one.
    pub(super) fn next_waiting(&mut self, mtu: usize) -> Option<WgKind> {
        if !self.has_session {
            return None;
        }
        let packet = self.waiting.pop()?;
        match self.seal_now(packet, mtu) {
            Ok(sealed) => Some(sealed.into()),
            Err(packet) => {
                self.waiting.put_back(packet);
                None
            }
        }
    }

    fn seal_now(&mut self, mut packet: Packet, mtu: usize) -> Result<Packet<WgData>, Packet> {
        // gotatun would use a session that the peer may know nothing of.
        if !self.has_session {
            return Err(packet);
        }
        let bytes = packet.len();
        // To a multiple of 16 (section 5.4.6 of WireGuard's paper), as far as the interface allows.
        let padded = bytes.next_multiple_of(16).min(mtu).max(bytes);
        packet.buf_mut().resize(padded, 0);
        let sealed = self.noise.encapsulate_with_session(packet);
        // Its time is over.
        self.has_session = sealed.is_ok();
        sealed
    }

    /// Opens a packet that the peer sent under the device's key of this number: the present one, or
    /// the one before.
    /// Empty ones keep a tunnel alive and are not for the host.
    pub(super) fn open(
        &mut self,
        packet: Packet<WgData>,
        key: u64,
        arrival: &Arrival,
    ) -> Option<Packet> {
        let index = packet.header.receiver_idx.get();
        let is_former = key != self.key;
        let noise = match &mut self.former {
            Some((former, _)) if is_former => former,
            _ => &mut self.noise,
        };
        let TunnResult::WriteToTunnel(packet) = noise.handle_incoming_packet(WgKind::Data(packet))
        else {
            return None;
        };
        self.heard(arrival, false);
        // Of several that this end answered, the peer may use another than the last.
        let is_first = !self.has_session && !is_former && self.unconfirmed.is_some();
        if self.unconfirmed == Some(index) || is_first {
            self.shook_hands();
        }
        Some(packet)
    }

    /// Takes a message of a handshake, and gives what is to be sent in turn.
    pub(super) fn shake(&mut self, message: WgKind, arrival: &Arrival) -> Option<WgKind> {
        self.begin();
        let is_response = matches!(message, WgKind::HandshakeResp(_));
        let TunnResult::WriteToNetwork(reply) = self.noise.handle_incoming_packet(message) else {
            return None;
        };
        self.heard(arrival, true);
        if is_response {
            self.shook_hands();
        } else if let WgKind::HandshakeResp(response) = &reply {
            self.unconfirmed = Some(response.sender_idx.get());
        }
        Some(reply)
    }

    /// Both ends have a new session.
    fn shook_hands(&mut self) {
        self.unconfirmed = None;
        self.has_session = true;
        self.last_handshake = Some(SystemTime::now());
    }

    /// Follows the peer to where it sends from. It is answered from the address that it asked.
    fn heard(&mut self, arrival: &Arrival, is_handshake: bool) {
        let (from, to) = (arrival.from, arrival.to);
        self.calls = 0;
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
        self.noise.update_timers().unwrap_or_else(|_| {
            // It gave up on the peer, until there is a packet for it.
            self.waiting.clear();
            None
        })
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
