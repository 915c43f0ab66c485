//! The userspace WireGuard device: a process of its own, so that its tunnels outlive the agent that
//! asked for it. `starter` says how it is asked for.
//!
//! ```text
//!   agent, wg(8) ── /run/wireguard/NAME.sock ── wireguard (keys, peers, timers)
//!                                                   │
//!   TUN interface ── outbound: reads, seals, sends ─┤ shared
//!         └───────── inbound: receives, opens, writes ── UDP socket
//! ```
//!
//! Each direction has a thread of its own, and works on batches: 64 KiB of one flow come from the
//! interface at once, are cut into packets, sealed, and leave in one call; the other way round
//! likewise. WireGuard's protocol is gotatun's (`Tunn`), cutting and joining is tun-rs'. The
//! [decision](../../docs/adr/0033-a-device-of-batches.md) says why, and what it costs.

mod inbound;
mod ip;
mod outbound;
mod peer;
mod shared;
pub(crate) mod starter;
mod tun;
mod udp;
mod waiting;
mod wireguard;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::stat::Mode;
use starter::Starter;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing::{info, warn};
use wattle_mesh::host::{interface::InterfaceName, offload::Offload};
use wireguard::WireguardDevice;
use zeroize::Zeroizing;

/// Where `wg` and everybody else looks for the sockets of userspace devices.
const SOCKETS: &str = "/var/run/wireguard";

/// Bytes of the longest packet that a device moves: one of an interface of 9,000 bytes.
const PACKET: usize = 9_216;

/// How long large buffers are kept after the last packet, in milliseconds.
const BUSY: u16 = 5_000;
/// How often the device looks whether its interface is still there.
const INTERFACE_CHECK: Duration = Duration::from_secs(1);

/// How often the device looks what WireGuard's timers want.
const TIMERS: Duration = Duration::from_millis(250);
/// How often the device looks for peers to shake hands with.
const RETRY: Duration = Duration::from_secs(5);
/// Longest request in bytes. One with 10,000 peers is a quarter of it.
const LONGEST_REQUEST: usize = 16 << 20;

/// Path of the socket on which the device of an interface takes commands.
pub(crate) fn socket_path(interface: &InterfaceName) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

/// Moves the packets of one interface until a SIGTERM comes or the interface is deleted. Whoever
/// started it is told when it does, or why it does not.
///
/// It leaves its parent's session first, so that no signal to the agent's terminal reaches it.
pub(crate) async fn run(
    interface: &InterfaceName,
    offloads: BTreeSet<Offload>,
    mut starter: Option<Starter>,
) -> anyhow::Result<()> {
    // Fails for the leader of a process group, as when a shell started this: then it has a group of
    // its own already.
    let _ = nix::unistd::setsid();
    // Whoever may write to the socket may read the private key.
    nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    end_on_panic();
    let ended = drive(interface, offloads, &mut starter).await;
    if let (Err(error), Some(starter)) = (&ended, &starter) {
        starter.tell_failure(error);
    }
    ended
}

async fn drive(
    interface: &InterfaceName,
    offloads: BTreeSet<Offload>,
    starter: &mut Option<Starter>,
) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let socket = Socket::bind(interface).await?;
    let mut device = WireguardDevice::start(interface, offloads)?;
    let index = nix::net::if_::if_nametoindex(interface.as_str())
        .with_context(|| format!("no interface {interface} after its creation"))?;
    if let Err(error) = device.limit_segments(index).await {
        warn!(%error, "flows of tiny segments may not pass");
    }
    let is_there = || nix::net::if_::if_nametoindex(interface.as_str()) == Ok(index);
    let (requests, mut received) = mpsc::channel(16);
    let mut check = tokio::time::interval(INTERFACE_CHECK);
    let mut timers = tokio::time::interval(TIMERS);
    let mut retry = tokio::time::interval(RETRY);
    if let Some(starter) = starter.take() {
        starter.tell_ready()?;
    }
    info!(%interface, "userspace device is ready");
    loop {
        tokio::select! {
            () = device.ended() => break info!(%interface, "userspace device ends: its interface was deleted"),
            _ = terminated.recv() => break info!(%interface, "userspace device ends"),
            _ = check.tick() => if !is_there() {
                break info!(%interface, "userspace device ends: its interface was deleted");
            },
            _ = timers.tick() => device.tick(),
            _ = retry.tick() => device.keep_in_touch(),
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, requests.clone()))),
                Err(error) => warn!(%error, "cannot accept a connection"),
            },
            Some(Asked { request, answer }) = received.recv() => drop(answer.send(device.answer(&request))),
        }
    }
    Ok(())
}

/// A device one of whose tasks panicked looks alive and moves nothing; once it is gone, the agent
/// makes another.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
}

/// The socket, and which file it is: a later device may have put its own in the same place.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Replaces a socket that nobody answers on.
    async fn bind(interface: &InterfaceName) -> anyhow::Result<Self> {
        let path = socket_path(interface);
        fs::create_dir_all(SOCKETS).with_context(|| format!("cannot make {SOCKETS}"))?;
        if UnixStream::connect(&path).await.is_ok() {
            bail!("another device answers on {}", path.display());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove the stale socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .and_then(|listener| {
                // It gives away the private key, whoever may enter the folder.
                fs::set_permissions(&path, Permissions::from_mode(0o600))?;
                Ok(listener)
            })
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        let inode = fs::metadata(&path)
            .with_context(|| format!("cannot look at {}", path.display()))?
            .ino();
        Ok(Self {
            listener,
            path,
            inode,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A request as it came, and where the answer goes.
struct Asked {
    request: Zeroizing<String>,
    answer: oneshot::Sender<Zeroizing<String>>,
}

/// Reads requests, each ended by an empty line, and writes the answers.
async fn converse(stream: UnixStream, requests: mpsc::Sender<Asked>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut request = Zeroizing::new(String::new());
    loop {
        let start = request.len();
        match reader.read_line(&mut request).await {
            Ok(read) if read > 0 && request.len() <= LONGEST_REQUEST => {}
            _ => return,
        }
        if request[start..] != *"\n" {
            continue;
        }
        request.truncate(start);
        if request.is_empty() {
            continue;
        }
        let (answer, answered) = oneshot::channel();
        if requests
            .send(Asked {
                request: std::mem::take(&mut request),
                answer,
            })
            .await
            .is_err()
        {
            return;
        }
        let Ok(answer) = answered.await else { return };
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
