//! Whether a coordinator is reached, and what its answer says of this host's clock and of the way.

use std::fmt;

use chrono::DateTime;

use super::{Finding, Symptoms, fault, fine, notice};
use crate::health::clock::{SET_CLOCK, problem as wrong_clock};

/// Why no coordinator answers.
#[derive(Clone, Debug)]
pub struct Unreached {
    /// With all of its causes, in words.
    pub error: String,
    /// Its certificate is not valid at the time of this host's clock.
    pub out_of_time: Option<OutOfTime>,
}

/// A certificate is not valid at the time of this host's clock. All are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfTime {
    /// It is too early for the certificate.
    Early { now: i64, from: Option<i64> },
    /// It is too late for it.
    Late { now: i64, until: Option<i64> },
}

impl fmt::Display for OutOfTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Early { now, from } => {
                write!(
                    formatter,
                    "the clock of this host is wrong: it says {}, which is before the \
                     coordinator's certificate was made",
                    date(*now)
                )?;
                from.map_or(Ok(()), |from| write!(formatter, " ({})", date(from)))
            }
            Self::Late { now, until } => {
                write!(
                    formatter,
                    "the clock of this host is wrong (it says {}), or the coordinator's \
                     certificate has expired",
                    date(*now)
                )?;
                until.map_or(Ok(()), |until| write!(formatter, " ({})", date(until)))
            }
        }
    }
}

fn date(unix_s: i64) -> String {
    DateTime::from_timestamp(unix_s, 0).map_or_else(
        || format!("{unix_s} s after 1970"),
        |at| at.format("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

pub(super) fn coordinator(symptoms: &Symptoms) -> Vec<Finding> {
    let Some(answer) = &symptoms.coordinator else {
        return vec![notice(
            "coordinator",
            "not looked for: this machine knows none yet",
            "give the join string as well: `wattle-agent doctor FILE`",
        )];
    };
    let mut findings: Vec<_> = symptoms
        .unresolved
        .iter()
        .map(|(host, error)| {
            fault(
                "dns",
                format!("{host} has no address: {error}"),
                "see /etc/resolv.conf; tunnels stay, but changes do not arrive",
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(fine("dns", "the coordinators' names have addresses"));
    }
    match answer {
        Err(Unreached { error, out_of_time }) => {
            findings.push(fault(
                "coordinator",
                error,
                "tunnels stay as they are. Check that this host can reach its address",
            ));
            findings.extend(
                out_of_time.map(|out_of_time| fault("clock", out_of_time.to_string(), SET_CLOCK)),
            );
        }
        Ok(ahead) => {
            findings.push(fine("coordinator", "answers"));
            findings.push(clock(*ahead));
            if symptoms.loses_large_packets {
                findings.push(notice(
                    "path",
                    "large packets are lost on the way to the coordinator, and no router says \
                     so; the agent goes on with small ones. Large packets of the tunnels may be \
                     lost as well",
                    "let the routers and firewalls on the way send and pass ICMP \
                     \"fragmentation needed\" and ICMPv6 \"packet too big\"",
                ));
            }
        }
    }
    findings
}

/// `ahead_s`: seconds by which the clock is ahead of the coordinator's.
fn clock(ahead_s: i64) -> Finding {
    match wrong_clock(ahead_s) {
        Some(problem) => problem.into(),
        None => {
            let seconds = ahead_s.unsigned_abs();
            let detail = format!("differs from the coordinator's by {seconds} s");
            fine("clock", detail)
        }
    }
}
