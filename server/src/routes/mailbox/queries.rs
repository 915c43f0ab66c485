//! SQL of letters between nodes.

use std::collections::BTreeMap;

use anyhow::anyhow;
use sqlx::PgConnection;
use uuid::Uuid;
use wattle_wire::{
    ids::NodeId,
    key::{SealedPsk, Signature},
    psk::{GivenPsk, IncomingMessage, MailboxRequest, MailboxResponse, SignedPskMessage},
};

use crate::error::Result;

/// Takes letters away that are for this node, by their senders in order.
pub(super) async fn take(
    connection: &mut PgConnection,
    recipient: NodeId,
    ids: &[i64],
) -> Result<()> {
    sqlx::query!(
        "DELETE FROM psk_messages WHERE id IN (
             SELECT id FROM psk_messages WHERE recipient = $1 AND id = ANY($2)
             ORDER BY sender FOR UPDATE) AND recipient = $1",
        recipient.0,
        ids
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Leaves letters, each in the place of an earlier one to the same node, by their recipients in
/// order. Returns their numbers.
pub(super) async fn leave(
    connection: &mut PgConnection,
    sender: NodeId,
    letters: &BTreeMap<NodeId, SignedPskMessage>,
) -> Result<Vec<(NodeId, i64)>> {
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let recipients: Vec<Uuid> = letters.keys().map(|recipient| recipient.0).collect();
    let messages: Vec<_> = letters
        .values()
        .map(|signed| signed.message.to_string())
        .collect();
    let signatures: Vec<_> = letters
        .values()
        .map(|signed| signed.signature.as_bytes().to_vec())
        .collect();
    let rows = sqlx::query!(
        "INSERT INTO psk_messages (sender, recipient, message, signature)
         SELECT $1, * FROM unnest($2::uuid[], $3::text[], $4::bytea[])
         ON CONFLICT (sender, recipient) DO UPDATE
         SET id = DEFAULT, message = excluded.message, signature = excluded.signature, posted_at = \
         now()
         RETURNING recipient, id",
        sender.0,
        &recipients,
        &messages,
        &signatures
    );
    Ok(rows
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| (NodeId(row.recipient), row.id))
        .collect())
}

/// Leaves preshared keys of the tunnels of an unmanaged node, each in the place of an earlier one
/// for the same node.
pub(crate) async fn give(
    connection: &mut PgConnection,
    sender: NodeId,
    made_ms: u64,
    sealed: &[(NodeId, SealedPsk)],
) -> Result<()> {
    let (recipients, sealed): (Vec<_>, Vec<_>) = sealed
        .iter()
        .map(|(to, sealed)| (to.0, sealed.as_bytes().to_vec()))
        .unzip();
    sqlx::query!(
        "INSERT INTO psk_messages (sender, recipient, sealed, made_ms)
         SELECT $1, recipient, sealed, $4 FROM unnest($2::uuid[], $3::bytea[]) AS given(recipient, \
         sealed)
         JOIN nodes ON nodes.id = recipient AND state <> 'revoked' ORDER BY recipient
         ON CONFLICT (sender, recipient) DO UPDATE
         SET id = DEFAULT, sealed = excluded.sealed, made_ms = excluded.made_ms, posted_at = now()",
        sender.0,
        &recipients,
        &sealed,
        made_ms.cast_signed()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The oldest letters and given keys for a node.
pub(super) async fn waiting(
    connection: &mut PgConnection,
    recipient: NodeId,
) -> Result<MailboxResponse> {
    let most = i64::try_from(MailboxRequest::MOST_MESSAGES).unwrap_or(i64::MAX);
    let rows = sqlx::query!(
        r#"SELECT id, sender, message, signature AS "signature: Signature",
                  sealed AS "sealed: SealedPsk", made_ms
           FROM psk_messages WHERE recipient = $1 ORDER BY id LIMIT $2"#,
        recipient.0,
        most + 1
    );
    let mut rows = rows.fetch_all(connection).await?;
    let more = rows.len() > MailboxRequest::MOST_MESSAGES;
    rows.truncate(MailboxRequest::MOST_MESSAGES);
    let mut mail = MailboxResponse {
        more,
        ..MailboxResponse::default()
    };
    for row in rows {
        let (id, from) = (row.id, NodeId(row.sender));
        match (row.message, row.signature, row.sealed, row.made_ms) {
            (Some(message), Some(signature), None, None) => {
                let message = SignedPskMessage {
                    message: message.into(),
                    signature,
                };
                mail.messages.push(IncomingMessage { id, from, message });
            }
            (None, None, Some(sealed), Some(made_ms)) => {
                mail.given.push(GivenPsk {
                    id,
                    from,
                    made_ms: made_ms.cast_unsigned(),
                    sealed,
                });
            }
            _ => return Err(anyhow!("a letter in the database is not valid").into()),
        }
    }
    Ok(mail)
}

/// How many letters wait.
pub async fn count(connection: &mut PgConnection) -> Result<i64> {
    Ok(
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM psk_messages"#)
            .fetch_one(connection)
            .await?,
    )
}
