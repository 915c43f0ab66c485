//! A steady stream of numbered datagrams from one host to another and back, to tell whether a
//! single one was lost.

pub(crate) mod end;
pub mod load;

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, ChildStdout, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    enter,
    host::Host,
    wait::{patience, wait_for},
};

use end::{PACE, PORT, ROLE, TO};

/// A stream that runs, 100 datagrams each second.
#[derive(Debug)]
pub struct Flow {
    sender: Child,
    echo: Child,
    progress: Arc<Mutex<Progress>>,
}

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub sent: usize,
    /// Numbers of those that did not come back, from 0.
    pub lost: Vec<usize>,
}

/// What the sender said so far.
#[derive(Debug, Default)]
struct Progress {
    source: Option<IpAddr>,
    sent: usize,
    outcome: Option<Outcome>,
}

impl Flow {
    /// Starts a stream to `address`, which is on the host `to`, and returns when the first datagram
    /// came back.
    pub fn start(from: &Host, to: &Host, address: Ipv4Addr) -> Result<Self> {
        let mut echo = spawn(to, None)?;
        let mut line = String::new();
        BufReader::new(echo.stdout.take().context("no pipe")?).read_line(&mut line)?;
        if line.trim() != "listening" {
            bail!("the echo said {line:?}: {}", echo.wait()?);
        }
        let mut sender = spawn(from, Some(SocketAddr::new(address.into(), PORT)))?;
        let progress = Arc::default();
        let says = sender.stdout.take().context("no pipe")?;
        thread::spawn({
            let progress = Arc::clone(&progress);
            move || follow(says, &progress)
        });
        let flow = Self {
            sender,
            echo,
            progress,
        };
        wait_for("the first datagram comes back", patience(10.0), || {
            flow.source().map(drop)
        })?;
        Ok(flow)
    }

    /// The sender's address as the other end saw it.
    pub fn source(&self) -> Result<IpAddr> {
        lock(&self.progress).source.context("nothing came back")
    }

    /// How many datagrams were sent so far.
    pub fn sent(&self) -> usize {
        lock(&self.progress).sent
    }

    /// Lets the stream run for so many more datagrams.
    pub fn more(&self, datagrams: usize) -> Result<()> {
        let goal = self.sent() + datagrams;
        let time = PACE * u32::try_from(datagrams)?;
        wait_for("more datagrams are sent", time * 2 + patience(5.0), || {
            let sent = self.sent();
            if sent >= goal {
                Ok(())
            } else {
                bail!("{sent} of {goal}")
            }
        })
    }

    /// Ends the stream; the last datagrams have time to come back.
    pub fn finish(mut self) -> Result<Outcome> {
        drop(self.sender.stdin.take());
        wait_for("the stream ends", patience(10.0), || {
            lock(&self.progress)
                .outcome
                .clone()
                .context("it still runs")
        })
    }

    /// Ends the stream, which fails if a single datagram was lost; gives how many there were.
    pub fn expect_no_loss(self) -> Result<usize> {
        let Outcome { sent, lost } = self.finish()?;
        if lost.is_empty() {
            Ok(sent)
        } else {
            bail!(
                "{} of {sent} datagrams were lost: {}",
                lost.len(),
                ranges(&lost)
            )
        }
    }
}

impl Outcome {
    /// For how long after so many had been sent datagrams still came back.
    pub fn came_back_after(&self, sent: usize) -> Result<Duration> {
        let last = (sent..self.sent)
            .rev()
            .find(|number| !self.lost.contains(number));
        Ok(PACE * u32::try_from(last.map_or(0, |last| last + 1 - sent))?)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        for child in [&mut self.sender, &mut self.echo] {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(host: &Host, to: Option<SocketAddr>) -> Result<Child> {
    let mut command = enter::part(host.enter(), ROLE)?;
    if let Some(to) = to {
        command.env(TO, to.to_string());
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
        .spawn()
        .with_context(|| format!("starting a flow on {}", host.name()))
}

/// Reads what the sender says until it has no more to say.
fn follow(says: ChildStdout, progress: &Mutex<Progress>) {
    for line in BufReader::new(says).lines().map_while(Result::ok) {
        let mut progress = lock(progress);
        match line.split_once(' ') {
            Some(("from", source)) => progress.source = source.parse().ok(),
            Some(("sent", sent)) => progress.sent = sent.parse().unwrap_or(progress.sent),
            Some(("outcome", numbers)) => {
                let mut numbers = numbers
                    .split_whitespace()
                    .map_while(|number| number.parse().ok());
                progress.outcome = numbers.next().map(|sent| Outcome {
                    sent,
                    lost: numbers.collect(),
                });
            }
            _ => {}
        }
    }
}

/// Numbers in order as text, `3-7, 9`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect(),
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
