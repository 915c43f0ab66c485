//! Wattle's laboratory: sites in network namespaces, with the two real programs in them, for the
//! demo and the end-to-end tests.
//!
//! ```text
//!               coordinator                    the underlay: a bridge that routes between documentation
//!             198.18.0.2 │                     prefixes, as the internet does between real ones
//!   ┌────────────────────┴───────────────────┐
//!   │  .1 of 198.18.0.0/24, 203.0.113.0/24,  │
//!   │        198.51.100.0/24, 192.0.2.0/24   │
//!   └──┬──────────────────┬───────────────┬──┘
//!      │ eth0             │ eth0          │ eth0
//!   dublin            frankfurt        new-york         gateways, each runs wattle-agent
//!   203.0.113.10      198.51.100.20    192.0.2.30
//!      │ lan0 .1          │ lan0 .1       │ lan0 .1
//!   dublin-host       frankfurt-host   new-york-host    one host of each LAN, which runs nothing of Wattle
//!   10.10.0.100       10.20.0.100      10.30.0.100
//! ```
//!
//! Everything lives below one process in namespaces of its own ([`enter`]), so that it goes when
//! that process goes, however it ends.

pub mod api;
pub mod bench;
pub mod binaries;
pub mod coordinator;
pub mod demo;
pub mod device;
pub mod enter;
pub mod exec;
pub mod flow;
pub mod gateway;
pub mod ground;
pub mod host;
pub mod kernel;
pub mod lab;
pub mod pair;
pub mod process;
pub mod site;
pub mod times;
pub mod wait;

pub use api::{Answer, Api};
pub use coordinator::Coordinator;
pub use flow::Flow;
pub use gateway::Gateway;
pub use ground::Ground;
pub use host::Host;
pub use lab::Lab;
pub use site::LabSite;
pub use wait::{Events, patience, wait_for};
