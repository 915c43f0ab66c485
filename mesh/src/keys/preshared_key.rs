//! A preshared key, and how it is written on disk.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

/// A preshared key. Nothing shows it, `Serialize` included; [`on_disk`] alone writes it.
#[derive(Clone)]
pub struct Psk(Zeroizing<[u8; 32]>);

impl Psk {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key itself. Whoever calls this answers for where it goes.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Psk {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.0, &*other.0).is_ok()
    }
}

impl Eq for Psk {}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

impl Serialize for Psk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("hidden")
    }
}

/// A [`Psk`] in base64.
pub(super) mod on_disk {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use wattle_wire::key::Bytes32;

    use super::Psk;

    pub(in crate::keys) fn serialize<S: Serializer>(
        psk: &Psk,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Bytes32::from(*psk.reveal()).serialize(serializer)
    }

    pub(in crate::keys) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Psk, D::Error> {
        Bytes32::deserialize(deserializer).map(|bytes| Psk::new(*bytes.as_bytes()))
    }
}
