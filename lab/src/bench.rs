//! How fast the userspace device is beside another one: two gateways, one tunnel between them,
//! iperf3 and ping through it.
//!
//! The devices take turns, each time with new gateways, so that what else the machine does befalls
//! both alike.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    binaries::scratch,
    enter,
    host::Host,
    pair::{DevicePair, End},
    process::Daemon,
    wait::{patience, wait_for},
};

/// Begins the job of the worker inside; the settings follow.
pub const JOB: &str = "bench ";

/// How long a device has had nothing to do when its memory is at rest.
const REST: Duration = Duration::from_secs(30);
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// What to measure.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct Bench {
    /// The agent's program.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// wireguard-go; without it Wattle's device is measured alone.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// What Wattle's device does without: `interface`, `send`, `receive`, or several with commas.
    #[arg(long, value_name = "WHICH")]
    no_offload: Option<String>,
    /// How often each is measured, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Peers that each device has besides, which are not there.
    #[arg(long, default_value_t = 1000)]
    peers: u16,
}

/// What was measured through one tunnel, by the names of the cells.
type Figures = Vec<(String, f64)>;

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
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=bench.rounds {
        writeln!(std::io::stderr(), "round {round} of {}", bench.rounds)?;
        ours.push(bench.measure(&folder, |host, interface| bench.wattle(host, interface))?);
        if let Some(program) = &bench.against {
            theirs.push(bench.measure(&folder, |host, interface| {
                let mut command = host.command(&program.display().to_string());
                command.args(["--foreground", interface]);
                command.env("LOG_LEVEL", "error");
                command
            })?);
        }
    }
    print(&ours, &theirs)
}

impl Bench {
    fn wattle(&self, host: &Host, interface: &str) -> Command {
        let mut command = host.command(&self.agent.display().to_string());
        command.args(["device", interface]);
        if let Some(off) = &self.no_offload {
            command.arg(format!("--no-offload={off}"));
        }
        command
    }

    fn measure(&self, folder: &Path, device: impl Fn(&Host, &str) -> Command) -> Result<Figures> {
        let pair = DevicePair::start(folder, device)?;
        for end in [&pair.here, &pair.there] {
            end.add_strangers(self.peers)?;
        }
        let mut server = pair.there.host.command("iperf3");
        server.arg("--server");
        let _server = Daemon::start(server, &folder.join("iperf3.log"))?;
        wait_for("iperf3 listens", patience(10.0), || {
            let sockets = pair.there.host.run("ss -lntH sport = :5201")?;
            ensure!(!sockets.trim().is_empty(), "nobody listens");
            Ok(())
        })?;
        let rest = pair.memory()?;
        let mut figures = Figures::new();
        let mut note = |name: String, figure| figures.push((name, figure));
        for (streams, options) in [
            ("1 stream", ""),
            ("1 stream back", "-R"),
            ("8 streams", "-P 8"),
            ("8 streams back", "-P 8 -R"),
        ] {
            let before = pair.processor_s()?;
            let report = pair.iperf(self.seconds, options)?;
            let spent = pair.processor_s()? - before;
            let received = &report["end"]["sum_received"];
            let gigabytes = number(received, "bytes")? / 1e9;
            let lost = number(&report["end"]["sum_sent"], "retransmits")?;
            let rate = number(received, "bits_per_second")? / 1e9;
            note(format!("{streams}, Gbit/s"), rate);
            note(format!("{streams}, retransmissions"), lost);
            note(format!("{streams}, processor s/GB"), spent / gigabytes);
        }
        note(
            "ping beside a stream, p99 ms".to_owned(),
            pair.ping(self.seconds)?,
        );
        let report = pair.iperf(self.seconds, "-u -b 0 -l 64")?;
        let received = &report["end"]["sum_received"];
        let packets = number(received, "bytes")? / 64.0;
        let seconds = number(received, "seconds")?;
        note("64 bytes of UDP, packets/s".to_owned(), packets / seconds);
        let busy = pair.memory()?;
        sleep(REST);
        note("memory at rest, MiB".to_owned(), rest);
        note("memory after it, MiB".to_owned(), busy);
        note("memory 30 s later, MiB".to_owned(), pair.memory()?);
        Ok(figures)
    }
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name]
        .as_f64()
        .with_context(|| format!("iperf3 reports no {name}"))
}

impl DevicePair {
    fn iperf(&self, seconds: u32, options: &str) -> Result<Value> {
        let line = format!("iperf3 --client 10.0.0.2 --json --omit 1 --time {seconds} {options}");
        let report = self.here.host.run(line.trim_end())?;
        serde_json::from_str(&report).context("iperf3's report")
    }

    /// Milliseconds within which 99 of 100 answers come, beside a stream that takes all there is.
    fn ping(&self, seconds: u32) -> Result<f64> {
        let mut stream = self.here.host.command("iperf3");
        stream
            .args(["--client", "10.0.0.2", "--time", &(seconds + 2).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut stream = stream.spawn().context("starting iperf3")?;
        let count = (seconds + 1) * 100;
        let line = format!("ping -n -i 0.01 -c {count} 10.0.0.2");
        let pings = self.here.host.run(&line)?;
        stream.wait()?;
        let mut times: Vec<f64> = pings
            .lines()
            .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
            // In the first second the stream is still slow.
            .skip(100)
            .collect();
        times.sort_by(f64::total_cmp);
        let p99 = times.get(times.len() * 99 / 100);
        p99.copied().context("no ping was answered")
    }

    /// Seconds of processor time that both devices took so far.
    fn processor_s(&self) -> Result<f64> {
        Ok((self.here.processor()? + self.there.processor()?).as_secs_f64())
    }

    /// MiB of the larger device.
    fn memory(&self) -> Result<f64> {
        let bytes = self.here.memory()?.max(self.there.memory()?);
        Ok(bytes as f64 / MEBIBYTE)
    }
}

impl End {
    /// Gives the device peers that are not there.
    fn add_strangers(&self, count: u16) -> Result<()> {
        let mut lines = String::new();
        for number in 0..count {
            let [high, low] = number.to_be_bytes();
            lines += &format!("public_key=aa{high:02x}{low:02x}{}\n", "00".repeat(29));
            lines += &format!("allowed_ip=10.64.{high}.{low}/32\n");
        }
        self.set(&lines)
    }
}

fn print(ours: &[Figures], theirs: &[Figures]) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<30} {:>28} {:>28} {:>6}",
        "median (least to most)", "Wattle", "wireguard-go", "ratio"
    )?;
    for (cell, (name, _)) in ours.first().into_iter().flatten().enumerate() {
        let (ours, theirs) = (spread(ours, cell), spread(theirs, cell));
        let ratio = match (ours, theirs) {
            (Some([ours, ..]), Some([theirs, ..])) if theirs > 0.0 => {
                format!("{:.2}", ours / theirs)
            }
            _ => String::new(),
        };
        let (ours, theirs) = (words(ours), words(theirs));
        writeln!(out, "{name:<30} {ours:>28} {theirs:>28} {ratio:>6}")?;
    }
    Ok(())
}

/// Median, least and most of one cell.
fn spread(rounds: &[Figures], cell: usize) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = rounds.iter().map(|figures| figures[cell].1).collect();
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2)?;
    Some([*median, *values.first()?, *values.last()?])
}

fn words(spread: Option<[f64; 3]>) -> String {
    match spread {
        Some([median, least, most]) if most >= 1000.0 => {
            format!("{median:.0} ({least:.0} to {most:.0})")
        }
        Some([median, least, most]) => format!("{median:.2} ({least:.2} to {most:.2})"),
        None => String::new(),
    }
}
