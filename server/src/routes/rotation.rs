//! `POST /nodes/{node}/rotate` and `POST /agent/rotation`: how a node takes up a new WireGuard key,
//! in turn with the others.

pub mod queries;

use axum::{Extension, Json, extract::State, http::StatusCode};
use sqlx::PgConnection;
use wattle_mesh::{
    config::{
        directory::{Directory, NodeRecord},
        view,
        wg_quick::Files,
    },
    keys::{
        enrolment::{
            ChallengePurpose, EnrolmentRefused, InvalidStatement, check_announced,
            verify_announcement, verify_statement,
        },
        succession::{self, SuccessionRefused},
    },
};
use wattle_wire::{
    admin::Node,
    enrol::SignedStatement,
    ids::NodeId,
    key::WireguardKey,
    problem::ProblemDetails,
    rotation::{KeyAnnouncement, RotationAnswer, RotationStep},
};

use crate::{
    db::{AuditActor, node_records, site_records},
    error::{self, ErrorCode, Result},
    http::{
        auth::{CallingNode, RequestId},
        body::Body,
        path::Path,
    },
    mutation::Mutation,
    routes::{enrolment, nodes},
    state::{app::App, representation},
};

/// How many keys a node may give up in an hour, be they taken up or not: each is remembered for
/// good. An agent that fails tries six times in an hour.
const MOST_KEYS_AN_HOUR: i64 = 20;

/// Asks a node for a new WireGuard key.
///
/// Its agent makes one and changes over without losing a packet, as soon as no other node is doing
/// so; `rotation` of the node shows how far it is. Asked again, it is still one new key. The answer
/// is the node as it is now.
///
/// Files of unmanaged nodes name its present key: 409 `unmanaged_sites` while there are any that it
/// has a link with, unless it is forced. Then it has no tunnel with them until they have new files.
#[utoipa::path(post, path = "/nodes/{node}/rotate", tag = "nodes",
    params(("node" = String, Path, description = "id or name"),
        ("force" = Option<bool>, Query, description = "cut the node off from unmanaged sites, \
            until they have new files")),
    responses((status = 202, body = Node)))]
pub async fn request(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(node): Path<String>,
) -> Result<Mutation<(StatusCode, Json<Node>)>> {
    let (app, actor, id) = (&app, &actor, app.find_node(&node)?);
    let asked = app.mutate(actor, |mut change| async move {
        let (before, _) = nodes::as_seen(&mut change, id).await?;
        app.mesh_cache
            .read(|feed| refuse_to_cut_off(feed.directory(), id, actor.options.force))?;
        if !queries::request(&mut change, id).await? {
            return Ok(change.unchanged(()));
        }
        let after = found(node_records::find(&mut change, id).await?)?;
        change.changed_node((), "node.rotate", &before, after).await
    });
    asked.await?.try_map(|()| {
        let node = app.mesh_cache.read(|feed| {
            representation::node_in(
                &app.reports,
                &Files::of(feed.directory()),
                feed.directory().nodes.get(&id)?,
            )
        });
        Ok((
            StatusCode::ACCEPTED,
            Json(node.ok_or_else(|| error::not_found("node"))?),
        ))
    })
}

/// Refuses a new key of a node whose present one is in files, and of a node that has no agent to
/// make one.
fn refuse_to_cut_off(directory: &Directory, node: NodeId, force: bool) -> Result<()> {
    let Some(record) = directory.nodes.get(&node) else {
        return Ok(());
    };
    if record.unmanaged.is_some() {
        let detail = format!(
            "no agent runs there that could make a key. For another key, remove the node (`DELETE \
             /nodes/{}`) and make a new file",
            record.name
        );
        return Err(error::problem(ErrorCode::UnmanagedNode, detail).into());
    }
    let cut_off = directory
        .nodes
        .values()
        .filter(|peer| peer.unmanaged.is_some() && view::should_have_tunnel(record, peer));
    let names: Vec<_> = cut_off.map(|peer| peer.name.as_str()).collect();
    if names.is_empty() || force {
        return Ok(());
    }
    let detail = format!(
        "with `?force=true` it gets one all the same, and has no tunnel with these sites without \
         an agent until they have new files, because \
         theirs name its present key: {}",
        names.join(", ")
    );
    Err(error::problem(ErrorCode::UnmanagedSites, detail).into())
}

/// Takes a step of a node's WireGuard key rotation, and answers which peers say that they are ready.
///
/// One node at a time changes its key: 409 `rotation_under_way` while another does. Each step may
/// be repeated. No number and no key is announced again once it was withdrawn. A node gives up at
/// most 20 keys in an hour: 429 `too_many_keys`.
#[utoipa::path(post, path = "/agent/rotation", tag = "agents", request_body = RotationStep, responses((status = 200, body = RotationAnswer)))]
pub async fn advance(
    State(app): State<App>,
    Extension(CallingNode(node)): Extension<CallingNode>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Body(step): Body<RotationStep>,
) -> Result<Json<RotationAnswer>> {
    let actor = app.node_actor(node, Some(request_id));
    match step {
        RotationStep::Prepare {} => Ok(Json(RotationAnswer {
            challenge: Some(enrolment::challenge(&app, ChallengePurpose::Rotation)?),
            ..RotationAnswer::default()
        })),
        RotationStep::Announce(claim) => announce(&app, &actor, node, &claim).await.map(Json),
        RotationStep::Done(signed) => done(&app, &actor, node, &signed).await.map(Json),
        RotationStep::Withdraw {} => withdraw(&app, &actor, node).await.map(Json),
    }
}

async fn announce(
    app: &App,
    actor: &AuditActor,
    node: NodeId,
    claim: &KeyAnnouncement,
) -> Result<RotationAnswer> {
    let signed = &claim.announcement;
    let statement = &verify_announcement(signed, app.settings.mesh).map_err(unverified)?;
    if !queries::is_announced(&mut *app.db.begin().await?, node, signed).await? {
        let (key, secret) = (statement.wireguard_key, &app.settings.challenge_secret);
        check_announced(claim, key, secret, enrolment::now_unix_s()).map_err(not_proved)?;
        let announced = app.mutate(actor, |mut change| async move {
            site_records::lock(&mut change).await?;
            let record = found(node_records::find(&mut change, node).await?)?;
            // The one that stands may have to wait for others anew, and is no other key.
            let stands = succession::stands(&record, signed);
            if !stands {
                succession::may_announce(&record, statement).map_err(refused)?;
            }
            if let Some(other) = queries::under_way(&mut change, node).await? {
                queries::wait(&mut change, node).await?;
                return Ok(change.unchanged(Some(other)));
            }
            if !stands {
                if queries::given_up_lately(&mut change, node).await? >= MOST_KEYS_AN_HOUR {
                    return Err(too_many_keys().into());
                }
                refuse_known_key(&mut change, node, statement.wireguard_key).await?;
            }
            let after = found(queries::announce(&mut change, &record, signed, statement).await?)?;
            change
                .changed_node(None, "node.key.announce", &record, after)
                .await
        });
        if let Some(other) = announced.await?.done()? {
            return Err(under_way(&other).into());
        }
    }
    let ready = queries::ready(&mut *app.db.begin().await?, node, statement.sequence).await?;
    Ok(RotationAnswer {
        ready,
        challenge: None,
    })
}

async fn done(
    app: &App,
    actor: &AuditActor,
    node: NodeId,
    signed: &SignedStatement,
) -> Result<RotationAnswer> {
    let statement = &verify_statement(signed, app.settings.mesh).map_err(unverified)?;
    app.mutate(actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let record = found(node_records::find(&mut change, node).await?)?;
        if record.statement == *signed {
            return Ok(change.unchanged(()));
        }
        succession::may_take_up(&record, statement).map_err(refused)?;
        let after = found(queries::take_up(&mut change, &record, signed, statement).await?)?;
        change
            .changed_node((), "node.key.change", &record, after)
            .await
    })
    .await?
    .done()?;
    Ok(RotationAnswer::default())
}

async fn withdraw(app: &App, actor: &AuditActor, node: NodeId) -> Result<RotationAnswer> {
    app.mutate(actor, |mut change| async move {
        let before = found(node_records::find(&mut change, node).await?)?;
        match queries::withdraw(&mut change, &before).await? {
            Some(after) => {
                change
                    .changed_node((), "node.key.withdraw", &before, after)
                    .await
            }
            None => Ok(change.unchanged(())),
        }
    })
    .await?
    .done()?;
    Ok(RotationAnswer::default())
}

fn unverified(invalid: InvalidStatement) -> ProblemDetails {
    error::invalid(ErrorCode::Statement, "statement", invalid.to_string())
}

/// A statement that does not follow the node's present one, as a problem.
pub(crate) fn refused(refused: SuccessionRefused) -> ProblemDetails {
    let detail = refused.to_string();
    match refused {
        SuccessionRefused::Unannounced => {
            error::taken(ErrorCode::NotAnnounced, "statement", detail, None)
        }
        SuccessionRefused::Stranger
        | SuccessionRefused::Unmanaged
        | SuccessionRefused::Number(_)
        | SuccessionRefused::SameIdentity
        | SuccessionRefused::OtherKey => error::invalid(ErrorCode::Statement, "statement", detail),
    }
}

fn not_proved(refused: EnrolmentRefused) -> ProblemDetails {
    error::invalid(
        ErrorCode::KeyNotProved,
        "wireguard_proof",
        refused.to_string(),
    )
}

/// Refuses a key that a node has, had or announces, but what this node announces itself.
pub(crate) async fn refuse_known_key(
    connection: &mut PgConnection,
    node: NodeId,
    key: WireguardKey,
) -> Result<()> {
    if queries::is_known_key(connection, node, key).await? {
        Err(enrolment::queries::key_taken().into())
    } else {
        Ok(())
    }
}

fn under_way(node: &str) -> ProblemDetails {
    let detail = format!(
        "{node} is changing its WireGuard key, or asked to before this node; only one node at a \
         time may"
    );
    error::taken(ErrorCode::RotationUnderWay, "statement", detail, None)
}

fn too_many_keys() -> ProblemDetails {
    let detail = format!(
        "the node has given up {MOST_KEYS_AN_HOUR} WireGuard keys within an hour, which is the \
         most; its present key stays"
    );
    error::too_many_keys(detail)
}

fn found(record: Option<NodeRecord>) -> Result<NodeRecord> {
    record.ok_or_else(|| error::unauthorized().into())
}
