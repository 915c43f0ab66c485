//! The userspace device by itself: what is put in at one end comes out at the other, whatever Linux
//! helps with.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use wattle_lab::{
    Lab,
    binaries::Binaries,
    flow::load::{Load, Numbered},
    pair::{DevicePair, End, PORT},
    patience,
    site::{DUBLIN, FRANKFURT, GUIDE},
    wait_for,
};

/// Bytes of each stream.
const STREAM: usize = 8 << 20;
/// Datagrams of each flow.
const DATAGRAMS: u64 = 20_000;
/// How long a socket waits for what has to come.
const SILENCE: Duration = Duration::from_secs(10);

pub(crate) fn flows_come_whole_and_in_order_with_and_without_each_offload(
    folder: &Path,
) -> Result<()> {
    for off in ["", "interface", "send", "receive", "interface,send,receive"] {
        flows_come_whole(folder, off).with_context(|| format!("without {off:?}"))?;
    }
    Ok(())
}

fn flows_come_whole(folder: &Path, off: &str) -> Result<()> {
    let pair = pair(folder, off)?;
    let (here, there) = (&pair.here, &pair.there);
    // IFF_VNET_HDR (linux/if_tun.h).
    let flags = here.host.read("/sys/class/net/wg0/tun_flags")?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16)?;
    ensure!(
        (flags & 0x4000 != 0) != off.contains("interface"),
        "the interface has {flags:x}"
    );
    // No more segments of a flow come at once than the device reads.
    let interface = here.host.run("ip -details link show wg0")?;
    ensure!(interface.contains("gso_max_segs 128 "), "{interface}");
    for is_v4 in [true, false] {
        stream(here, there, is_v4)?;
        stream(there, here, is_v4)?;
    }
    datagrams(here, there)?;
    // What is 64 KiB of one flow to Linux is 600 packets then.
    for end in [here, there] {
        end.host
            .run("ip route change 10.0.0.0/24 dev wg0 advmss 120")?;
    }
    stream(here, there, true)?;
    stream(there, here, true)
}

pub(crate) fn a_peer_is_answered_from_the_address_that_it_asked(folder: &Path) -> Result<()> {
    let pair = pair(folder, "")?;
    let (here, there) = (&pair.here, &pair.there);
    there.host.run("ip addr add 192.0.2.12/24 dev eth0")?;
    // Nothing comes through from the address that Linux would choose.
    let rules = "add table inet only\n\
         add chain inet only in { type filter hook input priority 0; }\n\
         add rule inet only in ip saddr 192.0.2.2 drop\n";
    here.host.run_with("nft -f -", rules)?;
    // One request removes the peer and makes it again.
    let peer = there.as_peer(0);
    let key = peer.lines().next().context("a peer has a key")?;
    let asked = peer.replace("192.0.2.2:", "192.0.2.12:");
    here.set(&format!("{key}\nremove=true\n{asked}"))?;
    wait_for("an answer comes", patience(15.0), || {
        here.host.ping([10, 0, 0, 2].into())
    })?;
    let state = here.ask("get=1\n\n")?;
    ensure!(
        state.contains(&format!("endpoint=192.0.2.12:{PORT}\n")),
        "it came from elsewhere: {}",
        state
            .lines()
            .find(|line| line.starts_with("endpoint"))
            .unwrap_or_default()
    );
    datagrams(here, there)?;
    // Once that address is gone, the others are told by what comes from the one that is left.
    here.host.run("nft delete table inet only")?;
    there.host.run("ip addr del 192.0.2.12/24 dev eth0")?;
    there.host.ping([10, 0, 0, 1].into())
}

pub(crate) fn a_flow_beside_one_that_takes_all_there_is_loses_nothing_and_keeps_its_order(
    folder: &Path,
) -> Result<()> {
    let pair = pair(folder, "")?;
    let (here, there) = (&pair.here, &pair.there);
    let load =
        |from: &End, to: &End| Load::start(&from.host, &to.host, [10, 0, 0, to.number].into());
    let loads = [load(here, there)?, load(there, here)?];
    datagrams(here, there)?;
    datagrams(there, here)?;
    loads.into_iter().try_for_each(Load::finish)
}

pub(crate) fn a_route_with_a_smaller_mtu_holds_for_flows_of_which_linux_hands_over_64_kib(
    folder: &Path,
) -> Result<()> {
    /// Bytes that are left of 1,300 beside the headers of IPv4 and TCP.
    const MOST: u32 = 1260;
    let mut lab = Lab::build(folder, &GUIDE)?;
    lab.weave()?;
    let (dublin, frankfurt) = (lab.gateway(DUBLIN)?, lab.gateway(FRANKFURT)?);
    dublin
        .host
        .run("ip route change 10.20.0.0/24 dev wattle0 proto 87 mtu 1300")?;
    for (from, to) in [(dublin, frankfurt), (frankfurt, dublin)] {
        let load = Load::start(&from.lan_host, &to.lan_host, to.site.lan_host())?;
        let sockets = from.lan_host.run("ss -tinH dport = :7070")?;
        let segment = sockets
            .split_whitespace()
            .find_map(|word| word.strip_prefix("mss:")?.parse::<u32>().ok())
            .with_context(|| format!("no size in {sockets}"))?;
        ensure!((1000..=MOST).contains(&segment), "segments of {segment}");
        load.more(16 << 20)?;
        load.finish()?;
    }
    Ok(())
}

fn pair(folder: &Path, off: &str) -> Result<DevicePair> {
    let agent = Binaries::find()?.agent().to_owned();
    let folder = folder.join(if off.is_empty() { "all" } else { off });
    fs::create_dir_all(&folder)?;
    DevicePair::start(&folder, |host, interface| {
        let mut command = host.command(&agent);
        command.args(["device", interface]);
        if !off.is_empty() {
            command.arg(format!("--no-offload={off}"));
        }
        command
    })
}

/// A stream of TCP of which each byte is looked at.
fn stream(from: &End, to: &End, is_v4: bool) -> Result<()> {
    let address = SocketAddr::new(to.address(is_v4), 7000);
    let listener = to.host.in_its_network(|| Ok(TcpListener::bind(address)?))?;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(SILENCE))?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            same_bytes(&received)
        });
        let mut stream = from
            .host
            .in_its_network(|| Ok(TcpStream::connect_timeout(&address, SILENCE)?))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.write_all(&pattern())?;
        drop(stream);
        receiver
            .join()
            .unwrap_or_else(|_| bail!("the receiver panicked"))
    })
    .with_context(|| format!("a stream to {address}"))
}

/// Bytes of which no two groups of eight are alike.
fn pattern() -> Vec<u8> {
    (0..STREAM as u64 / 8).flat_map(u64::to_le_bytes).collect()
}

fn same_bytes(received: &[u8]) -> Result<()> {
    let sent = pattern();
    ensure!(
        received.len() == sent.len(),
        "{} of {} bytes came",
        received.len(),
        sent.len()
    );
    let differs = received.iter().zip(&sent).position(|(one, two)| one != two);
    ensure!(differs.is_none(), "byte {differs:?} is another");
    Ok(())
}

/// Datagrams of which none may be lost or come out of order.
fn datagrams(from: &End, to: &End) -> Result<()> {
    let flow = Numbered::start(&from.host, &to.host, to.address(true))?;
    flow.more(DATAGRAMS)?;
    flow.finish().map(drop)
}
