//! What a hostile coordinator says: well-formed, drawn from a seed, and as harmful as can be.

use std::{
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wattle_lab::coordinator;
use wattle_mesh::keys::node_keys::NodeKeys;
use wattle_wire::{ids::MeshId, key::Bytes32};

/// Numbers that are the same for the same seed (splitmix64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    pub(crate) fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub(crate) fn of<T: Clone>(&mut self, all: &[T]) -> T {
        let index = usize::try_from(self.below(all.len() as u64)).unwrap_or_default();
        all[index].clone()
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.number().to_be_bytes());
        }
        bytes
    }

    fn id(&mut self) -> String {
        let number = u128::from(self.number()) << 64 | u128::from(self.number());
        let hex = format!("{number:032x}");
        [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ]
        .join("-")
    }
}

pub(crate) fn unix_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs().cast_signed())
}

/// What is said to one gateway.
#[derive(Debug)]
pub(crate) struct Liar {
    pub(crate) dice: Dice,
    mesh: MeshId,
    /// The true view of the gateway.
    view: Value,
    /// The gateway's addresses on its networks.
    own: [Ipv4Addr; 2],
    /// Up to where this gateway was told last.
    position: String,
    /// The gateway waits for a whole view.
    begins: bool,
    /// The gateway requires the lock: it is told that its true peers are removed, too.
    pub(crate) is_locked: bool,
    /// Records of machines of the thief's that this gateway was told of.
    machines: Vec<Value>,
}

impl Liar {
    /// `kept` is what the gateway keeps of what it was told.
    pub(crate) fn new(seed: u64, mut kept: Value, own: [Ipv4Addr; 2]) -> Result<Self> {
        let view = kept["view"].take();
        let position = kept["position"].as_str().context("no position")?.to_owned();
        let mesh = view["mesh"]["id"]
            .as_str()
            .context("a view without a mesh")?;
        Ok(Self {
            dice: Dice::new(seed),
            mesh: mesh.parse()?,
            view,
            own,
            position,
            begins: false,
            is_locked: false,
            machines: Vec::new(),
        })
    }

    /// The gateway opens a stream, and says up to where it knows the mesh.
    pub(crate) fn begin(&mut self, since: Option<&str>) {
        self.begins = since.is_none();
        if let Some(since) = since {
            since.clone_into(&mut self.position);
        }
    }

    /// A message of the stream.
    pub(crate) fn message(&mut self) -> Result<Value> {
        let message = match self.dice.below(20) {
            _ if std::mem::take(&mut self.begins) => self.snapshot()?,
            0..3 => self.snapshot()?,
            3..13 => self.delta()?,
            13..15 => {
                let position = self.next_position(false);
                json!({ "type": "heartbeat", "position": position })
            }
            15 => json!({ "type": "mail" }),
            16 => self.long_list(),
            17 if self.dice.one_in(4) => {
                let reason = self
                    .dice
                    .of(&["revoked", "superseded", "shutdown", "tired"]);
                json!({ "type": "bye", "reason": reason })
            }
            _ => json!({ "type": "confetti", "colour": [[[{ "red": i64::MAX }]]] }),
        };
        if let Some(position) = message["position"].as_str() {
            position.clone_into(&mut self.position);
        }
        Ok(message)
    }

    /// Mostly the next one, which alone is followed; with a `whole` view any may come.
    fn next_position(&mut self, whole: bool) -> String {
        let (epoch, revision) = self.position.split_once('.').unwrap_or(("1", "1"));
        let (epoch, revision): (i64, i64) =
            (epoch.parse().unwrap_or(1), revision.parse().unwrap_or(1));
        let ends = [0, revision, 1 << 53, i64::MAX - 1, i64::MAX];
        if !self.dice.one_in(if whole { 3 } else { 25 }) {
            return format!("{epoch}.{}", revision.saturating_add(1));
        }
        if !whole {
            return format!("{epoch}.{}", self.dice.of(&ends));
        }
        let (now, next) = (unix_s(), epoch.saturating_add(1));
        let epochs = [
            0,
            1,
            epoch,
            next,
            now - 1,
            now,
            now + 1,
            now + 90_000,
            1 << 53,
            i64::MAX,
        ];
        format!("{}.{}", self.dice.of(&epochs), self.dice.of(&ends))
    }

    fn snapshot(&mut self) -> Result<Value> {
        let mut view = self.view.clone();
        let machines = self.machines.clone();
        let peers = view["peers"].as_array_mut().context("no peers")?;
        peers.extend(machines);
        if self.dice.one_in(4) {
            let peers = peers.len() as u64;
            let index = usize::try_from(self.dice.below(peers))?;
            view["peers"]
                .as_array_mut()
                .context("no peers")?
                .remove(index);
        }
        for _ in 0..self.dice.below(4) {
            match self.dice.below(3) {
                0 => self.twist_settings(&mut view["mesh"]),
                1 => self.twist_own(&mut view["myself"]),
                _ => {
                    let peers = view["peers"].as_array_mut().context("no peers")?;
                    let index = usize::try_from(self.dice.below(peers.len() as u64))?;
                    let mut peer = peers[index].take();
                    self.twist_peer(&mut peer);
                    view["peers"][index] = peer;
                }
            }
        }
        let position = self.next_position(true);
        let gone = (0..self.dice.below(20)).map(|_| json!({ "node": self.dice.id() }));
        let removed: Vec<_> = gone.collect();
        Ok(json!({ "type": "snapshot", "position": position, "view": view, "removed": removed }))
    }

    fn delta(&mut self) -> Result<Value> {
        let since = self.position.clone();
        let position = self.next_position(false);
        let steps = 1 + self.dice.below(3);
        let changes = (0..steps).map(|_| self.change());
        let changes = changes.collect::<Result<Vec<_>>>()?;
        Ok(json!({ "type": "delta", "since": since, "position": position, "changes": changes }))
    }

    fn change(&mut self) -> Result<Value> {
        Ok(match self.dice.below(6) {
            0 => {
                let machine = self.machine()?;
                self.machines.push(machine.clone());
                json!({ "peer": machine })
            }
            1 if self.is_locked && self.dice.one_in(2) => {
                let peers = self.view["peers"].as_array().context("no peers")?;
                let peer = self.dice.of(peers);
                json!({ "peer_removed": { "node": peer["node"] } })
            }
            1 if !self.machines.is_empty() => {
                let index = usize::try_from(self.dice.below(self.machines.len() as u64))?;
                let gone = self.machines.swap_remove(index);
                json!({ "peer_removed": { "node": gone["node"] } })
            }
            2 => {
                let mut settings = self.view["mesh"].clone();
                self.twist_settings(&mut settings);
                json!({ "mesh": settings })
            }
            3 => {
                let mut myself = self.view["myself"].clone();
                self.twist_own(&mut myself);
                json!({ "myself": myself })
            }
            _ => {
                let peers = self.view["peers"].as_array().context("no peers")?;
                let mut peer = self.dice.of(peers);
                self.twist_peer(&mut peer);
                json!({ "peer": peer })
            }
        })
    }

    /// A machine of the thief's, which signs for itself as any other.
    fn machine(&mut self) -> Result<Value> {
        let keys = NodeKeys::new(&self.dice.bytes(), &self.dice.bytes(), 1)?;
        let third = 100 + self.dice.below(100);
        let host = self.dice.below(250) + 2;
        let subnets = [json!([format!("10.{third}.{host}.0/24")]), self.prefixes()];
        Ok(json!({
            "node": self.dice.id(),
            "name": format!("thief-{}", self.dice.below(1 << 40)),
            "site_name": "thief",
            "statement": keys.statement(self.mesh)?,
            "tunnel_address": format!("10.99.{third}.{host}"),
            "subnets": self.dice.of(&subnets),
            "endpoint": self.endpoint(),
        }))
    }

    fn twist_settings(&mut self, settings: &mut Value) {
        match self.dice.below(7) {
            0 => {
                let prefixes = [
                    "0.0.0.0/0",
                    "128.0.0.0/1",
                    "198.18.0.0/15",
                    "10.0.0.0/8",
                    "10.99.0.0/30",
                    "203.0.113.0/24",
                    "224.0.0.0/4",
                    "127.0.0.0/8",
                ];
                settings["tunnel_prefix"] = json!(self.dice.of(&prefixes));
            }
            1 => settings["listen_port"] = json!(self.dice.of(&[0, 1, 22, 8443, 51_821, 65_535])),
            2 => settings["keepalive_s"] = json!(self.dice.of(&[0, 1, 65_535])),
            3 => settings["psk"] = json!(self.dice.of(&["require", "prefer"])),
            4 => settings["rotate_days"] = json!(self.dice.of(&[0, 1, 65_535])),
            5 => settings["id"] = json!(self.dice.id()),
            _ => {
                let health = [
                    json!({ "probes": false, "lossy_percent": 0, "slow_ms": 0 }),
                    json!({ "probes": true, "lossy_percent": 255, "slow_ms": 65_535 }),
                ];
                settings["health"] = self.dice.of(&health);
            }
        }
    }

    fn twist_own(&mut self, myself: &mut Value) {
        match self.dice.below(5) {
            0 => myself["tunnel_address"] = json!(self.address()),
            1 => myself["subnets"] = self.prefixes(),
            2 => myself["endpoint"] = self.endpoint(),
            3 => myself["node"] = json!(self.dice.id()),
            _ => {
                let sequence = self.dice.of(&[1, 2, 1 << 40, u64::MAX >> 1, u64::MAX]);
                myself["keys"] = json!({
                    "sequence": sequence,
                    "highest": self.dice.of(&[0, sequence, u64::MAX]),
                    "rotate": self.dice.one_in(2),
                });
            }
        }
    }

    fn twist_peer(&mut self, peer: &mut Value) {
        match self.dice.below(8) {
            0 => peer["tunnel_address"] = json!(self.address()),
            1 => peer["subnets"] = self.prefixes(),
            2 => peer["endpoint"] = self.endpoint(),
            3 => peer["name"] = json!(self.dice.of(&["dublin", "a", "thief"])),
            4 => {
                let signature = peer["statement"]["signature"].clone();
                peer["announced"] = json!({
                    "announcement": peer["statement"]["statement"], "signature": signature,
                });
            }
            5 => {
                peer["trial"] = json!({ "endpoint": self.endpoint_at(), "by": self.dice.id() });
            }
            6 => drop(peer.as_object_mut().map(|peer| peer.remove("admission"))),
            _ => {
                if let Ok(machine) = self.machine() {
                    peer["statement"] = machine["statement"].clone();
                }
            }
        }
    }

    fn address(&mut self) -> String {
        let [underlay, lan] = self.own;
        let peers = self.view["peers"].as_array().cloned().unwrap_or_default();
        let theirs = peers
            .first()
            .and_then(|peer| peer["tunnel_address"].as_str());
        let all = [
            coordinator::ADDRESS.to_string(),
            underlay.to_string(),
            lan.to_string(),
            theirs.unwrap_or("10.99.0.1").to_owned(),
            "0.0.0.0".to_owned(),
            "255.255.255.255".to_owned(),
            "127.0.0.1".to_owned(),
            "10.99.255.254".to_owned(),
        ];
        self.dice.of(&all)
    }

    fn prefixes(&mut self) -> Value {
        let many: Vec<_> = (0..=255)
            .map(|number| format!("10.210.{number}.0/24"))
            .collect();
        let all = [
            json!([]),
            json!(["198.18.0.0/24"]),
            json!(["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"]),
            json!(["10.10.0.0/24", "10.20.0.0/24", "10.30.0.0/24"]),
            json!(["172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"]),
            json!(["2000::/3"]),
            json!(["fd00::/32"]),
            json!(many),
        ];
        self.dice.of(&all)
    }

    fn endpoint(&mut self) -> Value {
        if self.dice.one_in(4) {
            return Value::Null;
        }
        json!(self.endpoint_at())
    }

    fn endpoint_at(&mut self) -> String {
        let [underlay, lan] = self.own;
        let port = self.dice.of(&[1, 53, 8443, 51_820, 65_535]);
        let all = [
            coordinator::ADDRESS.to_string(),
            underlay.to_string(),
            lan.to_string(),
            "10.20.0.100".to_owned(),
            "10.99.0.2".to_owned(),
            "192.0.2.99".to_owned(),
        ];
        format!("{}:{port}", self.dice.of(&all))
    }

    /// All peers are ready for a new key, with what they signed for something else.
    fn forged_words(&self) -> Vec<Value> {
        let peers = self.view["peers"].as_array().into_iter().flatten();
        let word = |peer: &Value| {
            let signature = &peer["statement"]["signature"];
            json!({ "node": peer["node"], "signature": signature })
        };
        peers.map(word).collect()
    }

    /// More than any mesh has, and small to write.
    fn long_list(&mut self) -> Value {
        let position = self.next_position(false);
        let many = self.dice.of(&[9_000, 30_000, 150_000]);
        let gone = |dice: &mut Dice| json!({ "node": dice.id() });
        if self.dice.one_in(2) {
            let removed: Vec<_> = (0..many).map(|_| gone(&mut self.dice)).collect();
            let view = self.view.clone();
            return json!({
                "type": "snapshot", "position": position, "view": view, "removed": removed,
            });
        }
        // Not signed by anybody, so that each is refused.
        let mut peer = self.view["peers"][0].clone();
        peer["statement"]["statement"] = json!("x".repeat(200));
        let changes = (0..many / 4).map(|_| {
            peer["node"] = json!(self.dice.id());
            json!({ "peer": peer })
        });
        let changes: Vec<_> = changes.collect();
        json!({
            "type": "delta", "since": self.position, "position": position, "changes": changes,
        })
    }

    /// The body of an answer.
    pub(crate) fn answer(&mut self, path: &str) -> Value {
        match path {
            "/agent/mailbox" => {
                let peers = self.view["peers"].as_array().cloned().unwrap_or_default();
                let from = if peers.is_empty() {
                    Value::Null
                } else {
                    self.dice.of(&peers)
                };
                let letters = (0..self.dice.below(200)).map(|id| {
                    json!({
                        "id": id, "from": from["node"],
                        "message": {
                            "message": "y".repeat(2_000),
                            "signature": from["statement"]["signature"],
                        },
                    })
                });
                let letters: Vec<_> = letters.collect();
                json!({ "letters": letters, "more": self.dice.one_in(3) })
            }
            "/agent/rotation" => json!({
                "ready": self.forged_words(),
                "challenge": {
                    "nonce": Bytes32::from(self.dice.bytes()),
                    "server_key": Bytes32::from([9; 32]),
                },
            }),
            "/agent/links" => {
                let links = (0..self.dice.below(2_000))
                    .map(|_| json!({ "peer": self.dice.id(), "state": "down", "lan": "unknown" }));
                let links: Vec<_> = links.collect();
                let seen = self.endpoint_at();
                json!({ "links": links, "seen_at": [seen] })
            }
            _ => json!({}),
        }
    }
}
