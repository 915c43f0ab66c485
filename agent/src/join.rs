//! `wattle-agent join`: makes keys, proves them, and becomes a node.

use std::{fs, io::Read, path::Path, time::Duration};

use anyhow::{Context, bail};
use hyper::StatusCode;
use tokio::time::{sleep, timeout};
use wattle_client::{error::RequestError, node::NodeClient};
use wattle_mesh::{
    keys::{authorities::Authorities, node_keys::NodeKeys},
    state_file::UnknownFields,
};
use wattle_wire::{endpoint::Endpoint, enrol::Enrolled, join::JoinString};

use crate::{
    config::Settings,
    control::{self, Request},
    follow, history,
    identity::{Membership, Slot},
    output, psk,
    status::Status,
    store::Store,
};

/// How long a join waits for an agent that runs.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) async fn join(
    settings: &Settings,
    join_string: &str,
    endpoint: Option<Endpoint>,
    replace: bool,
) -> anyhow::Result<()> {
    let join: JoinString = join_string.parse()?;
    let store = Store::open(&settings.state_dir)?;
    let slot = if replace { Slot::Next } else { Slot::Present };
    // Whoever follows the mesh with the old keys must not meet the new ones.
    let _stopped = if replace { Some(store.lock()?) } else { None };
    if let Some((machine, Some(membership))) = slot.load(&store)? {
        return compare(&store, slot, &machine, membership, join).await;
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
            authorities: Authorities::new(join.pins),
            unknown: UnknownFields::default(),
        }),
    )?;
    Slot::Next.clear(&store)?;
    output::line(format!("joined as node {name} of site {site}"));
    if replace || !store.is_locked()? {
        output::line("no agent runs here yet: let your init system start `wattle-agent run`");
    } else {
        wait_for_agent(settings).await;
    }
    Ok(())
}

/// Waits until the running agent follows: the command that somebody types next asks it.
async fn wait_for_agent(settings: &Settings) {
    let follows = async || {
        let status = control::ask::<Status>(settings, Request::Status).await;
        status.is_ok_and(|status| status.is_some_and(|status| status.has_interface()))
    };
    let followed = async {
        while !follows().await {
            sleep(LOOK_INTERVAL).await;
        }
    };
    if timeout(FOLLOWED_WITHIN, followed).await.is_err() {
        output::line("the agent that runs here has no interface yet: see `wattle-agent status`");
    }
}

/// Compares a machine that is a node already with what the join string wants. It takes over where
/// the coordinators are and by which authority it knows them.
///
/// # Errors
///
/// What to do, unless the machine is what the join string wants.
async fn compare(
    store: &Store,
    slot: Slot,
    machine: &NodeKeys,
    membership: Membership,
    join: JoinString,
) -> anyhow::Result<()> {
    let Enrolled {
        mesh,
        name,
        site,
        site_id,
        ..
    } = &membership.enrolled;
    let is = format!("this machine is node {name} of site {site}");
    if *mesh != join.mesh {
        bail!(
            "{is} of another mesh. To leave that mesh, stop the agent, run `wattle-agent down` \
             and then `wattle-agent join --replace`"
        );
    }
    if *site_id != join.site {
        bail!(
            "{is}, and the join string is for another site. Use it on a gateway of that site; to \
             move this machine there, stop the agent and run `wattle-agent join --replace`, then \
             remove {name} at the coordinator"
        );
    }
    let membership = Membership {
        urls: join.urls,
        authorities: Authorities::new(join.pins),
        ..membership
    };
    let coordinator = NodeClient::new(membership.urls.clone(), membership.authorities.clone())?;
    match coordinator.knows(membership.signer(machine)).await {
        Ok(()) => {}
        Err(RequestError::NotAMember) => bail!(
            "{is} no more: it was removed from the mesh. To make it a node again, with new keys, \
             stop the agent and run `wattle-agent join --replace`"
        ),
        Err(error) => {
            return Err(error).context(format!(
                "{is} and keeps its coordinators; those of the join string cannot tell whether it \
                 is one still"
            ));
        }
    }
    if slot.load(store)?.and_then(|(_, kept)| kept).as_ref() == Some(&membership) {
        output::line(format!("{is} already: nothing to do"));
        return Ok(());
    }
    slot.save_membership(store, membership)?;
    output::line(format!(
        "{is} already: now uses the coordinators of this join string"
    ));
    Ok(())
}

/// The join string itself, or what the file of this name holds, or standard input for `-`. Other
/// users of the host see the words of a command, so the string is better not one of them.
pub(crate) fn read(join_string: &str) -> anyhow::Result<String> {
    if join_string == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read the join string from standard input")?;
        Ok(text)
    } else if Path::new(join_string).is_file() {
        fs::read_to_string(join_string)
            .with_context(|| format!("cannot read the join string from {join_string}"))
    } else {
        Ok(join_string.to_owned())
    }
}

async fn enrol(
    join: &JoinString,
    node_keys: &NodeKeys,
    endpoint: Option<Endpoint>,
) -> Result<Enrolled, RequestError> {
    let coordinator = NodeClient::new(join.urls.clone(), Authorities::new(join.pins.clone()))?;
    coordinator
        .enrol(join, node_keys, endpoint, env!("CARGO_PKG_VERSION"))
        .await
}
