//! SQL that reads sites as records.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::{PgConnection, types::Json};
use wattle_mesh::config::directory::SiteRecord;
use wattle_wire::{endpoint::Endpoint, ids::SiteId, name::Name, subnet::Subnet};

use crate::error::{Error, Result};

struct SiteRow {
    id: SiteId,
    name: String,
    description: String,
    labels: Json<BTreeMap<Name, String>>,
    endpoint_address: Option<IpNet>,
    endpoint_port: Option<i32>,
    subnets: Vec<IpNet>,
    tunnel_address: IpNet,
    created_at: DateTime<Utc>,
}

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
    let name = sqlx::query_scalar!("SELECT name FROM sites WHERE id = $1", site.0);
    let name = name.fetch_one(connection).await?;
    Ok(name
        .parse()
        .context("a site in the database is not valid")?)
}

async fn select(connection: &mut PgConnection, site: Option<SiteId>) -> Result<Vec<SiteRecord>> {
    let rows = sqlx::query_as!(
        SiteRow,
        r#"SELECT sites.id, name, description, labels AS "labels: Json<BTreeMap<Name, String>>", endpoint_address, endpoint_port,
                  ARRAY(SELECT prefix FROM subnets WHERE subnets.site = sites.id) AS "subnets!: Vec<IpNet>",
                  tunnel_addresses.address AS tunnel_address, created_at
           FROM sites JOIN tunnel_addresses ON tunnel_addresses.site = sites.id AND own
           WHERE $1::uuid IS NULL OR sites.id = $1"#,
        site.map(|site| site.0)
    );
    rows.fetch_all(connection)
        .await?
        .into_iter()
        .map(SiteRecord::try_from)
        .collect()
}

impl TryFrom<SiteRow> for SiteRecord {
    type Error = Error;

    fn try_from(row: SiteRow) -> Result<Self> {
        let invalid = "a site in the database is not valid";
        let mut subnets: Vec<_> = row
            .subnets
            .into_iter()
            .map(|net| Subnet::try_from(net).context(invalid))
            .collect::<anyhow::Result<_>>()?;
        subnets.sort();
        Ok(Self {
            id: row.id,
            name: row.name.parse().context(invalid)?,
            description: row.description,
            labels: row.labels.0,
            endpoint: endpoint(row.endpoint_address, row.endpoint_port)?,
            subnets,
            tunnel_address: v4(row.tunnel_address)?,
            created_at: row.created_at,
        })
    }
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
