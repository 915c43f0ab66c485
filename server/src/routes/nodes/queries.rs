//! SQL of nodes.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::config::directory::NodeRecord;
use wattle_wire::{
    ids::{NodeId, SiteId},
    key::IdentityKey,
    lock::SignedAdmission,
    name::Name,
    webhook::NodeChange,
};

use crate::{
    db::{node_records, webhook_news},
    error::Result,
};

/// Revokes a node and gives its tunnel address back. Returns its site; `None` when there is no such
/// node.
pub async fn revoke(connection: &mut PgConnection, node: NodeId) -> Result<Option<SiteId>> {
    let site = sqlx::query_scalar!(
        r#"UPDATE nodes SET state = 'revoked', revoked_at = now() WHERE id = $1 AND state <> 'revoked' RETURNING site AS "site!""#,
        node.0
    );
    let Some(site) = site.fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    forget(connection, &[node.0]).await?;
    Ok(Some(SiteId(site)))
}

/// Revokes all nodes of a site.
pub async fn revoke_all_of(connection: &mut PgConnection, site: SiteId) -> Result<Vec<NodeId>> {
    let nodes = sqlx::query_scalar!(
        "UPDATE nodes SET state = 'revoked', revoked_at = now() WHERE site = $1 AND state <> \
         'revoked' RETURNING id",
        site.0
    );
    let nodes = nodes.fetch_all(&mut *connection).await?;
    forget(connection, &nodes).await?;
    Ok(nodes.into_iter().map(NodeId).collect())
}

/// Makes the node active that has stood by the longest, if the site has no active one. Returns it.
pub async fn promote(connection: &mut PgConnection, site: SiteId) -> Result<Option<NodeRecord>> {
    let promoted = sqlx::query_scalar!(
        "UPDATE nodes SET state = 'active'
         WHERE id = (SELECT id FROM nodes WHERE site = $1 AND state = 'standby' ORDER BY \
         enrolled_at, id LIMIT 1)
           AND NOT EXISTS (SELECT FROM nodes WHERE site = $1 AND state = 'active')
         RETURNING id",
        site.0
    );
    match promoted.fetch_optional(&mut *connection).await? {
        Some(id) => node_records::find(connection, NodeId(id)).await,
        None => Ok(None),
    }
}

/// A node that may be admitted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) id: NodeId,
    pub(super) name: Name,
    pub(super) site: Name,
    /// The admission that it has.
    pub(super) admission: Option<String>,
}

/// Which node each identity is, if there is one. They are locked.
pub(super) async fn by_identity(
    connection: &mut PgConnection,
    identities: &[IdentityKey],
) -> Result<BTreeMap<IdentityKey, Admitted>> {
    let identities: Vec<_> = identities
        .iter()
        .map(|identity| identity.as_bytes().to_vec())
        .collect();
    let rows = sqlx::query!(
        r#"SELECT nodes.id, nodes.name AS "name: Name", sites.name AS "site: Name",
                  identity_key AS "identity_key: IdentityKey", admission
           FROM nodes JOIN sites ON sites.id = nodes.site
           WHERE identity_key = ANY($1) AND state <> 'revoked' ORDER BY nodes.id
           FOR UPDATE OF nodes"#,
        &identities
    );
    let rows = rows.fetch_all(connection).await?.into_iter();
    let nodes = rows.map(|row| {
        let node = Admitted {
            id: NodeId(row.id),
            name: row.name,
            site: row.site,
            admission: row.admission,
        };
        (row.identity_key, node)
    });
    Ok(nodes.collect())
}

/// Keeps operators' words for nodes.
pub async fn admit(
    connection: &mut PgConnection,
    admissions: &[(NodeId, &SignedAdmission)],
) -> Result<()> {
    let nodes: Vec<_> = admissions.iter().map(|(node, _)| node.0).collect();
    let texts: Vec<_> = admissions
        .iter()
        .map(|(_, signed)| signed.admission.clone())
        .collect();
    let signatures: Vec<_> = admissions
        .iter()
        .map(|(_, signed)| signed.signature.as_bytes().to_vec())
        .collect();
    sqlx::query!(
        "UPDATE nodes SET admission = given.admission, admission_signature = given.signature
         FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS given (node, admission, signature) \
         WHERE id = given.node",
        &nodes,
        &texts,
        &signatures
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A node that takes part, and its name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) id: NodeId,
    pub(super) name: Name,
    pub(super) follows_site: bool,
    pub(super) site: SiteId,
    pub(super) site_name: Name,
}

/// The nodes that have these names.
pub(super) async fn holders(connection: &mut PgConnection, names: &[&Name]) -> Result<Vec<Named>> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let rows = sqlx::query_as!(
        Named,
        r#"SELECT nodes.id, nodes.name AS "name: Name", name_follows_site AS follows_site,
                  sites.id AS site, sites.name AS "site_name: Name"
           FROM nodes JOIN sites ON sites.id = nodes.site
           WHERE state <> 'revoked' AND nodes.name = ANY($1) ORDER BY nodes.id"#,
        &names
    );
    Ok(rows.fetch_all(connection).await?)
}

/// Which of these names other nodes and other sites have.
pub(super) async fn taken(
    connection: &mut PgConnection,
    names: &[Name],
    site: SiteId,
    node: NodeId,
) -> Result<BTreeSet<String>> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let taken = sqlx::query_scalar!(
        r#"SELECT name AS "name!" FROM nodes
           WHERE state <> 'revoked' AND name = ANY($1) AND id <> $3
           UNION SELECT name FROM sites WHERE name = ANY($1) AND id <> $2"#,
        &names,
        site.0,
        node.0
    );
    Ok(taken.fetch_all(connection).await?.into_iter().collect())
}

/// The names of other sites and of their nodes.
pub(super) async fn names_elsewhere(
    connection: &mut PgConnection,
    site: SiteId,
) -> Result<BTreeSet<String>> {
    let names = sqlx::query_scalar!(
        r#"SELECT name AS "name!" FROM nodes WHERE state <> 'revoked' AND site <> $1
           UNION SELECT name FROM sites WHERE id <> $1"#,
        site.0
    );
    Ok(names.fetch_all(connection).await?.into_iter().collect())
}

pub(super) async fn is_of_site(connection: &mut PgConnection, name: &Name) -> Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM sites WHERE name = $1) AS "found!""#,
        name.as_str()
    );
    Ok(found.fetch_one(connection).await?)
}

pub(super) async fn set_name(
    connection: &mut PgConnection,
    node: NodeId,
    name: &Name,
    follows_site: bool,
) -> Result<()> {
    sqlx::query!(
        "UPDATE nodes SET name = $2, name_follows_site = $3 WHERE id = $1",
        node.0,
        name.as_str(),
        follows_site
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives nodes other names, also such as others of them have until now.
pub(super) async fn rename(connection: &mut PgConnection, names: &[(NodeId, Name)]) -> Result<()> {
    let (nodes, names): (Vec<_>, Vec<_>) = names
        .iter()
        .map(|(node, name)| (node.0, name.to_string()))
        .unzip();
    // The index looks at each row as it is written. No node is called like an id.
    sqlx::query!(
        "UPDATE nodes SET name = id::text WHERE id = ANY($1)",
        &nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE nodes SET name = given.name
         FROM unnest($1::uuid[], $2::text[]) AS given (node, name) WHERE id = given.node",
        &nodes,
        &names
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that nodes are revoked, gives back their tunnel addresses, and drops what they and their
/// peers said of their links and to each other.
async fn forget(connection: &mut PgConnection, nodes: &[Uuid]) -> Result<()> {
    // First, as who writes reports does it.
    sqlx::query!("DELETE FROM report_numbers WHERE node = ANY($1)", nodes)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "DELETE FROM tunnel_addresses WHERE node = ANY($1) AND NOT own",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE tunnel_addresses SET node = NULL WHERE node = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("DELETE FROM links WHERE a = ANY($1) OR b = ANY($1)", nodes)
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "DELETE FROM psk_messages WHERE sender = ANY($1) OR recipient = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM armed_peers WHERE node = ANY($1) OR peer = ANY($1)",
        nodes
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("DELETE FROM node_reports WHERE node = ANY($1)", nodes)
        .execute(&mut *connection)
        .await?;
    webhook_news::note_nodes(connection, nodes, NodeChange::Revoked).await
}
