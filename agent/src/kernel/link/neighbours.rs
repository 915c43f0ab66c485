//! Who is on the links of this host.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Context;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};

use super::{Tables, into_io};

/// States of an entry whose neighbour has answered (`NUD_*` in `linux/neighbour.h`).
const ANSWERED: [NeighbourState; 5] = [
    NeighbourState::Reachable,
    NeighbourState::Stale,
    NeighbourState::Delay,
    NeighbourState::Probe,
    NeighbourState::Permanent,
];

impl Tables {
    /// Addresses that answered ARP or neighbour discovery.
    pub(in crate::kernel) async fn neighbours(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        let messages = self.0.neighbours().get().execute();
        let messages: Vec<_> = messages
            .try_collect()
            .await
            .map_err(into_io)
            .context("cannot read the neighbours")?;
        let answered = messages
            .iter()
            .filter(|message| ANSWERED.contains(&message.header.state));
        let addresses = answered.flat_map(|message| &message.attributes);
        let addresses = addresses.filter_map(|attribute| {
            if let NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) = attribute {
                Some(IpAddr::V4(*address))
            } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) =
                attribute
            {
                Some(IpAddr::V6(*address))
            } else {
                None
            }
        });
        Ok(addresses.collect())
    }
}
