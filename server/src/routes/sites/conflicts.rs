//! What two sites may not share: names, endpoints and addresses.

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;
use sqlx::PgConnection;
use wattle_wire::{
    endpoint::Endpoint,
    ids::SiteId,
    name::Name,
    problem::{Holder, ProblemDetails},
    subnet::{Subnet, overlap},
};

use super::{
    check::{Draft, endpoint_in_subnet},
    queries::{self, Held},
};
use crate::{
    error::{self, ErrorCode, Result},
    routes::nodes::naming,
};

/// Something that somebody else has.
#[derive(Debug)]
pub(super) struct Conflict {
    /// Which of the drafts wants it.
    pub(super) draft: usize,
    pub(super) problem: ProblemDetails,
}

/// What two of the drafts want, at the later one.
pub(super) fn among(drafts: &[Draft]) -> Option<Conflict> {
    same_name(drafts)
        .or_else(|| same_endpoint(drafts))
        .or_else(|| {
            let mut prefixes = prefixes(drafts);
            // Sorted by address and then by length, a prefix that lies in another follows it or
            // follows one that lies in it too.
            prefixes.sort();
            overlapping(drafts, &prefixes).or_else(|| endpoint_inside(drafts, &prefixes))
        })
}

fn same_name(drafts: &[Draft]) -> Option<Conflict> {
    let mut names = BTreeMap::new();
    drafts.iter().enumerate().find_map(|(index, draft)| {
        let earlier = names.insert(&draft.name, index)?;
        let detail = "an earlier site of this import has this name";
        let problem = name_taken(&draft.name, drafts[earlier].name.to_string(), detail);
        Some(Conflict {
            draft: index,
            problem,
        })
    })
}

fn same_endpoint(drafts: &[Draft]) -> Option<Conflict> {
    let mut endpoints = BTreeMap::new();
    drafts.iter().enumerate().find_map(|(index, draft)| {
        let endpoint = draft.endpoint?;
        let earlier = endpoints.insert(endpoint.socket(), index)?;
        let detail = format!("{endpoint} is the endpoint of an earlier site of this import");
        let site = drafts[earlier].name.to_string();
        Some(Conflict {
            draft: index,
            problem: endpoint_taken(endpoint, site, detail),
        })
    })
}

/// A prefix that a draft wants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    prefix: IpNet,
    draft: usize,
}

fn prefixes(drafts: &[Draft]) -> Vec<Wanted> {
    let of = |(draft, of): (usize, &Draft)| {
        let prefixes: Vec<_> = of.subnets.iter().map(|subnet| subnet.net()).collect();
        prefixes
            .into_iter()
            .map(move |prefix| Wanted { prefix, draft })
    };
    drafts.iter().enumerate().flat_map(of).collect()
}

/// Prefixes of two drafts that overlap. `prefixes` are sorted.
fn overlapping(drafts: &[Draft], prefixes: &[Wanted]) -> Option<Conflict> {
    let (one, other) = prefixes
        .windows(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
        .find(|(one, other)| overlap(one.prefix, other.prefix))?;
    let (earlier, later) = if one.draft < other.draft {
        (one, other)
    } else {
        (other, one)
    };
    let site = drafts[earlier.draft].name.to_string();
    let detail = format!(
        "{} overlaps with {} of site {site} in this import; no two sites may share an address",
        later.prefix, earlier.prefix
    );
    let field = drafts[later.draft].field_of(later.prefix);
    let holder = Holder {
        site,
        holds: earlier.prefix.to_string(),
    };
    Some(Conflict {
        draft: later.draft,
        problem: subnet_taken(&field, detail, holder),
    })
}

/// The endpoint of a draft that lies in a prefix of another. `prefixes` are sorted, and none of
/// them lies in another.
fn endpoint_inside(drafts: &[Draft], prefixes: &[Wanted]) -> Option<Conflict> {
    drafts.iter().enumerate().find_map(|(index, draft)| {
        let endpoint = draft.endpoint?;
        let address = IpNet::from(endpoint.socket().ip());
        let after = prefixes.partition_point(|wanted| wanted.prefix <= address);
        let before = prefixes.get(after.checked_sub(1)?)?;
        if !overlap(before.prefix, address) {
            return None;
        }
        let owner = &drafts[before.draft];
        let problem = if before.draft < index {
            let holder = Holder {
                site: owner.name.to_string(),
                holds: before.prefix.to_string(),
            };
            endpoint_in_subnet(endpoint, before.prefix, Some(holder))
        } else {
            holds_endpoint(owner, endpoint.socket(), draft.name.to_string())
        };
        Some(Conflict {
            draft: index.max(before.draft),
            problem,
        })
    })
}

/// What of the drafts other sites and nodes have; of several the one of the first draft. `site` is
/// the one that is to be changed. The caller holds the lock, so nothing comes in between.
///
/// All drafts are compared at once: an import has a thousand.
pub(super) async fn with_others(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    drafts: &[&Draft],
) -> Result<Option<Conflict>> {
    let asked = Asked::of(drafts);
    let mut conflicts = asked.names(connection, site).await?;
    conflicts.extend(asked.endpoints(connection, site).await?);
    conflicts.extend(asked.subnets(connection, site).await?);
    Ok(conflicts.into_iter().min_by_key(|conflict| conflict.draft))
}

/// What the drafts want, and which of them wants it.
struct Asked<'a> {
    drafts: &'a [&'a Draft],
    names: BTreeMap<&'a Name, usize>,
    endpoints: BTreeMap<SocketAddr, (Endpoint, usize)>,
    prefixes: BTreeMap<IpNet, (Subnet, usize)>,
}

impl<'a> Asked<'a> {
    fn of(drafts: &'a [&'a Draft]) -> Self {
        let mut asked = Self {
            drafts,
            names: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        };
        for (index, draft) in drafts.iter().enumerate() {
            asked.names.insert(&draft.name, index);
            let endpoint = draft.endpoint;
            let endpoint = endpoint.map(|endpoint| (endpoint.socket(), (endpoint, index)));
            asked.endpoints.extend(endpoint);
            let subnets = draft.subnets.iter();
            let subnets = subnets.map(|subnet| (subnet.net(), (*subnet, index)));
            asked.prefixes.extend(subnets);
        }
        asked
    }

    async fn names(
        &self,
        connection: &mut PgConnection,
        site: Option<SiteId>,
    ) -> Result<Vec<Conflict>> {
        let names: Vec<_> = self.names.keys().copied().collect();
        let detail = "another site has this name; choose another";
        let of_sites = queries::with_names(connection, site, &names).await?;
        let of_sites = of_sites
            .into_iter()
            .map(|name| (name.clone(), name_taken(&name, name.to_string(), detail)));
        let of_nodes = naming::given_elsewhere(connection, site, &names).await?;
        let taken = of_sites.chain(of_nodes).filter_map(|(name, problem)| {
            let draft = *self.names.get(&name)?;
            Some(Conflict { draft, problem })
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
            let (endpoint, draft) = *self.endpoints.get(&asked)?;
            let detail = format!(
                "{endpoint} is the endpoint of another site; two gateways behind one address need \
                 two ports"
            );
            let problem = endpoint_taken(endpoint, by, detail);
            Some(Conflict { draft, problem })
        });
        let inside = queries::with_prefixes_around(connection, site, &endpoints).await?;
        let inside = inside.into_iter().filter_map(|Held { asked, by, holds }| {
            let (endpoint, draft) = *self.endpoints.get(&asked)?;
            let holder = Holder {
                site: by,
                holds: holds.to_string(),
            };
            let problem = endpoint_in_subnet(endpoint, holds, Some(holder));
            Some(Conflict { draft, problem })
        });
        Ok(taken.chain(inside).collect())
    }

    async fn subnets(
        &self,
        connection: &mut PgConnection,
        site: Option<SiteId>,
    ) -> Result<Vec<Conflict>> {
        let prefixes: Vec<_> = self.prefixes.keys().copied().collect();
        let around = queries::with_endpoints_in(connection, site, &prefixes).await?;
        let around = around.into_iter().filter_map(|Held { asked, by, holds }| {
            let (_, draft) = *self.prefixes.get(&asked)?;
            let problem = holds_endpoint(self.drafts[draft], holds, by);
            Some(Conflict { draft, problem })
        });
        let taken = queries::with_prefixes(connection, site, &prefixes).await?;
        let taken = taken.into_iter().filter_map(|Held { asked, by, holds }| {
            let (subnet, draft) = *self.prefixes.get(&asked)?;
            let detail = format!(
                "{subnet} overlaps with {holds} of site {by}; no two sites may share an address"
            );
            let field = self.drafts[draft].field_of(asked);
            let holder = Holder {
                site: by,
                holds: holds.to_string(),
            };
            let problem = subnet_taken(&field, detail, holder);
            Some(Conflict { draft, problem })
        });
        Ok(around.chain(taken).collect())
    }
}

fn name_taken(name: &Name, site: String, detail: &str) -> ProblemDetails {
    let holder = Holder {
        site,
        holds: name.to_string(),
    };
    error::taken(ErrorCode::NameTaken, "name", detail, Some(holder))
}

fn endpoint_taken(endpoint: Endpoint, site: String, detail: String) -> ProblemDetails {
    let holder = Holder {
        site,
        holds: endpoint.to_string(),
    };
    error::taken(ErrorCode::EndpointTaken, "endpoint", detail, Some(holder))
}

fn subnet_taken(field: &str, detail: String, holder: Holder) -> ProblemDetails {
    error::taken(ErrorCode::SubnetTaken, field, detail, Some(holder))
}

/// A subnet of the draft holds an endpoint of `site`.
fn holds_endpoint(draft: &Draft, endpoint: SocketAddr, site: String) -> ProblemDetails {
    let detail = format!(
        "it holds {endpoint}, the endpoint of {site}, which must be reached outside of the mesh"
    );
    let holder = Holder {
        site,
        holds: endpoint.to_string(),
    };
    error::taken(
        ErrorCode::SubnetHoldsEndpoint,
        &draft.field_of(endpoint.ip().into()),
        detail,
        Some(holder),
    )
}
