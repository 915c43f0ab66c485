//! What only a kernel with WireGuard can show, on a machine of its own: modules come and go there,
//! and root is real.

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use wattle_lab::{
    Flow, Gateway, Ground, Lab,
    gateway::{INTERFACE, STATE_DIR},
    patience, process,
    site::{DUBLIN, FRANKFURT},
    wait::same,
    wait_for,
};

/// Keeps the kernel from loading its module by itself.
const BLOCK: &str = "/etc/modprobe.d/wattle-lab.conf";

pub(crate) fn h6_a_module_that_comes_later_is_used_from_the_next_interface_on_and_harms_no_tunnel(
    folder: &Path,
) -> Result<()> {
    let without = WithoutModule::begin()?;
    same(&Ground::find_here()?, &Ground::Userspace)?;
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    lab.weave()?;
    let devices = |lab: &Lab| {
        lab.gateways
            .iter()
            .map(|gateway| Ok(gateway.status()?["device"].clone()))
            .collect::<Result<Vec<_>>>()
    };
    same(
        &devices(&lab)?,
        &vec!["userspace".into(), "userspace".into()],
    )?;

    let flow = Flow::start(
        &lab.gateway(DUBLIN)?.lan_host,
        &lab.gateway(FRANKFURT)?.lan_host,
        FRANKFURT.lan_host(),
    )?;
    drop(without);
    same(&Ground::find_here()?, &Ground::Kernel)?;
    // An agent that starts on a kernel that has the module now leaves the tunnel that is there
    // alone, too.
    let dublin = lab.gateway_mut(DUBLIN)?;
    dublin.stop_agent()?;
    dublin.start_agent()?;
    flow.more(300)?;
    flow.expect_no_loss()?;
    same(
        &devices(&lab)?,
        &vec!["userspace".into(), "userspace".into()],
    )?;

    lab.gateway(DUBLIN)?
        .host
        .run(&format!("ip link del {INTERFACE}"))?;
    wait_for(
        "the new interface is the kernel's, and the other end does not care",
        patience(10.0),
        || {
            lab.ping_all()?;
            same(&devices(&lab)?, &vec!["kernel".into(), "userspace".into()])
        },
    )
}

pub(crate) fn h6_a_taken_port_is_named_and_the_tunnels_come_up_when_it_is_free(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let host = &lab.gateway(DUBLIN)?.host;
    for line in [
        "ip link add other type wireguard",
        "wg set other listen-port 51820",
        "ip link set other up",
    ] {
        host.run(line)?;
    }
    let api = lab.start_coordinator()?;
    join_all(&mut lab, &api, |_| Vec::new())?;
    let agent = lab.gateway_mut(DUBLIN)?.agent()?;
    agent.wait_for_log("another program has the UDP port", patience(10.0))?;
    lab.gateway(DUBLIN)?.host.run("ip link del other")?;
    wait_for("both LANs ping", patience(10.0), || lab.ping_all())
}

pub(crate) fn an_ordinary_user_with_cap_net_admin_alone_weaves_repairs_and_takes_down(
    folder: &Path,
) -> Result<()> {
    const NOBODY: [&str; 7] = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
    ];
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    join_all(&mut lab, &api, |gateway| {
        if gateway.site == DUBLIN {
            NOBODY.to_vec()
        } else {
            Vec::new()
        }
    })?;
    wait_for("both LANs ping", patience(10.0), || lab.ping_all())?;
    let pid = lab.gateway_mut(DUBLIN)?.agent()?.pid();
    let rights = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(
        rights.contains("Uid:\t65534\t65534") && rights.contains("CapEff:\t0000000000001000"),
        "{rights}"
    );

    let host = &lab.gateway(DUBLIN)?.host;
    for meddling in [
        format!("ip link del {INTERFACE}"),
        "nft delete table inet wattle".to_owned(),
    ] {
        host.run(&meddling)?;
        let deadline = Instant::now() + patience(10.0);
        wait_for("it is repaired", patience(10.0), || lab.ping_all())
            .and_then(|()| {
                let left = deadline.saturating_duration_since(Instant::now());
                lab.wait_for_rules(&[DUBLIN], "chain", left)
            })
            .with_context(|| format!("after `{meddling}`"))?;
    }
    let log = lab.gateway_mut(DUBLIN)?.agent()?.log();
    ensure!(!log.contains("cannot"), "{log}");
    lab.gateway_mut(DUBLIN)?.stop_agent()?;
    let dublin = lab.gateway(DUBLIN)?;
    dublin.agent_says(&["down"])?;
    ensure!(
        !dublin.host.run("ip link show")?.contains(INTERFACE),
        "the interface is still there"
    );
    Ok(())
}

pub(crate) fn h6_an_agent_that_may_not_make_interfaces_says_what_it_needs_and_goes_on_trying(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN, FRANKFURT])?;
    let api = lab.start_coordinator()?;
    let powerless = vec![
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ];
    join_all(&mut lab, &api, |gateway| {
        if gateway.site == DUBLIN {
            powerless.clone()
        } else {
            Vec::new()
        }
    })?;
    let agent = lab.gateway_mut(DUBLIN)?.agent()?;
    agent.wait_for_log("CAP_NET_ADMIN", patience(10.0))?;
    same(
        &lab.gateway(DUBLIN)?
            .host
            .run("ip -brief link show type wireguard")?,
        &String::new(),
    )?;
    let dublin = lab.gateway_mut(DUBLIN)?;
    dublin.stop_agent()?;
    dublin.start_agent()?;
    wait_for("both LANs ping", patience(10.0), || lab.ping_all())
}

/// Makes and joins every site, as [`Lab::weave`] does; agents run under the words that `under`
/// gives.
fn join_all(
    lab: &mut Lab,
    api: &wattle_lab::Api,
    under: impl Fn(&Gateway) -> Vec<&'static str>,
) -> Result<()> {
    for gateway in &mut lab.gateways {
        let created: wattle_wire::admin::CreatedSite = api.post("/sites", &gateway.site.body())?;
        gateway.join(created.join_token.join_string.reveal())?;
        let words = under(gateway);
        if words.iter().any(|word| word.starts_with("--reuid")) {
            gateway
                .host
                .run(&format!("chown -R 65534:65534 {STATE_DIR}"))?;
        }
        gateway.start_agent_under(&words)?;
    }
    Ok(())
}

/// For as long as it lives, the kernel has no WireGuard.
struct WithoutModule;

impl WithoutModule {
    fn begin() -> Result<Self> {
        fs::write(BLOCK, "install wireguard /bin/false\n")?;
        let without = Self;
        // What the last lab left may take a moment to go.
        wait_for("the module is gone", patience(10.0), || {
            modprobe(&["--remove", "wireguard"])
        })?;
        Ok(without)
    }
}

impl Drop for WithoutModule {
    fn drop(&mut self) {
        // The next probe fails if this does.
        let _ = fs::remove_file(BLOCK);
        let _ = modprobe(&["wireguard"]);
    }
}

fn modprobe(arguments: &[&str]) -> Result<()> {
    let mut modprobe = Command::new("modprobe");
    modprobe.args(arguments);
    process::run(modprobe, None).map(drop)
}
