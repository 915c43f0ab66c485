//! `POST /nodes/readmit`: nodes that a restored database has lost and that gateways still have.

mod queries;

use axum::{Extension, extract::State, http::StatusCode};
use wattle_mesh::{
    audit::{Edit, Subject},
    config::directory::RecordChange,
    keys::enrolment::{has_number, verify_statement},
};
use wattle_wire::{
    admin::{NewReadmissions, Readmission},
    enrol::{SignedStatement, Statement},
    ids::MeshId,
    report::HeldPeer,
    webhook::NodeChange,
};

use super::enrolment::queries::{KeyHolders, Kind, NewNode, insert};
use crate::{
    db::{AuditActor, site_records, webhook_news},
    error::{self, Error, ErrorCode, Result},
    http::body::Body,
    mutation::Mutation,
    state::app::App,
};

/// The event of a node that is taken in again.
const READMIT: &str = "node.readmit";
/// What stands for the version of an agent until it joins again.
const UNKNOWN_VERSION: &str = "unknown";

/// Takes in again nodes that joined after the backup from which the database was restored.
///
/// All or none. Each has to be in `held` of a gateway as `lost`, with this identity. The node gets
/// its id back, and the newest statement that it signed and a gateway has; its own signature is all
/// that lets it in, so compare the identity with `wattle-agent status` there. Its site has to be
/// there under the name that it had. A node whose keys are another's, or were revoked, is refused,
/// and so is one whose removal an operator signed. Gateways with the lock go by the admission that
/// they have of it.
#[utoipa::path(post, path = "/nodes/readmit", tag = "nodes", request_body = NewReadmissions,
    responses((status = 204)))]
pub async fn readmit(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Body(NewReadmissions { nodes }): Body<NewReadmissions>,
) -> Result<Mutation<StatusCode>> {
    if !(1..=NewReadmissions::MOST).contains(&nodes.len()) {
        let most = NewReadmissions::MOST;
        return Err(error::invalid(
            ErrorCode::TooMany,
            "nodes",
            format!("give 1 to {most} nodes"),
        )
        .into());
    }
    let mesh = app.settings.mesh;
    let tunnel_prefix = app
        .mesh_cache
        .read(|feed| feed.directory().mesh.tunnel_prefix);
    // As `GET /nodes` tells it: what was said here may yet have to be written.
    let held = &app.reports.held();
    let nodes = &nodes;
    app.mutate(&actor, |mut change| async move {
        site_records::lock(&mut change).await?;
        let mut made = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let newest = newest(mesh, node, held);
            let (statement, signed, site) = newest.ok_or_else(|| {
                invalid(
                    index,
                    "no gateway holds a lost node of this id and identity",
                )
            })?;
            if queries::is_known(&mut change, node.node).await? {
                return Err(invalid(
                    index,
                    "the coordinator knows it, or an operator has signed its removal",
                ));
            }
            let site = queries::site(&mut change, site).await?;
            let site = site.ok_or_else(|| {
                invalid(
                    index,
                    "its site is not there: create it first, under its name",
                )
            })?;
            KeyHolders::of(&mut change, &statement).await?.refuse()?;
            let new = NewNode {
                id: node.node,
                site: site.id,
                site_name: &site.spec.name,
                statement: &statement,
                signed,
                endpoint: None,
                kind: Kind::Managed {
                    agent_version: UNKNOWN_VERSION,
                    join_token: None,
                },
            };
            let record = insert(&mut change, &new, tunnel_prefix).await?;
            webhook_news::note_nodes(&mut change, &[record.id.0], NodeChange::Joined).await?;
            made.push((record, site));
        }
        let mut subjects = made
            .iter()
            .map(|(record, site)| Subject::node(&site.spec.name, Edit::Made(record)));
        let Some(first) = subjects.next() else {
            return Ok(change.unchanged(()));
        };
        let record = |(record, _): &(_, _)| RecordChange::Node(Clone::clone(record));
        let outcome = change.changed((), made.iter().map(record).collect(), READMIT, first);
        let mut others = subjects.zip(&made[1..]);
        others.try_fold(outcome, |outcome, (subject, made)| {
            outcome.and_event(READMIT, subject, Some(record(made)))
        })
    })
    .await
    .map(|done| done.map(|()| StatusCode::NO_CONTENT))
}

/// The newest statement of a lost node that a gateway has, and the name of its site.
fn newest<'h>(
    mesh: MeshId,
    node: &Readmission,
    held: &'h [HeldPeer],
) -> Option<(Statement, &'h SignedStatement, &'h str)> {
    let held = held
        .iter()
        .filter(|peer| (peer.node, peer.identity) == (node.node, node.identity));
    let signed = held.filter_map(|peer| {
        let lost = peer.lost.as_ref()?;
        let statement = verify_statement(&lost.statement, mesh).ok()?;
        let is_its =
            statement.identity == node.identity && !statement.unmanaged && has_number(&statement);
        is_its.then_some((statement, &lost.statement, lost.site_name.as_str()))
    });
    signed.max_by_key(|(statement, ..)| statement.sequence)
}

fn invalid(index: usize, detail: &str) -> Error {
    error::invalid(
        ErrorCode::InvalidReadmission,
        format!("nodes[{index}]"),
        detail,
    )
    .into()
}
