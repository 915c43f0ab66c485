//! What the agent needs of a host before it has made anything there: somebody who moves packets,
//! and the names of its interface and its table.

use super::{Finding, Symptoms, fault, fine, notice};

/// Who could move the packets of a host that has no interface of the agent's yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// The kernel's WireGuard, loaded or as a module that can be.
    Kernel,
    /// A userspace device.
    Tun,
    Nobody,
}

/// What other programs have under the names that the agent uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What the interface of the agent's name is, in words; absent means it is the agent's, or is
    /// not there.
    pub interface: Option<String>,
    /// Whether the table `inet wattle` is of another program.
    pub table: bool,
}

/// Why there is no interface, where that is known.
pub(super) fn without_interface(symptoms: &Symptoms) -> Finding {
    let interface = &symptoms.served.interface;
    if let Some(what) = &symptoms.taken.interface {
        return fault(
            "wireguard",
            format!("{interface} is {what}, which this agent did not make and leaves as it is"),
            format!(
                "rename it (`ip link set {interface} down && ip link set {interface} name \
                 another`), remove it, or give the agent another name with --interface"
            ),
        );
    }
    match symptoms.mover {
        _ if symptoms.joined => fault(
            "wireguard",
            format!("there is no interface {interface}"),
            "the agent makes it: its log says why it cannot",
        ),
        Mover::Kernel => fine("wireguard", "the kernel has WireGuard"),
        Mover::Tun => notice(
            "wireguard",
            "the kernel has no WireGuard: the agent will use a userspace device, which is slower",
            "install the kernel's module: `modprobe wireguard` has to succeed; containers need it \
             on their host",
        ),
        Mover::Nobody => fault(
            "wireguard",
            "the kernel has no WireGuard, and there is no /dev/net/tun for a userspace device",
            "`modprobe wireguard` or `modprobe tun`; containers need one of them from their host",
        ),
    }
}

/// The table, if another program has it.
pub(super) fn table(symptoms: &Symptoms) -> Option<Finding> {
    symptoms.taken.table.then(|| {
        fault(
            "firewall",
            "the table inet wattle is of another program, and this agent leaves it as it is",
            "see `nft list table inet wattle`, and remove it with `nft delete table inet wattle` \
             if nobody needs it",
        )
    })
}
