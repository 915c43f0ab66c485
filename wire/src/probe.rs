//! A probe: the small datagram with which one gateway asks another, through their tunnel, whether it is there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// UDP port on its tunnel address at which each agent answers probes.
pub const PROBE_PORT: u16 = 9587;

/// What a probe begins with; an answer has [`ANSWER`] instead.
const REQUEST: [u8; 4] = *b"WTP?";
const ANSWER: [u8; 4] = *b"WTP!";

/// A request, or its answer. Both have the same length, so that nothing is amplified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Asks the other end for an answer with the same number.
    Request(u32),
    Answer(u32),
}

impl Probe {
    /// Bytes of a probe.
    pub const LENGTH: usize = 8;

    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (kind, number) = match self {
            Self::Request(number) => (REQUEST, number),
            Self::Answer(number) => (ANSWER, number),
        };
        (u64::from(u32::from_be_bytes(kind)) << 32 | u64::from(number)).to_be_bytes()
    }

    /// The probe in a datagram; `None` for all else.
    pub fn from_bytes(datagram: &[u8]) -> Option<Self> {
        let datagram: &[u8; Self::LENGTH] = datagram.try_into().ok()?;
        let (kind, number) = datagram.split_first_chunk::<4>()?;
        let number = u32::from_be_bytes(number.try_into().ok()?);
        match *kind {
            REQUEST => Some(Self::Request(number)),
            ANSWER => Some(Self::Answer(number)),
            _ => None,
        }
    }
}

/// How the health of links is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HealthSettings {
    /// Whether gateways probe each other through their tunnels. Without probes a link is down 180 s after its last handshake, and nothing is
    /// known of loss and round trips.
    pub probes: bool,
    /// Percent of unanswered probes, 1 to 100, from which on a link is lossy; it is not any more at half of that.
    pub lossy_percent: u8,
    /// Milliseconds of round trip, 1 to 60,000, from which on a link is slow; it is not any more at four fifths of that.
    pub slow_ms: u16,
}

impl HealthSettings {
    pub const SLOWEST_MS: u16 = 60_000;
}

impl Default for HealthSettings {
    /// Ten percent make TCP crawl and half a second makes talking hard; both are far from what a link between sites has.
    fn default() -> Self {
        Self { probes: true, lossy_percent: 10, slow_ms: 500 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_it_was_written_and_nothing_else_is_one() {
        for probe in [Probe::Request(0), Probe::Request(u32::MAX), Probe::Answer(7)] {
            assert_eq!(Probe::from_bytes(&probe.to_bytes()), Some(probe));
        }
        assert_eq!(Probe::Request(0x0102_0304).to_bytes(), *b"WTP?\x01\x02\x03\x04");
        for other in [&b""[..], b"WTP?\0\0\0", b"WTP?\0\0\0\0\0", b"WTP.\0\0\0\0"] {
            assert_eq!(Probe::from_bytes(other), None);
        }
    }
}
