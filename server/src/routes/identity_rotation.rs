//! `POST /agent/identity`: how a node takes up another identity.

pub mod queries;

use axum::{
    Extension,
    extract::State,
    http::{Extensions, StatusCode},
};
use wattle_mesh::keys::{
    enrolment::{is_or_was, verify_statement},
    succession::{self, SuccessionRefused},
};
use wattle_wire::{enrol::NewIdentity, key::IdentityKey};

use crate::{
    db::{node_records, site_records},
    error::{self, Error, Result},
    http::{
        auth::{self, RequestId},
        body::Body,
    },
    routes::{enrolment, rotation},
    state::{app::App, shares::Credential},
};

/// Replaces a node's identity. The former identity has signed for the new one.
///
/// The statement is the credential: only who has the present identity can make it. Tokens of the
/// one before are refused from then on, and its stream ends. It may be repeated. A WireGuard key
/// that the node has announced is not any more.
#[utoipa::path(post, path = "/agent/identity", tag = "agents", request_body = NewIdentity, responses((status = 204)))]
pub async fn succeed(
    State(app): State<App>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    extensions: Extensions,
    Body(NewIdentity {
        node,
        statement: signed,
    }): Body<NewIdentity>,
) -> Result<StatusCode> {
    let may_follow = |identity: IdentityKey| {
        let statement = verify_statement(&signed, app.settings.mesh).ok()?;
        is_or_was(&statement, identity).then_some(statement)
    };
    let verified = async {
        let present = app.mesh_cache.read(|feed| {
            feed.directory()
                .nodes
                .get(&node)
                .map(|record| record.identity_key)
        });
        Ok(present.and_then(may_follow))
    };
    let statement = &auth::unless_guessing(&app, auth::origin(&extensions), verified)
        .await?
        .ok_or_else(error::unauthorized)?;
    let _admitted = app.shares.of(Credential::Node(node)).admit().await?;
    let (actor, signed) = (app.node_actor(node, Some(request_id)), &signed);
    let changed = app.mutate(&actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let record = node_records::find(&mut change, node)
            .await?
            .ok_or_else(error::unauthorized)?;
        if record.statement == *signed {
            return Ok(change.unchanged(()));
        }
        // The cache may be older than the database.
        succession::may_succeed(&record, statement).map_err(|why| match why {
            SuccessionRefused::Stranger => error::unauthorized(),
            SuccessionRefused::Unmanaged
            | SuccessionRefused::Number(_)
            | SuccessionRefused::Unannounced
            | SuccessionRefused::SameIdentity
            | SuccessionRefused::OtherKey => rotation::refused(why),
        })?;
        if queries::is_former(&mut change, statement.identity).await? {
            return Err(enrolment::queries::key_taken().into());
        }
        queries::keep_former(&mut change, node, statement).await?;
        let after = rotation::queries::take_up(&mut change, &record, signed, statement)
            .await?
            .ok_or_else(error::unauthorized)?;
        change
            .changed_node((), "node.identity.change", &record, after)
            .await
    });
    let changed = changed.await.map_err(|error| match error.constraint() {
        Some("node_identity_key") => Error::from(enrolment::queries::key_taken()),
        _ => error,
    });
    changed?.done()?;
    Ok(StatusCode::NO_CONTENT)
}
