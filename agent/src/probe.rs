//! Probes peers through their tunnels, answers them, and counts bytes for them, beside the loop: a
//! host that takes long to follow a view answers all the same.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;
use wattle_mesh::{
    agent::replica::Known,
    health::probe::{OutgoingProbe, Probes},
    host::interface::InterfaceName,
};
use wattle_wire::{ids::NodeId, probe::Probe, report::ProbeReport};

use crate::kernel::{
    probe::{Arrived, ProbeSocket},
    throughput,
};

/// How long to wait before the socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Probes peers until it is dropped.
#[derive(Debug)]
pub(crate) struct Prober {
    shared: Arc<Shared>,
    /// Where to probe from; `None` while nobody is to be probed.
    address: watch::Sender<Option<Ipv4Addr>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    probes: Mutex<Probes>,
    started: Instant,
    /// A peer's state, or what gets to it, changed.
    news: Notify,
    /// Whom to probe changed.
    followed: Notify,
}

impl Prober {
    /// Begins; nobody is probed before [`Prober::follow`].
    pub(crate) fn start(interface: &InterfaceName) -> Self {
        let shared = Arc::new(Shared {
            probes: Mutex::default(),
            started: Instant::now(),
            news: Notify::new(),
            followed: Notify::new(),
        });
        let (address, tunnel_address) = watch::channel(None);
        let task = tokio::spawn(run(Arc::clone(&shared), interface.clone(), tunnel_address));
        Self {
            shared,
            address,
            task,
        }
    }

    /// Follows what is known of the mesh, through a tunnel with this MTU.
    pub(crate) fn follow(&self, known: &Known, mtu: Option<u32>) {
        let mut probes = self.shared.probes();
        probes.follow(known, mtu, self.shared.started.elapsed());
        let address = probes.next_at().map(|_| known.myself.tunnel_address);
        drop(probes);
        self.address
            .send_if_modified(|before| std::mem::replace(before, address) != address);
        self.shared.followed.notify_one();
    }

    /// Waits until the state of a peer, or what gets to it, changes.
    pub(crate) async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// What is known of each peer that ever answered.
    pub(crate) fn reports(&self) -> BTreeMap<NodeId, ProbeReport> {
        self.shared.probes().reports()
    }

    /// Bytes of the largest packet that is known to get to each peer.
    pub(crate) fn sizes(&self) -> BTreeMap<NodeId, u16> {
        self.shared.probes().sizes()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    shared: Arc<Shared>,
    interface: InterfaceName,
    mut address: watch::Receiver<Option<Ipv4Addr>>,
) {
    loop {
        let from = *address.borrow_and_update();
        let exchange = async {
            match from {
                Some(from) => {
                    let socket = ProbeSocket::open(interface.as_str(), from)?;
                    tokio::select! {
                        failed = shared.exchange(&socket) => failed,
                        never = throughput::count_for(interface.as_str(), from, |peer| shared.probes().is_peer(peer)) => match never {},
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Err::<(), io::Error>(error) = exchange => {
                debug!("cannot probe peers: {error}");
                sleep(REOPEN).await;
            }
            changed = address.changed() => if changed.is_err() { return },
        }
    }
}

impl Shared {
    /// Asks and answers until the socket fails.
    async fn exchange(&self, socket: &ProbeSocket) -> io::Result<()> {
        loop {
            let due_at = self.probes().next_at();
            let due = async {
                match due_at {
                    Some(at) => sleep_until(self.started + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                arrived = socket.arrival() => self.take(socket, arrived?)?,
                () = due => {
                    let next = self.probes().next(self.started.elapsed());
                    if let Some(OutgoingProbe { to, probe, length }) = next {
                        socket.send(to, probe, length)?;
                    }
                }
                () = self.followed.notified() => {}
            }
            if self.probes().take_news() {
                self.news.notify_one();
            }
        }
    }

    fn take(&self, socket: &ProbeSocket, arrived: Arrived) -> io::Result<()> {
        let now = self.started.elapsed();
        match arrived {
            Arrived::Probe(from, probe) => {
                let answer = self.probes().take(from, probe, now);
                answer.map_or(Ok(()), |answer| socket.send(from, answer, Probe::LENGTH))
            }
            Arrived::Refused(from, probe) => {
                self.probes().refused(from, probe, now);
                Ok(())
            }
        }
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
