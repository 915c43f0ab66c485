//! What the threads of a device share.

use std::{
    collections::{BTreeSet, HashMap},
    io::IoSlice,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use gotatun::{
    noise::{handshake::parse_handshake_anon, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::{Packet, WgHandshakeInit, WgKind},
    x25519::{PublicKey, StaticSecret},
};
use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;
use tracing::warn;

use super::{
    PACKET,
    peer::{Peer, Tunnel},
    tun::Tun,
    udp::UdpSocket,
    waiting::Total,
};

pub(super) struct Shared {
    pub(super) tun: Tun,
    mtu: AtomicUsize,
    socket: RwLock<Option<Arc<UdpSocket>>>,
    peers: RwLock<Peers>,
    sessions: Mutex<HashMap<u32, Session>>,
    pub(super) indices: IndexTable,
    pub(super) waiting: Total,
}

/// The peers, and which of them has which addresses.
pub(super) struct Peers {
    pub(super) key: Option<DeviceKey>,
    by_key: HashMap<PublicKey, Entry>,
    by_prefix: IpNetworkTable<Arc<Peer>>,
}

/// A peer with the prefixes that it has.
pub(super) struct Entry {
    pub(super) peer: Arc<Peer>,
    pub(super) prefixes: BTreeSet<IpNetwork>,
}

/// The key of the device.
#[derive(Clone)]
pub(super) struct DeviceKey {
    pub(super) private: StaticSecret,
    pub(super) public: PublicKey,
    pub(super) limiter: Arc<RateLimiter>,
    /// Counts the keys of this device, from 1.
    pub(super) number: u64,
}

/// Whose an index of a session is.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) peer: Arc<Peer>,
    /// [`DeviceKey::number`] of the key that the device had then.
    pub(super) key: u64,
}

impl Peers {
    fn none() -> Self {
        Self {
            key: None,
            by_key: HashMap::new(),
            by_prefix: IpNetworkTable::new(),
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_key.values()
    }

    pub(super) fn get(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key).map(|entry| &entry.peer)
    }

    /// Whether a peer is one of these, and was not removed and made anew.
    fn has(&self, peer: &Arc<Peer>) -> bool {
        self.get(&peer.key)
            .is_some_and(|found| Arc::ptr_eq(found, peer))
    }

    /// Whom a packet to or from an address belongs to.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.by_prefix.longest_match(address).map(|(_, peer)| peer)
    }

    pub(super) fn add(&mut self, peer: Arc<Peer>) {
        self.remove(&peer.key);
        let prefixes = BTreeSet::new();
        self.by_key.insert(peer.key, Entry { peer, prefixes });
    }

    pub(super) fn remove(&mut self, key: &PublicKey) {
        self.clear_prefixes(key);
        self.by_key.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.by_key.clear();
        self.by_prefix = IpNetworkTable::new();
    }

    pub(super) fn clear_prefixes(&mut self, key: &PublicKey) {
        let Some(entry) = self.by_key.get_mut(key) else {
            return;
        };
        for prefix in std::mem::take(&mut entry.prefixes) {
            self.by_prefix.remove(prefix);
        }
    }

    /// Gives a prefix to a peer. Whoever had it has it no more.
    pub(super) fn give(&mut self, prefix: IpNetwork, peer: &Arc<Peer>) {
        let before = self.by_prefix.insert(prefix, Arc::clone(peer));
        if let Some(loser) = before.and_then(|before| self.by_key.get_mut(&before.key)) {
            loser.prefixes.remove(&prefix);
        }
        if let Some(entry) = self.by_key.get_mut(&peer.key) {
            entry.prefixes.insert(prefix);
        }
    }

    /// Who started a handshake.
    pub(super) fn of_initiation(
        &self,
        key: &DeviceKey,
        initiation: &WgHandshakeInit,
    ) -> Option<&Arc<Peer>> {
        let half = parse_handshake_anon(&key.private, &key.public, initiation).ok()?;
        self.get(&PublicKey::from(half.peer_static_public))
    }
}

impl Shared {
    pub(super) fn new(tun: Tun) -> Arc<Self> {
        let shared = Self {
            tun,
            mtu: AtomicUsize::new(0),
            socket: RwLock::default(),
            peers: RwLock::new(Peers::none()),
            sessions: Mutex::default(),
            indices: IndexTable::from_os_rng(),
            waiting: Total::default(),
        };
        shared.look_at_mtu();
        Arc::new(shared)
    }

    /// Bytes of the longest packet that the interface takes, as it was looked at last.
    pub(super) fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    pub(super) fn look_at_mtu(&self) {
        if let Ok(mtu) = self.tun.mtu() {
            let mtu = usize::from(mtu);
            let before = self.mtu.swap(mtu, Ordering::Relaxed);
            if mtu > PACKET && mtu != before {
                warn!(
                    mtu,
                    "packets of more than {PACKET} bytes do not pass: set a smaller MTU"
                );
            }
        }
    }

    pub(super) fn peers(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change_peers(&self) -> RwLockWriteGuard<'_, Peers> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn socket(&self) -> Option<Arc<UdpSocket>> {
        let socket = self.socket.read().unwrap_or_else(PoisonError::into_inner);
        socket.clone()
    }

    pub(super) fn set_socket(&self, socket: UdpSocket) {
        let mut shared = self.socket.write().unwrap_or_else(PoisonError::into_inner);
        *shared = Some(Arc::new(socket));
    }

    pub(super) fn session(&self, index: u32) -> Option<Session> {
        self.sessions().get(&index).cloned()
    }

    /// Forgets indices that no handshake and no session has any more, and those of peers that are
    /// gone.
    pub(super) fn forget_sessions(&self) {
        let peers = self.peers();
        self.sessions()
            .retain(|index, session| self.indices.in_use(*index) && peers.has(&session.peer));
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u32, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one message to a peer. What answers a handshake finds the peer by its index.
    pub(super) fn send(&self, peer: &Arc<Peer>, tunnel: &mut Tunnel, message: WgKind) {
        let index = if let WgKind::HandshakeInit(initiation) = &message {
            Some(initiation.sender_idx.get())
        } else if let WgKind::HandshakeResp(response) = &message {
            Some(response.sender_idx.get())
        } else {
            None
        };
        if let Some(index) = index {
            let session = Session {
                peer: Arc::clone(peer),
                key: tunnel.key(),
            };
            self.sessions().insert(index, session);
        }
        if let (Some(path), Some(socket)) = (tunnel.path_of(&message), self.socket()) {
            let bytes = Packet::from(message);
            socket.send(&path, &[IoSlice::new(&bytes)]);
        }
    }
}
