//! What a WireGuard device says of itself: the kernel's over netlink, a userspace device on its
//! socket. As `wg show` does it, but without a process, so that tests may ask again and again.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, anyhow, bail};
use wattle_wire::key::Bytes32;
use wireguard_control::{Backend, Device, PeerInfo};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::host::Host;

/// A device with its peers by their public keys. Keys are as `wg` prints them.
#[derive(Debug, Default, PartialEq)]
pub struct TunnelDevice {
    /// Empty if the device has no key.
    pub public_key: String,
    pub listen_port: u16,
    pub peers: BTreeMap<String, TunnelPeer>,
}

/// A peer of a device.
#[derive(Debug, Default, PartialEq)]
pub struct TunnelPeer {
    pub preshared_key: Option<String>,
    pub endpoint: Option<SocketAddr>,
    /// Seconds since 1970 at which both last shook hands; 0 if they never did.
    pub handshake_s: u64,
    /// In order.
    pub allowed_ips: Vec<String>,
}

impl TunnelDevice {
    /// Asks the device that has the interface of this name on the host.
    pub fn of(host: &Host, interface: &str) -> Result<Self> {
        let mut device =
            match UnixStream::connect(host.path(&format!("/run/wireguard/{interface}.sock"))) {
                Ok(socket) => from_socket(socket),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    from_kernel(host, interface)
                }
                Err(error) => Err(error.into()),
            }
            .with_context(|| format!("asking {interface} on {}", host.name()))?;
        for peer in device.peers.values_mut() {
            peer.allowed_ips.sort();
        }
        Ok(device)
    }
}

fn from_kernel(host: &Host, interface: &str) -> Result<TunnelDevice> {
    let name = interface
        .parse()
        .map_err(|error| anyhow!("not an interface name: {error:?}"))?;
    let found = host.in_its_network(|| Ok(Device::get(&name, Backend::Kernel)?))?;
    let mut device = TunnelDevice {
        public_key: found.public_key.map(|key| text(key.0)).unwrap_or_default(),
        listen_port: found.listen_port.unwrap_or_default(),
        ..TunnelDevice::default()
    };
    for PeerInfo { config, stats } in found.peers {
        let handshake = stats
            .last_handshake_time
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let allowed_ips = config.allowed_ips.iter();
        let peer = TunnelPeer {
            preshared_key: config.preshared_key.and_then(|key| secret(key.0)),
            endpoint: config.endpoint,
            handshake_s: handshake.unwrap_or_default().as_secs(),
            allowed_ips: allowed_ips
                .map(|prefix| format!("{}/{}", prefix.address, prefix.cidr))
                .collect(),
        };
        device.peers.insert(text(config.public_key.0), peer);
    }
    Ok(device)
}

/// In the lines of <https://www.wireguard.com/xplatform/>.
fn from_socket(mut socket: UnixStream) -> Result<TunnelDevice> {
    socket.write_all(b"get=1\n\n")?;
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with("\n\n") {
        match socket.read(&mut buffer)? {
            0 => bail!("the device ended in the middle of {} bytes", answer.len()),
            length => answer += std::str::from_utf8(&buffer[..length])?,
        }
    }
    let mut device = TunnelDevice::default();
    let mut peer = &mut TunnelPeer::default();
    for (name, value) in answer.lines().filter_map(|line| line.split_once('=')) {
        match name {
            "private_key" => {
                let secret = StaticSecret::from(bytes(value)?);
                device.public_key = text(PublicKey::from(&secret).to_bytes());
            }
            "listen_port" => device.listen_port = value.parse()?,
            "public_key" => peer = device.peers.entry(text(bytes(value)?)).or_default(),
            "preshared_key" => peer.preshared_key = secret(bytes(value)?),
            "endpoint" => peer.endpoint = Some(value.parse()?),
            "last_handshake_time_sec" => peer.handshake_s = value.parse()?,
            "allowed_ip" => peer.allowed_ips.push(value.to_owned()),
            "errno" if value != "0" => bail!("the device said errno {value}"),
            _ => {}
        }
    }
    Ok(device)
}

/// Zeros stand for no key.
fn secret(key: [u8; 32]) -> Option<String> {
    (key != [0; 32]).then(|| text(key))
}

fn text(key: [u8; 32]) -> String {
    Bytes32::from(key).to_string()
}

fn bytes(hex: &str) -> Result<[u8; 32]> {
    let digits = (0..hex.len()).step_by(2);
    let bytes = digits
        .map(|at| u8::from_str_radix(hex.get(at..at + 2).unwrap_or_default(), 16))
        .collect::<Result<Vec<_>, _>>()
        .context("not a number in hex")?;
    bytes.try_into().map_err(|_| anyhow!("not 32 bytes"))
}
