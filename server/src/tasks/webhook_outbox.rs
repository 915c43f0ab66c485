//! Tells webhooks of links and nodes that change their state.
//!
//! What changes is noted in the transaction that changes a node or writes the history of links, so
//! it is noted once however many coordinators there are. Once nothing more comes, or after half a
//! minute, it becomes one message to each webhook; whichever coordinator is first sends it.

pub mod queries;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, ensure};
use aws_lc_rs::hmac;
use axum::http::header;
use chrono::Utc;
use futures_util::{StreamExt, stream::FuturesUnordered};
use reqwest::{Client, Url, redirect};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};
use uuid::Uuid;
use wattle_mesh::{
    config::view,
    health::{
        alert::{self, LinkMove},
        receiver::may_send_to,
    },
};
use wattle_wire::{
    ids::{NodeId, WebhookId},
    name::Name,
    secret::Secret,
    text::is_unseen,
    webhook::{Alert, Message, SIGNATURE_HEADER},
};

use self::queries::{Delivery, News};
use crate::{error::Result, state::app::App};

/// How often it is looked what there is to tell and to send.
const PACE: Duration = Duration::from_secs(1);
/// How long a webhook may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(3);
/// Alerts in one message.
const MOST_ALERTS: usize = 100;
/// Bytes of a URL.
const LONGEST_URL: usize = 2_048;
/// Characters of an error that are kept.
const LONGEST_ERROR: usize = 200;

/// Tells webhooks of what changes, for as long as the coordinator runs.
pub async fn follow(app: &App) {
    tokio::join!(tell_on(app), deliver_on(app));
}

async fn tell_on(app: &App) {
    loop {
        sleep(PACE).await;
        if let Err(error) = tell(app).await {
            tracing::debug!(%error, "cannot prepare messages to webhooks now");
        }
    }
}

/// Sends what is due: to all webhooks side by side, to each one message after the other.
async fn deliver_on(app: &App) {
    let (mut busy, mut under_way) = (BTreeSet::new(), FuturesUnordered::new());
    loop {
        match lease(app, &busy).await {
            Ok(Some(delivery)) => {
                busy.insert(delivery.webhook);
                under_way.push(deliver(app, delivery));
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot send to webhooks now"),
        }
        tokio::select! {
            Some((webhook, noted)) = under_way.next() => {
                busy.remove(&webhook);
                if let Err(error) = noted {
                    tracing::debug!(%error, "cannot note what came of a message to a webhook");
                }
            }
            () = sleep(PACE) => {}
        }
    }
}

/// Makes messages of what changed.
async fn tell(app: &App) -> Result<()> {
    let mut transaction = app.db.follow().await?;
    let News { links, nodes } = queries::take_news(&mut transaction).await?;
    if links.is_empty() && nodes.is_empty() {
        return Ok(());
    }
    let mut alerts = grouped(app, &links);
    alerts.extend(alert::group_nodes(&nodes));
    if !alerts.is_empty() {
        let message = message(app, alerts);
        let body = serde_json::to_string(&message).context("a message cannot be written")?;
        queries::enqueue(&mut transaction, &body).await?;
    }
    Ok(transaction.commit().await?)
}

fn grouped(app: &App, moves: &[LinkMove]) -> Vec<Alert> {
    app.mesh_cache.read(|feed| {
        let directory = feed.directory();
        let about = |node: NodeId| -> Option<(Name, usize)> {
            let links = directory
                .nodes
                .keys()
                .filter(|other| view::linked(directory, node, **other))
                .count();
            Some((directory.nodes.get(&node)?.name.clone(), links))
        };
        alert::group(moves, about)
    })
}

pub fn message(app: &App, mut alerts: Vec<Alert>) -> Message {
    let summary = alert::summary(&alerts);
    let more = alerts.len().saturating_sub(MOST_ALERTS);
    alerts.truncate(MOST_ALERTS);
    Message {
        id: Uuid::now_v7(),
        mesh: app.settings.mesh,
        at: Utc::now(),
        summary,
        alerts,
        more,
    }
}

/// The next message that is due to a webhook which has none under way.
async fn lease(app: &App, busy: &BTreeSet<WebhookId>) -> Result<Option<Delivery>> {
    let mut transaction = app.db.follow().await?;
    let delivery = queries::lease(&mut transaction, busy).await?;
    transaction.commit().await?;
    Ok(delivery)
}

/// Sends a message, and notes what came of it.
async fn deliver(app: &App, delivery: Delivery) -> (WebhookId, Result<()>) {
    let webhook = delivery.webhook;
    let sent = send(app, &delivery.url, webhook, &delivery.body).await;
    (webhook, note(app, &delivery, sent).await)
}

async fn note(app: &App, delivery: &Delivery, sent: anyhow::Result<()>) -> Result<()> {
    let Delivery {
        id,
        webhook,
        attempts,
        ..
    } = delivery;
    let mut transaction = app.db.follow().await?;
    let error = sent.as_ref().err().map(words);
    queries::attempted(&mut transaction, *webhook, error.as_deref()).await?;
    match error {
        None => queries::done(&mut transaction, *id).await?,
        Some(error) if *attempts >= queries::MOST_ATTEMPTS => {
            tracing::warn!(%webhook, "gave up a message to a webhook: {error}");
            queries::done(&mut transaction, *id).await?;
        }
        Some(_) => {}
    }
    Ok(transaction.commit().await?)
}

/// Posts a body, signed. The URL is in no error: it may hold a secret.
pub async fn send(app: &App, url: &str, webhook: WebhookId, body: &str) -> anyhow::Result<()> {
    let url = parse(url)?;
    let addresses = addresses(&url, app).await?;
    let host = url.host_str().context("the URL names no host")?.to_owned();
    // A redirect could lead anywhere, and so could a proxy or a name that is resolved once more.
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .timeout(PATIENCE)
        .resolve_to_addrs(&host, &addresses);
    let (at, secret) = (Utc::now().timestamp(), secret(app, webhook));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes());
    let signature = hex::encode(hmac::sign(&key, format!("{at}.{body}").as_bytes()));
    let request = client
        .build()?
        .post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_owned());
    let answer = request
        .header(SIGNATURE_HEADER, format!("t={at},v1={signature}"))
        .send()
        .await
        .map_err(reqwest::Error::without_url)?;
    ensure!(
        answer.status().is_success(),
        "it answered {}",
        answer.status()
    );
    Ok(())
}

/// Where a URL must not lead.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} is no public address, or one of a coordinator: start each coordinator with \
     --webhook-allow {0} if messages are to go there"
)]
pub struct RefusedAddress(IpAddr);

/// Reads a URL. What is kept of it is its canonical text, which is printable ASCII.
pub fn parse(text: &str) -> anyhow::Result<Url> {
    // A URL is read without some of these, and shown to people with them.
    ensure!(
        !text.contains(is_unseen),
        "no line breaks, control characters or invisible characters"
    );
    let url = Url::parse(text)
        .ok()
        .context("not a URL; it is written https://host/path")?;
    let longest = text.len().max(url.as_str().len());
    ensure!(longest <= LONGEST_URL, "at most {LONGEST_URL} bytes");
    ensure!(
        ["https", "http"].contains(&url.scheme()),
        "it must begin with https:// or http://"
    );
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "it must not contain a user or a password"
    );
    ensure!(url.host_str().is_some(), "it must name a host");
    Ok(url)
}

/// What may be told of a URL: the rest of it may be all that it takes to post there.
pub fn origin(text: &str) -> Result<String> {
    let url = parse(text).context("a URL in the database is not valid")?;
    Ok(url.origin().ascii_serialization())
}

/// Where a URL leads now; an error if any of that is refused.
pub async fn addresses(url: &Url, app: &App) -> anyhow::Result<Vec<SocketAddr>> {
    let (host, port) = (
        url.host_str().context("the URL names no host")?,
        url.port_or_known_default()
            .context("the URL names no port")?,
    );
    let resolved = timeout(RESOLVE, lookup_host((host.trim_matches(['[', ']']), port)))
        .await
        .context("its name could not be resolved in time")?;
    let addresses: Vec<_> = resolved
        .context("its name could not be resolved")?
        .collect();
    ensure!(!addresses.is_empty(), "its name has no addresses");
    let (allow, own) = (
        &app.settings.webhook_allow,
        app.coordinators.known_addresses(),
    );
    let refused = addresses
        .iter()
        .map(SocketAddr::ip)
        .find(|ip| !allow.iter().any(|net| net.contains(ip)) && !may_send_to(*ip, &own));
    refused.map_or(Ok(addresses), |ip| Err(RefusedAddress(ip).into()))
}

/// What signs the messages of a webhook: derived from the secret of the mesh, so that all
/// coordinators know it and nobody has to keep it.
pub fn secret(app: &App, webhook: WebhookId) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &app.settings.challenge_secret);
    Secret::new(hex::encode(hmac::sign(
        &key,
        format!("wattle webhook v1 {webhook}").as_bytes(),
    )))
}

pub fn words(error: &anyhow::Error) -> String {
    format!("{error:#}").chars().take(LONGEST_ERROR).collect()
}
