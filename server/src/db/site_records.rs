//! SQL of sites, as records.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use sqlx::{PgConnection, types::Json};
use wattle_mesh::config::directory::SiteRecord;
use wattle_wire::{admin::SiteSpec, endpoint::Endpoint, ids::SiteId, name::Name, subnet::Subnet};

use crate::error::Result;

/// Lets nobody else change a site or enrol for it until this transaction ends. Who needs [`lock`],
/// too, calls it after this: two that took them in different orders would wait for each other.
pub async fn lock_site(connection: &mut PgConnection, site: SiteId) -> Result<()> {
    sqlx::query!("SELECT FROM sites WHERE id = $1 FOR NO KEY UPDATE", site.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Lets one transaction at a time give out addresses and compare endpoints with subnets. Readers
/// are not held up.
pub async fn lock(connection: &mut PgConnection) -> Result<()> {
    sqlx::query!("LOCK TABLE tunnel_addresses IN SHARE ROW EXCLUSIVE MODE")
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn all(connection: &mut PgConnection) -> Result<Vec<SiteRecord>> {
    select(connection, None).await
}

pub async fn find(connection: &mut PgConnection, site: SiteId) -> Result<Option<SiteRecord>> {
    Ok(select(connection, Some(site)).await?.pop())
}

/// The name of a site that is there.
pub async fn name(connection: &mut PgConnection, site: SiteId) -> Result<Name> {
    let name = sqlx::query_scalar!(
        r#"SELECT name AS "name: Name" FROM sites WHERE id = $1"#,
        site.0
    );
    Ok(name.fetch_one(connection).await?)
}

async fn select(connection: &mut PgConnection, site: Option<SiteId>) -> Result<Vec<SiteRecord>> {
    let rows = sqlx::query!(
        r#"SELECT sites.id, name AS "name: Name", description, labels AS "labels: Json<BTreeMap<Name, String>>", endpoint_address, endpoint_port,
                  ARRAY(SELECT prefix FROM subnets WHERE subnets.site = sites.id) AS "subnets!: Vec<IpNet>",
                  tunnel_addresses.address AS tunnel_address, created_at
           FROM sites JOIN tunnel_addresses ON tunnel_addresses.site = sites.id AND own
           WHERE $1::uuid IS NULL OR sites.id = $1"#,
        site.map(|site| site.0)
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let records = rows.map(|row| {
        let subnets = row.subnets.into_iter().map(Subnet::try_from);
        let spec = SiteSpec {
            name: row.name,
            description: row.description,
            labels: row.labels.0,
            endpoint: endpoint(row.endpoint_address, row.endpoint_port)?,
            subnets: subnets
                .collect::<Result<_, _>>()
                .context("a subnet in the database is not valid")?,
        };
        Ok(SiteRecord {
            id: SiteId(row.id),
            spec: in_order(spec),
            tunnel_address: v4(row.tunnel_address)?,
            created_at: row.created_at,
        })
    });
    records.collect()
}

/// Makes a site. The caller holds [`lock`].
pub async fn insert(
    connection: &mut PgConnection,
    id: SiteId,
    spec: &SiteSpec,
    tunnel_address: Ipv4Addr,
) -> Result<SiteRecord> {
    let (address, port) = endpoint_columns(spec.endpoint);
    let created_at = sqlx::query_scalar!(
        "INSERT INTO sites (id, name, description, labels, endpoint_address, endpoint_port) VALUES \
         ($1, $2, $3, $4, $5, $6) RETURNING created_at",
        id.0,
        spec.name.as_str(),
        spec.description,
        Json(&spec.labels) as _,
        address,
        port
    )
    .fetch_one(&mut *connection)
    .await?;
    insert_subnets(connection, id, &spec.subnets).await?;
    sqlx::query!(
        "INSERT INTO tunnel_addresses (address, site, own) VALUES ($1, $2, true)",
        IpNet::from(IpAddr::V4(tunnel_address)),
        id.0
    )
    .execute(connection)
    .await?;
    Ok(SiteRecord {
        id,
        spec: in_order(spec.clone()),
        tunnel_address,
        created_at,
    })
}

/// Makes a site what somebody wants. The caller holds [`lock`].
pub async fn update(
    connection: &mut PgConnection,
    before: SiteRecord,
    spec: &SiteSpec,
) -> Result<SiteRecord> {
    let (address, port) = endpoint_columns(spec.endpoint);
    sqlx::query!(
        "UPDATE sites SET name = $2, description = $3, labels = $4, endpoint_address = $5, \
         endpoint_port = $6 WHERE id = $1",
        before.id.0,
        spec.name.as_str(),
        spec.description,
        Json(&spec.labels) as _,
        address,
        port
    )
    .execute(&mut *connection)
    .await?;
    let kept: Vec<_> = spec.subnets.iter().map(|subnet| subnet.net()).collect();
    sqlx::query!(
        "DELETE FROM subnets WHERE site = $1 AND prefix <> ALL($2)",
        before.id.0,
        &kept
    )
    .execute(&mut *connection)
    .await?;
    let had = &before.spec.subnets;
    let added = spec.subnets.iter().filter(|subnet| !had.contains(subnet));
    let added: Vec<_> = added.copied().collect();
    insert_subnets(connection, before.id, &added).await?;
    Ok(SiteRecord {
        spec: in_order(spec.clone()),
        ..before
    })
}

pub async fn delete(connection: &mut PgConnection, site: SiteId) -> Result<()> {
    sqlx::query!("DELETE FROM sites WHERE id = $1", site.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// As it is kept: with its subnets in order.
pub fn in_order(mut spec: SiteSpec) -> SiteSpec {
    spec.subnets.sort();
    spec
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

/// The two columns that hold an endpoint: address and port.
pub fn endpoint_columns(endpoint: Option<Endpoint>) -> (Option<IpNet>, Option<i32>) {
    let socket = endpoint.map(Endpoint::socket);
    (
        socket.map(|socket| IpNet::from(socket.ip())),
        socket.map(|socket| i32::from(socket.port())),
    )
}

/// An endpoint as two columns hold it.
pub fn endpoint(address: Option<IpNet>, port: Option<i32>) -> Result<Option<Endpoint>> {
    let (Some(address), Some(port)) = (address, port) else {
        return Ok(None);
    };
    let endpoint = Endpoint::try_from(socket(address, port)?);
    let endpoint = endpoint.context("an endpoint in the database is not valid")?;
    Ok(Some(endpoint))
}

/// An address and a port as two columns hold them.
pub fn socket(address: IpNet, port: i32) -> Result<SocketAddr> {
    let port = u16::try_from(port).context("a port in the database is not valid")?;
    Ok(SocketAddr::new(address.addr(), port))
}

/// A tunnel address as a column holds it.
pub fn v4(address: IpNet) -> Result<Ipv4Addr> {
    match address.addr() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(anyhow!("a tunnel address in the database is not of IPv4").into()),
    }
}
