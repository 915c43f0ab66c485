//! `POST /sites/{site}/wg-quick`: gateways without an agent, which take a file.

mod queries;
mod seal;

use anyhow::Context;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::{Extension, Json, extract::State, response::Response};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::{
    audit::{Edit, Subject},
    config::{
        directory::{Directory, NodeRecord, RecordChange, SiteRecord, Unmanaged},
        wg_quick::{Files, PrivateKey, WgQuick},
    },
    keys::{
        enrolment::sign_statement,
        psk::{Psk, given::Given},
    },
};
use wattle_wire::{
    admin::{CreatedWgQuick, NewWgQuick},
    enrol::Statement,
    ids::{NodeId, SiteId},
    key::{Bytes32, IdentityKey, WireguardKey},
    problem::ProblemDetails,
    webhook::NodeChange,
};

use crate::{
    db::{AuditActor, webhook_news},
    error::{self, Error, ErrorCode, Result},
    http::{body::Body, path::Path},
    mutation::{self, Mutation},
    routes::{
        enrolment::queries::{self as enrolment, KeyHolders, Kind, NewNode},
        mailbox,
    },
    secret,
    state::{app::App, mesh_cache, representation},
    tasks,
};

/// Makes the wg-quick file of a site whose gateway has no agent: a router, a phone, a cloud
/// appliance.
///
/// The first time it also makes the site's node, with the gateway's own public key or a pair of
/// which only the file has the private half. Asked again, it makes another file for the same node,
/// with other preshared keys and the same WireGuard key; the gateway's tunnels work with the one
/// before until that is replaced. A file is shown this once.
#[utoipa::path(post, path = "/sites/{site}/wg-quick", tag = "unmanaged \
    sites", params(("site" = String, Path, description = "id or name")),
    request_body = NewWgQuick, responses((status = 201, body = CreatedWgQuick, headers(("Location" = String, description = "path of the node")))))]
pub async fn create(
    State(app): State<App>,
    Extension(actor): Extension<AuditActor>,
    Path(site): Path<String>,
    Body(NewWgQuick { wireguard_key }): Body<NewWgQuick>,
) -> Result<Mutation<Response>> {
    let (app, site) = (&app, app.find_site(&site)?);
    let created = app.mutate(&actor, |mut change| async move {
        queries::lock(&mut change, site).await?;
        let (_, mut directory) = mesh_cache::queries::directory(&mut change).await?;
        let record = directory
            .sites
            .get(&site)
            .ok_or_else(|| error::not_found("site"))?;
        change.check_precondition(&representation::site_in(&directory, record))?;
        let site_name = record.spec.name.clone();
        let before = gateway(&directory, site, wireguard_key)?;
        let (node, private_key) = match before.clone() {
            Some(node) => (node, None),
            None => insert(&mut change, &directory, record, wireguard_key).await?,
        };
        directory.apply(&RecordChange::Node(node.clone()));
        let file = WgQuick::of(&directory, node.id).context("an unmanaged node has no file")?;
        let made = Unmanaged {
            file_made_at: later_than(node.unmanaged.as_ref()),
            file_digest: file.digest().context("a file cannot be written")?,
        };
        queries::update(&mut change, node.id, &made).await?;
        let psks = give(&mut change, app, &node, &made, &file).await?;
        let written = file.write(&node, &made, private_key.as_ref(), &psks);
        let (made_at, node) = (
            made.file_made_at,
            NodeRecord {
                unmanaged: Some(made),
                ..node
            },
        );
        directory.apply(&RecordChange::Node(node.clone()));
        let shown = representation::node_in(&app.reports, &Files::of(&directory), &node)
            .context("an unmanaged node without its site")?;
        let created = CreatedWgQuick {
            node: shown,
            made_at,
            file: written,
        };
        let edit = match &before {
            Some(before) => Edit::Changed {
                before,
                after: &node,
            },
            None => Edit::Made(&node),
        };
        let subject = Subject::node(&site_name, edit);
        let records = vec![RecordChange::Node(node)];
        Ok(change.changed(created, records, "wg-quick.create", subject))
    });
    let created = created.await.map_err(|error| match error.constraint() {
        Some("node_wireguard_key") => key_of_another(enrolment::key_taken().into()),
        _ => error,
    })?;
    if let Mutation::Done(_) = created {
        tasks::mailbox::tell(app).await;
    }
    Ok(created.map(|created| {
        let location = format!("/nodes/{}", created.node.id);
        mutation::created(location, Json(created))
    }))
}

/// The unmanaged node of a site; `None` if it has no node at all.
fn gateway(
    directory: &Directory,
    site: SiteId,
    wanted: Option<WireguardKey>,
) -> Result<Option<NodeRecord>> {
    let mut nodes = directory.nodes_of(site).peekable();
    if nodes.peek().is_none() {
        return Ok(None);
    }
    let Some(node) = nodes.find(|node| node.unmanaged.is_some()) else {
        let detail = "an agent runs on the gateway of this site, so it needs no file. To use a \
            file instead, remove the site's nodes first";
        return Err(error::taken(ErrorCode::HasGateway, "site", detail, None).into());
    };
    if wanted.is_some_and(|wanted| wanted != node.wireguard_key) {
        let detail = format!(
            "{} has the key {}, and its peers know it by that key. To change it, remove the node \
             (`DELETE /nodes/{}`) and ask again",
            node.name, node.wireguard_key, node.name
        );
        return Err(error::taken(ErrorCode::HasGateway, "wireguard_key", detail, None).into());
    }
    Ok(Some(node.clone()))
}

/// Makes the node of a site. Its identity signs this one statement and is forgotten, so that nobody
/// can ever make another.
async fn insert(
    connection: &mut PgConnection,
    directory: &Directory,
    site: &SiteRecord,
    wireguard_key: Option<WireguardKey>,
) -> Result<(NodeRecord, Option<PrivateKey>)> {
    let unusable = "a key cannot be made";
    let (wireguard_key, private_key) = match wireguard_key {
        Some(key) => (key, None),
        None => {
            let (private_key, key) = PrivateKey::of(secret::random()?).context(unusable)?;
            (key, Some(private_key))
        }
    };
    let pair = Ed25519KeyPair::generate().context(unusable)?;
    let identity: [u8; 32] = pair.public_key().as_ref().try_into().context(unusable)?;
    let identity = IdentityKey::from(identity);
    let statement = Statement {
        mesh: directory.mesh.id,
        identity,
        wireguard_key,
        sequence: 1,
        predecessors: vec![],
        unmanaged: true,
    };
    let signed = &sign_statement(&statement, &pair).context(unusable)?;
    KeyHolders::of(connection, &statement)
        .await?
        .refuse()
        .map_err(key_of_another)?;
    // What its file says is known only once the node has its place.
    let file = Unmanaged {
        file_made_at: DateTime::UNIX_EPOCH,
        file_digest: Bytes32::from([0; 32]),
    };
    let id = NodeId(Uuid::now_v7());
    let new = NewNode {
        id,
        site: site.id,
        site_name: &site.spec.name,
        statement: &statement,
        signed,
        endpoint: None,
        kind: Kind::Unmanaged(&file),
    };
    let node = enrolment::insert(connection, &new, directory.mesh.tunnel_prefix).await?;
    webhook_news::note_nodes(connection, &[id.0], NodeChange::Joined).await?;
    Ok((node, private_key))
}

/// Makes a preshared key for each peer in a file, and leaves it there sealed.
async fn give(
    connection: &mut PgConnection,
    app: &App,
    node: &NodeRecord,
    made: &Unmanaged,
    file: &WgQuick,
) -> Result<Vec<Psk>> {
    let made_ms = made.file_made_at.timestamp_millis().cast_unsigned();
    let (mut psks, mut sealed) = (
        Vec::with_capacity(file.peers.len()),
        Vec::with_capacity(file.peers.len()),
    );
    for peer in &file.peers {
        let psk = Psk::new(secret::random()?);
        let from = (node.id, node.wireguard_key);
        let given = Given {
            mesh: app.settings.mesh,
            from,
            to: (peer.node, peer.wireguard_key),
            made_ms,
        };
        sealed.push((
            peer.node,
            seal::seal(&given, &psk).context("a preshared key cannot be sealed")?,
        ));
        psks.push(psk);
    }
    mailbox::queries::give(connection, node.id, made_ms, &sealed).await?;
    Ok(psks)
}

/// Now, to the millisecond, or as soon after the file before as can be told: the newest counts,
/// whatever the clocks of coordinators say.
fn later_than(before: Option<&Unmanaged>) -> DateTime<Utc> {
    let now = Utc::now().trunc_subsecs(3);
    before.map_or(now, |before| {
        now.max(before.file_made_at + TimeDelta::milliseconds(1))
    })
}

/// Says of a problem with the key that it is about the one that was given.
fn key_of_another(error: Error) -> Error {
    let Error::Refused(problem) = error else {
        return error;
    };
    ProblemDetails {
        field: Some("wireguard_key".to_owned()),
        ..*problem
    }
    .into()
}
