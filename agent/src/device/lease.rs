//! What the devices of one interface share that follow one another: the UDP socket, and who reads
//! from the interface.
//!
//! On the kernel's WireGuard a new private key ends what is sent under the former one, and what
//! comes in under it is still read. gotatun forgets it all. So a device that was given another key
//! is followed by a new one, and goes on reading what arrives for a while.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, MtuWatcher, tun_async_device::TunDevice},
    udp::{
        UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{UdpSocket, UdpSocketFactory},
    },
};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

/// Datagrams that may wait for the former device.
const BACKLOG: usize = 4096;

type Datagram = (Packet, SocketAddr);
type Late = (Arc<[u8]>, SocketAddr);

/// What the devices of one interface share.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    socket: Option<UdpSocket>,
    /// The device before, while it still reads.
    former: Option<Lease>,
}

/// The time in which a device has the socket and the interface for itself.
#[derive(Clone)]
pub(super) struct Lease {
    over: CancellationToken,
    /// What arrives afterwards.
    late: broadcast::Sender<Late>,
}

impl Lease {
    pub(super) fn new() -> Self {
        Self {
            over: CancellationToken::new(),
            late: broadcast::channel(BACKLOG).0,
        }
    }
}

impl Shared {
    /// From now on the device of this lease only gets copies of what arrives, and nothing of what
    /// is to be sent.
    pub(super) fn end_lease(&self, lease: &Lease) {
        lease.over.cancel();
        self.state().former = Some(lease.clone());
    }

    /// The device before gets nothing any more.
    pub(super) fn forget_former(&self) {
        self.state().former = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, arrived: &[Datagram]) {
        if let Some(former) = &self.state().former {
            for (packet, from) in arrived {
                // Nobody listens any more: then nobody misses it.
                let _ = former.late.send((packet[..].into(), *from));
            }
        }
    }
}

/// Binds the socket, or goes on with the one that is bound to the port already.
pub(super) struct Sockets {
    pub(super) shared: Shared,
    pub(super) lease: Lease,
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = Arrivals;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(UdpSocket, Arrivals)> {
        let bound = self.shared.state().socket.clone();
        let has_port = |socket: &UdpSocket| {
            UdpSend::local_addr(socket)
                .ok()
                .flatten()
                .is_some_and(|address| address.port() == params.port)
        };
        let socket = match bound.filter(has_port) {
            Some(socket) => socket,
            None => UdpSocketFactory::default().bind(params).await?.0,
        };
        self.shared.state().socket = Some(socket.clone());
        let arrivals = Arrivals {
            socket: socket.clone(),
            shared: self.shared.clone(),
            over: self.lease.over.clone(),
            late: self.lease.late.subscribe(),
        };
        Ok((socket, arrivals))
    }
}

/// What arrives at the socket during a lease, and copies of what arrives afterwards.
pub(super) struct Arrivals {
    socket: UdpSocket,
    shared: Shared,
    over: CancellationToken,
    late: broadcast::Receiver<Late>,
}

impl Arrivals {
    async fn late(&mut self) -> Datagram {
        loop {
            match self.late.recv().await {
                Ok((bytes, from)) => return (Packet::copy_from(&*bytes), from),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => pending().await,
            }
        }
    }
}

impl UdpRecv for Arrivals {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<Datagram> {
        tokio::select! {
            biased;
            () = self.over.cancelled() => {}
            arrived = self.socket.recv_from(pool) => {
                let datagram = arrived?;
                self.shared.pass_on(std::slice::from_ref(&datagram));
                return Ok(datagram);
            }
        }
        Ok(self.late().await)
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<Datagram>,
    ) -> io::Result<()> {
        let before = packets.len();
        tokio::select! {
            biased;
            () = self.over.cancelled() => {}
            arrived = self.socket.recv_many_from(buffer, pool, packets) => {
                arrived?;
                self.shared.pass_on(&packets[before..]);
                return Ok(());
            }
        }
        packets.push(self.late().await);
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

/// What is to be sent during a lease.
pub(super) struct Departures {
    pub(super) tun: TunDevice,
    pub(super) lease: Lease,
}

impl IpRecv for Departures {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        tokio::select! {
            biased;
            () = self.lease.over.cancelled() => pending().await,
            packets = self.tun.recv(pool) => packets,
        }
    }

    fn mtu(&self) -> MtuWatcher {
        self.tun.mtu()
    }
}
