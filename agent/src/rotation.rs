//! `wattle-agent rotate`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use wattle_mesh::{agent::node::RotatedKey, keys::rotation::unmanaged};

use crate::{
    config::Paths,
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
pub(crate) async fn rotate(paths: &Paths, force: bool) -> anyhow::Result<()> {
    let found = status::find(paths)?;
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
    let before = begin(paths, RotatedKey::Wireguard).await?.wireguard;
    output::line(
        "asked the running agent for a new WireGuard key; its peers get ready for it first",
    );
    let after = until(paths, ROTATION_LIMIT, |keys| keys.wireguard != before)
        .await?
        .wireguard;
    output::line(format!("the WireGuard key is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --identity`.
pub(crate) async fn rotate_identity(paths: &Paths) -> anyhow::Result<()> {
    let before = begin(paths, RotatedKey::Identity).await?.identity;
    output::line(
        "asked the running agent for another identity; the coordinator is told of it first",
    );
    let after = until(paths, ROTATION_LIMIT, |keys| keys.identity != before)
        .await?
        .identity;
    output::line(format!("the identity is {after} now; it was {before}"));
    Ok(())
}

/// `wattle-agent rotate --psk`.
pub(crate) async fn renew_psks(paths: &Paths) -> anyhow::Result<()> {
    let all = begin(paths, RotatedKey::Preshared)
        .await?
        .preshared_with
        .len();
    output::line(format!(
        "asked the running agent for new preshared keys with {all} peers"
    ));
    match until(paths, PSK_LIMIT, |keys| keys.preshared_with.is_empty()).await {
        Ok(_) => output::line("all preshared keys are new"),
        Err(error) => {
            let old = keys(paths).await?.preshared_with.join(", ");
            return Err(error).context(format!(
                "of {all} peers, these have not answered: {old}. Their tunnels keep their present \
                 keys, and the running agent keeps asking until it is restarted"
            ));
        }
    }
    Ok(())
}

/// `wattle-agent rotate --tokens`.
pub(crate) async fn renew_tokens(paths: &Paths) -> anyhow::Result<()> {
    let generation: i32 = control::ask_running(paths, Request::RenewTokens).await?;
    output::line(format!(
        "this node signs tokens of generation {generation} now: its coordinator refuses all \
         earlier ones as soon as it has heard of one, within seconds if it is connected"
    ));
    Ok(())
}

/// Asks for a key, and gives the present ones.
async fn begin(paths: &Paths, key: RotatedKey) -> anyhow::Result<Keys> {
    control::ask_running(paths, Request::Rotate(key)).await
}

async fn keys(paths: &Paths) -> anyhow::Result<Keys> {
    control::ask_running(paths, Request::Keys).await
}

/// Waits until the keys are as wanted.
///
/// # Errors
///
/// What the agent says when nothing comes of it, or that it takes too long.
async fn until(
    paths: &Paths,
    limit: Duration,
    is_done: impl Fn(&Keys) -> bool,
) -> anyhow::Result<Keys> {
    let asked = Instant::now();
    loop {
        let keys = keys(paths).await?;
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
