//! What nodes are called: after their sites, unless somebody gives them a name of their own. A name
//! of a site is only ever that of one of its own nodes.

use std::collections::BTreeSet;

use sqlx::PgConnection;
use wattle_mesh::{
    audit::{Edit, Subject},
    config::{
        allocate,
        directory::{NodeRecord, RecordChange},
    },
};
use wattle_wire::{
    ids::{NodeId, SiteId},
    name::Name,
    problem::{Holder, ProblemDetails},
};

use super::queries;
use crate::{
    db::{ChangeOutcome, node_records},
    error::{self, ErrorCode, Result},
};

/// The event of a node that gets another name.
pub(crate) const RENAME: &str = "node.rename";

/// Names that are asked for together; few sites have as many gateways.
const NAMES_AT_A_TIME: usize = 16;

/// A node that gets another name, with the name of its site.
#[derive(Debug)]
pub(crate) struct Renamed {
    site: Name,
    before: NodeRecord,
    pub(crate) after: NodeRecord,
}

/// The first name for a node of a site that no other node has, and that is of no other site.
pub(crate) async fn free_name(
    connection: &mut PgConnection,
    (site, site_name): (SiteId, &Name),
    node: NodeId,
) -> Result<Name> {
    let mut names = allocate::node_names(site_name);
    loop {
        let some: Vec<Name> = names.by_ref().take(NAMES_AT_A_TIME).collect();
        let taken = queries::taken(connection, &some, site, node).await?;
        if let Some(free) = some.into_iter().find(|name| !taken.contains(name.as_str())) {
            return Ok(free);
        }
    }
}

/// Names the nodes of a site after the name that it has now. Returns those that have another name.
pub(crate) async fn follow_site(
    connection: &mut PgConnection,
    site: SiteId,
    (before, after): (&Name, &Name),
) -> Result<Vec<Renamed>> {
    let mut nodes = node_records::all_of(connection, site).await?;
    nodes.sort_by_key(|node| node.id);
    let foreign: BTreeSet<_> = queries::names_elsewhere(connection, site).await?;
    let is_taken = |name: &Name| foreign.contains(name.as_str());
    let renamed = allocate::names_after_rename(before, after, &nodes, is_taken);
    rename(connection, after, &renamed).await
}

/// Which of these names somebody gave to nodes of other sites than this one: sites cannot have
/// them.
pub(crate) async fn given_elsewhere(
    connection: &mut PgConnection,
    site: Option<SiteId>,
    names: &[&Name],
) -> Result<Vec<(Name, ProblemDetails)>> {
    let holders = queries::holders(connection, names).await?.into_iter();
    let given = holders.filter(|holder| !holder.follows_site && Some(holder.site) != site);
    let given = given.map(|holder| {
        let detail = format!(
            "{} is the name of a node of site {}; choose another, or rename the node first (`PATCH \
             /nodes/{}`)",
            holder.name, holder.site_name, holder.name
        );
        let problem = taken(detail, holder.site_name.to_string(), &holder.name);
        (holder.name, problem)
    });
    Ok(given.collect())
}

/// Makes the names of sites free that nodes of other sites have, those of [`given_elsewhere`]
/// excepted. Returns those that have another name now.
pub(crate) async fn make_way(
    connection: &mut PgConnection,
    sites: &[(SiteId, &Name)],
) -> Result<Vec<Renamed>> {
    let names: Vec<_> = sites.iter().map(|(_, name)| *name).collect();
    let mut renamed = Vec::new();
    for holder in queries::holders(connection, &names).await? {
        let is_own = sites.contains(&(holder.site, &holder.name));
        if is_own || !holder.follows_site {
            continue;
        }
        let name = free_name(connection, (holder.site, &holder.site_name), holder.id).await?;
        renamed.extend(rename(connection, &holder.site_name, &[(holder.id, name)]).await?);
    }
    Ok(renamed)
}

/// Gives a node a name of its own.
///
/// # Errors
///
/// 409 when a node or another site has the name.
pub(super) async fn give(
    connection: &mut PgConnection,
    node: &NodeRecord,
    site_name: &Name,
    name: &Name,
) -> Result<()> {
    if let Some(holder) = queries::holders(connection, &[name])
        .await?
        .into_iter()
        .find(|holder| holder.id != node.id)
    {
        let detail = format!(
            "a node of site {} has this name; choose another",
            holder.site_name
        );
        return Err(taken(detail, holder.site_name.to_string(), name).into());
    }
    if name != site_name && queries::is_of_site(connection, name).await? {
        let detail = "a site has this name, and its first gateway is called so; choose another";
        return Err(taken(detail.to_owned(), name.to_string(), name).into());
    }
    queries::set_name(connection, node.id, name, name == site_name).await
}

/// Takes the name away that somebody gave a node: it is named after its site.
pub(super) async fn take_back(
    connection: &mut PgConnection,
    node: &NodeRecord,
    site_name: &Name,
) -> Result<()> {
    let name = free_name(connection, (node.site, site_name), node.id).await?;
    queries::set_name(connection, node.id, &name, true).await
}

/// Writes into the audit log that nodes have another name, beside what was done to their sites.
pub(crate) fn told<T>(outcome: ChangeOutcome<T>, renamed: &[Renamed]) -> Result<ChangeOutcome<T>> {
    renamed.iter().try_fold(outcome, |outcome, node| {
        let Renamed {
            site,
            before,
            after,
        } = node;
        let subject = Subject::node(site, Edit::Changed { before, after });
        outcome.and_event(RENAME, subject, Some(RecordChange::Node(after.clone())))
    })
}

async fn rename(
    connection: &mut PgConnection,
    site: &Name,
    names: &[(NodeId, Name)],
) -> Result<Vec<Renamed>> {
    let mut renamed = Vec::with_capacity(names.len());
    for (node, name) in names {
        if let Some(before) = node_records::find(connection, *node).await? {
            let (site, name) = (site.clone(), name.clone());
            let after = NodeRecord {
                name,
                ..before.clone()
            };
            renamed.push(Renamed {
                site,
                before,
                after,
            });
        }
    }
    if !names.is_empty() {
        queries::rename(connection, names).await?;
    }
    Ok(renamed)
}

/// 409: a site or one of its nodes has the name.
pub(crate) fn taken(detail: String, site: String, name: &Name) -> ProblemDetails {
    let holder = Holder {
        site,
        holds: name.to_string(),
    };
    error::taken(ErrorCode::NameTaken, "name", detail, Some(holder))
}
