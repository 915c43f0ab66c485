//! The lab as a whole: an underlay, the coordinator's host, and the sites.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wattle_wire::admin::CreatedSite;

use crate::{
    api::Api,
    binaries::Binaries,
    coordinator::{self, Coordinator},
    gateway::Gateway,
    host::Host,
    process,
    site::LabSite,
    wait::{Events, patience, wait_for},
};

/// The internet of the lab: one bridge, which has the router's address in each prefix.
///
/// Without a hardware address of its own, a bridge changes it with its ports, and hosts would send
/// to the old one for a while.
const UNDERLAY: &str = "\
link set lo up
link add underlay address 02:00:00:00:00:01 type bridge
address add 203.0.113.1/24 dev underlay
address add 198.51.100.1/24 dev underlay
address add 192.0.2.1/24 dev underlay
address add 198.18.0.1/24 dev underlay
link set underlay up
";

/// Keeps a router from telling that a packet is too large (RFC 1191).
const SILENT: &str = "\
add table inet silent
add chain inet silent out { type filter hook output priority 0; }
add rule inet silent out icmp type destination-unreachable icmp code frag-needed drop
";

/// A coordinator's host and gateways, in the namespaces of this process.
#[derive(Debug)]
pub struct Lab {
    pub coordinator: Coordinator,
    /// In the order in which the sites were given.
    pub gateways: Vec<Gateway>,
    binaries: Binaries,
    folder: PathBuf,
}

impl Lab {
    /// Makes the networks. No program of Wattle runs yet; their logs will go to `folder`.
    pub fn build(folder: &Path, sites: &[LabSite]) -> Result<Self> {
        let binaries = Binaries::find()?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        batch(Command::new("ip"), UNDERLAY)?;
        // The bridge is an ordinary router: it passes packets on, and tells nobody of a shorter
        // way.
        for (setting, value) in [
            ("ip_forward", "1"),
            ("conf/all/send_redirects", "0"),
            ("conf/underlay/send_redirects", "0"),
        ] {
            fs::write(format!("/proc/sys/net/ipv4/{setting}"), value)
                .with_context(|| format!("setting {setting}"))?;
        }

        let coordinator = Coordinator::start(binaries.clone(), folder.join("coordinator.log"))?;
        connect(
            &coordinator.host,
            &format!("{}/24", coordinator::ADDRESS),
            "198.18.0.1",
            "",
        )?;
        let mut lab = Self {
            coordinator,
            gateways: Vec::with_capacity(sites.len()),
            binaries,
            folder: folder.to_owned(),
        };
        sites.iter().try_for_each(|site| lab.add_site(*site))?;
        Ok(lab)
    }

    /// Starts the coordinator and gives its interface.
    pub fn start_coordinator(&mut self) -> Result<Api> {
        self.coordinator.start_server()?;
        self.coordinator.wait_ready()?;
        self.coordinator.api()
    }

    /// Starts the coordinator, and makes every site of the lab and joins it, in order.
    pub fn weave(&mut self) -> Result<Api> {
        let api = self.start_coordinator()?;
        self.join_all(&api)?;
        Ok(api)
    }

    /// Makes every site of the lab and joins it, in order.
    pub fn join_all(&mut self, api: &Api) -> Result<()> {
        for gateway in &mut self.gateways {
            gateway.start_agent()?;
            let created: CreatedSite = api.post("/sites", &gateway.site.body())?;
            gateway.join(created.join_token.join_string.reveal())?;
        }
        wait_for("every LAN host pings every other", patience(20.0), || {
            self.ping_all()
        })
    }

    /// One more site, with its networks.
    pub fn add_site(&mut self, site: LabSite) -> Result<()> {
        let gateway = Gateway::start(site, self.binaries.clone(), self.folder.clone())?;
        let Gateway { host, lan_host, .. } = &gateway;
        let (inside, length) = (site.gateway_on_lan(), site.lan.prefix_len());
        // And a cable from its lan0 to the LAN's one host.
        let lan = format!(
            "link add lan0 type veth peer name eth0 netns {}\naddress add {inside}/{length} dev \
             lan0\nlink set lan0 up\n",
            lan_host.pid()
        );
        let router = site.router().to_string();
        connect(host, &format!("{}/24", site.address), &router, &lan)?;
        let address = format!("{}/{length}", site.lan_host());
        join_network(lan_host, &address, &inside.to_string(), "")?;
        self.gateways.push(gateway);
        Ok(())
    }

    /// Lets the router between a gateway and the coordinator lose packets of more than so many
    /// bytes, in both directions, and say so to nobody.
    pub fn lose_large_packets(&self, site: LabSite, mtu: u32) -> Result<()> {
        let (coordinator, gateway) = (coordinator::ADDRESS, site.address);
        let narrow = format!(
            "route add {gateway} dev underlay mtu lock {mtu}\nroute add {coordinator} dev \
             underlay mtu lock {mtu} table 100\nrule add from {gateway} to {coordinator} lookup \
             100\n"
        );
        batch(Command::new("ip"), &narrow)?;
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]);
        process::run(nft, Some(SILENT)).map(drop)
    }

    /// Every LAN host pings every other, once; an error names the first pair that does not.
    pub fn ping_all(&self) -> Result<()> {
        self.pairs()
            .try_for_each(|(from, to)| from.lan_host.ping(to.site.lan_host()))
    }

    /// As [`Lab::ping_all`], among some of the sites.
    pub fn ping_all_of(&self, sites: &[LabSite]) -> Result<()> {
        let mut pairs = self
            .pairs()
            .filter(|(from, to)| sites.contains(&from.site) && sites.contains(&to.site));
        pairs.try_for_each(|(from, to)| from.lan_host.ping(to.site.lan_host()))
    }

    /// Waits until each of these sites' gateways has a route to the prefix.
    pub fn wait_for_route(
        &self,
        sites: &[LabSite],
        prefix: &str,
        deadline: Duration,
    ) -> Result<()> {
        let prefix = prefix.parse()?;
        let hosts = self.hosts_of(sites)?;
        let what = format!("there is a route to {prefix}");
        changes(&hosts)?.wait_for(&what, deadline, || {
            for host in &hosts {
                let routes = host.routes()?;
                ensure!(routes.contains(&prefix), "{} has {routes:?}", host.name());
            }
            Ok(())
        })
    }

    /// Waits until the agents' rules are there on each of these sites' gateways, and have the word.
    pub fn wait_for_rules(&self, sites: &[LabSite], word: &str, deadline: Duration) -> Result<()> {
        let hosts = self.hosts_of(sites)?;
        changes(&hosts)?.wait_for("the rules are there", deadline, || {
            for host in &hosts {
                let rules = host.run("nft list table inet wattle")?;
                ensure!(rules.contains(word), "{} has {rules}", host.name());
            }
            Ok(())
        })
    }

    fn hosts_of(&self, sites: &[LabSite]) -> Result<Vec<&Host>> {
        let gateways = sites.iter().map(|site| self.gateway(*site));
        gateways.map(|gateway| Ok(&gateway?.host)).collect()
    }

    /// Every gateway with every other.
    pub fn pairs(&self) -> impl Iterator<Item = (&Gateway, &Gateway)> {
        let others = |from: &Gateway| {
            let name = from.site.name;
            self.gateways.iter().filter(move |to| to.site.name != name)
        };
        self.gateways
            .iter()
            .flat_map(move |from| others(from).map(move |to| (from, to)))
    }

    pub fn gateway(&self, site: LabSite) -> Result<&Gateway> {
        self.gateways
            .iter()
            .find(|gateway| gateway.site == site)
            .with_context(|| format!("{} is not in this lab", site.name))
    }

    pub fn gateway_mut(&mut self, site: LabSite) -> Result<&mut Gateway> {
        self.gateways
            .iter_mut()
            .find(|gateway| gateway.site == site)
            .with_context(|| format!("{} is not in this lab", site.name))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What the kernels of all these tell from now on.
fn changes(hosts: &[&Host]) -> Result<Events> {
    let mut events = hosts.iter().map(|host| host.changes());
    events.try_fold(Events::default(), |all, more| Ok(all.and(more?)))
}

/// Puts the host's eth0 on the underlay, and does what `more` lines of `ip` say there.
fn connect(host: &Host, address: &str, router: &str, more: &str) -> Result<()> {
    let (name, pid) = (host.name(), host.pid());
    batch(
        Command::new("ip"),
        &format!(
            "link add {name} type veth peer name eth0 netns {pid}\nlink set {name} master underlay \
             up\n"
        ),
    )?;
    join_network(host, address, router, more)
}

/// Switches a host's network on, whose eth0 has a cable. One program does all: on the kernel ground
/// each takes 10 ms to start.
fn join_network(host: &Host, address: &str, router: &str, more: &str) -> Result<()> {
    batch(
        host.command("ip"),
        &format!(
            "link set lo up\naddress add {address} dev eth0\nlink set eth0 up\nroute add default \
             via {router}\n{more}"
        ),
    )
}

/// Gives `ip` several lines at once.
fn batch(mut ip: Command, lines: &str) -> Result<()> {
    ip.args(["-batch", "-"]);
    process::run(ip, Some(lines)).map(drop)
}

/// The items of a list's first page.
pub fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map_or(&[], Vec::as_slice)
}
