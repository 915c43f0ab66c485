//! The socket through which probes go: on the tunnel address, and on packets of the tunnel's
//! interface alone.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
    },
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};
use wattle_wire::probe::{PROBE_PORT, Probe};

/// Bytes of a datagram that are looked at. By one more than a probe it is seen that it is longer; of
/// a large one the rest is zeros.
const LOOKED_AT: usize = Probe::LENGTH + 1;

/// Sends probes, and hears those of others.
#[derive(Debug)]
pub(crate) struct ProbeSocket(UdpSocket);

/// What came, and from which tunnel address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    Probe(Ipv4Addr, Probe),
    /// The host itself says that nobody there takes probes: it got this one.
    Refused(Ipv4Addr, Probe),
}

impl ProbeSocket {
    /// Listens on the tunnel address, to what comes through the interface: not to a neighbour who
    /// sends to that address from elsewhere.
    pub(crate) fn open(interface: &str, address: Ipv4Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        // A large probe is to get there as one packet, or not at all, whatever else is known of the
        // path.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        setsockopt(&socket, Ipv4RecvErr, &true)?;
        socket.bind(&SocketAddrV4::new(address, PROBE_PORT).into())?;
        UdpSocket::from_std(socket.into()).map(Self)
    }

    /// Sends a probe in a datagram of so many bytes, if the tunnel takes it: one that is not there
    /// takes none, and one whose MTU is smaller not this one.
    ///
    /// # Errors
    ///
    /// When the interface or its address is not there any more.
    pub(crate) fn send(&self, to: Ipv4Addr, probe: Probe, length: usize) -> io::Result<()> {
        let mut datagram = probe.to_bytes().to_vec();
        datagram.resize(length.max(Probe::LENGTH), 0);
        // Not tokio's, which waits to hear that there is room: a probe for which there is none is
        // as good as lost.
        let send =
            || SockRef::from(&self.0).send_to(&datagram, &SocketAddrV4::new(to, PROBE_PORT).into());
        // What an earlier probe met is told to the next call, whatever that is.
        match send().or_else(|_| send()) {
            Err(error) if is_gone(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Waits for the next arrival. Nothing is lost when it is given up.
    pub(crate) async fn arrival(&self) -> io::Result<Arrived> {
        loop {
            let ready = self.0.ready(Interest::READABLE | Interest::ERROR).await?;
            if ready.is_error()
                && let Ok(Some(refused)) = self.0.try_io(Interest::ERROR, || self.refusal())
            {
                return Ok(refused);
            }
            let mut datagram = [0; LOOKED_AT];
            match self.0.try_recv_from(&mut datagram) {
                Ok((length, from)) => {
                    if let (std::net::SocketAddr::V4(from), Some(probe)) =
                        (from, Probe::from_bytes(&datagram[..length]))
                    {
                        return Ok(Arrived::Probe(*from.ip(), probe));
                    }
                }
                Err(error) if is_gone(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// The next of the errors that probes met; `None` when it does not come from the host that was
    /// asked.
    fn refusal(&self) -> io::Result<Option<Arrived>> {
        let mut datagram = [0; LOOKED_AT];
        let mut buffers = [IoSliceMut::new(&mut datagram)];
        let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
        let asked = message.address.map(|address| address.ip());
        let says_so = message.cmsgs()?.find_map(|message| {
            let ControlMessageOwned::Ipv4RecvErr(error, Some(host)) = message else {
                return None;
            };
            // That it is too large says this host itself, or one on the way.
            let says_so = error.ee_origin == libc::SO_EE_ORIGIN_ICMP
                && error.ee_errno != Errno::EMSGSIZE as u32;
            says_so.then(|| Ipv4Addr::from(u32::from_be(host.sin_addr.s_addr)))
        });
        let length = message.bytes;
        let Some(probe) = Probe::from_bytes(&datagram[..length]) else {
            return Ok(None);
        };
        Ok(asked
            .filter(|asked| says_so == Some(*asked))
            .map(|asked| Arrived::Refused(asked, probe)))
    }
}

/// Whether the interface, or the address on it, is not there any more.
fn is_gone(error: &io::Error) -> bool {
    [Errno::ENODEV, Errno::EINVAL, Errno::EADDRNOTAVAIL]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_arrives_and_where_nobody_takes_it_the_host_says_so() {
        let [one, other, nobody] = [2, 3, 4].map(|last| Ipv4Addr::new(127, 87, 0, last));
        let [here, there] = [one, other].map(|address| ProbeSocket::open("lo", address).unwrap());
        let probes = [(Probe::Request(7), 8), (Probe::LargeRequest(8), 9_000)];
        for (probe, length) in probes {
            here.send(other, probe, length).unwrap();
            let arrived = there.arrival().await.unwrap();
            assert_eq!(arrived, Arrived::Probe(one, probe));
            here.send(nobody, probe, length).unwrap();
            assert_eq!(
                here.arrival().await.unwrap(),
                Arrived::Refused(nobody, probe)
            );
        }
        // The socket goes on after that, and after one that this host itself finds too large.
        here.send(other, Probe::LargeRequest(9), 65_507 + 1)
            .unwrap();
        here.send(nobody, Probe::Request(9), 8).unwrap();
        there.send(one, Probe::Answer(7), 8).unwrap();
        let mut arrived = [here.arrival().await.unwrap(), here.arrival().await.unwrap()];
        arrived.sort_by_key(|arrived| matches!(arrived, Arrived::Probe(..)));
        assert_eq!(
            arrived,
            [
                Arrived::Refused(nobody, Probe::Request(9)),
                Arrived::Probe(other, Probe::Answer(7))
            ]
        );
    }
}
