//! The host's network as the agent drives it: one WireGuard interface, its addresses and routes,
//! forwarding, one nftables table.

mod device_state;
pub(crate) mod events;
mod forwarding;
pub(crate) mod legacy;
mod link;
mod nft;
mod observe;
mod owned;
pub(crate) mod ping;
pub(crate) mod probe;
pub(crate) mod symptoms;
#[cfg(test)]
mod tests;
pub(crate) mod throughput;
mod underlay;
mod userspace;
mod wireguard;

use std::{collections::BTreeSet, io};

use anyhow::{Context, bail};
use device_state::{Dump, Write};
use ipnet::IpNet;
pub(crate) use link::RouteTaken;
use link::{Found, Kind, Tables};
use nix::errno::Errno;
pub(crate) use observe::Policy;
use owned::{OwnedDevice, OwnedInterface, OwnedRuleset, OwnedStore};
use tracing::info;
use wattle_mesh::host::{
    interface::InterfaceName,
    offload::Offload,
    state::{AllowedIps, Change, PeerUpdate},
};
use wattle_wire::{ids::NodeId, key::WireguardKey, report::DeviceKind};
use zeroize::Zeroizing;

use crate::{identity::Slot, store::Store};

const NEEDS_NET_ADMIN: &str =
    "the agent needs CAP_NET_ADMIN: run it as root or by its systemd unit";

/// The host's network as the agent drives it.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    interface: InterfaceName,
    store: Store,
    owned: OwnedStore,
    /// What a userspace device does without.
    no_offload: BTreeSet<Offload>,
}

impl Kernel {
    /// `store` holds what the agent made on this host, and `device.log`, the last userspace
    /// device's words.
    pub(crate) fn new(interface: InterfaceName, store: &Store) -> anyhow::Result<Self> {
        Ok(Self {
            interface,
            store: store.clone(),
            owned: OwnedStore::new(store)?,
            no_offload: BTreeSet::new(),
        })
    }

    /// Has userspace devices do without some of what Linux does for many packets at once.
    pub(crate) fn without(mut self, no_offload: &BTreeSet<Offload>) -> Self {
        self.no_offload.clone_from(no_offload);
        self
    }

    /// What userspace devices do without.
    pub(crate) fn no_offload(&self) -> &BTreeSet<Offload> {
        &self.no_offload
    }

    /// Takes one step. `private_key` is read for [`Change::SetPrivateKey`] only.
    pub(crate) async fn apply(
        &self,
        change: &Change,
        private_key: &Zeroizing<[u8; 32]>,
    ) -> anyhow::Result<()> {
        let interface = &self.interface;
        match change {
            Change::SetRuleset(ruleset) => self.remember(nft::set(ruleset, &self.nodes()).await),
            Change::UpdateRuleset { from, to } => {
                self.remember(nft::update(from, to, &self.nodes()).await)
            }
            Change::CreateInterface => self
                .create_interface()
                .await
                .with_context(|| format!("cannot make the interface {interface}")),
            Change::SetPrivateKey(public_key) => {
                if device_state::public_half(private_key) != Some(*public_key) {
                    bail!("the node's private key does not belong to {public_key}");
                }
                self.write(&Write::PrivateKey(private_key))
                    .await
                    .with_context(|| format!("cannot set the private key of {interface}"))
            }
            Change::SetListenPort(port) => self
                .write(&Write::ListenPort(*port))
                .await
                .with_context(|| format!("cannot let {interface} listen on UDP port {port}")),
            Change::SetMtu(bytes) => {
                let (tables, index) = self.interface_index().await?;
                let set = tables.set_mtu(index, *bytes).await;
                set.map_err(explained)
                    .with_context(|| format!("cannot set the MTU of {interface} to {bytes}"))
            }
            Change::AddAddress(address) => {
                let (tables, index) = self.interface_index().await?;
                let added = tables
                    .add_address(index, *address)
                    .await
                    .map_err(|error| explained_for(error, *address));
                added.with_context(|| format!("cannot add the address {address} to {interface}"))
            }
            Change::RemoveAddress(address) => {
                let (tables, index) = self.interface_index().await?;
                tables
                    .remove_address(index, *address)
                    .await
                    .with_context(|| {
                        format!("cannot remove the address {address} from {interface}")
                    })
            }
            Change::SetUp => {
                let (tables, index) = self.interface_index().await?;
                if self
                    .owned
                    .interface()
                    .is_some_and(|made| made.device == OwnedDevice::Kernel)
                {
                    forwarding::remember_redirects(&self.owned)?;
                }
                tables
                    .set_up(index)
                    .await
                    .map_err(explained)
                    .with_context(|| format!("cannot bring {interface} up"))
            }
            Change::EnableForwarding(family) => {
                forwarding::enable(*family, &self.owned).context("cannot switch forwarding on")
            }
            Change::SetRoute(prefix, source) => {
                let (tables, index) = self.interface_index().await?;
                tables
                    .set_route(index, *prefix, *source)
                    .await
                    .with_context(|| format!("cannot route {prefix} over {interface}"))
            }
            Change::RemoveRoute(prefix) => {
                let (tables, index) = self.interface_index().await?;
                tables.remove_route(index, *prefix).await.with_context(|| {
                    format!("cannot remove the route to {prefix} over {interface}")
                })
            }
            Change::SetUnderlayRoute(address, way) => self.set_underlay_route(*address, way).await,
            Change::RemoveUnderlayRoute(address) => {
                self.remove_underlay_route(*address).await.map(drop)
            }
            Change::SetPeer(key, peer) => {
                let written = self.apply_to_peers(&[change]).await;
                written.with_context(|| {
                    format!(
                        "cannot set {} of the peer {key} on {interface}",
                        named(peer)
                    )
                })
            }
            Change::RemovePeer(key) => self
                .apply_to_peers(&[change])
                .await
                .with_context(|| format!("cannot remove the peer {key} from {interface}")),
        }
    }

    /// Takes steps at once that are all of a peer, in their order. On an error some may have been
    /// taken; each may be taken again.
    pub(crate) async fn apply_to_peers(&self, changes: &[&Change]) -> anyhow::Result<()> {
        let peers = changes
            .iter()
            .filter_map(|change| change.of_peer())
            .collect();
        self.write(&Write::Peers(peers)).await
    }

    /// Addresses of the host's other interfaces, to choose route sources from: neither loopback nor
    /// link-local ones.
    pub(crate) async fn host_addresses(&self) -> anyhow::Result<Vec<IpNet>> {
        let tables = Tables::open()?;
        let but = tables.find(&self.interface).await?.map(|found| found.index);
        tables.addresses_elsewhere(but).await
    }

    /// Takes away what the agent made and nothing else, and says in words what that was. A second
    /// call finds nothing to do.
    pub(crate) async fn down(&self) -> anyhow::Result<Vec<String>> {
        let made = self.owned.get();
        let mut done = Vec::new();
        if let Some(name) = self.remove_interface().await? {
            done.push(format!("removed the interface {name}"));
        }
        // After the routes into the tunnel, which they kept the addresses out of.
        for address in self.remove_underlay_routes().await? {
            done.push(format!("removed the route to {address} past the tunnel"));
        }
        if nft::remove(&self.nodes()).await? {
            done.push("removed the nftables table inet wattle".to_owned());
        }
        done.extend(forwarding::restore(&made.sysctls)?);
        self.owned.forget()?;
        Ok(done)
    }

    fn remember(&self, made: anyhow::Result<OwnedRuleset>) -> anyhow::Result<()> {
        let made = made.context("cannot set the table inet wattle")?;
        self.owned.change(|owned| owned.ruleset = Some(made));
        Ok(())
    }

    /// The nodes whose table is this agent's: the one that it was when it made it, and the one that
    /// it is, should the record be lost.
    fn nodes(&self) -> Vec<NodeId> {
        let made = self
            .owned
            .read(|owned| Some(owned.ruleset.as_ref()?.ruleset.node));
        let present = Slot::Present.load(&self.store).ok().flatten();
        let present = present.and_then(|(_, membership)| Some(membership?.enrolled.node));
        made.into_iter().chain(present).collect()
    }

    /// Whether a WireGuard key is this node's: nobody else has it.
    fn is_own_key(&self, key: WireguardKey) -> bool {
        let present = Slot::Present.load(&self.store).ok().flatten();
        present.is_some_and(|(node_keys, _)| {
            [Some(node_keys.wireguard_key()), node_keys.next_key()].contains(&Some(key))
        })
    }

    /// Who has the interface of our name. It is the agent's if the agent remembers that it made it,
    /// or if it holds a key of this node; its name says nothing.
    async fn holder(&self, tables: &Tables) -> anyhow::Result<Holder> {
        let Some(found) = tables.find(&self.interface).await? else {
            return Ok(Holder::Nobody);
        };
        let dump = self.dump(&found).await?;
        if self.remembers(&found) {
            return Ok(Holder::Agent { found, dump });
        }
        let Some((kind, dump)) = dump else {
            return Ok(Holder::Other(found));
        };
        let made = self.owned.interface();
        let was_being_made = made.is_some_and(|made| made.index.is_none());
        let is_blank = dump.public_key.is_none() && dump.peers.is_empty();
        if was_being_made && is_blank || dump.public_key.is_some_and(|key| self.is_own_key(key)) {
            let device = match kind {
                DeviceKind::Kernel => OwnedDevice::Kernel,
                DeviceKind::Userspace => OwnedDevice::Userspace {
                    process: userspace::process_id(&self.interface).await,
                },
            };
            self.made(device, Some(found.index));
            let dump = Some((kind, dump));
            return Ok(Holder::Agent { found, dump });
        }
        Ok(Holder::Other(found))
    }

    /// Whether the record of what the agent made has this interface.
    fn remembers(&self, found: &Found) -> bool {
        let made = self.owned.interface();
        made.and_then(|made| made.index) == Some(found.index)
    }

    /// The interface that the agent made. Each step that is taken asks for it, so its peers, of whom
    /// there may be thousands, are read only where the record does not tell.
    async fn own_interface(&self, tables: &Tables) -> anyhow::Result<Found> {
        if let Some(found) = tables.find(&self.interface).await?
            && self.remembers(&found)
        {
            return Ok(found);
        }
        match self.holder(tables).await? {
            Holder::Agent { found, .. } => Ok(found),
            Holder::Other(found) => bail!(self.taken(&found)),
            Holder::Nobody => bail!("there is no interface {}", self.interface),
        }
    }

    /// What the interface of our name is, in words, if somebody else made it.
    pub(crate) async fn taken_by(&self) -> anyhow::Result<Option<String>> {
        Ok(match self.holder(&Tables::open()?).await? {
            Holder::Other(found) => Some(what(&found)),
            Holder::Agent { .. } | Holder::Nobody => None,
        })
    }

    fn taken(&self, found: &Found) -> String {
        let what = what(found);
        format!(
            "{} is {what}, which this agent did not make. It is left as it is: rename or remove \
             it, or give the agent another name with --interface",
            self.interface
        )
    }

    /// The WireGuard device of an interface, if it is one.
    async fn dump(&self, found: &Found) -> anyhow::Result<Option<(DeviceKind, Dump)>> {
        let Some(kind) = device_kind(found) else {
            return Ok(None);
        };
        Ok(wireguard::dump(&self.interface, kind)
            .await?
            .map(|dump| (kind, dump)))
    }

    async fn create_interface(&self) -> anyhow::Result<()> {
        let tables = Tables::open()?;
        match self.holder(&tables).await? {
            Holder::Agent { dump: Some(_), .. } => return Ok(()),
            Holder::Other(found) => bail!(self.taken(&found)),
            Holder::Agent { dump: None, .. } | Holder::Nobody => {}
        }
        if let Some(renamed) = self.renamed(&tables).await? {
            bail!(
                "the interface that this agent made is named {renamed} now: give it its name back \
                 with `ip link set {renamed} down && ip link set {renamed} name {}`, or remove it \
                 with `ip link del {renamed}`",
                self.interface
            );
        }
        // One that does not answer, or one whose interface was deleted and which is about to end:
        // the new one needs its socket.
        self.end_device().await?;
        if let Some(found) = tables.find(&self.interface).await? {
            bail!(self.taken(&found));
        }

        self.made(OwnedDevice::Kernel, None);
        match tables.add_wireguard(&self.interface).await {
            Ok(()) => {
                self.made(OwnedDevice::Kernel, self.index(&tables).await?);
                info!(interface = %self.interface, "made a WireGuard interface of the kernel");
                return Ok(());
            }
            Err(error) if has_no_wireguard(&error) => {}
            Err(error) => {
                self.owned.change(|made| made.interface = None);
                return Err(explained(error));
            }
        }
        self.made(OwnedDevice::Userspace { process: None }, None);
        let process = userspace::start(&self.interface, &self.no_offload, self.store.dir()).await?;
        let device = OwnedDevice::Userspace {
            process: Some(process),
        };
        self.made(device, self.index(&tables).await?);
        info!(interface = %self.interface, process, "made a userspace WireGuard interface: this \
            kernel has no WireGuard");
        Ok(())
    }

    fn made(&self, device: OwnedDevice, index: Option<u32>) {
        self.owned
            .change(|owned| owned.interface = Some(OwnedInterface { device, index }));
    }

    async fn index(&self, tables: &Tables) -> anyhow::Result<Option<u32>> {
        let found = tables.find(&self.interface).await?;
        Ok(found.map(|found| found.index))
    }

    /// The other name that somebody gave to the interface that the agent made.
    async fn renamed(&self, tables: &Tables) -> anyhow::Result<Option<String>> {
        let Some(index) = self.owned.interface().and_then(|made| made.index) else {
            return Ok(None);
        };
        let found = tables.find_by_index(index).await?;
        Ok(found
            .filter(|found| device_kind(found).is_some() && found.name != self.interface.as_str())
            .map(|found| found.name))
    }

    /// Ends the userspace device, whether its interface is still there or not. The record may have
    /// been written before the process was known, so who answers on the socket counts too; either
    /// must prove to be a device of this interface.
    async fn end_device(&self) -> anyhow::Result<()> {
        let made = self.owned.interface().map(|made| made.device);
        let Some(OwnedDevice::Userspace { process }) = made else {
            return Ok(());
        };
        for process in process
            .into_iter()
            .chain(userspace::process_id(&self.interface).await)
        {
            userspace::end(&self.interface, process).await?;
        }
        Ok(())
    }

    /// Removes the interface that the agent made, whatever its name is by now. The name, if there
    /// was one.
    async fn remove_interface(&self) -> anyhow::Result<Option<String>> {
        let tables = Tables::open()?;
        // One that was being made, or of which the record is lost, is known after this.
        self.holder(&tables).await?;
        let Some(OwnedInterface { device, index }) = self.owned.interface() else {
            return Ok(None);
        };
        let Some(index) = index else {
            self.end_device().await?;
            return Ok(None);
        };
        let found = tables.find_by_index(index).await?;
        self.end_device().await?;
        let Some(found) = found else { return Ok(None) };
        if device == OwnedDevice::Kernel && found.kind == Kind::Wireguard {
            let removed = tables.remove(index).await.map_err(explained);
            removed.with_context(|| format!("cannot remove the interface {}", found.name))?;
        }
        let left = tables.find_by_index(index).await?;
        Ok(left.is_none().then_some(found.name))
    }

    async fn write(&self, what: &Write<'_>) -> anyhow::Result<()> {
        let found = self.own_interface(&Tables::open()?).await?;
        let kind = device_kind(&found)
            .with_context(|| format!("the interface {} is not WireGuard", self.interface))?;
        wireguard::write(&self.interface, kind, what).await
    }

    async fn interface_index(&self) -> anyhow::Result<(Tables, u32)> {
        let tables = Tables::open()?;
        let index = self.own_interface(&tables).await?.index;
        Ok((tables, index))
    }
}

/// Who has the interface of the agent's name.
enum Holder {
    Nobody,
    Agent {
        found: Found,
        /// Absent where no device answers.
        dump: Option<(DeviceKind, Dump)>,
    },
    /// Somebody else made it.
    Other(Found),
}

fn what(found: &Found) -> String {
    match &found.kind {
        Kind::Wireguard => "another WireGuard interface".to_owned(),
        Kind::Tun => "a TUN interface of another program".to_owned(),
        Kind::Other(kind) => format!("an interface of kind {kind}"),
    }
}

fn device_kind(found: &Found) -> Option<DeviceKind> {
    match found.kind {
        Kind::Wireguard => Some(DeviceKind::Kernel),
        Kind::Tun => Some(DeviceKind::Userspace),
        Kind::Other(_) => None,
    }
}

/// Whether the error of making a WireGuard interface means that the kernel knows no such kind.
/// `EPERM` is not of them: a process that may not make interfaces may not make a TUN interface
/// either, and its error says what to do.
fn has_no_wireguard(error: &io::Error) -> bool {
    let codes = [
        Errno::EOPNOTSUPP,
        Errno::ENODEV,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
    ];
    codes
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code as i32))
}

/// What a change of a peer is about, in words.
fn named(peer: &PeerUpdate) -> String {
    let mut parts = Vec::new();
    if let Some(endpoint) = peer.endpoint {
        parts.push(format!("the endpoint {endpoint}"));
    }
    if let Some(seconds) = peer.keepalive_s {
        parts.push(format!("the keepalive {seconds} s"));
    }
    if peer.allowed_ips != AllowedIps::Untouched {
        parts.push("the prefixes".to_owned());
    }
    if peer.psk.is_some() {
        parts.push("the preshared key".to_owned());
    }
    if parts.is_empty() {
        "the presence".to_owned()
    } else {
        parts.join(" and ")
    }
}

/// The error, with what to do about it where that is known.
fn explained(error: io::Error) -> anyhow::Error {
    let is = |code: Errno| error.raw_os_error() == Some(code as i32);
    if is(Errno::EPERM) {
        return anyhow::Error::new(error).context(NEEDS_NET_ADMIN);
    }
    // The kernel opens the socket only as the interface goes up, so this comes of that too.
    if is(Errno::EADDRINUSE) {
        return anyhow::Error::new(error)
            .context("another program has the UDP port: `ss -lunp` tells which");
    }
    error.into()
}

fn explained_for(error: io::Error, address: IpNet) -> anyhow::Error {
    let refused = [Errno::EACCES, Errno::EOPNOTSUPP]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code as i32));
    if refused && address.addr().is_ipv6() {
        return anyhow::Error::new(error)
            .context("IPv6 is switched off here: see net.ipv6.conf.all.disable_ipv6");
    }
    explained(error)
}
