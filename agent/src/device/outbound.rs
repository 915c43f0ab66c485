//! From the host to the peers.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    os::fd::AsFd,
    sync::Arc,
};

use gotatun::packet::{Packet, PacketBufPool, WgKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    BUSY, PACKET, ip,
    peer::Peer,
    shared::{Peers, Shared},
    tun::{self, BATCH, Reader, Slot},
    udp::UdpSocket,
};

/// Sends what the host writes to the interface, until that is gone.
pub(super) fn run(shared: &Shared) {
    let mut busy: Option<Outbound<'_>> = None;
    loop {
        let mut readable = [PollFd::new(shared.tun.as_fd(), PollFlags::POLLIN)];
        let patience = busy.as_ref().map_or(PollTimeout::NONE, |_| BUSY.into());
        // Where it fails, the read says why.
        if poll(&mut readable, patience) == Ok(0) {
            busy = None;
            continue;
        }
        let outbound = busy.get_or_insert_with(|| Outbound::new(shared));
        if outbound.read().is_err() {
            return;
        }
        outbound.send();
    }
}

/// What moves packets; it has large buffers.
struct Outbound<'a> {
    shared: &'a Shared,
    reader: Reader,
    slots: Vec<Slot>,
    pool: PacketBufPool<PACKET>,
    groups: Vec<Group>,
}

/// The packets of a batch that go to one peer, in their order.
struct Group {
    peer: Arc<Peer>,
    packets: Vec<Packet>,
}

impl<'a> Outbound<'a> {
    fn new(shared: &'a Shared) -> Self {
        let pool = PacketBufPool::new(2 * BATCH);
        Self {
            shared,
            reader: Reader::new(),
            slots: (0..BATCH).map(|_| Slot(pool.get())).collect(),
            pool,
            groups: Vec::new(),
        }
    }

    /// Reads what the host has written, up to a batch and to what one more read may give. Without a
    /// key nothing is kept of it. It fails when the interface is gone.
    fn read(&mut self) -> io::Result<()> {
        let shared = self.shared;
        let peers = shared.peers();
        let mut count = 0;
        let mut last = None;
        while count < BATCH {
            let sizes = match self.reader.read(&shared.tun, &mut self.slots) {
                Ok(sizes) => sizes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if tun::is_gone(&error) => return Err(error),
                // One that is too long, or that cannot be cut.
                Err(_) => {
                    count += 1;
                    continue;
                }
            };
            count += sizes.len();
            for (slot, size) in self.slots.iter_mut().zip(sizes) {
                let Some(group) = group_of(&slot.0[..*size], &peers, &mut self.groups, &mut last)
                else {
                    continue;
                };
                let mut packet = std::mem::replace(&mut slot.0, self.pool.get());
                packet.truncate(*size);
                self.groups[group].packets.push(packet);
            }
        }
        if peers.key.is_none() {
            self.groups.clear();
        }
        Ok(())
    }

    /// Sends what was read.
    fn send(&mut self) {
        if let Some(socket) = self.shared.socket() {
            for group in &mut self.groups {
                group.send(self.shared, &socket);
            }
        }
        self.groups.clear();
    }
}

/// The group of a packet, by its destination; nothing if no peer has that. `last` is the group of
/// the packet before: most packets go where that went.
fn group_of(
    packet: &[u8],
    peers: &Peers,
    groups: &mut Vec<Group>,
    last: &mut Option<(IpAddr, usize)>,
) -> Option<usize> {
    let to = ip::destination(packet)?;
    if let Some((address, group)) = *last
        && address == to
    {
        return Some(group);
    }
    let peer = peers.of_address(to)?;
    let known = groups
        .iter()
        .position(|group| Arc::ptr_eq(&group.peer, peer));
    let group = known.unwrap_or_else(|| {
        groups.push(Group {
            peer: Arc::clone(peer),
            packets: Vec::with_capacity(BATCH),
        });
        groups.len() - 1
    });
    *last = Some((to, group));
    Some(group)
}

impl Group {
    fn send(&mut self, shared: &Shared, socket: &UdpSocket) {
        let mut tunnel = self.peer.tunnel();
        let Some(path) = tunnel.path() else { return };
        let mut sealed = Vec::with_capacity(self.packets.len());
        for packet in self.packets.drain(..) {
            match tunnel.seal(packet, shared.mtu()) {
                Some(WgKind::Data(data)) => sealed.push(data.into_bytes()),
                Some(message) => shared.send(&self.peer, &mut tunnel, message),
                None => {}
            }
        }
        drop(tunnel);
        let datagrams: Vec<_> = sealed.iter().map(|packet| IoSlice::new(packet)).collect();
        socket.send(&path, &datagrams);
    }
}
