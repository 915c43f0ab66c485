//! How fast the userspace device is beside another one: two gateways in two network namespaces,
//! one tunnel between them, iperf3 and ping through it.
//!
//! The devices take turns, each time with new gateways, so that what else the machine does befalls
//! both alike.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{binaries::scratch, enter, host::Host, process::Daemon, wait::wait_for};

/// Begins the job of the worker inside; the settings follow.
pub const JOB: &str = "bench ";

const PORT: u16 = 51820;
const START_LIMIT: Duration = Duration::from_secs(10);
/// Clock ticks in a second of `/proc/PID/stat` (`USER_HZ`, which is 100 on all of Linux).
const TICKS: f64 = 100.0;

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bench {
    /// The agent's program.
    pub agent: PathBuf,
    /// wireguard-go, if it is there.
    pub against: Option<PathBuf>,
    /// What Wattle's device does without, as for `wattle-agent device --no-offload`.
    pub no_offload: Option<String>,
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: u32,
}

/// What was measured through one tunnel, by the names of the cells.
type Figures = Vec<(&'static str, f64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wattle,
    WireguardGo,
}

/// Starts the lab and measures inside.
pub fn outside(bench: &Bench) -> Result<()> {
    let job = format!("{JOB}{}", serde_json::to_string(bench)?);
    let status = enter::command(&job)?
        .status()
        .context("starting setpriv and unshare")?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}

/// Measures, and prints medians with their spread.
pub fn inside(bench: &str) -> Result<()> {
    let bench: Bench = serde_json::from_str(bench)?;
    let folder = scratch("bench")?;
    fs::create_dir_all(&folder)?;
    let mut of_wattle = Vec::new();
    let mut of_other = Vec::new();
    let mut out = std::io::stderr();
    for round in 1..=bench.rounds {
        writeln!(out, "round {round} of {}", bench.rounds)?;
        of_wattle.push(bench.measure(Kind::Wattle, &folder)?);
        if bench.against.is_some() {
            of_other.push(bench.measure(Kind::WireguardGo, &folder)?);
        }
    }
    print(&of_wattle, &of_other)
}

impl Bench {
    fn measure(&self, kind: Kind, folder: &Path) -> Result<Figures> {
        let tunnel = Tunnel::start(self, kind, folder)?;
        let mut figures = Vec::new();
        let cells: [(&str, &str, &str, &str); 4] = [
            (
                "1 stream, Gbit/s",
                "1 stream, retransmissions",
                "1 stream, CPU s/GB",
                "",
            ),
            (
                "1 back, Gbit/s",
                "1 back, retransmissions",
                "1 back, CPU s/GB",
                "-R",
            ),
            (
                "8 streams, Gbit/s",
                "8 streams, retransmissions",
                "8 streams, CPU s/GB",
                "-P 8",
            ),
            (
                "8 back, Gbit/s",
                "8 back, retransmissions",
                "8 back, CPU s/GB",
                "-P 8 -R",
            ),
        ];
        for (rate, retransmissions, cost, options) in cells {
            let before = tunnel.processor_s()?;
            let report = tunnel.iperf(self.seconds, options)?;
            let spent = tunnel.processor_s()? - before;
            let received = &report["end"]["sum_received"];
            let sent = &report["end"]["sum_sent"];
            figures.push((rate, number(received, "bits_per_second")? / 1e9));
            figures.push((retransmissions, number(sent, "retransmits")?));
            figures.push((cost, spent / (number(received, "bytes")? / 1e9)));
        }
        figures.push(("ping beside 1 stream, p99 ms", tunnel.ping(self.seconds)?));
        let report = tunnel.iperf(self.seconds, "-u -b 0 -l 64")?;
        let received = &report["end"]["sum_received"];
        let packets = number(received, "bytes")? / 64.0;
        figures.push((
            "64 bytes of UDP, packets/s",
            packets / number(received, "seconds")?,
        ));
        Ok(figures)
    }
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name]
        .as_f64()
        .with_context(|| format!("iperf3 reports no {name}"))
}

/// Two gateways with a tunnel.
struct Tunnel {
    here: Host,
    _there: Host,
    devices: [Daemon; 2],
    _server: Daemon,
}

impl Tunnel {
    fn start(bench: &Bench, kind: Kind, folder: &Path) -> Result<Self> {
        let (here, there) = (Host::start("here")?, Host::start("there")?);
        here.run(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            there.pid()
        ))?;
        for (host, end) in [(&here, 1), (&there, 2)] {
            host.run(&format!("ip addr add 192.0.2.{end}/24 dev eth0"))?;
            host.run("ip link set eth0 up")?;
        }
        let start = |host: &Host| -> Result<Daemon> {
            let log = folder.join(format!("{kind:?}-{}.log", host.name()));
            let mut command = match (kind, &bench.against) {
                (Kind::WireguardGo, Some(program)) => {
                    let mut command = host.command(&program.display().to_string());
                    command
                        .args(["--foreground", "wg0"])
                        .env("LOG_LEVEL", "error");
                    command
                }
                _ => {
                    let mut command = host.command(&bench.agent.display().to_string());
                    command.args(["device", "wg0"]);
                    if let Some(off) = &bench.no_offload {
                        command.arg(format!("--no-offload={off}"));
                    }
                    command
                }
            };
            command.stdin(Stdio::null());
            Daemon::start(command, &log)
        };
        let devices = [start(&here)?, start(&there)?];
        let (one, two) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
        set(&here, &one, &PublicKey::from(&two), 2)?;
        set(&there, &two, &PublicKey::from(&one), 1)?;
        for (host, end) in [(&here, 1), (&there, 2)] {
            host.run(&format!("ip addr add 10.0.0.{end}/24 dev wg0"))?;
            host.run("ip link set wg0 mtu 1420 up")?;
        }
        here.ping([10, 0, 0, 2].into())?;
        let mut server = there.command("iperf3");
        server.args(["--server"]);
        let server = Daemon::start(server, &folder.join("iperf3.log"))?;
        wait_for("iperf3 listens", START_LIMIT, || {
            let sockets = there.run("ss -lntH sport = :5201")?;
            ensure!(!sockets.trim().is_empty(), "nobody listens");
            Ok(())
        })?;
        Ok(Self {
            here,
            _there: there,
            devices,
            _server: server,
        })
    }

    fn iperf(&self, seconds: u32, options: &str) -> Result<Value> {
        let line = format!("iperf3 --client 10.0.0.2 --json --omit 1 --time {seconds} {options}");
        let report = self.here.run(line.trim_end())?;
        serde_json::from_str(&report).context("iperf3's report")
    }

    /// Milliseconds within which 99 of 100 answers come, beside a stream that takes all there is.
    fn ping(&self, seconds: u32) -> Result<f64> {
        let mut stream = self.here.command("iperf3");
        stream
            .args(["--client", "10.0.0.2", "--time", &(seconds + 2).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut stream = stream.spawn().context("starting iperf3")?;
        // The first second is the stream's own start.
        let count = seconds * 100;
        let pings = self
            .here
            .run(&format!("ping -n -i 0.01 -c {count} 10.0.0.2"))?;
        stream.wait()?;
        let mut times: Vec<f64> = pings
            .lines()
            .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
            .skip(100)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = times.len() * 99 / 100;
        times.get(at).copied().context("no ping was answered")
    }

    /// Seconds of processor time that both devices took so far.
    fn processor_s(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for device in &self.devices {
            let path = format!("/proc/{}/stat", device.pid());
            let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            // After the name in brackets: utime and stime are the 14th and 15th of proc(5).
            let (_, fields) = stat.rsplit_once(')').context("no name in brackets")?;
            let fields: Vec<_> = fields.split_whitespace().collect();
            for field in &fields[11..13] {
                ticks += field.parse::<f64>()?;
            }
        }
        Ok(ticks / TICKS)
    }
}

/// Sets a device over its socket, as `wg` does.
fn set(host: &Host, private: &StaticSecret, peer: &PublicKey, end: u8) -> Result<()> {
    let hex = |key: &[u8]| {
        key.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let request = format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint=192.0.2.{end}:{PORT}\n\
         allowed_ip=10.0.0.{end}/32\n\n",
        hex(&private.to_bytes()),
        hex(peer.as_bytes()),
    );
    let path = host.path("/run/wireguard/wg0.sock");
    let mut socket = wait_for("the device answers", START_LIMIT, || {
        UnixStream::connect(&path).context("no device answers")
    })?;
    socket.write_all(request.as_bytes())?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("errno=0\n"),
        "the device refuses: {answer}"
    );
    Ok(())
}

fn print(of_wattle: &[Figures], of_other: &[Figures]) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<30} {:>28} {:>28} {:>6}",
        "median (least to most)", "Wattle", "wireguard-go", "ratio"
    )?;
    for (cell, (name, _)) in of_wattle.first().into_iter().flatten().enumerate() {
        let of = |rounds: &[Figures]| {
            let mut values: Vec<f64> = rounds.iter().map(|figures| figures[cell].1).collect();
            values.sort_by(f64::total_cmp);
            Some((
                *values.get(values.len() / 2)?,
                *values.first()?,
                *values.last()?,
            ))
        };
        let words = |found: Option<(f64, f64, f64)>| match found {
            Some((median, least, most)) if most >= 1000.0 => {
                format!("{median:.0} ({least:.0} to {most:.0})")
            }
            Some((median, least, most)) => format!("{median:.2} ({least:.2} to {most:.2})"),
            None => String::new(),
        };
        let (ours, theirs) = (of(of_wattle), of(of_other));
        let ratio = match (ours, theirs) {
            (Some((ours, ..)), Some((theirs, ..))) if theirs > 0.0 => {
                format!("{:.2}", ours / theirs)
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "{name:<30} {:>28} {:>28} {ratio:>6}",
            words(ours),
            words(theirs)
        )?;
    }
    Ok(())
}
