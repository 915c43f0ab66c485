//! The sites of the guide, at their documentation addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// UDP port of every gateway.
pub const PORT: u16 = 51820;

/// A site as the lab builds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabSite {
    pub name: &'static str,
    /// The gateway's address on the underlay.
    pub address: Ipv4Addr,
    pub lan: Ipv4Net,
}

pub const DUBLIN: LabSite = site("dublin", [203, 0, 113, 10], [10, 10, 0, 0]);
pub const FRANKFURT: LabSite = site("frankfurt", [198, 51, 100, 20], [10, 20, 0, 0]);
pub const NEW_YORK: LabSite = site("new-york", [192, 0, 2, 30], [10, 30, 0, 0]);
/// The one that comes later.
pub const SAO_PAULO: LabSite = site("sao-paulo", [192, 0, 2, 40], [10, 40, 0, 0]);

/// The three with which Wattle began.
pub const GUIDE: [LabSite; 3] = [DUBLIN, FRANKFURT, NEW_YORK];

const fn site(name: &'static str, address: [u8; 4], lan: [u8; 4]) -> LabSite {
    let [a, b, c, d] = lan;
    let lan = Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), 24);
    let [a, b, c, d] = address;
    LabSite {
        name,
        address: Ipv4Addr::new(a, b, c, d),
        lan,
    }
}

impl LabSite {
    /// The body of `POST /sites`.
    pub fn body(&self) -> Value {
        json!({ "name": self.name, "endpoint": self.endpoint(), "subnets": [self.lan] })
    }

    pub fn endpoint(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// The gateway's address on its LAN.
    pub fn gateway_on_lan(&self) -> Ipv4Addr {
        in_net(self.lan, 1)
    }

    /// The address of the LAN's host.
    pub fn lan_host(&self) -> Ipv4Addr {
        in_net(self.lan, 100)
    }

    /// The router that the gateway sends everything to.
    pub fn router(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.address.octets();
        Ipv4Addr::new(a, b, c, 1)
    }
}

fn in_net(net: Ipv4Net, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = net.network().octets();
    Ipv4Addr::new(a, b, c, last)
}
