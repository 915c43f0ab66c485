//! `wattle-agent join`: makes keys, proves them, and becomes a node.

use std::io::Read;

use anyhow::{Context, bail};
use reqwest::StatusCode;
use wattle_mesh::keys::node_keys::NodeKeys;
use wattle_wire::{
    endpoint::Endpoint,
    enrol::{EnrolStart, Enrolled},
    join::JoinString,
};

use crate::{
    config::Paths,
    coordinator::{Coordinator, RequestError},
    follow, history,
    identity::{Membership, Slot},
    output, psk,
    store::Store,
};

pub(crate) async fn join(
    paths: &Paths,
    join_string: &str,
    endpoint: Option<Endpoint>,
    replace: bool,
) -> anyhow::Result<()> {
    let join: JoinString = read(join_string)?.parse()?;
    let store = Store::open(&paths.state_dir)?;
    let slot = if replace { Slot::Next } else { Slot::Present };
    // Whoever follows the mesh with the old keys must not meet the new ones.
    let _stopped = if replace { Some(store.lock()?) } else { None };
    if let Some((_, Some(membership))) = slot.load(&store)? {
        return reach(&store, slot, membership, join);
    }
    let node_keys = slot.load_or_make(&store)?;
    let enrolled = match enrol(&join, &node_keys, endpoint).await {
        // These keys were enrolled before, and the answer was lost or the node revoked.
        Err(
            error @ RequestError::Refused {
                status: StatusCode::CONFLICT | StatusCode::FORBIDDEN,
                ..
            },
        ) => {
            Slot::Next.clear(&store)?;
            return Err(error)
                .context("this machine did not join; `join --replace` tries with new keys");
        }
        result => result.context("this machine did not join")?,
    };
    let (name, site) = (enrolled.name.clone(), enrolled.site.clone());
    if replace {
        follow::forget_view(&store)?;
        history::forget(&store)?;
        psk::forget(&store)?;
    }
    Slot::Present.save(
        &store,
        &node_keys,
        Some(Membership {
            enrolled,
            urls: join.urls,
            pins: join.pins,
        }),
    )?;
    Slot::Next.clear(&store)?;
    output::line(format!("joined as node {name} of site {site}"));
    if replace || !store.is_locked()? {
        output::line("no agent runs here yet: let your init system start `wattle-agent run`");
    }
    Ok(())
}

/// A machine that is a node already takes over where the coordinators are and by which authority it
/// knows them.
fn reach(
    store: &Store,
    slot: Slot,
    membership: Membership,
    join: JoinString,
) -> anyhow::Result<()> {
    let Membership {
        enrolled,
        urls,
        pins,
    } = membership;
    if enrolled.mesh != join.mesh {
        bail!(
            "this machine is node {} of another mesh. To leave that mesh, run `wattle-agent down` \
             and then `join --replace`",
            enrolled.name
        );
    }
    let (name, site) = (enrolled.name.clone(), enrolled.site.clone());
    if (&urls, &pins) == (&join.urls, &join.pins) {
        output::line(format!("already node {name} of site {site}: nothing to do"));
        return Ok(());
    }
    slot.save_membership(
        store,
        Membership {
            enrolled,
            urls: join.urls,
            pins: join.pins,
        },
    )?;
    output::line(format!(
        "already node {name} of site {site}: now uses the coordinators of this join string"
    ));
    Ok(())
}

/// The join string itself, or what standard input holds for `-`, so that it need not stand in the
/// shell's history.
fn read(join_string: &str) -> anyhow::Result<String> {
    if join_string != "-" {
        return Ok(join_string.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the join string from standard input")?;
    Ok(text)
}

async fn enrol(
    join: &JoinString,
    node_keys: &NodeKeys,
    endpoint: Option<Endpoint>,
) -> Result<Enrolled, RequestError> {
    let coordinator = Coordinator::new(join.urls.clone(), join.pins.clone())?;
    let start = EnrolStart {
        token: join.token,
        secret: join.secret.clone(),
    };
    let challenge = coordinator.enrol_start(&start).await?;
    let claim = node_keys
        .claim(join, &challenge, endpoint, env!("CARGO_PKG_VERSION"))
        .context("cannot encode the join request")?;
    coordinator.enrol_finish(&claim).await
}
