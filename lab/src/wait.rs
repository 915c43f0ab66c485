//! Waiting for a condition: the one place where the lab passes time.

use std::{
    env,
    fmt::Debug,
    os::fd::{AsFd, OwnedFd},
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::read,
};

/// A number by which all deadlines are multiplied, for machines that are slow on purpose; 1 if
/// absent.
const PATIENCE: &str = "WATTLE_LAB_PATIENCE";
/// Least time between two looks where no event tells of a change: WireGuard tells nobody of a
/// handshake, nor a ping that it would be answered now, nor an agent of its status. A look that
/// takes long is followed by as long a pause: it costs what is looked for its time.
const PACE: Duration = Duration::from_millis(20);
/// The same where events tell when it is worth to look: for what they do not tell.
const QUIET_PACE: Duration = Duration::from_millis(500);

/// So many seconds, on a machine of usual speed.
pub fn patience(seconds: f64) -> Duration {
    let factor = env::var(PATIENCE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0);
    Duration::from_secs_f64(seconds * factor)
}

/// Looks again and again until `condition` gives a value; past the deadline, an error with the last
/// thing that stood in the way.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    Events::default().wait_for(what, deadline, condition)
}

/// What tells that it is worth to look again: descriptors that have something to read then.
#[derive(Debug, Default)]
pub struct Events {
    sources: Vec<OwnedFd>,
    /// Processes that write to some of them.
    tellers: Vec<Child>,
}

impl Events {
    /// Reading from the sources must not block.
    pub(crate) fn of(sources: Vec<OwnedFd>, tellers: Vec<Child>) -> Self {
        Self { sources, tellers }
    }

    /// These, and others.
    #[must_use]
    pub fn and(mut self, mut others: Self) -> Self {
        self.sources.append(&mut others.sources);
        self.tellers.append(&mut others.tellers);
        self
    }

    /// As [`wait_for`]; an event makes it look again at once. Events from before the first look
    /// count, too, so none is missed between two looks.
    pub fn wait_for<T>(
        mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let look = Instant::now();
            let status = match condition() {
                Ok(value) => return Ok(value),
                Err(status) => status,
            };
            let left = deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                bail!("{what}: not within {deadline:?}; last: {status:#}");
            }
            if self.sources.is_empty() {
                thread::sleep(look.elapsed().max(PACE));
            } else {
                self.pass(QUIET_PACE.min(left))?;
            }
        }
    }

    /// Whether nothing was told so far.
    pub fn are_none(&self) -> Result<bool> {
        Ok(self.poll(PollTimeout::ZERO)? == 0)
    }

    /// Waits for an event, at most so long.
    fn pass(&mut self, time: Duration) -> Result<()> {
        match self.poll(PollTimeout::try_from(time)?) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.sources.retain(is_open);
        Ok(())
    }

    /// How many sources have something to read.
    fn poll(&self, time: PollTimeout) -> nix::Result<i32> {
        let mut all: Vec<_> = self
            .sources
            .iter()
            .map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut all, time)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for teller in &mut self.tellers {
            // It may have ended already.
            let _ = teller.kill();
            let _ = teller.wait();
        }
    }
}

/// Reads what there is; says whether more may come.
fn is_open(source: &OwnedFd) -> bool {
    let mut buffer = [0; 1 << 16];
    loop {
        match read(source, &mut buffer) {
            Ok(0) => return false,
            Ok(_) | Err(Errno::EINTR) => {}
            // The kernel says so when it had more to tell than it could keep.
            Err(Errno::EAGAIN | Errno::ENOBUFS) => return true,
            Err(_) => return false,
        }
    }
}

/// Ok if the two are the same, else an error that shows both: for conditions of [`wait_for`].
pub fn same<T: PartialEq + Debug + ?Sized>(found: &T, expected: &T) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        bail!("found {found:?}, expected {expected:?}")
    }
}
