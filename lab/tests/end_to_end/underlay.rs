//! What gateways reach outside of the tunnel, whatever prefixes the mesh has.

use std::{fs, net::UdpSocket, path::Path, process::Command, thread};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use wattle_lab::{
    Host, Lab,
    api::Api,
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK},
    wait_for,
};

/// A name of the coordinator's; only `/etc/hosts` has it.
const NAME: &str = "coordinator.example";
/// Resolvers of a gateway: the first beside the coordinator, the second a cloud's.
const RESOLVERS: [&str; 2] = ["198.18.0.1", "100.100.2.136"];
/// A resolver in the LAN of Dublin, which other sites reach through the tunnel alone.
const RESOLVER_OF_DUBLIN: &str = "10.10.0.100";
/// Where that cloud has its metadata.
const METADATA: &str = "100.100.100.200";
/// Of the LAN of Dublin, once that has these prefixes.
const ELSEWHERE: [&str; 2] = ["198.18.0.77", "100.100.0.77"];

pub(crate) fn e13_no_change_at_the_centre_nor_its_undoing_makes_a_gateway_deaf(
    folder: &Path,
) -> Result<()> {
    let hosts = folder.join("hosts");
    let write_hosts = |text: &str| fs::write(&hosts, text).context("writing the hosts");
    write_hosts(&format!("198.18.0.2 {NAME}\n"))?;
    mount(&hosts, "/etc/hosts")?;
    let resolv_conf = folder.join("resolv.conf");
    let [beside, cloud] = RESOLVERS;
    let listed =
        [beside, RESOLVER_OF_DUBLIN, cloud].map(|address| format!("nameserver {address}\n"));
    fs::write(&resolv_conf, listed.concat())?;
    mount(&resolv_conf, "/etc/resolv.conf")?;
    let mut lab = Lab::build(folder, &GUIDE)?;
    for address in [RESOLVERS[1], METADATA] {
        run(&format!("ip address add {address}/32 dev underlay"))?;
    }
    RESOLVERS
        .iter()
        .try_for_each(|address| answer_queries(address))?;
    lab.gateway(DUBLIN)?
        .lan_host
        .in_its_network(|| answer_queries(RESOLVER_OF_DUBLIN))?;
    for address in ELSEWHERE {
        let dublin = lab.gateway(DUBLIN)?;
        dublin
            .lan_host
            .run(&format!("ip address add {address}/32 dev lo"))?;
        dublin.host.run(&format!(
            "ip route add {address} via {} dev lan0",
            DUBLIN.lan_host()
        ))?;
    }
    lab.coordinator.announce_as(NAME);
    let api = lab.weave()?;
    let others = [FRANKFURT, NEW_YORK];
    for site in others {
        let kept = lab.gateway(site)?.host.read("/run/wattle/underlay.json")?;
        ensure!(
            kept.contains("198.18.0.2") && RESOLVERS.iter().all(|address| kept.contains(address)),
            "{kept}"
        );
        ensure!(!kept.contains(RESOLVER_OF_DUBLIN), "{kept}");
        let routes = routes(&lab.gateway(site)?.host)?;
        ensure!(!routes.contains("eth0"), "{routes}");
    }

    // Who has the coordinator, the resolvers and the metadata is a site now.
    let subnets = [
        DUBLIN.lan.to_string(),
        "198.18.0.0/24".into(),
        "100.64.0.0/10".into(),
    ];
    let before = api.request(
        "PATCH",
        "/sites/dublin",
        Some(&json!({"subnets": subnets}).to_string()),
    )?;
    ensure!(before.status == 409, "{before:?}");
    change(&api, "dublin", &subnets)?;
    let outside = ["198.18.0.2", RESOLVERS[0], RESOLVERS[1], METADATA];
    for site in others {
        let host = &lab.gateway(site)?.host;
        let expected = outside.map(|address| format!("{address} via {} dev eth0", site.router()));
        host.changes()?
            .wait_for("the prefixes are carried out", patience(20.0), || {
                let routes = routes(host)?;
                for route in ["198.18.0.0/24 dev wattle0", "100.64.0.0/10 dev wattle0"] {
                    ensure!(routes.contains(route), "{routes}");
                }
                ensure!(
                    expected.iter().all(|route| routes.contains(route)),
                    "{routes}"
                );
                Ok(())
            })?;
        is_led(host, RESOLVER_OF_DUBLIN, "wattle0")?;
        for address in ELSEWHERE {
            is_led(host, address, "wattle0")?;
            let from = &lab.gateway(site)?.lan_host;
            wait_for("the site has the rest", patience(10.0), || {
                from.ping(address.parse()?)
            })?;
        }
        for address in outside {
            is_led(host, address, "eth0")?;
            host.ping(address.parse()?)?;
        }
        let said = lab.gateway(site)?.agent_says(&["status"])?;
        for expected in [
            "198.18.0.2, where this gateway reaches its coordinator, lies in 198.18.0.0/24 of \
             dublin: it stays outside the tunnel",
            "198.18.0.1, a resolver of this host, lies in 198.18.0.0/24 of dublin",
            "100.100.100.200, where Alibaba Cloud serves this host, lies in 100.64.0.0/10 of dublin",
        ] {
            ensure!(said.contains(expected), "{said}");
        }
    }

    // An agent that starts without DNS knows from its disk where the coordinator was.
    lab.gateway_mut(FRANKFURT)?.kill_agent()?;
    write_hosts("")?;
    let host = &lab.gateway(FRANKFURT)?.host;
    host.run("ip route del 198.18.0.2")?;
    is_led(host, "198.18.0.2", "wattle0")?;
    let plan = lab.gateway(FRANKFURT)?.agent_says(&["plan"])?;
    let planned = "set route 198.18.0.2 past the tunnel via 198.51.100.1 dev eth0";
    ensure!(plan.contains(planned), "{plan}");
    lab.gateway_mut(FRANKFURT)?.start_agent()?;
    let host = &lab.gateway(FRANKFURT)?.host;
    wait_for("it leads past the tunnel again", patience(20.0), || {
        is_led(host, "198.18.0.2", "eth0")
    })?;
    write_hosts(&format!("198.18.0.2 {NAME}\n"))?;

    // The way past the tunnel is the host's own, also when that changes.
    let uplink = "via 198.51.100.1 dev eth0 src 198.51.100.20";
    host.run(&format!("ip route replace default {uplink}"))?;
    host.changes()?
        .wait_for("the way is the new one", patience(20.0), || {
            let routes = routes(host)?;
            ensure!(routes.contains(&format!("198.18.0.2 {uplink}")), "{routes}");
            Ok(())
        })?;

    // A later change arrives, and so does the undoing.
    let more = [NEW_YORK.lan.to_string(), "10.77.0.0/24".into()];
    change(&api, "new-york", &more)?;
    lab.wait_for_route(&[FRANKFURT], "10.77.0.0/24", patience(40.0))?;
    change(&api, "dublin", &[DUBLIN.lan.to_string()])?;
    for site in others {
        let host = &lab.gateway(site)?.host;
        host.changes()?
            .wait_for("all is as it was", patience(20.0), || {
                let routes = routes(host)?;
                ensure!(
                    !routes.contains("eth0") && !routes.contains("198.18."),
                    "{routes}"
                );
                ensure!(
                    lab.gateway(site)?
                        .agent_says(&["plan"])?
                        .contains("nothing to do")
                );
                Ok(())
            })?;
    }
    change(&api, "new-york", &[NEW_YORK.lan.to_string()])?;
    let host = &lab.gateway(FRANKFURT)?.host;
    host.changes()?
        .wait_for("it is heard after the undoing", patience(20.0), || {
            ensure!(!host.routes()?.contains(&"10.77.0.0/24".parse()?));
            Ok(())
        })?;
    lab.ping_all()
}

fn change(api: &Api, site: &str, subnets: &[String]) -> Result<()> {
    let path = format!("/sites/{site}?force=true");
    let answer = api.request(
        "PATCH",
        &path,
        Some(&json!({"subnets": subnets}).to_string()),
    )?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

/// The routes that agents made.
fn routes(host: &Host) -> Result<String> {
    host.run("ip -4 route show proto 87")
}

/// Ok if the host sends packets to the address by this interface.
fn is_led(host: &Host, address: &str, interface: &str) -> Result<()> {
    let route = host.run(&format!("ip route get {address}"))?;
    ensure!(route.contains(&format!("dev {interface} ")), "{route}");
    Ok(())
}

/// Puts a file in the place of another, for this lab alone.
fn mount(file: &Path, over: &str) -> Result<()> {
    // The path may have a space.
    let mut mount = Command::new("mount");
    let status = mount.arg("--bind").arg(file).arg(over).status()?;
    ensure!(
        status.success(),
        "mounting {} over {over}: {status}",
        file.display()
    );
    Ok(())
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let status = Command::new(words.next().context("an empty command")?)
        .args(words)
        .status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Answers whatever is asked there of a resolver, for as long as the lab is there.
fn answer_queries(address: &str) -> Result<()> {
    let socket = UdpSocket::bind((address, 53)).context("listening as a resolver")?;
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            if socket.send_to(&query[..length], from).is_err() {
                return;
            }
        }
    });
    Ok(())
}
