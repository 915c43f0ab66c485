//! The table `inet wattle`, through the `nft` program.

use std::{io, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use tracing::debug;
use wattle_mesh::{
    health::replies::Flows,
    host::{
        ruleset::{Ruleset, mark, split_flows},
        state::ObservedRuleset,
    },
};
use wattle_wire::ids::NodeId;

use super::owned::OwnedRuleset;

/// Where `nft` is; the PATH of a person who is not root has no `sbin`.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];
const LIMIT: Duration = Duration::from_secs(30);
/// Makes the table if there is none and deletes it: what follows in the same transaction starts
/// from nothing, and no packet sees a gap.
const START_AFRESH: &str = "table inet wattle\ndelete table inet wattle\n";

/// Compares the table with what it was right after it was made. `nodes` are those whose table is
/// this agent's. Tells as well whose packets it saw lately.
pub(super) async fn observe(
    made: Option<&OwnedRuleset>,
    nodes: impl Fn() -> Vec<NodeId>,
) -> anyhow::Result<(ObservedRuleset, Flows)> {
    let listed = match list().await {
        Ok(listed) => listed,
        // Where there is no nft, there is no table of ours; making one will say what is missing.
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error),
    };
    let (listing, flows) = listed.map_or((None, Flows::default()), |(listing, flows)| {
        (Some(listing), flows)
    });
    let observed = match (listing, made) {
        (None, _) => ObservedRuleset::Absent,
        (Some(listing), Some(made))
            if made.listing == listing && made.text == text(&made.ruleset) =>
        {
            ObservedRuleset::Intact(made.ruleset.clone())
        }
        (Some(listing), _) if is_made_by(&listing, &nodes()) => ObservedRuleset::Altered,
        (Some(_), _) => ObservedRuleset::Foreign,
    };
    Ok((observed, flows))
}

/// Makes the table, or makes it anew if it is of one of `nodes`. Gives what to remember of it.
///
/// Where there is none, the sets come first and the chain after them, so that no packet meets a
/// chain whose sets are still empty. One that is there is replaced in one transaction: there is
/// never a moment without rules.
pub(super) async fn set(ruleset: &Ruleset, nodes: &[NodeId]) -> anyhow::Result<OwnedRuleset> {
    let transactions = match list().await? {
        None => vec![ruleset.sets(), ruleset.chains()],
        Some((listing, _)) if is_made_by(&listing, nodes) => {
            vec![format!("{START_AFRESH}{}", text(ruleset))]
        }
        Some(_) => bail!(
            "there is a table inet wattle already, and this agent did not make it: see `nft list \
             table inet wattle`, and remove it with `nft delete table inet wattle` if nobody \
             needs it"
        ),
    };
    for transaction in transactions {
        run(&["-f", "-"], &transaction)
            .await?
            .context("nft refused the table inet wattle")?;
    }
    made(ruleset).await
}

/// Takes and gives the table only what differs. Gives what to remember of it.
pub(super) async fn update(
    from: &Ruleset,
    to: &Ruleset,
    nodes: &[NodeId],
) -> anyhow::Result<OwnedRuleset> {
    match run(&["-f", "-"], &to.update_from(from)).await? {
        Ok(_) => made(to).await,
        Err(complaint) => {
            debug!(%complaint, "nft refused the difference; making the table again");
            set(to, nodes).await
        }
    }
}

/// All tables of the host with their chains and rules, in nft's JSON, without what counters say, and
/// without the sets of the table `inet wattle`, which packets fill.
pub(super) async fn everything() -> anyhow::Result<Value> {
    let listing = run(&["--stateless", "--json", "list", "ruleset"], "")
        .await?
        .context("nft cannot list the ruleset")?;
    let mut listing: Value = serde_json::from_str(&listing).context("nft's listing is not JSON")?;
    let is_own_set = |object: &Value| {
        let set = &object["set"];
        set["family"] == "inet" && set["table"] == "wattle"
    };
    if let Some(objects) = listing["nftables"].as_array_mut() {
        objects.retain(|object| !is_own_set(object));
    }
    Ok(listing)
}

/// The functions that look at packets, those of iptables-legacy among them.
pub(super) async fn hooks() -> anyhow::Result<String> {
    let listing = run(&["list", "hooks"], "").await?;
    listing.context("nft cannot list the hooks")
}

/// Whether there was one of one of `nodes`.
pub(super) async fn remove(nodes: &[NodeId]) -> anyhow::Result<bool> {
    if !list()
        .await?
        .is_some_and(|(listing, _)| is_made_by(&listing, nodes))
    {
        return Ok(false);
    }
    run(&["-f", "-"], START_AFRESH)
        .await?
        .context("nft cannot delete the table inet wattle")?;
    Ok(true)
}

async fn made(ruleset: &Ruleset) -> anyhow::Result<OwnedRuleset> {
    let (listing, _) = list()
        .await?
        .context("the table inet wattle was removed right after it was made")?;
    Ok(OwnedRuleset {
        ruleset: ruleset.clone(),
        text: text(ruleset),
        listing,
    })
}

fn text(ruleset: &Ruleset) -> String {
    ruleset.sets() + &ruleset.chains()
}

/// Whether the listing shows the mark of one of the nodes.
fn is_made_by(listing: &str, nodes: &[NodeId]) -> bool {
    let marks: Vec<_> = nodes.iter().map(|node| mark(*node)).collect();
    let mut chains = listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("chain ")?.split(' ').next());
    chains.any(|chain| marks.iter().any(|mark| mark == chain))
}

/// The table without what packets put there, and that; nothing means there is none.
async fn list() -> anyhow::Result<Option<(String, Flows)>> {
    match run(&["list", "table", "inet", "wattle"], "").await? {
        Ok(listing) => Ok(Some(split_flows(&listing))),
        Err(complaint) if complaint.0.contains("No such file or directory") => Ok(None),
        Err(complaint) => Err(complaint).context("nft cannot list the table inet wattle"),
    }
}

/// What nft said when it refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Complaint(String);

/// There is no nft.
#[derive(Debug, thiserror::Error)]
#[error("the program nft is missing: install the package nftables (`apt install nftables`)")]
struct Missing;

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Missing>().is_some()
}

async fn run(arguments: &[&str], input: &str) -> anyhow::Result<Result<String, Complaint>> {
    let mut child = None;
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            spawned => {
                child = Some(spawned.context("cannot start nft")?);
                break;
            }
        }
    }
    let Some(mut child) = child else {
        return Err(Missing.into());
    };
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // An nft that refuses early closes its end; what it says about it is in its output.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let finished = timeout(LIMIT, async {
        tokio::join!(feed, child.wait_with_output()).1
    })
    .await;
    let output = finished
        .with_context(|| format!("nft did not end within {} s", LIMIT.as_secs()))?
        .context("cannot wait for nft")?;
    if output.status.success() {
        return Ok(Ok(
            String::from_utf8(output.stdout).context("nft's output is not UTF-8")?
        ));
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if complaint.contains("Operation not permitted") {
        bail!(
            "nft was not permitted to ({complaint}): {}",
            super::NEEDS_NET_ADMIN
        );
    }
    Ok(Err(Complaint(complaint)))
}
