//! What a device reads of the IP packets that it moves.

use std::net::IpAddr;

/// Bytes of the shortest header of IPv4, and of the header of IPv6.
const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;

/// Where a packet goes; nothing if it is no IP packet.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

/// Where a packet comes from; nothing if it is no IP packet.
pub(super) fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// A packet without what it was padded with; nothing if it is no IP packet, or not whole.
pub(super) fn unpadded(packet: &[u8]) -> Option<&[u8]> {
    let field = |at: usize| {
        let bytes = packet.get(at..at + 2)?.first_chunk()?;
        Some(usize::from(u16::from_be_bytes(*bytes)))
    };
    let length = match packet.first()? >> 4 {
        4 => field(2)?,
        6 => HEADER_V6 + field(4)?,
        _ => return None,
    };
    packet.get(..length).filter(|_| length >= HEADER_V4)
}

fn address(packet: &[u8], at_v4: usize, at_v6: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(at_v4..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(at_v6..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With four bytes behind the header, of which two belong to it.
    fn packet(is_v4: bool) -> Vec<u8> {
        let mut packet = if is_v4 {
            let mut packet = vec![0; HEADER_V4];
            packet[0] = 0x45;
            packet[3] = 22;
            packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
            packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
            packet
        } else {
            let mut packet = vec![0; HEADER_V6];
            packet[0] = 0x60;
            packet[5] = 2;
            (packet[8], packet[23]) = (0xfd, 1);
            (packet[24], packet[39]) = (0xfd, 2);
            packet
        };
        packet.extend([7; 4]);
        packet
    }

    #[test]
    fn addresses_and_length_are_read_of_both_families() {
        let v4 = packet(true);
        assert_eq!(source(&v4), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(destination(&v4), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(unpadded(&v4), Some(&v4[..22]));
        let v6 = packet(false);
        assert_eq!(source(&v6), Some("fd00::1".parse().unwrap()));
        assert_eq!(destination(&v6), Some("fd00::2".parse().unwrap()));
        assert_eq!(unpadded(&v6), Some(&v6[..42]));
    }

    #[test]
    fn what_is_no_whole_packet_is_nothing() {
        for is_v4 in [true, false] {
            let packet = packet(is_v4);
            let least = packet.len() - 2;
            for bytes in 0..least {
                assert_eq!(unpadded(&packet[..bytes]), None, "{bytes} bytes");
            }
        }
        let mut empty = packet(true);
        empty[3] = 0;
        assert_eq!(unpadded(&empty), None, "shorter than its own header");
        for nothing in [&[][..], &[0x00; 40], &[0x50; 40]] {
            assert_eq!((source(nothing), destination(nothing)), (None, None));
            assert_eq!(unpadded(nothing), None);
        }
    }
}
