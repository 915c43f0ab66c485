//! The UDP socket of a device, for both families.
//!
//! With offload, one call sends or receives many datagrams of one size: Linux cuts and joins them
//! (`UDP_SEGMENT` and `UDP_GRO`, udp(7)).

use std::{
    collections::BTreeSet,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike,
        SockaddrStorage, getsockopt, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Socket, Type};
use wattle_mesh::host::offload::Offload;

/// Bytes that the socket's buffers hold, as wireguard-go has it: 7 MiB are 5,000 packets, 50 ms at
/// 1 Gbit/s.
const BUFFER: usize = 7 << 20;
/// How long the device waits for a full buffer to empty, in milliseconds: others wait meanwhile.
const STUCK: u8 = 100;
/// Most datagrams that Linux takes in one call (`UDP_MAX_SEGMENTS` up to Linux 6.8).
const MOST_DATAGRAMS: usize = 64;
/// Most bytes that it takes: the longest IPv4 packet without the headers.
const MOST_BYTES: usize = 65_507;
/// Longest that Linux gives at once.
pub(super) const LONGEST: usize = 65_535;

pub(super) struct UdpSocket {
    socket: Socket,
    port: u16,
    has_ipv6: bool,
    segments: AtomicBool,
    /// Nothing has left it for [`STUCK`].
    is_stuck: AtomicBool,
}

/// What one call gave.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) bytes: usize,
    /// Size of each datagram but the last.
    pub(super) segment: usize,
    pub(super) from: SocketAddr,
    /// The address of this host that it was sent to.
    pub(super) to: Option<IpAddr>,
}

/// Where datagrams go, and the address of this host that they come from; Linux chooses that one if
/// it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) to: SocketAddr,
    pub(super) from: Option<IpAddr>,
}

impl UdpSocket {
    /// Binds a port, or with 0 any that is free.
    pub(super) fn bind(port: u16, mark: u32, offloads: &BTreeSet<Offload>) -> io::Result<Self> {
        let (socket, has_ipv6) = match Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)) {
            Ok(socket) => {
                socket.set_only_v6(false)?;
                (socket, true)
            }
            Err(_) => (
                Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?,
                false,
            ),
        };
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        let address = if has_ipv6 {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
        } else {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        };
        socket.set_nonblocking(true)?;
        if has_ipv6 {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        // As the kernel's WireGuard: what is longer than the path takes goes in fragments.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
        if has_ipv6 {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?;
        }
        // Smaller buffers lose packets of bursts, no more. The larger ones take a right that root of a
        // container lacks.
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        if offloads.contains(&Offload::Receive) {
            // Before Linux 5.0 it is missing, and each datagram comes by itself.
            let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        }
        socket.bind(&address.into())?;
        let port = socket
            .local_addr()?
            .as_socket()
            .map_or(port, |address| address.port());
        // Linux before 4.18 takes no notice of it, and would send all as one datagram.
        let segments = offloads.contains(&Offload::Send)
            && getsockopt(&socket, sockopt::UdpGsoSegment).is_ok();
        Ok(Self {
            socket,
            port,
            has_ipv6,
            segments: AtomicBool::new(segments),
            is_stuck: AtomicBool::new(false),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_mark(mark)
    }

    /// Receives datagrams of one sender. The buffer must have [`LONGEST`] bytes.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let mut space = cmsg_space!(libc::in6_pktinfo, i32);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        let from = message
            .address
            .as_ref()
            .and_then(address)
            .ok_or(Errno::EAFNOSUPPORT)?;
        let mut arrival = Arrival {
            bytes: message.bytes,
            segment: message.bytes,
            from,
            to: None,
        };
        for control in message.cmsgs()? {
            if let ControlMessageOwned::UdpGroSegments(size) = control {
                arrival.segment = usize::try_from(size).unwrap_or(arrival.segment);
            } else if let ControlMessageOwned::Ipv6PacketInfo(info) = control {
                let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                arrival.to = Some(to.to_canonical());
            } else if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
                let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                arrival.to = Some(to.into());
            }
        }
        Ok(arrival)
    }

    /// Answers the sender of a datagram, from the address that it asked.
    pub(super) fn reply(&self, arrival: &Arrival, datagram: &[u8]) {
        let path = Path {
            to: arrival.from,
            from: arrival.to,
        };
        self.send(&path, &[IoSlice::new(datagram)]);
    }

    /// Sends datagrams in their order. Those that cannot be sent are lost, as on any wire.
    pub(super) fn send(&self, path: &Path, datagrams: &[IoSlice<'_>]) {
        let mut left = datagrams;
        while !left.is_empty() {
            let run = if self.segments.load(Ordering::Relaxed) {
                run(left)
            } else {
                1
            };
            let (now, later) = left.split_at(run);
            left = later;
            let Err(error) = self.send_run(path, now) else {
                continue;
            };
            // This host may not have the address any more.
            let by_linux = Path {
                from: None,
                ..*path
            };
            if path.from.is_some() && self.send_run(&by_linux, now).is_ok() {
                continue;
            }
            if error == Errno::EIO {
                // The interface cannot compute checksums of segments.
                self.segments.store(false, Ordering::Relaxed);
            }
            // Together they may be longer than the path takes: Linux cuts single datagrams into
            // fragments.
            if now.len() > 1 && [Errno::EIO, Errno::EINVAL, Errno::EMSGSIZE].contains(&error) {
                for single in now {
                    let _ = self.send_run(path, std::slice::from_ref(single));
                }
            }
        }
    }

    fn send_run(&self, path: &Path, datagrams: &[IoSlice<'_>]) -> nix::Result<()> {
        let size = u16::try_from(datagrams[0].len()).map_err(|_| Errno::EMSGSIZE)?;
        let v4;
        let v6;
        let mut controls = Vec::with_capacity(2);
        if datagrams.len() > 1 {
            controls.push(ControlMessage::UdpGsoSegments(&size));
        }
        match path.from {
            Some(from) if self.has_ipv6 => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: mapped(from).octets(),
                    },
                    ipi6_ifindex: 0,
                };
                controls.push(ControlMessage::Ipv6PacketInfo(&v6));
            }
            Some(IpAddr::V4(from)) => {
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(from.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                controls.push(ControlMessage::Ipv4PacketInfo(&v4));
            }
            _ => {}
        }
        loop {
            let sent = if self.has_ipv6 {
                let to = SocketAddrV6::new(mapped(path.to.ip()), path.to.port(), 0, scope(path.to));
                self.call(datagrams, &controls, &SockaddrIn6::from(to))
            } else if let SocketAddr::V4(to) = path.to {
                self.call(datagrams, &controls, &SockaddrIn::from(to))
            } else {
                Err(Errno::EAFNOSUPPORT)
            };
            match sent {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait()?,
                other => {
                    self.is_stuck.store(false, Ordering::Relaxed);
                    return other;
                }
            }
        }
    }

    /// Waits until there is room for what is to be sent. Where that takes too long, what comes next
    /// is lost at once, until something has left.
    fn wait(&self) -> nix::Result<()> {
        let mut socket = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let is_stuck = self.is_stuck.load(Ordering::Relaxed);
        if is_stuck || poll(&mut socket, PollTimeout::from(STUCK)) == Ok(0) {
            self.is_stuck.store(true, Ordering::Relaxed);
            return Err(Errno::ENOBUFS);
        }
        Ok(())
    }

    fn call<A: SockaddrLike>(
        &self,
        datagrams: &[IoSlice<'_>],
        controls: &[ControlMessage<'_>],
        to: &A,
    ) -> nix::Result<()> {
        sendmsg(
            self.socket.as_raw_fd(),
            datagrams,
            controls,
            MsgFlags::MSG_NOSIGNAL,
            Some(to),
        )
        .map(drop)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How many datagrams from the first on go in one call: all have one size, but that the last may
/// be shorter.
fn run(datagrams: &[IoSlice<'_>]) -> usize {
    let size = datagrams[0].len();
    let mut bytes = size;
    let mut count = 1;
    for datagram in &datagrams[1..] {
        bytes += datagram.len();
        if count == MOST_DATAGRAMS || bytes > MOST_BYTES || datagram.len() > size {
            break;
        }
        count += 1;
        if datagram.len() < size {
            break;
        }
    }
    count
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    let v6 = SocketAddrV6::from(*storage.as_sockaddr_in6()?);
    Some(match v6.ip().to_ipv4_mapped() {
        Some(v4) => (v4, v6.port()).into(),
        None => v6.into(),
    })
}
