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
        times
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!("{:.1} / {:.1} / {:.1} ms", at(0.5), at(0.99), at(1.0))
}

/// How long so many things took, and how many in a second.
pub(crate) fn rate(count: u32, time: Duration) -> String {
    format!(
        "{:.1} s, {:.0}/s",
        time.as_secs_f64(),
        f64::from(count) / time.as_secs_f64()
    )
}

/// What some processes use together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory that is theirs alone, in bytes.
    pub(crate) memory: u64,
    /// Seconds of processor time.
    pub(crate) cpu_s: f64,
}

/// What coordinators, their databases and the fleet use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usages {
    pub(crate) coordinators: Usage,
    pub(crate) postgres: Usage,
    pub(crate) fleet: Usage,
}

impl Usages {
    pub(crate) fn of(coordinators: &[u32]) -> Self {
        Self {
            coordinators: together(coordinators),
            postgres: together(&descendants(coordinators)),
            fleet: together(&[std::process::id()]),
        }
    }

    /// Processor time since another look, in milliseconds for each of so many things.
    pub(crate) fn cpu_since(&self, before: &Self, count: u32) -> String {
        let each = |now: Usage, then: Usage| (now.cpu_s - then.cpu_s) / f64::from(count) * 1e3;
        format!(
            "{:.1} / {:.1} / {:.1} ms",
            each(self.coordinators, before.coordinators),
            each(self.postgres, before.postgres),
            each(self.fleet, before.fleet)
        )
    }

    /// Which takes most of the processors since another look, for the note about the bottleneck.
    pub(crate) fn fleets_share_since(&self, before: &Self) -> f64 {
        let [coordinators, postgres, fleet] = [
            self.coordinators.cpu_s - before.coordinators.cpu_s,
            self.postgres.cpu_s - before.postgres.cpu_s,
            self.fleet.cpu_s - before.fleet.cpu_s,
        ];
        fleet / (coordinators + postgres + fleet).max(f64::MIN_POSITIVE)
    }
}

fn together(pids: &[u32]) -> Usage {
    pids.iter()
        .map(|pid| usage(*pid))
        .fold(Usage::default(), |sum, one| Usage {
            memory: sum.memory + one.memory,
            cpu_s: sum.cpu_s + one.cpu_s,
        })
}

fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| {
        line.strip_prefix("RssAnon:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    let stat = fields(pid);
    // Fields 14 to 17 of proc(5): its own time, and that of children that have ended.
    let ticks = |index: usize| {
        stat.get(index)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    Usage {
        memory: memory.unwrap_or(0) * 1024,
        cpu_s: (ticks(11) + ticks(12) + ticks(13) + ticks(14)) / 100.0,
    }
}

/// The fields of `/proc/<pid>/stat` from the third on, counted after the name, which may hold
/// anything.
fn fields(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned)
        .collect()
}

/// All processes below some.
fn descendants(of: &[u32]) -> Vec<u32> {
    let all = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = all
        .filter_map(|pid| Some((pid, fields(pid).get(1)?.parse().ok()?)))
        .collect();
    let mut found = of.to_vec();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(of.len())
}

/// Mebibytes.
pub(crate) fn mib(bytes: u64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "one digit after the point is shown"
    )]
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
