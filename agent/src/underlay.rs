//! Learns which addresses this host reaches outside of the tunnel, and keeps them on disk.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use wattle_client::http;
use wattle_mesh::{
    agent::underlay::{Purpose, Service, Underlay, resolvers},
    host::way::ForeignRoute,
};

use crate::{identity::unix_s, kernel::Kernel, store::Store};

const FILE: &str = "underlay.json";
/// Where a host names its resolvers. The second file has those that systemd-resolved asks, where the
/// first one names systemd-resolved itself.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// How often the agent looks whether the host has other resolvers.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How long a resolver may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// A query for the name servers of the root (RFC 1035, section 4.1), which every resolver answers
/// somehow.
const QUERY: [u8; 17] = [0x57, 0x4c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
const DNS_PORT: u16 = 53;

/// What this host has reached until now, in memory and on disk.
#[derive(Clone, Debug)]
pub(crate) struct UnderlayStore {
    kernel: Kernel,
    store: Store,
    /// Addresses in the URLs of coordinators.
    named: Vec<IpAddr>,
    underlay: Arc<Mutex<Underlay>>,
}

impl UnderlayStore {
    /// Of a host whose coordinators have these URLs.
    pub(crate) fn open(kernel: &Kernel, store: &Store, coordinators: &[String]) -> Self {
        let named = coordinators
            .iter()
            .filter_map(|url| http::host(&url.parse().ok()?).parse().ok());
        let underlay = store.read_or_previous(FILE).unwrap_or_else(|error| {
            warn!("cannot read what this host reached outside of the tunnel: {error:#}");
            None
        });
        Self {
            kernel: kernel.clone(),
            store: store.clone(),
            named: named.collect(),
            underlay: Arc::new(Mutex::new(underlay.unwrap_or_default())),
        }
    }

    /// What the host must go on reaching outside of the tunnel.
    pub(crate) fn addresses(
        &self,
        routes: &[ForeignRoute],
    ) -> impl Iterator<Item = (IpAddr, Purpose)> + use<> {
        self.underlay().addresses(&self.named, routes).into_iter()
    }

    /// Takes note of the address at which a coordinator was just reached.
    pub(crate) async fn reached_coordinator(&self, address: IpAddr) {
        let address = address.to_canonical();
        if let Some(outside) = self.is_outside(address).await {
            self.note(address, Service::Coordinator, outside);
        }
    }

    /// Takes note of what the coordinators' URLs name, before the tunnel leads there.
    pub(crate) async fn look_at_coordinators(&self) {
        for address in &self.named {
            if !self.underlay().knows(*address)
                && let Some(outside) = self.is_outside(*address).await
            {
                self.note(*address, Service::Coordinator, outside);
            }
        }
    }

    /// Looks for resolvers that answer outside of the tunnel.
    ///
    /// That a host has one in its list says little: it may be in the LAN of a site, and only ever
    /// answer through the tunnel.
    pub(crate) async fn look_at_resolvers(&self) {
        let files = RESOLV_CONF.iter().map(fs::read_to_string);
        let listed: BTreeSet<IpAddr> = files
            .flatten()
            .flat_map(|text| resolvers(&text).collect::<Vec<_>>())
            .collect();
        let new = listed
            .iter()
            .filter(|address| !self.underlay().knows(**address));
        join_all(new.map(|address| async {
            if self.is_outside(*address).await == Some(true)
                && timeout(ANSWER_LIMIT, answers(*address)).await == Ok(true)
            {
                self.note(*address, Service::Resolver, true);
            }
        }))
        .await;
        self.change(|underlay| underlay.trim(&self.named, &listed));
    }

    /// Looks again and again, until it is dropped.
    pub(crate) async fn follow_resolvers(self) {
        loop {
            self.look_at_resolvers().await;
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Whether packets there leave by another interface than the tunnel's; `None` where none leave.
    async fn is_outside(&self, address: IpAddr) -> Option<bool> {
        let outside = self.kernel.is_outside(address).await;
        outside.inspect_err(|error| warn!("{error:#}")).ok()?
    }

    fn note(&self, address: IpAddr, service: Service, outside: bool) {
        let at = i64::try_from(unix_s()).unwrap_or(i64::MAX);
        self.change(|underlay| {
            if !underlay.knows(address) {
                info!(%address, ?service, outside, "reached for the first time");
            }
            underlay.note(address, service, outside, at);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Underlay)) {
        let mut underlay = self.underlay();
        let before = underlay.clone();
        change(&mut underlay);
        if *underlay != before
            && let Err(error) = self.store.write_keeping_previous(FILE, &*underlay)
        {
            warn!("cannot keep what this host reaches outside of the tunnel: {error:#}");
        }
    }

    fn underlay(&self) -> MutexGuard<'_, Underlay> {
        self.underlay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether anything answers there as a resolver would.
async fn answers(resolver: IpAddr) -> bool {
    let any: IpAddr = if resolver.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let asked = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect((resolver, DNS_PORT)).await?;
        socket.send(&QUERY).await?;
        socket.recv(&mut [0; 512]).await
    };
    asked.await.is_ok()
}
