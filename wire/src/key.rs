//! Public keys and signatures, in canonical base64, checked as they are read.

use std::{convert::Infallible, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;
use utoipa::ToSchema;

use crate::name::{serde_as_text, sqlx_as};

/// Why a text is not a key or a signature.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidKey {
    #[error("expected {0} bytes in base64, as `wg genkey | wg pubkey` prints a key")]
    Encoding(usize),
    #[error("not a canonical X25519 public key")]
    NotCanonical,
    #[error("a low-order X25519 public key: every exchange with it gives the same secret")]
    LowOrder,
}

impl From<Infallible> for InvalidKey {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

macro_rules! bytes_as_base64 {
    ($name:ident, $length:literal) => {
        impl $name {
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                // The standard engine refuses missing padding and non-zero trailing bits.
                let bytes = STANDARD
                    .decode(text)
                    .map_err(|_| InvalidKey::Encoding($length))?;
                let bytes: [u8; $length] = bytes
                    .try_into()
                    .map_err(|_| InvalidKey::Encoding($length))?;
                Self::try_from(bytes).map_err(InvalidKey::from)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&STANDARD.encode(self.as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        serde_as_text!($name);
    };
}

/// A WireGuard (X25519) public key that takes part in an exchange: canonical, and not of low order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, example = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=")]
pub struct WireguardKey([u8; 32]);

/// An Ed25519 public key: who a node is. Whether it verifies anything is found out when it does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct IdentityKey([u8; 32]);

/// An Ed25519 public key: an operator who says who may be in the mesh. Its private half is on no
/// coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String)]
pub struct OperatorKey([u8; 32]);

/// A number that is used once, or a digest: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct Bytes32([u8; 32]);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct Signature([u8; 64]);

/// An ML-KEM-768 encapsulation key (FIPS 203, section 8). Whether it is one is found out when it is
/// used.
#[derive(Clone, PartialEq, Eq)]
pub struct KemKey(Box<[u8; 1184]>);

/// An ML-KEM-768 ciphertext.
#[derive(Clone, PartialEq, Eq)]
pub struct KemCiphertext(Box<[u8; 1088]>);

/// A preshared key that only the holder of one WireGuard key can read: see
/// `mesh::keys::psk::given`.
#[derive(Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = String)]
#[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
pub struct SealedPsk([u8; 80]);

bytes_as_base64!(WireguardKey, 32);
sqlx_as!([u8; 32], WireguardKey);
bytes_as_base64!(IdentityKey, 32);
bytes_as_base64!(OperatorKey, 32);
bytes_as_base64!(Bytes32, 32);
bytes_as_base64!(Signature, 64);
bytes_as_base64!(SealedPsk, 80);
bytes_as_base64!(KemKey, 1184);
bytes_as_base64!(KemCiphertext, 1088);

impl From<[u8; 80]> for SealedPsk {
    fn from(bytes: [u8; 80]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for IdentityKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for OperatorKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 32]> for Bytes32 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; 1184]> for KemKey {
    fn from(bytes: [u8; 1184]) -> Self {
        Self(Box::new(bytes))
    }
}

impl From<[u8; 1088]> for KemCiphertext {
    fn from(bytes: [u8; 1088]) -> Self {
        Self(Box::new(bytes))
    }
}

impl From<[u8; 64]> for Signature {
    fn from(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
}

/// The canonical u-coordinates of the points of order 1, 2, 4 and 8, little-endian; from the list
/// in RFC 7748's security considerations as spelt out at <https://cr.yp.to/ecdh.html#validate>. The
/// remaining entries of that list are not canonical.
const LOW_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    {
        let mut minus_one = FIELD_PRIME;
        minus_one[0] -= 1;
        minus_one
    },
];

/// 2^255 - 19, little-endian.
const FIELD_PRIME: [u8; 32] = {
    let mut prime = [0xff; 32];
    prime[0] = 0xed;
    prime[31] = 0x7f;
    prime
};

impl TryFrom<[u8; 32]> for WireguardKey {
    type Error = InvalidKey;

    fn try_from(bytes: [u8; 32]) -> Result<Self, Self::Error> {
        if bytes.iter().rev().ge(FIELD_PRIME.iter().rev()) {
            return Err(InvalidKey::NotCanonical);
        }
        if LOW_ORDER.contains(&bytes) {
            return Err(InvalidKey::LowOrder);
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: [u8; 32]) -> Result<WireguardKey, InvalidKey> {
        STANDARD.encode(bytes).parse()
    }

    #[test]
    fn a_key_of_wg_reads_back() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        assert_eq!(
            text.parse::<WireguardKey>().map(|k| k.to_string()),
            Ok(text.to_owned())
        );
    }

    #[test]
    fn b11_weak_and_non_canonical_keys_are_refused() {
        for low in LOW_ORDER {
            assert_eq!(parse(low), Err(InvalidKey::LowOrder));
        }
        assert_eq!(parse(FIELD_PRIME), Err(InvalidKey::NotCanonical));
        assert_eq!(parse([0xff; 32]), Err(InvalidKey::NotCanonical));
        let mut high_bit = [9; 32];
        high_bit[31] |= 0x80;
        assert_eq!(parse(high_bit), Err(InvalidKey::NotCanonical));
        assert!(parse([9; 32]).is_ok());
    }

    #[test]
    fn only_canonical_base64_of_the_right_length_is_read() {
        for bad in [
            "",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=",
            "AAAA",
            "not a key",
        ] {
            assert_eq!(
                bad.parse::<WireguardKey>(),
                Err(InvalidKey::Encoding(32)),
                "{bad}"
            );
        }
    }
}
