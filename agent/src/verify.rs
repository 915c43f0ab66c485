//! `wattle-agent verify`: whether packets really get from this gateway to the others and the LANs
//! behind them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use futures_util::{StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wattle_mesh::{
    agent::replica::Known,
    diagnose::{
        lan::{self, Served},
        verify::{self, Answers, Fault, Objection, Target, What},
    },
    health::replies::Replies,
};
use wattle_wire::name::Name;

use crate::{
    config::Settings,
    control::{self, Asked, Request},
    host::Host,
    kernel::{ping, throughput},
    output::{self, Cell, Table},
    status,
};

/// Addresses that are pinged at a time.
const AT_A_TIME: usize = 64;

/// What came of one target.
#[derive(Serialize)]
struct Check {
    peer: Name,
    /// Whether no agent runs there: nobody counts for a measurement, and maybe nobody lets pings
    /// in.
    unmanaged: bool,
    what: What,
    address: IpAddr,
    /// The TCP port; absent for pings.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    sent: usize,
    answered: usize,
    /// Milliseconds, the median; absent when nobody answered.
    round_trip_ms: Option<f64>,
    /// Megabits per second that arrived there; only of tunnels, and only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    mbit_per_s: Option<f64>,
    /// Absent when all is well.
    fault: Option<Fault>,
    /// The fault in words, with what to do.
    reason: Option<String>,
}

/// What there is to try, and what of it is known without a packet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// From where to measure; absent where nobody counts.
    tunnel_address: Option<Ipv4Addr>,
    targets: Vec<Target>,
    /// What is between the LANs here and these.
    lan_ways: Vec<(IpNet, Fault, String)>,
}

#[derive(Serialize)]
struct Verified<'c> {
    ok: bool,
    checks: &'c [Check],
}

pub(crate) async fn verify(
    settings: &Settings,
    asked: Asked,
    count: u16,
    throughput: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let trial = match control::ask(settings, Request::Verify(asked.clone())).await? {
        Some(trial) => trial,
        None => {
            let found = status::find(settings)?;
            let known = found.known.as_ref().context(status::NO_VIEW)?;
            trial(&found.host, known, &Replies::default(), &asked).await?
        }
    };
    let checks = stream::iter(trial.targets.into_iter().zip(0..))
        .map(|(target, number)| check(target, number, count));
    let mut checks: Vec<Check> = checks.buffered(AT_A_TIME).try_collect().await?;
    for check in checks.iter_mut().filter(|check| check.fault.is_none()) {
        let mut ways = trial.lan_ways.iter();
        if let What::Lan(far) = check.what
            && let Some((_, fault, reason)) = ways.find(|(lan, ..)| *lan == far)
        {
            check.fail(*fault, reason.clone());
        }
    }
    if throughput {
        let from = trial.tunnel_address.context(
            "probes are off in this mesh, and throughput cannot be measured without them (`PATCH \
             /mesh`, `probes`)",
        )?;
        measure(&mut checks, from).await;
    }

    let wrong = checks.iter().filter(|check| check.fault.is_some()).count();
    if json {
        output::json(&Verified {
            ok: wrong == 0,
            checks: &checks,
        })?;
    } else {
        print(&checks, throughput);
    }
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What there is to try. The gateway's own packets do not go the way of those of its LAN, so what is
/// between the LANs is looked up.
///
/// # Errors
///
/// When somebody asked for is not in the mesh, and when the host may not be looked at.
pub(crate) async fn trial(
    host: &Host,
    known: &Known,
    replies: &Replies,
    asked: &Asked,
) -> anyhow::Result<Trial> {
    let refused = host.refused(known).await?;
    let targets =
        verify::targets(known, &refused, &asked.hosts, &asked.tcp).map_err(|stranger| {
            anyhow!(
                "{stranger} is in no LAN of another site: see the LANs in `wattle-agent status`"
            )
        })?;
    let interface = host.observe_interface().await?;
    let served = Served::new(
        known,
        host.interface(),
        &refused,
        interface.as_ref(),
        replies,
    );
    let facts = host.between_lans(&served).await?;
    let lan_ways = lan::ways(&served, &facts);
    let probes = known.mesh.health.probes;
    Ok(Trial {
        tunnel_address: probes.then_some(known.myself.tunnel_address),
        targets,
        lan_ways,
    })
}

/// Asks the addresses of a target until one of them is as it should be.
async fn check(target: Target, number: u16, count: u16) -> anyhow::Result<Check> {
    let Target {
        peer,
        unmanaged,
        what,
        port,
        addresses,
        refused,
    } = target;
    if let Some((why, address)) = refused.zip(addresses.first()) {
        return Ok(Check {
            peer,
            unmanaged,
            what,
            address: *address,
            port,
            sent: 0,
            answered: 0,
            round_trip_ms: None,
            mbit_per_s: None,
            fault: Some(Fault::Guarded),
            reason: Some(format!("the guard of this host refuses it: {why}")),
        });
    }
    let mut best: Option<(Answers, Option<Fault>)> = None;
    for address in addresses {
        let answers = match port {
            None => ping::ping(address, number, count).await?,
            Some(port) => ping::connect((address, port).into(), count).await,
        };
        let fault = verify::fault(what, &answers);
        if best
            .as_ref()
            .is_none_or(|(before, _)| answers.round_trips_ms.len() > before.round_trips_ms.len())
        {
            best = Some((answers, fault));
        }
        if fault.is_none() {
            break;
        }
    }
    let (answers, fault) = best.context("a target without addresses")?;
    let reason = fault.map(|fault| reason(fault, what, unmanaged, &answers));
    let Answers {
        address,
        sent,
        round_trips_ms,
        ..
    } = answers;
    let (answered, round_trip_ms) = (round_trips_ms.len(), median(round_trips_ms));
    Ok(Check {
        peer,
        unmanaged,
        what,
        address,
        port,
        sent,
        answered,
        round_trip_ms,
        mbit_per_s: None,
        fault,
        reason,
    })
}

/// Measures the tunnels that answer, one after the other: two at a time would share this gateway's
/// uplink.
async fn measure(checks: &mut [Check], from: Ipv4Addr) {
    let is_measured =
        |check: &&mut Check| check.what == What::Tunnel && !check.unmanaged && check.answered > 0;
    for check in checks.iter_mut().filter(is_measured) {
        let IpAddr::V4(to) = check.address else {
            continue;
        };
        output::progress(format_args!("measuring {}", check.peer));
        match throughput::measure(from, to).await.map(verify::mbit_per_s) {
            Ok(Some(rate)) => check.mbit_per_s = Some((rate * 10.0).round() / 10.0),
            Ok(None) => check.fail(Fault::Unmeasured, "throughput: nothing arrived".to_owned()),
            Err(error) => check.fail(Fault::Unmeasured, format!("throughput: {error:#}")),
        }
    }
}

impl Check {
    /// Notes what is wrong, unless something worse is known.
    fn fail(&mut self, fault: Fault, reason: String) {
        self.fault.get_or_insert(fault);
        self.reason.get_or_insert(reason);
    }
}

fn reason(fault: Fault, what: What, unmanaged: bool, answers: &Answers) -> String {
    match (fault, what) {
        (Fault::Silent, What::Tunnel) if unmanaged => {
            "no answer. This site has no agent: check that its gateway answers pings and has its \
             newest file. `wattle-agent status` shows whether there is a handshake"
                .to_owned()
        }
        (Fault::Silent, What::Tunnel) => {
            "no answer: `wattle-agent status` shows whether there is a handshake, `wattle-agent \
             doctor` what stops it"
                .to_owned()
        }
        (Fault::Silent, What::Lan(_)) => "no answer. If no host has this address, name another \
            with --host"
            .to_owned(),
        (Fault::Lossy, _) => format!(
            "{} of {} were lost",
            answers.sent - answers.round_trips_ms.len(),
            answers.sent
        ),
        // The last three are told where they are found.
        (
            Fault::Refused | Fault::Unreachable | Fault::Guarded | Fault::Blocked | Fault::Unproven,
            _,
        ) => answers
            .objection
            .as_ref()
            .map_or_else(|| "it is not reached".to_owned(), Objection::to_string),
        (Fault::Unmeasured, _) => "its throughput could not be measured".to_owned(),
        (Fault::NotDirect, _) => "the path is not direct: there is another router between the \
            gateways; `traceroute` shows it"
            .to_owned(),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print(checks: &[Check], with_throughput: bool) {
    if checks.is_empty() {
        return output::line("no peers: there is nothing to ping");
    }
    let mut table = Table::new(&[
        "peer",
        "what",
        "address",
        "answered",
        "round trip",
        "throughput",
        "result",
    ]);
    for check in checks {
        let cells = [
            check.peer.to_string(),
            match check.what {
                What::Tunnel => "tunnel".to_owned(),
                What::Lan(lan) => lan.to_string(),
            },
            check.port.map_or_else(
                || check.address.to_string(),
                |port| SocketAddr::from((check.address, port)).to_string(),
            ),
            format!("{}/{}", check.answered, check.sent),
            check
                .round_trip_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            check
                .mbit_per_s
                .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1} Mbit/s")),
            check.reason.clone().unwrap_or_else(|| "ok".to_owned()),
        ];
        table.row(cells.map(Cell::new));
    }
    table.align_right(&[4, 5]);
    if !with_throughput {
        table.hide(5);
    }
    table.print();
    let wrong = checks.iter().filter(|check| check.fault.is_some()).count();
    output::line(match wrong {
        0 => format!("all {} answer, directly", checks.len()),
        _ => format!("{wrong} of {} failed", checks.len()),
    });
}
