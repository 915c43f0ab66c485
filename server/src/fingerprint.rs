//! Pins of certificate authorities as people read and write them.

use hex::FromHex;
use wattle_wire::key::Bytes32;

/// A pin as `openssl x509 -fingerprint -sha256` prints it.
pub fn fingerprint(pin: Bytes32) -> String {
    pin.as_bytes().map(|byte| format!("{byte:02X}")).join(":")
}

/// Reads what [`fingerprint`] prints.
pub fn parse_fingerprint(text: &str) -> Result<Bytes32, String> {
    let bytes: Result<Vec<_>, _> = text.split(':').map(<[u8; 1]>::from_hex).collect();
    bytes
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes.concat()).ok())
        .map(Bytes32::from)
        .ok_or_else(|| "this is not a fingerprint as `wattle-server ca list` prints it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_back() {
        let pin = Bytes32::from(std::array::from_fn(|index| 37_u8.wrapping_mul(index as u8)));
        assert_eq!(parse_fingerprint(&fingerprint(pin)), Ok(pin));
        assert_eq!(parse_fingerprint(&fingerprint(pin).to_lowercase()), Ok(pin));
        for bad in [
            "",
            "AB",
            &fingerprint(pin)[1..],
            &format!("{}:00", fingerprint(pin)),
            &"+1:".repeat(32),
        ] {
            assert!(parse_fingerprint(bad).is_err(), "{bad}");
        }
    }
}
