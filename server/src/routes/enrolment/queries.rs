//! SQL of enrolment.

use std::net::IpAddr;

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::config::directory::{NodeRecord, Unmanaged};
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{EnrolFinish, Enrolled, SignedStatement, Statement},
    ids::{MeshId, NodeId, SiteId, TokenId},
    name::Name,
    problem::{Holder, ProblemDetails},
};

use crate::{
    db::{node_records, site_records},
    error::{self, Error, ErrorCode, Result},
    routes::{nodes::naming, sites},
};

/// A node that is about to be, of the site in which it will be.
#[derive(Debug)]
pub(crate) struct NewNode<'n> {
    pub(crate) id: NodeId,
    pub(crate) site: SiteId,
    pub(crate) site_name: &'n Name,
    pub(crate) statement: &'n Statement,
    pub(crate) signed: &'n SignedStatement,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) kind: Kind<'n>,
}

/// What is known of a node beside its keys.
#[derive(Debug)]
pub(crate) enum Kind<'n> {
    Managed {
        agent_version: &'n str,
        /// `None` for one that a restored database has lost.
        join_token: Option<TokenId>,
    },
    Unmanaged(&'n Unmanaged),
}

/// A machine whose proofs hold, and the id it gets should it become a node.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) id: NodeId,
    pub(super) finish: EnrolFinish,
    pub(super) statement: Statement,
}

/// A join token that was not revoked.
pub(super) struct Token {
    id: TokenId,
    pub(super) secret_hash: Vec<u8>,
    pub(super) site: SiteId,
    pub(super) site_name: Name,
}

/// What the secret of a join token is judged by.
pub(super) struct JoinSecret {
    pub(super) hash: Vec<u8>,
    /// It is good for one more machine now.
    pub(super) is_good: bool,
}

pub(super) async fn secret_of(
    connection: &mut PgConnection,
    token: TokenId,
) -> Result<Option<JoinSecret>> {
    let stored = sqlx::query_as!(
        JoinSecret,
        r#"SELECT secret_hash AS hash, uses_left > 0 AND expires_at > now() AS "is_good!"
           FROM join_tokens WHERE id = $1 AND revoked_at IS NULL"#,
        token.0
    );
    Ok(stored.fetch_optional(connection).await?)
}

/// Reads a token, and lets nobody else use it nor enrol for its site until this transaction ends.
pub(super) async fn lock_token(
    connection: &mut PgConnection,
    token: TokenId,
) -> Result<Option<Token>> {
    let row = sqlx::query!(
        r#"SELECT secret_hash, sites.id AS site, sites.name AS "site_name: Name"
           FROM join_tokens JOIN sites ON sites.id = join_tokens.site
           WHERE join_tokens.id = $1 AND revoked_at IS NULL
           FOR UPDATE OF join_tokens FOR NO KEY UPDATE OF sites"#,
        token.0
    );
    let row = row.fetch_optional(connection).await?;
    Ok(row.map(|row| Token {
        id: token,
        secret_hash: row.secret_hash,
        site: SiteId(row.site),
        site_name: row.site_name,
    }))
}

/// Takes one use of a token; `false` when there is none left or it has expired, by the database's
/// clock.
pub(super) async fn consume_token(connection: &mut PgConnection, token: TokenId) -> Result<bool> {
    let consumed = sqlx::query!(
        "UPDATE join_tokens SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0 AND \
         expires_at > now() AND revoked_at IS NULL",
        token.0
    );
    Ok(consumed.execute(connection).await?.rows_affected() == 1)
}

/// The nodes that have or had a key of a statement, revoked ones among them.
pub(crate) struct KeyHolders(Vec<KeyHolder>);

struct KeyHolder {
    id: NodeId,
    name: Name,
    state: String,
    generation: i32,
    join_token: Option<Uuid>,
    /// It has both keys now, and not only one of them.
    has_both: bool,
}

impl KeyHolders {
    pub(crate) async fn of(connection: &mut PgConnection, statement: &Statement) -> Result<Self> {
        let nodes = sqlx::query_as!(
            KeyHolder,
            r#"SELECT id, name AS "name: Name", state, generation, join_token, identity_key = $1 AND wireguard_key = $2 AS "has_both!" FROM nodes
               WHERE identity_key = $1 OR $2 IN (wireguard_key, announced_key)
                   OR id = (SELECT node FROM former_identities WHERE identity_key = $1)
                   OR id = (SELECT node FROM former_keys WHERE wireguard_key = $2)"#,
            statement.identity.as_bytes(),
            statement.wireguard_key.as_bytes()
        );
        Ok(Self(nodes.fetch_all(connection).await?))
    }

    /// The answer that a machine with these keys already got for this token.
    pub(super) fn enrolled_by(&self, token: &Token, mesh: MeshId) -> Option<Enrolled> {
        let node = self.0.iter().find(|node| {
            node.has_both && node.state != "revoked" && node.join_token == Some(token.id.0)
        })?;
        Some(Enrolled {
            mesh,
            node: node.id,
            name: node.name.clone(),
            site: token.site_name.clone(),
            site_id: token.site,
            generation: node.generation,
        })
    }

    /// Refuses the keys of other nodes, and of nodes that were revoked.
    pub(crate) fn refuse(&self) -> Result<()> {
        match &self.0[..] {
            [] => Ok(()),
            nodes if nodes.iter().any(|node| node.state == "revoked") => {
                Err(error::key_revoked().into())
            }
            _ => Err(key_taken().into()),
        }
    }
}

/// Refuses an endpoint that lies in a subnet or is somebody else's.
pub(super) async fn refuse_endpoint_clash(
    connection: &mut PgConnection,
    applicant: &Applicant,
    site: SiteId,
) -> Result<()> {
    let Some(endpoint) = applicant.finish.endpoint else {
        return Ok(());
    };
    site_records::lock(connection).await?;
    if let Some(problem) = sites::queries::endpoint_in_foreign_subnet(connection, endpoint).await? {
        return Err(problem.into());
    }
    let holder = sqlx::query_scalar!(
        "SELECT name FROM sites WHERE endpoint_address = $1 AND endpoint_port = $2 AND id <> $3",
        IpNet::from(endpoint.socket().ip()),
        i32::from(endpoint.socket().port()),
        site.0
    );
    match holder.fetch_optional(connection).await? {
        Some(site) => Err(ProblemDetails {
            holder: Some(Holder {
                site,
                holds: endpoint.to_string(),
            }),
            ..endpoint_taken()
        }
        .into()),
        None => Ok(()),
    }
}

pub(crate) async fn insert(
    connection: &mut PgConnection,
    new: &NewNode<'_>,
    tunnel_prefix: Ipv4Net,
) -> Result<NodeRecord> {
    let NewNode {
        id,
        site,
        site_name,
        statement,
        signed,
        endpoint,
        ref kind,
    } = *new;
    let name = naming::free_name(connection, (site, site_name), id).await?;
    let (agent, file) = match *kind {
        Kind::Managed {
            agent_version,
            join_token,
        } => (Some((agent_version, join_token)), None),
        Kind::Unmanaged(file) => (None, Some(file)),
    };
    let (address, port) = site_records::endpoint_columns(endpoint);
    sqlx::query!(
        "INSERT INTO nodes (id, site, name, state, identity_key, wireguard_key, statement, \
         statement_signature, endpoint_address,
                            endpoint_port, endpoint_verified, generation, agent_version, \
                            join_token, file_made_at, file_digest, highest_sequence)
         VALUES ($1, $2, $3, CASE WHEN EXISTS (SELECT FROM nodes WHERE site = $2 AND state = \
         'active') THEN 'standby' ELSE 'active' END,
                 $4, $5, $6, $7, $8, $9, $10, 1, $11, $12, $13, $14, $15)",
        id.0,
        site.0,
        name.as_str(),
        statement.identity.as_bytes(),
        statement.wireguard_key.as_bytes(),
        signed.statement,
        signed.signature.as_bytes(),
        address,
        port,
        endpoint.is_none(),
        agent.map(|(version, _)| version),
        agent.and_then(|(_, token)| Some(token?.0)),
        file.map(|file| file.file_made_at),
        file.map(|file| file.file_digest.as_bytes().as_slice()),
        statement.sequence.cast_signed()
    )
    .execute(&mut *connection)
    .await?;
    let own = sqlx::query!(
        "UPDATE tunnel_addresses SET node = $1 WHERE site = $2 AND own AND node IS NULL",
        id.0,
        site.0
    );
    if own.execute(&mut *connection).await?.rows_affected() == 0 {
        site_records::lock(connection).await?;
        let address = sites::queries::free_addresses(connection, tunnel_prefix, 1).await?[0];
        sqlx::query!(
            "INSERT INTO tunnel_addresses (address, site, node, own) VALUES ($1, $2, $3, false)",
            IpNet::from(IpAddr::V4(address)),
            site.0,
            id.0
        )
        .execute(&mut *connection)
        .await?;
    }
    node_records::find(connection, id)
        .await?
        .context("a node that was just inserted is not there")
        .map_err(Error::from)
}

pub(crate) fn key_taken() -> ProblemDetails {
    error::taken(
        ErrorCode::KeyTaken,
        "statement",
        "another node has this key; make new keys on each machine",
        None,
    )
}

pub(super) fn endpoint_taken() -> ProblemDetails {
    error::taken(
        ErrorCode::EndpointTaken,
        "endpoint",
        "another gateway has this endpoint",
        None,
    )
}
