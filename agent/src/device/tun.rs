//! The TUN interface: what the host sends into the tunnel is read here, what comes out of it is
//! written.
//!
//! With segmentation offload, the kernel hands over up to 64 KiB of one flow at a time, and takes
//! as much. Cutting and joining is tun-rs'.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use gotatun::packet::Packet;
use nix::errno::Errno;
use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};
use wattle_mesh::host::interface::InterfaceName;

/// Longest IP packet in bytes.
const LONGEST: usize = 65_535;
/// Most segments of a flow that Linux hands over at once, as it is told.
pub(super) const MOST_SEGMENTS: u32 = 128;
/// Most packets that one read gives.
pub(super) const BATCH: usize = MOST_SEGMENTS as usize;

pub(super) struct Tun {
    device: SyncDevice,
}

/// A buffer that a packet is read into.
pub(super) struct Slot(pub(super) Packet);

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Tun {
    pub(super) fn open(name: &InterfaceName, offload: bool) -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(name.as_str())
            .offload(offload)
            .inherit_enable_state()
            .build_sync()?;
        device.set_nonblocking(true)?;
        Ok(Self { device })
    }

    pub(super) fn mtu(&self) -> io::Result<u16> {
        self.device.mtu()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Reads packets of the host.
pub(super) struct Reader {
    whole: Vec<u8>,
    sizes: Vec<usize>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            whole: vec![0; VIRTIO_NET_HDR_LEN + LONGEST],
            sizes: vec![0; BATCH],
        }
    }

    /// Reads one packet, or the segments of one flow, into the first of the slots, and gives their
    /// sizes. There must be [`BATCH`] slots.
    pub(super) fn read(&mut self, tun: &Tun, slots: &mut [Slot]) -> io::Result<&[usize]> {
        let count = tun
            .device
            .recv_multiple(&mut self.whole, slots, &mut self.sizes, 0)?;
        Ok(&self.sizes[..count])
    }
}

/// Whether an error of the interface means that it is gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::EBADFD, Errno::EBADF, Errno::ENODEV, Errno::ENXIO];
    error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&Errno::from_raw(code)))
}

/// Writes packets for the host.
pub(super) struct Writer {
    joined: GROTable,
    packets: Vec<Vec<u8>>,
    used: usize,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            joined: GROTable::default(),
            packets: Vec::new(),
            used: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= BATCH
    }

    /// Keeps a packet until the next [`write`](Self::write).
    pub(super) fn push(&mut self, packet: &[u8]) {
        if self.used == self.packets.len() {
            self.packets
                .push(Vec::with_capacity(VIRTIO_NET_HDR_LEN * 2 + LONGEST));
        }
        let kept = &mut self.packets[self.used];
        kept.clear();
        kept.resize(VIRTIO_NET_HDR_LEN, 0);
        kept.extend_from_slice(packet);
        self.used += 1;
    }

    /// Hands all that was kept to the host.
    pub(super) fn write(&mut self, tun: &Tun) -> io::Result<()> {
        let used = std::mem::take(&mut self.used);
        if used == 0 {
            return Ok(());
        }
        tun.device
            .send_multiple(
                &mut self.joined,
                &mut self.packets[..used],
                VIRTIO_NET_HDR_LEN,
            )
            .map(drop)
    }
}
