//! `/sites`: places with LAN subnets.

mod check;
mod conflicts;
pub mod queries;

use anyhow::Context;
use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use ipnet::Ipv4Net;
use uuid::Uuid;
use wattle_mesh::{
    audit::{Edit, Subject},
    config::directory::RecordChange,
};
use wattle_wire::{
    admin::{
        ChangedSite, CreatedSite, Import, Imported, NewJoinToken, Page, Removed, Site, SitePatch,
        SiteSpec,
    },
    ids::SiteId,
};

use self::{
    check::coordinators::{Judged, judge},
    conflicts::Conflict,
};
use crate::{
    db::{AuditActor, node_records, site_records},
    error::{self, Error, ErrorCode, Result},
    http::{
        body::{Body, LARGEST_IMPORT, Query},
        page::{self, PageQuery},
        path::Path,
        preconditions::WithEtag,
    },
    mutation::{self, Mutation},
    routes::{
        nodes::{self, naming},
        removals, tokens,
    },
    state::{
        app::App,
        representation::{shown, site_in},
    },
};

const CREATE: Way = Way {
    action: "site.create",
    forced: "site.create.forced",
    is_of_many: false,
};
const IMPORT: Way = Way {
    action: "site.import",
    forced: "site.import.forced",
    is_of_many: true,
};
const CHANGE: Way = Way {
    action: "site.change",
    forced: "site.change.forced",
    is_of_many: false,
};

/// How sites come to be as they are.
#[derive(Clone, Copy)]
struct Way {
    /// What the audit log calls it.
    action: &'static str,
    /// What it calls one that was forced.
    forced: &'static str,
    /// Whether the body has a list of them.
    is_of_many: bool,
}

impl Way {
    fn action(self, is_forced: bool) -> &'static str {
        if is_forced { self.forced } else { self.action }
    }

    /// The error of one site: its field is named as it stands in the body.
    fn at(self, index: usize, error: Error) -> Error {
        if self.is_of_many {
            error.of_site(index)
        } else {
            error
        }
    }
}

/// Creates a site, and a join token for its first gateway.
///
/// The answer holds, this once, the command to run on the gateway.
///
/// A subnet that holds an address at which gateways look for a coordinator is 409
/// `subnet_holds_coordinator`, unless it is forced.
#[utoipa::path(post, path = "/sites", tag = "sites", request_body = SiteSpec,
    params(("force" = Option<bool>, Query, description = "have a subnet although it holds what \
        the name of a coordinator leads to here: gateways find it elsewhere")),
    responses((status = 201, body = CreatedSite, headers(("Location" = String, description = "path \
        of the new site")))))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(spec): Body<SiteSpec>,
) -> Result<Mutation<Response>> {
    let tunnel_prefix = tunnel_prefix(&app);
    check::check(&spec, tunnel_prefix)?;
    let wanted = [Wanted::of(spec)?];
    let created = insert(&app, &actor, &wanted, tunnel_prefix, CREATE).await?;
    created.try_map(|mut created| {
        let created = created.pop().context("a site was made and is not there")?;
        let location = format!("/sites/{}", created.site.id);
        let tagged = WithEtag::new(created.site.clone())?.map(|_| created);
        Ok(mutation::created(location, tagged))
    })
}

/// Creates many sites at once, all or none.
///
/// Each has the form of `POST /sites`, and each comes back with the command to run on its gateway.
/// The mesh takes one revision for all of them.
#[utoipa::path(post, path = "/import", tag = "sites", request_body = Import,
    params(("force" = Option<bool>, Query, description = "as in `POST /sites`")),
    responses((status = 201, body = Imported)))]
pub async fn import(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(Import { sites }): Body<Import, LARGEST_IMPORT>,
) -> Result<Mutation<Response>> {
    if !(1..=Import::MOST_SITES).contains(&sites.len()) {
        return Err(error::invalid(
            ErrorCode::TooMany,
            "sites",
            format!("an import has 1 to {} sites", Import::MOST_SITES),
        )
        .into());
    }
    let tunnel_prefix = tunnel_prefix(&app);
    for (index, spec) in sites.iter().enumerate() {
        check::check(spec, tunnel_prefix).map_err(|error| IMPORT.at(index, error))?;
    }
    let specs: Vec<_> = sites.iter().collect();
    if let Some(Conflict { index, problem }) = conflicts::among(&specs) {
        return Err(IMPORT.at(index, problem.into()));
    }
    let wanted: Vec<_> = sites.into_iter().map(Wanted::of).collect::<Result<_>>()?;
    let imported = insert(&app, &actor, &wanted, tunnel_prefix, IMPORT).await?;
    Ok(imported.map(|sites| {
        let no_store = [(header::CACHE_CONTROL, "no-store")];
        (StatusCode::CREATED, no_store, Json(Imported { sites })).into_response()
    }))
}

/// A site that is about to be made, with a join token for its first gateway.
struct Wanted {
    id: SiteId,
    spec: SiteSpec,
    join: tokens::Issue,
}

impl Wanted {
    fn of(spec: SiteSpec) -> Result<Self> {
        let id = SiteId(Uuid::now_v7());
        Ok(Self {
            id,
            spec,
            join: tokens::Issue::fresh(id, NewJoinToken::default())?,
        })
    }
}

/// Makes sites in one revision.
async fn insert(
    app: &App,
    actor: &AuditActor,
    wanted: &[Wanted],
    tunnel_prefix: Ipv4Net,
    way: Way,
) -> Result<Mutation<Vec<CreatedSite>>> {
    let specs: Vec<_> = wanted.iter().map(|new| &new.spec).collect();
    let specs = &specs;
    let created = app.mutate(actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let addresses = queries::free_addresses(&mut change, tunnel_prefix, wanted.len()).await?;
        let coordinators = app.coordinators.all(&mut change).await?;
        let judged = specs.iter().enumerate().map(|(index, spec)| {
            judge(&spec.subnets, &[], &coordinators, actor.options.force)
                .map_err(|error| way.at(index, error))
        });
        let judged: Vec<_> = judged.collect::<Result<_>>()?;
        if let Some(conflict) = conflicts::with_others(&mut change, None, specs).await? {
            return Err(way.at(conflict.index, conflict.problem.into()));
        }
        let (mut is_forced, mut warnings) = (false, Vec::new());
        let (mut created, mut sites) = (
            Vec::with_capacity(wanted.len()),
            Vec::with_capacity(wanted.len()),
        );
        for ((Wanted { id, spec, join }, address), judged) in
            wanted.iter().zip(addresses).zip(judged)
        {
            is_forced |= judged.is_forced;
            warnings.extend(judged.warnings.iter().cloned());
            let record = site_records::insert(&mut change, *id, spec, address).await?;
            let token = tokens::queries::insert(&mut change, join).await?;
            created.push(CreatedSite {
                site: shown(&record, vec![]),
                join_token: join.created(app, &token),
                warnings: judged.warnings,
            });
            sites.push(record);
        }
        let mut records: Vec<_> = sites.iter().cloned().map(RecordChange::Site).collect();
        let names: Vec<_> = wanted.iter().map(|new| (new.id, &new.spec.name)).collect();
        let renamed = naming::make_way(&mut change, &names).await?;
        records.extend(
            renamed
                .iter()
                .map(|node| RecordChange::Node(node.after.clone())),
        );
        let action = way.action(is_forced);
        let (first, others) = sites.split_first().context("no site was made")?;
        let subject = Subject::site(Edit::Made(first));
        let mut outcome = change.changed(created, records, action, subject);
        for site in others {
            let subject = Subject::site(Edit::Made(site));
            outcome = outcome.and_event(action, subject, Some(RecordChange::Site(site.clone())))?;
        }
        naming::told(outcome.with_warnings(warnings), &renamed)
    });
    created.await
}

/// Lists sites, in the order in which they were created.
#[utoipa::path(get, path = "/sites", tag = "sites", params(PageQuery), responses((status = 200, body = Page<Site>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Site>>> {
    let (limit, after) = query.read::<SiteId>()?;
    let page = app.mesh_cache.read(|feed| {
        let directory = feed.directory();
        let sites = directory
            .sites
            .range(page::after(after))
            .map(|(_, record)| site_in(directory, record));
        page::cut(sites, limit, |site| site.id)
    });
    Ok(Json(page))
}

/// Shows a site.
#[utoipa::path(get, path = "/sites/{site}", tag = "sites", params(("site" = String, Path, description = "id or name")),
    responses((status = 200, body = Site)))]
pub async fn show(State(app): State<App>, Path(site): Path<String>) -> Result<WithEtag<Site>> {
    let found = app.mesh_cache.read(|feed| {
        feed.directory()
            .find_site(&site)
            .map(|record| site_in(feed.directory(), record))
    });
    WithEtag::new(found.ok_or_else(|| error::not_found("site"))?)
}

/// Changes a site. Absent fields stay as they are; `"endpoint": null` takes the endpoint away.
///
/// Its nodes that are named after it follow its name, in the same revision.
#[utoipa::path(patch, path = "/sites/{site}", tag = "sites",
    params(("site" = String, Path, description = "id or name"),
        ("force" = Option<bool>, Query, description = "as in `POST /sites`")),
    request_body = SitePatch, responses((status = 200, body = ChangedSite)))]
pub async fn change(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(name): Path<String>,
    Body(patch): Body<SitePatch>,
) -> Result<Mutation<WithEtag<ChangedSite>>> {
    let (app, actor, site, wanted) = (&app, &actor, app.find_site(&name)?, &patch);
    let tunnel_prefix = tunnel_prefix(app);
    let changed = app.mutate(actor, |mut change| async move {
        site_records::lock_site(&mut change, site).await?;
        site_records::lock(&mut change).await?;
        let before = site_records::find(&mut change, site)
            .await?
            .ok_or_else(|| error::not_found("site"))?;
        let nodes = node_records::of_site(&mut change, site).await?;
        change.check_precondition(&shown(&before, nodes))?;
        let spec = wanted.applied_to(&before.spec);
        check::check(&spec, tunnel_prefix)?;
        let coordinators = app.coordinators.all(&mut change).await?;
        let Judged {
            is_forced,
            warnings,
        } = judge(
            &spec.subnets,
            &before.spec.subnets,
            &coordinators,
            actor.options.force,
        )?;
        if site_records::in_order(spec.clone()) == before.spec {
            return Ok(change.unchanged((before, warnings)));
        }
        if let Some(conflict) = conflicts::with_others(&mut change, Some(site), &[&spec]).await? {
            return Err(conflict.problem.into());
        }
        let after = site_records::update(&mut change, before.clone(), &spec).await?;
        let mut renamed = Vec::new();
        if before.spec.name != after.spec.name {
            renamed.extend(naming::make_way(&mut change, &[(site, &after.spec.name)]).await?);
            renamed.extend(
                naming::follow_site(&mut change, site, (&before.spec.name, &after.spec.name))
                    .await?,
            );
        }
        let mut records = vec![RecordChange::Site(after.clone())];
        records.extend(
            renamed
                .iter()
                .map(|node| RecordChange::Node(node.after.clone())),
        );
        let action = CHANGE.action(is_forced);
        let edit = Edit::Changed {
            before: &before,
            after: &after,
        };
        let subject = Subject::site(edit);
        let outcome = change.changed((after, warnings.clone()), records, action, subject);
        naming::told(outcome.with_warnings(warnings), &renamed)
    });
    changed.await?.try_map(|(record, warnings)| {
        let site = app
            .mesh_cache
            .read(|feed| site_in(feed.directory(), &record));
        Ok(WithEtag::new(site)?.map(|site| ChangedSite { site, warnings }))
    })
}

/// Removes a site: its nodes are revoked, its subnets and tunnel address become free.
///
/// 200 where gateways keep its nodes until an operator signs, as in `DELETE /nodes/{node}`.
#[utoipa::path(delete, path = "/sites/{site}", tag = "sites", params(("site" = String, Path, description = "id or name")),
    responses((status = 204), (status = 200, body = Removed)))]
pub async fn remove(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(site): Path<String>,
) -> Result<Mutation<Response>> {
    let (app, id) = (&app, app.find_site(&site)?);
    let removed = app.mutate(&actor, |mut change| async move {
        site_records::lock_site(&mut change, id).await?;
        site_records::lock(&mut change).await?;
        let site = site_records::find(&mut change, id)
            .await?
            .ok_or_else(|| error::not_found("site"))?;
        let nodes = node_records::of_site(&mut change, id).await?;
        change.check_precondition(&shown(&site, nodes))?;
        let revoked = node_records::all_of(&mut change, id).await?;
        let mut records: Vec<_> = nodes::queries::revoke_all_of(&mut change, id)
            .await?
            .into_iter()
            .map(RecordChange::NodeRevoked)
            .collect();
        site_records::delete(&mut change, id).await?;
        records.push(RecordChange::SiteRemoved(id));
        let removed = removals::kept(app, &revoked);
        let subject = Subject::site(Edit::Gone(&site));
        let outcome = change.changed(removed.clone(), records, "site.remove", subject);
        let outcome = outcome.with_warnings(removals::warnings(&removed));
        revoked.iter().try_fold(outcome, |outcome, node| {
            let subject = Subject::revoked(&site.spec.name, node, &removed);
            outcome.and_event("node.revoke", subject, None)
        })
    });
    Ok(removed.await?.map(removals::answer))
}

fn tunnel_prefix(app: &App) -> Ipv4Net {
    app.mesh_cache
        .read(|feed| feed.directory().mesh.tunnel_prefix)
}
