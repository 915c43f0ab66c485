//! The interface itself, its addresses and its routes, over rtnetlink.

mod neighbours;
mod rules;
mod underlay;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkGetRequest, LinkUnspec, LinkWireguard, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
            RouteScope, RouteType,
        },
    },
};
use thiserror::Error;
use wattle_mesh::host::{
    interface::InterfaceName,
    state::{Family, ObservedRoute},
};

/// A route of somebody else to a prefix is in the way.
#[derive(Debug, Error)]
#[error("there is already another route to {prefix}{}", self.device(" over"))]
pub(crate) struct RouteTaken {
    prefix: IpNet,
    /// By which packets leave there; absent where they leave by none.
    interface: Option<String>,
}

impl RouteTaken {
    /// What takes that route away.
    pub(crate) fn remedy(&self) -> String {
        let Self { prefix, .. } = self;
        let family = if prefix.addr().is_ipv4() { "" } else { "-6 " };
        let device = self.device(" dev");
        format!("if nothing else needs it: ip {family}route del {prefix}{device}")
    }

    fn device(&self, word: &str) -> String {
        let interface = self.interface.iter();
        interface.map(|name| format!("{word} {name}")).collect()
    }
}

/// Marks the routes that Wattle made (`ip route show proto 87`). The number is free in iproute2's
/// `rt_protos`; routes of other protocols, even over Wattle's interface, are somebody else's.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(87);

/// What kind of interface has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The kernel's own WireGuard.
    Wireguard,
    /// A TUN interface: behind it may be a userspace device.
    Tun,
    /// Something else, such as `bridge`.
    Other(String),
}

/// An interface as found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) up: bool,
    pub(super) mtu: u32,
}

/// A connection to the kernel's tables of interfaces, addresses and routes.
#[derive(Clone, Debug)]
pub(super) struct Tables(Handle);

impl Tables {
    pub(super) fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        // It ends by itself when the last handle is gone.
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(super) async fn find(&self, interface: &InterfaceName) -> anyhow::Result<Option<Found>> {
        let request = self.0.link().get().match_name(interface.as_str());
        first(request)
            .await
            .with_context(|| format!("cannot look for the interface {interface}"))
    }

    /// As [`Tables::find`], whatever its name is.
    pub(super) async fn find_by_index(&self, index: u32) -> anyhow::Result<Option<Found>> {
        first(self.0.link().get().match_index(index))
            .await
            .with_context(|| format!("cannot look for the interface with index {index}"))
    }

    /// Makes an interface of the kernel's own WireGuard. The error is left as it is: by it the
    /// caller sees that the kernel has no WireGuard.
    pub(super) async fn add_wireguard(&self, interface: &InterfaceName) -> io::Result<()> {
        self.0
            .link()
            .add(LinkWireguard::new(interface.as_str()).build())
            .execute()
            .await
            .map_err(into_io)
    }

    pub(super) async fn remove(&self, index: u32) -> io::Result<()> {
        self.0.link().del(index).execute().await.map_err(into_io)
    }

    pub(super) async fn set_mtu(&self, index: u32, bytes: u32) -> io::Result<()> {
        self.0
            .link()
            .set(LinkUnspec::new_with_index(index).mtu(bytes).build())
            .execute()
            .await
            .map_err(into_io)
    }

    pub(super) async fn set_up(&self, index: u32) -> io::Result<()> {
        self.0
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .map_err(into_io)
    }

    /// Addresses of an interface but link-local ones.
    pub(super) async fn addresses(&self, index: u32) -> anyhow::Result<BTreeSet<IpNet>> {
        let found = self.address_messages().await?;
        Ok(found
            .iter()
            .filter(|message| message.header.index == index)
            .filter_map(address_of)
            .filter(is_global)
            .collect())
    }

    /// Addresses of all interfaces but this one; neither loopback nor link-local ones.
    pub(super) async fn addresses_elsewhere(&self, but: Option<u32>) -> anyhow::Result<Vec<IpNet>> {
        let found = self.address_messages().await?;
        let elsewhere = found
            .iter()
            .filter(|message| Some(message.header.index) != but)
            .filter_map(address_of);
        Ok(elsewhere
            .filter(|net| is_global(net) && !net.addr().is_loopback())
            .collect())
    }

    pub(super) async fn add_address(&self, index: u32, address: IpNet) -> io::Result<()> {
        let mut request = self
            .0
            .address()
            .add(index, address.addr(), address.prefix_len());
        // A tunnel has no broadcast.
        request
            .message_mut()
            .attributes
            .retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        match request.execute().await.map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub(super) async fn remove_address(&self, index: u32, address: IpNet) -> anyhow::Result<()> {
        let messages = self.address_messages().await?;
        for message in messages
            .into_iter()
            .filter(|message| message.header.index == index && address_of(message) == Some(address))
        {
            self.0
                .address()
                .del(message)
                .execute()
                .await
                .map_err(into_io)
                .map_err(super::explained)?;
        }
        Ok(())
    }

    /// Routes over the interface that Wattle made.
    pub(super) async fn routes(
        &self,
        index: u32,
    ) -> anyhow::Result<BTreeMap<IpNet, ObservedRoute>> {
        let mut routes = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let messages = self.route_messages(family).await?;
            let ours = messages.iter().filter(|message| is_ours(message, index));
            routes.extend(ours.filter_map(|message| {
                let route = ObservedRoute {
                    source: source(message),
                    mtu: mtu(message),
                };
                Some((destination(message)?, route))
            }));
        }
        Ok(routes)
    }

    /// Makes the route, or replaces the one that Wattle made and keeps what somebody has set on it,
    /// such as its MTU. A route of somebody else to the same prefix is left, and named in the error.
    pub(super) async fn set_route(
        &self,
        index: u32,
        prefix: IpNet,
        source: Option<IpAddr>,
    ) -> anyhow::Result<()> {
        let same_prefix = self.routes_to(prefix).await?;
        let mut message = route(index, prefix, source)?;
        let former = same_prefix.iter().find(|message| is_ours(message, index));
        let attributes = former.iter().flat_map(|former| &former.attributes);
        message.attributes.extend(
            attributes
                .filter(|attribute| matches!(attribute, RouteAttribute::Metrics(_)))
                .cloned(),
        );
        let mut request = self.0.route().add(message);
        // Without this a replacement takes whichever route to the prefix comes first, whoever made
        // it.
        if former.is_some() {
            request = request.replace();
        }
        match request.execute().await.map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut outputs = same_prefix.iter().filter_map(output);
                let interface = outputs
                    .find_map(|index| nix::net::if_::if_indextoname(index).ok())
                    .map(|name| name.to_string_lossy().into_owned());
                Err(RouteTaken { prefix, interface }.into())
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && source.is_some() => {
                Err(error).with_context(|| {
                    format!(
                        "{} may not be an address of this host",
                        source.unwrap_or(prefix.addr())
                    )
                })
            }
            Err(error) if error.raw_os_error() == Some(Errno::ENETDOWN as i32) => {
                Err(error).context("the interface is down")
            }
            other => other.map_err(super::explained),
        }
    }

    pub(super) async fn remove_route(&self, index: u32, prefix: IpNet) -> anyhow::Result<()> {
        for message in self
            .routes_to(prefix)
            .await?
            .into_iter()
            .filter(|message| is_ours(message, index))
        {
            self.0
                .route()
                .del(message)
                .execute()
                .await
                .map_err(into_io)
                .map_err(super::explained)?;
        }
        Ok(())
    }

    async fn routes_to(&self, prefix: IpNet) -> anyhow::Result<Vec<RouteMessage>> {
        let mut messages = self.route_messages(prefix.into()).await?;
        messages.retain(|message| {
            in_main_table(message) && destination(message) == Some(prefix.trunc())
        });
        Ok(messages)
    }

    async fn route_messages(&self, family: Family) -> anyhow::Result<Vec<RouteMessage>> {
        let query = match family {
            Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes = self
            .0
            .route()
            .get(query)
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        routes.map_err(into_io).context("cannot read the routes")
    }

    async fn address_messages(&self) -> anyhow::Result<Vec<AddressMessage>> {
        let addresses = self
            .0
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        addresses
            .map_err(into_io)
            .context("cannot read the addresses")
    }
}

async fn first(request: LinkGetRequest) -> anyhow::Result<Option<Found>> {
    match request.execute().try_next().await.map_err(into_io) {
        Ok(message) => Ok(message.as_ref().map(found)),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(super::explained(error)),
    }
}

fn found(message: &LinkMessage) -> Found {
    let infos = message.attributes.iter().filter_map(|attribute| {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            Some(infos)
        } else {
            None
        }
    });
    let kind = infos.flatten().find_map(|info| {
        if let LinkInfo::Kind(kind) = info {
            Some(kind)
        } else {
            None
        }
    });
    let mtu = message.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Mtu(mtu) = attribute {
            Some(*mtu)
        } else {
            None
        }
    });
    let name = message.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name.clone())
        } else {
            None
        }
    });
    Found {
        index: message.header.index,
        name: name.unwrap_or_default(),
        kind: match kind {
            Some(kind) if *kind == InfoKind::Wireguard => Kind::Wireguard,
            Some(kind) if *kind == InfoKind::Tun => Kind::Tun,
            Some(kind) => Kind::Other(kind.to_string()),
            None => Kind::Other("hardware".to_owned()),
        },
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: mtu.unwrap_or(0),
    }
}

/// The address that the host itself has; of a point-to-point interface `Address` is the other
/// end's.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    });
    let any = || {
        message.attributes.iter().find_map(|attribute| {
            if let AddressAttribute::Address(ip) = attribute {
                Some(*ip)
            } else {
                None
            }
        })
    };
    IpNet::new(local.or_else(any)?, message.header.prefix_len).ok()
}

fn is_global(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    }
}

fn route(index: u32, prefix: IpNet, source: Option<IpAddr>) -> anyhow::Result<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .with_context(|| format!("not a prefix for a route: {prefix}"))?
        .output_interface(index)
        .protocol(ROUTE_PROTOCOL);
    // There is no gateway behind a tunnel. IPv6 has no such scope.
    if prefix.addr().is_ipv4() {
        builder = builder.scope(RouteScope::Link);
    }
    if let Some(source) = source {
        builder = builder
            .pref_source(source)
            .with_context(|| format!("{source} cannot be the source of a route to {prefix}"))?;
    }
    Ok(builder.build())
}

fn is_ours(message: &RouteMessage, index: u32) -> bool {
    message.header.protocol == ROUTE_PROTOCOL
        && message.header.kind == RouteType::Unicast
        && in_main_table(message)
        && output(message) == Some(index)
}

fn in_main_table(message: &RouteMessage) -> bool {
    message.header.table == RouteHeader::RT_TABLE_MAIN
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

fn source(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::PrefSource(address) = attribute {
            ip(address)
        } else {
            None
        }
    })
}

fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Metrics(metrics) = attribute {
            Some(metrics)
        } else {
            None
        }
    });
    metrics.into_iter().flatten().find_map(|metric| {
        if let RouteMetric::Mtu(bytes) = metric {
            Some(*bytes)
        } else {
            None
        }
    })
}

/// The prefix that the route is for; a message without one is a default route.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let named = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(to) = attribute {
            Some(ip(to))
        } else {
            None
        }
    });
    let is_v6 = message.header.address_family == AddressFamily::Inet6;
    let any = if is_v6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    IpNet::new(
        named.unwrap_or(Some(any))?,
        message.header.destination_prefix_length,
    )
    .ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some(IpAddr::V4(*ip))
    } else if let RouteAddress::Inet6(ip) = address {
        Some(IpAddr::V6(*ip))
    } else {
        None
    }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error.to_string())
    }
}
