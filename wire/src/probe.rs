//! A probe: the small datagram with which one gateway asks another, through their tunnel, whether
//! it is there. And what one says who counts bytes for another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// UDP port on its tunnel address at which each agent answers probes, and TCP port at which it
/// counts bytes for peers.
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

/// What a gateway counted of the bytes that another sent to it over TCP. It says
/// [`Throughput::TURN`] when it begins to count, and this when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throughput {
    pub bytes: u64,
    /// From the first of them on.
    pub microseconds: u64,
}

impl Throughput {
    /// "Your turn": from now on it is counted.
    pub const TURN: u8 = b'!';
    /// Bytes of an answer.
    pub const LENGTH: usize = 16;

    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        (u128::from(self.bytes) << 64 | u128::from(self.microseconds)).to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self {
            bytes: (both >> 64) as u64,
            microseconds: both as u64,
        }
    }
}

/// How the health of links is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HealthSettings {
    /// Whether gateways probe each other through their tunnels, and count bytes for each other when
    /// throughput is measured. Without probes a link is down 180 s after its last handshake, and
    /// nothing is known of loss and round trips.
    pub probes: bool,
    /// A link becomes lossy at this percentage of unanswered probes (1 to 100), and stops being
    /// lossy at half of it.
    pub lossy_percent: u8,
    /// A link becomes slow at this round trip in milliseconds (1 to 60,000), and stops being slow
    /// at four fifths of it.
    pub slow_ms: u16,
}

impl HealthSettings {
    pub const SLOWEST_MS: u16 = 60_000;
}

impl Default for HealthSettings {
    /// Ten percent make TCP crawl and half a second makes talking hard; both are far from what a
    /// link between sites has.
    fn default() -> Self {
        Self {
            probes: true,
            lossy_percent: 10,
            slow_ms: 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_it_was_written_and_nothing_else_is_one() {
        for probe in [
            Probe::Request(0),
            Probe::Request(u32::MAX),
            Probe::Answer(7),
        ] {
            assert_eq!(Probe::from_bytes(&probe.to_bytes()), Some(probe));
        }
        assert_eq!(
            Probe::Request(0x0102_0304).to_bytes(),
            *b"WTP?\x01\x02\x03\x04"
        );
        for other in [&b""[..], b"WTP?\0\0\0", b"WTP?\0\0\0\0\0", b"WTP.\0\0\0\0"] {
            assert_eq!(Probe::from_bytes(other), None);
        }
    }

    #[test]
    fn a_throughput_is_read_as_it_was_written() {
        let throughput = Throughput {
            bytes: 0x0102_0304_0506_0708,
            microseconds: 2_000_000,
        };
        assert_eq!(
            throughput.to_bytes(),
            *b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\x1e\x84\x80"
        );
        assert_eq!(Throughput::from_bytes(throughput.to_bytes()), throughput);
    }
}
