//! A database that was restored from a backup.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use wattle_lab::{
    Lab, LabSite, patience,
    site::{DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO},
    wait::same,
    wait_for,
};
use wattle_wire::admin::{Event, Node, Page};

const STAY: [LabSite; 3] = [DUBLIN, FRANKFURT, NEW_YORK];

pub(crate) fn e19_a_node_that_was_revoked_after_the_backup_stays_out_when_it_is_restored(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT, NEW_YORK, SAO_PAULO])?;
    let api = lab.weave()?;
    lab.ping_all()?;
    lab.coordinator.stop()?;
    lab.coordinator.back_up()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    api.delete("/nodes/sao-paulo")?;
    let is_out = |lab: &Lab| {
        for site in STAY {
            let peers = lab.gateway(site)?.status()?["peers"].to_string();
            ensure!(!peers.contains("sao-paulo"), "{}: {peers}", site.name);
        }
        Ok(())
    };
    wait_for("its peers have dropped it", patience(30.0), || is_out(&lab))?;

    lab.coordinator.stop()?;
    lab.coordinator.restore_backup()?;
    lab.coordinator.start_server()?;
    lab.coordinator.wait_ready()?;
    let node = || api.get::<Node>("/nodes/sao-paulo");
    wait_for("all say that it was removed", patience(60.0), || {
        let removed_on = node()?.removed_on.context("nobody says so")?;
        same(
            &removed_on.to_string().as_str(),
            &"dublin, frankfurt, new-york",
        )
    })?;
    is_out(&lab)?;
    lab.ping_all_of(&STAY)?;
    let ping = format!("ping -c 1 -W 1 {}", SAO_PAULO.lan_host());
    let answered = lab.gateway(DUBLIN)?.lan_host.run(&ping);
    ensure!(answered.is_err(), "{answered:?}");
    let status = lab.gateway(DUBLIN)?.status()?["problems"].to_string();
    ensure!(
        status.contains("has peers again that it had removed") && status.contains("sao-paulo"),
        "{status}"
    );
    wait_for("the audit log has it", patience(20.0), || {
        let events: Page<Event> = api.get("/events?limit=50")?;
        let told = events
            .items
            .iter()
            .filter(|event| event.action == "node.returned");
        let told: Vec<_> = told.map(|event| event.sentence.as_str()).collect();
        let sentence = "found that node sao-paulo of site sao-paulo had been removed and is back";
        same(&told, &vec![sentence])
    })?;

    // Somebody on one gateway lets it in; the others keep it out.
    lab.gateway(DUBLIN)?.agent_says(&["confirm"])?;
    wait_for("it is a peer of one", patience(30.0), || {
        lab.ping_all_of(&[DUBLIN, SAO_PAULO])?;
        let removed_on = node()?.removed_on.context("nobody says so")?;
        same(&removed_on.to_string().as_str(), &"frankfurt, new-york")
    })?;
    // One call removes it again, for all.
    api.delete("/nodes/sao-paulo")?;
    wait_for("nothing is left of it", patience(30.0), || {
        is_out(&lab)?;
        for site in STAY {
            let problems = api.get::<Node>(&format!("/nodes/{}", site.name))?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
        }
        Ok(())
    })?;
    lab.ping_all_of(&STAY)
}
