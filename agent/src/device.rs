//! The userspace WireGuard device: a process of its own, so that its tunnels outlive the agent that started it.
//!
//! ```text
//!   agent ──┐                                  ┌── TUN interface
//!           ├── /run/wireguard/NAME.sock ── device (gotatun)
//!   wg(8) ──┘   (WireGuard's UAPI protocol)    └── UDP socket
//! ```
//!
//! The socket is served here and not by gotatun's own server, because that one replaces a peer whenever it is written to: its session, its
//! counters and its learned endpoint would go with every change of a keepalive (gotatun 0.10.2, `on_api_set`). Its parser and its dump
//! are used.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use gotatun::{
    device::{
        Device, DeviceBuilder, DeviceTransports, Error, Peer,
        configure::DeviceWrite,
        uapi::{
            UapiClient, UapiServer,
            command::{Get, Request, Set, SetPeer, SetUnset},
        },
    },
    x25519::{PublicKey, StaticSecret},
};
use ipnet::IpNet;
use nix::{errno::Errno, sys::stat::Mode};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tracing::{error, info, warn};
use wattle_mesh::state::InterfaceName;
use zeroize::Zeroizing;

/// Where `wg` and everybody else looks for the sockets of userspace devices.
const SOCKETS: &str = "/var/run/wireguard";

/// How often the device looks whether its interface is still there. Before it has a key it does not read from it, so it would not notice.
const INTERFACE_CHECK: Duration = Duration::from_secs(1);

/// Longest request in bytes. One with 10,000 peers is a quarter of it.
const LONGEST_REQUEST: usize = 16 << 20;

/// Path of the socket on which the device of an interface is driven.
pub(crate) fn socket_path(interface: &InterfaceName) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

/// Moves the packets of one interface until a SIGTERM comes or the interface is deleted.
///
/// It leaves its parent's session first, so that no signal to the agent's terminal reaches it.
pub(crate) async fn run(interface: &InterfaceName) -> anyhow::Result<()> {
    // Fails for the leader of a process group, as when a shell started this: then it has a group of its own already.
    let _ = nix::unistd::setsid();
    // Whoever may write to the socket may read the private key.
    nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    end_on_panic();

    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let socket = Socket::bind(interface).await?;
    let (dump, server) = UapiServer::new();
    let device = DeviceBuilder::new()
        .with_default_udp()
        .create_tun(interface.as_str())
        .with_context(|| format!("cannot create the TUN interface {interface}: it needs CAP_NET_ADMIN and /dev/net/tun"))?
        .with_uapi(server)
        .build()
        .await
        .with_context(|| format!("cannot start the device of {interface}"))?;
    let mut device = Driven { device, dump, owners: BTreeMap::new() };
    let index =
        nix::net::if_::if_nametoindex(interface.as_str()).with_context(|| format!("no interface {interface} after its creation"))?;

    let (requests, mut received) = mpsc::channel(16);
    let mut check = tokio::time::interval(INTERFACE_CHECK);
    info!(%interface, "userspace device is ready");
    loop {
        tokio::select! {
            () = device.device.wait() => bail!("the device of {interface} failed or its interface was deleted"),
            _ = terminated.recv() => break info!(%interface, "userspace device ends"),
            _ = check.tick() => if nix::net::if_::if_nametoindex(interface.as_str()) != Ok(index) {
                break info!(%interface, "userspace device ends: its interface was deleted");
            },
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, requests.clone()))),
                Err(error) => warn!(%error, "cannot accept a connection"),
            },
            Some(Asked { request, answer }) = received.recv() => drop(answer.send(device.answer(&request).await)),
        }
    }
    device.device.stop().await;
    Ok(())
}

/// A device one of whose tasks panicked looks alive and moves nothing; once it is gone, the agent makes another.
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
                return Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let inode = fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?.ino();
        Ok(Self { listener, path, inode })
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
        if requests.send(Asked { request: std::mem::take(&mut request), answer }).await.is_err() {
            return;
        }
        let Ok(answer) = answered.await else { return };
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The device, and which peer holds which prefix: gotatun routes by prefix, yet forgets to take a prefix from the peer that held it before.
struct Driven<T: DeviceTransports> {
    device: Device<T>,
    dump: UapiClient,
    owners: BTreeMap<IpNet, PublicKeyBytes>,
}

type PublicKeyBytes = [u8; 32];

impl<T: DeviceTransports> Driven<T> {
    async fn answer(&mut self, request: &str) -> Zeroizing<String> {
        // The parser slices keys by bytes.
        let parsed = if request.is_ascii() { request.parse().ok() } else { None };
        match parsed {
            Some(Request::Get(_)) => match self.dump.send(Get::default()).await {
                Ok(dump) => Zeroizing::new(format!("{dump}\n")),
                Err(_) => errno(Err(Errno::EIO)),
            },
            Some(Request::Set(set)) => errno(self.set(set).await),
            None => errno(Err(Errno::EINVAL)),
        }
    }

    /// Writes only what the request names, and leaves the sessions of peers alone.
    async fn set(&mut self, set: Set) -> Result<(), Errno> {
        if let Some(key) = &set.private_key {
            self.set_private_key(key.0).await?;
        }
        if let Some(port) = set.listen_port {
            self.set_listen_port(port).await?;
        }
        if let Some(mark) = set.fwmark {
            let mark = if let SetUnset::Set(mark) = mark { u32::from(mark) } else { 0 };
            self.device.set_fwmark(mark).await.map_err(|error| errno_of(&error))?;
        }
        let has_key = self.has_key().await;
        let Self { device, owners, .. } = self;
        let written = device
            .write(async |device| {
                if set.replace_peers {
                    device.clear_peers();
                    owners.clear();
                }
                for peer in set.peers {
                    // gotatun panics on a peer that comes before the key.
                    if !has_key && !peer.remove {
                        return Err(Errno::ENOKEY);
                    }
                    set_peer(device, owners, peer).await?;
                }
                Ok(())
            })
            .await;
        written.map_err(|error| errno_of(&error))?
    }

    async fn set_private_key(&mut self, key: [u8; 32]) -> Result<(), Errno> {
        let key = StaticSecret::from(key);
        let port = self.device.read(async |device| device.listen_port()).await;
        let written = self.device.set_private_key(key).await;
        self.or_rebind(written, port, port).await
    }

    async fn set_listen_port(&mut self, port: u16) -> Result<(), Errno> {
        if !self.has_key().await {
            // gotatun panics on a socket that comes before the key; its own server writes the port down without opening one.
            let set = Set::builder().listen_port(port).build();
            return self.dump.send(set).await.map(drop).map_err(|_| Errno::EIO);
        }
        let before = self.device.read(async |device| device.listen_port()).await;
        let written = self.device.set_listen_port(port).await;
        self.or_rebind(written, port, before).await
    }

    /// Leaves no device without a socket: after a failure it takes the port that it had, or else any.
    async fn or_rebind(&mut self, written: Result<(), Error>, refused: u16, before: u16) -> Result<(), Errno> {
        let Err(cause) = written else { return Ok(()) };
        error!(%cause, port = refused, "cannot open the UDP socket");
        let fallback = if before == refused { 0 } else { before };
        if let Err(error) = self.device.set_listen_port(fallback).await {
            error!(%error, port = fallback, "cannot open a UDP socket at all");
        }
        Err(errno_of(&cause))
    }

    async fn has_key(&self) -> bool {
        self.device.read(async |device| device.private_key().is_some()).await
    }
}

async fn set_peer(
    device: &mut DeviceWrite<'_, impl DeviceTransports>,
    owners: &mut BTreeMap<IpNet, PublicKeyBytes>,
    set: SetPeer,
) -> Result<(), Errno> {
    let owner = set.peer.public_key.0;
    let key = PublicKey::from(owner);
    if set.remove {
        device.remove_peer(&key).await;
        owners.retain(|_, held_by| *held_by != owner);
        return Ok(());
    }

    // `modify_peer` answers whether the peer is there, and with nothing to write writes nothing.
    let is_known = device.modify_peer(&key, |_| {}).await;
    if !is_known {
        if set.update_only {
            return Ok(());
        }
        device.add_peer(Peer::new(key));
    }
    if set.replace_allowed_ips {
        owners.retain(|_, held_by| *held_by != owner);
    }
    for prefix in &set.peer.allowed_ip {
        let prefix = IpNet::new(prefix.network(), prefix.prefix()).map_err(|_| Errno::EINVAL)?;
        if let Some(loser) = owners.insert(prefix, owner)
            && loser != owner
        {
            let left = prefixes_of(owners, loser)?;
            device
                .modify_peer(&PublicKey::from(loser), |peer| {
                    peer.clear_allowed_ips();
                    peer.add_allowed_ips(left.allowed_ips);
                })
                .await;
        }
    }
    device
        .modify_peer(&key, |peer| {
            if let Some(psk) = set.peer.preshared_key {
                peer.set_preshared_key(if let SetUnset::Set(psk) = psk { Some(psk.0) } else { None });
            }
            if set.peer.endpoint.is_some() {
                peer.set_endpoint(set.peer.endpoint);
            }
            if set.peer.persistent_keepalive_interval.is_some() {
                peer.set_keepalive(set.peer.persistent_keepalive_interval);
            }
            if set.replace_allowed_ips {
                peer.clear_allowed_ips();
            }
            peer.add_allowed_ips(set.peer.allowed_ip);
        })
        .await;
    Ok(())
}

/// The prefixes of one peer, in gotatun's own type, which has no public name but that of this field.
fn prefixes_of(owners: &BTreeMap<IpNet, PublicKeyBytes>, owner: PublicKeyBytes) -> Result<Peer, Errno> {
    let mut peer = Peer::new(PublicKey::from(owner));
    for prefix in owners.iter().filter(|(_, held_by)| **held_by == owner).map(|(prefix, _)| prefix) {
        peer.allowed_ips.push(prefix.to_string().parse().map_err(|_| Errno::EINVAL)?);
    }
    Ok(peer)
}

fn errno(result: Result<(), Errno>) -> Zeroizing<String> {
    let code = result.err().map_or(0, |errno| errno as i32);
    Zeroizing::new(format!("errno={code}\n\n"))
}

fn errno_of(error: &Error) -> Errno {
    if let Error::Bind(error, _) | Error::IoError(error) = error
        && let Some(code) = error.raw_os_error()
    {
        return Errno::from_raw(code);
    }
    Errno::EINVAL
}
