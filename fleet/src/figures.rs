//! Numbers for people: percentiles, and what processes use.

use std::{fs, time::Duration};

/// Median, 99th percentile and maximum, in milliseconds, `p50 / p99 / max`.
pub(crate) fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index of a short list"
        )]
        let index = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!("{:.1} / {:.1} / {:.1} ms", at(0.5), at(0.99), at(1.0))
}

/// What a process and its children use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory in bytes; for children, what is theirs alone.
    pub(crate) memory: u64,
    /// Seconds of processor time.
    pub(crate) cpu_s: f64,
}

/// Reads what a process alone uses.
pub(crate) fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5), counted after the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Usage { memory: memory.unwrap_or(0) * 1024, cpu_s: (ticks(11) + ticks(12)) / 100.0 }
}

/// Mebibytes.
pub(crate) fn mib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let value = bytes as f64 / f64::from(1 << 20);
    format!("{value:.1} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_sorted_times() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(spread(times), "50.0 / 99.0 / 100.0 ms");
        assert_eq!(spread(vec![]), "0.0 / 0.0 / 0.0 ms");
    }
}
