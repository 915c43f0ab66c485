//! The lab itself: its networks are what they should be, and it leaves nothing behind.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wattle_lab::{
    Api, Flow, Lab,
    binaries::scratch,
    coordinator, enter, patience, process,
    site::{FRANKFURT, GUIDE},
    wait::same,
    wait_for,
};

/// The job that makes a lab and keeps it.
pub(crate) const HOLD: &str = "hold";
/// A variable that all processes below a test inherit.
const MARK: &str = "WATTLE_LAB_TEST_MARK";

pub(crate) fn sites_reach_each_others_gateways_over_the_underlay_and_not_each_others_lans(
    folder: &Path,
) -> Result<()> {
    let lab = Lab::build(folder, &GUIDE)?;
    for (from, to) in lab.pairs() {
        from.host.ping(to.site.address)?;
        from.host.ping(coordinator::ADDRESS)?;
        from.lan_host.ping(from.site.gateway_on_lan())?;
        ensure!(
            from.lan_host.ping(to.site.lan_host()).is_err(),
            "a packet from {} came to {} without a mesh",
            from.site.name,
            to.site.name
        );
        let forward = from.host.run("cat /proc/sys/net/ipv4/ip_forward")?;
        same(&forward.trim(), &"0")?;
    }
    Ok(())
}

pub(crate) fn a_stream_notices_a_cable_that_is_pulled_for_a_moment(folder: &Path) -> Result<()> {
    let lab = Lab::build(folder, &GUIDE)?;
    let (from, to) = (&lab.gateways[0].host, &lab.gateways[1].host);
    let unharmed = Flow::start(from, to, FRANKFURT.address)?;
    unharmed.more(50)?;
    ensure!(unharmed.expect_no_loss()? >= 50, "too few were sent");

    let harmed = Flow::start(from, to, FRANKFURT.address)?;
    harmed.more(20)?;
    to.run("ip link set eth0 down")?;
    harmed.more(5)?;
    to.run("ip link set eth0 up")?;
    to.run("ip route replace default via 198.51.100.1")?;
    harmed.more(20)?;
    let outcome = harmed.finish()?;
    // 100 datagrams a second, and 0.4 s for the commands.
    ensure!(
        (4..=patience(40.0).as_secs()).contains(&(outcome.lost.len() as u64)),
        "{outcome:?}"
    );
    Ok(())
}

pub(crate) fn a_killed_lab_leaves_nothing_behind(_: &Path) -> Result<()> {
    let mark = format!("killed-{}", std::process::id());
    let lab = enter::command(HOLD)?;
    // A shell between, so that it can be killed as this program would be.
    let mut outer = Command::new("sh");
    outer
        .args(["-c", "\"$@\" & wait", "sh"])
        .arg(lab.get_program())
        .args(lab.get_args());
    outer
        .envs(
            lab.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env(MARK, &mark);
    let mut outer = outer.stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(outer.stdout.take().context("no pipe")?).read_line(&mut line)?;
    same(&line.trim(), &"up")?;

    let namespaces = namespaces_of(&marked(&mark)?);
    ensure!(namespaces.len() > 4, "only {namespaces:?} have been seen");
    outer.kill()?;
    outer.wait()?;
    nothing_left(&mark, &namespaces)
}

/// The job [`HOLD`].
pub(crate) fn hold() -> Result<()> {
    let _lab = Lab::build(&scratch(HOLD)?, &GUIDE)?;
    let mut out = std::io::stdout();
    writeln!(out, "up")?;
    out.flush()?;
    loop {
        std::thread::park();
    }
}

pub(crate) fn the_demo_serves_whoever_started_it_and_ends_with_ctrl_c(folder: &Path) -> Result<()> {
    let mark = format!("demo-{}", std::process::id());
    let output = folder.join("output");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_wattle-lab"));
    demo.arg("demo")
        .env(MARK, &mark)
        .stdout(fs::File::create(&output)?);
    let mut demo = Ended(demo.spawn()?);
    let text = wait_for("the demo says how to end it", patience(90.0), || {
        let text = fs::read_to_string(&output)?;
        if let Some(status) = demo.0.try_wait()? {
            return Ok(Err(anyhow!("the demo ended with {status} after: {text}")));
        }
        if text.contains("Ctrl-C") {
            Ok(Ok(text))
        } else {
            bail!("{text}")
        }
    })??;
    let answers = text
        .lines()
        .filter(|line| line.contains('→') && line.ends_with(" ms"))
        .count();
    same(&answers, &6)?;

    // As the person would: with the lines and the address that it names.
    let url = word_after(&text, "The REST interface is at ")?
        .trim_end_matches('.')
        .to_owned();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("TOKEN=") || line.starts_with("export "));
    let lines = lines.collect::<Vec<_>>().join("\n");
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        &format!("{lines}\necho $TOKEN\necho \"$CURL_CA_BUNDLE\""),
    ]);
    let said = process::run(shell, None)?;
    let (token, ca) = said.trim().split_once('\n').context("no two lines")?;
    let (token, ca) = (token.to_owned(), ca.into());
    let api = Api { url, token, ca };
    let sites: serde_json::Value = api.get("/sites")?;
    same(&wattle_lab::lab::items(&sites).len(), &3)?;
    let mut ping = Command::new(env!("CARGO_BIN_EXE_wattle-lab"));
    ping.args([
        "exec",
        "dublin-host",
        "ping",
        "-c",
        "1",
        &FRANKFURT.lan_host().to_string(),
    ]);
    process::run(ping, None)?;

    let namespaces = namespaces_of(&marked(&mark)?);
    kill(Pid::from_raw(i32::try_from(demo.0.id())?), Signal::SIGINT)?;
    let status = wait_for("the demo ends", patience(5.0), || {
        demo.0.try_wait()?.context("it still runs")
    })?;
    ensure!(status.success(), "the demo ended with {status}");
    nothing_left(&mark, &namespaces)
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn word_after<'t>(text: &'t str, before: &str) -> Result<&'t str> {
    let (_, rest) = text
        .split_once(before)
        .with_context(|| format!("no {before:?} in {text}"))?;
    rest.split_whitespace()
        .next()
        .context("the text ends there")
}

fn nothing_left(mark: &str, namespaces: &[String]) -> Result<()> {
    wait_for("nothing is left", patience(5.0), || {
        let processes = marked(mark)?;
        ensure!(processes.is_empty(), "processes {processes:?}");
        let mine = namespaces_of(&["self".to_owned()]);
        let all: Vec<String> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let left: Vec<_> = namespaces_of(&all)
            .into_iter()
            .filter(|found| namespaces.contains(found) && !mine.contains(found))
            .collect();
        ensure!(left.is_empty(), "network namespaces {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(
            !namespaces
                .iter()
                .any(|namespace| mounts.contains(namespace)),
            "a network namespace is mounted"
        );
        Ok(())
    })
}

/// Processes that have the mark in their environment.
fn marked(mark: &str) -> Result<Vec<String>> {
    let needle = format!("{MARK}={mark}");
    let mut marked = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().into_string() else {
            continue;
        };
        // A process may end while we look, or be somebody else's.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == needle.as_bytes())
        {
            marked.push(pid);
        }
    }
    Ok(marked)
}

/// The network namespaces of processes, each once.
fn namespaces_of(processes: &[String]) -> Vec<String> {
    let links = processes
        .iter()
        .filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok());
    let mut namespaces: Vec<String> = links
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    namespaces.sort();
    namespaces.dedup();
    namespaces
}
