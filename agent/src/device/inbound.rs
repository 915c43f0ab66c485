//! From the peers to the host.

use std::{
    io::{self, PipeReader, Read},
    net::IpAddr,
    os::fd::AsFd,
    sync::Arc,
};

use gotatun::{
    noise::TunnResult,
    packet::{Packet, PacketBufPool, WgKind},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    BUSY, PACKET, ip,
    peer::{Peer, Tunnel},
    shared::{DeviceKey, Peers, Session, Shared},
    tun::{self, BATCH, Writer},
    udp::{self, Arrival, UdpSocket},
};

/// Bytes of the longest datagram: a packet, and 32 of WireGuard.
const DATAGRAM: usize = PACKET + 32;
/// First byte of a data message, as WireGuard's protocol numbers them.
const DATA: u8 = 4;

/// Hands to the host what arrives at the socket, until the interface is gone. Something is written
/// to `changed` when there is another socket.
pub(super) fn run(shared: &Shared, mut changed: PipeReader) {
    let mut busy: Option<Inbound<'_>> = None;
    loop {
        let socket = shared.socket();
        let mut waits: Vec<_> = [Some(changed.as_fd()), socket.as_ref().map(|s| s.as_fd())]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        loop {
            let patience = busy.as_ref().map_or(PollTimeout::NONE, |_| BUSY.into());
            // Where it fails, the reads say why.
            if poll(&mut waits, patience) == Ok(0) {
                busy = None;
                continue;
            }
            if waits[0].any() == Some(true) {
                break;
            }
            let inbound = busy.get_or_insert_with(|| Inbound::new(shared));
            if let Some(socket) = &socket
                && inbound.take(socket).is_err()
            {
                return;
            }
        }
        drop(waits);
        let _ = changed.read(&mut [0; 16]);
    }
}

/// What moves packets; it has large buffers.
struct Inbound<'a> {
    shared: &'a Shared,
    pool: PacketBufPool<DATAGRAM>,
    writer: Writer,
    buffer: Vec<u8>,
}

impl<'a> Inbound<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            pool: PacketBufPool::new(1),
            writer: Writer::new(),
            buffer: vec![0; udp::LONGEST],
        }
    }

    /// Takes what waits at the socket, up to a batch. It fails when the interface is gone.
    fn take(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let shared = self.shared;
        let mut buffer = std::mem::take(&mut self.buffer);
        {
            let peers = shared.peers();
            // A flood of what is not for the host ends it, too: others want the peers.
            for _ in 0..BATCH {
                if self.writer.is_full() {
                    break;
                }
                // Nothing waits, or an error of what was sent before.
                let Ok(arrival) = socket.receive(&mut buffer) else {
                    break;
                };
                if let Some(key) = &peers.key {
                    self.arrived(&peers, key, socket, &arrival, &buffer[..arrival.bytes]);
                }
            }
        }
        self.buffer = buffer;
        match self.writer.write(&shared.tun) {
            Err(error) if tun::is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes datagrams that arrived together. Those of one session are opened in one go.
    fn arrived(
        &mut self,
        peers: &Peers,
        key: &DeviceKey,
        socket: &UdpSocket,
        arrival: &Arrival,
        bytes: &[u8],
    ) {
        let datagrams: Vec<_> = bytes.chunks(arrival.segment.max(1)).collect();
        for run in datagrams.chunk_by(|one, next| {
            session_of(one).is_some_and(|index| session_of(next) == Some(index))
        }) {
            match session_of(run[0]) {
                Some(index) => {
                    if let Some(session) = self.shared.session(index) {
                        self.open(peers, &session, arrival, run);
                    }
                }
                None => self.shake(peers, key, socket, arrival, run[0]),
            }
        }
    }

    /// Opens data of one session, and keeps for the host what its peer may send.
    fn open(&mut self, peers: &Peers, session: &Session, arrival: &Arrival, datagrams: &[&[u8]]) {
        let peer = &session.peer;
        let mut sender: Option<IpAddr> = None;
        let mut tunnel = peer.tunnel();
        for datagram in datagrams {
            let Some(WgKind::Data(data)) = self
                .packet(datagram)
                .and_then(|packet| packet.try_into_wg().ok())
            else {
                continue;
            };
            let Some(opened) = tunnel.open(data, session.key, arrival) else {
                continue;
            };
            let Some((packet, from)) = ip::unpadded(&opened).zip(ip::source(&opened)) else {
                continue;
            };
            if sender != Some(from) {
                let owner = peers.of_address(from);
                if !owner.is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                    continue;
                }
                sender = Some(from);
            }
            self.writer.push(packet);
        }
        self.send_waiting(peer, &mut tunnel);
    }

    /// Takes a message of a handshake.
    fn shake(
        &mut self,
        peers: &Peers,
        key: &DeviceKey,
        socket: &UdpSocket,
        arrival: &Arrival,
        datagram: &[u8],
    ) {
        let Some(packet) = self.packet(datagram) else {
            return;
        };
        let message = match key.limiter.verify_packet(arrival.from, packet) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                return socket.reply(arrival, &Packet::from(cookie));
            }
            Err(_) => return,
        };
        let index = match &message {
            WgKind::HandshakeInit(initiation) => {
                if let Some(peer) = peers.of_initiation(key, initiation) {
                    self.answer(peer, message, arrival);
                }
                return;
            }
            WgKind::HandshakeResp(response) => response.receiver_idx.get(),
            WgKind::CookieReply(reply) => reply.receiver_idx.get(),
            WgKind::Data(_) => return,
        };
        // A handshake that began under the key before ends with it.
        if let Some(session) = self.shared.session(index)
            && session.key == key.number
        {
            self.answer(&session.peer, message, arrival);
        }
    }

    fn answer(&mut self, peer: &Arc<Peer>, message: WgKind, arrival: &Arrival) {
        let mut tunnel = peer.tunnel();
        if let Some(reply) = tunnel.shake(message, arrival) {
            self.shared.send(peer, &mut tunnel, reply);
        }
        self.send_waiting(peer, &mut tunnel);
    }

    /// Sends what waited for a session. The tunnel is held meanwhile, so that nothing passes it.
    fn send_waiting(&mut self, peer: &Arc<Peer>, tunnel: &mut Tunnel) {
        while let Some(waiting) = tunnel.next_waiting(self.shared.mtu()) {
            self.shared.send(peer, tunnel, waiting);
        }
    }

    fn packet(&self, datagram: &[u8]) -> Option<Packet> {
        let mut packet = self.pool.get();
        if datagram.len() > packet.len() {
            return None;
        }
        packet.truncate(datagram.len());
        packet.copy_from_slice(datagram);
        Some(packet)
    }
}

/// The session that a data message names; nothing if it is none.
fn session_of(datagram: &[u8]) -> Option<u32> {
    if *datagram.first()? != DATA {
        return None;
    }
    Some(u32::from_le_bytes(*datagram.get(4..8)?.first_chunk()?))
}
