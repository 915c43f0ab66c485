//! `wattle-agent rotate`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use wattle_mesh::{agent::node::RotatedKey, keys::rotation::unmanaged};

use crate::{
    config::Settings,
    control::{self, Keys, Request},
    output, status,
};

/// How long `wattle-agent rotate` waits for peers that get ready.
const ROTATION_LIMIT: Duration = Duration::from_secs(300);
/// How long `wattle-agent rotate --psk` waits for peers that do not answer: a key that was just
/// agreed on is replaced at the second time of asking.
const PSK_LIMIT: Duration = Duration::from_secs(90);
/// How often `wattle-agent rotate` looks whether it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// `wattle-agent rotate`.
pub(crate) async fn rotate(settings: &Settings, force: bool) -> anyhow::Result<()> {
    let found = status::find(settings)?;
    let cut_off: Vec<_> = found
        .known
        .iter()
        .flat_map(unmanaged)
        .map(ToString::to_string)
        .collect();
    if !cut_off.is_empty() && !force {
        let cut_off = cut_off.join(", ");
        bail!(
            "no agent at {cut_off} would follow: a new key cuts this gateway off from there until \
             new files are made and installed; to do so all the \
             same, add --force"
        );
    }
    let before = begin(settings, RotatedKey::Wireguard).await?.wireguard;
    output::line(
        "asked the running agent for a new WireGuard key; its peers get ready for it first",
    );
    let after = until(settings, ROTATION_LIMIT, |keys| keys.wireguard != before)
        .await?
        .wireguard;
    output::line(format!("the WireGuard key is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --identity`.
pub(crate) async fn rotate_identity(settings: &Settings) -> anyhow::Result<()> {
    let before = begin(settings, RotatedKey::Identity).await?.identity;
    output::line(
        "asked the running agent for another identity; the coordinator is told of it first",
    );
    let after = until(settings, ROTATION_LIMIT, |keys| keys.identity != before)
        .await?
        .identity;
    output::line(format!("the identity is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --psk`.
pub(crate) async fn renew_psks(settings: &Settings) -> anyhow::Result<()> {
    let all = begin(settings, RotatedKey::Preshared)
        .await?
        .preshared_with
        .len();
    output::line(format!(
        "asked the running agent for new preshared keys with {all} peers"
    ));
    match until(settings, PSK_LIMIT, |keys| keys.preshared_with.is_empty()).await {
        Ok(_) => output::line("all preshared keys are new"),
        Err(error) => {
            let old = keys(settings).await?.preshared_with.join(", ");
            return Err(error).context(format!(
                "of {all} peers, these have not answered: {old}. Their tunnels keep their present \
                 keys, and the running agent keeps asking until it is restarted"
            ));
        }
    }
    Ok(())
}

/// `wattle-agent rotate --tokens`.
pub(crate) async fn renew_tokens(settings: &Settings) -> anyhow::Result<()> {
    let generation: i32 = control::ask_running(settings, Request::RenewTokens).await?;
    output::line(format!(
        "this node signs tokens of generation {generation} now: its coordinator refuses all \
         earlier ones as soon as it has heard of one, within seconds if it is connected"
    ));
    Ok(())
}

/// Asks for a key, and gives the present ones.
async fn begin(settings: &Settings, key: RotatedKey) -> anyhow::Result<Keys> {
    control::ask_running(settings, Request::Rotate(key)).await
}

async fn keys(settings: &Settings) -> anyhow::Result<Keys> {
    control::ask_running(settings, Request::Keys).await
}

/// Waits until the keys are as wanted.
///
/// # Errors
///
/// What the agent says when nothing comes of it, or that it takes too long.
async fn until(
    settings: &Settings,
    limit: Duration,
    is_done: impl Fn(&Keys) -> bool,
) -> anyhow::Result<Keys> {
    let asked = Instant::now();
    loop {
        let keys = keys(settings).await?;
        if is_done(&keys) {
            return Ok(keys);
        }
        if let Some(problem) = keys.problem {
            bail!(problem);
        }
        if asked.elapsed() > limit {
            bail!(
                "it is not done after {} s. The running agent goes on: see `wattle-agent status`",
                limit.as_secs()
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
