//! SQL of sites, subnets and the tunnel addresses that go with them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use chrono::{DateTime, Utc};
use ipnet::{IpNet, Ipv4Net};
use sqlx::{PgConnection, types::Json};
use wattle_mesh::config::{allocate, directory::SiteRecord};
use wattle_wire::{
    endpoint::Endpoint,
    ids::SiteId,
    problem::{Holder, ProblemDetails},
    subnet::Subnet,
};

use super::check::{Draft, endpoint_in_subnet};
use crate::{
    db::site_records::{self, v4},
    error::{self, Result},
};

pub(super) async fn insert(
    connection: &mut PgConnection,
    id: SiteId,
    draft: &Draft,
    tunnel_address: Ipv4Addr,
) -> Result<SiteRecord> {
    let (address, port) = site_records::endpoint_columns(draft.endpoint);
    let created_at = sqlx::query_scalar!(
        "INSERT INTO sites (id, name, description, labels, endpoint_address, endpoint_port) VALUES \
         ($1, $2, $3, $4, $5, $6) RETURNING created_at",
        id.0,
        draft.name.as_str(),
        draft.description,
        Json(&draft.labels) as _,
        address,
        port
    )
    .fetch_one(&mut *connection)
    .await?;
    insert_subnets(connection, id, &draft.subnets).await?;
    sqlx::query!(
        "INSERT INTO tunnel_addresses (address, site, own) VALUES ($1, $2, true)",
        IpNet::from(IpAddr::V4(tunnel_address)),
        id.0
    )
    .execute(connection)
    .await?;
    Ok(record(id, draft, tunnel_address, created_at))
}

pub(super) async fn update(
    connection: &mut PgConnection,
    before: SiteRecord,
    draft: &Draft,
) -> Result<SiteRecord> {
    let (address, port) = site_records::endpoint_columns(draft.endpoint);
    sqlx::query!(
        "UPDATE sites SET name = $2, description = $3, labels = $4, endpoint_address = $5, \
         endpoint_port = $6 WHERE id = $1",
        before.id.0,
        draft.name.as_str(),
        draft.description,
        Json(&draft.labels) as _,
        address,
        port
    )
    .execute(&mut *connection)
    .await?;
    let kept: Vec<_> = draft.subnets.iter().map(|subnet| subnet.net()).collect();
    sqlx::query!(
        "DELETE FROM subnets WHERE site = $1 AND prefix <> ALL($2)",
        before.id.0,
        &kept
    )
    .execute(&mut *connection)
    .await?;
    let added: Vec<_> = draft
        .subnets
        .iter()
        .copied()
        .filter(|subnet| !before.subnets.contains(subnet))
        .collect();
    insert_subnets(connection, before.id, &added).await?;
    Ok(record(
        before.id,
        draft,
        before.tunnel_address,
        before.created_at,
    ))
}

pub(super) async fn delete(connection: &mut PgConnection, site: SiteId) -> Result<()> {
    sqlx::query!("DELETE FROM sites WHERE id = $1", site.0)
        .execute(connection)
        .await?;
    Ok(())
}

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
        return Err(error::taken("no_tunnel_address", "The mesh is full", "", detail, None).into());
    }
    Ok(free)
}

/// Whether the endpoint lies in somebody's subnet, or a subnet holds somebody's endpoint. The
/// caller holds the lock.
pub(super) async fn endpoint_clash(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    draft: &Draft,
) -> Result<Option<ProblemDetails>> {
    if let Some(endpoint) = draft.endpoint
        && let Some(problem) = endpoint_in_foreign_subnet(connection, site, endpoint).await?
    {
        return Ok(Some(problem));
    }
    let prefixes: Vec<_> = draft.subnets.iter().map(|subnet| subnet.net()).collect();
    let holder = sqlx::query!(
        r#"SELECT name AS "name!", address AS "address!: IpNet", port AS "port!" FROM (
               SELECT id AS site, name, endpoint_address AS address, endpoint_port AS port FROM sites
               UNION ALL
               SELECT sites.id, sites.name, nodes.endpoint_address, nodes.endpoint_port FROM nodes JOIN sites ON sites.id = nodes.site
               WHERE state <> 'revoked'
           ) AS endpoints
           WHERE address <<= ANY($1) LIMIT 1"#,
        &prefixes
    )
    .fetch_optional(connection)
    .await?;
    let Some(holder) = holder else {
        return Ok(None);
    };
    let field = draft.field_of(holder.address);
    let endpoint = SocketAddr::new(
        holder.address.addr(),
        u16::try_from(holder.port).unwrap_or_default(),
    );
    let detail = format!(
        "it holds {endpoint}, the endpoint of {}, which must be reached outside of the mesh",
        holder.name
    );
    let holder = Holder {
        site: holder.name,
        holds: endpoint.to_string(),
    };
    Ok(Some(error::taken(
        "subnet_holds_endpoint",
        "The subnet holds an endpoint",
        &field,
        detail,
        Some(holder),
    )))
}

/// Whether an endpoint lies in the subnet of a site.
pub async fn endpoint_in_foreign_subnet(
    connection: &mut PgConnection,
    except: Option<SiteId>,
    endpoint: Endpoint,
) -> Result<Option<ProblemDetails>> {
    let holder = sqlx::query!(
        "SELECT name, prefix FROM subnets JOIN sites ON sites.id = subnets.site WHERE prefix >>= \
         $1 AND sites.id IS DISTINCT FROM $2",
        IpNet::from(endpoint.socket().ip()),
        except.map(|site| site.0)
    )
    .fetch_optional(connection)
    .await?;
    Ok(holder.map(|row| {
        endpoint_in_subnet(
            endpoint,
            row.prefix,
            Some(Holder {
                site: row.name,
                holds: row.prefix.to_string(),
            }),
        )
    }))
}

/// Who holds a prefix that overlaps with one of the draft's.
pub(super) async fn subnet_holder(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    draft: &Draft,
) -> Result<ProblemDetails> {
    let prefixes: Vec<_> = draft.subnets.iter().map(|subnet| subnet.net()).collect();
    let holder = sqlx::query!(
        "SELECT name, prefix FROM subnets JOIN sites ON sites.id = subnets.site
         WHERE prefix && ANY($1) AND sites.id IS DISTINCT FROM $2 ORDER BY prefix LIMIT 1",
        &prefixes,
        site.map(|site| site.0)
    )
    .fetch_optional(connection)
    .await?;
    let title = "The subnet is taken";
    let Some(row) = holder else {
        return Ok(error::taken(
            "subnet_taken",
            title,
            "subnets",
            "another site held one of them a moment ago; try again",
            None,
        ));
    };
    let field = draft.field_of(row.prefix);
    let asked = draft
        .subnets
        .iter()
        .find(|subnet| subnet.overlaps(row.prefix))
        .map(ToString::to_string)
        .unwrap_or_default();
    let detail = format!(
        "{asked} overlaps with {} of site {}; no two sites may share an address",
        row.prefix, row.name
    );
    Ok(error::taken(
        "subnet_taken",
        title,
        &field,
        detail,
        Some(Holder {
            site: row.name,
            holds: row.prefix.to_string(),
        }),
    ))
}

/// Which site has the draft's endpoint.
pub(super) async fn endpoint_holder(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    draft: &Draft,
) -> Result<ProblemDetails> {
    let endpoint = draft.endpoint.map(Endpoint::socket);
    let holder = sqlx::query_scalar!(
        "SELECT name FROM sites WHERE endpoint_address = $1 AND endpoint_port = $2 AND id IS \
         DISTINCT FROM $3",
        endpoint.map(|socket| IpNet::from(socket.ip())),
        endpoint.map(|socket| i32::from(socket.port())),
        site.map(|site| site.0)
    )
    .fetch_optional(connection)
    .await?;
    let holds = draft
        .endpoint
        .map(|endpoint| endpoint.to_string())
        .unwrap_or_default();
    let detail = format!(
        "{holds} is the endpoint of another site; two gateways behind one address need two ports"
    );
    let holder = holder.map(|site| Holder { site, holds });
    Ok(error::taken(
        "endpoint_taken",
        "The endpoint is taken",
        "endpoint",
        detail,
        holder,
    ))
}

async fn insert_subnets(
    connection: &mut PgConnection,
    site: SiteId,
    subnets: &[Subnet],
) -> Result<()> {
    let prefixes: Vec<_> = subnets.iter().map(|subnet| subnet.net()).collect();
    sqlx::query!(
        "INSERT INTO subnets (site, prefix) SELECT $1, unnest($2::inet[])",
        site.0,
        &prefixes
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn record(
    id: SiteId,
    draft: &Draft,
    tunnel_address: Ipv4Addr,
    created_at: DateTime<Utc>,
) -> SiteRecord {
    SiteRecord {
        id,
        name: draft.name.clone(),
        description: draft.description.clone(),
        labels: draft.labels.clone(),
        endpoint: draft.endpoint,
        subnets: draft.sorted_subnets(),
        tunnel_address,
        created_at,
    }
}
