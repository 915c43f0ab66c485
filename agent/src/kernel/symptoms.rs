//! What is found on this host that may stand in the way of packets.

use std::{collections::BTreeSet, fs, path::Path};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use serde_json::Value;
use wattle_mesh::{
    diagnose::{doctor::Mover, firewall::Lan},
    host::interface::InterfaceName,
};

use super::{legacy, nft};

/// The number of `CAP_NET_ADMIN` in `linux/capability.h`.
const NET_ADMIN: u32 = 12;

/// Whether this process may change interfaces and firewalls here.
pub(crate) fn may_administer() -> bool {
    has_net_admin("self")
}

/// Whether a process may, as far as this one is allowed to know.
pub(crate) fn has_net_admin(process: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| effective & (1 << NET_ADMIN) != 0)
}

/// The kernel's release, as `uname -r` prints it.
pub(crate) fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Who could move packets here. Nothing is loaded to find out.
pub(crate) fn mover() -> Mover {
    let modules = Path::new("/lib/modules").join(release());
    let has_module = |list: &str| {
        fs::read_to_string(modules.join(list)).is_ok_and(|names| names.contains("/wireguard.ko"))
    };
    if Path::new("/sys/module/wireguard").exists()
        || ["modules.builtin", "modules.dep"]
            .into_iter()
            .any(has_module)
    {
        Mover::Kernel
    } else if Path::new("/dev/net/tun").exists() {
        Mover::Tun
    } else {
        Mover::Nobody
    }
}

/// `rp_filter` as it works on the interface: the larger of its own and that of all
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) fn rp_filter(interface: &InterfaceName) -> Option<u8> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"))
            .ok()?
            .trim()
            .parse::<u8>()
            .ok()
    };
    read("all").max(read(interface.as_str()))
}

/// The MTU of an interface in bytes.
pub(crate) fn mtu(interface: &str) -> Option<u32> {
    let file = Path::new("/sys/class/net").join(interface).join("mtu");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// An address of this host.
#[derive(Clone, Debug)]
pub(crate) struct HostAddress {
    pub(crate) interface: String,
    /// With its network.
    pub(crate) address: IpNet,
    /// Whether the interface is up and has a carrier, or has none to lose: `IFF_RUNNING` of
    /// netdevice(7).
    is_up: bool,
}

/// The addresses of this host.
pub(crate) fn addresses() -> impl Iterator<Item = HostAddress> {
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        let v6 = || address.as_sockaddr_in6().map(|v6| v6.ip().into());
        v4.or_else(v6)
    };
    getifaddrs().into_iter().flatten().filter_map(move |found| {
        let address = found.address.and_then(ip)?;
        let mask = found.netmask.and_then(ip)?;
        Some(HostAddress {
            interface: found.interface_name,
            address: IpNet::with_netmask(address, mask).ok()?,
            is_up: found.flags.contains(InterfaceFlags::IFF_RUNNING),
        })
    })
}

/// The LANs among these subnets in which this host has an address.
pub(crate) fn lans(subnets: &[IpNet]) -> Vec<Lan> {
    let addresses: Vec<_> = addresses().collect();
    let lan = |subnet: &IpNet| {
        let found = addresses
            .iter()
            .find(|found| subnet.contains(&found.address.addr()))?;
        Some(Lan {
            interface: found.interface.clone(),
            subnet: *subnet,
            address: found.address,
            up: found.is_up,
        })
    };
    subnets.iter().filter_map(lan).collect()
}

/// Of these interfaces those that forward no IPv4.
pub(crate) fn stopped<'i>(interfaces: impl Iterator<Item = &'i str>) -> BTreeSet<String> {
    let is_off = |interface: &&str| {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
        fs::read_to_string(file).is_ok_and(|value| value.trim() == "0")
    };
    interfaces.filter(is_off).map(str::to_owned).collect()
}

/// Whether this host forwards IPv6.
pub(crate) fn forwards_v6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")
        .is_ok_and(|value| value.trim() != "0")
}

/// All tables, chains and rules, as nft lists them, with those of iptables-legacy; and why some of
/// these may be missing.
pub(crate) async fn ruleset() -> (Result<Value, String>, Option<String>) {
    let listing = nft::everything().await;
    let mut ruleset = listing.map_err(|error| format!("{error:#}"));
    let unread = match &mut ruleset {
        Ok(ruleset) => legacy::add_to(ruleset).await.err(),
        Err(_) => None,
    };
    (ruleset, unread.map(|error| format!("{error:#}")))
}
