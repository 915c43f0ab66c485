//! What two sites may not share: names, endpoints and addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use sqlx::PgConnection;
use wattle_wire::{
    admin::SiteSpec,
    endpoint::Endpoint,
    ids::SiteId,
    name::Name,
    problem::{Holder, ProblemDetails},
    subnet::overlap,
};

use super::{
    check::{endpoint_in_subnet, field_of},
    queries::{self, Held},
};
use crate::{
    error::{self, ErrorCode, Result},
    routes::nodes::naming,
};

/// Something that somebody else has.
#[derive(Debug)]
pub(super) struct Conflict {
    /// Which of the sites that are asked for wants it.
    pub(super) index: usize,
    pub(super) problem: ProblemDetails,
}

/// What two of the sites that are asked for want, at the later one.
pub(super) fn among(specs: &[&SiteSpec]) -> Option<Conflict> {
    same_name(specs)
        .or_else(|| same_endpoint(specs))
        .or_else(|| {
            let mut prefixes = prefixes(specs);
            // Sorted by address and then by length, a prefix that lies in another follows it or
            // follows one that lies in it too.
            prefixes.sort();
            overlapping(specs, &prefixes).or_else(|| endpoint_inside(&Asked::of(specs)))
        })
}

fn same_name(specs: &[&SiteSpec]) -> Option<Conflict> {
    let mut names = BTreeMap::new();
    specs.iter().enumerate().find_map(|(index, spec)| {
        let earlier = names.insert(&spec.name, index)?;
        let detail = "an earlier site of this import has this name".to_owned();
        let problem = naming::taken(detail, specs[earlier].name.to_string(), &spec.name);
        Some(Conflict { index, problem })
    })
}

fn same_endpoint(specs: &[&SiteSpec]) -> Option<Conflict> {
    let mut endpoints = BTreeMap::new();
    specs.iter().enumerate().find_map(|(index, spec)| {
        let endpoint = spec.endpoint?;
        let earlier = endpoints.insert(endpoint.socket(), index)?;
        let detail = format!("{endpoint} is the endpoint of an earlier site of this import");
        let site = specs[earlier].name.to_string();
        Some(Conflict {
            index,
            problem: endpoint_taken(endpoint, site, detail),
        })
    })
}

/// A prefix that a site wants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    prefix: IpNet,
    index: usize,
}

fn prefixes(specs: &[&SiteSpec]) -> Vec<Wanted> {
    let of = |(index, of): (usize, &&SiteSpec)| {
        let prefixes: Vec<_> = of.subnets.iter().map(|subnet| subnet.net()).collect();
        prefixes
            .into_iter()
            .map(move |prefix| Wanted { prefix, index })
    };
    specs.iter().enumerate().flat_map(of).collect()
}

/// Prefixes of two sites that overlap. `prefixes` are sorted.
fn overlapping(specs: &[&SiteSpec], prefixes: &[Wanted]) -> Option<Conflict> {
    let (one, other) = prefixes
        .windows(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
        .find(|(one, other)| overlap(one.prefix, other.prefix))?;
    let (earlier, later) = if one.index < other.index {
        (one, other)
    } else {
        (other, one)
    };
    let site = specs[earlier.index].name.to_string();
    let detail = format!(
        "{} overlaps with {} of site {site} in this import; no two sites may share an address",
        later.prefix, earlier.prefix
    );
    let field = field_of(specs[later.index], later.prefix);
    let holder = Holder {
        site,
        holds: earlier.prefix.to_string(),
    };
    Some(Conflict {
        index: later.index,
        problem: error::taken(ErrorCode::SubnetTaken, &field, detail, Some(holder)),
    })
}

/// The endpoint of a site that lies in a prefix of another, where no two of these overlap.
fn endpoint_inside(asked: &Asked<'_>) -> Option<Conflict> {
    asked.specs.iter().enumerate().find_map(|(index, spec)| {
        let endpoint = spec.endpoint?;
        let (prefix, owner) = asked.around(endpoint.socket().ip())?;
        let site = asked.specs[owner].name.to_string();
        let problem = if owner < index {
            let holds = prefix.to_string();
            endpoint_in_subnet(endpoint, prefix, Some(Holder { site, holds }))
        } else {
            holds_endpoint(asked.specs[owner], endpoint.socket(), spec.name.to_string())
        };
        let index = index.max(owner);
        Some(Conflict { index, problem })
    })
}

/// What others have of what these sites want; of several the one of the first. `site` is the one
/// that is to be changed. The caller holds the lock. A name that a gateway is given meanwhile meets
/// a constraint, and the change is tried again.
///
/// All are compared at once: an import has a thousand.
pub(super) async fn with_others(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    specs: &[&SiteSpec],
) -> Result<Option<Conflict>> {
    let asked = Asked::of(specs);
    let mut conflicts = asked.names(connection, site).await?;
    conflicts.extend(asked.endpoints(connection, site).await?);
    conflicts.extend(asked.subnets(connection, site).await?);
    Ok(conflicts.into_iter().min_by_key(|conflict| conflict.index))
}

/// What sites want, and which of them wants it.
struct Asked<'a> {
    specs: &'a [&'a SiteSpec],
    names: BTreeMap<&'a Name, usize>,
    endpoints: BTreeMap<SocketAddr, (Endpoint, usize)>,
    prefixes: BTreeMap<IpNet, usize>,
}

impl<'a> Asked<'a> {
    fn of(specs: &'a [&'a SiteSpec]) -> Self {
        let mut asked = Self {
            specs,
            names: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        };
        for (index, spec) in specs.iter().enumerate() {
            asked.names.insert(&spec.name, index);
            let endpoint = spec.endpoint;
            let endpoint = endpoint.map(|endpoint| (endpoint.socket(), (endpoint, index)));
            asked.endpoints.extend(endpoint);
            let subnets = spec.subnets.iter();
            let subnets = subnets.map(|subnet| (subnet.net(), index));
            asked.prefixes.extend(subnets);
        }
        asked
    }

    /// The prefix that holds this address, and which of them wants it: no prefix lies in another.
    fn around(&self, address: IpAddr) -> Option<(IpNet, usize)> {
        let address = IpNet::from(address);
        let (prefix, index) = self.prefixes.range(..=address).next_back()?;
        overlap(*prefix, address).then_some((*prefix, *index))
    }

    async fn names(
        &self,
        connection: &mut PgConnection,
        site: Option<SiteId>,
    ) -> Result<Vec<Conflict>> {
        let names: Vec<_> = self.names.keys().copied().collect();
        let detail = "another site has this name; choose another";
        let of_sites = queries::with_names(connection, site, &names).await?;
        let of_sites = of_sites.into_iter().map(|name| {
            (
                name.clone(),
                naming::taken(detail.to_owned(), name.to_string(), &name),
            )
        });
        let of_nodes = naming::given_elsewhere(connection, site, &names).await?;
        let taken = of_sites.chain(of_nodes).filter_map(|(name, problem)| {
            let index = *self.names.get(&name)?;
            Some(Conflict { index, problem })
        });
        Ok(taken.collect())
    }

    async fn endpoints(
        &self,
        connection: &mut PgConnection,
        site: Option<SiteId>,
    ) -> Result<Vec<Conflict>> {
        let endpoints: Vec<_> = self.endpoints.keys().copied().collect();
        let taken = queries::with_endpoints(connection, site, &endpoints).await?;
        let taken = taken.into_iter().filter_map(|Held { asked, by, .. }| {
            let (endpoint, index) = *self.endpoints.get(&asked)?;
            let detail = format!(
                "{endpoint} is the endpoint of another site; two gateways behind one address need \
                 two ports"
            );
            let problem = endpoint_taken(endpoint, by, detail);
            Some(Conflict { index, problem })
        });
        let inside = queries::with_prefixes_around(connection, site, &endpoints).await?;
        let inside = inside.into_iter().filter_map(|Held { asked, by, holds }| {
            let (endpoint, index) = *self.endpoints.get(&asked)?;
            let holder = Holder {
                site: by,
                holds: holds.to_string(),
            };
            let problem = endpoint_in_subnet(endpoint, holds, Some(holder));
            Some(Conflict { index, problem })
        });
        Ok(taken.chain(inside).collect())
    }

    async fn subnets(
        &self,
        connection: &mut PgConnection,
        site: Option<SiteId>,
    ) -> Result<Vec<Conflict>> {
        let prefixes: Vec<_> = self.prefixes.keys().copied().collect();
        let endpoints = match prefixes.is_empty() {
            true => vec![],
            false => queries::endpoints(connection, site).await?,
        };
        let around = endpoints.into_iter().filter_map(|(by, endpoint)| {
            let (_, index) = self.around(endpoint.ip())?;
            let problem = holds_endpoint(self.specs[index], endpoint, by);
            Some(Conflict { index, problem })
        });
        let taken = queries::with_prefixes(connection, site, &prefixes).await?;
        let taken = taken.into_iter().filter_map(|Held { asked, by, holds }| {
            let index = *self.prefixes.get(&asked)?;
            let detail = format!(
                "{asked} overlaps with {holds} of site {by}; no two sites may share an address"
            );
            let field = field_of(self.specs[index], asked);
            let holder = Holder {
                site: by,
                holds: holds.to_string(),
            };
            let problem = error::taken(ErrorCode::SubnetTaken, &field, detail, Some(holder));
            Some(Conflict { index, problem })
        });
        Ok(around.chain(taken).collect())
    }
}

fn endpoint_taken(endpoint: Endpoint, site: String, detail: String) -> ProblemDetails {
    let holder = Holder {
        site,
        holds: endpoint.to_string(),
    };
    error::taken(ErrorCode::EndpointTaken, "endpoint", detail, Some(holder))
}

/// A subnet of the site holds an endpoint of `site`.
fn holds_endpoint(spec: &SiteSpec, endpoint: SocketAddr, site: String) -> ProblemDetails {
    let detail = format!(
        "it holds {endpoint}, the endpoint of {site}, which must be reached outside of the mesh"
    );
    let holder = Holder {
        site,
        holds: endpoint.to_string(),
    };
    error::taken(
        ErrorCode::SubnetHoldsEndpoint,
        &field_of(spec, endpoint.ip().into()),
        detail,
        Some(holder),
    )
}
