//! Two gateways with userspace devices and a tunnel between them, and nothing else of Wattle: no
//! coordinator, no agents.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    host::Host,
    process::Daemon,
    wait::{patience, wait_for},
};

/// The port of both.
pub const PORT: u16 = 51820;
/// Name of both interfaces.
const INTERFACE: &str = "wg0";
/// Bytes. With 80 of WireGuard over IPv6, a packet is 1,500.
const MTU: u32 = 1420;

/// One of the two.
#[derive(Debug)]
pub struct End {
    pub host: Host,
    pub device: Daemon,
    /// The last number of its addresses: `192.0.2.N` outside, `10.0.0.N` and `fd00::N` in the
    /// tunnel.
    pub number: u8,
}

/// Two gateways.
#[derive(Debug)]
pub struct DevicePair {
    pub here: End,
    pub there: End,
}

impl DevicePair {
    /// Starts what `device` gives on each of them: a device for the interface [`INTERFACE`], which
    /// stays in the foreground. Logs are kept in the folder.
    pub fn start(folder: &Path, device: impl Fn(&Host, &str) -> Command) -> Result<Self> {
        let (one, two) = (Host::start("here")?, Host::start("there")?);
        one.run(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}",
            two.pid()
        ))?;
        let end = |host: Host, number| -> Result<End> {
            host.run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"))?;
            host.run("ip link set eth0 up")?;
            let log = folder.join(format!("{}.log", host.name()));
            let device = Daemon::start(device(&host, INTERFACE), &log)?;
            Ok(End {
                host,
                device,
                number,
            })
        };
        let pair = Self {
            here: end(one, 1)?,
            there: end(two, 2)?,
        };
        for (end, other) in [(&pair.here, &pair.there), (&pair.there, &pair.here)] {
            end.set(&format!(
                "private_key={}\nlisten_port={PORT}\n",
                hex::encode(end.key(0).to_bytes())
            ))?;
            end.set(&other.as_peer(0))?;
            let number = end.number;
            for line in [
                format!("ip addr add 10.0.0.{number}/24 dev {INTERFACE}"),
                format!("ip addr add fd00::{number}/64 dev {INTERFACE} nodad"),
                format!("ip link set {INTERFACE} mtu {MTU} up"),
            ] {
                end.host.run(&line)?;
            }
        }
        pair.here.host.ping(Ipv4Addr::new(10, 0, 0, 2))?;
        Ok(pair)
    }
}

impl End {
    /// One of its private keys, by a number.
    pub fn key(&self, number: u8) -> StaticSecret {
        StaticSecret::from([16 * number + self.number; 32])
    }

    /// Its address in the tunnel.
    pub fn address(&self, is_v4: bool) -> IpAddr {
        let number = self.number;
        if is_v4 {
            Ipv4Addr::new(10, 0, 0, number).into()
        } else {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
        }
    }

    /// What another device is told of it, with one of its keys.
    pub fn as_peer(&self, key: u8) -> String {
        let (public, number) = (PublicKey::from(&self.key(key)), self.number);
        format!(
            "public_key={}\nendpoint=192.0.2.{number}:{PORT}\nallowed_ip=10.0.0.{number}/32\n\
             allowed_ip=fd00::{number}/128\n",
            hex::encode(public.as_bytes())
        )
    }

    /// Sets the device, as `wg` does.
    pub fn set(&self, lines: &str) -> Result<()> {
        let answer = self.ask(&format!("set=1\n{lines}\n"))?;
        ensure!(answer == "errno=0\n\n", "the device refuses: {answer}");
        Ok(())
    }

    /// Asks the device, and gives all that it answers.
    pub fn ask(&self, request: &str) -> Result<String> {
        let path = self.host.path(&format!("/run/wireguard/{INTERFACE}.sock"));
        let mut socket = wait_for("the device answers", patience(10.0), || {
            UnixStream::connect(&path).context("no device answers")
        })?;
        socket.write_all(request.as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Processor time that the device took so far.
    pub fn processor(&self) -> Result<Duration> {
        /// Clock ticks in a second (`USER_HZ`, which is 100 on all of Linux).
        const TICK: Duration = Duration::from_millis(10);
        let stat = self.proc("stat")?;
        // After the name in brackets; utime and stime are the 14th and 15th field (proc(5)).
        let (_, fields) = stat.rsplit_once(')').context("no name in brackets")?;
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u32>)
            .sum::<Result<u32, _>>()?;
        Ok(TICK * ticks)
    }

    /// Bytes of memory that the device has.
    pub fn memory(&self) -> Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("no VmRSS")?;
        Ok(kibibytes.parse::<u64>()? * 1024)
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.device.pid());
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }
}
