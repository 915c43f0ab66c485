//! Looks at what is between the LANs here and elsewhere on this host, beside the loop that follows
//! the mesh: whenever the kernel tells of a change.

use std::{future::pending, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep},
};
use tracing::{debug, warn};
use wattle_mesh::{
    agent::node::OBSERVE_INTERVAL,
    backoff::Pace,
    diagnose::lan::{self, Facts, Served},
};
use wattle_wire::report::Problem;

use crate::{
    host::Host,
    kernel::{events::KernelEvents, legacy},
};

/// How long to go without a look when the kernel tells of nothing. Of iptables-legacy it never does:
/// where that may be in use, `OBSERVE_INTERVAL` holds.
const QUIET_INTERVAL: Duration = Duration::from_secs(60);
/// A look stands for so many times as long as it took, and looks for `BURST` may follow each other
/// at once: where it takes long to list the rules and they change all the time, a tenth of a
/// processor is used at most, and what changes after a quiet minute is told soon all the same.
const REST_FACTOR: u32 = 10;
const BURST: Duration = Duration::from_secs(30);
/// What is found differs while the agent itself or an administrator is at work. It is told when it
/// is the same after this time.
const SETTLE: Duration = Duration::from_secs(1);

/// Looks, and tells what it finds.
#[derive(Debug)]
pub(crate) struct LanWatch {
    served: watch::Sender<Option<Served>>,
    found: watch::Receiver<Vec<Problem>>,
    looking: JoinHandle<()>,
}

impl LanWatch {
    pub(crate) fn start(host: Host) -> Self {
        let (served, asked) = watch::channel(None);
        let (sender, found) = watch::channel(Vec::new());
        Self {
            served,
            found,
            looking: tokio::spawn(look_on(host, asked, sender)),
        }
    }

    /// Follows what the host carries out; `None` while it carries out nothing.
    pub(crate) fn follow(&self, served: Option<Served>) {
        self.served.send_if_modified(|known| {
            let is_news = *known != served;
            *known = served;
            is_news
        });
    }

    /// Waits until something else is found.
    pub(crate) async fn news(&mut self) {
        if self.found.changed().await.is_err() {
            pending().await
        }
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.found.borrow().clone()
    }
}

impl Drop for LanWatch {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

async fn look_on(
    host: Host,
    mut asked: watch::Receiver<Option<Served>>,
    found: watch::Sender<Vec<Problem>>,
) {
    let events = KernelEvents::open();
    let interval = match &events {
        Ok(_) => QUIET_INTERVAL,
        Err(error) => {
            debug!("the kernel tells of no changes: {error:#}");
            OBSERVE_INTERVAL
        }
    };
    let mut last: Option<(Served, Facts, Vec<Problem>)> = None;
    let mut unsettled = None;
    let (started, mut pace) = (Instant::now(), Pace::new(BURST));
    loop {
        let begin = Instant::now();
        let served = asked.borrow_and_update().clone();
        let problems = match &served {
            None => Some(Vec::new()),
            Some(served) => look(&host, served, &mut last).await,
        };
        pace.take(begin.elapsed() * REST_FACTOR, started.elapsed());
        let rest = pace.wait(started.elapsed());
        let mut pause = interval.max(rest);
        if let Some(problems) = problems.filter(|_| !asked.has_changed().unwrap_or(false)) {
            if problems == *found.borrow() {
                unsettled = None;
            } else if unsettled.as_ref() == Some(&problems) {
                for problem in problems.iter().filter(|new| !found.borrow().contains(new)) {
                    warn!(remedy = problem.remedy, "{}", problem.words);
                }
                let _ = found.send(problems);
                unsettled = None;
            } else {
                (unsettled, pause) = (Some(problems), SETTLE.max(rest));
            }
        }
        // What changes is looked at when it has settled, and as often as the time allows.
        let soon = async {
            match &events {
                Ok(events) => events.changed().await,
                Err(_) => pending().await,
            }
        };
        let legacy_may_differ = async {
            loop {
                sleep(OBSERVE_INTERVAL.max(rest)).await;
                if legacy::is_possible() {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = legacy_may_differ => {}
            () = soon => sleep(SETTLE.max(rest)).await,
            changed = asked.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(SETTLE).await;
            }
        }
    }
}

/// One look; `None` when it fails. What was found before stands while nothing has changed.
async fn look(
    host: &Host,
    served: &Served,
    last: &mut Option<(Served, Facts, Vec<Problem>)>,
) -> Option<Vec<Problem>> {
    let facts = match host.between_lans(served).await {
        Ok(facts) => facts,
        Err(error) => {
            debug!("cannot look at what is between the LANs: {error:#}");
            return None;
        }
    };
    if let Some((_, _, problems)) = last
        .as_ref()
        .filter(|(known, then, _)| known == served && *then == facts)
    {
        return Some(problems.clone());
    }
    let served = served.clone();
    let judged = spawn_blocking(move || {
        let problems = lan::problems(&served, &facts);
        (served, facts, problems)
    });
    let judged = judged.await.ok()?;
    let problems = judged.2.clone();
    *last = Some(judged);
    Some(problems)
}
