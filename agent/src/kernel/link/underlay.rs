//! The host's own routes, and those past the tunnel that the agent makes after them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::{errno::Errno, net::if_};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType, RouteVia,
    },
};
use wattle_mesh::{
    diagnose::lan::{Led, Question},
    host::{
        state::Family,
        way::{ForeignRoute, Way},
    },
};

use super::{ROUTE_PROTOCOL, Tables, destination, in_main_table, into_io, ip, output, source};
use crate::kernel::explained;

impl Tables {
    /// The index of the interface by which packets to the address leave the host now; `None` where
    /// it has no route there.
    pub(in crate::kernel) async fn output_to(
        &self,
        address: IpAddr,
    ) -> anyhow::Result<Option<u32>> {
        let host = IpNet::from(address);
        let query = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, host.prefix_len())?
            .build();
        let found = self.0.route().get(query).execute().try_next().await;
        match found.map_err(into_io) {
            Ok(found) => Ok(found.as_ref().and_then(output)),
            Err(error)
                if [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES]
                    .iter()
                    .any(|code| error.raw_os_error() == Some(*code as i32)) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot ask for a route to {address}"))
            }
        }
    }

    /// Where a packet that comes in by an interface is led; `None` where there is no such interface.
    pub(in crate::kernel) async fn led(&self, question: &Question) -> anyhow::Result<Option<Led>> {
        let Ok(by) = if_::if_nametoindex(question.by.as_str()) else {
            return Ok(None);
        };
        let whole = IpNet::from(question.to).prefix_len();
        let query = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(question.to, whole)?
            .source_prefix(question.from, whole)?
            .input_interface(by)
            .build();
        let found = self.0.route().get(query).execute().try_next().await;
        Ok(match found.map_err(into_io) {
            Ok(Some(found)) if found.header.kind == RouteType::Local => Some(Led::Here),
            Ok(found) => {
                let index = found.as_ref().and_then(output);
                let name = index.and_then(|index| if_::if_indextoname(index).ok());
                name.map(|name| Led::By(name.to_string_lossy().into_owned()))
            }
            Err(error) if error.raw_os_error() == Some(Errno::EXDEV as i32) => Some(Led::Filtered),
            Err(error) => Some(Led::Nowhere(error.to_string())),
        })
    }

    /// Routes of the main table but those over this interface and those past the tunnel that the
    /// agent made.
    pub(in crate::kernel) async fn foreign_routes(
        &self,
        but: Option<u32>,
        made: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<Vec<ForeignRoute>> {
        let mut routes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let messages = self.route_messages(family).await?;
            routes.extend(messages.iter().filter_map(|message| {
                let is_foreign = in_main_table(message)
                    && (but.is_none() || output(message) != but)
                    && made_for(message).is_none_or(|address| !made.contains(&address))
                    && !message
                        .header
                        .flags
                        .intersects(RouteFlags::Dead | RouteFlags::Cloned);
                is_foreign.then(|| foreign(message))?
            }));
        }
        Ok(routes)
    }

    /// Routes past the tunnel to these addresses that the agent made.
    pub(in crate::kernel) async fn underlay_routes(
        &self,
        made: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<BTreeMap<IpAddr, Way>> {
        let mut routes = BTreeMap::new();
        if made.is_empty() {
            return Ok(routes);
        }
        for family in [Family::V4, Family::V6] {
            let messages = self.route_messages(family).await?;
            routes.extend(messages.iter().filter_map(|message| {
                let address = made_for(message).filter(|address| made.contains(address))?;
                Some((address, way(message)?))
            }));
        }
        Ok(routes)
    }

    /// Makes the route past the tunnel, or replaces the one that the agent made.
    pub(in crate::kernel) async fn set_underlay_route(
        &self,
        address: IpAddr,
        way: &Way,
    ) -> anyhow::Result<()> {
        let device = if_::if_nametoindex(way.device.as_str())
            .with_context(|| format!("there is no interface {}", way.device))?;
        let host = IpNet::from(address);
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, host.prefix_len())?
            .output_interface(device)
            .protocol(ROUTE_PROTOCOL);
        if let Some(gateway) = way.gateway {
            // The host's own route has it for a gateway, so it is on the link.
            builder = builder.gateway(gateway)?.onlink();
        } else if address.is_ipv4() {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(source) = way.source {
            builder = builder.pref_source(source)?;
        }
        let mut request = self.0.route().add(builder.build());
        let same_prefix = self.routes_to(host).await?;
        if same_prefix
            .iter()
            .any(|message| made_for(message).is_some())
        {
            request = request.replace();
        }
        request.execute().await.map_err(into_io).map_err(explained)
    }

    pub(in crate::kernel) async fn remove_underlay_route(
        &self,
        address: IpAddr,
    ) -> anyhow::Result<bool> {
        let mut messages = self.routes_to(IpNet::from(address)).await?;
        messages.retain(|message| made_for(message).is_some());
        let is_there = !messages.is_empty();
        for message in messages {
            let removed = self.0.route().del(message).execute().await;
            removed.map_err(into_io).map_err(explained)?;
        }
        Ok(is_there)
    }
}

/// The address for which an agent made the route past its tunnel, if it is such a route.
fn made_for(message: &RouteMessage) -> Option<IpAddr> {
    let is_made = message.header.protocol == ROUTE_PROTOCOL
        && message.header.kind == RouteType::Unicast
        && in_main_table(message);
    let prefix = destination(message).filter(|_| is_made)?;
    (prefix.prefix_len() == prefix.max_prefix_len()).then_some(prefix.addr())
}

fn foreign(message: &RouteMessage) -> Option<ForeignRoute> {
    let kind = message.header.kind;
    let refuses = [
        RouteType::Unreachable,
        RouteType::BlackHole,
        RouteType::Prohibit,
    ];
    let way = if kind == RouteType::Unicast {
        Some(way(message)?)
    } else if refuses.contains(&kind) {
        None
    } else {
        return None;
    };
    let metric = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Priority(metric) = attribute {
            Some(*metric)
        } else {
            None
        }
    });
    Some(ForeignRoute {
        prefix: destination(message)?,
        metric: metric.unwrap_or(0),
        way,
    })
}

/// The way of a route; of several at once the first.
fn way(message: &RouteMessage) -> Option<Way> {
    let hop = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::MultiPath(hops) = attribute {
            hops.first()
        } else {
            None
        }
    });
    let (device, attributes) = match hop {
        Some(hop) => (hop.interface_index, &hop.attributes),
        None => (output(message)?, &message.attributes),
    };
    let gateway = attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(gateway) = attribute {
            ip(gateway)
        } else if let RouteAttribute::Via(RouteVia::Inet6(gateway)) = attribute {
            Some(IpAddr::V6(*gateway))
        } else {
            None
        }
    });
    let device = if_::if_indextoname(device).ok()?;
    Some(Way {
        device: device.to_string_lossy().into_owned(),
        gateway,
        source: source(message),
    })
}
