//! The kernel's word that interfaces, addresses, routes, routing rules, switches or the rules of a
//! firewall have changed.

use std::os::{fd::AsRawFd, unix::net};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;

/// Groups of rtnetlink(7) as a mask, from `RTMGRP_*` and `RTNLGRP_*` in `linux/rtnetlink.h`: links,
/// and of IPv4 and IPv6 addresses, routes, rules and switches.
const ROUTE_GROUPS: u32 = 1
    | 1 << (5 - 1)
    | 1 << (7 - 1)
    | 1 << (8 - 1)
    | 1 << (9 - 1)
    | 1 << (11 - 1)
    | 1 << (19 - 1)
    | 1 << (24 - 1)
    | 1 << (25 - 1);
/// `NFNLGRP_NFTABLES` in `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// Sockets on which the kernel tells of changes.
#[derive(Debug)]
pub(crate) struct KernelEvents {
    route: UnixDatagram,
    nftables: UnixDatagram,
}

impl KernelEvents {
    pub(crate) fn open() -> anyhow::Result<Self> {
        Ok(Self {
            route: listen(SockProtocol::NetlinkRoute, ROUTE_GROUPS)?,
            nftables: listen(SockProtocol::NetlinkNetFilter, NFTABLES_GROUP)?,
        })
    }

    /// Waits until something has changed.
    pub(crate) async fn changed(&self) {
        tokio::select! {
            () = next(&self.route) => {}
            () = next(&self.nftables) => {}
        }
        for told in [&self.route, &self.nftables] {
            while told.try_recv(&mut [0; 4096]).is_ok() {}
        }
    }
}

/// Tokio has no netlink sockets. What it does with a datagram socket of another family is the same.
fn listen(protocol: SockProtocol, groups: u32) -> anyhow::Result<UnixDatagram> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
        .context("cannot open a netlink socket")?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, groups))
        .context("cannot listen to the kernel's events")?;
    let listening = UnixDatagram::from_std(net::UnixDatagram::from(opened));
    listening.context("cannot wait for the kernel's events")
}

/// Waits for an event. That there were more than the socket holds is one, too.
async fn next(socket: &UnixDatagram) {
    // An error is ENOBUFS: some events were lost.
    let _ = socket.recv(&mut [0; 4096]).await;
}
