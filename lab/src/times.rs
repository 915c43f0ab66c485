//! How long the tests of a program took.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many of the slowest tests are told.
const SLOWEST: usize = 10;

/// Those that have ended.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Runs a test, and keeps in mind how long it took.
pub fn timed<T>(name: &str, test: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = test();
    TIMES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((begin.elapsed(), name.to_owned()));
    result
}

/// A line for each of the slowest tests, in the form that `scripts/test` reads.
pub fn slowest() -> String {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort_by(|one, other| other.cmp(one));
    times
        .iter()
        .take(SLOWEST)
        .map(|(time, name)| format!("slow: {:>6.1} s {name}\n", time.as_secs_f64()))
        .collect()
}
