//! What may stand in the way of a gateway's packets, and what to do about each.

mod firewall;
mod names;
mod reach;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use wattle_wire::{
    admin::LinkState,
    name::Name,
    report::{DeviceKind, EndState, LanEffect, ProbeReport, Problem},
    verdict::LinkVerdict,
};

pub use self::{
    names::{Mover, Taken},
    reach::{OutOfTime, Unreached},
};
use crate::{
    diagnose::lan::{self, Facts, Served},
    health::link,
    host::{
        offload::{Offload, spoils_segments},
        way::{ForeignRoute, best},
    },
};

/// Bytes that WireGuard adds to a packet over IPv4: 20 of IPv4, 8 of UDP, 32 of its own (section
/// 5.4.6 of its paper).
const OVERHEAD_V4: u32 = 60;
/// The same over IPv6, which has 40.
const OVERHEAD_V6: u32 = 80;
/// As many links are named that are not as they should be.
const MOST_NAMED: usize = 5;

/// What was found on a host.
#[derive(Clone, Debug)]
pub struct Symptoms {
    /// Whether the machine is a node.
    pub joined: bool,
    pub mover: Mover,
    pub taken: Taken,
    /// Whether this process may change interfaces and firewalls.
    pub may_administer: bool,
    /// Whether the agent runs.
    pub runs: bool,
    /// The interface, if there is one behind which a device answers.
    pub device: Option<Device>,
    /// What the host's settings have off of what Linux does for many packets of a userspace device.
    pub no_offload: BTreeSet<Offload>,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel_release: String,
    /// Whether the mesh wants its gateways to probe each other.
    pub probes: bool,
    /// The LANs here and elsewhere, and what was found between them.
    pub served: Served,
    pub facts: Facts,
    /// Peers that large packets do not get to.
    pub large_packets: Vec<Problem>,
    /// `rp_filter` as it works on the interface: the larger of its own and that of all. Absent when
    /// it cannot be read.
    pub rp_filter: Option<u8>,
    /// The interfaces by which packets leave for the peers.
    pub uplinks: Vec<Uplink>,
    /// Host names of the coordinators that have no address, with the error.
    pub unresolved: Vec<(String, String)>,
    /// Seconds by which the clock is ahead of the coordinator's, or why the coordinator does not
    /// answer; absent where none is known.
    pub coordinator: Option<Result<i64, Unreached>>,
    /// Whether the coordinator is reached with small packets alone.
    pub loses_large_packets: bool,
    pub peers: Vec<PeerSymptoms>,
    /// What the agent has to tell besides what is looked at here.
    pub problems: Vec<Problem>,
    /// What the coordinator makes of the link with each peer; absent when it does not say.
    pub verdicts: Option<Vec<(Name, LinkVerdict)>>,
}

/// An interface by which packets leave for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub interface: String,
    /// Whether the endpoints there are of IPv4.
    pub is_v4: bool,
    /// Bytes.
    pub mtu: u32,
}

/// By which interfaces packets leave for these endpoints; by those of the default routes where there
/// is no endpoint. With each, whether the packets are of IPv4.
pub fn ways_out(
    endpoints: impl Iterator<Item = IpAddr>,
    routes: &[ForeignRoute],
) -> BTreeSet<(String, bool)> {
    let of = |route: &ForeignRoute| {
        let way = route.way.as_ref()?;
        Some((way.device.clone(), route.prefix.addr().is_ipv4()))
    };
    let used: BTreeSet<_> = endpoints
        .filter_map(|endpoint| of(best(endpoint, routes)?))
        .collect();
    if !used.is_empty() {
        return used;
    }
    let defaults = routes.iter().filter(|route| route.prefix.prefix_len() == 0);
    defaults.filter_map(of).collect()
}

/// The interface as found.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub kind: DeviceKind,
    pub up: bool,
    pub port: u16,
    /// Bytes.
    pub mtu: u32,
}

/// A peer as found.
#[derive(Clone, Debug)]
pub struct PeerSymptoms {
    pub name: Name,
    /// Whether no agent runs there.
    pub unmanaged: bool,
    /// Seconds; absent means that there was no handshake.
    pub handshake_age_s: Option<u64>,
    /// Where packets to it are sent; absent means nowhere yet.
    pub endpoint: Option<SocketAddr>,
    pub sent_bytes: u64,
    /// What the agent's probes find; absent where none run, or no agent.
    pub probe: Option<ProbeReport>,
    /// Bytes of the largest packet that gets to it, as those find; absent where none did so far.
    pub largest: Option<u16>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Fine,
    /// It works, or it may be on purpose.
    Notice,
    /// Packets do not get through, or changes do not.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: Cow<'static, str>,
    pub severity: Severity,
    pub detail: String,
    /// What to do; absent when nothing is.
    pub fix: Option<String>,
}

fn fine(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding {
        check: Cow::Borrowed(check),
        severity: Severity::Fine,
        detail: detail.into(),
        fix: None,
    }
}

fn notice(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        check: Cow::Borrowed(check),
        severity: Severity::Notice,
        detail: detail.into(),
        fix: Some(fix.into()),
    }
}

fn fault(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Fault,
        ..notice(check, detail, fix)
    }
}

/// Everything that was looked at, with what to do where something is wrong.
pub fn diagnose(symptoms: &Symptoms) -> Vec<Finding> {
    let mut findings = vec![rights(symptoms), agent(symptoms)];
    findings.extend(device(symptoms));
    findings.extend([rp_filter(symptoms), mtu(symptoms)]);
    findings.extend(symptoms.large_packets.iter().cloned().map(Finding::from));
    findings.extend(between_lans(symptoms));
    findings.extend(firewall::findings(symptoms));
    findings.extend(reach::coordinator(symptoms));
    if symptoms.joined {
        findings.extend(peers(symptoms));
    }
    findings.extend(symptoms.verdicts.as_deref().map(verdicts));
    findings.extend(symptoms.problems.iter().cloned().map(Finding::from));
    findings
}

fn rights(symptoms: &Symptoms) -> Finding {
    match symptoms.may_administer {
        true => fine("rights", "may change interfaces and firewalls"),
        false => fault(
            "rights",
            "CAP_NET_ADMIN is missing, so much cannot be seen",
            "run this as root",
        ),
    }
}

fn agent(symptoms: &Symptoms) -> Finding {
    match symptoms.runs {
        _ if !symptoms.joined => notice(
            "agent",
            "this machine is not a node yet",
            "run `wattle-agent join` with the join string of its site",
        ),
        true => fine("agent", "runs"),
        false => fault(
            "agent",
            "does not run: this host does not follow the mesh",
            "start `wattle-agent run`, by its systemd unit for example",
        ),
    }
}

fn device(symptoms: &Symptoms) -> Vec<Finding> {
    let interface = &symptoms.served.interface;
    let Some(device) = symptoms.device else {
        return vec![names::without_interface(symptoms)];
    };
    let kind = match device.kind {
        DeviceKind::Kernel => fine("wireguard", format!("{interface} is the kernel's")),
        DeviceKind::Userspace => notice(
            "wireguard",
            format!(
                "{interface} is a userspace device, which takes more of the processor: this kernel \
                 had no WireGuard when it was made"
            ),
            "`modprobe wireguard`, then `wattle-agent down` and start the agent again; containers \
             need the module on their host",
        ),
    };
    let up = match device.up {
        true => fine("interface", format!("{interface} is up")),
        false => fault(
            "interface",
            format!("{interface} is down"),
            "the running agent brings it up within seconds; if not, its log says why",
        ),
    };
    let wanted = symptoms.served.port;
    let port = match device.port == wanted {
        true => fine("port", format!("listens on UDP port {}", device.port)),
        false => fault(
            "port",
            format!(
                "listens on UDP port {}, but the others send to port {wanted}",
                device.port
            ),
            format!(
                "find the program that has the port with `ss -lunp sport = :{wanted}`, and stop it"
            ),
        ),
    };
    let mut findings = vec![kind, up, port];
    if device.kind == DeviceKind::Userspace {
        findings.extend(offload(symptoms));
    }
    findings
}

/// What a userspace device does without, if anything.
fn offload(symptoms: &Symptoms) -> Option<Finding> {
    let Symptoms {
        no_offload,
        kernel_release,
        ..
    } = symptoms;
    if spoils_segments(kernel_release) {
        return Some(notice(
            "offload",
            format!(
                "the device sends datagrams one by one, which is slower: Linux {kernel_release} \
                 spoils batches of them"
            ),
            "install Linux 7.1.5 or a newer one, then `wattle-agent down` and start the agent again",
        ));
    }
    let off: Vec<_> = no_offload.iter().map(Offload::to_string).collect();
    let off = (!off.is_empty()).then(|| off.join(", "))?;
    Some(fine("offload", format!("off, as `no_offload` says: {off}")))
}

/// What keeps the LANs here and elsewhere from each other.
fn between_lans(symptoms: &Symptoms) -> Vec<Finding> {
    const CHECK: &str = "lan";
    let Served { own, far, .. } = &symptoms.served;
    if own.is_empty() || far.is_empty() {
        let who = if own.is_empty() {
            "this node serves"
        } else {
            "the others serve"
        };
        return vec![fine(CHECK, format!("nothing to look at: {who} no LAN"))];
    }
    let problems = lan::problems(&symptoms.served, &symptoms.facts);
    if problems.is_empty() {
        let mut findings = vec![fine(CHECK, "nothing on this host is between the LANs")];
        let notices = lan::notices(&symptoms.served, &symptoms.facts).into_iter();
        findings.extend(notices.map(|(words, fix)| notice("return_route", words, fix)));
        return findings;
    }
    problems.into_iter().map(Finding::from).collect()
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let severity = match problem.lan {
            Some(LanEffect::Degraded) => Severity::Fault,
            Some(LanEffect::Unproven) => Severity::Notice,
            None if problem.code.stops_changes() => Severity::Fault,
            None => Severity::Notice,
        };
        Self {
            check: Cow::Borrowed(problem.code.name()),
            severity,
            detail: problem.words,
            fix: problem.remedy,
        }
    }
}

fn rp_filter(symptoms: &Symptoms) -> Finding {
    match symptoms.rp_filter {
        Some(1) => notice(
            "rp_filter",
            "is strict: this works only while the LANs of other sites are routed over the tunnel",
            format!(
                "if you add other routes to them, run `sysctl -w net.ipv4.conf.all.rp_filter=2 \
                 net.ipv4.conf.{}.rp_filter=2`",
                symptoms.served.interface
            ),
        ),
        Some(_) => fine("rp_filter", "accepts the packets of other sites"),
        None => fine("rp_filter", "does not exist on this host"),
    }
}

fn mtu(symptoms: &Symptoms) -> Finding {
    let Some(device) = symptoms.device else {
        return fine("mtu", "there is no interface to look at");
    };
    let probed = probed(symptoms, device.mtu);
    let room = |uplink: &&Uplink| i64::from(uplink.mtu) - i64::from(uplink.overhead());
    let Some(uplink) = symptoms.uplinks.iter().min_by_key(room) else {
        return fine(
            "mtu",
            format!(
                "there is no route to peers to compare {} with{probed}",
                device.mtu
            ),
        );
    };
    let (name, underlay, overhead) = (&uplink.interface, uplink.mtu, uplink.overhead());
    match device.mtu + overhead <= underlay {
        true => fine(
            "mtu",
            format!(
                "{} plus {overhead} of WireGuard fits into the {underlay} of {name}{probed}",
                device.mtu
            ),
        ),
        false => notice(
            "mtu",
            format!(
                "{} plus {overhead} of WireGuard is more than the {underlay} of {name}: large \
                 packets are fragmented or lost{probed}",
                device.mtu
            ),
            format!("raise the MTU of {name}, or find what makes it small (PPPoE, another tunnel)"),
        ),
    }
}

/// What probes of the full size found, in words to end a sentence with.
fn probed(symptoms: &Symptoms, mtu: u32) -> String {
    let sizes = symptoms.peers.iter().filter_map(|peer| peer.largest);
    let (whole, small): (Vec<_>, Vec<_>) = sizes.partition(|size| u32::from(*size) >= mtu);
    match (whole.len(), small.iter().min()) {
        (0, None) => String::new(),
        (whole, None) => {
            format!(". Packets of {mtu} bytes get to {whole} of {whole} peers that answer probes")
        }
        (whole, Some(least)) => format!(
            ". Packets of {mtu} bytes get to {whole} of {} peers that answer probes: to one of the \
             others no more than {least} do",
            whole + small.len()
        ),
    }
}

fn peers(symptoms: &Symptoms) -> Vec<Finding> {
    let quiet = symptoms.peers.iter().filter(|peer| !peer.works());
    let mut findings: Vec<_> = quiet
        .map(|peer| {
            if let Some(probe) = peer.probe
                && probe.state != EndState::Down
            {
                return imperfect(peer, probe, symptoms.served.port);
            }
            let state = peer
                .handshake_age_s
                .map_or_else(|| "never".to_owned(), |age| format!("{age} s ago"));
            let detail = format!("{}: the last handshake was {state}", peer.name);
            match &peer.endpoint {
                _ if peer.unmanaged => notice(
                    "tunnel",
                    format!("{detail}. It has no agent that follows changes"),
                    "check that it is up and has its newest file; the site's page at the \
                     coordinator shows whether the file is current",
                ),
                None => notice(
                    "tunnel",
                    detail,
                    "it has no endpoint, so it has to start the handshake: give this gateway's \
                     site an endpoint that it reaches",
                ),
                Some(endpoint) if peer.sent_bytes > 0 => fault(
                    "tunnel",
                    detail,
                    format!(
                        "packets go to {endpoint} and nothing comes back: allow this UDP port in \
                         the firewalls there, and UDP port {} here",
                        symptoms.served.port
                    ),
                ),
                Some(endpoint) => notice(
                    "tunnel",
                    detail,
                    format!(
                        "nothing was sent to {endpoint} \
                    yet: ping its tunnel address"
                    ),
                ),
            }
        })
        .collect();
    if findings.is_empty() {
        let all = symptoms.peers.len();
        findings.push(fine("tunnel", format!("{all} of {all} peers answer")));
    }
    findings
}

/// What the coordinator makes of the links, which hears both ends of each.
fn verdicts(verdicts: &[(Name, LinkVerdict)]) -> Finding {
    const CHECK: &str = "links";
    let in_words = |(name, verdict): &(Name, LinkVerdict)| {
        let words = verdict.in_words();
        (words != LinkState::Up.name()).then(|| format!("{name} {words}"))
    };
    let unwell: Vec<_> = verdicts.iter().filter_map(in_words).collect();
    if unwell.is_empty() {
        let all = verdicts.len();
        return fine(CHECK, format!("the coordinator finds {all} of {all} up"));
    }
    let mut detail = unwell[..unwell.len().min(MOST_NAMED)].join("; ");
    if unwell.len() > MOST_NAMED {
        detail += &format!("; and {} more", unwell.len() - MOST_NAMED);
    }
    notice(
        CHECK,
        format!("the coordinator finds: {detail}"),
        "where nothing here says why, run `wattle-agent doctor` on the other gateway",
    )
}

impl Uplink {
    /// Bytes that WireGuard adds to a packet there.
    fn overhead(&self) -> u32 {
        if self.is_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }
    }
}

impl PeerSymptoms {
    /// Whether its tunnel is as it should be.
    fn works(&self) -> bool {
        link::found_state(self.probe, self.handshake_age_s) == EndState::Up
    }
}

/// A tunnel that works, but not as it should.
fn imperfect(peer: &PeerSymptoms, probe: ProbeReport, port: u16) -> Finding {
    let name = &peer.name;
    match probe.state {
        EndState::OneWay => fault(
            "tunnel",
            format!("{name} is heard, and does not answer: packets from here do not get there"),
            format!(
                "look for what drops them: a firewall on the way that lets its packets to UDP port \
                 {port} out and none back, or a rule of {name} for what comes out of its tunnel"
            ),
        ),
        EndState::Lossy | EndState::Up | EndState::Down => notice(
            "tunnel",
            format!(
                "{name}: {} % of the last probes were lost",
                probe.loss_percent
            ),
            "look at the uplinks of both sites",
        ),
        EndState::Slow => notice(
            "tunnel",
            format!(
                "{name}: probes take {} ms and more",
                probe.round_trip_us / 1000
            ),
            "look at the uplinks of both sites",
        ),
    }
}

#[cfg(test)]
mod tests;
