//! The system's random numbers.

use anyhow::Context;
use wattle_client::secrets;
use zeroize::Zeroizing;

/// Bytes for a key, or for anything that nobody should guess.
pub(crate) fn bytes<const N: usize>() -> anyhow::Result<Zeroizing<[u8; N]>> {
    secrets::bytes().context("the system has no random numbers")
}
