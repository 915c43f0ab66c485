//! The userspace device as the agent sees it: its process, and the UAPI text protocol on its
//! socket.
//!
//! `wireguard-control` speaks this protocol too, and is not used for it: where no device answers it
//! starts `wireguard-go`, it has no time limits, it prints to stdout, and it loses the error
//! number, which is all that tells a taken port from a bad request.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    fs::{self, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::Command,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};
use wattle_mesh::{
    host::{
        interface::InterfaceName,
        offload::Offload,
        state::{AllowedIps, PeerUpdate},
    },
    keys::psk::Psk,
};
use zeroize::Zeroizing;

use super::device_state::{Dump, Write};
use crate::device::{
    socket_path,
    starter::{self, Answer},
};

/// How long a device may take to answer. It answers in less than a millisecond; a busy host gets
/// time.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long a new device may take until it answers first.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a device may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Everything that the device knows, or nothing if no device answers.
pub(super) async fn dump(interface: &InterfaceName, now_s: u64) -> anyhow::Result<Option<Dump>> {
    let answer = match ask(interface, "get=1\n\n").await {
        Ok(answer) => answer,
        Err(error) if nobody_answers(&error) => return Ok(None),
        Err(error) => return Err(error).context("cannot read the state of the userspace device"),
    };
    parse_dump(&answer, now_s)
        .map(Some)
        .context("the userspace device reported a state that cannot be parsed")
}

/// Writes what it is told to and nothing else.
pub(super) async fn write(interface: &InterfaceName, what: &Write<'_>) -> io::Result<()> {
    let answer = ask(interface, &request(what)).await?;
    match answer
        .lines()
        .find_map(|line| line.strip_prefix("errno="))
        .and_then(|code| code.parse().ok())
    {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the userspace device did not answer",
        )),
    }
}

/// Has a device started and waits until it answers. Gives its process id.
///
/// Nothing that ends the agent ends it: it is of systemd's making, in a unit of its own, or the
/// agent's own program in a session of its own.
pub(super) async fn start(
    interface: &InterfaceName,
    no_offload: &BTreeSet<Offload>,
    state_dir: &Path,
) -> anyhow::Result<u32> {
    let log = state_dir.join("device.log");
    let answer = match asked_of_systemd(interface, no_offload).await? {
        Some(answer) => answer,
        None => answer_of(spawned(interface, no_offload, &log)?).await?,
    };
    match answer {
        Answer::Ready => process_id(interface)
            .await
            .context("the userspace device was ready, and does not answer"),
        Answer::Failed(why) => bail!("the userspace device ended: {why}"),
        Answer::Elsewhere | Answer::Nothing => {
            bail!("the userspace device ended: {}", last_words(&log))
        }
    }
}

/// What a device says that the unit of systemd starts; nothing where there is no such unit for this
/// agent.
async fn asked_of_systemd(
    interface: &InterfaceName,
    no_offload: &BTreeSet<Offload>,
) -> anyhow::Result<Option<Answer>> {
    let mut stream = match UnixStream::connect(starter::SOCKET).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            warn!(%error, "cannot ask {} for the userspace device", starter::SOCKET);
            return Ok(None);
        }
    };
    let own = namespace_of("self").context("cannot read /proc/self/ns/net")?;
    let request = starter::request(interface, &own, no_offload);
    if let Err(error) = stream.write_all(request.as_bytes()).await {
        bail!("systemd does not start the userspace device: {error}");
    }
    Ok(match answer_of(stream).await? {
        Answer::Elsewhere => None,
        Answer::Nothing => Some(Answer::Failed(
            "`journalctl --unit='wattle-device@*'` says why".to_owned(),
        )),
        answer @ (Answer::Ready | Answer::Failed(_)) => Some(answer),
    })
}

/// The agent's own program as a device, and the socket on which it says how it goes.
fn spawned(
    interface: &InterfaceName,
    no_offload: &BTreeSet<Offload>,
    log: &Path,
) -> anyhow::Result<UnixStream> {
    let words = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let (ours, of_device) = std::os::unix::net::UnixStream::pair()?;
    let mut command = starter::command(interface, no_offload)?;
    command
        .current_dir("/")
        .stdin(OwnedFd::from(of_device))
        .stdout(Stdio::null())
        .stderr(words);
    command.env_clear();
    let mut child = Command::from(command)
        .spawn()
        .context("cannot start the userspace device")?;
    let pid = child.id();
    // As long as this agent lives, it is the parent: without this a zombie would stay.
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            info!(pid, %status, "the userspace device ended");
        }
    });
    ours.set_nonblocking(true)?;
    Ok(UnixStream::from_std(ours)?)
}

/// Reads what a device says of its start. One that is ready later finds nobody to tell, and ends.
async fn answer_of(stream: UnixStream) -> anyhow::Result<Answer> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream).take(starter::LONGEST_LINE);
    match timeout(START_LIMIT, reader.read_line(&mut line)).await {
        Ok(_) => Ok(Answer::read(&line)),
        Err(_) => bail!(
            "the userspace device did not answer within {} s",
            START_LIMIT.as_secs()
        ),
    }
}

/// The process that answers on the socket of the interface.
pub(super) async fn process_id(interface: &InterfaceName) -> Option<u32> {
    let stream = UnixStream::connect(socket_path(interface)).await.ok()?;
    stream.peer_cred().ok()?.pid()?.try_into().ok()
}

/// Whether the process is a device of this interface, in this network namespace: its id alone may
/// have been given to another since.
pub(super) fn is_device(interface: &InterfaceName, pid: u32) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    arguments.next() == Some(b"device")
        && arguments.next() == Some(interface.as_str().as_bytes())
        && namespace_of(&pid.to_string()) == namespace_of("self")
}

/// Ends a device process and waits until it is gone, and with it its interface. One that is not a
/// device of the interface is left alone.
pub(super) async fn end(interface: &InterfaceName, pid: u32) -> anyhow::Result<()> {
    let Ok(target) = pid.try_into().map(Pid::from_raw) else {
        return Ok(());
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !is_device(interface, pid) {
            return Ok(());
        }
        match kill(target, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot end the userspace device, process {pid}"));
            }
        }
        let deadline = Instant::now() + END_LIMIT;
        while is_device(interface, pid) && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }
    if is_device(interface, pid) {
        bail!("the userspace device, process {pid}, does not end");
    }
    Ok(())
}

/// Network namespace of a process, as the kernel names it.
pub(super) fn namespace_of(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// Whether a process runs another program than this agent: an upgrade replaced the file.
pub(super) fn is_old(pid: u32) -> bool {
    let program = |process: &str| {
        let file = fs::metadata(format!("/proc/{process}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    let device = program(&pid.to_string());
    device.is_some() && device != program("self")
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

fn nobody_answers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::TimedOut
    )
}

async fn ask(interface: &InterfaceName, request: &str) -> io::Result<Zeroizing<String>> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket_path(interface)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Zeroizing::new(Vec::new());
        let mut part = Zeroizing::new([0; 16 * 1024]);
        while !answer.ends_with(b"\n\n") {
            let read = stream.read(&mut part[..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            answer.extend_from_slice(&part[..read]);
        }
        let answer = String::from_utf8(std::mem::take(&mut answer))
            .map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Zeroizing::new(answer))
    };
    timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The request, in the words of <https://www.wireguard.com/xplatform/#configuration-protocol>.
fn request(what: &Write<'_>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from("set=1\n"));
    // Writing to a string cannot fail.
    let _ = match what {
        Write::PrivateKey(key) => writeln!(text, "private_key={}", *to_hex(key)),
        Write::ListenPort(port) => writeln!(text, "listen_port={port}"),
        Write::Peers(peers) => peers.iter().try_for_each(|(key, change)| {
            writeln!(text, "public_key={}", *to_hex(key.as_bytes()))?;
            match change {
                Some(change) => peer_lines(&mut text, change),
                None => writeln!(text, "remove=true"),
            }
        }),
    };
    text.push('\n');
    text
}

fn peer_lines(text: &mut String, change: &PeerUpdate) -> fmt::Result {
    if let Some(psk) = &change.psk {
        writeln!(text, "preshared_key={}", *to_hex(psk.reveal()))?;
    }
    if let Some(endpoint) = change.endpoint {
        writeln!(text, "endpoint={endpoint}")?;
    }
    if let Some(seconds) = change.keepalive_s {
        writeln!(text, "persistent_keepalive_interval={seconds}")?;
    }
    let prefixes = match &change.allowed_ips {
        AllowedIps::Untouched => return Ok(()),
        AllowedIps::Add(prefixes) => prefixes,
        AllowedIps::Replace(prefixes) => {
            writeln!(text, "replace_allowed_ips=true")?;
            prefixes
        }
    };
    prefixes
        .iter()
        .try_for_each(|prefix| writeln!(text, "allowed_ip={prefix}"))
}

fn parse_dump(text: &str, now_s: u64) -> anyhow::Result<Dump> {
    let mut dump = Dump::default();
    // A peer that is not one of ours to have, such as one with a key of low order, is passed over
    // with its lines.
    let mut current = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once('=').context("a line without =")?;
        if name == "public_key" {
            current = from_hex(value)?
                .as_slice()
                .try_into()
                .ok()
                .and_then(|bytes: [u8; 32]| bytes.try_into().ok());
            if let Some(key) = current {
                dump.peers.insert(key, Default::default());
            }
            continue;
        }
        let peer = current.as_ref().and_then(|key| dump.peers.get_mut(key));
        match (name, peer) {
            ("private_key", _) => {
                dump.public_key = super::device_state::public_half(&*from_hex(value)?)
            }
            ("listen_port", _) => dump.listen_port = value.parse()?,
            ("errno", _) if value != "0" => bail!("error number {value}"),
            ("preshared_key", Some(peer)) => {
                peer.psk = Some(from_hex(value)?)
                    .filter(|psk| **psk != [0; 32])
                    .map(|psk| Psk::new(*psk))
            }
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse()?),
            ("persistent_keepalive_interval", Some(peer)) => peer.keepalive_s = value.parse()?,
            ("last_handshake_time_sec", Some(peer)) => {
                let at: u64 = value.parse()?;
                peer.handshake_age_s = (at > 0).then(|| now_s.saturating_sub(at));
            }
            ("rx_bytes", Some(peer)) => peer.received_bytes = value.parse()?,
            ("tx_bytes", Some(peer)) => peer.sent_bytes = value.parse()?,
            ("allowed_ip", Some(peer)) => drop(peer.allowed_ips.insert(value.parse()?)),
            _ => {}
        }
    }
    Ok(dump)
}

fn to_hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(hex::encode(bytes))
}

/// The error of `hex` would say which character is wrong, and it may be one of a private key.
fn from_hex(text: &str) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, &mut *bytes)
        .map_err(|_| anyhow!("a key that is not 64 hexadecimal digits"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use wattle_mesh::host::state::ObservedPeer;

    use super::*;

    const KEY: &str = "0900000000000000000000000000000000000000000000000000000000000000";
    const LOW_ORDER: &str = "0100000000000000000000000000000000000000000000000000000000000000";

    fn key() -> wattle_wire::key::WireguardKey {
        from_hex(KEY)
            .map(|bytes| *bytes)
            .unwrap()
            .try_into()
            .unwrap()
    }

    #[test]
    fn a_request_names_only_what_changes() {
        let change = PeerUpdate {
            keepalive_s: Some(0),
            ..PeerUpdate::default()
        };
        assert_eq!(
            *request(&Write::Peers(vec![(&key(), Some(&change))])),
            format!("set=1\npublic_key={KEY}\npersistent_keepalive_interval=0\n\n")
        );
        let (gone, lines) = (
            key(),
            format!(
                "public_key={KEY}\npersistent_keepalive_interval=0\npublic_key={KEY}\nremove=true\n"
            ),
        );
        assert_eq!(
            *request(&Write::Peers(vec![(&gone, Some(&change)), (&gone, None)])),
            format!("set=1\n{lines}\n")
        );
        assert_eq!(
            *request(&Write::ListenPort(51820)),
            "set=1\nlisten_port=51820\n\n"
        );
    }

    #[test]
    fn a_request_replaces_prefixes_only_when_told_to() {
        let prefixes = || {
            ["10.2.0.0/24", "fd99::2/128"]
                .into_iter()
                .map(|text| text.parse().unwrap())
                .collect()
        };
        let add = PeerUpdate {
            allowed_ips: AllowedIps::Add(prefixes()),
            ..PeerUpdate::default()
        };
        let lines = "allowed_ip=10.2.0.0/24\nallowed_ip=fd99::2/128\n\n";
        assert_eq!(
            *request(&Write::Peers(vec![(&key(), Some(&add))])),
            format!("set=1\npublic_key={KEY}\n{lines}")
        );
        let replace = PeerUpdate {
            allowed_ips: AllowedIps::Replace(prefixes()),
            psk: Some(Psk::new([7; 32])),
            ..PeerUpdate::default()
        };
        let psk = "07".repeat(32);
        assert_eq!(
            *request(&Write::Peers(vec![(&key(), Some(&replace))])),
            format!(
                "set=1\npublic_key={KEY}\npreshared_key={psk}\nreplace_allowed_ips=true\n{lines}"
            )
        );
    }

    #[test]
    fn a_dump_is_read_whole_and_weak_peers_are_passed_over() {
        let text = format!(
            "private_key={}\nlisten_port=51820\npublic_key={LOW_ORDER}\nallowed_ip=10.9.0.0/24\npublic_key={KEY}\npreshared_key={KEY}\n\
             endpoint=[fd00::1]:7\npersistent_keepalive_interval=25\nlast_handshake_time_sec=90\nlast_handshake_time_nsec=5\n\
             rx_bytes=1\ntx_bytes=2\nallowed_ip=10.2.0.0/24\nprotocol_version=1\nerrno=0\n\n",
            "07".repeat(32)
        );
        let peer = ObservedPeer {
            endpoint: Some("[fd00::1]:7".parse().unwrap()),
            keepalive_s: 25,
            allowed_ips: ["10.2.0.0/24".parse().unwrap()].into(),
            psk: Some(Psk::new(*from_hex(KEY).unwrap())),
            handshake_age_s: Some(10),
            received_bytes: 1,
            sent_bytes: 2,
        };
        let public_key = super::super::device_state::public_half(&[7; 32]);
        assert_eq!(
            parse_dump(&text, 100).unwrap(),
            Dump {
                public_key,
                listen_port: 51820,
                peers: [(key(), peer)].into()
            }
        );
    }

    #[test]
    fn a_dump_that_failed_or_makes_no_sense_is_an_error() {
        for bad in [
            "errno=5\n\n",
            "nonsense\n\n",
            "public_key=09\n\n",
            "listen_port=99999\n\n",
        ] {
            assert!(parse_dump(bad, 0).is_err(), "{bad}");
        }
        let ahead = format!("public_key={KEY}\nlast_handshake_time_sec=200\nerrno=0\n\n");
        assert_eq!(
            parse_dump(&ahead, 100).unwrap().peers[&key()].handshake_age_s,
            Some(0)
        );
    }
}
