//! How large the TCP segments to a coordinator are, so that it is reached where large packets are
//! lost on the way and no router says so.

/// How large the segments of a connection may be, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentSize {
    /// As the kernel has it from the MTU of the interface.
    Normal,
    /// Small enough for every path that carries IPv6.
    Small,
}

impl SegmentSize {
    /// Bytes of the maximum segment size that [`SegmentSize::Small`] asks for. With the headers
    /// of IPv6 and TCP that is 1,260, less than the smallest MTU of IPv6 (RFC 8200, section 5).
    const SMALL: u32 = 1200;

    /// The maximum segment size to ask for in bytes; absent means that the kernel decides.
    pub fn bytes(self) -> Option<u32> {
        match self {
            Self::Normal => None,
            Self::Small => Some(Self::SMALL),
        }
    }
}

/// What is known of the way to one coordinator. The first flight of a TLS handshake is larger than
/// a packet in both directions, so a way that loses large packets does not let it finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    loses_large_packets: bool,
}

impl Segments {
    /// What a new connection begins with.
    pub fn first(self) -> SegmentSize {
        if self.loses_large_packets {
            SegmentSize::Small
        } else {
            SegmentSize::Normal
        }
    }

    /// Takes note of a handshake that finished.
    pub fn finished(&mut self, size: SegmentSize) {
        self.loses_large_packets = size == SegmentSize::Small;
    }

    /// Takes note of a handshake that did not finish in time, on a TCP connection that was there.
    /// The size to try next; `None` means that size is not what is wrong.
    pub fn timed_out(&mut self, size: SegmentSize) -> Option<SegmentSize> {
        match size {
            SegmentSize::Normal => Some(SegmentSize::Small),
            SegmentSize::Small => {
                self.loses_large_packets = false;
                None
            }
        }
    }

    /// Takes note of a coordinator that took a request and whose answer did not come.
    pub fn went_silent(&mut self) {
        self.loses_large_packets = true;
    }

    /// Whether the newest connection got through with small segments alone.
    pub fn loses_large_packets(self) -> bool {
        self.loses_large_packets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_segments_follow_a_handshake_that_did_not_finish_and_stay_where_they_helped() {
        let mut way = Segments::default();
        assert_eq!(way.first(), SegmentSize::Normal);
        assert_eq!(way.timed_out(SegmentSize::Normal), Some(SegmentSize::Small));
        // The next connection may be to a coordinator that hung for a moment.
        assert_eq!(way.first(), SegmentSize::Normal);
        way.finished(SegmentSize::Small);
        assert_eq!(way.first(), SegmentSize::Small);
        way.finished(SegmentSize::Small);
        assert!(way.loses_large_packets());
    }

    #[test]
    fn where_small_segments_do_not_help_either_the_next_connection_is_normal() {
        let mut way = Segments::default();
        way.finished(SegmentSize::Small);
        assert_eq!(way.timed_out(SegmentSize::Small), None);
        assert_eq!(way.first(), SegmentSize::Normal);
        way.finished(SegmentSize::Normal);
        assert!(!way.loses_large_packets());
    }

    #[test]
    fn after_an_answer_that_did_not_come_the_next_connection_has_small_segments() {
        let mut way = Segments::default();
        way.finished(SegmentSize::Normal);
        way.went_silent();
        assert_eq!(way.first(), SegmentSize::Small);
    }

    #[test]
    fn a_small_segment_fits_the_smallest_mtu_of_ipv6_with_its_headers() {
        assert_eq!(SegmentSize::Normal.bytes(), None);
        assert!(SegmentSize::Small.bytes().unwrap() + 40 + 20 <= 1280);
    }
}
