//! `/sites`: places with LAN subnets.

mod check;
pub mod queries;

use std::sync::atomic::{AtomicUsize, Ordering};

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
        ChangedSite, CreatedSite, Import, Imported, NewJoinToken, NewSite, Page, Removed, Site,
        SitePatch,
    },
    ids::SiteId,
    problem::{Holder, ProblemDetails},
};

use self::check::coordinators::{Judged, judge};
use crate::{
    db::{AuditActor, node_records, site_records},
    error::{self, Error, Result},
    http::{
        body::{Body, LARGEST_IMPORT, Query},
        page::{self, PageQuery},
        path::Path,
        preconditions::WithEtag,
    },
    routes::{
        nodes::{self, naming},
        removals, tokens,
    },
    state::{
        app::App,
        representation::{shown, site_in},
    },
};

/// What the audit log calls a change, and what it calls one that was forced.
type Actions = [&'static str; 2];

const CREATE: Actions = ["site.create", "site.create.forced"];
const IMPORT: Actions = ["site.import", "site.import.forced"];
const CHANGE: Actions = ["site.change", "site.change.forced"];

/// Creates a site, and a join token for its first gateway.
///
/// The answer holds, this once, the command to run on the gateway.
///
/// A subnet that holds an address at which gateways look for a coordinator is 409
/// `subnet_holds_coordinator`, unless it is forced.
#[utoipa::path(post, path = "/sites", tag = "sites", request_body = NewSite,
    params(("force" = Option<bool>, Query, description = "have a subnet although it holds what \
        the name of a coordinator leads to here: gateways find it elsewhere")),
    responses((status = 201, body = CreatedSite, headers(("Location" = String, description = "path \
        of the new site")))))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(new): Body<NewSite>,
) -> Result<Response> {
    let tunnel_prefix = tunnel_prefix(&app);
    let wanted = [Wanted::of(check::Draft::of(new, tunnel_prefix)?)?];
    let created = insert(&app, &actor, &wanted, tunnel_prefix, CREATE).await;
    let created = created
        .map_err(|(_, error)| error)?
        .pop()
        .ok_or(Error::Internal("a site was made and is not there"))?;
    let headers = [
        (header::LOCATION, format!("/sites/{}", created.site.id)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    let tagged = WithEtag::new(created.site.clone())?.map(|_| created);
    Ok((StatusCode::CREATED, headers, tagged).into_response())
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
) -> Result<Response> {
    if !(1..=Import::MOST_SITES).contains(&sites.len()) {
        return Err(error::invalid(
            "too_many",
            "sites",
            format!("an import has 1 to {} sites", Import::MOST_SITES),
        )
        .into());
    }
    let tunnel_prefix = tunnel_prefix(&app);
    let drafts = sites.into_iter().enumerate().map(|(index, new)| {
        check::Draft::of(new, tunnel_prefix).map_err(|error| error.of_site(index))
    });
    let drafts: Vec<_> = drafts.collect::<Result<_>>()?;
    check::check_together(&drafts)?;
    let wanted: Vec<_> = drafts.into_iter().map(Wanted::of).collect::<Result<_>>()?;
    let sites = insert(&app, &actor, &wanted, tunnel_prefix, IMPORT).await;
    let sites = sites.map_err(|(index, error)| match index {
        Some(index) => error.of_site(index),
        None => error,
    })?;
    Ok((
        StatusCode::CREATED,
        [(header::CACHE_CONTROL, "no-store")],
        Json(Imported { sites }),
    )
        .into_response())
}

/// A site that is about to be made, with a join token for its first gateway.
struct Wanted {
    id: SiteId,
    draft: check::Draft,
    join: tokens::Issue,
}

impl Wanted {
    fn of(draft: check::Draft) -> Result<Self> {
        let id = SiteId(Uuid::now_v7());
        Ok(Self {
            id,
            draft,
            join: tokens::Issue::fresh(id, NewJoinToken::default())?,
        })
    }
}

/// Makes sites in one revision. An error says at which of them it failed, if it was at one.
async fn insert(
    app: &App,
    actor: &AuditActor,
    wanted: &[Wanted],
    tunnel_prefix: Ipv4Net,
    actions: Actions,
) -> Result<Vec<CreatedSite>, (Option<usize>, Error)> {
    let none = wanted.len();
    let at = AtomicUsize::new(none);
    let reached = &at;
    let created = app.mutate(actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let addresses = queries::free_addresses(&mut change, tunnel_prefix, wanted.len()).await?;
        let coordinators = app.coordinators.all(&mut change).await?;
        let (mut is_forced, mut warnings) = (false, Vec::new());
        let (mut created, mut sites) = (
            Vec::with_capacity(wanted.len()),
            Vec::with_capacity(wanted.len()),
        );
        for (index, (Wanted { id, draft, join }, address)) in
            wanted.iter().zip(addresses).enumerate()
        {
            reached.store(index, Ordering::Relaxed);
            let judged = judge(&draft.subnets, &[], &coordinators, actor.options.force)?;
            is_forced |= judged.is_forced;
            warnings.extend(judged.warnings.iter().cloned());
            refuse_clash(queries::endpoint_clash(&mut change, None, draft).await?)?;
            let record = queries::insert(&mut change, *id, draft, address).await?;
            let token = tokens::queries::insert(&mut change, join).await?;
            created.push(CreatedSite {
                site: shown(&record, vec![]),
                join_token: join.created(app, &token),
                warnings: judged.warnings,
            });
            sites.push(record);
        }
        let mut records: Vec<_> = sites.iter().cloned().map(RecordChange::Site).collect();
        let names: Vec<_> = wanted.iter().map(|new| (new.id, &new.draft.name)).collect();
        let renamed = naming::make_way(&mut change, &names)
            .await
            .map_err(|(index, error)| {
                reached.store(index.unwrap_or(none), Ordering::Relaxed);
                error
            })?;
        reached.store(none, Ordering::Relaxed);
        records.extend(
            renamed
                .iter()
                .map(|node| RecordChange::Node(node.after.clone())),
        );
        let action = actions[usize::from(is_forced)];
        let (first, others) = sites
            .split_first()
            .ok_or(Error::Internal("no site was made"))?;
        let subject = Subject::site(Edit::Made(first));
        let mut outcome = change.changed(created, records, action, subject);
        for site in others {
            let subject = Subject::site(Edit::Made(site));
            outcome = outcome.and_event(action, subject, Some(RecordChange::Site(site.clone())))?;
        }
        naming::told(outcome.with_warnings(warnings), &renamed)
    });
    match created.await {
        Ok(created) => Ok(created),
        Err(error) => {
            let index = at.into_inner();
            match wanted.get(index) {
                Some(site) => Err((Some(index), explain(app, None, &site.draft, error).await)),
                None => Err((None, error)),
            }
        }
    }
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
) -> Result<WithEtag<ChangedSite>> {
    let known = app
        .mesh_cache
        .read(|feed| feed.directory().find_site(&name).cloned())
        .ok_or_else(|| error::not_found("site"))?;
    let (app, actor, site, wanted) = (&app, &actor, known.id, &patch);
    let tunnel_prefix = tunnel_prefix(app);
    let changed = app.mutate(actor, |mut change| async move {
        site_records::lock_site(&mut change, site).await?;
        site_records::lock(&mut change).await?;
        let before = site_records::find(&mut change, site)
            .await?
            .ok_or_else(|| error::not_found("site"))?;
        let nodes = node_records::of_site(&mut change, site).await?;
        change.check_precondition(&shown(&before, nodes))?;
        let draft = check::Draft::of(check::patched(&before, wanted), tunnel_prefix)?;
        let coordinators = app.coordinators.all(&mut change).await?;
        let Judged {
            is_forced,
            warnings,
        } = judge(
            &draft.subnets,
            &before.subnets,
            &coordinators,
            actor.options.force,
        )?;
        if draft.equals(&before) {
            return Ok(change.unchanged((before, warnings)));
        }
        refuse_clash(queries::endpoint_clash(&mut change, Some(site), &draft).await?)?;
        let after = queries::update(&mut change, before.clone(), &draft).await?;
        let mut renamed = Vec::new();
        if before.name != after.name {
            let made_way = naming::make_way(&mut change, &[(site, &after.name)]).await;
            renamed.extend(made_way.map_err(|(_, error)| error)?);
            renamed
                .extend(naming::follow_site(&mut change, site, (&before.name, &after.name)).await?);
        }
        let mut records = vec![RecordChange::Site(after.clone())];
        records.extend(
            renamed
                .iter()
                .map(|node| RecordChange::Node(node.after.clone())),
        );
        let action = CHANGE[usize::from(is_forced)];
        let edit = Edit::Changed {
            before: &before,
            after: &after,
        };
        let subject = Subject::site(edit);
        let outcome = change.changed((after, warnings.clone()), records, action, subject);
        naming::told(outcome.with_warnings(warnings), &renamed)
    });
    match changed.await {
        Ok((record, warnings)) => {
            let site = app
                .mesh_cache
                .read(|feed| site_in(feed.directory(), &record));
            Ok(WithEtag::new(site)?.map(|site| ChangedSite { site, warnings }))
        }
        Err(error) => {
            let draft = check::Draft::of(check::patched(&known, &patch), tunnel_prefix)?;
            Err(explain(app, Some(known.id), &draft, error).await)
        }
    }
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
) -> Result<Response> {
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
        queries::delete(&mut change, id).await?;
        records.push(RecordChange::SiteRemoved(id));
        let removed = removals::kept(app, &revoked);
        let subject = Subject::site(Edit::Gone(&site));
        let outcome = change.changed(removed.clone(), records, "site.remove", subject);
        let outcome = outcome.with_warnings(removals::warnings(&removed));
        revoked.iter().try_fold(outcome, |outcome, node| {
            let subject = Subject::revoked(&site.name, node, &removed);
            outcome.and_event("node.revoke", subject, None)
        })
    });
    Ok(removals::answer(removed.await?))
}

fn tunnel_prefix(app: &App) -> Ipv4Net {
    app.mesh_cache
        .read(|feed| feed.directory().mesh.tunnel_prefix)
}

fn refuse_clash(clash: Option<ProblemDetails>) -> Result<()> {
    clash.map_or(Ok(()), |problem| Err(problem.into()))
}

/// Says who holds what was asked for when a constraint of the database has refused it.
async fn explain(app: &App, site: Option<SiteId>, draft: &check::Draft, error: Error) -> Error {
    let mut transaction = match app.db.begin().await {
        Ok(transaction) => transaction,
        Err(error) => return error,
    };
    let problem = match error.constraint() {
        Some("site_name") => {
            let holder = Holder {
                site: draft.name.to_string(),
                holds: draft.name.to_string(),
            };
            Ok(error::taken(
                "name_taken",
                "The name is taken",
                "name",
                "another site has this name; choose another",
                Some(holder),
            ))
        }
        Some("subnets_do_not_overlap") => {
            queries::subnet_holder(&mut transaction, site, draft).await
        }
        Some("site_endpoint") => queries::endpoint_holder(&mut transaction, site, draft).await,
        _ => return error,
    };
    problem.map_or_else(|error| error, Error::from)
}
