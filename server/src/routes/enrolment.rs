//! `/agent/enrol/…`: how a machine becomes a node.
//!
//! Nothing is kept between the two requests; whether the token is good is decided in the
//! transaction that inserts the node.

pub mod queries;

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::Extensions,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use uuid::Uuid;
use wattle_mesh::{
    audit::{Edit, Subject},
    config::directory::RecordChange,
    keys::enrolment::{self, ChallengePurpose},
};
use wattle_wire::{
    enrol::{EnrolFinish, EnrolStart, Enrolled, KeyChallenge},
    ids::{NodeId, TokenId},
    secret::Secret,
    webhook::NodeChange,
};

use self::queries::{Applicant, KeyHolders, Kind, NewNode};
use crate::{
    db::{AuditActor, audit_log, webhook_news},
    error::{self, Error, Result},
    http::{
        auth::{self, RequestId},
        body::Body,
        listen::Connection,
    },
    secret,
    state::{
        app::App,
        shares::{AdmittedRequest, Credential},
    },
    text,
};

/// The event of a join token that was good once, and that somebody else tries.
const REFUSED: &str = "join-token.refuse";

/// Asks for a challenge.
///
/// A token that is used up gets one, too: only the proof of the identity tells whether this is the
/// machine that used it.
#[utoipa::path(post, path = "/agent/enrol/start", tag = "agents", request_body = EnrolStart, responses((status = 200, body = KeyChallenge)))]
pub async fn start(
    State(app): State<App>,
    extensions: Extensions,
    Body(start): Body<EnrolStart>,
) -> Result<Response> {
    let _admitted = check_token(&app, &extensions, start.token, &start.secret).await?;
    let challenge = challenge(&app, ChallengePurpose::Enrolment)?;
    Ok(([("cache-control", "no-store")], Json(challenge)).into_response())
}

/// Lets in whoever has the secret of a join token, used up or not; anything else counts as a guess.
async fn check_token(
    app: &App,
    extensions: &Extensions,
    token: TokenId,
    secret: &Secret,
) -> Result<AdmittedRequest> {
    let share = app.shares.of(Credential::JoinToken(token));
    let admitted = share.admit().await?;
    let lookup = async {
        let stored = queries::secret_of(&mut *app.db.credentials().await?, token).await?;
        Ok(stored.filter(|stored| secret::matches(secret.reveal(), &stored.hash)))
    };
    let found = auth::unless_guessing(app, auth::origin(extensions), lookup)
        .await?
        .ok_or_else(error::join_token_refused)?;
    // Whoever may join is nobody to hang up on. One that is used up proves nothing.
    if found.is_good
        && let Some(connection) = extensions.get::<Arc<Connection>>()
    {
        connection.set_authenticated(&share);
    }
    Ok(admitted)
}

/// A challenge for whoever is to prove a WireGuard key.
pub(crate) fn challenge(app: &App, purpose: ChallengePurpose) -> Result<KeyChallenge> {
    loop {
        let nonce = enrolment::challenge_nonce(now_unix_s(), secret::random()?);
        let secret = &app.settings.challenge_secret;
        if let Some(challenge) = enrolment::challenge(purpose, secret, nonce) {
            return Ok(challenge);
        }
    }
}

/// Proves both keys and becomes a node. Repeated with the same token and keys, it gets the same
/// answer.
#[utoipa::path(post, path = "/agent/enrol/finish", tag = "agents", request_body = EnrolFinish, responses((status = 200, body = Enrolled)))]
pub async fn finish(
    State(app): State<App>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    extensions: Extensions,
    Body(finish): Body<EnrolFinish>,
) -> Result<Json<Enrolled>> {
    text::check("agent_version", &finish.agent_version)?;
    let statement = enrolment::check(
        &finish,
        app.settings.mesh,
        &app.settings.challenge_secret,
        now_unix_s(),
    )
    .map_err(|denied| error::proof_refused(denied.to_string()))?;
    let _admitted = check_token(&app, &extensions, finish.token, &finish.secret).await?;
    let applicant = Applicant {
        id: NodeId(Uuid::now_v7()),
        finish,
        statement,
    };
    let tunnel_prefix = app
        .mesh_cache
        .read(|feed| feed.directory().mesh.tunnel_prefix);
    let actor = AuditActor::join_token(applicant.finish.token, Some(request_id));
    let (applicant, mesh) = (&applicant, app.settings.mesh);
    let enrolled = app.mutate(&actor, |mut change| async move {
        let token = queries::lock_token(&mut change, applicant.finish.token)
            .await?
            .ok_or_else(error::join_token_refused)?;
        if !secret::matches(applicant.finish.secret.reveal(), &token.secret_hash) {
            return Err(error::join_token_refused().into());
        }
        let holders = KeyHolders::of(&mut change, &applicant.statement).await?;
        if let Some(enrolled) = holders.enrolled_by(&token, mesh) {
            return Ok(change.unchanged(Some(enrolled)));
        }
        if !queries::consume_token(&mut change, applicant.finish.token).await? {
            // Whoever has the secret had the join string, and is not who used it up. Said once,
            // however often it is tried.
            let used = applicant.finish.token;
            return match audit_log::is_told(&mut change, REFUSED, &used.to_string()).await? {
                true => Ok(change.unchanged(None)),
                false => {
                    let site = token.site_name;
                    let subject = Subject::new(used, &site).in_site(&site);
                    let outcome = change.changed(None, Vec::new(), REFUSED, subject);
                    Ok(outcome.by_site(&site))
                }
            };
        }
        holders.refuse()?;
        queries::refuse_endpoint_clash(&mut change, applicant, token.site).await?;
        let new = NewNode {
            id: applicant.id,
            site: token.site,
            site_name: &token.site_name,
            statement: &applicant.statement,
            signed: &applicant.finish.statement,
            endpoint: applicant.finish.endpoint,
            kind: Kind::Managed {
                agent_version: &applicant.finish.agent_version,
                join_token: Some(applicant.finish.token),
            },
        };
        let record = queries::insert(&mut change, &new, tunnel_prefix).await?;
        webhook_news::note_nodes(&mut change, &[record.id.0], NodeChange::Joined).await?;
        let site = &token.site_name;
        let enrolled = Enrolled {
            mesh,
            node: record.id,
            name: record.name.clone(),
            site: site.clone(),
            site_id: token.site,
            generation: record.generation,
        };
        let subject = Subject::node(site, Edit::Made(&record));
        let records = vec![RecordChange::Node(record)];
        let outcome = change.changed(Some(enrolled), records, "node.enrol", subject);
        Ok(outcome.by_site(site))
    });
    let enrolled = enrolled.await.map_err(explain)?.done()?;
    Ok(Json(enrolled.ok_or_else(error::join_token_refused)?))
}

fn explain(error: Error) -> Error {
    match error.constraint() {
        Some("node_identity_key" | "node_wireguard_key") => queries::key_taken().into(),
        Some("node_endpoint") => queries::endpoint_taken().into(),
        _ => error,
    }
}

pub(crate) fn now_unix_s() -> u64 {
    Utc::now().timestamp().try_into().unwrap_or_default()
}
