//! Where this coordinator is: what the hosts of its URLs resolve to, and what its interfaces have.

pub mod queries;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::Uri;
use futures_util::future::{BoxFuture, join_all};
use ipnet::IpNet;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{SockaddrIn, SockaddrIn6},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::{net::lookup_host, time::timeout};
use uuid::Uuid;
use wattle_mesh::config::directory::Directory;

use crate::{db::Db, error::Result};

/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(3);

/// What tells the addresses of a name.
pub trait Resolver: Send + Sync {
    /// All addresses of a host, of both families.
    ///
    /// # Errors
    ///
    /// When nobody can tell them now.
    fn resolve(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of this host.
#[derive(Clone, Copy, Debug)]
pub struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// An address of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CoordinatorAddress {
    pub address: IpAddr,
    /// The host of a URL at which agents look for it; `None` for an address that one of its
    /// interfaces has.
    pub host: Option<String>,
}

impl CoordinatorAddress {
    /// Whether the URL has the address itself, in place of a name.
    pub fn is_literal(&self) -> bool {
        self.host
            .as_ref()
            .is_some_and(|host| host.parse() == Ok(self.address))
    }

    pub fn is_in(&self, prefix: IpNet) -> bool {
        prefix.contains(&self.address)
    }
}

/// The hosts of this coordinator's URLs and what they last resolved to.
pub struct Coordinators {
    /// This start of the coordinator, in the database.
    id: Uuid,
    hosts: Vec<String>,
    resolver: Arc<dyn Resolver>,
    /// The last answer for each host; none where there was never one.
    answers: Mutex<BTreeMap<String, BTreeSet<IpAddr>>>,
    /// Hosts of which the last attempt failed.
    failed: Mutex<BTreeSet<String>>,
    /// What all coordinators had told when this one told last.
    told: Mutex<BTreeSet<CoordinatorAddress>>,
}

impl Coordinators {
    /// The coordinator that agents reach at these URLs.
    pub fn new(urls: &[String], resolver: Arc<dyn Resolver>) -> Self {
        let host = |url: &String| {
            let host = url.parse::<Uri>().ok()?.host()?.to_owned();
            let host = host.trim_matches(['[', ']']).trim_end_matches('.');
            Some(host.to_lowercase())
        };
        let hosts: BTreeSet<String> = urls.iter().filter_map(host).collect();
        Self {
            id: Uuid::now_v7(),
            hosts: hosts.into_iter().collect(),
            resolver,
            answers: Mutex::default(),
            failed: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Asks for the addresses of all hosts, side by side. Of a host whose addresses nobody can tell
    /// now, those of the last answer stay.
    pub async fn resolve(&self) {
        let answers = self.hosts.iter().map(async |host| {
            let answer = self.resolve_one(host).await;
            (host.clone(), answer)
        });
        for (host, answer) in join_all(answers).await {
            match answer {
                Ok(addresses) => {
                    lock(&self.failed).remove(&host);
                    let before = lock(&self.answers).insert(host.clone(), addresses.clone());
                    if before.as_ref() != Some(&addresses) {
                        tracing::info!(host, ?addresses, "agents find the coordinator here");
                    }
                }
                Err(why) => {
                    if lock(&self.failed).insert(host.clone()) {
                        tracing::warn!(
                            host,
                            why,
                            "cannot resolve the host of --url; whether a subnet holds the \
                             coordinator is judged by the last answer, if there was one"
                        );
                    }
                }
            }
        }
    }

    async fn resolve_one(&self, host: &str) -> Result<BTreeSet<IpAddr>, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(BTreeSet::from([address.to_canonical()]));
        }
        let answer = timeout(RESOLVE, self.resolver.resolve(host.to_owned())).await;
        let addresses: BTreeSet<IpAddr> = answer
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| error.to_string())?
            .into_iter()
            .map(|address| address.to_canonical())
            .collect();
        if addresses.is_empty() {
            return Err("the name has no addresses".to_owned());
        }
        Ok(addresses)
    }

    /// Tells the other coordinators, by the database.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    pub async fn tell(&self, db: &Db) -> Result<()> {
        let mut transaction = db.follow().await?;
        queries::lock(&mut transaction).await?;
        let (answers, failed) = (lock(&self.answers).clone(), lock(&self.failed).clone());
        for host in &self.hosts {
            let own: Vec<_> = match answers.get(host) {
                Some(addresses) => addresses.iter().copied().map(IpNet::from).collect(),
                // Nobody answers since this start: what others were told is the last answer.
                None => queries::of_host(&mut transaction, host).await?,
            };
            queries::keep(&mut transaction, self.id, Some(host), &own).await?;
            if !failed.contains(host) {
                queries::forget_silent(&mut transaction, host).await?;
            }
        }
        let interfaces: Vec<_> = interface_addresses().into_iter().map(IpNet::from).collect();
        queries::keep(&mut transaction, self.id, None, &interfaces).await?;
        queries::forget_old(&mut transaction, self.id, &self.hosts).await?;
        let told = queries::all(&mut transaction).await?.into_iter().collect();
        transaction.commit().await?;
        *lock(&self.told) = told;
        Ok(())
    }

    /// Where this coordinator is, by its own answers.
    pub fn own(&self) -> BTreeSet<CoordinatorAddress> {
        let answers = lock(&self.answers);
        let own = answers.iter().flat_map(|(host, addresses)| {
            addresses.iter().map(|address| CoordinatorAddress {
                address: *address,
                host: Some(host.clone()),
            })
        });
        own.collect()
    }

    /// Every address of a coordinator that this one knows, and those of its interfaces now.
    pub fn known_addresses(&self) -> BTreeSet<IpAddr> {
        let mut known = self.own();
        known.extend(lock(&self.told).iter().cloned());
        let mut addresses = interface_addresses();
        addresses.extend(known.into_iter().map(|known| known.address));
        addresses
    }

    /// The prefixes of the mesh that hold an address at which agents look for a coordinator, as far as
    /// this one knew when it last asked the database, each with its site. The pool of the tunnels is
    /// the mesh's.
    pub fn held(&self, directory: &Directory) -> Vec<(String, IpNet, CoordinatorAddress)> {
        let mut known = self.own();
        known.extend(lock(&self.told).iter().cloned());
        let pool = ("mesh".to_owned(), IpNet::V4(directory.mesh.tunnel_prefix));
        let subnets = directory.sites.values().flat_map(|site| {
            let subnets = site.spec.subnets.iter().map(|subnet| subnet.net());
            subnets.map(|net| (site.spec.name.to_string(), net))
        });
        std::iter::once(pool)
            .chain(subnets)
            .filter_map(|(site, net)| {
                let mut named = known.iter().filter(|at| at.host.is_some());
                Some((site, net, named.find(|at| at.is_in(net))?.clone()))
            })
            .collect()
    }

    /// Where all coordinators are, as this one and the others found it.
    ///
    /// # Errors
    ///
    /// When the database cannot be reached.
    pub async fn all(&self, connection: &mut PgConnection) -> Result<BTreeSet<CoordinatorAddress>> {
        let mut all = self.own();
        all.extend(queries::all(connection).await?);
        Ok(all)
    }
}

impl fmt::Debug for Coordinators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinators")
            .field("id", &self.id)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// The addresses of this host's interfaces, but for loopback and link-local ones.
fn interface_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return BTreeSet::new();
    };
    let addresses = interfaces
        .filter(|interface| !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(SockaddrIn::ip);
            let v6 = address.as_sockaddr_in6().map(SockaddrIn6::ip);
            v4.map(IpAddr::V4).or(v6.map(IpAddr::V6))
        });
    addresses
        .filter(|address| !is_link_local(*address))
        .collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
