//! Waiting for a condition: the one place where the lab passes time.

use std::{
    env,
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// A number by which all deadlines are multiplied, for machines that are slow on purpose; 1 if
/// absent.
const PATIENCE: &str = "WATTLE_LAB_PATIENCE";
/// Least time between two looks. A look that takes long is followed by as long a pause: it costs
/// what is looked for its time.
const PACE: Duration = Duration::from_millis(20);

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
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let look = Instant::now();
        let status = match condition() {
            Ok(value) => return Ok(value),
            Err(status) => status,
        };
        if start.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}; last: {status:#}");
        }
        thread::sleep(look.elapsed().max(PACE));
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
