//! One simulated agent: real keys, real enrolment, real stream, the agents' own replica; no kernel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chrono::Utc;
use futures_util::StreamExt;
use reqwest::Client;
use tokio::sync::{mpsc, watch};
use wattle_mesh::{
    machine::Machine,
    pin::Pins,
    replica::{Received, Replica},
};
use wattle_wire::{
    enrol::{EnrolChallenge, EnrolStart, Enrolled},
    join::JoinString,
    key::Bytes32,
    report::{DeviceKind, Report},
    stream::StreamMessage,
};

/// What all agents count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) snapshots: AtomicU64,
    /// Bytes of the streams' messages.
    pub(crate) bytes: AtomicU64,
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

#[derive(Debug)]
pub(crate) struct Agent {
    client: Client,
    url: String,
    machine: Machine,
    enrolled: Enrolled,
    replica: Replica,
}

impl Agent {
    /// Makes keys and enrols.
    ///
    /// Each agent has connections of its own, as real ones have.
    pub(crate) async fn enrol(join: JoinString) -> anyhow::Result<Self> {
        let client = client(&join.pins)?;
        let url = join.urls.first().context("the join string has no URL")?.clone();
        let mut seeds = [[0; 32]; 2];
        aws_lc_rs::rand::fill(seeds.as_flattened_mut()).ok().context("no random numbers")?;
        let machine = Machine::new(&seeds[0], &seeds[1])?;
        let start = EnrolStart { token: join.token, secret: join.secret.clone() };
        let challenge: EnrolChallenge = post(&client, &format!("{url}/agent/enrol/start"), &start).await?;
        let claim = machine.claim(&join, &challenge, None, "fleet")?;
        let enrolled: Enrolled = post(&client, &format!("{url}/agent/enrol/finish"), &claim).await?;
        let replica = Replica::new(enrolled.mesh, machine.wireguard_key());
        Ok(Self { client, url, machine, enrolled, replica })
    }

    /// Follows, and comes back as agents do, until `stop` is set.
    pub(crate) async fn follow(
        mut self,
        counters: Arc<Counters>,
        reached: mpsc::UnboundedSender<Reached>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut failures = 0;
        while !*stop.borrow() {
            tokio::select! {
                _ = stop.changed() => return,
                result = self.follow_once(&counters, &reached) => failures = if result.is_ok() { 0 } else { failures + 1 },
            }
            // Full jitter, as the agent does it.
            let bound = Duration::from_millis(200).saturating_mul(2u32.saturating_pow(failures)).min(Duration::from_secs(20));
            let mut random = [0; 4];
            let _ = aws_lc_rs::rand::fill(&mut random);
            tokio::time::sleep(bound.mul_f64(f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX))).await;
        }
    }

    async fn follow_once(&mut self, counters: &Counters, reached: &mpsc::UnboundedSender<Reached>) -> anyhow::Result<()> {
        let since = self.replica.resume_from().map(|since| format!("?since={since}")).unwrap_or_default();
        let request = self.client.get(format!("{}/agent/stream{since}", self.url)).bearer_auth(self.token()?);
        let response = request.send().await?;
        if !response.status().is_success() {
            bail!("the stream answered {}", response.status());
        }
        let mut chunks = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            counters.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Some(data) = line.strip_prefix(b"data: ").or_else(|| line.strip_prefix(b"data:")) {
                    self.take(serde_json::from_slice(data)?, counters, reached).await?;
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: StreamMessage, counters: &Counters, reached: &mpsc::UnboundedSender<Reached>) -> anyhow::Result<()> {
        if matches!(message, StreamMessage::Snapshot { .. }) {
            counters.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.replica.position();
        match self.replica.receive(message) {
            Received::Changed { refused } if refused.is_empty() => {}
            Received::Unchanged => {}
            other @ (Received::Changed { .. } | Received::Gap | Received::Rejected(_) | Received::Bye(_)) => {
                bail!("the replica says {other:?}")
            }
        }
        let Some(position) = self.replica.position().filter(|position| Some(*position) != before) else { return Ok(()) };
        let applied = Instant::now();
        let report = Report { applied: position, device: DeviceKind::Userspace, links: Vec::new(), problems: Vec::new() };
        let request = self.client.post(format!("{}/agent/report", self.url)).bearer_auth(self.token()?).json(&report);
        request.send().await?.error_for_status()?;
        let _ = reached.send(Reached { revision: position.revision, applied, acknowledged: Instant::now() });
        Ok(())
    }

    fn token(&self) -> anyhow::Result<String> {
        Ok(self.machine.token(&self.enrolled, Utc::now().timestamp())?.reveal().to_owned())
    }
}

/// A client that believes pinned coordinators alone or, without pins, publicly valid ones.
pub(crate) fn client(pins: &[Bytes32]) -> anyhow::Result<Client> {
    let builder = match pins {
        [] => Client::builder(),
        pins => Client::builder().tls_backend_preconfigured(Pins::new(pins.to_vec()).client_config()?),
    };
    builder.build().context("cannot make an HTTP client")
}

async fn post<A: for<'a> serde::Deserialize<'a>>(client: &Client, url: &str, body: &impl serde::Serialize) -> anyhow::Result<A> {
    let response = client.post(url).json(body).send().await?;
    if !response.status().is_success() {
        bail!("{url} answered {}: {}", response.status(), response.text().await?);
    }
    Ok(response.json().await?)
}
