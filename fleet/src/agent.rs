//! One simulated agent: real keys, real enrolment, real stream, the agents' own replica and
//! messages; no kernel, no disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chrono::Utc;
use futures_util::{
    StreamExt,
    future::{BoxFuture, OptionFuture},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::sleep,
};
use wattle_client::{
    http::{HttpClient, Trusted},
    node::{NodeClient, Signer},
    secrets::{self, SystemSecrets},
};
use wattle_mesh::{
    agent::{
        replica::{Known, Received, Replica, Stored},
        reporting::next_number,
    },
    backoff::backoff,
    keys::{
        authorities::Authorities,
        node_keys::NodeKeys,
        psk::mailbox::{MailboxReply, Means, PassedOver, PskMailbox},
    },
};
use wattle_wire::{
    admin::CreatedSite,
    enrol::Enrolled,
    ids::{NodeId, Position},
    join::JoinString,
    peer::{MeshSettings, Myself, View},
    psk::{MailboxRequest, PskPolicy},
    report::{DeviceKind, LinkReport, Report},
    stream::StreamMessage,
};

/// Reports on their way at the same time; more would only wait in the sockets of one machine.
const REPORTS_AT_A_TIME: usize = 64;

/// How long to wait after a request to the mailbox that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a report is repeated before the agent begins anew with another stream.
const MOST_REPEATS: u32 = 8;

/// What all agents share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// For all agents together where they speak plain HTTP.
    client: Option<HttpClient>,
    pub(crate) urls: Vec<String>,
    reports: Semaphore,
    pub(crate) counters: Counters,
}

/// What all agents count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) snapshots: AtomicU64,
    /// Bytes of the streams' messages.
    pub(crate) bytes: AtomicU64,
    pub(crate) messages: AtomicU64,
    /// Reports that did not arrive, and were sent again.
    pub(crate) repeated: AtomicU64,
    /// Messages about preshared keys that were left in the mailbox.
    pub(crate) mailbox_messages: AtomicU64,
}

/// An agent reached a revision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) revision: i64,
    /// When its replica had it.
    pub(crate) applied: Instant,
    /// When the coordinator had its acknowledgement.
    pub(crate) acknowledged: Instant,
}

/// A machine that has become a node.
#[derive(Debug)]
pub(crate) struct Agent {
    shared: Arc<Shared>,
    client: NodeClient,
    site: CreatedSite,
    node_keys: NodeKeys,
    enrolled: Enrolled,
    /// The number of its last report.
    last_number: Mutex<Option<i64>>,
    mailbox: Mutex<PskMailbox>,
    /// With whom it agrees on preshared keys, as if it knew nobody else.
    partners: Mutex<BTreeSet<NodeId>>,
    /// With how many peers it has agreed on a preshared key.
    agreed: AtomicUsize,
}

impl Shared {
    pub(crate) fn new(urls: Vec<String>) -> anyhow::Result<Self> {
        let is_plain = urls.iter().all(|url| url.starts_with("http://"));
        let client = is_plain.then(|| Trusted::Nobody.client_config().map(HttpClient::new));
        Ok(Self {
            client: client.transpose()?,
            urls,
            reports: Semaphore::new(REPORTS_AT_A_TIME),
            counters: Counters::default(),
        })
    }

    /// The client of a machine, which turns to one of the coordinators first.
    fn client(&self, number: u32, join: &JoinString) -> anyhow::Result<NodeClient> {
        let mut urls = self.urls.clone();
        urls.rotate_left(number as usize % self.urls.len());
        match &self.client {
            Some(client) => Ok(NodeClient::sharing(client.clone(), urls)),
            None => NodeClient::new(urls, Authorities::new(join.pins.clone())),
        }
    }
}

impl Agent {
    /// Makes keys and enrols. With TLS it has a connection of its own for its stream and its
    /// reports, as real agents have.
    pub(crate) async fn enrol(
        shared: Arc<Shared>,
        number: u32,
        site: CreatedSite,
    ) -> anyhow::Result<Self> {
        let join: JoinString = site.join_token.join_string.reveal().parse()?;
        let client = shared.client(number, &join)?;
        let seed = || secrets::bytes::<32>().context("no random numbers");
        let node_keys = NodeKeys::new(&*seed()?, &*seed()?, 0)?;
        let enrolled = client.enrol(&join, &node_keys, None, "fleet").await?;
        Ok(Self {
            shared,
            client,
            site,
            node_keys,
            enrolled,
            last_number: Mutex::default(),
            mailbox: Mutex::default(),
            partners: Mutex::default(),
            agreed: AtomicUsize::default(),
        })
    }

    /// Lets it agree on preshared keys with some, once it knows them.
    pub(crate) fn agree_with(&self, partners: BTreeSet<NodeId>) {
        *locked(&self.partners) = partners;
    }

    /// With how many peers it has agreed on a preshared key.
    pub(crate) fn agreed(&self) -> usize {
        self.agreed.load(Ordering::Relaxed)
    }

    pub(crate) fn node(&self) -> NodeId {
        self.enrolled.node
    }

    /// What this node may know; each agent gets the settings of the mesh in it.
    pub(crate) async fn view(&self) -> anyhow::Result<View> {
        Ok(self.client.view(self.signer()).await?)
    }

    /// A replica that knows nothing yet.
    pub(crate) fn blank(&self) -> Replica {
        Replica::new(self.enrolled.mesh, self.node_keys.wireguard_key())
    }

    /// A replica that is at a position. To save the fleet's memory it has none of the peers; what
    /// changes of them it takes in as every other does.
    pub(crate) fn resumed(
        &self,
        position: Position,
        mesh: &MeshSettings,
    ) -> anyhow::Result<Replica> {
        let site = &self.site.site;
        let myself = Myself {
            node: self.enrolled.node,
            name: self.enrolled.name.clone(),
            site: site.id,
            site_name: site.name.clone(),
            tunnel_address: site.tunnel_address,
            subnets: site.subnets.clone(),
            endpoint: site.endpoint,
            keys: None,
        };
        let mut replica = self.blank();
        let view = View {
            mesh: mesh.clone(),
            myself,
            peers: vec![],
        };
        replica.restore(Stored::new(position, view))?;
        Ok(replica)
    }

    /// Follows, and comes back as agents do, until `stop` is set.
    pub(crate) async fn follow(
        self: Arc<Self>,
        mut replica: Replica,
        reached: mpsc::UnboundedSender<Reached>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut failures = 0;
        while !*stop.borrow() {
            tokio::select! {
                _ = stop.changed() => return,
                result = self.follow_once(&mut replica, &reached) => failures = if result.is_ok() { 0 } else { failures + 1 },
            }
            sleep(backoff(failures, random())).await;
        }
    }

    async fn follow_once(
        &self,
        replica: &mut Replica,
        reached: &mpsc::UnboundedSender<Reached>,
    ) -> anyhow::Result<()> {
        let stream = self
            .client
            .stream(self.signer(), replica.resume_from())
            .await?;
        let mut stream = std::pin::pin!(stream);
        let bytes = &self.shared.counters.bytes;
        let (mut request, mut is_away) = (OptionFuture::default(), false);
        loop {
            if !is_away && let Some(next) = self.next_request() {
                (request, is_away) = (Some(self.go(next)).into(), true);
            }
            tokio::select! {
                message = stream.next() => {
                    let (message, length) = message.context("the stream ended")??;
                    // A blank line follows each message.
                    bytes.fetch_add(length as u64 + 2, Ordering::Relaxed);
                    self.take(replica, message, reached).await?;
                }
                Some((request, reply)) = &mut request, if is_away => {
                    is_away = false;
                    self.use_mailbox(replica, |mailbox, known, means| mailbox.take_in(&request, reply, Some(known), means));
                }
            }
        }
    }

    async fn take(
        &self,
        replica: &mut Replica,
        message: StreamMessage,
        reached: &mpsc::UnboundedSender<Reached>,
    ) -> anyhow::Result<()> {
        let counters = &self.shared.counters;
        counters.messages.fetch_add(1, Ordering::Relaxed);
        if matches!(message, StreamMessage::Snapshot { .. }) {
            counters.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        if message == StreamMessage::MessagesWaiting {
            locked(&self.mailbox).messages_are_waiting();
        }
        let before = replica.position();
        match replica.receive(message, Utc::now().timestamp()) {
            Received::Changed { refused } if refused.is_empty() => {
                self.use_mailbox(replica, |mailbox, known, means| {
                    mailbox.tick(known, means, BTreeSet::new())
                });
            }
            Received::Unchanged => {}
            other @ (Received::Changed { .. }
            | Received::Gap
            | Received::Rejected(_)
            | Received::Bye(_)) => {
                bail!("the replica says {other:?}")
            }
        }
        let Some(position) = replica
            .position()
            .filter(|position| Some(*position) != before)
        else {
            return Ok(());
        };
        let applied = Instant::now();
        self.report(position, vec![]).await?;
        let _ = reached.send(Reached {
            revision: position.revision,
            applied,
            acknowledged: Instant::now(),
        });
        Ok(())
    }

    fn next_request(&self) -> Option<MailboxRequest> {
        if locked(&self.partners).is_empty() {
            None
        } else {
            locked(&self.mailbox).next_request()
        }
    }

    fn use_mailbox(
        &self,
        replica: &Replica,
        step: impl FnOnce(&mut PskMailbox, &Known, &Means<'_, SystemSecrets>) -> PassedOver,
    ) {
        let (Some(known), partners) = (replica.known(), locked(&self.partners)) else {
            return;
        };
        let peers: BTreeMap<_, _> = partners
            .iter()
            .filter_map(|node| Some((*node, known.peers.get(node)?.clone())))
            .collect();
        if peers.is_empty() {
            return;
        }
        let known = &Known {
            peers,
            ..known.clone()
        };
        let now = u64::try_from(Utc::now().timestamp()).unwrap_or_default();
        let mut mailbox = locked(&self.mailbox);
        // There is no disk: an agent of the fleet is never restarted.
        step(
            &mut mailbox,
            known,
            &Means {
                node_keys: &self.node_keys,
                now,
                kem: &SystemSecrets,
            },
        );
        mailbox.kept(Ok(()));
        let agreed = known
            .peers
            .keys()
            .filter(|peer| mailbox.exchange().key(**peer, PskPolicy::Prefer).is_some())
            .count();
        self.agreed.store(agreed, Ordering::Relaxed);
    }

    fn go(&self, request: MailboxRequest) -> BoxFuture<'_, (MailboxRequest, MailboxReply)> {
        Box::pin(async move {
            let reply = match self.client.mailbox(self.signer(), &request).await {
                Ok(response) => {
                    self.shared
                        .counters
                        .mailbox_messages
                        .fetch_add(request.leave.len() as u64, Ordering::Relaxed);
                    MailboxReply::Response(response)
                }
                Err(_) => {
                    sleep(PAUSE).await;
                    MailboxReply::Failed
                }
            };
            (request, reply)
        })
    }

    /// Reports that a position is applied, and some links; again until it arrives, as agents do.
    pub(crate) async fn report(
        &self,
        applied: Position,
        links: Vec<LinkReport>,
    ) -> anyhow::Result<()> {
        let mut report = Report {
            applied,
            device: Some(DeviceKind::Userspace),
            mtu: None,
            links,
            problems: Vec::new(),
            held: None,
            returned: [].into(),
            locked: false,
            keys_in_place: Vec::new(),
            start: None,
            number: None,
        };
        let mut failures = 0;
        while let Err(error) = self.report_once(&mut report).await {
            if failures == MOST_REPEATS {
                return Err(error);
            }
            self.shared
                .counters
                .repeated
                .fetch_add(1, Ordering::Relaxed);
            sleep(backoff(failures, random())).await;
            failures += 1;
        }
        Ok(())
    }

    async fn report_once(&self, report: &mut Report) -> anyhow::Result<()> {
        let _turn = self.shared.reports.acquire().await?;
        report.number = Some(self.next_number());
        Ok(self.client.report(self.signer(), report).await?)
    }

    fn next_number(&self) -> i64 {
        let mut last = locked(&self.last_number);
        let next = next_number(*last, self.client.report_ms());
        *last = Some(next);
        next
    }

    fn signer(&self) -> Signer<'_> {
        Signer {
            keys: &self.node_keys,
            enrolled: &self.enrolled,
        }
    }
}

/// What a thread that failed left is still good.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without random numbers the wait is the longest.
fn random() -> u32 {
    secrets::bytes().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes))
}
