//! A probe: the datagram with which one gateway asks another, through their tunnel, whether it is
//! there, or whether large packets get there. And what one says who counts bytes for another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// UDP port on its tunnel address at which each agent answers probes, and TCP port at which it
/// counts bytes for peers.
pub const PROBE_PORT: u16 = 9587;

/// What a probe begins with.
const REQUEST: [u8; 4] = *b"WTP?";
const ANSWER: [u8; 4] = *b"WTP!";
const LARGE_REQUEST: [u8; 4] = *b"WTL?";
const LARGE_ANSWER: [u8; 4] = *b"WTL!";

/// A request, or its answer. No answer is longer than its request, so that nothing is amplified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Asks the other end for an answer with the same number.
    Request(u32),
    Answer(u32),
    /// The same, and as large as whoever asks wants it to be: zeros follow.
    LargeRequest(u32),
    /// As small as any answer.
    LargeAnswer(u32),
}

impl Probe {
    /// Bytes of a probe without the zeros.
    pub const LENGTH: usize = 8;

    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (kind, number) = match self {
            Self::Request(number) => (REQUEST, number),
            Self::Answer(number) => (ANSWER, number),
            Self::LargeRequest(number) => (LARGE_REQUEST, number),
            Self::LargeAnswer(number) => (LARGE_ANSWER, number),
        };
        (u64::from(u32::from_be_bytes(kind)) << 32 | u64::from(number)).to_be_bytes()
    }

    /// The probe in a datagram, of which [`Probe::LENGTH`] bytes and one more are enough; `None` for
    /// all else.
    pub fn from_bytes(datagram: &[u8]) -> Option<Self> {
        let (probe, zeros) = datagram.split_first_chunk::<{ Self::LENGTH }>()?;
        let (kind, number) = probe.split_first_chunk::<4>()?;
        let number = u32::from_be_bytes(number.try_into().ok()?);
        match *kind {
            LARGE_REQUEST => Some(Self::LargeRequest(number)),
            _ if !zeros.is_empty() => None,
            REQUEST => Some(Self::Request(number)),
            ANSWER => Some(Self::Answer(number)),
            LARGE_ANSWER => Some(Self::LargeAnswer(number)),
            _ => None,
        }
    }

    /// The answer to a request.
    pub fn answer(self) -> Option<Self> {
        match self {
            Self::Request(number) => Some(Self::Answer(number)),
            Self::LargeRequest(number) => Some(Self::LargeAnswer(number)),
            Self::Answer(_) | Self::LargeAnswer(_) => None,
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
            Probe::LargeRequest(7),
            Probe::LargeAnswer(u32::MAX),
        ] {
            assert_eq!(Probe::from_bytes(&probe.to_bytes()), Some(probe));
        }
        for (probe, bytes) in [
            (Probe::Request(0x0102_0304), *b"WTP?\x01\x02\x03\x04"),
            (Probe::Answer(5), *b"WTP!\0\0\0\x05"),
            (Probe::LargeRequest(6), *b"WTL?\0\0\0\x06"),
            (Probe::LargeAnswer(7), *b"WTL!\0\0\0\x07"),
        ] {
            assert_eq!(probe.to_bytes(), bytes);
        }
        for other in [
            &b""[..],
            b"WTP?\0\0\0",
            b"WTP?\0\0\0\0\0",
            b"WTP.\0\0\0\0",
            b"WTL?\0\0\0",
            b"WTL!\0\0\0\0\0",
        ] {
            assert_eq!(Probe::from_bytes(other), None);
        }
    }

    #[test]
    fn a_large_request_is_one_at_any_length() {
        for length in [8, 9, 1_392, 65_507] {
            let mut datagram = Probe::LargeRequest(7).to_bytes().to_vec();
            datagram.resize(length, 0);
            assert_eq!(
                Probe::from_bytes(&datagram),
                Some(Probe::LargeRequest(7)),
                "{length}"
            );
        }
    }

    #[test]
    fn an_answer_has_the_number_of_its_request_and_none_itself() {
        for (request, answer) in [
            (Probe::Request(7), Probe::Answer(7)),
            (Probe::LargeRequest(8), Probe::LargeAnswer(8)),
        ] {
            assert_eq!(request.answer(), Some(answer));
            assert_eq!(answer.answer(), None);
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
