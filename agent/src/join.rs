//! `wattle-agent join`: makes keys, proves them, and becomes a node.

use std::io::Read;

use anyhow::{Context, bail};
use wattle_mesh::admit;
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{EnrolFinish, EnrolStart, Enrolled},
    join::JoinString,
};

use crate::{
    config::Place,
    coordinator::{Coordinator, RequestError},
    follow,
    identity::{Keys, Membership},
    output,
    store::Store,
};

pub(crate) async fn join(place: &Place, join_string: &str, endpoint: Option<Endpoint>, replace: bool) -> anyhow::Result<()> {
    let join: JoinString = read(join_string)?.parse()?;
    let store = Store::open(&place.state_dir)?;
    if replace {
        let _stopped = store.lock()?;
        follow::forget_view(&store)?;
        Membership::forget(&store)?;
        Keys::make(&store)?;
    }
    if let Some(Membership { enrolled, .. }) = Membership::load(&store)? {
        if enrolled.mesh != join.mesh {
            bail!("this machine is node {} of another mesh; give that up with `wattle-agent down` and `join --replace`", enrolled.name);
        }
        output::line(format!("already node {} of site {}: nothing to do", enrolled.name, enrolled.site));
        return Ok(());
    }
    let keys = match Keys::load(&store)? {
        Some(keys) => keys,
        None => Keys::make(&store)?,
    };
    let enrolled = enrol(&join, &keys, endpoint).await.context("this machine did not join")?;
    let (name, site) = (enrolled.name.clone(), enrolled.site.clone());
    Membership { enrolled, urls: join.urls, pins: join.pins }.save(&store)?;
    output::line(format!("joined as node {name} of site {site}"));
    if !store.is_locked()? {
        output::line("no agent runs here yet: let your init system start `wattle-agent run`");
    }
    Ok(())
}

/// The join string itself, or what standard input holds for `-`, so that it need not stand in the shell's history.
fn read(join_string: &str) -> anyhow::Result<String> {
    if join_string != "-" {
        return Ok(join_string.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the join string from standard input")?;
    Ok(text)
}

async fn enrol(join: &JoinString, keys: &Keys, endpoint: Option<Endpoint>) -> Result<Enrolled, RequestError> {
    let coordinator = Coordinator::new(join.urls.clone())?;
    let start = EnrolStart { token: join.token, secret: join.secret.clone() };
    let challenge = coordinator.enrol_start(&start).await?;
    let statement = keys.statement(join.mesh)?;
    let (wireguard_proof, identity_proof) =
        admit::prove(challenge.nonce, challenge.server_key, join.token, &statement, &keys.wireguard, &keys.identity);
    let finish = EnrolFinish {
        token: join.token,
        secret: join.secret.clone(),
        nonce: challenge.nonce,
        statement,
        wireguard_proof,
        identity_proof,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoint,
    };
    coordinator.enrol_finish(&finish).await
}
