//! A host: a network namespace and a mount namespace with a `/run` of its own, kept by one process.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket},
};

use crate::{process, wait::Events};

/// What `ps` shows in front of the host's name.
pub const MARK: &str = "wattle-lab-host";

/// Makes the inside of a host, then waits for as long as its standard input is open.
///
/// Forwarding and filtering begin as they are on a machine just installed, whatever the machine
/// below has set: namespaces inherit. Nobody else has the hosts' IPv6 addresses, so none waits to
/// see whether somebody has. Root may send pings without an ICMP header of its own making.
const HOLDER: &str = "
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mount -t sysfs sysfs /sys || true
for setting in /proc/sys/net/ipv6/conf/*/accept_dad; do
    [ ! -e $setting ] || echo 0 > $setting
done
echo 0 0 > /proc/sys/net/ipv4/ping_group_range
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter
echo ready
read -r _
";

/// How long the answer to a ping may take.
const PING: Duration = Duration::from_millis(500);
/// An echo request (RFC 792) with as many bytes behind it as `ping` sends. The kernel fills in the
/// identifier and the checksum.
const ECHO_REQUEST: [u8; 64] = {
    let mut packet = [0; 64];
    packet[0] = 8;
    packet
};
/// The first byte of an answer.
const ECHO_REPLY: u8 = 0;

/// What the kernel tells of a network to whoever joins these groups: interfaces, IPv4 addresses and
/// IPv4 routes (`RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`), and the rules of nftables
/// (the bit of `NFNLGRP_NFTABLES`). WireGuard tells nobody of peers, keys and handshakes: who waits
/// for those looks again and again.
const TOLD: [(SockProtocol, u32); 2] = [
    (SockProtocol::NetlinkRoute, 0x1 | 0x10 | 0x40),
    (SockProtocol::NetlinkNetFilter, 1 << 6),
];

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    holder: Child,
    /// Its network namespace.
    network: File,
    /// Closed, it ends the holder.
    _leash: ChildStdin,
}

impl Host {
    pub fn start(name: &str) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", HOLDER, MARK, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let (Some(leash), Some(stdout)) = (holder.stdin.take(), holder.stdout.take()) else {
            bail!("the holder of {name} has no pipes")
        };
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer)?;
        if answer.trim() != "ready" {
            bail!("the host {name} did not come up: {}", holder.wait()?);
        }
        let network = File::open(format!("/proc/{}/ns/net", holder.id()))
            .with_context(|| format!("opening the network of {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            holder,
            network,
            _leash: leash,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process whose namespaces are the host.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs on the host; its arguments are still to be added.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.enter();
        command.arg(program);
        command
    }

    /// What goes before a program so that it runs on the host. The program takes the place of
    /// `nsenter`, and with it the process id.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.pid().to_string(),
            "--net",
            "--mount",
            "--",
        ]);
        command
    }

    /// Runs a line of words, without quotes or any other meaning of a shell, and gives what it
    /// printed; it has to succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        process::run(self.line(line)?, None).with_context(|| format!("on {}", self.name))
    }

    /// As [`Host::run`], with something to read.
    pub fn run_with(&self, line: &str, input: &str) -> Result<String> {
        process::run(self.line(line)?, Some(input)).with_context(|| format!("on {}", self.name))
    }

    /// Runs a line of words, whatever comes of it.
    pub fn output(&self, line: &str) -> Result<Output> {
        process::output(&mut self.line(line)?, None).with_context(|| format!("on {}", self.name))
    }

    /// Does something on a thread of this program that is in the host's network: it takes no
    /// process, so it may be repeated. Sockets stay in the network where they were made.
    pub fn in_its_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|_| bail!("the thread panicked"))
        })
        .with_context(|| format!("in the network of {}", self.name))
    }

    /// One ping; an error says what came instead of the answer.
    pub fn ping(&self, address: Ipv4Addr) -> Result<()> {
        let (family, kind) = (AddressFamily::Inet, SockType::Datagram);
        let socket = self.in_its_network(|| {
            Ok(socket(
                family,
                kind,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Icmp,
            )?)
        })?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(PING))?;
        let mut answer = [0; ECHO_REQUEST.len()];
        socket
            .connect((address, 0))
            .and_then(|()| socket.send(&ECHO_REQUEST))
            .and_then(|_| socket.recv(&mut answer))
            .with_context(|| format!("a ping from {} to {address}", self.name))?;
        ensure!(answer[0] == ECHO_REPLY, "{address} answered {answer:?}");
        Ok(())
    }

    /// What its kernel tells from now on of interfaces, routes and rules of nftables, and nothing
    /// of WireGuard.
    pub fn changes(&self) -> Result<Events> {
        let sources = self.in_its_network(|| {
            let join = |(protocol, groups)| -> Result<_> {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
                bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
                Ok(socket)
            };
            TOLD.into_iter().map(join).collect()
        })?;
        Ok(Events::of(sources, Vec::new()))
    }

    /// Where a path of the host is for this program.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.pid()).into()
    }

    /// What a file of the host holds.
    pub fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path(path))
            .with_context(|| format!("reading {path} on {}", self.name))
    }

    /// What the host's kernel says of its network in a file of `/proc/net`.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        fs::read_to_string(format!("/proc/{}/net/{file}", self.pid()))
            .with_context(|| format!("reading /proc/net/{file} on {}", self.name))
    }

    /// The prefixes of IPv4 to which its main table has routes.
    pub fn routes(&self) -> Result<Vec<Ipv4Net>> {
        let text = self.proc_net("route")?;
        let mut lines = text.lines();
        let columns = lines.next().context("no columns")?.split_whitespace();
        let columns: Vec<_> = columns.collect();
        let read = |line: &str| -> Result<Ipv4Net> {
            let number = |column: &str| -> Result<[u8; 4]> {
                let at = columns.iter().position(|name| *name == column);
                let word = line.split_whitespace().nth(at.context("no such column")?);
                // As it lies in memory, in the order of the network.
                Ok(u32::from_str_radix(word.context("a short line")?, 16)?.to_ne_bytes())
            };
            let mask = number("Mask")?.into();
            Ok(Ipv4Net::with_netmask(number("Destination")?.into(), mask)?)
        };
        lines
            .map(|line| read(line).with_context(|| line.to_owned()))
            .collect()
    }

    fn line(&self, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command")?);
        command.args(words);
        Ok(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What else runs in the namespaces keeps them, and ends with the lab.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
