//! SQL that notes what webhooks are to be told, in the transaction that changes it.

use sqlx::PgConnection;
use uuid::Uuid;
use wattle_mesh::health::alert::LinkMove;
use wattle_wire::webhook::NodeChange;

use crate::error::Result;

/// Notes links that changed, if there is anybody to tell.
pub async fn note(connection: &mut PgConnection, moves: &[LinkMove]) -> Result<()> {
    let (first, second): (Vec<Uuid>, Vec<Uuid>) = moves
        .iter()
        .map(|link| (link.ends[0].0, link.ends[1].0))
        .unzip();
    let (before, after): (Vec<_>, Vec<_>) = moves
        .iter()
        .map(|link| (link.before.name(), link.after.name()))
        .unzip();
    sqlx::query!(
        "INSERT INTO webhook_news (a, b, before, after)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) WHERE EXISTS (SELECT \
         FROM webhooks)",
        &first,
        &second,
        &before as _,
        &after as _
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes what became of nodes, if there is anybody to tell.
pub async fn note_nodes(
    connection: &mut PgConnection,
    nodes: &[Uuid],
    change: NodeChange,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO webhook_news (a, name, after)
         SELECT id, name, $2 FROM nodes WHERE id = ANY($1) AND EXISTS (SELECT FROM webhooks) ORDER \
         BY id",
        nodes,
        change as NodeChange
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes which nodes became silent, that is, for so many seconds, and which are back; of several
/// coordinators one does. `silent` are those that may be: nobody is who was not listened to.
pub async fn note_silence(
    connection: &mut PgConnection,
    silent: &[Uuid],
    after_s: i64,
) -> Result<()> {
    let turned = sqlx::query!(
        "WITH turned AS (
             SELECT node FROM node_reports
             WHERE CASE WHEN silent THEN at >= now() - interval '1 second' * $2::bigint
                        ELSE node = ANY($1) AND at < now() - interval '1 second' * $2::bigint END
             ORDER BY node FOR UPDATE SKIP LOCKED)
         UPDATE node_reports SET silent = NOT silent FROM turned WHERE node_reports.node = \
         turned.node
         RETURNING node_reports.node, silent",
        silent,
        after_s
    );
    let turned = turned.fetch_all(&mut *connection).await?;
    let turned = turned.into_iter().map(|row| (row.node, row.silent));
    note_turned(connection, turned, [NodeChange::Back, NodeChange::Silent]).await
}

/// Notes of which nodes the LANs became degraded, or are not any more. `degraded` says of each
/// whether they are.
pub async fn note_lans(
    connection: &mut PgConnection,
    nodes: &[Uuid],
    degraded: &[bool],
) -> Result<()> {
    let turned = sqlx::query!(
        r#"WITH turned AS (
             SELECT node, degraded
             FROM node_reports JOIN unnest($1::uuid[], $2::boolean[]) AS said(node, degraded) USING (node)
             WHERE lan_degraded <> degraded
             ORDER BY node FOR UPDATE OF node_reports)
         UPDATE node_reports SET lan_degraded = degraded FROM turned
         WHERE node_reports.node = turned.node
         RETURNING node_reports.node, lan_degraded"#,
        nodes,
        degraded
    );
    let turned = turned.fetch_all(&mut *connection).await?;
    let turned = turned.into_iter().map(|row| (row.node, row.lan_degraded));
    let changes = [NodeChange::LanOk, NodeChange::LanDegraded];
    note_turned(connection, turned, changes).await
}

/// Notes what became of nodes that turned: the first where something is not so any more, the second
/// where it is.
async fn note_turned(
    connection: &mut PgConnection,
    turned: impl Iterator<Item = (Uuid, bool)>,
    [ended, began]: [NodeChange; 2],
) -> Result<()> {
    let (on, off): (Vec<_>, Vec<_>) = turned.partition(|(_, is_so)| *is_so);
    for (change, nodes) in [(began, on), (ended, off)] {
        let nodes: Vec<_> = nodes.into_iter().map(|(node, _)| node).collect();
        if !nodes.is_empty() {
            note_nodes(connection, &nodes, change).await?;
        }
    }
    Ok(())
}
