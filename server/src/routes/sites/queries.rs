//! SQL of what sites may not share, and of tunnel addresses that are free.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};
use sqlx::PgConnection;
use wattle_mesh::config::allocate;
use wattle_wire::{
    endpoint::Endpoint,
    ids::SiteId,
    name::Name,
    problem::{Holder, ProblemDetails},
};

use super::check::endpoint_in_subnet;
use crate::{
    db::site_records::{self, v4},
    error::{self, ErrorCode, Result},
};

/// So many tunnel addresses that nobody has, the lowest first. The caller holds the lock.
pub async fn free_addresses(
    connection: &mut PgConnection,
    tunnel_prefix: Ipv4Net,
    count: usize,
) -> Result<Vec<Ipv4Addr>> {
    let taken = sqlx::query_scalar!("SELECT address FROM tunnel_addresses")
        .fetch_all(connection)
        .await?;
    let taken: BTreeSet<_> = taken.into_iter().filter_map(|net| v4(net).ok()).collect();
    let free: Vec<_> = allocate::free_addresses(tunnel_prefix, &taken)
        .take(count)
        .collect();
    if free.len() < count {
        let detail = format!(
            "of the tunnel addresses of {tunnel_prefix} only {} are free",
            free.len()
        );
        return Err(error::problem(ErrorCode::NoTunnelAddress, detail).into());
    }
    Ok(free)
}

/// Something that was asked for, and who has it.
#[derive(Debug)]
pub(super) struct Held<A, H> {
    pub(super) asked: A,
    /// The name of the site.
    pub(super) by: String,
    /// What it has.
    pub(super) holds: H,
}

/// Which of these names sites have, but for one site.
pub(super) async fn with_names(
    connection: &mut PgConnection,
    except: Option<SiteId>,
    names: &[&Name],
) -> Result<Vec<Name>> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let taken = sqlx::query_scalar!(
        r#"SELECT name AS "name: Name" FROM sites
           WHERE name = ANY($1) AND id IS DISTINCT FROM $2"#,
        &names,
        except.map(|site| site.0)
    );
    Ok(taken.fetch_all(connection).await?)
}

/// Who has these endpoints, but for one site.
pub(super) async fn with_endpoints(
    connection: &mut PgConnection,
    except: Option<SiteId>,
    endpoints: &[SocketAddr],
) -> Result<Vec<Held<SocketAddr, SocketAddr>>> {
    let addresses: Vec<_> = endpoints.iter().map(|at| IpNet::from(at.ip())).collect();
    let ports: Vec<_> = endpoints.iter().map(|at| i32::from(at.port())).collect();
    let holders = sqlx::query!(
        r#"SELECT name, endpoint_address AS "address!", endpoint_port AS "port!" FROM sites
           JOIN unnest($1::inet[], $2::integer[]) AS asked (address, port)
               ON endpoint_address = asked.address AND endpoint_port = asked.port
           WHERE id IS DISTINCT FROM $3"#,
        &addresses,
        &ports,
        except.map(|site| site.0)
    );
    let holders = holders.fetch_all(connection).await?.into_iter();
    let held = holders.map(|row| {
        let endpoint = site_records::socket(row.address, row.port)?;
        Ok(Held {
            asked: endpoint,
            by: row.name,
            holds: endpoint,
        })
    });
    held.collect()
}

/// Who has prefixes in which these endpoints lie, but for one site.
pub(super) async fn with_prefixes_around(
    connection: &mut PgConnection,
    except: Option<SiteId>,
    endpoints: &[SocketAddr],
) -> Result<Vec<Held<SocketAddr, IpNet>>> {
    let addresses: Vec<_> = endpoints.iter().map(|at| IpNet::from(at.ip())).collect();
    let ports: Vec<_> = endpoints.iter().map(|at| i32::from(at.port())).collect();
    let holders = sqlx::query!(
        r#"SELECT asked.address AS "address!: IpNet", asked.port AS "port!", name, prefix
           FROM unnest($1::inet[], $2::integer[]) AS asked (address, port)
           JOIN subnets ON prefix >>= asked.address JOIN sites ON sites.id = subnets.site
           WHERE sites.id IS DISTINCT FROM $3"#,
        &addresses,
        &ports,
        except.map(|site| site.0)
    );
    let holders = holders.fetch_all(connection).await?.into_iter();
    let held = holders.map(|row| {
        Ok(Held {
            asked: site_records::socket(row.address, row.port)?,
            by: row.name,
            holds: row.prefix,
        })
    });
    held.collect()
}

/// Who has prefixes that overlap with these, but for one site: the first for each.
pub(super) async fn with_prefixes(
    connection: &mut PgConnection,
    except: Option<SiteId>,
    prefixes: &[IpNet],
) -> Result<Vec<Held<IpNet, IpNet>>> {
    let holders = sqlx::query!(
        r#"SELECT DISTINCT ON (asked) asked AS "asked!: IpNet", name, prefix
           FROM unnest($1::inet[]) AS asked
           JOIN subnets ON prefix && asked JOIN sites ON sites.id = subnets.site
           WHERE sites.id IS DISTINCT FROM $2 ORDER BY asked, prefix"#,
        prefixes,
        except.map(|site| site.0)
    );
    let holders = holders.fetch_all(connection).await?.into_iter();
    let held = holders.map(|row| Held {
        asked: row.asked,
        by: row.name,
        holds: row.prefix,
    });
    Ok(held.collect())
}

/// The endpoints of all sites but one, and of all nodes, with the names of the sites.
pub(super) async fn endpoints(
    connection: &mut PgConnection,
    except: Option<SiteId>,
) -> Result<Vec<(String, SocketAddr)>> {
    let endpoints = sqlx::query!(
        r#"SELECT name AS "name!", address AS "address!: IpNet", port AS "port!" FROM (
               SELECT name, endpoint_address AS address, endpoint_port AS port FROM sites
               WHERE id IS DISTINCT FROM $1
               UNION ALL
               SELECT sites.name, nodes.endpoint_address, nodes.endpoint_port
               FROM nodes JOIN sites ON sites.id = nodes.site WHERE state <> 'revoked'
           ) AS endpoints
           WHERE address IS NOT NULL ORDER BY address, port"#,
        except.map(|site| site.0)
    );
    let endpoints = endpoints.fetch_all(connection).await?.into_iter();
    endpoints
        .map(|row| Ok((row.name, site_records::socket(row.address, row.port)?)))
        .collect()
}

/// Whether an endpoint lies in the subnet of a site.
pub async fn endpoint_in_foreign_subnet(
    connection: &mut PgConnection,
    endpoint: Endpoint,
) -> Result<Option<ProblemDetails>> {
    let held = with_prefixes_around(connection, None, &[endpoint.socket()]).await?;
    Ok(held.into_iter().next().map(|Held { by, holds, .. }| {
        let holder = Holder {
            site: by,
            holds: holds.to_string(),
        };
        endpoint_in_subnet(endpoint, holds, Some(holder))
    }))
}
