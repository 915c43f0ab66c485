//! Packets that wait for a session with their peer.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gotatun::packet::Packet;

/// Bytes of packets that wait for one peer: what a stream has on its way when the peer gets another
/// key, at 1 Gbit/s and 30 ms.
const MOST: usize = 4 << 20;
/// The same for all peers together: most of those that are waited for are not there.
const MOST_IN_ALL: usize = 16 << 20;
/// Bytes that each peer has room for, whatever the others have: those of its first packets.
const ALLOWANCE: usize = 16 << 10;
/// What a packet takes besides its bytes, about.
const OVERHEAD: usize = 128;

/// Bytes that wait for all peers of a device.
#[derive(Clone, Default)]
pub(super) struct Total(Arc<AtomicUsize>);

/// The packets that wait for one peer.
pub(super) struct Waiting {
    packets: VecDeque<Packet>,
    bytes: usize,
    total: Total,
}

impl Waiting {
    pub(super) fn new(total: &Total) -> Self {
        Self {
            packets: VecDeque::new(),
            bytes: 0,
            total: total.clone(),
        }
    }

    /// Takes in a packet. The oldest go when there is no room; a sender that still waits for their
    /// answers has sent them again meanwhile.
    pub(super) fn push(&mut self, packet: &[u8]) {
        let size = size(packet);
        while self.bytes + size > MOST && self.pop().is_some() {}
        while self.bytes + size > ALLOWANCE
            && self.total.0.load(Ordering::Relaxed) + size > MOST_IN_ALL
        {
            if self.pop().is_none() {
                return;
            }
        }
        self.count(size);
        // A buffer of its own length: those that packets are read into are longer.
        self.packets.push_back(Packet::copy_from(packet));
    }

    /// Takes back what was the oldest.
    pub(super) fn put_back(&mut self, packet: Packet) {
        self.count(size(&packet));
        self.packets.push_front(packet);
    }

    fn count(&mut self, size: usize) {
        self.bytes += size;
        self.total.0.fetch_add(size, Ordering::Relaxed);
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<Packet> {
        let packet = self.packets.pop_front()?;
        let size = size(&packet);
        self.bytes -= size;
        self.total.0.fetch_sub(size, Ordering::Relaxed);
        if self.packets.is_empty() {
            self.packets = VecDeque::new();
        }
        Some(packet)
    }

    pub(super) fn clear(&mut self) {
        while self.pop().is_some() {}
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}

fn size(packet: &[u8]) -> usize {
    packet.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first byte of each, from the oldest on.
    fn marks(waiting: &mut Waiting) -> Vec<u8> {
        std::iter::from_fn(|| waiting.pop())
            .map(|packet| packet[0])
            .collect()
    }

    #[test]
    fn packets_leave_in_their_order_and_the_oldest_make_room() {
        let mut waiting = Waiting::new(&Total::default());
        let fit = MOST / size(&[0; 65_000]);
        for mark in 0..fit + 3 {
            waiting.push(&[u8::try_from(mark).unwrap(); 65_000]);
        }
        let newest: Vec<_> = (3..fit + 3).map(|mark| mark as u8).collect();
        let oldest = waiting.pop().unwrap();
        waiting.put_back(oldest);
        assert_eq!(marks(&mut waiting), newest);
    }

    #[test]
    fn all_peers_together_have_an_end_and_what_goes_makes_room() {
        let total = Total::default();
        let mut peers: Vec<_> = (0..6).map(|_| Waiting::new(&total)).collect();
        for peer in &mut peers {
            for _ in 0..MOST / size(&[0; 65_000]) {
                peer.push(&[1; 65_000]);
            }
        }
        assert!(total.0.load(Ordering::Relaxed) <= MOST_IN_ALL);
        assert!(peers[5].packets.is_empty(), "there was no room left");
        peers[5].push(&[2; 1_400]);
        assert_eq!(marks(&mut peers[5]), [2], "a first packet has room");
        peers.remove(0);
        peers[4].push(&[3; 65_000]);
        assert_eq!(marks(&mut peers[4]), [3]);
        drop(peers);
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }
}
