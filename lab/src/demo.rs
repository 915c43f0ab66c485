//! The demo: the three sites of the guide, woven before your eyes.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use wattle_wire::admin::CreatedSite;

use crate::{
    binaries::{Binaries, scratch},
    coordinator, enter,
    lab::Lab,
    process::quoted,
    site::{DUBLIN, FRANKFURT, GUIDE, NEW_YORK, SAO_PAULO},
    wait::{patience, wait_for},
};

/// The job inside.
pub const JOB: &str = "demo";
/// The port of this machine's loopback where people find the REST interface, if it is free.
const PORT: u16 = 8443;
/// Tells the inside which port it became.
const OUTER_PORT: &str = "WATTLE_LAB_DEMO_PORT";

/// The part in the namespaces of whoever started the demo: it lends the inside a listening socket,
/// and waits for Ctrl-C.
///
/// A socket stays in the network namespace in which it was made, wherever the process goes that
/// accepts on it. So people reach the coordinator at this machine's loopback although it is on
/// another network.
pub fn outside() -> Result<()> {
    Binaries::find()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let port = listener.local_addr()?.port();

    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    // A group of its own, so that Ctrl-C reaches only this process.
    let mut lab = enter::command(JOB)?
        .env(OUTER_PORT, port.to_string())
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .context("starting setpriv")?;
    let pid = Pid::from_raw(i32::try_from(lab.id())?);
    let stopped = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let stopped = Arc::clone(&stopped);
        move || {
            if signals.forever().next().is_some() {
                stopped.store(true, Ordering::Relaxed);
                // It may have ended by itself in the same moment.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    });

    let status = lab.wait()?;
    if stopped.load(Ordering::Relaxed) {
        // What holds secrets goes; the logs stay.
        let _ = fs::remove_file(scratch(JOB)?.join("api-token"));
        return say("\nEverything is gone again. The logs are kept.");
    }
    bail!(
        "the demo ended by itself ({status}); logs: {}",
        scratch(JOB)?.display()
    )
}

/// The part in the lab.
pub fn inside() -> Result<()> {
    let folder = scratch(JOB)?;
    fresh(&folder)?;
    let start = Instant::now();

    step("Making four sites and a coordinator's host out of network namespaces")?;
    let [dublin, frankfurt, new_york] = GUIDE;
    let mut lab = Lab::build(&folder, &[dublin, frankfurt, new_york, SAO_PAULO])?;
    done(start)?;

    step("Starting the coordinator with a Postgres of its own")?;
    let api = lab.start_coordinator()?;
    relay()?;
    done(start)?;

    for site in GUIDE {
        step(&format!(
            "POST /sites {:<10} {:<20} LAN {:<13} and wattle-agent join",
            site.name,
            site.endpoint(),
            site.lan
        ))?;
        let created: CreatedSite = api.post("/sites", &site.body())?;
        let gateway = lab.gateway_mut(site)?;
        gateway.start_agent()?;
        gateway.join(created.join_token.join_string.reveal())?;
        done(start)?;
    }
    // It waits for a person to let it in.
    lab.gateway_mut(SAO_PAULO)?.start_agent()?;

    say("\nPings between the LANs:")?;
    for (from, to) in [
        (DUBLIN, FRANKFURT),
        (FRANKFURT, DUBLIN),
        (DUBLIN, NEW_YORK),
        (NEW_YORK, DUBLIN),
        (FRANKFURT, NEW_YORK),
        (NEW_YORK, FRANKFURT),
    ] {
        step(&format!(
            "{:<9} {} → {:<9} {}",
            from.name,
            from.lan_host(),
            to.name,
            to.lan_host()
        ))?;
        let time = wait_for("an answer", patience(20.0), || {
            let text = lab
                .gateway(from)?
                .lan_host
                .run(&format!("ping -n -c 1 -W 0.5 {}", to.lan_host()))?;
            let time = text
                .split_once("time=")
                .and_then(|(_, rest)| rest.split_once('\n'))
                .map(|(time, _)| time.to_owned());
            time.with_context(|| format!("no time in {text}"))
        })?;
        say(&time)?;
    }

    say("\ndublin$ wattle-agent status")?;
    say(&indented(&lab.gateway(DUBLIN)?.agent_says(&["status"])?))?;

    let token = folder.join("api-token");
    keep_secret(&token, &api.token)?;
    invite(&folder, &token, &api.ca)?;
    watch(lab)
}

/// Says how to go on from here.
fn invite(folder: &Path, token: &Path, ca: &Path) -> Result<()> {
    let port = env::var(OUTER_PORT).context("the demo has no outer port")?;
    let url = format!("https://127.0.0.1:{port}");
    let body = SAO_PAULO.body();
    let exe = env::current_exe()?;
    let [lab, token, ca] = [&exe, token, ca].map(|path| quoted(&path.to_string_lossy()));
    let folder = folder.display();
    say(&format!(
        "\
The REST interface is at {url}. In another terminal:

  TOKEN=$(cat {token})
  export CURL_CA_BUNDLE={ca}
  curl -H \"Authorization: Bearer $TOKEN\" {url}/sites
  curl -H \"Authorization: Bearer $TOKEN\" {url}/links

A fourth gateway, sao-paulo, waits to be let in. Create its site, then join with the join_string \
of the answer:

  curl -H \"Authorization: Bearer $TOKEN\" -d '{body}' {url}/sites
  {lab} exec sao-paulo wattle-agent join wattle1.…
  {lab} exec sao-paulo-host ping {}

Any command on any host (dublin, dublin-host, …, coordinator):

  {lab} exec dublin wg show
  {lab} exec dublin-host traceroute -n {}
  {lab} exec coordinator pkill -9 wattle-server     # and all pings go on

Logs: {folder}
Ctrl-C ends everything and leaves nothing behind.",
        DUBLIN.lan_host(),
        FRANKFURT.lan_host(),
    ))
}

/// Says of each program that ends that it did, and goes on: to end one and see the packets pass is
/// part of the demo.
fn watch(mut lab: Lab) -> Result<()> {
    let mut ended = BTreeSet::new();
    loop {
        thread::sleep(Duration::from_secs(1));
        if lab.coordinator.server()?.expect_running().is_err() && ended.insert("coordinator") {
            say("The coordinator ended. Tunnels and agents go on without it.")?;
        }
        for gateway in &mut lab.gateways {
            if gateway.agent().is_err() && ended.insert(gateway.site.name) {
                say(&format!(
                    "The agent of {} ended. Its tunnels stay up.",
                    gateway.site.name
                ))?;
            }
        }
    }
}

/// Carries connections from the socket that the outside lent, which is standard input, to the
/// coordinator.
fn relay() -> Result<()> {
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(near) = connection else { continue };
            let Ok(far) = TcpStream::connect((coordinator::ADDRESS, coordinator::PORT)) else {
                continue;
            };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
                continue;
            };
            thread::spawn(move || carry(near, far));
            thread::spawn(move || carry(far_too, near_too));
        }
    });
    Ok(())
}

/// One direction, until it ends; the other may go on.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    // A broken connection ends this direction as a closed one does.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

fn keep_secret(path: &Path, secret: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{secret}").with_context(|| format!("writing {}", path.display()))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Begins a line that [`done`] or another text ends.
fn step(what: &str) -> Result<()> {
    let mut out = io::stdout();
    write!(out, "  {what:<84} ")?;
    out.flush().map_err(Into::into)
}

fn done(start: Instant) -> Result<()> {
    say(&format!("{:4.1} s", start.elapsed().as_secs_f64()))
}

fn say(what: &str) -> Result<()> {
    writeln!(io::stdout(), "{what}").map_err(Into::into)
}
