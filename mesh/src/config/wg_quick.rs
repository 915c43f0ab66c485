//! The wg-quick file of an unmanaged node: a gateway without an agent, which knows of the mesh what
//! this file says.

use std::{cell::OnceCell, collections::BTreeMap, fmt, iter, net::IpAddr};

use chrono::SecondsFormat;
use ipnet::IpNet;
use serde::Serialize;
use wattle_wire::{
    endpoint::Endpoint,
    ids::NodeId,
    key::{Bytes32, InvalidKey, WireguardKey},
    name::Name,
    secret::Secret,
};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{
    audit,
    config::{
        directory::{Directory, NodeRecord, Unmanaged},
        view,
    },
    keys::psk::Psk,
};

/// Stands where a file has no private key. `wg` refuses it: a file without the line would load, and
/// leave an interface without a key.
pub const NO_KEY: &str = "INSERT-THE-PRIVATE-KEY-HERE";

/// The private half of a WireGuard key that is made for a file, which alone keeps it.
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// The key that comes of these random bytes, and its public half.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] in the one case of 2^252 in which no exchange is possible with it.
    pub fn of(random: [u8; 32]) -> Result<(Self, WireguardKey), InvalidKey> {
        let secret = StaticSecret::from(random);
        let key = WireguardKey::try_from(PublicKey::from(&secret).to_bytes())?;
        Ok((Self(secret), key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// What a file says, but for its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgQuick {
    interface: InterfaceSection,
    /// In order of their ids.
    pub peers: Vec<FilePeer>,
    /// Nodes of other sites without a tunnel: nobody could tell the two gateways their preshared
    /// key.
    unreachable: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct InterfaceSection {
    address: IpNet,
    /// `None` for a gateway that speaks first, from whatever port.
    listen_port: Option<u16>,
    /// Seconds; 0 means none.
    keepalive_s: u16,
}

/// A peer in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilePeer {
    pub node: NodeId,
    pub wireguard_key: WireguardKey,
    #[serde(skip)]
    name: Name,
    allowed_ips: Vec<IpNet>,
    endpoint: Option<Endpoint>,
}

impl WgQuick {
    /// What the file of a node has to say now; `None` if the node does not take part.
    pub fn of(directory: &Directory, node: NodeId) -> Option<Self> {
        let node = directory.nodes.get(&node)?;
        let (mut peers, mut unreachable) = (Vec::new(), Vec::new());
        for other in directory
            .nodes
            .values()
            .filter(|other| other.site != node.site)
        {
            if view::should_have_tunnel(node, other) {
                peers.push(FilePeer::of(directory, other)?);
            } else {
                unreachable.push(other.name.clone());
            }
        }
        Some(Self {
            interface: InterfaceSection::of(directory, node)?,
            peers,
            unreachable,
        })
    }

    /// Stands for all that the file says: it is out of date when this is another. Names are
    /// comments, and have no part in it.
    pub fn digest(&self) -> Option<Bytes32> {
        digest(&self.interface, self.peers.iter().map(FilePeer::digest))
    }

    /// The file with its secrets, one preshared key for each peer. Without a private key it says
    /// where that has to be put.
    pub fn write(
        &self,
        node: &NodeRecord,
        made: &Unmanaged,
        private_key: Option<&PrivateKey>,
        psks: &[Psk],
    ) -> Secret {
        let made_at = made.file_made_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut lines = vec![
            format!("# Wattle: {}, a gateway without an agent, as of {made_at}.", node.name),
            "# This file contains secrets and is shown once. On Linux, as root: save it as \
             /etc/wireguard/wattle.conf with mode 600, and run"
                .to_owned(),
            "# `wg-quick up wattle`. The gateway has to forward packets between its LAN and the \
             tunnel.".to_owned(),
            "# This file does not update itself. The coordinator shows when it is outdated; make a \
             new one then.".to_owned(),
        ];
        lines.extend(
            self.unreachable.iter().map(|name| {
                format!("# There is no tunnel with {name}, which has no agent either.")
            }),
        );
        lines.extend([
            String::new(),
            "[Interface]".to_owned(),
            format!("Address = {}", self.interface.address),
        ]);
        lines.push(match private_key {
            Some(PrivateKey(secret)) => {
                format!("PrivateKey = {}", Bytes32::from(secret.to_bytes()))
            }
            None => format!(
                "# The private key of this gateway, whose public key is {}.\nPrivateKey = {NO_KEY}",
                node.wireguard_key
            ),
        });
        lines.extend(
            self.interface
                .listen_port
                .map(|port| format!("ListenPort = {port}")),
        );
        for (peer, psk) in self.peers.iter().zip(psks) {
            let allowed_ips: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
            lines.extend([
                String::new(),
                "[Peer]".to_owned(),
                format!("# {}", peer.name),
                format!("PublicKey = {}", peer.wireguard_key),
            ]);
            lines.push(format!("PresharedKey = {}", Bytes32::from(*psk.reveal())));
            lines.push(format!("AllowedIPs = {}", allowed_ips.join(", ")));
            lines.extend(
                peer.endpoint
                    .map(|endpoint| format!("Endpoint = {endpoint}")),
            );
            let keepalive_s = self.interface.keepalive_s;
            lines.extend((keepalive_s > 0).then(|| format!("PersistentKeepalive = {keepalive_s}")));
        }
        lines.push(String::new());
        Secret::new(lines.join("\n"))
    }
}

impl InterfaceSection {
    fn of(directory: &Directory, node: &NodeRecord) -> Option<Self> {
        let endpoint = view::endpoint(node, directory.sites.get(&node.site)?);
        Some(Self {
            address: IpNet::from(IpAddr::V4(node.tunnel_address)),
            listen_port: endpoint.map(|endpoint| endpoint.socket().port()),
            keepalive_s: directory.mesh.keepalive_s,
        })
    }
}

impl FilePeer {
    fn of(directory: &Directory, node: &NodeRecord) -> Option<Self> {
        let peer = view::as_peer(directory, node.id)?;
        let tunnel_address = IpNet::from(IpAddr::V4(peer.tunnel_address));
        Some(Self {
            node: node.id,
            wireguard_key: node.wireguard_key,
            name: peer.name,
            allowed_ips: iter::once(tunnel_address).chain(peer.subnets).collect(),
            endpoint: peer.endpoint,
        })
    }

    fn digest(&self) -> Option<Bytes32> {
        Some(audit::digest(&serde_json::to_vec(self).ok()?))
    }
}

fn digest(
    interface: &InterfaceSection,
    peers: impl Iterator<Item = Option<Bytes32>>,
) -> Option<Bytes32> {
    let mut bytes = serde_json::to_vec(interface).ok()?;
    for peer in peers {
        bytes.extend(peer?.as_bytes());
    }
    Some(audit::digest(&bytes))
}

/// Tells which files of a mesh are current. Each peer is looked at once, in however many files it
/// is.
#[derive(Debug)]
pub struct Files<'d> {
    pub directory: &'d Directory,
    peers: OnceCell<BTreeMap<NodeId, Option<Bytes32>>>,
}

impl<'d> Files<'d> {
    pub fn of(directory: &'d Directory) -> Self {
        Self {
            directory,
            peers: OnceCell::new(),
        }
    }

    /// Whether the last file of an unmanaged node says what the mesh is now; `None` for a node with
    /// an agent.
    pub fn is_current(&self, node: &NodeRecord) -> Option<bool> {
        let made = node.unmanaged.as_ref()?;
        let peer =
            |node: &NodeRecord| FilePeer::of(self.directory, node).and_then(|peer| peer.digest());
        let peers = self.peers.get_or_init(|| {
            self.directory
                .nodes
                .values()
                .map(|node| (node.id, peer(node)))
                .collect()
        });
        let others = self
            .directory
            .nodes
            .values()
            .filter(|other| view::should_have_tunnel(node, other));
        let others = others.map(|other| peers.get(&other.id).copied().flatten());
        let now = InterfaceSection::of(self.directory, node)
            .and_then(|interface| digest(&interface, others));
        Some(now == Some(made.file_digest))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        config::directory::RecordChange,
        testing::{directory_of, node_id, node_record, respecified},
    };

    fn unmanaged(number: u64) -> NodeRecord {
        let made = Unmanaged {
            file_made_at: DateTime::UNIX_EPOCH,
            file_digest: Bytes32::from([0; 32]),
        };
        NodeRecord {
            unmanaged: Some(made),
            agent_version: None,
            ..node_record(number).1
        }
    }

    /// Four sites, of which the last two have no agent.
    fn mesh() -> Directory {
        let mut directory = directory_of(4);
        [3, 4]
            .into_iter()
            .for_each(|number| directory.apply(&RecordChange::Node(unmanaged(number))));
        directory
    }

    #[test]
    fn a_file_has_what_its_gateway_must_know_and_its_secrets() {
        let mut directory = mesh();
        let (site, node) = node_record(2);
        directory.apply(&respecified(site, |spec| {
            (spec.endpoint, spec.subnets) = (None, vec![]);
        }));
        directory.apply(&RecordChange::Node(node));
        let (file, node) = (
            WgQuick::of(&directory, node_id(3)).unwrap(),
            &directory.nodes[&node_id(3)],
        );
        let made = node.unmanaged.as_ref().unwrap();
        let (private_key, _) = PrivateKey::of([7; 32]).unwrap();
        let psks = [Psk::new([1; 32]), Psk::new([2; 32])];
        let [first, second] = [1, 2].map(|number| directory.nodes[&node_id(number)].wireguard_key);
        let expected = format!(
            "[Interface]\nAddress = 10.99.0.3/32\nPrivateKey = {private}\nListenPort = 51820\n\n\
             [Peer]\n# site-1\nPublicKey = {first}\nPresharedKey = {one}\nAllowedIPs = \
             10.99.0.1/32, 10.1.0.0/24\n\
             Endpoint = 203.0.113.1:51820\nPersistentKeepalive = 25\n\n\
             [Peer]\n# site-2\nPublicKey = {second}\nPresharedKey = {two}\nAllowedIPs = \
             10.99.0.2/32\nPersistentKeepalive = 25\n",
            private = Bytes32::from([7; 32]),
            one = Bytes32::from([1; 32]),
            two = Bytes32::from([2; 32]),
        );
        let text = file.write(node, made, Some(&private_key), &psks);
        let (heading, body) = text.reveal().split_once("\n\n").unwrap();
        assert_eq!(body, expected);
        assert!(
            heading.lines().all(|line| line.starts_with('#'))
                && heading.contains("no tunnel with site-4"),
            "{heading}"
        );

        let keyless = file.write(node, made, None, &psks);
        assert!(keyless.reveal().contains(&format!(
            "whose public key is {}.\nPrivateKey = {NO_KEY}\n",
            node.wireguard_key
        )));
        assert!(
            !format!("{private_key:?}{text:?}{file:?}")
                .contains(&Bytes32::from([7; 32]).to_string())
        );
    }

    #[test]
    fn a_file_is_out_of_date_when_the_mesh_is_not_what_it_says_and_only_then() {
        let current = mesh();
        let digest = |directory: &Directory| {
            WgQuick::of(directory, node_id(3))
                .unwrap()
                .digest()
                .unwrap()
        };
        let made = |directory: &Directory| {
            let made = Unmanaged {
                file_made_at: DateTime::UNIX_EPOCH,
                file_digest: digest(directory),
            };
            NodeRecord {
                unmanaged: Some(made),
                ..directory.nodes[&node_id(3)].clone()
            }
        };
        let node = made(&current);
        assert_eq!(Files::of(&current).is_current(&node), Some(true));
        assert_eq!(
            Files::of(&current).is_current(&current.nodes[&node_id(1)]),
            None
        );
        let after = |change: RecordChange| {
            let mut directory = current.clone();
            directory.apply(&change);
            Files::of(&directory).is_current(&node)
        };
        let (first, own, fifth) = (node_record(1), node_record(3), node_record(5));
        for new in [
            respecified(first.0.clone(), |spec| spec.subnets = vec![]),
            respecified(first.0.clone(), |spec| spec.endpoint = None),
            respecified(own.0.clone(), |spec| spec.endpoint = None),
            RecordChange::Node(NodeRecord {
                wireguard_key: fifth.1.wireguard_key,
                ..first.1.clone()
            }),
            RecordChange::NodeRevoked(node_id(1)),
        ] {
            assert_eq!(after(new.clone()), Some(false), "{new:?}");
        }
        for same in [
            respecified(first.0, |spec| spec.description = "x".to_owned()),
            respecified(own.0, |spec| spec.subnets = vec![]),
            RecordChange::NodeRevoked(node_id(4)),
        ] {
            assert_eq!(after(same.clone()), Some(true), "{same:?}");
        }
    }
}
